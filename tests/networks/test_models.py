"""Models as people have them: a query chooses what it chooses for the plain float32 network, or says what is wrong."""

import contextlib
import copy
import dataclasses
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import alfk
from alfk.data.split import Split
from alfk.method.acquisition import METHODS
from alfk.method.descriptors import ForwardPass, descriptors_of
from alfk.method.pseudo_labels import predicted
from alfk.method.uncertainty import uncertainty
from alfk.networks.contract import check_model
from alfk.networks.modes import computing
from alfk.networks.outputs import logits_of
from alfk.networks.taps import tapped
from tests.helpers import refuses
from tests.networks.small_networks import (
    CLASSES,
    IMAGES,
    POOL,
    VALIDATION,
    Changed,
    Net,
    WithTaps,
    made,
    split,
    with_taps,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

# One method for each kind of pass: features, gradients, second derivatives, gradients in a batch, MC-dropout, logits,
# the input of the last layer, shared dropout masks.
KEYS = ("Rz", "Rzg_pz", "Rzg_trace", "Rzg_mi", "BALD", "margin", "badge", "epig")
QUERYING = [key for key in METHODS if key != "random"]


def choose(key, model, pool=POOL, validation=VALIDATION):
    """What a method chooses, and why, after a first query, so that uncertainty counts too."""
    more = {"annotate": lambda positions: pool.labels[positions], "rare_classes": [int(validation.labels[0])]}
    found = alfk.query(key, model, pool, validation, 8, labelled=[2], samples=4, **more)
    return list(zip(*(values.tolist() for values in (found.indices, *found.reasons.values())), strict=True))


@functools.cache
def plain(key):
    return choose(key, with_taps())


# The same network in another shape


def frozen(model):
    return model.requires_grad_(False)


def frozen_backbone(model):
    model.model.conv1.requires_grad_(False)
    model.model.conv2.requires_grad_(False)
    return model


def own_forward(_):
    return made(WithTaps)


def frozen_own_forward(_):
    return made(WithTaps).requires_grad_(False)


def compiled(_):
    return tapped(torch.compile(made(Net)), ["relu1", "relu2"])


def compiled_outside(model):
    return torch.compile(model)


def compiled_in_place(model):
    model.model.compile()
    return model


def compiled_inside(model):
    model.model.relu2 = torch.compile(model.model.relu2)
    return model


def data_parallel(model):
    return nn.DataParallel(model)


def tapped_data_parallel(_):
    return tapped(nn.DataParallel(made(Net)), ["relu1", "relu2"])


def scripted(_):
    return torch.jit.script(made(WithTaps))


def inplace(_):
    return with_taps(inplace=True)


def normalising_in_place(_):
    """Changes the images that it is given."""

    class Own(Net):
        def forward(self, x):
            x += 0
            return super().forward(x)

    return tapped(made(Own), ["relu1", "relu2"])


def made_in_inference_mode(_):
    with torch.inference_mode():
        return with_taps()


SAME = (
    frozen,
    frozen_backbone,
    own_forward,
    frozen_own_forward,
    compiled,
    compiled_outside,
    compiled_in_place,
    compiled_inside,
    data_parallel,
    tapped_data_parallel,
    scripted,
    inplace,
    normalising_in_place,
    copy.deepcopy,
    made_in_inference_mode,
    nn.Module.double,
)


@pytest.mark.parametrize("kind", SAME)
def test_the_same_network_in_another_shape_gives_the_same_to_the_bit(kind):
    """Layers of a script have no hooks, by which the last layer's input is read and masks are shared."""
    for key in KEYS:
        words = {"badge": "name taps to use instead", "epig": "calls no dropout layer"}.get(key)
        if kind is scripted and words:
            refuses(lambda key=key: choose(key, kind(with_taps())), words)
        else:
            assert choose(key, kind(with_taps())) == plain(key), key


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_backbone_that_runs_without_gradients(context):
    class Own(Net):
        def features(self, x):
            with context():
                return super().features(x)

    for key in KEYS:
        assert choose(key, tapped(made(Own), ["relu2"])) == choose(key, with_taps(["relu2"])), key


def mixed(model):
    """Half a network of half precision, and a head of double precision, as people leave it after quantising."""
    model.model.conv1.half()
    model.model.fc.double()
    return model


@pytest.mark.parametrize("kind", [nn.Module.half, nn.Module.bfloat16, mixed])
def test_weights_in_another_precision_are_computed_in_float32(kind):
    model = kind(with_taps())
    dtypes = [parameter.dtype for parameter in model.parameters()]
    for key in KEYS:
        assert choose(key, model) == choose(key, kind(with_taps()).float()), key
    assert [parameter.dtype for parameter in model.parameters()] == dtypes


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
}


