"""SVHN, cropped digits: the three .mat files, converted once to memory-mapped arrays of bytes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import SVHN as TorchvisionSVHN

from alfk.data.official import download, warn_or_refuse
from alfk.data.split import UNOFFICIAL, Split
from alfk.support.errors import UserError
from alfk.support.files import (
    complete_array,
    create_array,
    delete_file,
    has_array,
    locked,
    open_array,
    open_file,
    read_json,
    save_array,
)

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PARTS = {"train": ("train", "extra"), "test": ("test",)}  # split -> its .mat files, in order
URLS, NAMES, MD5 = ({part: row[i] for part, row in TorchvisionSVHN.split_list.items()} for i in range(3))
OFFICIAL = "not the official content (md5), figures are not those of SVHN"
CONVERTED = "delete it, then the .mat files are converted again"
AGAIN = "delete it, then it is downloaded again"
ALLOW = "or take other files of the same form by --allow-subset"

Source = dict[str, Any]  # name, bytes, mtime_ns and md5 of a .mat file


def load_svhn(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 604,388 images of train and extra, in this order, and the 26,032 of test, memory-mapped from files.

    Args:
        folder: local_data/SVHN. The .mat files are read from its subfolder raw, or downloaded into it, unless its
            subfolder processed has the converted arrays.
        strict: refuse .mat files that are not the official ones; else only warn.
    Raises:
        UserError: a file is missing and cannot be downloaded, is damaged, or is not official; the message names it.
    """
    splits = tuple(_split(folder, split, strict) for split in PARTS)
    foreign = {split: names for split in PARTS if (names := _foreign(_sources(folder, split)))}
    if foreign:
        headers = ", ".join(str(_header(folder, split)) for split in foreign)
        names = ", ".join(name for names in foreign.values() for name in names)
        warn_or_refuse(f"{headers}: made of {names}, {OFFICIAL}", strict, f"{CONVERTED}, {ALLOW}")
    return splits


def _split(folder: Path, split: str, strict: bool) -> Split:
    """The split "train" or "test"; its .mat files are converted first if that was not done or if they have changed."""
    processed = folder / "processed"
    if not _up_to_date(folder, split):
        try:
            processed.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            place = "give --datadir a folder that can be written, whose SVHN/raw may be a link to the .mat files"
            raise UserError(f"cannot make {processed}: {problem.strerror}; {place}") from None
        with locked(processed / ".lock"):
            if not _up_to_date(folder, split):  # another process may have converted them in the meantime
                _convert(folder, split, strict)
    sources = _sources(folder, split)
    labels, images = (  # copy-on-write, as torch.from_numpy wants arrays that can be written
        open_array(_path(folder, split, kind), {"kind": kind, "sources": sources}, mode="c", fix=CONVERTED)[0]
        for kind in ("labels", "images")
    )
    source = " ".join([UNOFFICIAL] * bool(_foreign(sources)) + [source["md5"] for source in sources])
    return Split(torch.from_numpy(images), torch.from_numpy(np.array(labels)), MEAN, STD, source=source)


def _path(folder: Path, split: str, kind: str) -> Path:
    return folder / "processed" / f"{split}_{kind}.npy"


def _header(folder: Path, split: str) -> Path:
    """The header that is written last, when a split is complete."""
    return _path(folder, split, "labels").with_suffix(".json")


def _sources(folder: Path, split: str) -> list[Source]:
    """The .mat files that a split was converted from. Raises UserError."""
    return read_json(_header(folder, split), fix=CONVERTED)["sources"]


def _foreign(sources: list[Source]) -> list[str]:
    """The names of the .mat files that are not the official ones."""
    official = {NAMES[part]: MD5[part] for part in NAMES}
    return [source["name"] for source in sources if source["md5"] != official[source["name"]]]


def _up_to_date(folder: Path, split: str) -> bool:
    """Whether the arrays exist and were converted from the present .mat files; missing .mat files are not compared."""
    if not all(has_array(_path(folder, split, kind)) for kind in ("images", "labels")):
        return False
    raw = [(folder / "raw" / source["name"], source) for source in _sources(folder, split)]
    return all(_stamp(path).items() <= source.items() for path, source in raw if os.path.exists(path))


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _convert(folder: Path, split: str, strict: bool) -> None:
    """Write processed/<split>_{images,labels}.npy, with the pixels of one .mat file in memory at a time.

    If `strict`, other files than the official ones are refused first: a conversion takes most of a minute, and scipy's
    reader can crash on damaged files.
    """
    paths = [_raw(folder, part) for part in PARTS[split]]
    sources = [{"name": path.name, **_stamp(path), "md5": _md5(path)} for path in paths]
    if strict and _foreign(sources):
        foreign = ", ".join(str(folder / "raw" / name) for name in _foreign(sources))
        raise UserError(f"{foreign}: {OFFICIAL}; {AGAIN}, {ALLOW}")
    digits = [_labels(path) for path in paths]
    total, start = sum(map(len, digits)), 0
    delete_file(_header(folder, split))
    images = create_array(_path(folder, split, "images"), (total, 3, 32, 32), np.dtype(np.uint8))
    for path, part in zip(paths, digits, strict=True):
        images[start : start + len(part)] = _images(path, len(part))
        start += len(part)
    complete_array(_path(folder, split, "images"), images, {"kind": "images", "sources": sources})
    labels = np.concatenate(digits) % 10  # in the .mat files the digit 0 has the label 10
    save_array(_path(folder, split, "labels"), labels, {"kind": "labels", "sources": sources})


def _raw(folder: Path, part: str) -> Path:
    """The path of a .mat file, which is downloaded if it does not exist. Raises UserError."""
    path = folder / "raw" / NAMES[part]
    if not os.path.exists(path) and not download(path, [URLS[part]], MD5[part]):
        names = ", ".join(NAMES.values())
        raise UserError(f"SVHN's {path.name} is not here and cannot be downloaded: put {names} into {path.parent}")
    return path


def _md5(path: Path) -> str:
    """Raises UserError if the file cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _labels(path: Path) -> np.ndarray:
    """(N,) int64, 1 to 10. Raises UserError."""
    found = _variable(path, "y")
    if found.dtype.kind not in "uif" or not found.size or not np.isin(found, np.arange(1, 11)).all():
        raise _other_content(path)
    return found.astype(np.int64).ravel()


def _images(path: Path, count: int) -> np.ndarray:
    """(count, 3, 32, 32) uint8. Raises UserError."""
    found = _variable(path, "X")
    if found.dtype != np.uint8 or found.shape != (32, 32, 3, count):
        raise _other_content(path)
    return found.transpose(3, 2, 0, 1)


def _variable(path: Path, name: str) -> np.ndarray:
    """A variable of a .mat file, an array of objects if it is no array or missing. Raises UserError."""
    from scipy.io import loadmat  # slow to import, and needed for a conversion only

    try:
        return np.asarray(loadmat(path, variable_names=[name]).get(name))
    except Exception:  # scipy raises exceptions of many types for damaged files
        raise UserError(f"{path} is truncated or not a MATLAB file: {AGAIN}") from None


def _other_content(path: Path) -> UserError:
    wanted = "X has to be of 32x32x3xN bytes, y of N labels 1 to 10"
    return UserError(f"{path} does not hold SVHN's cropped digits: {wanted}; {AGAIN}")
