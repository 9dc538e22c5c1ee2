"""Labels S for the Fisher scores of images whose label is unknown (paper, Section 4.4).

A rule takes a Probe, one batch after its forward pass, and returns a label for each image.
"""

import torch
from torch import Tensor

from alfk.descriptors import Descriptors, LabelRule, Probe
from alfk.matching import load_rows, top_matches


def given(labels: Tensor) -> LabelRule:
    """S = y: the labels (N,) themselves, the oracle of the ablation on the pool."""
    return lambda probe: labels[probe.positions]


def predicted(probe: Probe) -> Tensor:
    """S = y^: the model's arg max."""
    return probe.predictions


def nearest_by_feature(validation: Descriptors, labels: Tensor) -> LabelRule:
    """S = p^(y, z): the true label of the validation image most similar by R_z.

    Args:
        validation: descriptors of the whole validation set, z first in every row.
        labels: (V,) its true labels.
    """
    return lambda probe: _label_of_nearest(probe.z, validation, labels)


def nearest_by_feature_and_score(validation: Descriptors, labels: Tensor) -> LabelRule:
    """S = p^_{z,g}(y, z): the same by R_{z,g}, both sides' g taken for the arg max labels.

    Args:
        validation: [z, g] descriptors of the whole validation set, its g for the predicted labels.
        labels: (V,) its true labels.
    """

    def rule(probe: Probe) -> Tensor:
        rows = torch.cat([probe.z, probe.g(probe.predictions, last=False)], dim=1)
        return _label_of_nearest(rows, validation, labels)

    return rule


def _label_of_nearest(rows: Tensor, validation: Descriptors, labels: Tensor) -> Tensor:
    width = rows.shape[1]
    database = load_rows(validation.vectors, slice(None), rows.device)[:, :width]
    _, index = top_matches(rows, database, 1)
    return labels.to(rows.device)[index[:, 0]]
