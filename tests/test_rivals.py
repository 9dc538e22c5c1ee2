"""The rivals through `query` against plain loops, what the last layer gets and gives, and what is refused in a line.

The functions of `alfk.rivals` alone are tested in test_rivals_cover.py and test_rivals_other.py, the scripts in
test_rival_runs.py.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import alfk
from alfk.data.split import Split
from alfk.method.acquisition import METHODS, get_method
from alfk.method.registry import Measurement, Situation
from alfk.networks.outputs import Outputs, logits_of, outputs_of
from alfk.own.queries import query
from alfk.rivals import methods
from alfk.rivals.typiclust import k_means
from alfk.support.errors import UserError
from alfk.support.seeding import draw_seed
from mnist.custom_models.lenet import LeNet
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import SmallNet, random_problem, refuses
from tests.test_rivals_other import plain_queries, plain_typiclust

CLASSES, N, SAMPLES, SEED = 4, 9, 6, 5
LABELLED = [40, 3, 17, 22]
RARE, NAMES = (1, 3), ("ant", "bee", "cat", "dog")
KEYS = [method.key for method in methods.RIVALS]


@pytest.fixture(scope="module")
def problem():
    """(model, pool, validation) of random images."""
    return random_problem()


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def chosen(problem, key, labelled=LABELLED, **options):
    _, pool, _ = problem
    options = {
        "annotate": lambda positions: pool.labels[positions],
        "rare_classes": RARE,
        "samples": SAMPLES,
        **options,
    }
    return query(key, *problem, N, labelled=labelled, batch_size=16, generator=SEED, **options)


# Each choice against a plain reference


class Plain:
    """What the last layer gets and gives, image by image in float64, as numpy arrays."""

    def __init__(self, problem):
        model, pool, validation = problem
        self.weight, self.bias = (x.detach().double().numpy() for x in (model.fc.weight, model.fc.bias))
        (self.z, self.logits), (self.zv, self.logits_v) = (
            self.outputs(model.conv, split) for split in (pool, validation)
        )
        self.p, self.pv = softmax(self.logits), softmax(self.logits_v)
        self.y, self.yv = pool.labels.numpy(), validation.labels.numpy()
        self.available = [i for i in range(len(pool)) if i not in LABELLED]

    def outputs(self, conv, split):
        z = []
        for pixels in split.images.double():
            x = F.conv2d((pixels / 255 - 0.5)[None] / 0.3, conv.weight.detach().double(), conv.bias.detach().double())
            z.append(x.relu().flatten().numpy())
        return np.array(z), np.array(z) @ self.weight.T + self.bias

    def top(self, scores):
        return sorted(self.available, key=lambda i: -scores[i])[:N]


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


@pytest.fixture(scope="module")
def plain(problem):
    return Plain(problem)


SCORES = {
    "margin": lambda p: [np.sort(row)[-2] - np.sort(row)[-1] for row in p],
    "leastconf": lambda p: -p.max(1),
    "entropy_det": entropy,
}


@pytest.mark.parametrize("key", SCORES)
def test_scores_of_the_softmax_take_the_highest(problem, plain, key):
    scores, found = np.array(SCORES[key](plain.p)), chosen(problem, key)
    assert found.indices.tolist() == plain.top(scores)
    assert np.allclose(found.score.numpy(), scores[found.indices.numpy()], atol=1e-5)
    assert (found.misclassified, found.centres, found.at_random) == (None, None, 0)


def farthest(z, centres, available, n):
    """The available image that is farthest from all centres, again and again; and the distances."""
    centres, left, distances = list(centres), list(available), []
    for _ in range(n):
        nearest = {i: min(np.linalg.norm(z[i] - z[c]) for c in centres) for i in left}
        centres.append(max(left, key=lambda i: nearest[i]))
        left.remove(centres[-1])
        distances.append(nearest[centres[-1]])
    return centres[-n:], distances


def test_core_set_is_greedy_from_the_labelled_images(problem, plain):
    found = chosen(problem, "coreset")
    wanted, distances = farthest(plain.z, LABELLED, plain.available, N)
    assert found.indices.tolist() == wanted
    assert np.allclose(found.score.numpy(), distances, rtol=1e-4)
    everything = chosen(problem, "coreset", labelled=None)
    first, *rest = everything.indices.tolist()
    assert rest == farthest(plain.z, [first], set(range(60)) - {first}, N - 1)[0]
    assert everything.score[0] == torch.inf
    assert first == int(torch.randint(60, (1,), generator=seeded()))


def seeding(g, available, n, generator):
    """k-means++ on the rows of g, by draws from old distances that are kept with the probability that corrects them."""

    def uniform():
        return float(torch.rand((), dtype=torch.float64, generator=generator))

    def squared(i, centres):
        return min(((g[i] - g[c]) ** 2).sum() for c in centres)

    centres = [max(available, key=lambda i: (g[i] ** 2).sum())]
    while len(centres) < n:
        old = np.array([squared(i, centres) if i in available and i not in centres else 0 for i in range(len(g))])
        added, refused = [], 0
        while len(centres) < n and refused <= len(added) + 16:
            i = int(np.searchsorted(old.cumsum(), uniform() * old.sum()))
            new = min([old[i], *(squared(i, [c]) for c in added)])
            if new > 0 and (new == old[i] or uniform() * old[i] < new):
                added.append(i)
                centres.append(i)
            else:
                refused += 1
    return centres


def gradients(p, labels):
    return p - np.eye(CLASSES)[labels]


def test_badge_seeds_k_means_on_gradients_of_the_last_layer(problem, plain):
    a = gradients(plain.p, plain.p.argmax(1))
    g = np.einsum("nc,nd->ncd", a, plain.z).reshape(60, -1)
    found = chosen(problem, "badge")
    assert found.indices.tolist() == seeding(g, plain.available, N, seeded())
    assert (found.at_random, found.score) == (0, None)


def greedy_information(s, available, n):
    """Naive greedy for facility-location mutual information with similarities s (N, Q), and the gains."""
    best, left, taken, gains = np.zeros(s.shape[1]), list(available), [], []
    for _ in range(n):
        gain = {j: np.maximum(0, s[j] - best).sum() + s[j].max() for j in left}
        taken.append(max(left, key=lambda j: gain[j]))
        left.remove(taken[-1])
        gains.append(gain[taken[-1]])
        best = np.maximum(best, s[taken[-1]])
    return taken, gains


def cosines(rows, others):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ (
        others / np.linalg.norm(others, axis=1, keepdims=True)
    ).T


@pytest.mark.parametrize("key", ["flqmi", "flqmi_z", "flqmi_rare"])
def test_flqmi_covers_its_queries(problem, plain, key):
    """The misclassified validation images, or those of the rare classes, right or wrong."""
    wrong = np.flatnonzero(plain.pv.argmax(1) != plain.yv)
    rare = np.flatnonzero(np.isin(plain.yv, RARE))
    assert 0 < len(set(rare) - set(wrong)) < len(rare)
    queries = rare if key == "flqmi_rare" else wrong
    if key == "flqmi_z":
        cosine = cosines(plain.z, plain.zv[queries])
    else:
        sides = []
        for p, labels, z in (
            (plain.p, plain.p.argmax(1), plain.z),
            (plain.pv[queries], plain.yv[queries], plain.zv[queries]),
        ):
            ones = np.hstack([z, np.ones((len(z), 1))])
            sides.append(np.einsum("nc,nd->ncd", gradients(p, labels), ones).reshape(len(z), -1))
        cosine = cosines(*sides)
    taken, gains = greedy_information((1 + cosine) / 2, plain.available, N)
    found = chosen(problem, key)
    assert found.indices.tolist() == taken
    assert np.allclose(found.score.numpy(), gains, atol=1e-3)
    assert (found.misclassified, found.at_random) == (len(wrong), 0)


@pytest.mark.parametrize("key", ["flqmi", "flqmi_z", "flqmi_rare"])
def test_flqmi_without_an_error(problem, plain, key):
    """Images are drawn at random, but for the classes that are known to be rare."""
    model, pool, validation = problem
    right = Split(validation.images, torch.from_numpy(plain.pv.argmax(1)), (0.5,), (0.3,))
    rare = [int(right.labels[0])]
    found = chosen((model, pool, right), key, rare_classes=rare)
    assert (found.misclassified, found.at_random) == (0, 0 if key == "flqmi_rare" else N)
    assert len({*found.indices.tolist(), *LABELLED}) == N + len(LABELLED)
    assert (found.score is None) == (key != "flqmi_rare")


@pytest.mark.parametrize("key", ["galaxy", "galaxy_v"])
def test_galaxy_asks_for_the_labelled_images_and_then_for_one_after_another(problem, plain, key):
    """And for no validation image; for `galaxy_v` the labels of these are known from the beginning."""
    _, pool, validation = problem
    asked = []

    def annotate(positions):
        asked.append(positions.tolist())
        return pool.labels[positions]

    found = chosen(problem, key, annotate=annotate)
    assert asked == [sorted(LABELLED), *([i] for i in found.indices.tolist())]
    known, p, drawn = {i: int(plain.y[i]) for i in LABELLED}, torch.from_numpy(plain.p), 0
    if key == "galaxy_v":
        known |= {len(p) + j: label for j, label in enumerate(validation.labels.tolist())}
        p = torch.cat([p, torch.from_numpy(plain.pv)])
    for t, i in enumerate(found.indices.tolist()):
        possible = plain_queries(p, t % CLASSES, known)
        drawn += not possible
        assert not possible or i in possible
        assert i not in known
        known[i] = int(plain.y[i])
    assert found.at_random == drawn < (N if key == "galaxy" else 1)
    assert found.reasons == {}


def test_galaxy_v_asks_for_nothing_where_nothing_is_labelled(problem):
    """A function that stacks the labels it is asked for cannot be called with no position."""
    _, pool, _ = problem
    found = chosen(problem, "galaxy_v", labelled=None, annotate=lambda p: torch.stack([pool.labels[i] for i in p]))
    assert found.indices.tolist() == chosen(problem, "galaxy_v", labelled=None).indices.tolist()


def test_flqmi_rare_is_not_drawn_at_random_where_no_validation_image_is_of_a_rare_class(problem):
    """As in the scripts, where rare classes follow from the pool; `query` refuses the same by its classes."""
    outputs = [outputs_of(problem[0], split) for split in problem[1:]]
    measurement = Measurement(pool_outputs=outputs[0], validation_outputs=outputs[1])
    labels, available = torch.zeros(30, dtype=torch.int64), torch.ones(60, dtype=torch.bool)
    situation = Situation(available, N, seeded(), measurement, labels, rare_classes=(3,))
    refuses(lambda: get_method("flqmi_rare").choose(situation), "and there is none")


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda labels: [NAMES[c] for c in labels]])
def test_galaxy_takes_labels_in_every_form(problem, form):
    """Also the names of classes, if the pool has them."""
    model, pool, validation = problem
    named = Split(pool.images, None, pool.mean, pool.std, classes=NAMES)
    labels, wanted = pool.labels.tolist(), chosen(problem, "galaxy").indices.tolist()
    found = chosen(
        (model, named, validation), "galaxy", annotate=lambda positions: form([labels[i] for i in positions])
    )
    assert found.indices.tolist() == wanted


@pytest.mark.parametrize("labels", [np.array, list, lambda labels: np.array([NAMES[c] for c in labels])])
def test_galaxy_takes_a_single_label_for_a_single_image(problem, labels):
    """numpy's y[positions] is a number for one position."""
    model, pool, validation = problem
    named = Split(pool.images, None, pool.mean, pool.std, classes=NAMES)
    y, wanted = labels(pool.labels.tolist()), chosen(problem, "galaxy").indices.tolist()

    def annotate(positions):
        return [y[i] for i in positions] if len(positions) > 1 else y[positions]

    assert chosen((model, named, validation), "galaxy", annotate=annotate).indices.tolist() == wanted


