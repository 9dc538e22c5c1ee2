"""FLQMI: the facility-location mutual information of chosen images and misclassified validation images.

The greedy choice is `alfk.rivals.facility_location`; the methods differ in the similarity, in the weights of the
misclassified images, and in whether these are covered again once they are covered:

    flqmi, flqmi_z      SIMILAR's: cosine of last-layer gradients, or of the last layer's inputs; w = 1, one round
    Rz_fl, Rzg_fl       the paper's R_z or R_{z,g}, divided by the descriptors' norms; w = 1, in rounds
    Rzg_flw             R_{z,g}; w inverse to the number of misclassified images of the same class, of mean 1; in rounds

References: Kothawade, Beck, Killamsetty and Iyer, SIMILAR: submodular information measures based active learning in
realistic scenarios, NeurIPS 2021.
"""

import dataclasses
import functools

import torch
from torch import Tensor

from alfk.method.acquisition import as_tensor, with_classes
from alfk.method.matching import draw, load_rows
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.facility_location import Cover, Factors, facility_location
from alfk.rivals.gradients import gradients
from alfk.support import distributed
from alfk.support.errors import UserError

MOST = 10_000  # queries of the methods of SIMILAR; if there are more, some are drawn
RENEW = 0.1  # coverage below which the misclassified images are covered again, of one image's similarity


def choose_flqmi(situation: Situation, by_gradients: bool = True) -> Selection:
    """Facility location by the misclassified validation images, with similarities of gradients or of features."""
    predictions = situation.measurement.validation_outputs.logits.argmax(1).cpu()
    wrong = (predictions != situation.validation_labels.cpu()).nonzero().flatten()
    if not len(wrong):
        return _at_random(situation)
    used = _some(wrong, situation.generator)
    cover = _cover_outputs(situation, used, by_gradients)
    logits = situation.measurement.pool_outputs.logits
    found = _explained(cover, used, predictions, situation.validation_labels.cpu())
    prediction = logits[cover.indices.to(logits.device)].argmax(1).cpu()
    return dataclasses.replace(found, misclassified=len(wrong), prediction=prediction)


def choose_flqmi_of_rare_classes(situation: Situation) -> Selection:
    """The same with all validation images of the rare classes as queries. Raises UserError if there are none."""
    labels = situation.validation_labels.cpu()
    if not situation.rare_classes:
        raise UserError("flqmi_rare has to know which classes are rare, and of this pool none is known to be")
    rare = torch.isin(labels, torch.tensor(list(situation.rare_classes), dtype=labels.dtype))
    if not rare.any():
        raise UserError("flqmi_rare chooses by validation images of the rare classes, and there is none")
    predictions = situation.measurement.validation_outputs.logits.argmax(1).cpu()
    cover = _cover_outputs(situation, _some(rare.nonzero().flatten(), situation.generator), by_gradients=True)
    return Selection(cover.indices, misclassified=int((predictions != labels).sum()), score=cover.gains)


def choose_by_descriptors(situation: Situation, by_class: bool = False) -> Selection:
    """Facility location by the misclassified validation images, with the paper's similarity, in rounds.

    Args:
        by_class: whether misclassified images are weighted by class.
    """
    measurement, labels = situation.measurement, situation.validation_labels
    validation, pool = measurement.validation, measurement.pool
    predictions = as_tensor(validation.predictions)
    wrong = (predictions != labels.cpu()).nonzero().flatten()
    if not len(wrong):
        return _at_random(situation)
    queries = Factors(load_rows(validation.vectors, wrong, labels.device))
    weights = class_weights(labels.cpu()[wrong]) if by_class else None
    cover = distributed.broadcast_from_main(
        lambda: facility_location(
            Factors(pool.vectors), queries, situation.available, situation.n, weights=weights, renew=RENEW
        )
    )
    return with_classes(_explained(cover, wrong, predictions, labels.cpu()), pool)


def class_weights(labels: Tensor) -> Tensor:
    """(Q,) float32 of mean 1, inverse to the number of images of the same class; labels (Q,) int64."""
    weights = 1 / labels.bincount()[labels].double()
    return (weights / weights.mean()).float()


def _at_random(situation: Situation) -> Selection:
    images = draw(situation.available, situation.n, situation.generator)
    return Selection(images, misclassified=0, at_random=len(images))


def _some(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The rows, or MOST of them that are drawn."""
    if len(rows) <= MOST:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:MOST].sort().values]


def _cover_outputs(situation: Situation, rows: Tensor, by_gradients: bool) -> Cover:
    """Facility location by the validation images `rows`, with the inputs and outputs of the last linear layer."""
    pool, validation = situation.measurement.pool_outputs, situation.measurement.validation_outputs
    rows = rows.to(pool.features.device)
    pool_a = validation_a = None
    if by_gradients:
        labels = situation.validation_labels.to(rows.device)[rows]
        pool_a, validation_a = gradients(pool.logits), gradients(validation.logits[rows], labels)
    queries = Factors(validation.features[rows], validation_a)
    return facility_location(Factors(pool.features, pool_a), queries, situation.available, situation.n)


def _explained(cover: Cover, wrong: Tensor, predictions: Tensor, labels: Tensor) -> Selection:
    """The selection of a cover, with the misclassified validation images that each image was chosen for.

    Args:
        wrong: (Q,) int64, positions of the queries in the validation set.
        predictions, labels: (V,) int64, of the validation set.
    """
    counts = torch.zeros(len(cover.indices), dtype=torch.int64)
    kinds = torch.full((2, len(cover.indices)), -1)
    for place in cover.nearest.unique():
        errors = wrong[cover.nearest == place]
        pairs, of_pair = torch.stack([labels[errors], predictions[errors]]).unique(dim=1, return_counts=True)
        counts[place], kinds[:, place] = len(errors), pairs[:, of_pair.argmax()]
    matches = wrong[cover.gained_for]
    return Selection(
        cover.indices,
        misclassified=len(wrong),
        similarity=(2 * cover.similarity - 1).clamp(-1, 1),
        matches=matches,
        error_prediction=predictions[matches],
        stands_for=counts,
        stands_for_label=kinds[0],
        stands_for_prediction=kinds[1],
        score=cover.gains,
    )


OUTPUTS = frozenset({"outputs", "validation_outputs"})
FEATURES, SCORES = frozenset({"features"}), frozenset({"features", "scores"})

METHODS = (
    Method("flqmi", "FLQMI", choose_flqmi, OUTPUTS),
    Method("flqmi_z", "FLQMI, $z$", functools.partial(choose_flqmi, by_gradients=False), OUTPUTS),
    Method("flqmi_rare", "FLQMI, rare classes", choose_flqmi_of_rare_classes, OUTPUTS | {"rare_classes"}),
    Method("Rz_fl", "$R_z$, facility location", choose_by_descriptors, FEATURES),
    Method("Rzg_fl", "$R_{z,g}$, facility location", choose_by_descriptors, SCORES, False, "pz", "true"),
    Method(
        "Rzg_flw",
        "$R_{z,g}$, facility location by class",
        functools.partial(choose_by_descriptors, by_class=True),
        SCORES,
        False,
        "pz",
        "true",
    ),
)
