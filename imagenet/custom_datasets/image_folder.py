"""ImageNet, or any folder with train/<class>/*.JPEG and val/<class>/*.JPEG; its files are listed once, not copied."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from alfk.data import UNOFFICIAL, Dataset, Split
from alfk.errors import UserError
from alfk.image_files import ImageFiles
from alfk.runs import has_array, locked, open_array, read_json, save_array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC-2012


def load_folder(folder: Path, root: Path | None, size: int, loader: str, workers: int) -> Dataset:
    """Pool images from train/, validation and test images both from val/: the paper's protocol.

    Args:
        folder: local_data/ImageNet; the lists of files are stored in its subfolder processed.
        root: the folder with train/ and val/; if None, ILSVRC2012_pytorch beside `folder` if it exists, else the folder
            listed last.
        size, loader, workers: see `ImageFiles`.
    Raises:
        UserError: a folder is missing or empty, or train/ and val/ have different classes.
    """
    root = (root or _default_root(folder)).absolute()
    for name in sorted(set(_classes(root, "train")) ^ set(_classes(root, "val"))):
        raise UserError(f"{root} has the class {name} in one of train/ and val/ alone")
    train, val = (_split(folder, root, part, size, loader, workers) for part in OFFICIAL)
    return Dataset(train, val, val)


def _split(folder: Path, root: Path, part: str, size: int, loader: str, workers: int) -> Split:
    names, stamps = _classes(root, "train"), _stamps(root, part)
    processed = folder / "processed"
    paths_file, labels_file = (processed / f"{part}_{what}.npy" for what in ("paths", "labels"))
    about = {"root": str(root), "classes": names, "folders": stamps}
    try:
        processed.mkdir(parents=True, exist_ok=True)
        with locked(processed / ".lock"):
            if not (has_array(labels_file) and has_array(paths_file) and _listed(labels_file, about)):
                paths, labels, sizes = _scan(root, part, names)
                digest = hashlib.md5(paths.tobytes() + labels.tobytes() + sizes.tobytes()).hexdigest()
                labels_file.with_suffix(".json").unlink(missing_ok=True)  # written last, it marks both complete
                save_array(paths_file, paths, {"kind": "paths", "md5": digest})
                save_array(labels_file, labels, {"kind": "labels", "md5": digest, **about})
            labels, header = open_array(labels_file, {"kind": "labels"})
            paths, _ = open_array(paths_file, {"kind": "paths", "md5": header["md5"]})
    except OSError as problem:
        path = problem.filename or processed  # an image folder that cannot be read, or the lists' folder
        remedy = f"; if that is in {folder}, give --datadir another folder"
        raise UserError(f"{path}: {problem.strerror}{remedy}") from None
    prefix = "" if len(labels) == OFFICIAL[part] else f"{UNOFFICIAL} "
    files = ImageFiles(root, paths, size, loader, workers)
    return Split(files, torch.from_numpy(np.array(labels)), MEAN, STD, source=prefix + header["md5"])


def _default_root(folder: Path) -> Path:
    """The image folder if none is given."""
    default, header = folder.parent / "ILSVRC2012_pytorch", folder / "processed" / "train_labels.json"
    return Path(read_json(header)["root"]) if header.exists() and not default.exists() else default


def _listed(labels_file: Path, about: dict[str, object]) -> bool:
    """Whether the list was made from the same folders and they have not changed since."""
    header = read_json(labels_file.with_suffix(".json"))
    return all(header.get(key) == value for key, value in about.items())


def _classes(root: Path, part: str) -> list[str]:
    """Names of the class folders, sorted; the label of a class is its index."""
    try:
        names = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        names = []
    if not names:
        raise UserError(
            f"there are no images in {root}: it has to hold train/<class>/*.JPEG and val/<class>/*.JPEG, your own or "
            "ILSVRC-2012's (image-net.org, after registration; its val images sorted into class folders); "
            "name another folder, first or after --imagenetdir"
        )
    return names


def _stamps(root: Path, part: str) -> dict[str, int]:
    """The time at which a file was last added to or removed from each class folder, in nanoseconds."""
    return {name: os.stat(root / part / name).st_mtime_ns for name in _classes(root, part)}


def _scan(root: Path, part: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths below `root` (N,) bytes, labels and sizes in bytes (N,) int64, class by class, sorted. Raises UserError."""
    paths, labels, sizes = [], [], []
    for label, name in enumerate(names):
        folder = root / part / name
        found = os.scandir(folder)
        files = sorted((entry.name, entry.stat().st_size) for entry in found if entry.name.lower().endswith(SUFFIXES))
        if not files:
            raise UserError(f"{folder} has no image ({', '.join(SUFFIXES)}); remove it, or put images into it")
        paths += [os.fsencode(f"{part}/{name}/{file}") for file, _ in files]
        sizes += [size for _, size in files]
        labels += [label] * len(files)
    return np.array(paths), np.array(labels, np.int64), np.array(sizes, np.int64)
