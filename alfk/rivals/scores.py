"""Uncertainty of one deterministic softmax: margin, least confidence and entropy of the logits.

Larger scores are chosen earlier, each image independently of the others, equal ones in random order. The probabilities
are float64: in float32 the margins of a trained network tie at 1.

References: Scheffer, Decomain and Wrobel, Active hidden Markov models for information extraction, IDA 2001 (margin);
Lewis and Gale, A sequential algorithm for training text classifiers, SIGIR 1994 (least confidence); Settles, Active
learning literature survey, University of Wisconsin 2009 (entropy).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alfk.method.matching import Rows
from alfk.method.registry import Method, Situation, take_top
from alfk.method.selection import Selection

BLOCK = 2**22  # probabilities computed at a time: 32 MiB


def margin(logits: Rows) -> Tensor:
    """-(p_(1) - p_(2)): minus the lead of the likeliest class over the second. (N, C) -> (N,) float64, -1 to 0."""

    def score(p: Tensor) -> Tensor:
        first, second = p.topk(2, dim=1).values.T
        return second - first

    return _by_blocks(score, logits)


def least_confidence(logits: Rows) -> Tensor:
    """-p_(1): minus the probability of the likeliest class. (N, C) -> (N,) float64, -1 to -1/C."""
    return _by_blocks(lambda p: -p.amax(1), logits)


def entropy(logits: Rows) -> Tensor:
    """-sum p log p in nats, 0 log 0 = 0. (N, C) -> (N,) float64, 0 to log C."""
    return _by_blocks(lambda p: torch.special.entr(p).sum(1), logits)


def _by_blocks(score: Callable[[Tensor], Tensor], logits: Rows) -> Tensor:
    """`score` of the probabilities (B, C) float64, B rows of (N, C) logits at a time, on the logits' device."""
    images, classes = logits.shape
    rows = max(1, BLOCK // classes)
    parts = (logits[start : start + rows] for start in range(0, images, rows))
    parts = (torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part for part in parts)
    scores = [score(part.double().softmax(1)) for part in parts]
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)


def _method(key: str, notation: str, score: Callable[[Rows], Tensor]) -> Method:
    def choose(situation: Situation) -> Selection:
        return take_top(score(situation.measurement.logits), situation)

    return Method(key, notation, choose, frozenset({"logits"}), random_first=True)


METHODS = (
    _method("margin", "margin", margin),
    _method("leastconf", "least confidence", least_confidence),
    _method("entropy_det", "softmax entropy", entropy),
)
