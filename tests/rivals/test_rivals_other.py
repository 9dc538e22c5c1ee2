"""Scores of the softmax, EPIG, GALAXY and TypiClust: what their authors' code chose, plain loops, and any input.

tests/parity/rivals_other.npz is a part of a recording of the authors' code (badge, epig, GALAXY, TypiClust) on
scikit-learn's digits and a network 64-32-10 that was trained on 40 of them, made by:

    names = ("logits_pool", "probs_pool", "y_pool", "labelled", "unlabelled", "margin_", "entropy_", "leastconf_",
             "epig_probs", "epig_scores", "epig_conditional", "epig_weights", "bald_", "galaxy_chosen", "galaxy_cold",
             "features_unit", "typiclust_")
    arrays = {k: v for k, v in np.load("rivals.npz").items() if k.startswith(names)}
    small = {k: v.astype(np.int16) if v.dtype == np.int64 else v for k, v in arrays.items()}
    np.savez_compressed("rivals_other.npz", **small)

    logits_pool, probs_pool    (751, 10) float32, features_unit (751, 32) float32 of norm 1, y_pool the labels
    labelled, unlabelled       positions in the pool
    *_chosen*                  positions in the pool in the order of choice
    epig_probs_*               (120, 16, 10) and (80, 16, 10) float64: 16 samples with the same masks
    epig_scores*               of the pool images; _weighted by epig_weights (80,); epig_conditional_first5 (5, 80)
    galaxy_cold_*              without labelled images of classes 5 to 9; _random where the choice was drawn
    typiclust_clusters*        (751,), what the authors' k-means found
"""

import collections
import math
from unittest import mock

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.cluster
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from alfk.networks.dropout import MCDropout
from alfk.networks.passes import count_passes
from alfk.rivals import epig as epig_module
from alfk.rivals import scores
from alfk.rivals import typiclust as typiclust_module
from alfk.rivals.epig import epig
from alfk.rivals.galaxy import galaxy
from alfk.rivals.shared_masks import shared_masks
from alfk.rivals.typiclust import k_means, typiclust
from mnist.custom_models.lenet import LeNet
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import ROOT, refuses

SEEDS = st.integers(0, 10**6)
SCORES = {"margin": scores.margin, "entropy": scores.entropy, "leastconf": scores.least_confidence}


@pytest.fixture(scope="module")
def recorded():
    with np.load(ROOT / "tests" / "parity" / "rivals_other.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return {name: x.long() if x.dtype == torch.int16 else x for name, x in arrays.items()}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def some(seed, count, share=0.7):
    """Available images, at least one."""
    return (torch.rand(count, generator=seeded(seed)) < share).index_fill_(0, torch.tensor([seed % count]), True)


def without(count, positions):
    """All images but those at the positions."""
    return torch.ones(count, dtype=torch.bool).index_fill_(0, positions, False)


# Scores of the softmax


@pytest.mark.parametrize("name", SCORES)
def test_scores_choose_what_the_authors_chose(recorded, name):
    pool = recorded["unlabelled"]
    for logits in (recorded["logits_pool"], recorded["probs_pool"].log()):
        order = SCORES[name](logits)[pool].argsort(descending=True, stable=True)
        assert torch.equal(pool[order[:60]], recorded[f"{name}_chosen"])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(2, 12), SEEDS, st.floats(-1000, 1000), st.integers(1, 50))
def test_scores_are_what_numpy_computes_for_any_shift_and_block(images, classes, seed, shift, block):
    logits = 5 * normal(seed, images, classes)
    p = np.sort(scipy.special.softmax(logits.numpy(), axis=1), axis=1)
    wanted = {"margin": p[:, -2] - p[:, -1], "entropy": scipy.stats.entropy(p, axis=1), "leastconf": -p[:, -1]}
    for name, score in SCORES.items():
        with mock.patch.object(scores, "BLOCK", block):
            found = score(logits + shift)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), wanted[name], atol=1e-11)
        assert torch.equal(score(logits.numpy()), score(logits))


def test_scores_of_certain_images_are_finite_and_differ_where_float32_would_not():
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0], [1e5, 0.0]])
    assert scores.entropy(logits)[2] == 0
    for score in SCORES.values():
        assert (score(logits).diff() < 0).all()


# EPIG


