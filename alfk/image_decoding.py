"""Decoding, cropping and scaling of image files: what both loaders share, and the one that uses Pillow.

Random crops are drawn once, by `draw_crops`, so that every loader gives a network the same images.
"""

import functools
import math
import multiprocessing
import multiprocessing.context
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as transforms

from alfk.errors import UserError

AREA = (0.1, 1.0)  # of a random crop, share of the image (docs/method.md, section 2)
ASPECT = (0.8, 1.25)  # of a random crop, width over height

Request = tuple[list[str], np.ndarray | None]  # paths, and the random crop of each (see `draw_crops`), or none


class Decoder(Protocol):
    """Turns requests into (B, size, size, 3) uint8 on its device, one after the other, working ahead."""

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        """`largest`: images in the largest request; `augmented`: whether requests come with crops."""


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """(count, 5) float32: area (share of the image's), width over height (evenly on a logarithmic scale), place of the
    crop down and across (0 to 1, of the room that is left), and what mirrors the image where it is under 1/2.
    """
    drawn = torch.rand(count, 5, generator=generator)
    low, high = torch.tensor(ASPECT).log()
    drawn[:, 0] = AREA[0] + (AREA[1] - AREA[0]) * drawn[:, 0]
    drawn[:, 1] = (low + (high - low) * drawn[:, 1]).exp()
    return drawn


def evaluation_side(size: int) -> int:
    """What the shorter side is scaled to before the central crop: 256 for 224."""
    return round(size * 256 / 224)


class PillowDecoder:
    """Decoding by Pillow, scaling by torchvision.transforms.v2, in the worker processes of a DataLoader."""

    def __init__(self, size: int, workers: int, device: torch.device):
        self.size, self.workers, self.device = size, workers, device

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        on_gpu = self.device.type == "cuda"
        batches = _Batches(list(requests), self.size)
        in_daemon = multiprocessing.current_process().daemon  # a run of --jobs, which may not start processes
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=0 if in_daemon else min(self.workers, len(batches)),
            multiprocessing_context=None if in_daemon else _forkserver(),
            pin_memory=on_gpu,
            generator=torch.Generator(),  # of its workers, which draw nothing; else it takes from the global one
        )
        for pixels in loader:
            if isinstance(pixels, str):  # a worker's exception would come with its traceback as text
                raise UserError(pixels)
            yield pixels.to(self.device, non_blocking=True)


@functools.cache
def _forkserver() -> multiprocessing.context.BaseContext:
    """Starts worker processes from one without threads: a fork of a process with threads, such as DALI's or CUDA's, was
    seen to hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


class _Batches(torch.utils.data.Dataset):
    """Request number i, decoded: (B, size, size, 3) uint8, or what is wrong with it."""

    def __init__(self, requests: Sequence[Request], size: int):
        self.requests, self.size = requests, size

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, i: int) -> Tensor | str:
        paths, crops = self.requests[i]
        crops = [None] * len(paths) if crops is None else crops
        try:
            return torch.stack([_decode(path, self.size, crop) for path, crop in zip(paths, crops, strict=True)])
        except UserError as problem:
            return str(problem)


def _decode(path: str, size: int, crop: np.ndarray | None) -> Tensor:
    image = open_image(path)
    if crop is None:
        scale = evaluation_side(size) / min(image.size)
        height, width = (math.floor(side * scale + 0.5) for side in (image.height, image.width))
        image = transforms.resize(image, [height, width])
        image = transforms.crop(image, (height - size) // 2, (width - size) // 2, size, size)
    else:
        image = transforms.resized_crop(image, *window(image.height, image.width, crop), [size, size])
        if crop[4] < 0.5:
            image = transforms.horizontal_flip(image)
    return torch.from_numpy(np.array(image))


def window(height: int, width: int, crop: np.ndarray) -> tuple[int, int, int, int]:
    """A drawn crop (see `draw_crops`) in pixels: top, left, height, width. What would not fit is cut to the image."""
    area, aspect, down, across, _ = crop.astype(np.float64)
    across_side = min(width, max(1, math.floor((area * height * width * aspect) ** 0.5 + 0.5)))
    down_side = min(height, max(1, math.floor((area * height * width / aspect) ** 0.5 + 0.5)))
    return int(down * (height - down_side + 1)), int(across * (width - across_side + 1)), down_side, across_side


def open_image(path: str) -> Image.Image:
    """The image in RGB, as its pixels are stored (a camera's orientation tag is not followed).

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as problem:  # Pillow's ways of saying that a file is damaged
        raise UserError(f"{path} cannot be decoded: {problem}; replace or remove it") from None
