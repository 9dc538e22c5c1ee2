"""Splits: images, labels and batches on a device, with the same interface for images in memory and in files."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alfk.image_files import ImageFiles

UNOFFICIAL = "unofficial"  # prefix of the source of images that are not from the data set's official files


class Split:
    """Images stored as uint8 (or float in [0, 1]) on one device, or in files, and normalised per batch.

    A subset is a view: it holds row indices and shares the images of its parent split, so that a pool of half a million
    images exists once, in memory or memory-mapped from a file.

    Args:
        images: (N, C, H, W) uint8, or float32 already scaled to [0, 1]; or N image files.
        labels: (N,) int64, or None if they are unknown (a pool to be labelled).
        mean, std: per channel, on the [0, 1] scale.
        rows: (n,) int64, indices of this split's images, in order, with labels (n,); all images if None.
        source: identifier of the files that the images are from, recorded in a run's manifest; None if the data set has
            one version only.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Tensor | None,
        mean: Sequence[float],
        std: Sequence[float],
        rows: Tensor | None = None,
        source: str | None = None,
    ):
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
        self.in_files = isinstance(images, ImageFiles)
        self.store, self.mean, self.std, self.source = images, tuple(mean), tuple(std), source
        # Row indices of files are used on the CPU; copying them from a GPU would synchronise with its queue.
        self._row_device = torch.device("cpu") if self.in_files else images.device
        self.rows = None if rows is None else rows.to(self._row_device, torch.int64)
        if labels is not None and len(labels) != len(self):
            raise ValueError(f"{len(self)} images but {len(labels)} labels")
        self.labels = None if labels is None else labels.to(images.device, torch.int64)
        scale = 255.0 if self.in_files or images.dtype == torch.uint8 else 1.0
        spread = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        self._gain = 1 / (scale * spread)
        self._offset = -torch.tensor(self.mean, device=images.device).view(-1, 1, 1) / spread

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) in the stored format; a copy if this is a subset or in files."""
        if self.in_files:
            return next(self._stored([torch.arange(len(self))], None))
        return self.store if self.rows is None else self.store[self.rows]

    def to(self, device: torch.device) -> "Split":
        """The same split with images and labels on `device`."""
        return Split(self.store.to(device), self.labels, self.mean, self.std, self.rows, self.source)

    def subset(self, rows: Tensor, labels: Tensor | None = None) -> "Split":
        """A view of the images at `rows` (k,) int64, in that order; `labels` (k,) replaces their labels if given."""
        if labels is None and self.labels is not None:
            labels = self.labels[rows.to(self.device)]
        rows = rows.to(self._row_device)
        rows = rows if self.rows is None else self.rows[rows]
        return Split(self.store, labels, self.mean, self.std, rows, self.source)

    def batches(
        self, batch_size: int, order: Tensor | None = None, seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (normalised images (B, C, H, W) float32, positions (B,) int64), the last batch possibly smaller.

        Args:
            order: (k,) int64, the positions to visit; all images in order if None.
            seed: of the random augmentation of images in files; if None, they are transformed as for evaluation.
        """
        if order is None:
            order = torch.arange(len(self))
        chunks = order.to(self._row_device).split(batch_size)
        for positions, stored in zip(chunks, self._stored(chunks, seed), strict=True):
            yield stored.float().mul_(self._gain).add_(self._offset), positions.to(self.device, non_blocking=True)

    def _stored(self, chunks: Sequence[Tensor], seed: int | None) -> Iterator[Tensor]:
        rows = chunks if self.rows is None else [self.rows[positions] for positions in chunks]
        return self.store.fetch(rows, seed) if self.in_files else (self.store[part] for part in rows)


class Dataset(NamedTuple):
    """A data set's splits; if `validation` is None, validation images are drawn from `train`."""

    train: Split
    test: Split
    validation: Split | None = None