def plain_epig(p, q):
    """(N, T): the Kullback-Leibler divergence of the joint distribution from the product, pair by pair. No zeros."""
    joint = torch.einsum("nkc,tkd->ntcd", p, q) / p.shape[1]
    product = torch.einsum("nc,td->ntcd", p.mean(1), q.mean(1))
    return (joint * (joint / product).log()).sum((2, 3))


def bald(p):
    """In nats."""
    entropy = torch.special.entr
    return entropy(p.mean(1)).sum(1) - entropy(p).sum(2).mean(1)


def error(found, wanted):
    return float((found - wanted).abs().max())


def test_epig_is_what_the_authors_computed(recorded):
    p, q = recorded["epig_probs_pool"], recorded["epig_probs_target"]
    pairs = plain_epig(p, q)
    assert error(pairs[:5], recorded["epig_conditional_first5"]) < 1e-12
    assert error((pairs * recorded["epig_weights"]).mean(1), recorded["epig_scores_weighted"]) < 1e-12
    assert error(bald(p), recorded["bald_scores"]) < 1e-12
    for form in ("epig_scores", "epig_scores_matmul"):
        assert error(pairs.mean(1), recorded[form]) < 1e-12
        assert error(epig(p.log(), q.log()), recorded[form]) < 1e-12


def test_epig_of_two_samples():
    certain = torch.tensor([[[0.0, -1e4], [-1e4, 0.0]]], requires_grad=True)
    assert epig(certain, certain).tolist() == [pytest.approx(math.log(2), abs=1e-15)]
    constant = certain[:, :1].expand(1, 2, 2)
    assert epig(constant, certain).tolist() == epig(certain, constant).tolist() == [0]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.integers(2, 5), st.floats(0, 4), SEEDS)
def test_epig_is_between_0_and_the_information_there_is(images, targets, samples, classes, scale, seed):
    pool, target = scale * normal(seed, images, samples, classes), scale * normal(seed + 1, targets, samples, classes)
    found = epig(pool, target)
    assert found.dtype == torch.float64
    assert found.shape == (images,)
    assert (found >= 0).all()
    assert (found <= bald(pool.softmax(2)).clamp(max=math.log(classes)) + 1e-12).all()
    assert error(found, plain_epig(pool.softmax(2), target.softmax(2)).mean(1)) < 1e-12
    order = torch.randperm(samples, generator=seeded(seed))
    assert error(found, epig(pool[:, order], target[:, order])) < 1e-12
    assert error(found, epig(iter(pool.split(2)), target, budget=8 * targets * classes**2)) < 1e-12
    with mock.patch.object(epig_module, "TILE", 1):
        assert error(found, epig(pool, target)) < 1e-12


def test_epig_refuses_tiles_without_room():
    def of(budget):
        return epig(torch.zeros(1, 2, 10), torch.zeros(1000, 2, 10), budget)

    with pytest.raises(ValueError, match="1,000 x 10 x 10 joint probabilities exceed 799,999 bytes"):
        of(799_999)
    assert of(800_000) == 0
    assert epig([], torch.zeros(1, 2, 2)).shape == (0,)


# Masks that images share


def network(kind):
    torch.manual_seed(0)
    return (LeNet(), (1, 28, 28)) if kind == "LeNet" else (ResNet10(), (3, 32, 32))


@pytest.mark.parametrize("kind", ["LeNet", "ResNet10"])
def test_an_image_has_the_same_samples_wherever_it_is(kind):
    """In any batch, at any place, in pool and validation set; whatever was drawn in between."""
    model, shape = network(kind)
    images = torch.rand(5, *shape, generator=seeded(1))
    with shared_masks(model, 4, seeded(2)) as logits:
        pool = torch.cat([logits(images[:2]), logits(images[2:])])
        torch.rand(3)
        validation = logits(images.flip(0))
    assert pool.shape == (5, 4, 10)
    assert torch.allclose(pool, validation.flip(0), rtol=1e-4, atol=1e-5)
    with shared_masks(model, 4, seeded(2)) as logits:
        assert torch.allclose(logits(images), pool, rtol=1e-4, atol=1e-5)
    with shared_masks(model, 4, seeded(3)) as logits:
        assert not torch.allclose(logits(images), pool, rtol=1e-2)
    assert (pool.std(1).mean(0) > 1e-3).all()
    shared, alone = epig(pool, pool), bald(pool.double().softmax(2))
    assert ((shared > 0) & (shared < alone)).all()


