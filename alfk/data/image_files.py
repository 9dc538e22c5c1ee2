"""Images in files, decoded, cropped and scaled batch by batch: for splits larger than memory.

`ImageFiles` takes the place of the tensor inside a `Split`. Two loaders decode: "dali" (`alfk.data.dali`) and
"torchvision" (`alfk.data.decoding`, with Pillow). Random crops are the same with both.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alfk.data.decoding import Decoder, PillowDecoder, Request, draw_crops
from alfk.support.errors import UserError

LOADERS = ("dali", "torchvision")
MEMORY = 2**30  # bytes: 1 GiB, which is 7,133 images of 224 x 224 pixels or 87,381 of 64 x 64


class ImageFiles:
    """(N, 3, size, size) RGB images in files, the storage of a `Split`.

    For evaluation the shorter side is scaled to size * 256 / 224 and the central crop taken. Augmentation takes a
    random crop of 10 to 100 % of the area, scales it to size x size and mirrors it with probability 1/2.

    If all N evaluation images fit into `memory`, each is decoded once and kept on the device, and Pillow's loader keeps
    up to as many bytes of files that it decoded for random crops. Results are the same, but a file that changes in the
    meantime is not read again.

    Args:
        root: folder that the paths are relative to.
        paths: (N,) bytes.
        size: side in pixels, 224 in the paper.
        loader: "dali" or "torchvision".
        workers: threads that decode.
        memory: bytes of evaluation images to keep, and of decoded files; 0 to keep none.
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
        memory: int = MEMORY,
    ):
        self.root, self.paths, self.size, self.loader, self.workers = root, paths, size, loader, workers
        self.device, self.memory = torch.device(device), memory
        self.decode = _decoder(loader, size, workers, self.device, memory if self.keeps else 0)

    def __len__(self) -> int:
        return len(self.paths)

    def __reduce__(self) -> tuple:
        """Pickle without threads and decoded images."""
        return ImageFiles, (self.root, self.paths, self.size, self.loader, self.workers, self.device, self.memory)

    @property
    def keeps(self) -> bool:
        """Whether evaluation images are decoded once and kept."""
        return len(self) * self.size**2 * 3 <= self.memory

    def to(self, device: torch.device) -> "ImageFiles":
        """The same files, decoded on or for `device`."""
        if device == self.device:
            return self
        return ImageFiles(self.root, self.paths, self.size, self.loader, self.workers, device, self.memory)

    def fetch(self, chunks: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """(B, 3, size, size) uint8, channels last in memory, for each chunk of rows (B,).

        Args:
            chunks: int64 tensors on the CPU.
            seed: of the random crops, or None for evaluation. An image's crop depends on its row and the seed alone.
        Raises:
            UserError: a file cannot be read or decoded; the message names it.
        """
        chunks = [rows.numpy() for rows in chunks]
        decoded = self._kept(chunks) if seed is None and self.keeps else self._decoded(chunks, seed)
        for pixels in decoded:
            yield pixels.permute(0, 3, 1, 2)

    def _decoded(self, chunks: Sequence[np.ndarray], seed: int | None) -> Iterator[Tensor]:
        """(B, size, size, 3) uint8 for each chunk of rows (B,), decoded."""
        if not chunks:
            return
        crops = None if seed is None else draw_crops(len(self), torch.Generator().manual_seed(seed)).numpy()

        def request(rows: np.ndarray) -> Request:
            paths = [f"{self.root}/{os.fsdecode(path)}" for path in self.paths[rows]]
            return paths, None if crops is None else crops[rows]

        yield from self.decode(map(request, chunks), max(map(len, chunks)), crops is not None)

    def _kept(self, chunks: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The same for evaluation, from memory; images that are not there yet are decoded and kept."""
        images, present = self._evaluation_images
        missing = [rows[~present[rows]] for rows in chunks]
        decoded = self._decoded([rows for rows in missing if len(rows)], None)
        for rows, new in zip(chunks, missing, strict=True):
            if len(new):
                images[torch.from_numpy(new).to(self.device)] = next(decoded)
                present[new] = True
            yield images[torch.from_numpy(rows).to(self.device)]
        next(decoded, None)  # ends the generator, which releases DALI's pipeline

    @functools.cached_property
    def _evaluation_images(self) -> tuple[Tensor, np.ndarray]:
        """(N, size, size, 3) uint8 on the device, and (N,) bool, which of them are decoded.

        On the CPU the memory is occupied only as images are filled in.
        """
        with torch.inference_mode(False):  # an inference tensor could not be filled in outside inference mode
            images = torch.empty(len(self), self.size, self.size, 3, dtype=torch.uint8, device=self.device)
        return images, np.zeros(len(self), bool)


def default_workers() -> int:
    """The CPUs of this process, divided by the number of processes that torchrun started on this host."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def has_dali() -> bool:
    """Whether NVIDIA DALI can be used here."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def _decoder(loader: str, size: int, workers: int, device: torch.device, memory: int) -> Decoder:
    if loader == "torchvision":
        return PillowDecoder(size, workers, device, memory)
    if not has_dali():
        raise UserError("NVIDIA DALI is not installed: install nvidia-dali-cuda130, or use the loader torchvision")
    from alfk.data.dali import DaliDecoder  # slow to import, and an optional dependency

    return DaliDecoder(size, workers, device)
