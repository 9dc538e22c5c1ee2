"""Labels from the annotator, for methods that choose by labels of pool images."""

from collections.abc import Callable

import torch
from torch import Tensor

from alfk.method.registry import Situation
from alfk.support.errors import UserError


def annotator(situation: Situation, classes: int) -> Callable[[Tensor], Tensor]:
    """Positions (k,) of pool images -> their labels (k,) int64, on the CPU.

    When called, it raises UserError for a label that is not below `classes`, the number of the network's outputs.
    """

    def labels_of(positions: Tensor) -> Tensor:
        labels = situation.annotate(positions).cpu()
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise UserError(f"annotate gave the label {int(wrong[0])}, but the classes are 0 to {classes - 1}")
        return labels

    return labels_of


def known_labels(situation: Situation, classes: int) -> Tensor:
    """(k,) int64, the labels of all labelled images in the order of their positions, in one call of the annotator.

    Without labelled images it is not called. Raises UserError, see `annotator`.
    """
    labelled = (~situation.available).cpu().nonzero().flatten()
    return annotator(situation, classes)(labelled) if len(labelled) else torch.empty(0, dtype=torch.int64)