class Own(nn.Module):
    """A network whose logits are what `layer` makes of images of the features (B, ...), summed to two classes."""

    def __init__(self, layer, times=1):
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        flat = x.flatten(1)
        return torch.stack([flat[:, ::2].sum(1), flat[:, 1::2].sum(1)], 1), [flat]


class Seen(nn.Module):
    """A layer that keeps what it was given."""

    def forward(self, x):
        self.x = x
        return x


@pytest.mark.parametrize("layer", [MCDropout(0.25), nn.Dropout(0.25), nn.Dropout(0.25, inplace=True)])
def test_a_mask_zeroes_its_share_and_scales_the_rest(layer):
    seen = Seen()
    model, masks = Own(nn.Sequential(layer, seen)), []
    with shared_masks(model, 50, seeded(0)) as logits:
        run = model.forward
        with mock.patch.object(model, "forward", lambda x: (run(x), masks.append(seen.x))[0]):
            logits(torch.ones(3, 40, 10))
    masks = torch.stack(masks)
    assert (masks == masks[:, :1]).all()
    assert set(masks.unique().tolist()) == {0, float(torch.tensor(1 / 0.75))}
    zeros = (masks[:, 0] == 0).double()
    assert float(zeros.mean()) == pytest.approx(0.25, abs=0.02)
    assert 0 < float(zeros.mean((1, 2)).std()) < 0.1
    assert len({tuple(mask.flatten().tolist()) for mask in masks[:, 0]}) == 50


def test_a_layer_that_is_used_twice_has_two_masks():
    """As the ReLU of residual blocks is. With one mask half of the entries would be 4, not a quarter."""
    seen = Seen()
    with shared_masks(Own(nn.Sequential(MCDropout(0.5), seen), times=2), 1, seeded(0)) as logits:
        logits(torch.ones(2, 1000))
    assert set(seen.x.unique().tolist()) == {0, 4}
    assert float((seen.x[0] == 4).double().mean()) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout1d(0.5), (30, 7)), (nn.Dropout2d(0.5), (30, 4, 5))])
def test_layers_that_zero_channels_do(layer, shape):
    seen = Seen()
    with shared_masks(Own(nn.Sequential(layer, seen)), 1, seeded(0)) as logits:
        logits(torch.ones(2, *shape))
        wide = torch.ones(2, *shape[:-1], 9)
        logits(wide)  # the mask of a channel has no size
    channels = seen.x.flatten(2)
    assert (channels == channels[:1, :, :1]).all()
    assert 5 < int((channels[0, :, 0] == 0).sum()) < 25


@pytest.mark.parametrize(("p", "value"), [(0, 1), (1, 0)])
def test_the_limits_of_dropout(p, value):
    with shared_masks(Own(nn.Dropout(p)), 2, seeded(0)) as logits:
        assert (logits(torch.ones(3, 2)) == value).all()


def test_the_first_layers_run_once_a_batch_and_the_network_is_left_as_it_was():
    model, calls = network("LeNet")[0].train(), collections.Counter()
    for name in ("conv1", "conv2"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    images, state = torch.rand(3, 1, 28, 28), torch.get_rng_state()
    with count_passes() as passes, shared_masks(model, 8, seeded(0)) as logits:
        logits(images)
        assert torch.equal(model(images)[0], model(images)[0])  # no masks outside the function
    assert passes.forward == 24
    assert (calls["conv1"], calls["conv2"]) == (1 + 2, 8 + 2)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError), shared_masks(model, 8, seeded(0)):
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, MCDropout))
    one, other = seeded(5), seeded(5)
    for kind, source in (("LeNet", one), ("ResNet10", other)):
        with shared_masks(network(kind)[0], 2, source):
            pass
    assert torch.equal(one.get_state(), other.get_state())


def test_what_cannot_be_sampled_with_shared_masks_is_refused():
    def of(layer, *batches):
        def sample():
            with shared_masks(Own(layer), 2, seeded(0)) as logits:
                for batch in batches:
                    logits(batch)

        return sample

    refuses(of(nn.Identity(), torch.ones(2, 4)), "calls no dropout layer")
    refuses(of(nn.AlphaDropout(0.5)), "layer is AlphaDropout, whose masks cannot be shared")
    refuses(of(nn.Dropout(0.5), torch.ones(2, 4), torch.ones(2, 6)), "an image is (6,) at the dropout layer layer")


# GALAXY


def confidence(p, c):
    largest = p.amax(1)
    return (p[:, c] - largest + 1e-8 * largest).tolist()


