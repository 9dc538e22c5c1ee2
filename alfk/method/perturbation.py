"""Perturbed copies of images, from which the estimators S = tr(C_zg) and S = I(z; g) compute their statistics.

A strategy draws K transformations, and each is applied to all images alike. STRATEGIES has two, because the paper's
release contains both. The default is the one that the release runs: with it Rzg_mi is closer to the paper's curve
(docs/reproduction.md). A strategy of your own is any object with `draw`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from alfk.support.errors import UserError

Transformation = Callable[[Tensor], Tensor]  # (B, C, H, W) normalised images -> the same shape


class Strategy(Protocol):
    """A distribution of transformations.

    Attributes:
        shared: whether validation and pool images get the same transformations (the default if the attribute is
            missing) or separate draws.
    """

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        """`samples` transformations for images of `shape` (C, H, W)."""


@dataclasses.dataclass(frozen=True)
class _Rotation:
    """Angles ~ N(0, angle_std^2) and noise images ~ N(0, noise_std^2)."""

    angle_std: float = 5.0
    noise_std: float = 0.01  # on the normalised scale

    def draw_numbers(
        self, samples: int, shape: Sequence[int], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """An angle () and a noise image (C, H, W) for each copy. Raises UserError if `shape` is not (C, H, W)."""
        if len(shape) != 3:
            raise UserError(
                "perturbed copies are rotated images, which features (N, D) are not: choose another method, or give "
                "alfk.query a strategy=... of your own"
            )
        angles = self.angle_std * torch.randn(samples, generator=generator)
        noises = self.noise_std * torch.randn(samples, *shape, generator=generator)
        return zip(angles, noises, strict=True)


@dataclasses.dataclass(frozen=True)
class RotationAndNoise(_Rotation):
    """A rotation about the centre, by an angle in degrees, plus noise."""

    shared = True

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        return [Rotated(angle, noise) for angle, noise in self.draw_numbers(samples, shape, generator)]


@dataclasses.dataclass(frozen=True)
class ReleasedRotationAndNoise(_Rotation):
    """The default of the paper's release: the same distributions, but with angles in *radians*.

    Angles are then almost uniform over the circle. The rotation is about pixel (H // 2, W // 2), with nearest-neighbour
    sampling and border padding. Validation and pool images get separate draws.
    """

    shared = False

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        return [RotatedToNearest(float(angle), noise) for angle, noise in self.draw_numbers(samples, shape, generator)]


STRATEGIES: dict[str, Strategy] = {"degrees": RotationAndNoise(), "released": ReleasedRotationAndNoise()}
DEFAULT_COPIES = "released"


@dataclasses.dataclass(frozen=True)
class Rotated:
    """All images rotated by one angle (a tensor without dimensions, degrees) plus one noise image (C, H, W)."""

    angle: Tensor
    noise: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        from kornia.geometry.transform import rotate  # slow to import

        # All images as channels of one, so that the sampling grid is computed once.
        flat = images.flatten(0, 1).unsqueeze(0)
        rotated = rotate(flat, self.angle.to(flat)[None], padding_mode="border")
        return rotated.view_as(images) + self.noise.to(images)


@dataclasses.dataclass(frozen=True)
class RotatedToNearest:
    """All images rotated by one angle (radians) about pixel (H // 2, W // 2), with nearest-neighbour sampling, plus one
    noise image (C, H, W).
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