def test_typiclust_takes_typical_images_of_the_features_of_the_network_given(problem, plain):
    x = torch.from_numpy(plain.z / np.linalg.norm(plain.z, axis=1, keepdims=True)).float()
    available = torch.ones(60, dtype=torch.bool).index_fill_(0, torch.tensor(LABELLED), False)
    for labelled, mask in ((LABELLED, available), (None, torch.ones(60, dtype=torch.bool))):
        clusters = k_means(x, N + int((~mask).sum()), seeded())
        found = chosen(problem, "typiclust", labelled=labelled)
        assert found.indices.tolist() == plain_typiclust(x, mask, N, clusters)
        assert (found.reasons, found.at_random) == ({}, 0)


@pytest.mark.parametrize(("limit", "value", "most"), [("TARGETS", 1000, 1000), ("TARGETS", 7, 7), ("JOINT", 115, 7)])
def test_epig_is_about_random_validation_images_under_shared_masks(problem, plain, monkeypatch, limit, value, most):
    """All of them, or as many as there may be; each takes 16 joint probabilities with a pool image."""
    monkeypatch.setattr(methods, limit, value)
    draws = seeded()
    targets = sorted(torch.randperm(30, generator=draws)[:most].tolist())
    kept = torch.rand(SAMPLES, 216, generator=torch.Generator().manual_seed(draw_seed(draws))) >= 0.5
    masks = 2 * kept.double().numpy()
    samples, others = (
        np.array([softmax(z * mask @ plain.weight.T + plain.bias) for mask in masks])
        for z in (plain.z, plain.zv[targets])
    )
    scores = np.zeros(60)
    for i in range(60):
        for t in range(len(targets)):
            joint = np.mean([np.outer(samples[k, i], others[k, t]) for k in range(SAMPLES)], 0)
            product = np.outer(samples[:, i].mean(0), others[:, t].mean(0))
            scores[i] += (joint * np.log(joint / product)).sum() / len(targets)
    found = chosen(problem, "epig")
    assert found.indices.tolist() == plain.top(scores)
    assert np.allclose(found.score.numpy(), scores[found.indices.numpy()], atol=1e-6)