@pytest.mark.parametrize("key", [*KEYS, "coreset", "flqmi", "typiclust", "galaxy"])
def test_whatever_is_set_around_a_query_changes_nothing(key):
    """A pool of 100 images, of which similarities of reduced precision choose others."""
    pool, model = split(100, 3), with_taps()
    wanted = choose(key, model, pool)
    for name, around in AROUND.items():
        with around():
            assert choose(key, model, pool) == wanted, name
            assert torch.is_autocast_enabled("cpu") == (name in ("float16", "bfloat16"))


def test_one_thread_computes_at_a_time():
    began = threading.Event()

    def query():
        with computing():
            began.set()

    with computing(), computing():
        other = threading.Thread(target=query)
        other.start()
        assert not began.wait(0.05)
    other.join(20)
    assert began.is_set()


def test_images_and_models_made_in_inference_mode():
    with torch.inference_mode():
        pool, validation = split(14, 1), split(9, 2)
    for key in ("Rz", "Rzg_pz"):
        assert choose(key, with_taps(), pool, validation) == plain(key)


@pytest.mark.parametrize("key", KEYS)
def test_the_global_generator_does_not_change_a_choice(key):
    """Dropout that is active in evaluation too, besides a layer."""

    class Own(Net):
        def forward(self, x):
            return self.fc(self.drop(F.dropout(self.features(x), 0.5, training=True).mean((2, 3))))

    model, found = tapped(made(Own), ["conv2"]), []
    for seed in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            found.append(choose(key, model))
            assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


# Reduced precision inside a forward


class Autocast(WithTaps):
    """Computes in reduced precision inside its forward."""

    dtype = torch.float16

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return super().forward(x)


class Bfloat16(Autocast):
    dtype = torch.bfloat16


@pytest.mark.parametrize("kind", [Autocast, Bfloat16])
def test_autocast_inside_a_forward_gives_float32_descriptors_of_its_accuracy(kind):
    with computing():
        for rule in (None, predicted):
            ours, wanted = (descriptors_of(made(each), POOL, None, rule, 8) for each in (kind, WithTaps))
            assert ours.vectors.dtype == torch.float32
            assert torch.equal(ours.pseudo_labels, wanted.pseudo_labels)
            assert (F.cosine_similarity(ours.vectors, wanted.vectors) > 0.99).all()
    for key in KEYS:
        assert len(choose(key, made(kind))) == 8


def test_small_gradients_survive_float16():
    """Fisher scores of 1e-8, which float16 rounds to 0."""

    class Sure(Autocast):
        def forward(self, x):
            logits, taps = super().forward(x)
            return logits + torch.tensor([14.0, 0, 0, 0]), taps

    bfloat16 = made(Sure)
    bfloat16.dtype = torch.bfloat16
    labels = torch.zeros(5, dtype=torch.int64)
    with computing():
        ours, wanted = (ForwardPass(model, IMAGES, None, None, grad=True) for model in (made(Sure), bfloat16))
        for mine, theirs in zip(ours.scores(labels, last=False), wanted.scores(labels), strict=True):
            assert 0 < mine.abs().max() < 6e-8
            assert (F.cosine_similarity(1e9 * mine, 1e9 * theirs) > 0.98).all()
        assert ours.jacobian().isfinite().all()


class CastsItsInput(Net):
    def forward(self, x):
        return super().forward(x.half())


class CastsToItsWeights(Net):
    def forward(self, x):
        return super().forward(x.to(self.conv1.weight.dtype))


def test_networks_that_cast_their_input():
    """To the type of their weights, which are float32 in a query; or to a fixed one, which no longer fits."""
    for key in KEYS:
        model = tapped(made(CastsToItsWeights).half(), ["relu1", "relu2"])
        assert choose(key, model) == choose(key, with_taps().half().float()), key
        model = tapped(made(CastsItsInput).half(), ["relu1", "relu2"])
        refuses(lambda key=key, model=model: choose(key, model), "pass model.float(), without casts in its forward")


