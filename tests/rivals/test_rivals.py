"""The rivals through `query`: what each is given, what the last layer's inputs and outputs are, and what is refused.

The formulas are compared with plain ones in test_rivals_cover.py and test_rivals_other.py, the scripts are tested in
test_rival_runs.py.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import alfk
from alfk.data.split import Split
from alfk.method.acquisition import METHODS, get_method
from alfk.method.registry import Measurement, Situation
from alfk.networks.outputs import Outputs, logits_of, outputs_of
from alfk.own.queries import query
from alfk.rivals import RIVALS, scores
from alfk.rivals import epig as epig_module
from alfk.rivals.badge import badge
from alfk.rivals.coreset import coreset
from alfk.rivals.direct import direct
from alfk.rivals.facility_location import Factors, facility_location
from alfk.rivals.galaxy import galaxy
from alfk.rivals.glister import glister
from alfk.rivals.gradients import gradients
from alfk.rivals.typiclust import typiclust
from alfk.support.seeding import draw_seed
from mnist.custom_models.lenet import LeNet
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import SmallNet, random_problem, refuses

CLASSES, N, SAMPLES, SEED = 4, 9, 6, 5
LABELLED = [40, 3, 17, 22]
RARE, NAMES = (1, 3), ("ant", "bee", "cat", "dog")
KEYS = [method.key for method in RIVALS]


@pytest.fixture(scope="module")
def problem():
    """(model, pool, validation) of random images."""
    return random_problem()


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def chosen(problem, key, labelled=LABELLED, **options):
    _, pool, _ = problem
    options = {"annotate": lambda at: pool.labels[at], "rare_classes": RARE, "samples": SAMPLES, **options}
    return query(key, *problem, N, labelled=labelled, batch_size=16, generator=SEED, **options)


# Each method's choice, from features and logits that are computed here


@pytest.fixture(scope="module")
def given(problem):
    """What the methods choose from: features z, logits, probabilities and labels of pool and validation set (_v)."""
    model, pool, validation = problem
    found = SimpleNamespace(y=pool.labels, y_v=validation.labels)
    with torch.no_grad():
        for end, split in (("", pool), ("_v", validation)):
            images = next(split.batches(len(split)))[0]
            z = torch.relu(model.conv(images)).flatten(1)
            logits = model.fc(z)
            vars(found).update({f"z{end}": z, f"logits{end}": logits, f"p{end}": logits.double().softmax(1)})
    found.available = torch.ones(60, dtype=torch.bool).index_fill_(0, torch.tensor(LABELLED), False)
    found.wrong = (found.logits_v.argmax(1) != found.y_v).nonzero().flatten()
    found.rare = torch.isin(found.y_v, torch.tensor(RARE)).nonzero().flatten()
    assert 0 < len(set(found.rare.tolist()) - set(found.wrong.tolist())) < len(found.rare)
    return found


def top(score):
    def choose(o):
        values = score(o.logits)
        order = values.masked_fill(~o.available, -torch.inf).argsort(descending=True)[:N]
        return order, values[order]

    return choose


def by_flqmi(o, queries, of_gradients):
    of_pool, of_queries = (gradients(o.logits), gradients(o.logits_v, o.y_v)[queries]) if of_gradients else (None, None)
    cover = facility_location(Factors(o.z, of_pool), Factors(o.z_v[queries], of_queries), o.available, N)
    return cover.indices, cover.gains


def by_galaxy(o, known_elsewhere=None):
    labels = o.y[~o.available]
    return galaxy(o.p, o.available, labels, N, lambda i: int(o.y[i]), seeded(), known_elsewhere)[0], None


def by_glister(o):
    pool, validation = Outputs(o.z, o.logits), Outputs(o.z_v, o.logits_v)
    return glister(pool, validation, o.y_v, o.available, o.y[~o.available], N)


BY_HAND = {  # key -> the indices, and the scores if there are any
    "margin": top(scores.margin),
    "leastconf": top(scores.least_confidence),
    "entropy_det": top(scores.entropy),
    "badge": lambda o: (badge(gradients(o.logits), o.z, o.available, N, seeded()).indices, None),
    "coreset": lambda o: coreset(o.z, o.available, N),
    "galaxy": by_galaxy,
    "galaxy_v": lambda o: by_galaxy(o, (o.p_v, o.y_v)),
    "direct": lambda o: (direct(o.p, o.available, o.y[~o.available], N, lambda at: o.y[at], seeded()), None),
    "glister": by_glister,
    "typiclust": lambda o: (typiclust(o.z, o.available, N, seeded()), None),
    "flqmi": lambda o: by_flqmi(o, o.wrong, True),
    "flqmi_z": lambda o: by_flqmi(o, o.wrong, False),
    "flqmi_rare": lambda o: by_flqmi(o, o.rare, True),
}


@pytest.mark.parametrize("key", BY_HAND)
def test_a_method_chooses_from_what_it_declares(problem, given, key):
    indices, values = BY_HAND[key](given)
    found = chosen(problem, key)
    assert found.indices.tolist() == indices.tolist()
    assert (found.score is None) == (values is None)
    assert values is None or torch.allclose(found.score.double(), values.double(), rtol=1e-4, atol=1e-4)
    assert found.misclassified == (len(given.wrong) if key.startswith("flqmi") else None)
    assert found.centres is None
    assert (found.matches is None) == (key not in ("flqmi", "flqmi_z"))


@pytest.mark.parametrize(("limit", "value", "most"), [("TARGETS", 1000, 1000), ("TARGETS", 7, 7), ("JOINT", 115, 7)])
def test_epig_is_about_random_validation_images_under_shared_masks(problem, given, monkeypatch, limit, value, most):
    """All of them, or the most allowed; each takes 16 joint probabilities with a pool image."""
    monkeypatch.setattr(epig_module, limit, value)
    draws = seeded()
    targets = sorted(torch.randperm(30, generator=draws)[:most].tolist())
    masks = 2.0 * (torch.rand(SAMPLES, 216, generator=torch.Generator().manual_seed(draw_seed(draws))) >= 0.5)
    with torch.no_grad():
        pool, others = (
            torch.stack([problem[0].fc(z * mask) for mask in masks], 1) for z in (given.z, given.z_v[targets])
        )
    values = epig_module.epig(pool, others)
    found = chosen(problem, "epig")
    assert found.indices.tolist() == values.masked_fill(~given.available, -1).argsort(descending=True)[:N].tolist()
    assert torch.allclose(found.score, values[found.indices], atol=1e-6)
    model, split, validation = problem
    unlabelled = Split(validation.images, None, validation.mean, validation.std)
    assert chosen((model, split, unlabelled), "epig").indices.tolist() == found.indices.tolist()


@pytest.mark.parametrize("key", ["flqmi", "flqmi_z", "flqmi_rare"])
def test_flqmi_without_an_error(problem, given, key):
    """Images are drawn at random, except for known rare classes."""
    model, pool, validation = problem
    right = Split(validation.images, given.logits_v.argmax(1), (0.5,), (0.3,))
    found = chosen((model, pool, right), key, rare_classes=[int(right.labels[0])])
    assert (found.misclassified, found.at_random) == (0, 0 if key == "flqmi_rare" else N)
    assert len({*found.indices.tolist(), *LABELLED}) == N + len(LABELLED)
    assert (found.score is None) == (key != "flqmi_rare")


def test_flqmi_rare_needs_a_validation_image_of_a_rare_class(problem):
    """Also in the scripts, where rare classes follow from the pool."""
    outputs = [outputs_of(problem[0], split) for split in problem[1:]]
    measurement = Measurement(pool_outputs=outputs[0], validation_outputs=outputs[1])
    labels, available = torch.zeros(30, dtype=torch.int64), torch.ones(60, dtype=torch.bool)
    for rare, words in (((3,), "and there is none"), ((), "and of this pool none is known to be")):
        situation = Situation(available, N, seeded(), measurement, labels, rare_classes=rare)
        refuses(lambda situation=situation: get_method("flqmi_rare").choose(situation), words)


@pytest.mark.parametrize("key", ["galaxy", "galaxy_v"])
def test_galaxy_asks_for_the_labelled_images_and_then_for_one_after_another(problem, key):
    _, pool, _ = problem
    asked = []

    def annotate(positions):
        asked.append(positions.tolist())
        return pool.labels[positions]

    found = chosen(problem, key, annotate=annotate)
    assert asked == [sorted(LABELLED), *([i] for i in found.indices.tolist())]
    assert found.at_random < (N if key == "galaxy" else 1)


def test_what_glister_and_direct_ask_for(problem):
    """Labels of the labelled images in one call; direct then for those that it draws, half of the query."""
    for key, more in (("glister", 0), ("direct", N // 2)):
        asked = []

        def annotate(positions, asked=asked):
            asked.append(positions)
            return problem[1].labels[positions]

        found = chosen(problem, key, annotate=annotate)
        assert torch.cat(asked).tolist() == [*sorted(LABELLED), *found.indices.tolist()[:more]]
        assert len(asked[0]) == len(LABELLED)


def test_galaxy_v_asks_for_nothing_where_nothing_is_labelled(problem):
    """A function that stacks the labels of its positions cannot be called with none."""
    _, pool, _ = problem
    found = chosen(problem, "galaxy_v", labelled=None, annotate=lambda p: torch.stack([pool.labels[i] for i in p]))
    assert found.indices.tolist() == chosen(problem, "galaxy_v", labelled=None).indices.tolist()


FORMS = {  # labels of the positions, from all labels as a list
    "a list": lambda y, at: [y[i] for i in at],
    "an array": lambda y, at: np.array([y[i] for i in at]),
    "a tensor": lambda y, at: torch.tensor([y[i] for i in at]),
    "names": lambda y, at: [NAMES[y[i]] for i in at],
    "a number for one position": lambda y, at: np.array(y)[at if len(at) > 1 else int(at)],
    "a name for one position": lambda y, at: np.array([NAMES[c] for c in y])[at if len(at) > 1 else int(at)],
}


@pytest.mark.parametrize("form", FORMS)
def test_galaxy_takes_labels_in_every_form(problem, form):
    """Names, if the pool has classes by name."""
    model, pool, validation = problem
    named, y = Split(pool.images, None, pool.mean, pool.std, classes=NAMES), pool.labels.tolist()
    found = chosen((model, named, validation), "galaxy", annotate=lambda positions: FORMS[form](y, positions))
    assert found.indices.tolist() == chosen(problem, "galaxy").indices.tolist()


BY_DESCRIPTORS = {"Rz_fl", "Rzg_fl", "Rzg_flw", "Rz_rc", "Rzg_rc"}
ACT = {"coreset", "galaxy_v", "typiclust", "flqmi", "flqmi_z", "flqmi_rare", *BY_DESCRIPTORS}


@pytest.mark.parametrize("key", KEYS)
def test_the_first_query_is_random_for_methods_that_need_a_trained_last_layer(problem, key):
    found, drawn = (chosen(problem, each, labelled=None) for each in (key, "random"))
    assert (found.indices.tolist() == drawn.indices.tolist()) == (key not in ACT)
    assert found.at_random == (0 if key in ACT else N)
    assert METHODS[key].acts_first == (key in ACT)


def test_what_the_methods_know(problem):
    def keys(has):
        return {key for key in KEYS if has(METHODS[key])}

    informed = {"galaxy_v", "glister", "flqmi", "flqmi_z", "flqmi_rare", *BY_DESCRIPTORS}
    assert keys(lambda m: m.needs_validation_labels) == informed
    assert keys(lambda m: m.is_informed) == informed | {"galaxy", "direct", "epig"}
    assert keys(lambda m: "annotation" in m.inputs) == {"galaxy", "galaxy_v", "direct"}
    assert keys(lambda m: "labels" in m.inputs) == {"glister"}
    assert keys(lambda m: "rare_classes" in m.inputs) == {"flqmi_rare"}
    assert keys(lambda m: m.of_rotation_model) == {"typiclust"}
    assert keys(lambda m: m.needs_descriptors or m.needs_uncertainty) == BY_DESCRIPTORS
    model, pool, _ = problem
    for key in keys(lambda m: not m.needs_validation):
        assert chosen((model, pool, None), key).indices.tolist() == chosen(problem, key).indices.tolist()


# Inputs and outputs of the last linear layer


@pytest.mark.parametrize(("kind", "size", "tap"), [(LeNet, (1, 28, 28), 2), (ResNet10, (3, 32, 32), 3)])
def test_features_are_the_tap_before_the_last_linear_layer(kind, size, tap):
    """LeNet's x4, and the pooled output of ResNet-10's layer4; the hooks are gone afterwards."""
    torch.manual_seed(3)
    model = kind()
    pixels = torch.randint(0, 256, (7, *size), dtype=torch.uint8, generator=seeded())
    split = Split(pixels, torch.zeros(7, dtype=torch.int64), (0.5,) * size[0], (0.25,) * size[0])
    found, both = outputs_of(model, split, batch_size=3), outputs_of(model, split, (tap, 1))
    with torch.no_grad():
        logits, taps = model.eval()(next(split.batches(7))[0])
    assert torch.allclose(found.features, taps[tap], atol=1e-5)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert torch.allclose(logits_of(model, split, 4), logits, atol=1e-5)
    assert torch.allclose(both.features, torch.cat([taps[tap], taps[1].mean((2, 3))], 1), atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


class Head(nn.Module):
    """A network of two taps whose logits come from `head`."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.fc, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 8), head

    def forward(self, images):
        x = torch.relu(self.conv(images)).mean((2, 3))
        y = torch.relu(self.fc(x))
        return self.head(y), [x, y]


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
    convolution = nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, CLASSES, 1), nn.Flatten())
    of = functools.partial(chosen, (Head(convolution), *problem[1:]))
    for key in ("badge", "coreset", "typiclust", "flqmi"):
        refuses(lambda key=key: of(key), "no linear layer (nn.Linear) of the model may give its logits")
        assert len(of(key, taps=(0,))) == N
    for key in ("margin", "leastconf", "entropy_det", "galaxy"):  # logits are enough
        assert len(of(key)) == N