def test_epig_does_not_read_validation_labels(problem):
    model, pool, validation = problem
    unlabelled = Split(validation.images, None, validation.mean, validation.std)
    assert chosen((model, pool, unlabelled), "epig").indices.tolist() == chosen(problem, "epig").indices.tolist()


ACT = [key for key in KEYS if METHODS[key].acts_first]


@pytest.mark.parametrize("key", KEYS)
def test_the_first_query_is_random_for_methods_that_need_a_trained_last_layer(problem, key):
    found, drawn = (chosen(problem, each, labelled=None) for each in (key, "random"))
    assert (found.indices.tolist() == drawn.indices.tolist()) == (key not in ACT)
    assert found.at_random == (0 if key in ACT else N)
    assert set(ACT) == {"coreset", "galaxy_v", "typiclust", "flqmi", "flqmi_z", "flqmi_rare"}


def test_what_the_methods_know():
    known = {key for key in KEYS if METHODS[key].is_informed}
    assert known == {"galaxy", "galaxy_v", "epig", "flqmi", "flqmi_z", "flqmi_rare"}
    labels = {key for key in KEYS if METHODS[key].needs_validation_labels}
    assert labels == {"galaxy_v", "flqmi", "flqmi_z", "flqmi_rare"}
    assert {key for key in KEYS if "annotation" in METHODS[key].inputs} == {"galaxy", "galaxy_v"}
    assert {key for key in KEYS if "rare_classes" in METHODS[key].inputs} == {"flqmi_rare"}
    assert {key for key in KEYS if METHODS[key].of_rotation_model} == {"typiclust"}
    assert not any(METHODS[key].needs_descriptors or METHODS[key].needs_uncertainty for key in KEYS)