def plain_queries(p, c, known):
    """The images that the definition may ask, by a look at all images and gaps; none if it is a random one."""
    d = confidence(p, c)
    path = sorted(range(len(p)), key=lambda i: (d[i], i))
    signs = [known[i] == c if i in known else None for i in path]
    plus, minus = ([r for r, sign in enumerate(signs) if sign is wanted] for wanted in (True, False))
    if not plus or not minus:
        return set()
    middles = []
    for a, b in zip(plus_minus := sorted(plus + minus), plus_minus[1:], strict=False):
        if signs[a] is not signs[b] and b - a > 1:
            steps = 1 + (b - a - 1) // 2
            middles.append((b - a, path[b - steps if signs[a] else a + steps]))
    if middles:
        return {image for length, image in middles if length == min(middles)[0]}
    farther = {r: max(min(abs(r - q) for q in of) for of in (plus, minus)) for r in range(len(p)) if signs[r] is None}
    return {path[min(farther, key=lambda r: (farther[r], -r))]}


def check_galaxy(p, available, y, n, asked, at_random, others=()):
    """That every query follows the definition, and that no image is asked twice, nor a labelled one."""
    assert (len(asked), len(at_random)) == (n, n)
    assert len(set(asked.tolist())) == n
    assert available[asked].all()
    known = {i: int(y[i]) for i in (~available).nonzero().flatten().tolist()} | dict(others)
    for t, image in enumerate(asked.tolist()):
        possible = plain_queries(p, t % p.shape[1], known)
        assert bool(at_random[t]) == (not possible)
        assert not possible or image in possible
        known[image] = int(y[image])


def test_galaxy_bisects_as_the_authors_do(recorded):
    """The recording's choices 0 to 24 are of their first step, two of them ties, which have no order."""
    p, y, available = recorded["probs_pool"], recorded["y_pool"], without(751, recorded["labelled"])
    asked, at_random = galaxy(p, available, y[~available], 60, lambda i: int(y[i]), seeded(0))
    theirs, tie = recorded["galaxy_chosen"], 14
    assert torch.equal(asked[:tie], theirs[:tie])
    known = {i: int(y[i]) for i in (~available).nonzero().flatten().tolist()}
    possible = []
    for t, image in enumerate(theirs[:25].tolist()):
        possible.append(plain_queries(p.double(), t % 10, known))
        assert image in possible[t]
        known[image] = int(y[image])
    assert [t for t, images in enumerate(possible) if len(images) > 1] == [tie, 19]
    assert not at_random.any()
    check_galaxy(p.double(), available, y, 60, asked, at_random)
    rare, wanted = (int((y[chosen] >= 5).sum()) for chosen in (asked, theirs))
    assert abs(rare - wanted) <= 5  # images of the rare half of the classes, of 60


def test_galaxy_asks_at_random_while_a_class_is_unseen(recorded):
    p, y, available = recorded["probs_pool"], recorded["y_pool"], without(751, recorded["galaxy_cold_labelled"])
    asked, at_random = galaxy(p, available, y[~available], 40, lambda i: int(y[i]), seeded(0))
    check_galaxy(p.double(), available, y, 40, asked, at_random)
    for chosen, drawn in ((asked, at_random), (recorded["galaxy_cold_chosen"], recorded["galaxy_cold_random"] == 1)):
        seen = [set(y[~available].tolist()) | set(y[chosen[:t]].tolist()) for t in range(40)]
        unseen = torch.tensor([t % 10 not in seen[t] for t in range(40)])
        assert unseen[5]
        assert drawn[unseen].all()
    assert torch.equal(asked[:5], recorded["galaxy_cold_chosen"][:5])


def test_galaxy_on_seven_images():
    p = torch.linspace(0.55, 0.95, 7, dtype=torch.float64)
    p = torch.stack([p, 1 - p], 1)
    known = {0: 1, 6: 0}
    assert plain_queries(p, 0, known) == {3}
    assert plain_queries(p, 0, known | {3: 0}) == {2}
    assert plain_queries(p, 0, known | {3: 0, 2: 1}) == {4}
    assert ask_one(p, known) == 3
    assert ask_one(p, known | {3: 0}) == 2
    assert ask_one(p, known | {3: 0, 2: 1}) == 4


