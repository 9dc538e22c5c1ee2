"""ImageNet, or any folder with train/<class>/ and val/<class>/ (or pool/ without labels); its files are listed once,
not copied.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from alfk.data.image_files import ImageFiles
from alfk.data.split import UNOFFICIAL, Dataset, Split
from alfk.own.annotations import SKIP
from alfk.support.errors import UserError
from alfk.support.files import has_array, locked, open_array, read_json, save_array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
AGAIN = "delete it, then the images are listed again"
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC-2012


def load_folder(
    folder: Path,
    root: Path | None,
    size: int,
    loader: str,
    workers: int,
    unlabelled: bool = False,
    strict: bool = True,
) -> Dataset:
    """Pool images from train/, validation images from val/, test images from test/ if there is one, else from val/ too:
    the paper's protocol.

    Args:
        folder: local_data/<name>; the lists of files are stored in its subfolder processed.
        root: the folder with train/ and val/; if None, ILSVRC2012_pytorch beside `folder` if it exists, else the folder
            listed last.
        size, loader, workers: see `ImageFiles`.
        unlabelled: the pool is not train/<class>/ but pool/, at any depth, and its labels are unknown. People's CSV
            files name its images, those of val/ and the classes.
        strict: without effect: a part of ImageNet is accepted in any case. Other data sets have it.
    Raises:
        UserError: a folder is missing or empty, train/, val/ and test/ have different classes, or a CSV file could not
            name an image or a class.
    """
    root = (root or _default_root(folder)).absolute()
    first = "val" if unlabelled else "train"
    if unlabelled and not (root / "pool").is_dir():
        raise UserError(f"there is no folder {root / 'pool'}: put the images to choose from into it, at any depth")
    names, parts = _classes(root, first, unlabelled), [] if unlabelled else ["train"]
    parts += ["val", "test"] if (root / "test").is_dir() else ["val"]
    for part in parts:
        for name in sorted(set(names) ^ set(_classes(root, part, unlabelled))):
            raise UserError(f"{root} has the class {name} in one of {first}/ and {part}/ alone")
    if unlabelled and SKIP in names:
        raise UserError(f"{root / first / SKIP}: a class cannot be called {SKIP}, which takes a file out: rename it")
    options = (size, loader, workers)
    found = {part: _split(folder, root, part, names, *options) for part in parts}
    train = _split(folder, root, "pool", names, *options) if unlabelled else found["train"]
    if unlabelled:
        for split in (train, found["val"]):
            _check_utf8(root, split.store.paths)
    return Dataset(train, found.get("test", found["val"]), found["val"])


def is_imagenet(root: Path) -> bool:
    """Whether the folder has the 1,000 class folders of ILSVRC-2012 in train/."""
    try:
        names = [entry for entry in os.listdir(root / "train") if re.fullmatch(r"n\d{8}", entry)]
    except OSError:
        return False
    return len(names) == 1000


def _split(folder: Path, root: Path, part: str, names: list[str], size: int, loader: str, workers: int) -> Split:
    processed = folder / "processed"
    paths_file, labels_file = (processed / f"{part}_{what}.npy" for what in ("paths", "labels"))
    try:
        about = {"root": str(root), "classes": names, "folders": _stamps(root, part)}
        processed.mkdir(parents=True, exist_ok=True)
        with locked(processed / ".lock"):
            if not (has_array(labels_file) and has_array(paths_file) and _listed(labels_file, about)):
                paths, labels, sizes, others = _scan(root, part, names)
                digest = hashlib.md5(paths.tobytes() + labels.tobytes() + sizes.tobytes()).hexdigest()
                labels_file.with_suffix(".json").unlink(missing_ok=True)  # written last, it marks both complete
                save_array(paths_file, paths, {"kind": "paths", "md5": digest})
                save_array(labels_file, labels, {"kind": "labels", "md5": digest, "left_out": others, **about})
            paths, labels, digest, others = _read_list(paths_file, labels_file)
    except OSError as problem:
        path = Path(os.fsdecode(problem.filename or processed))  # among the images, or in the lists' folder
        remedy = "give --datadir another folder"
        if path.is_relative_to(root) and not path.is_relative_to(processed):
            remedy = "make it readable, replace or remove it"
        raise UserError(f"{path}: {problem.strerror}; {remedy}") from None
    changed = is_imagenet(root) and len(labels) != OFFICIAL.get(part)
    prefix = f"{UNOFFICIAL} " if changed else ""
    files = ImageFiles(root, paths, size, loader, workers)
    known = None if part == "pool" else torch.from_numpy(np.array(labels))
    split = Split(files, known, MEAN, STD, source=prefix + digest, classes=names)
    split.left_out = others
    return split


def _read_list(paths_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray, str, int]:
    """Paths, labels, the digest of both, and the number of files that were left out. Raises UserError."""
    labels, header = open_array(labels_file, {"kind": "labels"}, fix=AGAIN)
    digest, others = header.get("md5"), header.get("left_out", 0)  # which earlier lists do not state
    if not isinstance(digest, str) or not isinstance(others, int):
        raise UserError(f"{labels_file.with_suffix('.json')} is not the header of a list: {AGAIN}")
    paths, _ = open_array(paths_file, {"kind": "paths", "md5": digest}, fix=AGAIN)
    return paths, labels, digest, others


def _check_utf8(root: Path, paths: np.ndarray) -> None:
    """Raises UserError for the first of the paths (N,) bytes that cannot be written into a CSV file in UTF-8."""
    try:
        paths.tobytes().decode()
    except UnicodeDecodeError as problem:
        name = paths[problem.start // paths.itemsize].decode(errors="backslashreplace")
        raise UserError(f"{root}/{name}: a name that is not UTF-8 cannot stand in a CSV file: rename it") from None


def _default_root(folder: Path) -> Path:
    """The image folder if none is given."""
    default, header = folder.parent / "ILSVRC2012_pytorch", folder / "processed" / "val_labels.json"
    return root_of(header) if os.path.lexists(header) and not default.exists() else default


def root_of(header: Path) -> Path:
    """The folder whose images are listed, by the header of a list. Raises UserError if that does not name one."""
    fix = "delete it, and give imagenet/run.py the folder with the images again"
    root = read_json(header, fix=fix).get("root") if os.path.exists(header) else None  # a link that leads nowhere
    if not isinstance(root, str) or not os.path.isabs(root) or "\0" in root:
        raise UserError(f"{header} does not name the folder of its images: {fix}")
    return Path(root)


def _listed(labels_file: Path, about: dict[str, object]) -> bool:
    """Whether the list was made from the same folders and they have not changed since."""
    header = read_json(labels_file.with_suffix(".json"), fix=AGAIN)
    return all(header.get(key) == value for key, value in about.items())


def _classes(root: Path, part: str, unlabelled: bool = False) -> list[str]:
    """Names of the class folders, sorted; the label of a class is its index."""
    try:
        names = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        names = []
    if not names:
        pool = "pool/, images without labels," if unlabelled else "train/<class>/*.JPEG"
        raise UserError(
            f"there are no images in {root}: it has to hold {pool} and val/<class>/*.JPEG, your own or "
            "ILSVRC-2012's (image-net.org, after registration; its val images sorted into class folders); "
            "name another folder, first or after --imagenetdir"
        )
    return names


def _stamps(root: Path, part: str) -> dict[str, int]:
    """The time at which a file was last added to or removed from each folder of a part, in nanoseconds."""
    if part == "pool":
        return {folder: os.stat(root / part / folder).st_mtime_ns for folder, _ in _below(root / part)}
    return {name: os.stat(root / part / name).st_mtime_ns for name in _classes(root, part)}


def _scan(root: Path, part: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Paths below `root` (N,) bytes, labels (-1 in pool/) and sizes in bytes (N,) int64, sorted, and the number of
    other files, and folders inside classes, beside them. Raises UserError.
    """
    paths, labels, sizes, others = [], [], [], 0
    folders = [(f, -1) for f, _ in _below(root / part)] if part == "pool" else [(n, i) for i, n in enumerate(names)]
    for name, label in folders:
        folder = root / part / name
        entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
        entries = [entry for entry in entries if part != "pool" or not entry.is_dir()]  # in pool/ they are read too
        found = [(entry.name, entry.stat()) for entry in entries if _is_image(entry.name)]
        files = sorted((name, about.st_size) for name, about in found if stat.S_ISREG(about.st_mode))
        others += len(entries) - len(files)
        if not files and part != "pool":
            raise UserError(f"{folder} has no image ({', '.join(SUFFIXES)}); remove it, or put images into it")
        paths += [os.fsencode(os.path.normpath(f"{part}/{name}/{file}")) for file, _ in files]
        sizes += [size for _, size in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{root / part} has no image ({', '.join(SUFFIXES)}): put the images to choose from into it")
    return np.array(paths), np.array(labels, np.int64), np.array(sizes, np.int64), others


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(path below `folder`, file names) of it and of all folders in it, sorted, without hidden ones."""

    def fail(problem: OSError) -> None:
        raise problem

    seen = set()  # a link may lead back
    for path, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        here = os.stat(path)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield os.path.relpath(path, folder), files
