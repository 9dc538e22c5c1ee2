"""Core-set, BADGE and FLQMI: against what their authors' code chose; core-set and BADGE against plain loops.

tests/parity/rivals_cover.npz is a part of a recording of the authors' code (badge, deepALplus, DISTIL with submodlib)
on scikit-learn's digits and a network 64-32-10 that was trained on 40 of them, made by:

    names = ("z_", "logits_", "y_val", "labelled", "unlabelled", "query_", "coreset_", "badge_", "flqmi_")
    arrays = {k: v for k, v in np.load("rivals.npz").items() if k.startswith(names)}
    small = {k: v.astype(np.int16) if v.dtype == np.int64 else v for k, v in arrays.items()}
    np.savez_compressed("rivals_cover.npz", **small)

    z_*, logits_*              float32 features (N, 32) and logits of 751 pool and 400 validation images
    labelled, unlabelled       positions in the pool
    query_wrong, query_rare    validation images that are misclassified, or of the classes that are rare in the pool
    *_chosen*, flqmi_<queries>_<kernel>_<algorithm>    60 positions in the pool in the order of choice
"""

from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from alfk.method import matching
from alfk.method.matching import k_centre, smallest
from alfk.rivals import badge as badge_module
from alfk.rivals.badge import OuterProducts, badge
from alfk.rivals.coreset import coreset
from alfk.rivals.facility_location import Factors, Kernel, facility_location
from alfk.rivals.gradients import gradients, squared_norms
from tests.helpers import ROOT, normal, seeded, some

SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def recorded():
    with np.load(ROOT / "tests" / "parity" / "rivals_cover.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return {name: x.long() if x.dtype == torch.int16 else x for name, x in arrays.items()}


@pytest.fixture(scope="module")
def available(recorded):
    return torch.zeros(len(recorded["z_pool"]), dtype=torch.bool).index_fill_(0, recorded["unlabelled"], True)


@pytest.fixture(scope="module")
def factors(recorded):
    """kernel -> factors of the pool, and of the validation images."""
    z, z_val = recorded["z_pool"], recorded["z_val"]
    a, a_val = gradients(recorded["logits_pool"]), gradients(recorded["logits_val"], recorded["y_val"])
    return {"gradients": (Factors(z, a), Factors(z_val, a_val)), "features": (Factors(z), Factors(z_val))}


def at(factors, rows):
    return factors.at(rows, torch.device("cpu"))


def whole(seed, largest, *shape):
    """Whole numbers, of which many are equal."""
    return torch.randint(-largest, largest + 1, shape, generator=seeded(seed)).float()


# What the authors' code chose


def test_core_set_of_the_authors(recorded, available):
    indices, radii = coreset(recorded["z_pool"], available, 60)
    assert indices.tolist() == recorded["coreset_chosen"].tolist()
    assert indices.sort().values.tolist() == recorded["coreset_set_deepalplus"].tolist()
    assert torch.allclose(radii, recorded["coreset_radius"], rtol=1e-5, atol=0)


def test_core_set_of_the_authors_without_labelled_images(recorded):
    rows, chosen = recorded["unlabelled"], recorded["coreset_chosen_from_nothing"]
    indices, radii = coreset(recorded["z_pool"][rows], torch.ones(len(rows), dtype=torch.bool), 60, first=0)
    assert rows[indices].tolist() == chosen.tolist()
    assert torch.isinf(radii).tolist() == [True] + [False] * 59


@pytest.mark.parametrize("seed", [0, 1])
def test_badge_of_the_authors(recorded, available, factors, seed):
    pool, chosen = factors["gradients"][0], recorded[f"badge_chosen_seed{seed}"]
    uniforms = recorded[f"badge_uniforms_seed{seed}"].tolist()
    found = badge(pool.gradients, pool.features, available, 60, None, 1, uniforms)
    assert (found.indices.tolist(), found.at_random) == (chosen.tolist(), 0)
    if seed == 0:
        assert chosen.tolist() == recorded["badge_chosen_explicit_seed0"].tolist()
    squares = torch.full((len(available),), torch.inf, dtype=torch.float64)
    OuterProducts(pool.gradients, pool.features).lower(squares, chosen[:59])
    distances = squares.sqrt()[recorded["unlabelled"]]
    assert torch.allclose(distances, recorded[f"badge_distance_seed{seed}"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kernel", ["gradients", "features"])
@pytest.mark.parametrize("queries", ["wrong", "rare"])
def test_flqmi_of_the_authors(recorded, available, factors, queries, kernel):
    pool, validation = factors[kernel]
    indices = facility_location(pool, at(validation, recorded[f"query_{queries}"]), available, 60).indices
    for algorithm in ("NaiveGreedy", "LazyGreedy"):
        assert indices.tolist() == recorded[f"flqmi_{queries}_{kernel}_{algorithm}"].tolist()


@pytest.mark.parametrize(("eta", "exact"), [("1", 60), ("0.1", 60), ("0", 27)])
def test_flqmi_of_the_authors_for_each_eta(recorded, available, factors, eta, exact):
    """For eta=0 all is covered after 27 images, and the authors' order is that of a hash table."""
    pool, validation = factors["gradients"]
    found = facility_location(pool, at(validation, recorded["query_wrong"]), available, 60, float(eta))
    assert found.indices[:exact].tolist() == recorded[f"flqmi_eta{eta}_chosen"][:exact].tolist()
    assert torch.allclose(found.gains, recorded[f"flqmi_eta{eta}_gains"].double(), rtol=0, atol=5e-6)


def test_similarities_of_the_authors(recorded, factors):
    pool, validation = factors["gradients"]
    kernel, expected = Kernel(pool, at(validation, recorded["query_wrong"])), recorded["flqmi_kernel_rows0_20"]
    ((_, found),) = kernel(recorded["unlabelled"][:20])
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


# Gradients by the logits


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(2, 8), st.integers(1, 40), SEEDS)
def test_gradients_are_those_of_the_cross_entropy(rows, classes, tile, seed):
    logits = 5 * normal(seed, rows, classes).double()
    labels = torch.randint(classes, (rows,), generator=seeded(seed))
    for label, given_labels in ((labels, labels), (logits.argmax(1), None)):
        x = logits.clone().requires_grad_()
        F.cross_entropy(x, label, reduction="sum").backward()
        with mock.patch("alfk.rivals.gradients.TILE", tile):
            assert torch.allclose(gradients(logits, given_labels), x.grad.float(), atol=1e-7)
            assert torch.allclose(squared_norms(x.grad), x.grad.square().sum(1))


def test_gradients_keep_their_digits_where_the_network_is_sure():
    a = gradients(torch.tensor([[12.0, 0.0], [0.0, 30.0]]))
    p = torch.tensor([np.exp(-12) / (1 + np.exp(-12)), np.exp(-30) / (1 + np.exp(-30))], dtype=torch.float64)
    assert torch.allclose(a.double(), torch.stack([torch.stack([-p[0], p[0]]), torch.stack([p[1], -p[1]])]), rtol=1e-3)


# Core-set


def plain_coreset(x, available, n):
    """All distances computed again in every step; whole numbers, so that they are exact."""
    centres, chosen = (~available).nonzero().flatten().tolist(), []
    for _ in range(n):
        squares = (x[:, None] - x[centres + chosen]).square().sum(2).amin(1)
        squares[~available] = -1
        squares[chosen] = -1
        chosen.append(int(squares.argmax()))
    return chosen


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(2, 40), st.integers(1, 4), SEEDS)
def test_core_set_is_greedy_and_takes_the_lowest_of_equal_images(data, rows, width, seed):
    x, available = whole(seed, 3, rows, width), some(seed, rows)
    available[(seed + 1) % rows] = False
    n = data.draw(st.integers(1, int(available.sum())))
    small = {name: data.draw(st.integers(1, rows + 2)) for name in ("SHORTLIST", "HEIGHT", "TILE")}
    with mock.patch.multiple(matching, **small), mock.patch("alfk.rivals.gradients.TILE", small["TILE"]):
        indices, radii = coreset(x, available, n)
    assert indices.tolist() == plain_coreset(x, available, n)
    centres = x[~available]
    for place, radius in zip(indices.tolist(), radii.tolist(), strict=True):
        assert radius == pytest.approx(float((centres - x[place]).norm(dim=1).min()), abs=1e-6)
        centres = torch.cat([centres, x[place][None]])
    assert (radii.diff() <= 1e-6).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 40), st.integers(-20, 20), st.floats(-1000, 1000, width=16), SEEDS)