def ask_one(p, known, seed=0):
    labels = torch.tensor([known[i] for i in sorted(known)])
    available = without(len(p), torch.tensor(sorted(known)))
    return int(galaxy(p, available, labels, 1, lambda _: 0, seeded(seed))[0])


def test_of_equal_runs_galaxy_asks_the_middle_of_a_random_one():
    """- . + . - along the path, the unlabelled images in either order of position."""
    p = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
    for order in (torch.arange(5), torch.tensor([0, 3, 2, 1, 4])):
        part = torch.stack([p[order], 1 - p[order]], 1)
        found = [ask_one(part, {0: 1, 2: 0, 4: 1}, seed) for seed in range(40)]
        assert set(found) == {1, 3}
        assert 10 < found.count(1) < 30
    assert ask_one(torch.full((5, 2), 0.5), {0: 1, 4: 0}) == 2  # equal confidences: the path is the pool


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(2, 24), st.integers(2, 4), st.integers(0, 6), SEEDS, st.booleans())
def test_galaxy_follows_the_definition(data, images, classes, validation, seed, coarse):
    """Also with further images that are known, as if they were labelled images at the end of the pool."""
    logits = 2 * normal(seed, images + validation, classes)
    p = (logits.round() if coarse else logits).softmax(1)
    y = torch.randint(classes, (images + validation,), generator=seeded(seed + 1))
    available = some(seed, images)
    n = data.draw(st.integers(1, int(available.sum())))
    others = (p[images:], y[images:]) if validation else None
    matched = []

    def annotate(image):
        matched.append(image)
        return int(y[image])

    def ask():
        return galaxy(p[:images], available, y[:images][~available], n, annotate, seeded(seed), others)

    asked, at_random = ask()
    assert matched == asked.tolist()
    known = [(i, int(y[i])) for i in range(images, images + validation)]
    check_galaxy(p, available, y, n, asked, at_random, known)
    assert all(map(torch.equal, ask(), (asked, at_random)))


def test_galaxy_without_a_label_draws_until_classes_are_told_apart():
    p, y = normal(0, 30, 2).softmax(1), torch.arange(30) % 2
    nothing, firsts = torch.empty(0, dtype=torch.int64), set()
    for seed in range(30):
        asked, at_random = galaxy(p, torch.ones(30, dtype=torch.bool), nothing, 30, lambda i: int(y[i]), seeded(seed))
        assert at_random[:2].all()
        assert sorted(asked.tolist()) == list(range(30))
        firsts.add(int(asked[0]))
    assert len(firsts) > 10


@pytest.mark.parametrize(("n", "labels"), [(0, 2), (4, 2), (1, 3)])
def test_galaxy_refuses_what_does_not_fit(n, labels):
    with pytest.raises(ValueError, match=f"cannot ask {n} of 3 images, of 5 with {labels} labels"):
        galaxy(torch.ones(5, 2), torch.arange(5) < 3, torch.zeros(labels), n, lambda _: 0, seeded(0))


# TypiClust


def test_typiclust_takes_what_the_authors_took(recorded):
    x = recorded["features_unit"]
    for suffix, available in (
        ("", without(751, recorded["labelled"])),
        ("_from_nothing", torch.ones(751, dtype=torch.bool)),
    ):
        clusters, chosen = recorded[f"typiclust_clusters{suffix}"], recorded[f"typiclust_chosen{suffix}"]
        assert torch.equal(typiclust(x, available, 20, seeded(0), clusters=clusters), chosen)
        assert torch.equal(typiclust(3 * x.double(), available, 20, seeded(0), clusters=clusters), chosen)


def plain_typicality(x):
    k = min(20, len(x) // 2)
    distances = (x[:, None] - x).square().sum(2)  # exact for multiples of 1/8
    return 1 / (distances.fill_diagonal_(torch.inf).sort(1).values[:, :k].sum(1) / max(k, 1) + 1e-5)


def most_typical(x):
    everything = torch.ones(len(x), dtype=torch.bool)
    return typiclust_module._Cluster(x, everything.nonzero().flatten()).take()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 5), st.integers(1, 3000), SEEDS, st.booleans())
def test_the_most_typical_image_is_the_same_in_any_tile(rows, width, tile, seed, whole):
    """With whole numbers many are equally typical, of which it is the first."""
    x = normal(seed, rows, width)
    x = (x.round() if whole else x) / 8
    with mock.patch.object(typiclust_module, "TILE", tile):
        found = most_typical(x)
    assert found == int(plain_typicality(x).argmax())
    assert whole or most_typical(x.float()) == found


