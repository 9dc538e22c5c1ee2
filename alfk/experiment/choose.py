"""Stages 2 and 3 of an AL iteration: choose the next n pool images and label them (paper, Algorithm 1)."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alfk.data.split import Split
from alfk.experiment.describe import read_databases
from alfk.experiment.journal import Acquired
from alfk.experiment.round import Round
from alfk.method import acquisition
from alfk.method.registry import Situation
from alfk.method.selection import Selection

# The facts of an acquisition without a measurement.
NOTHING_MEASURED = {
    "pseudo_labels": None,
    "forward": 0,
    "backward": 0,
    "seconds_describe": 0.0,
    "seconds_acquire": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The images that an iteration is trained on.

    Attributes:
        data: the labelled images, with labels.
        newest: (m,) int64, labels of the images of this iteration's query.
        acquired: None if the whole pool or validation set is trained on.
    """

    data: Split
    newest: Tensor
    acquired: Acquired | None = None


def choose(current: Round) -> Acquired:
    """The n images that the iteration's method chooses, from the databases that `describe` wrote.

    Raises:
        UserError: a missing or damaged file, or too few unlabelled images.
    """
    situation = situation_of(current)
    situation.measurement, header = read_databases(current)
    facts = {key: header[key] for key in ("pseudo_labels", "forward", "backward") if header}
    facts |= {"seconds_describe": header["seconds"]} if header else {}
    current.report("stage", trial=current.trial, b=current.b, doing="choosing")
    start = time.perf_counter()
    selection = acquisition.acquire(current.method, situation)
    return acquired_of(current, selection, {**facts, "seconds_acquire": time.perf_counter() - start})


def situation_of(current: Round) -> Situation:
    """The iteration's situation without its measurement; the pool's labels simulate the annotator."""
    pool, available = current.pool, torch.ones(len(current.pool), dtype=torch.bool)
    available[current.queried_before()] = False
    return Situation(
        available,
        current.experiment.query_size,
        current.generator("acquire"),
        validation_labels=current.validation.labels,
        annotate=lambda positions: pool.labels[positions.to(pool.device)],
        rare_classes=current.minority,
        classes=current.experiment.classes,
    )


def acquired_of(current: Round, selection: Selection, facts: Mapping[str, Any]) -> Acquired:
    """What an iteration acquires by a selection.

    Args:
        facts: entries in place of those of NOTHING_MEASURED.
    """
    queried = torch.cat([current.queried_before(), selection.indices])
    return Acquired(selection, queried, {**NOTHING_MEASURED, **facts})


def label(current: Round, acquired: Acquired) -> Labelled:
    """The images of all queries so far with the pool's own labels, which simulate the annotator."""
    data = current.pool.subset(acquired.queried)
    return Labelled(data, data.labels[-current.experiment.query_size :], acquired)