def test_taps_replace_the_last_layers_input(problem, given):
    model = Head(HEADS["linear"]())
    of = functools.partial(chosen, (model, *problem[1:]))
    for key in ("badge", "coreset", "typiclust", "glister", "flqmi", "flqmi_z"):
        assert of(key, taps=(1,)).indices.tolist() == of(key).indices.tolist()
    z = outputs_of(model, problem[1], (0,)).features
    assert z.shape == (60, 6)
    assert of("coreset", taps=(0,)).indices.tolist() == coreset(z, given.available, N)[0].tolist()


def test_outputs_are_written_where_allocate_says(problem):
    """float16 features and float32 logits, as the scripts write them."""
    model, pool, _ = problem
    wanted, targets = outputs_of(model, pool, batch_size=16), []

    def allocate(count, width, classes):
        targets.append(Outputs(np.zeros((count, width), np.float16), np.zeros((count, classes), np.float32)))
        return targets[-1]

    found = outputs_of(model, pool, batch_size=16, allocate=allocate)
    assert found is targets[0]
    assert np.array_equal(found.logits, wanted.logits.numpy())
    assert np.array_equal(found.features, wanted.features.numpy().astype(np.float16))
    back = found.to("cpu")
    assert (back.features.dtype, back.logits.dtype) == (torch.float32, torch.float32)
    large = alfk.tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, CLASSES)), ["1"])
    with torch.no_grad():
        large.model[1].bias.fill_(70_000)
    words = "features of the pool are as large as 7e+04, which is more than float16 holds: use --descr-dtype float32"
    refuses(lambda: outputs_of(large, pool, name="the pool", allocate=allocate), words)