def test_core_set_does_not_depend_on_scale_and_origin(rows, exponent, origin, seed):
    x, available = normal(seed, rows, 4), torch.arange(rows) > 0
    indices, radii = coreset(x, available, rows // 2)
    scaled, larger = coreset(x * 2.0**exponent, available, rows // 2)
    assert scaled.tolist() == indices.tolist()
    assert torch.allclose(larger, radii * 2.0**exponent, rtol=1e-6)
    moved = ((x * 256).round() / 256 + origin).double()  # exact in float32
    nearby, _ = coreset(moved.float(), available, rows // 2)
    still, _ = coreset((moved - origin).float(), available, rows // 2)
    assert nearby.tolist() == still.tolist()


def test_core_set_starts_at_random_without_labelled_images():
    x, everything = normal(0, 30, 3), torch.ones(30, dtype=torch.bool)
    indices, radii = coreset(x, everything, 30, generator=seeded(4))
    assert int(indices[0]) == int(torch.randint(30, (1,), generator=seeded(4)))
    assert indices.tolist() == coreset(x, everything, 30, generator=seeded(4))[0].tolist()
    assert indices.tolist() == coreset(x, everything, 30, first=int(indices[0]))[0].tolist()
    assert sorted(indices.tolist()) == list(range(30))
    assert radii[0] == torch.inf


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 35))
def test_smallest_values_at_the_lowest_positions(values, count):
    expected = torch.tensor(values).argsort(stable=True)[:count].sort().values
    assert smallest(torch.tensor(values), count).tolist() == expected.tolist()


def test_k_centre_takes_the_lowest_of_more_equal_rows_than_its_shortlist_holds():
    x = torch.cat([torch.eye(3)[:1], -torch.eye(3)[:1].expand(3000, 3), torch.eye(3)])
    assert k_centre(x, 2, 0).tolist() == [0, 1]


# BADGE


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(2, 30), SEEDS)
def test_badge_in_sequential_form_is_seeding_of_k_means(data, rows, seed):
    a, z, available = normal(seed, rows, 3), normal(seed + 1, rows, 4), some(seed, rows)
    n = data.draw(st.integers(1, int(available.sum())))
    uniforms = torch.rand(n - 1, generator=seeded(seed), dtype=torch.float64).tolist()
    g = (a[:, :, None] * z[:, None]).flatten(1).double()
    expected = [int(g.norm(dim=1).masked_fill(~available, -1).argmax())]
    for u in uniforms:
        squares = torch.cdist(g, g[expected], compute_mode="donot_use_mm_for_euclid_dist").amin(1).square()
        sums = squares.masked_fill(~available, 0).cumsum(0)
        expected.append(int((sums < u * sums[-1]).sum()))
    found = badge(a, z, available, n, None, 1, uniforms)
    assert (found.indices.tolist(), found.at_random) == (expected, 0)


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 30), SEEDS)
def test_badge_draws_no_gradient_twice(data, rows, seed):
    """Equal rows, rows of zeros, and (t a, z / t), which has the same gradient as (a, z)."""
    a, z, available = whole(seed, 1, rows, 2), whole(seed + 1, 1, rows, 2) + 0.3, some(seed, rows)
    powers = torch.randint(-2, 3, (rows, 1), generator=seeded(seed)).exp2()
    n, refresh = data.draw(st.integers(1, int(available.sum()))), data.draw(st.integers(1, 8))
    with mock.patch.object(badge_module, "PATIENCE", data.draw(st.integers(0, 5))):
        found = badge(a * powers, z / powers, available, n, seeded(seed), refresh)
    assert available[found.indices].all()
    assert len(found.indices.unique()) == len(found.indices) == n
    g = (a[:, :, None] * z[:, None]).flatten(1)
    drawn = g[found.indices[: n - found.at_random]]
    assert len(drawn.unique(dim=0)) == len(drawn)
    distinct = len(g[available].unique(dim=0)) - int((g[available].unique(dim=0) == 0).all(1).sum())
    assert len(drawn) in (min(n, distinct), min(n, distinct + 1))


