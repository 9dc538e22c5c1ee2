"""GLISTER and DIRECT: what their authors' code chose, plain loops, and any input.

tests/parity/rivals_more.npz is a part of a recording of the authors' code (DISTIL, LabelBench) on the images and the
network of rivals_cover.npz and rivals_other.npz, which hold its inputs, made by:

    names = ("glister_", "direct_threshold")
    arrays = {k: v.astype(np.int16) for k, v in np.load("rivals.npz").items() if k.startswith(names)}
    np.savez_compressed("rivals_more.npz", **arrays)

    glister_lr*_chosen         20 positions in the pool in the order of choice, for two learning rates
    direct_threshold           (10,) of every class, before an image is drawn
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.networks.outputs import Outputs
from alfk.rivals import direct as direct_module
from alfk.rivals import gradients as gradients_module
from alfk.rivals.direct import around, direct, signs_of, threshold, uncertain
from alfk.rivals.galaxy import sort_by_confidence
from alfk.rivals.glister import glister
from tests.helpers import ROOT, normal, seeded, some

SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def recorded():
    arrays = {}
    for name in ("rivals_cover", "rivals_other", "rivals_more"):
        with np.load(ROOT / "tests" / "parity" / f"{name}.npz", allow_pickle=False) as file:
            arrays |= {key: torch.from_numpy(file[key]) for key in file.files}
    found = {name: x.long() if x.dtype == torch.int16 else x for name, x in arrays.items()}
    available = torch.zeros(751, dtype=torch.bool).index_fill_(0, found["unlabelled"], True)
    return found | {"available": available, "known": found["y_pool"][~available]}


# GLISTER


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_glister_chooses_as_the_authors_code(recorded, rate, monkeypatch):
    """Also in tiles."""
    monkeypatch.setattr(gradients_module, "TILE", 10 * 100)
    pool, validation = (Outputs(recorded[f"z_{end}"], recorded[f"logits_{end}"]) for end in ("pool", "val"))
    chosen, _ = glister(pool, validation, recorded["y_val"], recorded["available"], recorded["known"], 20, rate)
    assert chosen.tolist() == recorded[f"glister_lr{rate}_chosen"].tolist()


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 20), st.integers(1, 10), st.integers(2, 4), st.sampled_from([0.05, 2.0]), SEEDS)
def test_glister_follows_the_gradients_of_a_linear_layer(data, images, count, classes, rate, seed):
    """Gradients by autograd: of the mean validation loss at the current weights, of pool images at the first ones."""
    z, z_v = normal(seed, images, 3).double(), normal(seed + 1, count, 3).double()
    first = F.pad(z, (1, 0)), F.pad(z_v, (1, 0))  # inputs of a layer whose bias is its first column
    for x in first:
        x[:, 0] = 1
    weights = normal(seed + 2, classes, 4).double()
    y, y_v = (torch.randint(classes, (k,), generator=seeded(seed + 3)) for k in (images, count))
    available = some(seed, images)
    n = data.draw(st.integers(1, int(available.sum())))

    def gradient(w, x, y):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(x @ w.T, y, reduction="sum"), w)[0]

    pool = [gradient(weights, x[None], (x @ weights.T).argmax()[None]) for x in first[0]]
    moved = weights - rate * gradient(weights, first[0][~available], y[~available])
    logits = [x @ weights.T for x in first]
    outputs = [Outputs(x.float(), scores.float()) for x, scores in zip((z, z_v), logits, strict=True)]
    chosen, gains = glister(*outputs, y_v, available, y[~available], n, rate)
    left = available.clone()
    for image, gain in zip(chosen.tolist(), gains.tolist(), strict=True):
        of_loss = gradient(moved, first[1], y_v) / count
        wanted = torch.stack([(g * of_loss).sum() for g in pool])
        assert left[image]
        assert gain == pytest.approx(float(wanted[image]), rel=1e-3, abs=1e-4)
        assert wanted[image] >= wanted[left].max() - 1e-4
        moved, left[image] = moved - rate * pool[image], False


def test_of_equal_images_glister_takes_the_lowest():
    outputs = Outputs(torch.ones(5, 2), torch.zeros(5, 2))
    chosen, gains = glister(outputs, outputs, torch.zeros(5).long(), torch.arange(5) > 0, torch.tensor([1]), 3)
    assert chosen.tolist() == [1, 2, 3]
    assert len(gains) == 3


# DIRECT


def test_direct_thresholds_are_those_of_the_authors_code(recorded):
    p, known = recorded["probs_pool"].double(), np.full(751, -1)
    known[~recorded["available"].numpy()] = recorded["known"].numpy()
    paths = [sort_by_confidence(column, p.amax(1), descending=True) for column in p.T]
    found = [threshold(signs_of(known[path], c)) for c, path in enumerate(paths)]
    assert found == recorded["direct_threshold"].tolist()


@pytest.mark.parametrize(
    ("signs", "t", "ranks"),
    [
        ("++0-+-", 2, (2, 5)),
        ("+00-0", 1, (1, 3)),
        ("0-+00", 0, (0, 5)),
        ("00-0-", 0, (0, 2)),
        ("0+0", 2, (2, 3)),
        ("000", 0, (0, 3)),
        ("-++-", 3, (0, 3)),
    ],
)
def test_threshold_and_uncertain_ranks_of_a_path(signs, t, ranks):
    values = np.array([{"+": 1, "-": -1, "0": 0}[sign] for sign in signs])
    assert threshold(values) == t
    assert uncertain(values) == slice(*ranks)


def test_images_around_a_threshold():
    path, free = np.array([4, 3, 5, 0, 1, 2]), np.array([True, True, False, True, True, True])
    assert around(path, 3, free, 3).tolist() == [5, 0, 3]
    assert around(path, 1, free, 9).tolist() == [4, 3, 5, 0, 1]


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(2, 60), st.integers(2, 4), SEEDS, st.booleans(), st.booleans())
def test_direct_follows_the_definition(data, images, classes, seed, coarse, unlabelled):
    """With limits of 3 images at a time and 5 a class; step 2 for some order of the classes."""
    logits = 2 * normal(seed, images, classes).double()
    p = (logits.round() if coarse else logits).softmax(1)
    y = torch.randint(classes, (images,), generator=seeded(seed + 1))
    available = torch.ones(images, dtype=torch.bool) if unlabelled else some(seed, images)
    n = data.draw(st.integers(1, int(available.sum())))
    requests = []

    def annotate(positions):
        requests.append(positions.tolist())
        return y[positions]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_module, "DRAWN", 3)
        patch.setattr(direct_module, "MOST", 5)
        chosen = direct(p, available, y[~available], n, annotate, seeded(seed)).tolist()
        first = [image for request in requests for image in request]
        requests.clear()
        assert direct(p, available, y[~available], n, annotate, seeded(seed)).tolist() == chosen
    assert len(set(chosen)) == n
    assert available[chosen].all()
    assert chosen[: len(first)] == first

    known = {i: int(y[i]) for i in (~available).nonzero().flatten().tolist()}
    largest = p.double().amax(1, keepdim=True)
    d = p.double() - largest + 1e-8 * largest
    paths = [sorted(range(images), key=lambda i: (-float(d[i, c]), i)) for c in range(classes)]
    counts = [list(known.values()).count(c) for c in range(classes)]
    rarest = sorted(range(classes), key=lambda c: (counts[c], c))
    for place, c in enumerate(rarest):
        share = min(5, shared(n // 2, classes, place))
        while share and (possible := between(paths[c], known, c)):
            request = requests.pop(0)
            assert len(request) == min(3, share, len(possible))
            assert set(request) <= set(possible)
            known |= {image: int(y[image]) for image in request}
            share -= len(request)
    assert not requests
    shares = [shared(n - len(first), classes, place) for place in range(classes)]

    def second(order):
        taken = set(known)
        for c, share in zip(order, shares, strict=True):
            part = nearest(paths[c], known, c, taken)[:share]
            taken |= set(part)
            yield from part

    assert chosen[len(first) :] in [list(second(order)) for order in itertools.permutations(range(classes))]


def shared(count, classes, place):
    return count // classes + (place < count % classes)


def between(path, known, c):
    """Images without a label between the leading + and the trailing -."""
    low, high = 0, len(path)
    for rank, image in enumerate(path):
        if image in known:
            if known[image] != c:
                break
            low = rank + 1
    for rank in reversed(range(len(path))):
        if path[rank] in known:
            if known[path[rank]] == c:
                break
            high = rank
    return [image for image in path[low:high] if image not in known]


def nearest(path, known, c, taken):
    """Images that are not taken, in turn before and after the best cut."""

    def quality(t):
        right = [(known[image] == c) == (rank < t) for rank, image in enumerate(path) if image in known]
        return sum(right) - right.count(False)

    t = max(range(len(path) + 1), key=lambda t: (quality(t), -t))
    before = [image for image in reversed(path[:t]) if image not in taken]
    after = [image for image in path[t:] if image not in taken]
    found = []
    while before or after:
        found += [side.pop(0) for side in (before, after) if side]
    return found


def test_direct_draws_uniformly_from_the_uncertain_images():
    """Of ten images between a + and a - each is drawn about equally often."""
    p = torch.linspace(0.95, 0.55, 12, dtype=torch.float64)
    p = torch.stack([p, 1 - p], 1)
    available = torch.ones(12, dtype=torch.bool).index_fill_(0, torch.tensor([0, 11]), False)
    found = []
    for seed in range(300):
        direct(p, available, torch.tensor([0, 1]), 2, lambda at: found.extend(at.tolist()) or 0 * at, seeded(seed))
    assert set(found) == set(range(1, 11))
    assert np.bincount(found)[1:].max() < 50


@pytest.mark.parametrize(("n", "labels"), [(0, 2), (4, 2), (1, 3)])
def test_what_does_not_fit_is_refused(n, labels):
    words = f"cannot choose {n} of 3 images, of 5 with {labels} labels"
    outputs, available, known = Outputs(torch.ones(5, 2), torch.ones(5, 2)), torch.arange(5) < 3, torch.zeros(labels)
    with pytest.raises(ValueError, match=words):
        glister(outputs, outputs, torch.zeros(5), available, known, n)
    with pytest.raises(ValueError, match=words):
        direct(outputs.logits, available, known, n, lambda _: known, seeded(0))
