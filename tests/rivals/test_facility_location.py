"""Facility location: against the definition with the whole matrix of similarities, and the methods that use it."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.rivals import facility_location as module
from alfk.rivals.facility_location import Factors, Kernel, facility_location, lazy_greedy

SEEDS = st.integers(0, 10**6)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=seeded(seed))


def some(seed, rows, share=0.8):
    """Available images, at least one."""
    return (torch.rand(rows, generator=seeded(seed)) < share).index_fill_(0, torch.tensor([seed % rows]), True)


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
    bounds = weights.sum().double().expand(rows).masked_fill(~available, -torch.inf)
    small = {name: data.draw(st.integers(1, rows + 2)) for name in ("SHORTLIST", "RENEWED")}
    with mock.patch.multiple(module, **small):
        found = lazy_greedy(s.__getitem__, bounds, weights, n, eta, renew)
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
    small = {name: data.draw(st.integers(1, rows + 2)) for name in ("SHORTLIST", "BLOCK")}
    with mock.patch.multiple(module, **small):
        kernel = Kernel(pool, query)
        assert torch.allclose(kernel(torch.arange(rows)).double(), s, rtol=0, atol=1e-6)
        assert torch.allclose(kernel.sums(torch.ones(queries)), s.sum(1), rtol=0, atol=1e-5)
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
    assert Kernel(pool, query)(torch.arange(2)).tolist() == [[0.5], [0.5]]
