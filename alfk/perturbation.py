"""Perturbed copies of images, from which the estimators S = tr(C_zg) and S = I(z; g) take their statistics.

A strategy is any object with `draw`, which fixes K transformations; each is then applied to all images alike. To try
another one (brightness, gamma, kornia.augmentation), write its `draw`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Transformation = Callable[[Tensor], Tensor]  # (B, C, H, W) normalised images -> the same shape


class Strategy(Protocol):
    """How copies differ from their image."""

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        """`samples` transformations for images of `shape` (C, H, W)."""


@dataclasses.dataclass(frozen=True)
class RotationAndNoise:
    """A rotation about the centre by an angle ~ N(0, angle_std^2) and a noise image ~ N(0, noise_std^2) on top."""

    angle_std: float = 5.0  # degrees
    noise_std: float = 0.01  # on the normalised scale

    def draw(self, samples: int, shape: Sequence[int], generator: torch.Generator) -> list[Transformation]:
        angles = self.angle_std * torch.randn(samples, generator=generator)
        noises = self.noise_std * torch.randn(samples, *shape, generator=generator)
        return [Rotated(angle, noise) for angle, noise in zip(angles, noises, strict=True)]


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