@pytest.mark.parametrize("key", [key for key in KEYS if not METHODS[key].needs_validation])
def test_no_validation_set_is_needed(problem, key):
    model, pool, _ = problem
    assert chosen((model, pool, None), key).indices.tolist() == chosen(problem, key).indices.tolist()


# What the last layer gets and gives


def lenet():
    torch.manual_seed(3)
    return LeNet()


def resnet():
    torch.manual_seed(3)
    return ResNet10()


@pytest.mark.parametrize(("make", "size", "tap"), [(lenet, (1, 28, 28), 2), (resnet, (3, 32, 32), 3)])
def test_features_are_the_tap_before_the_last_linear_layer(make, size, tap):
    """LeNet's x4, and the pooled output of ResNet-10's layer4; the hooks are gone afterwards."""
    model = make()
    pixels = torch.randint(0, 256, (7, *size), dtype=torch.uint8, generator=seeded())
    split = Split(pixels, torch.zeros(7, dtype=torch.int64), (0.5,) * size[0], (0.25,) * size[0])
    found = outputs_of(model, split, batch_size=3)
    with torch.no_grad():
        logits, taps = model.eval()(next(split.batches(7))[0])
    assert torch.allclose(found.features, taps[tap], atol=1e-5)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert torch.allclose(logits_of(model, split, 4), logits, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())
    both = outputs_of(model, split, (tap, 1))
    assert torch.allclose(both.features, torch.cat([taps[tap], taps[1].mean((2, 3))], 1), atol=1e-5)


