"""Decoding, cropping and scaling of image files: the code that both loaders share, and the Pillow loader.

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
    """Maps requests to (B, size, size, 3) uint8 tensors on its device, in order, with prefetching."""

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        """`largest`: images in the largest request; `augmented`: whether requests have crops."""


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """(count, 5) float32: area (share of the image's), width over height (log-uniform), vertical and horizontal place
    (0 to 1, as a share of the remaining room), and a uniform number: the image is mirrored if it is below 1/2.
    """
    crops = torch.rand(count, 5, generator=generator)
    low, high = torch.tensor(ASPECT).log()
    crops[:, 0] = AREA[0] + (AREA[1] - AREA[0]) * crops[:, 0]
    crops[:, 1] = (low + (high - low) * crops[:, 1]).exp()
    return crops


def evaluation_side(size: int) -> int:
    """Length of the shorter side before the central crop: 256 for a crop of 224."""
    return round(size * 256 / 224)


class PillowDecoder:
    """Decoding by Pillow, scaling by torchvision.transforms.v2, in the worker processes of a DataLoader."""

    def __init__(self, size: int, workers: int, device: torch.device):
        self.size, self.workers, self.device = size, workers, device

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        on_gpu = self.device.type == "cuda"
        batches = _Batches(list(requests), self.size)
        in_daemon = multiprocessing.current_process().daemon  # a process of --jobs, which cannot start others
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=0 if in_daemon else min(self.workers, len(batches)),
            multiprocessing_context=None if in_daemon else _forkserver(),
            pin_memory=on_gpu,
            generator=torch.Generator(),  # without it the DataLoader would advance the global generator
        )
        for pixels in loader:
            if isinstance(pixels, str):  # an error message: a worker's exception would carry its traceback as text
                raise UserError(pixels)
            yield pixels.to(self.device, non_blocking=True)


@functools.cache
def _forkserver() -> multiprocessing.context.BaseContext:
    """Starts workers from a process without threads: a fork of a process with threads (DALI, CUDA) was seen to hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


class _Batches(torch.utils.data.Dataset):
    """Item i: request i decoded, (B, size, size, 3) uint8, or an error message."""

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
    """A random crop (see `draw_crops`) in pixels: top, left, height, width, clipped to the image's size."""
    area, aspect, vertical, horizontal, _ = crop.astype(np.float64)
    crop_width = min(width, max(1, math.floor((area * height * width * aspect) ** 0.5 + 0.5)))
    crop_height = min(height, max(1, math.floor((area * height * width / aspect) ** 0.5 + 0.5)))
    top, left = int(vertical * (height - crop_height + 1)), int(horizontal * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def open_image(path: str) -> Image.Image:
    """The image in RGB, in the stored orientation (the EXIF orientation tag is ignored).

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as problem:  # what Pillow raises for damaged files
        raise UserError(f"{path} cannot be decoded: {problem}; replace or remove it") from None
