"""A split: images, labels and batches on a device. Everything above is blind to where the images live."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Split:
    """Images kept as uint8 (or float in [0, 1]) on one device and normalised a batch at a time.

    Args:
        images: (N, C, H, W) uint8, or float32 already scaled to [0, 1].
        labels: (N,) int64, or None where they are unknown (a pool to be labelled).
        mean, std: per channel, on the [0, 1] scale.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, mean: Sequence[float], std: Sequence[float]):
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images, self.mean, self.std = images, tuple(mean), tuple(std)
        self.labels = None if labels is None else labels.to(images.device, torch.int64)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        spread = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        self._gain = 1 / (scale * spread)
        self._offset = -torch.tensor(self.mean, device=images.device).view(-1, 1, 1) / spread

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device) -> "Split":
        """The same split with images and labels on `device`."""
        return Split(self.images.to(device), self.labels, self.mean, self.std)

    def subset(self, rows: Tensor, labels: Tensor | None = None) -> "Split":
        """The images at `rows` (k,) int64, in that order; `labels` (k,) replaces their labels where it is given."""
        rows = rows.to(self.device)
        if labels is None and self.labels is not None:
            labels = self.labels[rows]
        return Split(self.images[rows], labels, self.mean, self.std)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images (B, C, H, W) float32 normalised, positions (B,) int64), the last batch possibly smaller.

        Args:
            order: positions to visit (k,) int64, each image in turn where it is None.
        """
        if order is None:
            order = torch.arange(len(self))
        for positions in order.to(self.device).split(batch_size):
            yield self.images[positions].float().mul_(self._gain).add_(self._offset), positions
