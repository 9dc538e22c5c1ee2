"""Facility location: against the definition with the whole matrix of similarities, and the methods that use it."""

import dataclasses
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.method.acquisition import METHODS, acquire
from alfk.method.descriptors import Descriptors
from alfk.method.matching import match
from alfk.method.registry import Measurement, Situation
from alfk.own.queries import Query
from alfk.rivals import facility_location as module
from alfk.rivals.facility_location import Factors, Kernel, facility_location, lazy_greedy, shortened
from tests.helpers import normal, seeded, some

SEEDS = st.integers(0, 10**6)


def naive_greedy(s, available, n, eta, weights, renew):
    """All gains in every step: s (N, Q) float64. Choices, gains, and for each query the most similar choice."""
    best, left, fresh, chosen, gains = torch.zeros(s.shape[1]).double(), available.clone(), True, [], []
    while len(chosen) < n:
        coverage = ((s - best).clamp(min=0) * weights).sum(1)
        if renew is not None and not fresh and coverage[left].max() < renew:
            best, fresh = torch.zeros_like(best), True
            continue
        gain = (coverage + eta * s.amax(1)).masked_fill(~left, -torch.inf)
        chosen.append(int(gain.argmax()))
        gains.append(float(gain.max()))
        left[chosen[-1]], fresh = False, False
        best = best.maximum(s[chosen[-1]])
    return chosen, gains, s[chosen].argmax(0).tolist()


@settings(deadline=None, max_examples=60)
@given(
    st.data(),
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    st.sampled_from([None, 0.125, 0.3, 2.0]),
    st.booleans(),
    SEEDS,
)
def test_lazy_greedy_is_naive_greedy(data, rows, queries, eta, renew, weighted, seed):
    """Similarities are multiples of 1/8, so that many gains are equal: the lowest is taken."""
    s, available = torch.randint(9, (rows, queries), generator=seeded(seed)) / 8, some(seed, rows)
    weights = torch.randint(1, 5, (queries,), generator=seeded(seed)) / 2 if weighted else torch.ones(queries)
    n = data.draw(st.integers(1, int(available.sum())))
    bounds = weights.sum().double().expand(rows)
    small = {name: data.draw(st.integers(1, rows + 2)) for name in ("COMPUTED", "LOWERED")}
    cut = data.draw(st.integers(0, queries))

    more = torch.rand(s.shape, generator=seeded(seed)) / 4
    above = data.draw(st.sampled_from([s, s + more, s - 5e-7]))

    def of(matrix):
        blocks = [columns for columns in (slice(0, cut), slice(cut, queries)) if columns.start < columns.stop]
        return lambda rows: [(columns, matrix[rows, columns].clone()) for columns in blocks]

    with mock.patch.multiple(module, **small):
        found = lazy_greedy(of(s), of(above), bounds, weights, available, n, eta, renew)
    expected = naive_greedy(s.double(), available, n, eta, weights.double(), renew)
    assert (found.indices.tolist(), found.gains.tolist(), found.nearest.tolist()) == expected


def explicit(factors):
    """Unit vectors of the gradients by weights and bias, or of the features."""
    z, a = factors.features.double(), factors.gradients
    if a is None:
        return F.normalize(z)
    with_one = torch.cat([torch.ones_like(z[:, :1]), z], 1)
    return F.normalize((a.double()[:, :, None] * with_one[:, None]).flatten(1))


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 30), st.integers(1, 20), st.booleans(), SEEDS)
def test_flqmi_follows_the_definition(data, rows, queries, of_gradients, seed):
    pool, query = (
        Factors(normal(seed + i, m, 5), normal(seed + 2 + i, m, 3) if of_gradients else None)
        for i, m in enumerate((rows, queries))
    )
    pool.features[seed % rows] = 0  # its cosines are 0, or those of a
    available = some(seed, rows)
    n = data.draw(st.integers(1, int(available.sum())))
    s = (1 + explicit(pool) @ explicit(query).T) / 2
    small = {name: data.draw(st.integers(1, rows + 2)) for name in ("COMPUTED", "LOWERED", "BLOCK")}
    weights = torch.rand(queries, generator=seeded(seed)) * 2
    with mock.patch.multiple(module, **small):
        kernel = Kernel(pool, query)
        found = torch.cat([similarities for _, similarities in kernel(torch.arange(rows))], 1)
        assert torch.allclose(found.double(), s, rtol=0, atol=1e-6)
        assert torch.allclose(kernel.sums(weights), s @ weights.double(), rtol=0, atol=1e-5)
        cover = facility_location(pool, query, available, n)
    chosen, gains = cover.indices, cover.gains
    assert available[chosen].all()
    assert len(chosen.unique()) == n
    assert (gains.diff() <= 0).all()
    best = torch.zeros(queries, dtype=torch.float64)
    left = available.clone()
    for place, gain in zip(chosen.tolist(), gains.tolist(), strict=True):  # greedy up to rounding
        all_gains = (s - best).clamp(min=0).sum(1) + s.amax(1)
        assert gain == pytest.approx(float(all_gains[place]), abs=1e-5)
        assert gain >= float(all_gains[left].max()) - 1e-5
        left[place] = False
        best = best.maximum(s[place])