def law(squares, first, n):
    """Probability of every order of n choices, by definition; squares (N, N) are the squared distances."""
    found = {(first,): 1.0}
    for _ in range(n - 1):
        longer = {}
        for chosen, probability in found.items():
            weights = squares[list(chosen)].min(0)
            longer |= {(*chosen, i): probability * w / weights.sum() for i, w in enumerate(weights) if w > 0}
        found = longer
    return found


@pytest.mark.parametrize(("refresh", "patience"), [(1024, 16), (2, 0)])
def test_draws_by_old_distances_have_the_law_of_k_means(refresh, patience):
    a, z = torch.tensor([[3.0], [4.0], [1.0], [-0.5], [-1.0]]), torch.tensor([[1.0], [1.0], [1.5], [-1.0], [2.0]])
    g, everything, source = (a * z).double().numpy(), torch.ones(5, dtype=torch.bool), seeded(11)
    expected, runs = law((g - g.T) ** 2, 1, 3), 600
    with mock.patch.object(badge_module, "PATIENCE", patience):
        found = Counter(tuple(badge(a, z, everything, 3, source, refresh).indices.tolist()) for _ in range(runs))
    assert set(found) <= set(expected)
    orders = sorted(expected, key=expected.get)
    rare = [order for order in orders if expected[order] * runs < 10]  # as one cell, with the first of the others
    cells = [[*rare, orders[len(rare)]], *([order] for order in orders[len(rare) + 1 :])]
    counts = [sum(found[order] for order in cell) for cell in cells]
    assert chisquare(counts, [sum(expected[order] for order in cell) * runs for cell in cells]).pvalue > 0.01


def test_badge_fills_up_at_random_where_all_gradients_are_chosen():
    z, available = torch.ones(20, 2), torch.arange(20) >= 5
    for a, drawn in ((torch.zeros(20, 3), 1), (torch.eye(3)[torch.arange(20) % 2], 2)):
        found, again = (badge(a, z, available, 8, seeded(3)) for _ in range(2))
        assert found.at_random == 8 - drawn
        assert len(found.indices.unique()) == 8
        assert available[found.indices].all()
        assert found.indices[0] == 5
        assert torch.equal(found.indices, again.indices)


@pytest.mark.parametrize("gap", [48, 85])
def test_badge_draws_no_image_twice_where_the_network_is_sure(gap):
    """Gradients of exp(-gap), whose squares float32 cannot hold; some images beside them are uncertain."""
    logits = normal(1, 60, 4)
    logits[5:, 0] += gap
    for rows in (slice(0, 60), slice(5, 60)):
        a, z = gradients(logits)[rows], normal(2, 60, 6)[rows]
        found = badge(a, z, torch.ones(len(a), dtype=torch.bool), len(a), seeded(0))
        assert sorted(found.indices.tolist()) == list(range(len(a)))
        assert found.at_random == 0


def test_badge_draws_no_image_with_a_distance_of_0_whatever_the_number():
    """u = 0 is below the first sum even where that is 0."""
    a, z = torch.tensor([[1.0], [1.0], [0.5]]), torch.ones(3, 1)
    assert badge(a, z, torch.ones(3, dtype=torch.bool), 2, None, 1, [0.0, 0.5]).indices.tolist() == [0, 2]


def test_too_few_images_or_queries_are_refused():
    z, a, available = normal(0, 6, 3), normal(1, 6, 2), torch.arange(6) < 4
    for n in (0, 5):
        with pytest.raises(ValueError, match="of 4 available"):
            coreset(z, available, n)
        with pytest.raises(ValueError, match="of 4 available"):
            badge(a, z, available, n, seeded(0))
        with pytest.raises(ValueError, match="of 4 available"):
            facility_location(Factors(z), Factors(z), available, n)
    with pytest.raises(ValueError, match="no query"):
        facility_location(Factors(z), Factors(z[:0]), available, 2)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_facility_location_refuses_what_is_not_finite(value):
    """It would look for the largest gain for ever."""
    z, bad = normal(0, 6, 3), normal(0, 6, 3).index_fill(0, torch.tensor([4]), value)
    for pool, queries in ((bad, z), (z, bad)):
        with pytest.raises(ValueError, match="not finite"):
            facility_location(Factors(pool), Factors(queries), torch.ones(6, dtype=torch.bool), 2)
