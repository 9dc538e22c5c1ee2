"""AL iterations whose labels people enter into a CSV file: stages for a pool without labels.

The file is the only state besides the run's: it is read again at every step, and an iteration is trained once each
image of its query has a label or is skipped.
"""

import dataclasses
from collections.abc import Callable

import torch

from alfk.annotation import Annotations
from alfk.errors import UserError
from alfk.files import has_array
from alfk.records import Record
from alfk.stages.acquire import acquire
from alfk.stages.describe import describe
from alfk.stages.loop import Stages, warn_at_chance
from alfk.stages.retrain import train_and_record
from alfk.stages.round import Round


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
        annotations = read()
        missing = annotations.missing(queried)  # also labels of earlier iterations that were taken back
        if len(missing):
            if current.b:
                warn_at_chance(current, current.previous.finished())
            raise LabelsMissing(current, missing)
        if not len(annotations.positions):
            raise UserError("every image so far was skipped: there is nothing to train on; label at least one")
        data = current.pool.subset(annotations.positions, annotations.labels)
        newest = torch.isin(annotations.positions, queried[-current.experiment.query_size :])
        return train_and_record(current, data, data.labels[newest.to(data.labels.device)], header)

    return Stages(describe, choose, retrain)
