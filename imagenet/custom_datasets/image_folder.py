"""ImageNet, or any folder with train/<class>/ and val/<class>/. The files are not copied: each part is listed once, and
again when files are added or removed.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

import numpy as np
import torch

from alfk.data.image_files import ImageFiles
from alfk.data.split import UNOFFICIAL, Dataset, Split
from alfk.support.errors import UserError
from alfk.support.files import delete_file, has_array, locked, open_array, read_json, save_array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC-2012
AGAIN = "delete it, then the images are listed again"


def load_folder(folder: Path, root: Path | None, size: int, loader: str, workers: int, strict: bool = True) -> Dataset:
    """Pool images from train/, validation images from val/, test images from test/, or from val/ too if there is none,
    as in the paper.

    Args:
        folder: local_data/<name>; its subfolder processed keeps the lists of files.
        root: the folder with train/ and val/; if None, ILSVRC2012_pytorch beside `folder` if it exists, else the folder
            that was listed last.
        size, loader, workers: see `ImageFiles`.
        strict: without effect, because a part of ImageNet is accepted too; for data sets with official files.
    Raises:
        UserError: a folder is missing or empty, or parts have different classes.
    """
    root = (root or _default_root(folder)).absolute()
    parts, classes = ["train", "val"] + ["test"] * (root / "test").is_dir(), _classes(root, "train")
    for part in parts[1:]:
        for name in sorted(set(classes) ^ set(_classes(root, part))):
            raise UserError(f"{root} has the class {name} in only one of train/ and {part}/")
    splits = {}
    for part in parts:
        paths, labels, source, left_out = _listed(folder, root, part, classes)
        files = ImageFiles(root, paths, size, loader, workers)
        splits[part] = Split(files, torch.from_numpy(np.array(labels)), MEAN, STD, source=source, classes=classes)
        splits[part].left_out = left_out
    return Dataset(splits["train"], splits.get("test", splits["val"]), splits["val"])


def is_imagenet(root: Path) -> bool:
    """Whether train/ has the 1,000 class folders of ILSVRC-2012."""
    try:
        return sum(bool(re.fullmatch(r"n\d{8}", entry)) for entry in os.listdir(root / "train")) == 1000
    except OSError:
        return False


def root_of(header: Path) -> Path:
    """The folder whose images a list names, from the list's header. Raises UserError if there is none."""
    fix = "delete it, and give imagenet/run.py the folder with the images again"
    root = read_json(header, fix=fix).get("root") if os.path.exists(header) else None  # a broken link
    if not isinstance(root, str):
        raise UserError(f"{header} does not name the folder of its images: {fix}")
    return Path(root)


def _default_root(folder: Path) -> Path:
    default, header = folder.parent / "ILSVRC2012_pytorch", folder / "processed" / "val_labels.json"
    return root_of(header) if os.path.lexists(header) and not default.exists() else default


def _classes(root: Path, part: str) -> list[str]:
    """Names of the class folders, sorted; the label of a class is its index. Raises UserError if there are none."""
    try:
        names = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        names = []
    if not names:
        raise UserError(
            f"there are no images in {root}: it must hold train/<class>/*.JPEG and val/<class>/*.JPEG, your "
            "own or ILSVRC-2012's (image-net.org, after registration; its val images sorted into class folders); "
            "name another folder, first or after --imagenetdir"
        )
    return names


# The list of a part: processed/<part>_paths.npy and <part>_labels.npy


def _listed(folder: Path, root: Path, part: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray, str, int]:
    """Paths below `root` (N,) bytes, labels (N,) int64, the source of the split, and the number of other files.

    From the list, which is made first if it is missing or the folders have changed. Raises UserError.
    """
    processed = folder / "processed"
    paths_file, labels_file = (processed / f"{part}_{what}.npy" for what in ("paths", "labels"))
    try:
        processed.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{processed}: {problem.strerror}; give --datadir another folder") from None
    try:
        with locked(processed / ".lock"):
            changed = {name: os.stat(root / part / name).st_mtime_ns for name in classes}  # when files came or went
            about = {"root": str(root), "classes": classes, "folders": changed}
            if not (has_array(labels_file) and has_array(paths_file) and _is_about(labels_file, about)):
                paths, labels, sizes, left_out = _scan(root, part, classes)
                digest = hashlib.md5(paths.tobytes() + labels.tobytes() + sizes.tobytes()).hexdigest()
                delete_file(labels_file.with_suffix(".json"))  # written last, it marks both complete
                save_array(paths_file, paths, {"kind": "paths", "md5": digest})
                save_array(labels_file, labels, {"kind": "labels", "md5": digest, "left_out": left_out, **about})
            labels, header = open_array(labels_file, {"kind": "labels"}, fix=AGAIN)
            paths, _ = open_array(paths_file, {"kind": "paths", "md5": header["md5"]}, fix=AGAIN)
    except OSError as problem:  # of an image or a folder of images
        path = os.fsdecode(problem.filename or root)
        raise UserError(f"{path}: {problem.strerror}; make it readable, replace or remove it") from None
    unofficial = is_imagenet(root) and len(labels) != OFFICIAL.get(part)
    source = f"{UNOFFICIAL} {header['md5']}" if unofficial else header["md5"]
    return paths, labels, source, header["left_out"]


def _is_about(labels_file: Path, about: dict[str, object]) -> bool:
    """Whether a list is of the same folders, and no file was added to or removed from them since."""
    header = read_json(labels_file.with_suffix(".json"), fix=AGAIN)
    return "left_out" in header and all(header.get(key) == value for key, value in about.items())


def _scan(root: Path, part: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Paths below `root` (N,) bytes, labels and sizes in bytes (N,) int64, sorted, and the number of other entries:
    files of other types, and folders inside classes. Hidden ones are ignored. Raises UserError, OSError.
    """
    paths, labels, sizes, left_out = [], [], [], 0
    for label, name in enumerate(classes):
        folder = root / part / name
        entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
        images = [(entry.name, entry.stat()) for entry in entries if entry.name.lower().endswith(SUFFIXES)]
        files = sorted((file, status.st_size) for file, status in images if stat.S_ISREG(status.st_mode))
        left_out += len(entries) - len(files)
        if not files:
            raise UserError(f"{folder} has no image ({', '.join(SUFFIXES)}); remove it, or put images into it")
        paths += [os.fsencode(f"{part}/{name}/{file}") for file, _ in files]
        sizes += [size for _, size in files]
        labels += [label] * len(files)
    return np.array(paths), np.array(labels, np.int64), np.array(sizes, np.int64), left_out
