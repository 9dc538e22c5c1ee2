"""SVHN, cropped digits: the three .mat files, converted once to memory-mapped arrays of bytes."""

import hashlib
import math
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
KINDS = ("images", "labels")
CHUNK = 8192  # images converted at a time
IMAGE = (3, 32, 32)
SOURCE = {"name": str, "bytes": int, "mtime_ns": int, "md5": str}  # what a header states of a .mat file
CONVERTED = "delete it, then the .mat files are converted again"
AGAIN = "delete it, then it is downloaded again"
ALL_THE_SAME = "or take other files of the same form by --allow-subset"
DENSEST = 1032  # bytes that a compressed byte can stand for (zlib)


def load_svhn(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 604,388 images of train and extra, in this order, and the 26,032 of test, memory-mapped from files.

    Args:
        folder: local_data/SVHN. The .mat files are read from its subfolder raw, or downloaded into it, unless its
            subfolder processed has the converted arrays.
        strict: refuse .mat files that are not the official ones; else only warn.
    Raises:
        UserError: a file is missing and cannot be downloaded, is damaged, or is not official.
    """
    splits = tuple(_split(folder, split, strict) for split in PARTS)
    foreign = {split: names for split in PARTS if (names := _foreign(_sources(folder, split)))}
    if foreign:
        headers = ", ".join(str(_path(folder, split, "labels").with_suffix(".json")) for split in foreign)
        names = ", ".join(name for names in foreign.values() for name in names)
        problem = f"{headers}: made of {names}, not the official content (md5), figures are not those of SVHN"
        warn_or_refuse(problem, strict, f"{CONVERTED}, {ALL_THE_SAME}")
    return splits


def _split(folder: Path, split: str, strict: bool) -> Split:
    """The split "train" or "test"; its .mat files are converted first if that was not done or if they have changed."""
    processed = folder / "processed"
    if not _up_to_date(folder, split):
        try:
            processed.mkdir(parents=True, exist_ok=True)
            os.utime(processed)  # which has to be writable
            with locked(processed / ".lock"):
                if not _up_to_date(folder, split):  # another process may have converted them in the meantime
                    _convert(folder, split, strict)
        except OSError as problem:
            place = "give --datadir a folder that can be written, whose SVHN/raw may be a link to the .mat files"
            raise UserError(f"cannot write to {processed}: {problem.strerror}; {place}") from None
    sources = _sources(folder, split)
    images, labels = (_open(_path(folder, split, what), what, sources) for what in KINDS)
    prefix = f"{UNOFFICIAL} " if _foreign(sources) else ""
    source = prefix + " ".join(source["md5"] for source in sources)
    return Split(torch.from_numpy(images), torch.from_numpy(np.array(labels)), MEAN, STD, source=source)


def _path(folder: Path, split: str, what: str) -> Path:
    return folder / "processed" / f"{split}_{what}.npy"


def _open(path: Path, what: str, sources: list[dict[str, Any]]) -> np.ndarray:
    return open_array(path, {"kind": what, "sources": sources}, mode="c", fix=CONVERTED)[0]


def _sources(folder: Path, split: str) -> list[dict[str, Any]]:
    """The name, bytes, mtime_ns and md5 of each .mat file that a split was converted from.

    Raises:
        UserError: the header of its labels does not state them.
    """
    path = _path(folder, split, "labels").with_suffix(".json")
    sources = read_json(path, fix=CONVERTED).get("sources")
    if not isinstance(sources, list) or not all(map(_is_source, sources)):
        raise UserError(f"{path} does not state the .mat files that it was made of: {CONVERTED}")
    if [source["name"] for source in sources] != [NAMES[part] for part in PARTS[split]]:
        raise UserError(f"{path} was made of other .mat files than {split} has: {CONVERTED}")
    return sources


def _is_source(found: object) -> bool:
    return isinstance(found, dict) and all(type(found.get(key)) is kind for key, kind in SOURCE.items())


def _foreign(sources: list[dict[str, Any]]) -> list[str]:
    """The names of the .mat files that are not the official ones."""
    official = {NAMES[part]: MD5[part] for part in NAMES}
    return [source["name"] for source in sources if source["md5"] != official[source["name"]]]


def _up_to_date(folder: Path, split: str) -> bool:
    """Whether the arrays exist and were converted from the present .mat files; missing ones are not compared."""
    if not all(has_array(_path(folder, split, what)) for what in KINDS):
        return False
    for source in _sources(folder, split):
        path = folder / "raw" / source["name"]
        if os.path.exists(path) and _stamp(path) != {key: source[key] for key in ("bytes", "mtime_ns")}:
            return False
    return True


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _convert(folder: Path, split: str, strict: bool) -> None:
    """Write processed/<split>_{images,labels}.npy; the labels, written last, mark the conversion complete.

    One .mat file is in memory at a time, as bytes. If `strict`, other files than the official ones are refused first:
    a conversion takes minutes, and scipy's reader can crash on damaged files.
    """
    paths = [_raw(folder, part) for part in PARTS[split]]
    sources = [{"name": path.name, **_stamp(path), "md5": _md5(path)} for path in paths]
    if strict and _foreign(sources):
        foreign = ", ".join(str(folder / "raw" / name) for name in _foreign(sources))
        problem = f"{foreign}: not the official content (md5), figures are not those of SVHN"
        raise UserError(f"{problem}; {AGAIN}, {ALL_THE_SAME}")
    counts = [_count(path) for path in paths]
    _path(folder, split, "labels").with_suffix(".json").unlink(missing_ok=True)
    images = create_array(_path(folder, split, "images"), (sum(counts), *IMAGE), np.dtype(np.uint8))
    labels, start = [], 0
    for path, count in zip(paths, counts, strict=True):
        pixels, digits = _read(path, count)
        for i in range(0, count, CHUNK):
            part = pixels[..., i : i + CHUNK].transpose(3, 2, 0, 1)
            images[start + i : start + i + len(part)] = part
        labels.append(digits % 10)  # in the files the digit 0 has the label 10
        start += count
        del pixels
    complete_array(_path(folder, split, "images"), images, {"kind": "images", "sources": sources})
    save_array(_path(folder, split, "labels"), np.concatenate(labels), {"kind": "labels", "sources": sources})


def _raw(folder: Path, part: str) -> Path:
    """The path of a .mat file, which is downloaded if it does not exist. Raises UserError."""
    path = folder / "raw" / NAMES[part]
    if not os.path.exists(path) and not download(path, [URLS[part]], MD5[part]):
        names = ", ".join(NAMES.values())
        raise UserError(f"SVHN's {path.name} is not here and cannot be downloaded: put {names} into {path.parent}")
    return path


def _md5(path: Path) -> str:
    """Raises UserError if it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _count(path: Path) -> int:
    """The number of images in a .mat file, from its header."""
    from scipy.io import whosmat  # slow to import, and needed for a conversion only

    shape = {name: shape for name, shape, _ in _mat(path, whosmat)}.get("X", ())
    most = DENSEST * path.stat().st_size // math.prod(IMAGE)
    if len(shape) != 4 or shape[:3] != (32, 32, 3) or not 0 < shape[3] <= most:
        raise UserError(f"{path} does not hold SVHN's cropped digits: it has no X of 32x32x3xN bytes; {AGAIN}")
    return int(shape[3])


def _read(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(32, 32, 3, N) uint8 and (N,) int64 labels, 1 to 10."""
    from scipy.io import loadmat

    content = _mat(path, loadmat)
    pixels, digits = content["X"], content.get("y")
    if pixels.dtype != np.uint8 or not _is_labels(digits, count):
        wanted = f"X has to be of bytes, y {count} labels 1 to 10"
        raise UserError(f"{path} does not hold SVHN's cropped digits: {wanted}; {AGAIN}")
    return pixels, digits.astype(np.int64).ravel()


def _is_labels(found: object, count: int) -> bool:
    """Whether these are so many whole numbers from 1 to 10."""
    numbers = isinstance(found, np.ndarray) and found.dtype.kind in "uif" and found.size == count
    return numbers and bool(np.isin(found, np.arange(1, 11)).all())


def _mat(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except Exception:  # scipy raises exceptions of many types for damaged files
        raise UserError(f"{path} is truncated or not a MATLAB file: {AGAIN}") from None
