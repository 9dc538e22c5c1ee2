"""SVHN, cropped digits: the three .mat files, converted once to memory-mapped arrays of bytes."""

import hashlib
import multiprocessing
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import SVHN as TorchvisionSVHN
from torchvision.datasets.utils import download_url

from alfk import distributed
from alfk.data import UNOFFICIAL, Split
from alfk.errors import UserError
from alfk.files import complete_array, create_array, has_array, locked, open_array, read_json, save_array

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PARTS = {"train": ("train", "extra"), "test": ("test",)}  # split -> its .mat files, in order
URLS, NAMES, MD5 = ({part: row[i] for part, row in TorchvisionSVHN.split_list.items()} for i in range(3))
KINDS = ("images", "labels")
CHUNK = 8192  # images converted at a time
IMAGE = (3, 32, 32)


def load_svhn(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 604,388 images of train and extra, in this order, and the 26,032 of test, memory-mapped from files.

    Args:
        folder: local_data/SVHN. The .mat files are read from its subfolder raw, or downloaded into it, unless its
            subfolder processed has the converted arrays.
        strict: refuse .mat files that are not the official ones; else only warn.
    Raises:
        UserError: a file is missing and cannot be downloaded, is damaged, or is not official.
    """
    splits = tuple(_split(folder, split) for split in PARTS)
    foreign = [source["name"] for split in PARTS for source in _sources(folder, split) if not _official(source)]
    if foreign:
        problem = f"{', '.join(foreign)} in {folder / 'raw'} differ from the official files (md5): figures are not "
        problem += "those of SVHN"
        if strict:
            raise UserError(f"{problem}; --allow-subset takes them all the same")
        if multiprocessing.parent_process() is None and distributed.is_main_process():
            print(f"warning: {problem}", file=sys.stderr)
    return splits


def _split(folder: Path, split: str) -> Split:
    """The split "train" or "test"; its .mat files are converted first if that was not done or if they have changed."""
    processed = folder / "processed"
    if not _up_to_date(folder, split):
        try:
            processed.mkdir(parents=True, exist_ok=True)
            with locked(processed / ".lock"):
                if not _up_to_date(folder, split):  # another process may have converted them in the meantime
                    _convert(folder, split)
        except OSError as problem:
            place = "give --datadir a folder that can be written, whose SVHN/raw may be a link to the .mat files"
            raise UserError(f"cannot write to {processed}: {problem.strerror}; {place}") from None
    images, labels = (open_array(_path(folder, split, what), {"kind": what}, mode="c")[0] for what in KINDS)
    sources = _sources(folder, split)
    prefix = "" if all(map(_official, sources)) else f"{UNOFFICIAL} "
    source = prefix + " ".join(source["md5"] for source in sources)
    return Split(torch.from_numpy(images), torch.from_numpy(np.array(labels)), MEAN, STD, source=source)


def _path(folder: Path, split: str, what: str) -> Path:
    return folder / "processed" / f"{split}_{what}.npy"


def _sources(folder: Path, split: str) -> list[dict[str, Any]]:
    """The name, bytes, mtime_ns and md5 of each .mat file that a split was converted from."""
    return read_json(_path(folder, split, "labels").with_suffix(".json"))["sources"]


def _official(source: dict[str, Any]) -> bool:
    return source["md5"] in MD5.values()


def _up_to_date(folder: Path, split: str) -> bool:
    """Whether the arrays exist and were converted from the present .mat files; missing ones are not compared."""
    if not all(has_array(_path(folder, split, what)) for what in KINDS):
        return False
    for source in _sources(folder, split):
        path = folder / "raw" / source["name"]
        if path.exists() and _stamp(path) != {key: source[key] for key in ("bytes", "mtime_ns")}:
            return False
    return True


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _convert(folder: Path, split: str) -> None:
    """Write processed/<split>_{images,labels}.npy; the labels, written last, mark the conversion complete.

    One .mat file is in memory at a time, as bytes.
    """
    paths = [_raw(folder, part) for part in PARTS[split]]
    sources = [{"name": path.name, **_stamp(path), "md5": _md5(path)} for path in paths]
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
    if not path.exists():
        temporary = path.with_name(f"{path.name}.part")
        try:
            download_url(URLS[part], str(path.parent), temporary.name, MD5[part])
            temporary.replace(path)
        except (RuntimeError, urllib.error.URLError, OSError):
            raise UserError(
                f"SVHN's {path.name} is not here and cannot be downloaded: put {', '.join(NAMES.values())} "
                f"into {path.parent}"
            ) from None
    return path


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _count(path: Path) -> int:
    """The number of images in a .mat file, from its header."""
    from scipy.io import whosmat  # slow to import, and needed for a conversion only

    shapes = {name: shape for name, shape, _ in _mat(path, whosmat)}
    if shapes.get("X", ())[:3] != (32, 32, 3):
        raise UserError(f"{path} does not hold SVHN's cropped digits: it has no X of 32x32x3xN bytes")
    return int(shapes["X"][3])


def _read(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(32, 32, 3, N) uint8 and (N,) int64 labels, 1 to 10."""
    from scipy.io import loadmat

    content = _mat(path, loadmat)
    pixels, digits = content["X"], content.get("y", np.empty(0)).astype(np.int64).ravel()
    if pixels.dtype != np.uint8 or len(digits) != count or not _between(digits, 1, 10):
        raise UserError(f"{path} does not hold SVHN's cropped digits: X has to be of bytes, y {count} labels 1 to 10")
    return pixels, digits


def _between(values: np.ndarray, low: int, high: int) -> bool:
    return not len(values) or (values.min() >= low and values.max() <= high)


def _mat(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except Exception:  # scipy raises exceptions of many types for damaged files
        raise UserError(f"{path} is truncated or not a MATLAB file: delete it, then it is downloaded again") from None