# The contract


@dataclasses.dataclass
class Result:
    logits: torch.Tensor


BAD = {
    "dictionary": (lambda logits, taps: {"logits": logits, "taps": taps}, "a dictionary (logits, taps): forward must"),
    "logits alone": (lambda logits, taps: logits, "a tensor (5, 4) of float32: forward must return (logits"),
    "one tap": (lambda logits, taps: (logits, taps[0]), "forward must return (logits (B, C), list of taps)"),
    "dictionary of taps": (lambda logits, taps: (logits, {"a": taps[0]}), "list of taps"),
    "three": (lambda logits, taps: (logits, *taps), "a tuple of 3"),
    "None": (lambda logits, taps: None, "returned None"),
    "an object": (lambda logits, taps: Result(logits), "returned a Result"),
    "no taps": (lambda logits, taps: (logits, []), "returned no taps"),
    "one logit": (lambda logits, taps: (logits[:, :1], taps), "one logit"),
    "probabilities": (lambda logits, taps: (logits.softmax(1), taps), "leave out the softmax at its end"),
    "sigmoids": (lambda logits, taps: (logits.sigmoid(), taps), "leave out the sigmoid at its end"),
    "rounded": (lambda logits, taps: (logits.softmax(1).bfloat16(), taps), "leave out the softmax at its end"),
    "logits of pixels": (lambda logits, taps: (logits[..., None], taps), "not (5, classes)"),
    "labels": (lambda logits, taps: (logits.argmax(1), taps), "the model's logits are a tensor (5,) of int64"),
    "one channel": (lambda logits, taps: (logits, [taps[0][:, :1]]), "one channel"),
    "tokens": (lambda logits, taps: (logits, [taps[0].flatten(2).mT]), "alfk.tapped(..., channels_last=True)"),
    "channels last": (lambda logits, taps: (logits, [taps[0].movedim(1, -1)]), "channels seem to be the last"),
    "integers": (lambda logits, taps: (logits, [taps[0].long()]), "not a float tensor"),
    "a mean over images": (lambda logits, taps: (logits, [taps[0].mean(0, keepdim=True)]), "for 5 images"),
    "1-D": (lambda logits, taps: (logits, [taps[0].flatten(1).sum(1)]), "for 5 images"),
    "NumPy": (lambda logits, taps: (logits, [taps[0].detach().numpy()]), "a ndarray, not a float tensor"),
}
NEED_A_GRAPH = {
    "detached logits": (lambda logits, taps: (logits.detach(), taps), "the logits have no gradient"),
    "detached tap": (lambda logits, taps: (logits, [taps[0], taps[1].detach()]), "must be computed from the tap"),
    "unused tap": (lambda logits, taps: (logits, [taps[0], taps[1] + 1]), "do not depend on tap 1"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_forward_that_breaks_the_contract_gets_one_line(change, words):
    for scores in (False, True):
        refuses(lambda scores=scores: check_model(made(lambda: Changed(change)), IMAGES, None, scores), words)


@pytest.mark.parametrize(("change", "words"), NEED_A_GRAPH.values(), ids=NEED_A_GRAPH)
def test_taps_that_the_logits_do_not_depend_on(change, words):
    """Gradients need a graph; features and logits do not."""
    model = made(lambda: Changed(change))
    refuses(lambda: check_model(model, IMAGES, None, scores=True), words)
    assert check_model(model, IMAGES) == CLASSES


@pytest.mark.parametrize("key", QUERYING)
def test_every_method_checks_what_it_uses(key):
    method = METHODS[key]
    checked = {"logits alone": True, "tokens": method.needs_descriptors}
    checked |= dict.fromkeys(NEED_A_GRAPH, method.pool_label is not None)
    for name, is_checked in checked.items():
        change, words = (BAD | NEED_A_GRAPH)[name]
        if is_checked:
            refuses(lambda change=change: choose(key, Changed(change)), words)
        else:
            assert len(choose(key, Changed(change))) == 8, name


def test_checkpoints_that_allow_no_gradients_for_taps():
    class Own(Net):
        reentrant = True

        def forward(self, x):
            return checkpoint(lambda x: self.fc(x.mean((2, 3))), self.features(x), use_reentrant=self.reentrant)

    model = tapped(made(Own), ["relu2"])
    refuses(lambda: choose("Rzg_pz", model), "use use_reentrant=False")
    Own.reentrant = False
    assert choose("Rzg_pz", model) == choose("Rzg_pz", with_taps(["relu2"]))


@pytest.mark.parametrize("taps", [(2,), (0, -3)])
def test_a_tap_that_does_not_exist(taps):
    refuses(lambda: check_model(made(WithTaps), IMAGES, taps), f"no tap {taps[-1]}: the model returned 2")


def test_an_own_square_map_is_taken_as_channels_first():
    """(B, 12, 12, 12) of 12 pixels: both fit."""
    check_model(made(lambda: Changed(lambda logits, taps: (logits, [taps[0].repeat(1, 2, 1, 1)]))), IMAGES)


class Separated(WithTaps):
    """What is behind the first dropout returns the logits alone."""

    def before_dropout(self, x):
        return x

    def after_dropout(self, x):
        return self.forward(x)[0]


MODELS = {
    "no module": (lambda: lambda images: images, "must be a torch.nn.Module, not function"),
    "batch norm": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), made(WithTaps)),
        "0 normalises by the batch in evaluation mode too",
    ),
    "lazy layers": (lambda: tapped(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), ["0"]), "run it once, model(images)"),
    "colours": (
        lambda: tapped(nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten()), ["0"]),
        "fails with images (1, 12, 12) (Given groups=1",
    ),
    "another size": (
        lambda: tapped(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), ["0"]),
        "give images of the size and the channels that it was trained with",
    ),
    "after dropout": (lambda: made(Separated), "a tensor (5, 4) of float32: forward must return"),
}


