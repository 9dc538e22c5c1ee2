"""Decoding, cropping and scaling of image files: the code that both loaders share, and the Pillow loader.

Random crops are drawn once, by `draw_crops`, so that every loader gives a network the same images.
"""

import contextlib
import functools
import itertools
import math
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alfk.support.errors import UserError

AREA = (0.1, 1.0)  # of a random crop, share of the image (docs/method.md, section 2)
ASPECT = (0.8, 1.25)  # of a random crop, width over height
AHEAD = 2  # requests decoded while another one is in use
PART = 16  # images that a thread decodes at a time: a task for each image would cost a quarter of the rate at 64 pixels

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
    """A `Decoder` whose images are decoded and scaled by Pillow, in threads: Pillow releases the GIL.

    Args:
        workers: threads, shared by all decoders of a process that have equally many.
        memory: bytes of decoded files that are kept for later random crops.
    """

    def __init__(self, size: int, workers: int, device: torch.device, memory: int):
        self.size, self.workers, self.device, self.memory = size, workers, device, memory
        self.files: dict[str, Image.Image] = {}  # by path
        self.lock = threading.Lock()  # of files and memory

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
        finally:  # abandoned or failed
            for part in itertools.chain.from_iterable(parts for _, parts in pending):
                part.cancel()

    def _submit(self, request: Request) -> tuple[Tensor, list[Future]]:
        """(B, size, size, 3) uint8, not yet filled, and the tasks that fill it."""
        paths, crops = request
        crops = [None] * len(paths) if crops is None else crops
        pixels = torch.empty(len(paths), self.size, self.size, 3, dtype=torch.uint8, pin_memory=self._on_gpu)
        array, submit = pixels.numpy(), _threads(os.getpid(), self.workers).submit
        parts = [slice(start, start + PART) for start in range(0, len(paths), PART)]
        return pixels, [submit(self._decode, array[part], paths[part], crops[part]) for part in parts]

    def _decode(self, out: np.ndarray, paths: Sequence[str], crops: Sequence[np.ndarray | None]) -> None:
        """Writes (B, size, size, 3) pixels into `out`."""
        for row, path, crop in zip(out, paths, crops, strict=True):
            image = self.files.get(path)
            if image is None:
                image = open_image(path)
                if crop is not None:  # for evaluation `ImageFiles` keeps what it is after scaling
                    self._keep(path, image)
            row[:] = scaled(image, self.size, crop)

    def _keep(self, path: str, image: Image.Image) -> None:
        size = 4 * image.width * image.height  # Pillow stores RGB in 4 bytes
        with self.lock:
            if size <= self.memory and path not in self.files:
                self.files[path] = image
                self.memory -= size

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"


@functools.cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """The decoding threads of a process, by its id: a forked process inherits an executor, but not its threads."""
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
        UserError: it cannot be read or decoded, or its values have no fixed range.
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
    """The file as Pillow opens it, not yet decoded. Raises UserError for Pillow's errors, also inside the block."""
    try:
        with open(path, "rb", opener=_without_waiting) as file, Image.open(_regular(file)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:  # Pillow's, for damaged files
        raise UserError(f"{path} cannot be decoded: {problem}; replace or remove it") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a FIFO without waiting for one that writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _regular(file: IO[bytes]) -> IO[bytes]:
    """The file. Raises OSError if it is a FIFO or a device."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError("it is not a regular file")
    return file