class Head(nn.Module):
    """A network whose logits come from `head`, of two taps."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.fc, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 8), head

    def forward(self, images):
        x = torch.relu(self.conv(images)).mean((2, 3))
        y = torch.relu(self.fc(x))
        return self.head(y), [x, y]


class ConvolutionHead(nn.Module):
    """A 1x1 convolution in place of a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, CLASSES, 1)

    def forward(self, features):
        return self.conv(features[:, :, None, None]).flatten(1)


HEADS = {
    "linear": lambda: nn.Linear(8, CLASSES),
    "log_softmax": lambda: nn.Sequential(nn.Linear(8, CLASSES), nn.LogSoftmax(1)),
    "scaled": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, CLASSES), nn.Tanh()),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_linear_layer_may_be_followed_by_something(problem, kind):
    model = Head(HEADS[kind]())
    found = outputs_of(model, problem[1])
    with torch.no_grad():
        logits, (_, y) = model.eval()(next(problem[1].batches(60))[0])
    assert torch.allclose(found.features, y, atol=1e-6)
    assert torch.allclose(found.logits, logits, atol=1e-6)


def test_a_head_that_is_no_linear_layer_needs_taps(problem):
    _, pool, validation = problem
    model = Head(ConvolutionHead())
    for key in ("badge", "coreset", "typiclust", "flqmi"):
        refuses(
            lambda key=key: chosen((model, pool, validation), key), "no linear layer (nn.Linear) of the model may give"
        )
        refuses(lambda key=key: chosen((model, pool, validation), key), "name taps to use instead, as taps=(0,)")
        assert len(chosen((model, pool, validation), key, taps=(0,))) == N
    for key in ("margin", "leastconf", "entropy_det", "galaxy"):  # logits are enough
        assert len(chosen((model, pool, validation), key)) == N


def test_taps_replace_the_last_layers_input(problem):
    _, pool, validation = problem
    same = Head(HEADS["linear"]())
    for key in ("badge", "coreset", "typiclust", "flqmi", "flqmi_z"):
        of = functools.partial(chosen, (same, pool, validation), key)
        assert of(taps=(1,)).indices.tolist() == of().indices.tolist()
    z = outputs_of(same, pool, (0,)).features.numpy()
    assert z.shape == (60, 6)
    rest = [i for i in range(60) if i not in LABELLED]
    assert chosen((same, pool, validation), "coreset", taps=(0,)).indices.tolist() == farthest(z, LABELLED, rest, N)[0]


def test_outputs_go_where_they_are_told_to(problem):
    """float16 features and float32 logits, as the scripts write them."""
    model, pool, _ = problem
    wanted, given = outputs_of(model, pool, batch_size=16), []

    def allocate(count, width, classes):
        given.append(Outputs(np.zeros((count, width), np.float16), np.zeros((count, classes), np.float32)))
        return given[0]

    found = outputs_of(model, pool, batch_size=16, allocate=allocate)
    assert found is given[0]
    assert np.array_equal(found.logits, wanted.logits.numpy())
    assert np.array_equal(found.features, wanted.features.numpy().astype(np.float16))
    back = found.to("cpu")
    assert (back.features.dtype, back.logits.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(back.features, wanted.features, atol=1e-3)
    large = alfk.tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, CLASSES)), ["1"])
    with torch.no_grad():
        large.model[1].bias.fill_(70_000)
    words = "features of the pool are as large as 7e+04, which is more than float16 holds: use --descr-dtype float32"
    refuses(lambda: outputs_of(large, pool, name="the pool", allocate=allocate), words)


# What is refused


def test_what_a_method_needs_to_be_told(problem):
    of = functools.partial(chosen, problem)
    refuses(lambda: of("galaxy", annotate=None), "galaxy asks for labels while it chooses: give annotate")
    for rare in (None, [], 3, "cat", np.int64(3), torch.tensor(3), 1.5):
        refuses(
            lambda rare=rare: of("flqmi_rare", rare_classes=rare), "flqmi_rare has to be told which classes are rare"
        )
    refuses(lambda: of("flqmi_rare", rare_classes=[4, 9]), "no validation image is of the rare class 4")
    refuses(lambda: of("flqmi_rare", rare_classes=[1.5]), "a rare class is a whole number, not 1.5")
    refuses(lambda: of("flqmi", samples=0), "samples is at least 1")
    model, pool, _ = problem
    for key in ("flqmi", "flqmi_rare", "epig"):
        refuses(lambda key=key: chosen((model, pool, None), key), "the validation set has to be an alfk.Split")
    unlabelled = Split(pool.images, None, pool.mean, pool.std)
    refuses(lambda: chosen((model, pool, unlabelled), "flqmi"), "the validation set has no labels")
    refuses(lambda: chosen((model, pool, unlabelled.subset([])), "epig"), "the validation set is empty")
    for key in KEYS:
        refuses(lambda key=key: chosen(([model, model], *problem[1:]), key), f"{key} uses one network, not an ensemble")


