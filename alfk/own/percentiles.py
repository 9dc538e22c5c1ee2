"""How close a chosen image and its match are, among all pairs of a pool image and a misclassified validation image.

The similarity alone does not tell: where all images are alike, 0.97 is little.
"""

import torch
from torch import Tensor

from alfk.method.acquisition import as_tensor
from alfk.method.descriptors import pairwise_similarity
from alfk.method.matching import load_rows
from alfk.method.registry import Situation
from alfk.method.selection import Selection
from alfk.rivals.facility_location import Factors, Kernel
from alfk.rivals.gradients import gradients

OF_OUTPUTS = {"flqmi": True, "flqmi_z": False}  # methods that compare outputs: whether by gradients
POOL_IMAGES, ERRORS = 1000, 300  # so many of each are compared at most
ROUNDING = 1e-5  # similarities that differ by less are taken as equal


def percentiles(key: str, selection: Selection, situation: Situation) -> Tensor | None:
    """The share, in percent, of pairs that are less similar than each chosen image and its match.

    The pairs are those of the pool images that could be chosen and the misclassified validation images; of many, evenly
    spaced ones are compared, so that nothing is drawn at random and all processes of a group compute the same.

    Args:
        key: of the method that chose.
        situation: in which it chose; its measurement has all rows in memory.
    Returns:
        (n,) float64, on the CPU; None for a selection without matches.
    """
    measurement, labels = situation.measurement, situation.validation_labels
    if selection.matches is None or selection.similarity is None:
        return None
    if key in OF_OUTPUTS:
        predictions = measurement.validation_outputs.logits.argmax(1).cpu()
    elif measurement.validation is not None:
        predictions = as_tensor(measurement.validation.predictions)
    else:  # another program's method, with a similarity of its own
        return None
    rows = evenly_spaced(situation.available.nonzero().flatten().cpu(), POOL_IMAGES)
    errors = evenly_spaced((predictions != labels.cpu()).nonzero().flatten(), ERRORS)
    if key in OF_OUTPUTS:
        values = _of_outputs(situation, rows, errors, by_gradients=OF_OUTPUTS[key])
    else:
        values = _of_descriptors(situation, rows, errors, cosine=selection.stands_for is not None)
    values = values.flatten().cpu().sort().values
    return 100 * torch.searchsorted(values, selection.similarity - ROUNDING).double() / len(values)


def evenly_spaced(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows (k,), evenly spaced."""
    count = min(len(rows), most)
    return rows[torch.arange(count) * len(rows) // max(count, 1)]


def _of_descriptors(situation: Situation, rows: Tensor, errors: Tensor, cosine: bool) -> Tensor:
    """(r, e) similarities from -1 to 1: R divided by its largest possible value, or the cosine."""
    device = situation.validation_labels.device
    pool = load_rows(situation.measurement.pool.vectors, rows, device)
    validation = load_rows(situation.measurement.validation.vectors, errors, device)
    if cosine:
        return _cosines(Factors(pool), Factors(validation))
    return pairwise_similarity(pool, validation) / validation.square().sum(1).max()


def _of_outputs(situation: Situation, rows: Tensor, errors: Tensor, by_gradients: bool) -> Tensor:
    """(r, e) cosines of last-layer gradients, or of the last layer's inputs."""
    pool, validation = situation.measurement.pool_outputs, situation.measurement.validation_outputs
    of_pool = of_validation = None
    if by_gradients:
        of_pool = gradients(pool.logits[rows])
        of_validation = gradients(validation.logits[errors], situation.validation_labels.cpu()[errors])
    return _cosines(Factors(pool.features[rows], of_pool), Factors(validation.features[errors], of_validation))


def _cosines(pool: Factors, validation: Factors) -> Tensor:
    blocks = Kernel(pool, validation)(torch.arange(len(pool)))
    return 2 * torch.cat([similarities for _, similarities in blocks], 1) - 1