def plain_typiclust(x, available, n, clusters):
    """One choice after another, each from the next cluster in the order that has an unlabelled image left."""
    left, chosen = set(available.nonzero().flatten().tolist()), []
    members = collections.defaultdict(list)
    for i, c in enumerate(clusters.tolist()):
        members[c].append(i)
    order = sorted(members, key=lambda c: (sum(i not in left for i in members[c]), -len(members[c]), c))
    for group in ([c for c in order if len(members[c]) > 5], [c for c in order if len(members[c]) <= 5]):
        turn = 0
        while len(chosen) < n and any(i in left for c in group for i in members[c]):
            rest = [i for i in members[group[turn % len(group)]] if i in left]
            if rest:
                chosen.append(rest[int(plain_typicality(x[rest]).argmax())])
                left.remove(chosen[-1])
            turn += 1
    return chosen


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 80), st.integers(1, 8), SEEDS)
def test_typiclust_follows_the_definition(data, images, clusters, seed):
    x = torch.nn.functional.normalize(normal(seed, images, 4))
    ids = torch.randint(clusters, (images,), generator=seeded(seed)) * 2  # the odd ones are empty
    available = some(seed, images)
    n = data.draw(st.integers(1, int(available.sum())))
    with mock.patch.object(typiclust_module, "SPARE", data.draw(st.integers(0, 12))):
        chosen = typiclust(x, available, n, seeded(0), clusters=ids)
    assert chosen.tolist() == plain_typiclust(x, available, n, ids)
    assert len(chosen.unique()) == n
    assert available[chosen].all()


def test_of_equally_typical_images_typiclust_takes_the_lowest():
    ids = torch.tensor([1] * 8 + [0] * 8)
    everything = torch.ones(16, dtype=torch.bool)
    assert typiclust(torch.ones(16, 3), everything, 4, seeded(0), clusters=ids).tolist() == [8, 0, 9, 1]
    assert typiclust(torch.zeros(16, 3), everything, 3, seeded(0), clusters=ids).tolist() == [8, 0, 9]


@pytest.mark.parametrize(("n", "cap"), [(6, 500), (60, 500), (60, 7)])
def test_typiclust_finds_clusters_and_repeats_itself(n, cap):
    """By k-means in full sweeps, and in mini-batches for more than 50 clusters."""
    centres = 10 * normal(0, 6, 8)
    x = (centres.repeat(50, 1) + 0.1 * normal(1, 300, 8)).float()
    available = torch.ones(300, dtype=torch.bool)
    chosen = typiclust(x, available, n, seeded(0), cap)
    assert torch.equal(chosen, typiclust(x, available, n, seeded(0), cap))
    assert len(chosen.unique()) == n
    assert set((chosen % 6).tolist()) == set(range(6))


def test_k_means_separates_what_is_apart_and_bears_equal_images():
    x = torch.cat([normal(0, 40, 3), 100 + normal(1, 40, 3)]).float()
    found = k_means(x, 2, seeded(0))
    assert found.dtype == torch.int64
    assert found[:40].unique().numel() == found[40:].unique().numel() == 1
    assert found[0] != found[40]
    assert int(k_means(torch.ones(80, 3), 60, seeded(0)).max()) < 60
    one, other = (k_means(x, 30, seeded(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, k_means(x, 30, seeded(0)))


@pytest.mark.parametrize("kind", [sklearn.cluster.KMeans, sklearn.cluster.MiniBatchKMeans])
def test_k_means_does_not_depend_on_the_number_of_threads(kind):
    """It uses one, and the others have theirs again afterwards."""
    used, fit = [], kind.fit_predict

    def noted(self, rows):
        used.extend(library["num_threads"] for library in threadpool_info())
        return fit(self, rows)

    with threadpool_limits(2), mock.patch.object(kind, "fit_predict", noted):
        k_means(normal(0, 120, 3), 5 if kind is sklearn.cluster.KMeans else 60, seeded(0))
        assert {library["num_threads"] for library in threadpool_info()} == {2}
    assert set(used) == {1}


@pytest.mark.parametrize("n", [0, 4])
def test_typiclust_refuses_what_does_not_fit(n):
    with pytest.raises(ValueError, match=f"cannot take {n} of 3 images"):
        typiclust(torch.ones(5, 2), torch.arange(5) < 3, n, seeded(0))