# What is refused


def without_labels(split):
    return Split(split.images, None, split.mean, split.std)


def perceptron(*last):
    """A network without nn.Dropout, unless it is among the last layers."""
    torch.manual_seed(0)
    return alfk.tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), *last, nn.Linear(8, CLASSES)), ["1"])


WRONG = {  # case: (problem -> a call that is refused, words of the message)
    "no annotator": (lambda p: chosen(p, "galaxy", annotate=None), "galaxy asks for labels while it chooses"),
    "no annotator for labels": (lambda p: chosen(p, "glister", annotate=None), "glister asks for the known labels"),
    "no rare classes": (lambda p: chosen(p, "flqmi_rare", rare_classes=None), "flqmi_rare needs to know which classes"),
    "no rare class": (lambda p: chosen(p, "flqmi_rare", rare_classes=[]), "flqmi_rare needs to know which classes"),
    "one rare class": (lambda p: chosen(p, "flqmi_rare", rare_classes=np.int64(3)), "flqmi_rare needs to know which"),
    "a name": (lambda p: chosen(p, "flqmi_rare", rare_classes="cat"), "flqmi_rare needs to know which classes"),
    "no such class": (
        lambda p: chosen(p, "flqmi_rare", rare_classes=[4, 9]),
        "no validation image is of the rare class 4",
    ),
    "half a class": (lambda p: chosen(p, "flqmi_rare", rare_classes=[1.5]), "a rare class is a whole number, not 1.5"),
    "no samples": (lambda p: chosen(p, "flqmi", samples=0), "samples is at least 1"),
    "no validation set": (lambda p: chosen((*p[:2], None), "flqmi"), "the validation set has to be an alfk.Split"),
    "none for epig": (lambda p: chosen((*p[:2], None), "epig"), "the validation set has to be an alfk.Split"),
    "no labels": (lambda p: chosen((*p[:2], without_labels(p[2])), "flqmi"), "the validation set has no labels"),
    "no images": (lambda p: chosen((*p[:2], p[2].subset([])), "epig"), "the validation set is empty"),
    "one sample": (lambda p: chosen(p, "epig", samples=1), "what samples have in common, of which there is one"),
    "no dropout": (lambda p: chosen((perceptron(), *p[1:]), "epig"), "the network calls no dropout layer"),
    "dropout of 0": (
        lambda p: chosen((perceptron(nn.Dropout(0)), *p[1:]), "epig"),
        f"the {SAMPLES} dropout samples are equal, since",
    ),
    "a capital": (lambda p: chosen(p, "Badge"), "did you mean badge?"),
    "a key in a list": (lambda p: chosen(p, ["badge"]), "there is no method ['badge']"),
    "all rivals": (lambda p: chosen(p, "rivals"), "there is no method 'rivals'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_takes_a_line(problem, case):
    call, words = WRONG[case]
    refuses(lambda: call(problem), words)


@pytest.mark.parametrize("key", KEYS)
def test_rivals_use_one_network(problem, key):
    refuses(lambda: chosen(([problem[0]] * 2, *problem[1:]), key), f"{key} uses one network, not an ensemble")


ANNOTATORS = {  # what an annotator returns for k positions
    "a class too many": (lambda k: [CLASSES] * k, "gave the label 4, but the classes are 0 to 3"),
    "below 0": (lambda k: [-1] * k, "annotate: labels go from -1 to -1"),
    "too few": (lambda k: [0] * (k - 1), "annotate: 4 images but 3 labels"),
    "too many": (lambda k: [0] * (k + 1), "annotate: 4 images but 5 labels"),
    "one for all": (lambda k: 0, "annotate: labels have the shape ()"),
    "nothing": (lambda k: None, "annotate: it returned None"),
    "a name": (lambda k: ["cat"] * k, "annotate: labels are names, but the split does not know"),
    "a fraction": (lambda k: [0.5] * k, "annotate: labels: these are not whole numbers"),
}


@pytest.mark.parametrize("case", ANNOTATORS)
def test_wrong_labels_of_the_annotator_take_a_line(problem, case):
    annotator, words = ANNOTATORS[case]
    refuses(lambda: chosen(problem, "galaxy", annotate=lambda positions: annotator(len(positions))), words)


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
    assert model.calls <= 2
    refuses(lambda: get_method("epig").check_classes(1000), words)
    get_method("epig").check_classes(500)


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
