"""How a run divides and distorts its training data (paper, Section 5): validation split, class imbalance, noise."""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_validation(labels: Tensor, per_class: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `per_class[c]` validation images of each class c; the rest is the undistorted pool.

    Args:
        labels: (N,) int64.
    Returns:
        validation and pool indices, int64, ascending and disjoint, together 0..N-1.
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
    """`size` images shared among classes in proportion to their `counts` (C,); `size` is at most the sum of these.

    By the divisor method of Sainte-Lague: image k = 0, 1, ... of a class has its turn at (2 k + 1) / count, at equal
    turns the lower class first. Unlike with largest remainders, no class has fewer images at a larger size.
    """
    turns = torch.cat([(2 * torch.arange(count, dtype=torch.float64) + 1) / count for count in counts.tolist()])
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.bincount(classes[turns.argsort(stable=True)[:size]], minlength=len(counts)).tolist()


def thin_minority(labels: Tensor, minority: Sequence[int], ratio: float, generator: torch.Generator) -> Tensor:
    """Class imbalance of MNIST and SVHN: keep the L images of the majority classes and int(L / ratio) images drawn from
    all minority classes together (all of them if there are fewer, and at ratio 1).

    Args:
        labels: (N,) int64 of the undistorted pool.
        ratio: imbalance ratio ir, at least 1.
    Returns:
        (P,) int64, the positions that are kept, ascending.
    Raises:
        ValueError: a ratio below 1.
    """
    if ratio < 1:
        raise ValueError(f"an imbalance ratio is at least 1, got {ratio}")
    if ratio == 1:
        return torch.arange(len(labels))
    thin = torch.isin(labels, torch.tensor(list(minority)))
    few, many = thin.nonzero().flatten(), (~thin).nonzero().flatten()
    kept = few[torch.randperm(len(few), generator=generator)[: int(len(many) / ratio)]]
    return torch.cat([many, kept]).sort().values


def thin_half_of_classes(labels: Tensor, classes: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Class imbalance of ImageNet: half of the classes, drawn at random, each lose round(A (ratio - 1) / ratio) of
    their A images, drawn at random.

    Args:
        labels: (N,) int64 of the undistorted pool.
        ratio: imbalance ratio ir, at least 1.
    Returns:
        (P,) int64, the positions that are kept, ascending.
    Raises:
        ValueError: a ratio below 1.
    """
    if ratio < 1:
        raise ValueError(f"an imbalance ratio is at least 1, got {ratio}")
    kept = torch.ones(len(labels), dtype=torch.bool)
    by_class = labels.argsort(stable=True).split(torch.bincount(labels, minlength=classes).tolist())
    for c in torch.randperm(classes, generator=generator)[: classes // 2].tolist():
        members = by_class[c]
        removed = round(len(members) * (ratio - 1) / ratio)
        kept[members[torch.randperm(len(members), generator=generator)[:removed]]] = False
    return kept.nonzero().flatten()


def add_label_noise(labels: Tensor, ratio: float, classes: int, generator: torch.Generator) -> Tensor:
    """Uniform random labels for int(P * ratio) random images; a drawn label may equal the true one.

    Args:
        labels: (P,) int64.
        ratio: noise ratio nr in [0, 1).
    Returns:
        (P,) int64, a new tensor.
    Raises:
        ValueError: the ratio is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"a noise ratio is in [0, 1), got {ratio}")
    noisy = labels.clone()
    rows = torch.randperm(len(labels), generator=generator)[: int(len(labels) * ratio)]
    noisy[rows] = torch.randint(classes, (len(rows),), generator=generator)
    return noisy


def minority_of(labels: Tensor, classes: int) -> list[int]:
    """The classes with fewer than half as many images as a class has on average; `labels` (N,) int64."""
    count = torch.bincount(labels, minlength=classes)
    return (2 * classes * count < len(labels)).nonzero().flatten().tolist()
