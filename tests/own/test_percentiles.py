"""How similar chosen images are to their matches among all pairs: against a plain computation over all pairs."""

import pytest
import torch
import torch.nn.functional as F

from alfk.data.split import Split
from alfk.method.acquisition import acquire, get_method
from alfk.method.descriptors import Descriptors, standardise
from alfk.method.inputs import Measurement
from alfk.method.registry import Situation
from alfk.method.selection import Selection
from alfk.networks.outputs import Outputs
from alfk.own.percentiles import percentiles
from alfk.own.queries import query
from tests.helpers import normal, random_problem, seeded

METHODS = ("Rz", "Rzg_fl", "flqmi", "flqmi_z")


def situation(count, validation_count, classes=4, n=9):
    """Random descriptors and outputs; of every four pool images one is labelled."""
    labels = torch.arange(validation_count) * 7 % classes
    sides = {}
    for seed, (side, images) in enumerate((("pool", count), ("validation", validation_count))):
        z, logits = normal(seed, images, 12), normal(seed + 2, images, classes)
        predictions = logits.argmax(1)
        sides[side] = Descriptors(standardise([z]), predictions, predictions)
        sides[f"{side}_outputs"] = Outputs(z, logits)
    return Situation(torch.arange(count) % 4 > 0, n, seeded(7), Measurement(**sides), labels)


def all_pairs(key, given):
    """(N, V) similarities of all pool and validation images, each by its definition."""
    measured = given.measurement
    if key in ("Rz", "Rzg_fl"):
        return F.normalize(measured.pool.vectors.double()) @ F.normalize(measured.validation.vectors.double()).T
    rows = []
    for side, labels in (("pool", measured.pool_outputs.logits.argmax(1)), ("validation", given.validation_labels)):
        outputs = getattr(measured, f"{side}_outputs")
        gradient = outputs.logits.double().softmax(1) - F.one_hot(labels, outputs.logits.shape[1])
        extended = torch.cat([torch.ones(len(labels), 1), outputs.features], 1).double()
        whole = torch.einsum("ic,id->icd", gradient, extended).flatten(1)  # the gradient by weights and bias
        rows.append(F.normalize(whole if key == "flqmi" else outputs.features.double()))
    return rows[0] @ rows[1].T


def by_hand(key, given, found):
    similarities = all_pairs(key, given)
    wrong = given.measurement.validation.predictions != given.validation_labels
    every = similarities[given.available][:, wrong]
    return [100 * float((every < s).double().mean()) for s in similarities[found.indices, found.matches] - 1e-5]


@pytest.mark.parametrize("key", METHODS)
def test_few_images_against_all_pairs(key):
    given = situation(60, 40)
    found = acquire(get_method(key), given)
    assert percentiles(key, found, given).tolist() == pytest.approx(by_hand(key, given, found), abs=0.06)  # rounding


@pytest.mark.parametrize("key", METHODS)
def test_a_sample_of_many_images_is_close_to_all_pairs(key):
    given = situation(6000, 1500, n=40)
    indices, matches = torch.arange(1, 6000, 100), torch.arange(0, 1500, 25)
    similarity = all_pairs(key, given)[indices, matches].float()
    chosen = Selection(indices, similarity=similarity, matches=matches, stands_for=matches if key == "Rzg_fl" else None)
    state = given.generator.get_state()
    found = percentiles(key, chosen, given)
    assert found.min() < 20
    assert found.max() > 80
    assert found.tolist() == pytest.approx(by_hand(key, given, chosen), abs=2)
    assert torch.equal(given.generator.get_state(), state)


def test_of_images_that_are_all_equal_none_is_closer():
    given = situation(60, 40)
    same = given.measurement.pool.vectors[:1]
    given.measurement.pool.vectors = same.expand(60, -1)
    given.measurement.validation.vectors = same.expand(40, -1)
    found = acquire(get_method("Rz"), given)
    assert found.similarity.tolist() == pytest.approx([1] * 9)
    assert percentiles("Rz", found, given).tolist() == [0] * 9


def test_a_query_without_matches_has_none():
    model, pool, validation = random_problem()
    assert query("Rz", model, pool, validation, 9).percentile.shape == (9,)
    assert query("random", model, pool, validation, 9).percentile is None
    assert query("flqmi_rare", model, pool, validation, 9, rare_classes=[1]).percentile is None
    predictions = model.eval()(next(validation.batches(30))[0])[0].argmax(1)
    right = Split(validation.images, predictions.numpy(), validation.mean, validation.std)
    found = query("Rz", model, pool, right, 9)
    assert found.at_random == 9
    assert found.percentile is None
    assert "percentile" not in found.rows()[0]
