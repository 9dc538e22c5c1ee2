"""Decoding with NVIDIA DALI: on the GPU if there is one, else in CPU threads."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from alfk.data.decoding import Request, evaluation_side, open_image, opened
from alfk.support.errors import UserError

PREFETCH = 2  # batches decoded while another one is in use
COMMON = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM")  # JPEG, PNG, WebP, BMP: DALI's pixels equal Pillow's in all modes
MODES = ("L", "RGB", "RGBA", "P", "CMYK", "I;16")  # of other formats, e.g. TIFF, only in these modes
FIX = "save it as JPEG or PNG, or use --loader torchvision"
RGB = {"output_type": types.RGB, "adjust_orientation": False}


class DaliDecoder:
    """A `Decoder` with DALI. Its pipelines, by batch size and augmentation, are slow to build and so used again."""

    def __init__(self, size: int, workers: int, device: torch.device):
        self.size, self.workers, self.device = size, workers, device
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.idle: dict[tuple[int, bool], list[tuple[Pipeline, _Source]]] = {}

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        idle = self.idle.setdefault((largest, augmented), [])
        pipeline, source = idle.pop() if idle else self._build(largest, augmented)
        source.requests = iter(requests)
        source.pending.clear()
        while True:
            try:
                pixels, heads = pipeline.run()
            except StopIteration:
                break
            except RuntimeError as problem:
                raise UserError(self._error_message(source.pending, str(problem))) from None
            for path, head in zip(source.pending.pop(0), heads.as_array(), strict=True):
                if not head.tobytes().startswith(COMMON):
                    _require_pillows_pixels(path)
            yield self._tensor(pixels)
        pipeline.reset()
        idle.append((pipeline, source))  # not reached after a failure, or if the caller stops early

    def _build(self, largest: int, augmented: bool, prefetch: int = PREFETCH) -> "tuple[Pipeline, _Source]":
        source = _Source(augmented)
        on_gpu = self.device.type == "cuda"
        pipeline = _decoding(
            source,
            self.size,
            augmented,
            "mixed" if on_gpu else "cpu",
            batch_size=largest,
            num_threads=self.workers,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=prefetch,
        )
        pipeline.build()
        return pipeline, source

    def _error_message(self, pending: Sequence[list[str]], problem: str) -> str:
        """The error message for a failed pipeline. DALI names no file, so each pending one is decoded alone."""
        pipeline, source = self._build(1, augmented=False, prefetch=1)
        paths = list(itertools.chain.from_iterable(pending))
        source.requests = iter([([path], None) for path in paths])
        for path in paths:
            try:
                pipeline.run()
            except RuntimeError:
                return _undecodable(path)
        reason = problem.partition("encountered:")[2].split("Current pipeline")[0] or problem
        return f"NVIDIA DALI failed: {' '.join(reason.split())}; try --loader torchvision"

    def _tensor(self, pixels: object) -> Tensor:
        """A copy that stays valid after the pipeline's next run."""
        batch = pixels.as_tensor()
        if self.copy_stream is None:
            return feed_ndarray(batch, torch.empty(batch.shape(), dtype=torch.uint8))
        with torch.cuda.stream(self.copy_stream):
            out = torch.empty(batch.shape(), dtype=torch.uint8, device=self.device)
            feed_ndarray(batch, out, cuda_stream=self.copy_stream)
        self.copy_stream.synchronize()  # frees DALI's buffer without waiting for the network's kernels
        out.record_stream(torch.cuda.current_stream(self.device))
        return out


class _Source:
    """The input of a pipeline: paths and crops. It keeps the paths of requests whose batches are pending."""

    def __init__(self, augmented: bool):
        self.augmented, self.requests, self.pending = augmented, iter(()), []

    def __call__(self) -> tuple[list[np.ndarray], ...]:
        paths, crops = next(self.requests)
        self.pending.append(paths)
        for path in paths:
            if not os.path.isfile(path):  # DALI would wait at a FIFO
                open_image(path)  # raises UserError
        names = [np.frombuffer(os.fsencode(path), np.uint8) for path in paths]
        return (names, list(crops)) if self.augmented else (names,)


@pipeline_def
def _decoding(source: _Source, size: int, augmented: bool, device: str) -> DataNode:
    """Pixels (B, size, size, 3) uint8 on the device, by the operations of `decoding.scaled`, and the first bytes of the
    files (B, 4) uint8 on the CPU.
    """
    if not augmented:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True, dtype=[types.UINT8], ndim=[1])
        encoded = fn.io.file.read(path)
        images = fn.decoders.image(encoded, device=device, **RGB)
        images = fn.resize(images, resize_shorter=evaluation_side(size), antialias=True)
        return fn.crop(images, crop=(size, size), rounding="truncate"), _head(encoded)
    dtypes = [types.UINT8, types.FLOAT]
    path, crop = fn.external_source(source=source, num_outputs=2, batch=True, dtype=dtypes, ndim=[1, 1])
    encoded = fn.io.file.read(path)
    shape = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False), dtype=types.FLOAT)
    height, width = shape[0], shape[1]
    area, aspect, vertical, horizontal, flip = (crop[i] for i in range(5))
    crop_width = _pixels(math.sqrt(area * height * width * aspect), width)
    crop_height = _pixels(math.sqrt(area * height * width / aspect), height)
    top, left = math.floor(vertical * (height - crop_height + 1)), math.floor(horizontal * (width - crop_width + 1))
    anchor, extent = fn.stack(top, left), fn.stack(crop_height, crop_width)
    absolute = {"normalized_anchor": False, "normalized_shape": False, "axes": [0, 1]}
    images = fn.decoders.image_slice(encoded, anchor, extent, device=device, **absolute, **RGB)
    images = fn.resize(images, size=(size, size), antialias=True)
    return fn.flip(images, horizontal=fn.cast(flip < 0.5, dtype=types.INT32)), _head(encoded)


def _pixels(side: DataNode, limit: DataNode) -> DataNode:
    """`side` rounded to a whole number of pixels from 1 to `limit`."""
    return math.min(limit, math.max(1.0, math.floor(side + 0.5)))


def _head(encoded: DataNode) -> DataNode:
    return fn.slice(encoded, 0, 4, axes=[0], out_of_bounds_policy="pad")


def _require_pillows_pixels(path: str) -> None:
    """Raises UserError if DALI decodes a file of a rare format to other pixels than Pillow."""
    with opened(path) as image:
        found, mode = image.format, image.mode
    if mode not in MODES:
        open_image(path)  # raises UserError if Pillow cannot decode it either
        raise UserError(f"{path} ({found}, mode {mode}) cannot be decoded by NVIDIA DALI as by Pillow: {FIX}")


def _undecodable(path: str) -> str:
    """The error message for a file that DALI cannot decode."""
    try:
        open_image(path)
        with opened(path) as image:
            return f"{path} ({image.format}) cannot be decoded by NVIDIA DALI, but by Pillow: {FIX}"
    except UserError as problem:
        return str(problem)
