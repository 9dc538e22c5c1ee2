"""Uncertainty of one deterministic softmax: margin, least confidence and entropy of the logits.

Larger scores are chosen earlier, one image independently of the others. The probabilities are float64: in float32 the
margins of a trained network tie at 1. Sources: Scheffer et al. 2001, Lewis and Gale 1994, Settles 2009.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alfk.method.matching import Rows

BLOCK = 2**22  # probabilities computed at a time: 32 MiB


def margin(logits: Rows) -> Tensor:
    """The smallest lead of the first class over the second, -(p_(1) - p_(2)). (N, C) -> (N,) float64, -1 to 0."""

    def score(p: Tensor) -> Tensor:
        first, second = p.topk(2, dim=1).values.T
        return second - first

    return _by_blocks(score, logits)


def least_confidence(logits: Rows) -> Tensor:
    """The smallest probability of the first class, -p_(1). (N, C) -> (N,) float64, -1 to -1/C."""
    return _by_blocks(lambda p: -p.amax(1), logits)


def entropy(logits: Rows) -> Tensor:
    """The largest entropy, -sum p log p, in nats; 0 log 0 = 0. (N, C) -> (N,) float64, 0 to log C."""
    return _by_blocks(lambda p: torch.special.entr(p).sum(1), logits)


def _by_blocks(score: Callable[[Tensor], Tensor], logits: Rows) -> Tensor:
    """`score` of the probabilities (B, C) float64, B rows of (N, C) logits at a time, on the logits' device."""
    images, classes = logits.shape
    rows = max(1, BLOCK // classes)
    parts = (logits[start : start + rows] for start in range(0, images, rows))
    parts = (torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part for part in parts)
    scores = [score(part.double().softmax(1)) for part in parts]
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)
