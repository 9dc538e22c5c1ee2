"""Perturbed copies of images, from which the estimators S = tr(C_zg) and S = I(z; g) take their statistics.

A strategy is any object with `draw`, which fixes K transformations; each is then applied to all images alike. Two are
known to `--copies` (STRATEGIES), for the paper's release contains both and which of them made the figures is not
known. To try another one (brightness, gamma, kornia.augmentation), write its `draw`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Transformation = Callable[[Tensor], Tensor]  # (B, C, H, W) normalised images -> the same shape


class Strategy(Protocol):
    """How copies differ from their image.

    Attributes:
        shared: whether validation and pool images get the same transformations (where it is missing, they do); else
            each side draws its own.
    """

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        """`samples` transformations for images of `shape` (C, H, W)."""


@dataclasses.dataclass(frozen=True)
class RotationAndNoise:
    """A rotation about the centre by an angle ~ N(0, angle_std^2) and a noise image ~ N(0, noise_std^2) on top."""

    angle_std: float = 5.0  # degrees
    noise_std: float = 0.01  # on the normalised scale
    shared = True

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        angles, noises = _draw(self, samples, shape, generator)
        return [Rotated(angle, noise) for angle, noise in zip(angles, noises, strict=True)]


@dataclasses.dataclass(frozen=True)
class ReleasedRotationAndNoise:
    """What the paper's release does by default: the same draws, but the angles are *radians*.

    Angles are then almost uniform over the circle. Every pixel is the nearest one of the turned image, beyond the
    border the border's, and the centre is pixel (H // 2, W // 2). Validation and pool images have draws of their own.
    """

    angle_std: float = 5.0  # radians
    noise_std: float = 0.01  # on the normalised scale
    shared = False

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        angles, noises = _draw(self, samples, shape, generator)
        return [RotatedToNearest(float(angle), noise) for angle, noise in zip(angles, noises, strict=True)]


def _draw(
    strategy: "RotationAndNoise | ReleasedRotationAndNoise",
    samples: int,
    shape: Sequence[int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Angles (K,) in the strategy's unit and noise images (K, C, H, W)."""
    angles = strategy.angle_std * torch.randn(samples, generator=generator)
    return angles, strategy.noise_std * torch.randn(samples, *shape, generator=generator)


STRATEGIES: dict[str, Strategy] = {"degrees": RotationAndNoise(), "released": ReleasedRotationAndNoise()}


@dataclasses.dataclass(frozen=True)
class Rotated:
    """All images turned by one angle (a tensor of no dimension, degrees) plus one noise image (C, H, W)."""

    angle: Tensor
    noise: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        from kornia.geometry.transform import rotate  # slow to import, and needed here only

        # The images as channels of one: the sampling grid is made once, not for each of them.
        flat = images.flatten(0, 1).unsqueeze(0)
        turned = rotate(flat, self.angle.to(flat)[None], padding_mode="border")
        return turned.view_as(images) + self.noise.to(images)


@dataclasses.dataclass(frozen=True)
class RotatedToNearest:
    """All images turned by one angle (radians) about pixel (H // 2, W // 2), to the nearest pixel, plus one noise
    image (C, H, W).
    """

    angle: float
    noise: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij")
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        row = (cos * y + sin * x).round().long().add(height // 2).clamp(0, height - 1)
        column = (cos * x - sin * y).round().long().add(width // 2).clamp(0, width - 1)
        return images[..., row.to(images.device), column.to(images.device)] + self.noise.to(images)
