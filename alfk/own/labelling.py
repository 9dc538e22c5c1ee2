"""AL iterations whose labels people enter into a CSV file: stages for a pool without labels.

The file is the only state besides the run's: it is read again at every step, and an iteration is trained once each
image of its query has a label or is skipped.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alfk.experiment.choose import acquire
from alfk.experiment.describe import describe
from alfk.experiment.loop import Stages, warn_at_chance
from alfk.experiment.records import Record
from alfk.experiment.round import Round
from alfk.experiment.train import train_and_record
from alfk.own.annotations import Annotations
from alfk.support.errors import UserError
from alfk.support.files import has_array, open_array, save_array

MEANING = "rows of: position in the pool, number of its class in the order of the classes' names"


@dataclasses.dataclass
class LabelsMissing(Exception):
    """An AL iteration waits for people.

    Attributes:
        current: the iteration.
        missing: (k,) int64, positions in the pool of the images without a label, of its query and of earlier ones.
    """

    current: Round
    missing: torch.Tensor


def annotated(read: Callable[[], Annotations]) -> Stages:
    """The stages of the loop for labels that `read` reads.

    Raises, in the loop:
        LabelsMissing: images of a query have no label yet.
        UserError: no image is labelled.
    """

    def choose(current: Round) -> None:
        settled = read().settled
        if has_array(current.index_list):  # its query was lost, and some of its images may be labelled by now
            settled = settled[~torch.isin(settled, current.labelled()[0][-current.experiment.query_size :])]
        acquire(current, unavailable=settled)

    def retrain(current: Round) -> Record:
        queried, header = current.labelled()
        if not has_array(current.labels):
            keep_labels(current, read(), queried)
        positions, labels = kept_labels(current)
        data = current.pool.subset(positions, labels)
        newest = torch.isin(positions, queried[-current.experiment.query_size :])
        return train_and_record(current, data, data.labels[newest.to(data.labels.device)], header)

    return Stages(describe, choose, retrain)


def keep_labels(current: Round, annotations: Annotations, queried: Tensor) -> None:
    """Write the labels that an iteration is trained on, so that it can be repeated when more of them are known.

    Args:
        queried: positions in the pool of the images of all queries so far.
    Raises:
        LabelsMissing: of these images, also of earlier iterations.
        UserError: all were skipped.
    """
    missing = annotations.missing(queried)
    if len(missing):
        if current.b:
            warn_at_chance(current, current.previous.finished())
        raise LabelsMissing(current, missing)
    if not len(annotations.positions):
        raise UserError("every image so far was skipped: there is nothing to train on; label at least one")
    warn_of_corrections(current, annotations)
    table = torch.stack([annotations.positions, annotations.labels], 1).numpy()
    save_array(current.labels, table, {"kind": "labels", **current.identity(), "meaning": MEANING})


def kept_labels(current: Round) -> tuple[Tensor, Tensor]:
    """Positions in the pool and labels (k,) that an iteration is trained on. Raises UserError."""
    array, _ = open_array(current.labels, {"kind": "labels", **current.identity()})
    return torch.from_numpy(np.array(array)).unbind(1)


def warn_of_corrections(current: Round, annotations: Annotations) -> None:
    """Report a warning if labels are other ones now than those that the previous iteration was trained on."""
    if not current.b or not has_array(current.previous.labels):
        return
    before = torch.full((len(current.pool),), -1)
    positions, labels = kept_labels(current.previous)
    before[positions] = labels
    known = before[annotations.positions]
    changed = int(((known >= 0) & (known != annotations.labels)).sum())
    if changed:
        text = f"labels that were changed since b={current.previous.b} was trained: {changed}; they count from "
        current.report("warning", text=f"{text}b={current.b} on (to begin anew, delete the run's folder)")