def test_a_row_of_zeros_has_cosines_of_0():
    pool, query = Factors(torch.zeros(2, 3), torch.zeros(2, 4)), Factors(torch.ones(1, 3), torch.ones(1, 4))
    ((_, found),) = Kernel(pool, query)(torch.arange(2))
    assert found.tolist() == [[0.5], [0.5]]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(3, 30), st.booleans(), SEEDS)
def test_shortened_features_have_larger_cosines(queries, width, duplicates, seed):
    pool, query = normal(seed, 20, width), normal(seed + 1, queries, width)
    if duplicates:
        pool[:queries] = 3 * query
    with mock.patch.object(module, "RANK", max(1, width // 3)):
        short = shortened(Kernel(Factors(pool), Factors(query)))
    assert short.right.shape[1] == max(1, width // 3) + 1
    cosine, larger = (F.normalize(a.double()) @ F.normalize(b.double()).T for a, b in ((pool, query), ends(short)))
    assert (larger >= cosine - 1e-6).all()
    whole = F.normalize(normal(seed, 20, 3) @ normal(seed + 2, 3, width))  # in the span of 3 directions
    with mock.patch.object(module, "RANK", 3):
        short, _ = ends(shortened(Kernel(Factors(whole), Factors(whole))))
    assert torch.allclose(F.normalize(short) @ F.normalize(short).T, whole @ whole.T, atol=1e-3)


def ends(kernel):
    return kernel.pool.features, kernel.queries.features


def test_long_features_are_chosen_by_the_coarse_kernel_as_without():
    """With features that it bounds well, and noise, which it does not; weighted."""
    everything = torch.ones(300, dtype=torch.bool)
    for noise in (0.01, 3.0):
        pool, query = (
            normal(i, m, 4) @ normal(9, 4, 40) + noise * normal(i + 2, m, 40) for i, m in ((0, 300), (1, 90))
        )
        weights = 2 * torch.rand(90, generator=seeded(4))
        with mock.patch.multiple(module, RANK=5, BLOCK=1000):
            found = facility_location(Factors(pool), Factors(query), everything, 30, weights=weights, renew=0.1)
        s = (1 + F.normalize(pool.double()) @ F.normalize(query.double()).T) / 2
        chosen, gains, nearest = naive_greedy(s, everything, 30, 1.0, weights.double(), 0.1)
        assert (found.indices.tolist(), found.nearest.tolist()) == (chosen, nearest)
        assert torch.allclose(found.gains, torch.tensor(gains).double(), rtol=0, atol=1e-4)


def test_directions_of_few_queries_are_computed_in_float64():
    """LAPACK's float32 routine has failed on 9 queries of 1,024 values."""
    factors = Factors(normal(0, 9, 200))
    with mock.patch.object(torch.linalg, "eigh", wraps=torch.linalg.eigh) as eigh:
        facility_location(factors, factors, torch.ones(9, dtype=torch.bool), 3)
    assert eigh.call_args.args[0].dtype == torch.float64


def test_of_duplicates_the_lowest_is_taken():
    """And a duplicate of a chosen image covers nothing: it is for the most similar query."""
    x, queries = normal(0, 50, 70), normal(1, 33, 70)
    order = torch.randperm(200, generator=seeded(2))
    pool = x.repeat(4, 1)[order]
    found = facility_location(Factors(pool), Factors(queries), torch.ones(200, dtype=torch.bool), 60)
    seen = {}
    for place in found.indices.tolist():
        copies = (order % 50 == order[place] % 50).nonzero().flatten().tolist()
        assert place == copies[seen.setdefault(int(order[place] % 50), 0)]
        seen[int(order[place] % 50)] += 1
    assert max(seen.values()) > 1
    s = F.normalize(pool) @ F.normalize(queries).T
    again = [k for k, place in enumerate(found.indices) if (pool[found.indices[:k]] == pool[place]).all(1).any()]
    assert found.gained_for[again].tolist() == s[found.indices[again]].argmax(1).tolist()


# The methods


@pytest.fixture
def situation():
    """Random descriptors of 60 pool images and 40 validation images of 4 classes, about 25 of them misclassified."""
    sides = {
        side: Descriptors(normal(i, count, 6), labels, labels.roll(1))
        for i, (side, count) in enumerate((("pool", 60), ("validation", 40)))
        for labels in [torch.randint(4, (count,), generator=seeded(i))]
    }
    labels = torch.randint(4, (40,), generator=seeded(5))
    return Situation(some(1, 60), 9, seeded(3), Measurement(**sides), labels)


@pytest.mark.parametrize("n", [9, 45])  # 45: in several rounds
@pytest.mark.parametrize("key", ["Rz_fl", "Rzg_fl", "Rzg_flw"])
def test_what_the_methods_choose_and_why(situation, key, n):
    """Against the definition: similarities of descriptors of norm 1, weights by class, rounds below 0.1."""
    validation, pool = situation.measurement.validation, situation.measurement.pool
    truth, predictions = situation.validation_labels, validation.predictions
    wrong = (predictions != truth).nonzero().flatten()
    x, e = F.normalize(pool.vectors.double()), F.normalize(validation.vectors[wrong].double())
    weights = torch.ones(len(wrong)).double()
    if key == "Rzg_flw":
        counts = [int((truth[wrong] == truth[i]).sum()) for i in wrong]
        weights = torch.tensor([1 / count for count in counts]).double()
        weights /= weights.mean()
    s = (1 + x @ e.T) / 2
    chosen, gains, nearest = naive_greedy(s, situation.available, n, 1.0, weights, 0.1)
    acquired = acquire(METHODS[key], dataclasses.replace(situation, n=n))
    found = Query.of(acquired, key, truth, ("ant", "bee", "cat", "dog"))
    assert (n == 9) == (found.score.diff() < 1e-6).all()
    assert found.indices.tolist() == chosen
    assert found.score.tolist() == pytest.approx(gains, abs=1e-4)
    assert (found.misclassified, found.at_random) == (len(wrong), 0)
    assert found.stands_for.tolist() == [nearest.count(k) for k in range(n)]
    best = torch.zeros(len(wrong)).double()
    for k, (image, row) in enumerate(zip(chosen[:9], found.rows(), strict=False)):
        error = int((weights * (s[image] - best).clamp(min=0)).argmax())
        best = best.maximum(s[image])
        assert found.matches[k] == wrong[error]
        assert row["similarity"] == pytest.approx(float(2 * s[image, error] - 1), abs=1e-4)
        assert found.prediction[k] == pool.predictions[image]
        kinds = [(int(truth[wrong[i]]), int(predictions[wrong[i]])) for i in range(len(wrong)) if nearest[i] == k]
        pair = int(found.stands_for_label[k]), int(found.stands_for_prediction[k])
        assert kinds.count(pair) == max(map(kinds.count, kinds), default=0)
        names = [("ant", "bee", "cat", "dog")[c] for c in pair] if kinds else [None, None]
        assert [row["stands_for_label"], row["stands_for_prediction"]] == names
    assert (found.pseudo_label is None) == (not METHODS[key].pool_label) or key == "Rz_fl"


def test_random_centres_are_the_walk_of_drawn_errors(situation):
    validation, pool = situation.measurement.validation, situation.measurement.pool
    wrong = (validation.predictions != situation.validation_labels).nonzero().flatten()
    found = acquire(METHODS["Rzg_rc"], situation)
    drawn = wrong[torch.randperm(len(wrong), generator=seeded(3))[:9].sort().values]
    by_hand = match(validation.vectors[drawn], pool.vectors, situation.available, 9, seeded(0))
    assert found.indices.tolist() == by_hand.indices.tolist()
    assert found.matches.tolist() == drawn[by_hand.matches].tolist()
    assert (found.misclassified, found.centres) == (len(wrong), 9)
