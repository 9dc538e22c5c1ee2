"""AL iterations whose labels people enter into a CSV file, which is read again at every step.

An iteration is trained once each image of its query has a label or is skipped; until then its query waits.
"""

import dataclasses
from collections.abc import Callable

import torch

from alfk.experiment.choose import Labelled, choose
from alfk.experiment.describe import describe
from alfk.experiment.journal import Acquired
from alfk.experiment.loop import Stages, warn_at_chance
from alfk.experiment.round import Round
from alfk.experiment.train import train
from alfk.own.annotations import Annotations
from alfk.support.errors import UserError


@dataclasses.dataclass
class LabelsMissing(Exception):
    """An AL iteration waits for people.

    Attributes:
        current: the iteration.
        acquired: its query.
        missing: (k,) int64, positions in the pool of the images without a label, of this and of earlier queries.
    """

    current: Round
    acquired: Acquired
    missing: torch.Tensor


def annotated(read: Callable[[], Annotations]) -> Stages:
    """The stages of the loop for labels that `read` reads.

    Raises, in the loop:
        LabelsMissing: images of a query have no label yet.
        UserError: no image is labelled.
    """

    def choose_others(current: Round) -> Acquired:
        return choose(current, unavailable=read().settled)

    def label(current: Round, acquired: Acquired) -> Labelled:
        if acquired.labels is None:  # with labels its training was interrupted, and is repeated with the same ones
            acquired = current.keep(dataclasses.replace(acquired, labels=labels_of(current, acquired, read())))
        positions, labels = acquired.labels.unbind(1)
        data = current.pool.subset(positions, labels)
        newest = torch.isin(positions, acquired.selection.indices)
        return Labelled(data, data.labels[newest.to(data.labels.device)], acquired)

    return Stages(describe, choose_others, label, train)


def labels_of(current: Round, acquired: Acquired, annotations: Annotations) -> torch.Tensor:
    """(m, 2) int64, positions in the pool and classes of all labelled images.

    Raises:
        LabelsMissing: images of this or an earlier query are neither labelled nor skipped.
        UserError: all were skipped.
    """
    missing = annotations.missing(acquired.queried)
    if len(missing):
        if current.b:
            warn_at_chance(current.journal, current.b - 1)
        raise LabelsMissing(current, acquired, missing)
    if not len(annotations.positions):
        raise UserError("every image so far was skipped: there is nothing to train on; label at least one")
    warn_of_corrections(current, annotations)
    return torch.stack([annotations.positions, annotations.labels], 1)


def warn_of_corrections(current: Round, annotations: Annotations) -> None:
    """Report a warning if labels differ from those that the previous iteration was trained on."""
    if not current.b:
        return
    before = torch.full((len(current.pool),), -1)
    positions, labels = current.journal.acquired(current.b - 1).labels.unbind(1)
    before[positions] = labels
    known = before[annotations.positions]
    changed = int(((known >= 0) & (known != annotations.labels)).sum())
    if changed:
        text = f"labels that were changed since b={current.b - 1} was trained: {changed}; they count from "
        current.report("warning", text=f"{text}b={current.b} on (to start again, delete the run's folder)")
