"""Decoding, cropping and scaling of image files: what both loaders share, and the Pillow loader.

Random crops are drawn by `draw_crops` alone, so that every loader gives a network the same images.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alfk.support.errors import UserError
from alfk.support.files import open_file

AREA = (0.1, 1.0)  # of a random crop, share of the image (docs/method.md, section 2)
ASPECT = (0.8, 1.25)  # of a random crop, width over height
AHEAD = 2  # requests decoded while another one is in use
PART = 16  # images per task of a thread: single images would cost a quarter of the rate at 64 pixels
FIX = "replace or remove it"

Request = tuple[list[str], np.ndarray | None]  # paths (B,); random crops (B, 5), see `draw_crops`, or None


class Decoder(Protocol):
    """Decodes requests to (B, size, size, 3) uint8 tensors on its device, in order, with prefetching."""

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        """Decode the requests.

        Args:
            largest: number of images in the largest request.
            augmented: whether requests have crops.
        """


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """Random crops (count, 5) float32. The columns are the area as a share of the image, width over height
    (log-uniform), the vertical and the horizontal position as shares of the remaining room, and a uniform number, below
    1/2 if the crop is mirrored.
    """
    crops = torch.rand(count, 5, generator=generator)
    low, high = torch.tensor(ASPECT).log()
    crops[:, 0] = AREA[0] + (AREA[1] - AREA[0]) * crops[:, 0]
    crops[:, 1] = (low + (high - low) * crops[:, 1]).exp()
    return crops


def evaluation_side(size: int) -> int:
    """The image's shorter side in pixels before the central crop: 256 for a crop of 224."""
    return round(size * 256 / 224)


class PillowDecoder:
    """A `Decoder` that decodes and scales with Pillow, in threads (Pillow releases the GIL).

    Args:
        workers: number of threads; decoders with the same number share them.
        memory: bytes of decoded files to keep for later random crops.
    """

    def __init__(self, size: int, workers: int, device: torch.device, memory: int):
        self.size, self.workers, self.device, self.memory = size, workers, device, memory
        self.files: dict[str, Image.Image] = {}  # decoded, by path
        self.lock = threading.Lock()  # for files and memory

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        requests, pending = iter(requests), deque()
        try:
            pending.extend(map(self._submit, itertools.islice(requests, AHEAD)))
            while pending:
                pending.extend(map(self._submit, itertools.islice(requests, 1)))
                pixels, parts = pending[0]
                for part in parts:
                    part.result()
                del pending[0]
                yield pixels.to(self.device, non_blocking=True)
        finally:  # left early, or failed
            for part in itertools.chain.from_iterable(parts for _, parts in pending):
                part.cancel()

    def _submit(self, request: Request) -> tuple[Tensor, list[Future]]:
        """(B, size, size, 3) uint8, not yet filled, and the tasks that fill it."""
        paths, crops = request
        crops = [None] * len(paths) if crops is None else crops
        pinned = self.device.type == "cuda"
        pixels = torch.empty(len(paths), self.size, self.size, 3, dtype=torch.uint8, pin_memory=pinned)
        array, submit = pixels.numpy(), _threads(os.getpid(), self.workers).submit
        parts = [slice(start, start + PART) for start in range(0, len(paths), PART)]
        return pixels, [submit(self._decode, array[part], paths[part], crops[part]) for part in parts]

    def _decode(self, out: np.ndarray, paths: Sequence[str], crops: Sequence[np.ndarray | None]) -> None:
        """Write the pixels of some images into `out` (B, size, size, 3)."""
        for row, path, crop in zip(out, paths, crops, strict=True):
            image = self.files.get(path)
            if image is None:
                image = open_image(path)
                if crop is not None:  # of evaluation images `ImageFiles` keeps the scaled ones
                    self._keep(path, image)
            row[:] = scaled(image, self.size, crop)

    def _keep(self, path: str, image: Image.Image) -> None:
        size = 4 * image.width * image.height  # Pillow stores RGB in 4 bytes
        with self.lock:
            if size <= self.memory and path not in self.files:
                self.files[path] = image
                self.memory -= size


@functools.cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """The decoding threads of a process, by its id: a forked process inherits the executor without its threads."""
    return ThreadPoolExecutor(count, "decode")


def scaled(image: Image.Image, size: int, crop: np.ndarray | None) -> np.ndarray:
    """(size, size, 3) uint8: the central crop, or a random one (see `draw_crops`)."""
    if crop is None:
        scale = evaluation_side(size) / min(image.size)
        width, height = (math.floor(side * scale + 0.5) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    else:
        top, left, height, width = window(image.height, image.width, crop)
        image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        if crop[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def window(height: int, width: int, crop: np.ndarray) -> tuple[int, int, int, int]:
    """A random crop (see `draw_crops`) in pixels: top, left, height, width, clipped to the image's size."""
    area, aspect, vertical, horizontal, _ = crop.astype(np.float64)
    crop_width = min(width, max(1, math.floor((area * height * width * aspect) ** 0.5 + 0.5)))
    crop_height = min(height, max(1, math.floor((area * height * width / aspect) ** 0.5 + 0.5)))
    top, left = int(vertical * (height - crop_height + 1)), int(horizontal * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def open_image(path: str) -> Image.Image:
    """The image in RGB, in the stored orientation (the EXIF orientation tag is ignored); 16 bits are scaled to 8.

    Raises:
        UserError: the file cannot be read or decoded, or its values have no fixed range.
    """
    with opened(path) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            values = np.asarray(image).astype(np.uint32)  # convert("RGB") would clip them at 255
            return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(f"its values (mode {image.mode}) have no fixed range, so save it with 8 bits")
        return image.convert("RGB")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The file as Pillow opens it, not yet decoded. Pillow's errors, also those inside the block, become UserErrors."""
    with open_file(Path(path), FIX) as file:
        try:
            with Image.open(file) as image:
                yield image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
            raise UserError(f"{path} cannot be decoded: {problem}; {FIX}") from None
