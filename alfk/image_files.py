"""Images in files: decoded, cropped and scaled batch by batch, for splits larger than memory.

`ImageFiles` replaces the tensor inside a `Split`. It decodes with NVIDIA DALI (`alfk.dali`) or with Pillow in the
workers of a DataLoader (`alfk.image_decoding`); random crops are the same with both.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alfk.errors import UserError
from alfk.image_decoding import PillowDecoder, Request, draw_crops

LOADERS = ("dali", "torchvision")


class ImageFiles:
    """(N, 3, size, size) images in files, the storage of a `Split`.

    For evaluation the shorter side is scaled to size * 256 / 224 and the central crop taken. Augmentation takes a
    random crop of 10 to 100 % of the area, scales it to size x size and mirrors it with probability 1/2. Greyscale and
    CMYK are converted to RGB.

    Args:
        root: folder that the paths are relative to.
        paths: (N,) bytes.
        size: pixels, 224 in the paper.
        loader: "dali" or "torchvision".
        workers: threads (DALI) or processes (torchvision) that decode.
    """

    ndim = 4

    def __init__(
        self,
        root: Path,
        paths: np.ndarray,
        size: int,
        loader: str,
        workers: int,
        device: torch.device | str = "cpu",
    ):
        self.root, self.paths, self.size, self.loader, self.workers = root, paths, size, loader, workers
        self.device = torch.device(device)
        self.decode = _decoder(loader)(size, workers, self.device)

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> "ImageFiles":
        """The same files, decoded on or for `device`."""
        return ImageFiles(self.root, self.paths, self.size, self.loader, self.workers, device)

    def fetch(self, chunks: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """(B, 3, size, size) uint8, channels last in memory, for each chunk of rows (B,), which are on the CPU.

        Args:
            seed: of random crops; the crop of a row depends on the seed alone, not on the loader or the batch.
        Raises:
            UserError: a file cannot be decoded; the message names it.
        """
        if not chunks:
            return
        crops = None if seed is None else draw_crops(len(self), torch.Generator().manual_seed(seed)).numpy()

        def request(rows: np.ndarray) -> Request:
            paths = [f"{self.root}/{os.fsdecode(path)}" for path in self.paths[rows]]
            return paths, None if crops is None else crops[rows]

        requests = (request(rows.numpy()) for rows in chunks)
        for pixels in self.decode(requests, max(map(len, chunks)), crops is not None):
            yield pixels.permute(0, 3, 1, 2)


def default_workers() -> int:
    """Default number of decoding workers: the CPUs of this process over the number of processes on its host."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def has_dali() -> bool:
    """Whether NVIDIA DALI can be used here."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def _decoder(loader: str) -> type:
    if loader == "torchvision":
        return PillowDecoder
    if not has_dali():
        raise UserError(
            "NVIDIA DALI is not installed: pip install -r imagenet/requirements.txt, or --loader torchvision"
        )
    from alfk.dali import DaliDecoder  # slow to import, and not installed everywhere

    return DaliDecoder
