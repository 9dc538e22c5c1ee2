"""Decoding by NVIDIA DALI: on the GPU where there is one, else in CPU threads."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from alfk.errors import UserError
from alfk.image_decoding import Request, evaluation_side, open_image

AHEAD = 2  # batches decoded while another one is in use
RGB = {"output_type": types.RGB, "adjust_orientation": False}


class DaliDecoder:
    """A `Decoder` that keeps its pipelines for the next time."""

    def __init__(self, size: int, workers: int, device: torch.device):
        self.size, self.workers, self.device = size, workers, device
        self.copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.idle: dict[tuple[int, bool], list[tuple[Pipeline, _Source]]] = {}

    def __call__(self, requests: Iterable[Request], largest: int, augmented: bool) -> Iterator[Tensor]:
        idle = self.idle.setdefault((largest, augmented), [])
        pipeline, source = idle.pop() if idle else self._build(largest, augmented)
        source.requests = iter(requests)
        source.asked.clear()
        while True:
            try:
                (pixels,) = pipeline.run()
            except StopIteration:
                break
            except RuntimeError as problem:
                raise UserError(_culprit(source.asked, str(problem))) from None
            del source.asked[0]
            yield self._tensor(pixels)
        pipeline.reset()
        idle.append((pipeline, source))  # one that was left early or has failed is not used again

    def _build(self, largest: int, augmented: bool) -> "tuple[Pipeline, _Source]":
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
            prefetch_queue_depth=AHEAD,
        )
        pipeline.build()
        return pipeline, source

    def _tensor(self, pixels: object) -> Tensor:
        """A copy that outlives the pipeline's next run."""
        batch = pixels.as_tensor()
        if self.copying is None:
            return feed_ndarray(batch, torch.empty(batch.shape(), dtype=torch.uint8))
        with torch.cuda.stream(self.copying):
            out = torch.empty(batch.shape(), dtype=torch.uint8, device=self.device)
            feed_ndarray(batch, out, cuda_stream=self.copying)
        self.copying.synchronize()  # DALI's buffer is free then; what the network computes need not be done
        out.record_stream(torch.cuda.current_stream(self.device))
        return out


class _Source:
    """Feeds a pipeline; remembers the paths of the requests that have not come out yet."""

    def __init__(self, augmented: bool):
        self.augmented, self.requests, self.asked = augmented, iter(()), []

    def __call__(self) -> tuple[list[np.ndarray], ...]:
        paths, crops = next(self.requests)
        self.asked.append(paths)
        names = [np.frombuffer(os.fsencode(path), np.uint8) for path in paths]
        return (names, list(crops)) if self.augmented else (names,)


@pipeline_def
def _decoding(source: _Source, size: int, augmented: bool, device: str) -> DataNode:
    """(B, size, size, 3) uint8 on the device; what `image_decoding` does with Pillow."""
    if not augmented:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True, dtype=[types.UINT8], ndim=[1])
        images = fn.decoders.image(fn.io.file.read(path), device=device, **RGB)
        images = fn.resize(images, resize_shorter=evaluation_side(size), antialias=True)
        return fn.crop(images, crop=(size, size), rounding="truncate")
    dtypes = [types.UINT8, types.FLOAT]
    path, crop = fn.external_source(source=source, num_outputs=2, batch=True, dtype=dtypes, ndim=[1, 1])
    encoded = fn.io.file.read(path)
    shape = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False), dtype=types.FLOAT)
    height, width = shape[0], shape[1]
    area, aspect, down, across, mirrored = (crop[i] for i in range(5))
    across_side = _pixels(math.sqrt(area * height * width * aspect), width)
    down_side = _pixels(math.sqrt(area * height * width / aspect), height)
    top, left = math.floor(down * (height - down_side + 1)), math.floor(across * (width - across_side + 1))
    anchor, extent = fn.stack(top, left), fn.stack(down_side, across_side)
    absolute = {"normalized_anchor": False, "normalized_shape": False, "axes": [0, 1]}
    images = fn.decoders.image_slice(encoded, anchor, extent, device=device, **absolute, **RGB)
    images = fn.resize(images, size=(size, size), antialias=True)
    return fn.flip(images, horizontal=fn.cast(mirrored < 0.5, dtype=types.INT32))


def _pixels(side: DataNode, most: DataNode) -> DataNode:
    return math.min(most, math.max(1.0, math.floor(side + 0.5)))


def _culprit(asked: list[list[str]], problem: str) -> str:
    """What to say of a failed pipeline: DALI names no file, so Pillow is asked about the next in line."""
    for paths in asked:
        for path in paths:
            try:
                open_image(path)
            except UserError as found:
                return str(found)
    reason = next((line for line in problem.splitlines() if "rror" in line and "pipeline" not in line), problem)
    return f"NVIDIA DALI failed: {reason.strip()}; try --loader torchvision"
