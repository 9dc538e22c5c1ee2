"""MNIST from its four original files, which are downloaded if they are missing."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alfk.data.official import download, warn_or_refuse
from alfk.data.split import UNOFFICIAL, Split
from alfk.support.errors import UserError
from alfk.support.files import read_file

MEAN, STD = (0.1307,), (0.3081,)
CLASSES = 10
GZIP = b"\x1f\x8b"  # the first bytes of gzipped content
AGAIN = "delete it, then it is downloaded again"
SHA256 = {  # of the official files, not gzipped
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FILES = tuple(SHA256)


def load_mnist(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 60,000 training and 10,000 test images, 28 x 28 pixels.

    Args:
        folder: local_data/MNIST. The files, gzipped or not, are read from its subfolder raw, or downloaded into it.
        strict: refuse files that are not the official ones; else warn, and name their content in `Split.source`.
    Raises:
        UserError: a file is missing and cannot be downloaded, is damaged, or does not fit; the message names it.
    """
    paths = [_find(folder / "raw", name) for name in FILES]
    arrays, digests = zip(*(_read(path, AGAIN if strict else "replace it") for path in paths), strict=True)
    foreign = [path for path, name, digest in zip(paths, FILES, digests, strict=True) if digest != SHA256[name]]
    source = None
    if foreign:
        if not strict:
            _check(paths[:2], *arrays[:2])
            _check(paths[2:], *arrays[2:])
        problem = f"{', '.join(map(str, foreign))}: not the official content (SHA-256), figures are not those of MNIST"
        warn_or_refuse(problem, strict, f"{AGAIN}, or take other files of the same form by --allow-subset")
        source = f"{UNOFFICIAL} {hashlib.sha256(' '.join(digests).encode()).hexdigest()}"
    train, test = (Split(arrays[i].unsqueeze(1), arrays[i + 1], MEAN, STD, source=source) for i in (0, 2))
    return train, test


def parse_idx(content: bytes) -> Tensor:
    """The content of an IDX file of unsigned bytes as a uint8 tensor. Raises ValueError or struct.error."""
    zero, dtype, dimensions = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    if (zero, dtype) != (0, 8) or len(content) != 4 + 4 * dimensions + math.prod(shape):  # 8: unsigned bytes
        raise ValueError("not an IDX file of bytes")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def _find(raw: Path, name: str) -> Path:
    """The path of a file, which is downloaded if it does not exist. Raises UserError."""
    plain, zipped = raw / name, raw / f"{name}.gz"
    if os.path.exists(plain):
        return plain
    if not os.path.exists(zipped) and not _downloaded(zipped):
        names = ", ".join(f"{name}.gz" for name in FILES)
        raise UserError(
            f"MNIST's {zipped.name} is not here and cannot be downloaded: put {names} into {raw}, "
            "or use --dataset DIGITS, which needs no files"
        )
    return zipped


def _downloaded(path: Path) -> bool:
    from torchvision.datasets import MNIST as TorchvisionMNIST  # slow to import, and seldom needed

    urls = [f"{mirror}{path.name}" for mirror in TorchvisionMNIST.mirrors]
    return download(path, urls, dict(TorchvisionMNIST.resources)[path.name])


def _read(path: Path, fix: str) -> tuple[Tensor, str]:
    """The array in a file, gzipped or not whatever its name, and the SHA-256 of its content.

    Args:
        fix: how to fix a damaged file, for the message.
    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    content = read_file(path)
    try:
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        return parse_idx(content), hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, zlib.error, struct.error, ValueError):
        raise UserError(f"{path} is truncated or not an IDX file of bytes: {fix}") from None


def _check(paths: list[Path], images: Tensor, labels: Tensor) -> None:
    """Raises UserError unless these are N images of 28 x 28 pixels and their labels."""
    if images.ndim != 3 or not len(images) or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}, not (N, 28, 28) and (N,)"
        raise UserError(f"{paths[0]} and {paths[1]} do not belong together: their shapes are {shapes}; replace them")
    highest = int(labels.max())
    if highest >= CLASSES:
        raise UserError(f"{paths[1]} has the label {highest}, but labels are 0 to {CLASSES - 1}: replace both files")
