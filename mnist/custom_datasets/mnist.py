"""MNIST from its four original files, downloaded by torchvision if they are missing."""

import contextlib
import gzip
import io
import struct
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alfk.data import Split
from alfk.errors import UserError

MEAN, STD = (0.1307,), (0.3081,)
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_mnist(folder: Path) -> tuple[Split, Split]:
    """The 60,000 training and 10,000 test images. Raises UserError.

    Args:
        folder: local_data/MNIST; the files, gzipped or not, are read from its subfolder raw, or downloaded into it.
    """
    raw = folder / "raw"
    if any(_find(raw, name) is None for name in FILES):
        _download(folder)
    train_images, train_labels, test_images, test_labels = (read_idx(_find(raw, name)) for name in FILES)
    splits = []
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise UserError(f"the files in {raw} do not belong together: {FILES}")
        splits.append(Split(images.unsqueeze(1), labels, MEAN, STD))
    return splits[0], splits[1]


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, gzipped (.gz) or not, as a uint8 tensor. Raises UserError if it is damaged."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, dtype, dimensions = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error, ValueError):
        zero, dtype = 1, 0
    if (zero, dtype) != (0, 8):  # 8: unsigned bytes
        raise UserError(f"{path} is truncated or not an IDX file of bytes: delete it, then it is downloaded again")
    return torch.from_numpy(array.copy())


def _find(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.exists()), None)


def _download(folder: Path) -> None:
    from torchvision.datasets import MNIST as TorchvisionMNIST  # slow to import, and needed here only

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            # torchvision downloads into <root>/<name of the class>/raw.
            type(folder.name, (TorchvisionMNIST,), {})(folder.parent, download=True)
    except (RuntimeError, urllib.error.URLError, OSError):
        names = ", ".join(f"{name}.gz" for name in FILES)
        raise UserError(
            f"MNIST is not here and cannot be downloaded: put {names} into {folder / 'raw'}, "
            "or use --dataset DIGITS, which needs no files"
        ) from None