WRONG = {
    "a class too many": (lambda positions: [CLASSES] * len(positions), "gave the label 4, but the classes are 0 to 3"),
    "below 0": (lambda positions: [-1] * len(positions), "annotate: labels go from -1 to -1"),
    "too few": (lambda positions: [0] * (len(positions) - 1), "annotate: 4 images but 3 labels"),
    "too many": (lambda positions: [0] * (len(positions) + 1), "annotate: 4 images but 5 labels"),
    "one for all": (lambda positions: 0, "annotate: labels have the shape ()"),
    "nothing": (lambda positions: None, "annotate: it returned None"),
    "a name": (lambda positions: ["cat"] * len(positions), "annotate: labels are names, but the split does not know"),
    "a fraction": (lambda positions: [0.5] * len(positions), "annotate: labels: these are not whole numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers_of_the_annotator_take_a_line(problem, case):
    annotate, words = WRONG[case]
    refuses(lambda: chosen(problem, "galaxy", annotate=annotate), words)


class Wide(nn.Module):
    """1,000 outputs, and a count of its forward passes."""

    def __init__(self):
        super().__init__()
        self.drop, self.fc, self.calls = nn.Dropout(0.5), nn.Linear(64, 1000), 0

    def forward(self, x):
        self.calls += 1
        logits = self.fc(self.drop(x.flatten(1)))
        return logits, [logits]


def test_epig_is_refused_for_many_classes_before_anything_is_sampled(problem):
    model, words = Wide(), "epig cannot be computed for 1,000 classes, only for up to 500"
    refuses(lambda: chosen((model, *problem[1:]), "epig"), words)
    assert model.calls <= 1
    refuses(lambda: get_method("epig").check_classes(1000), words)
    get_method("epig").check_classes(500)
    named = Split(problem[1].images, None, (0.5,), (0.3,), classes=[f"class {c}" for c in range(1000)])
    refuses(lambda: chosen((model, named, problem[2]), "epig"), words)


class NotFinite(SmallNet):
    """Logits of images whose first pixel is white are NaN."""

    def forward(self, images):
        logits, taps = super().forward(images)
        return logits.masked_fill(images[:, 0, 0, :1] > 1.6, float("nan")), taps


@pytest.mark.parametrize("key", ["epig", "flqmi"])
def test_a_validation_image_whose_outputs_are_not_finite_is_named(problem, key):
    torch.manual_seed(0)
    model, (pool, validation) = NotFinite(), (split.images.clamp(max=200) for split in problem[1:])
    validation[11, 0, 0, 0] = 255
    splits = [Split(x, torch.arange(len(x)) % CLASSES, (0.5,), (0.3,)) for x in (pool, validation)]
    refuses(lambda: chosen((model, *splits), key), "image 11 of the validation set: its logits are not finite")


def test_epig_needs_dropout_and_more_samples_than_one(problem):
    _, pool, validation = problem
    refuses(lambda: chosen(problem, "epig", samples=1), "what samples have in common, of which there is one")
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
    model = alfk.tapped(nn.Sequential(*layers), ["1"])
    refuses(lambda: chosen((model, pool, validation), "epig"), "the network calls no dropout layer")
    model = alfk.tapped(nn.Sequential(*layers[:3], nn.Dropout(0), layers[3]), ["1"])
    refuses(lambda: chosen((model, pool, validation), "epig"), f"the {SAMPLES} dropout samples are equal, since")


@pytest.mark.parametrize(("key", "words"), [("Badge", "did you mean badge?"), ("margins", "did you mean margin?")])
def test_the_key_that_was_meant_is_named(problem, key, words):
    refuses(lambda: chosen(problem, key), words)
    refuses(lambda: chosen(problem, ["badge"]), "there is no method ['badge']")


def test_a_method_is_named_where_it_does_not_exist(problem):
    with pytest.raises(UserError, match="there is no method 'rivals'"):
        query("rivals", *problem, N)