@pytest.mark.parametrize(("model", "words"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("key", ["Rz", "BALD"])
def test_models_that_are_refused(model, words, key):
    refuses(lambda: choose(key, model()), words)


def test_the_check_leaves_no_trace():
    model = with_taps().train()
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_model(model, IMAGES, None, scores=True)
    assert model.model.conv1.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# Values that are not finite


class WithBadImage(Split):
    """Image 11 has a NaN, as a loader of one's own might return it."""

    def batches(self, *arguments):
        for images, positions in super().batches(*arguments):
            images[positions == 11, :, 3, 3] = float("nan")
            yield images, positions


def test_an_image_that_is_not_finite_is_named():
    pool = WithBadImage(POOL.images, None, (0.5,), (0.3,))
    for rule in (None, predicted):
        refuses(
            lambda rule=rule: descriptors_of(with_taps(), pool, None, rule, 8),
            "image 11 of the split: its features are",
        )
    refuses(lambda: logits_of(with_taps(), pool, 8), "image 11 of the split: its logits are not finite, nor are its")
    refuses(
        lambda: uncertainty("std", [with_taps()], pool, 4, torch.Generator(), 8, "the pool"),
        "image 11 of the pool: its",
    )


class NotFinite(WithTaps):
    """Features and logits of images whose first pixel is white are NaN."""

    def features(self, x):
        white = x[:, 0, 0, 0] > 1
        return super().features(x).masked_fill(white.view(-1, 1, 1, 1), float("nan"))

    def forward(self, x):
        x2 = self.features(x)
        return self.fc(self.drop(x2.mean((2, 3)))), [x2]


@pytest.mark.parametrize("key", QUERYING)
def test_rows_that_are_not_finite_are_never_chosen(key):
    pool = Split(POOL.images.clamp(max=200), POOL.labels, (0.5,), (0.3,))
    pool.images[11, 0, 0, 0] = 255
    validation = Split(VALIDATION.images.clamp(max=200), VALIDATION.labels, (0.5,), (0.3,))
    refuses(lambda: choose(key, made(NotFinite), pool, validation), "image 11 of the pool: its ")
    diverged = with_taps()
    diverged.model.fc.weight.data[1] = float("nan")
    refuses(lambda: choose(key, diverged), "not finite, nor are the model's weights: its training diverged")


def test_an_overflow_is_named():
    model = with_taps()
    model.model.conv2.weight.data *= 1e18
    model.model.fc.weight.data *= 1e25
    refuses(lambda: descriptors_of(model, POOL, batch_size=8), "its logits are not finite, a layer overflows")
