"""How a run divides and distorts its training images (paper, Section 5): validation set, class imbalance, label noise.

Ratios are checked where they enter, by the flags (alfk/cli/options.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_validation(labels: Tensor, per_class: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `per_class[c]` validation images of each class c; all other images are the undistorted pool.

    Args:
        labels: (N,) int64.
    Returns:
        positions of validation and pool images, int64, ascending, disjoint, together 0..N-1.
    Raises:
        ValueError: a class has too few images.
    """
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for c, count in enumerate(per_class):
        members = (labels == c).nonzero().flatten()
        if len(members) < count:
            raise ValueError(f"class {c} has {len(members)} images, {count} are wanted for validation")
        taken[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return taken.nonzero().flatten(), (~taken).nonzero().flatten()


def proportional_counts(counts: Tensor, size: int) -> list[int]:
    """Shares of the classes in `size` images, in proportion to their `counts` (C,); `size` is at most their sum.

    The divisor method of Sainte-Lague: image k = 0, 1, ... of a class has its turn at (2 k + 1) / count; at equal turns
    the lower class comes first. Unlike with largest remainders, no share shrinks when `size` grows.
    """
    turns = torch.cat([(2 * torch.arange(count, dtype=torch.float64) + 1) / count for count in counts.tolist()])
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.bincount(classes[turns.argsort(stable=True)[:size]], minlength=len(counts)).tolist()


def thin_minority(labels: Tensor, minority: Sequence[int], ratio: float, generator: torch.Generator) -> Tensor:
    """Class imbalance with given minority classes: keep all L images of the other classes, and int(L / ratio) images
    drawn from the minority classes together (all of them if they are fewer, or if the ratio is 1).

    Args:
        labels: (N,) int64 of the undistorted pool.
        ratio: imbalance ratio ir, at least 1.
    Returns:
        (P,) int64, the positions that are kept, ascending.
    """
    if ratio == 1:
        return torch.arange(len(labels))
    thin = torch.isin(labels, torch.tensor(list(minority)))
    few, many = thin.nonzero().flatten(), (~thin).nonzero().flatten()
    kept = few[torch.randperm(len(few), generator=generator)[: int(len(many) / ratio)]]
    return torch.cat([many, kept]).sort().values


def thin_half_of_classes(labels: Tensor, classes: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Class imbalance with random minority classes: half of the classes each lose round(A (ratio - 1) / ratio) of their
    A images.

    Args:
        labels: (N,) int64 of the undistorted pool.
        ratio: imbalance ratio ir, at least 1.
    Returns:
        (P,) int64, the positions that are kept, ascending.
    """
    kept = torch.ones(len(labels), dtype=torch.bool)
    by_class = labels.argsort(stable=True).split(torch.bincount(labels, minlength=classes).tolist())
    for c in torch.randperm(classes, generator=generator)[: classes // 2].tolist():
        members = by_class[c]
        removed = round(len(members) * (ratio - 1) / ratio)
        kept[members[torch.randperm(len(members), generator=generator)[:removed]]] = False
    return kept.nonzero().flatten()


def add_label_noise(labels: Tensor, ratio: float, classes: int, generator: torch.Generator) -> Tensor:
    """Label noise: int(P * ratio) random images get uniformly random labels, which may equal the true ones.

    Args:
        labels: (P,) int64.
        ratio: noise ratio nr in [0, 1).
    Returns:
        (P,) int64, a new tensor.
    """
    noisy = labels.clone()
    rows = torch.randperm(len(labels), generator=generator)[: int(len(labels) * ratio)]
    noisy[rows] = torch.randint(classes, (len(rows),), generator=generator)
    return noisy


def minority_of(labels: Tensor, classes: int) -> list[int]:
    """Classes with less than half of the mean number of images per class; `labels` (N,) int64."""
    count = torch.bincount(labels, minlength=classes)
    return (2 * classes * count < len(labels)).nonzero().flatten().tolist()
