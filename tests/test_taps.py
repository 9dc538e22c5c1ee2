"""Models as people have them: right, to the bit of the same float32 network where it can be, or refused in one line."""

import contextlib
import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from alfk.data.split import Split
from alfk.method.acquisition import METHODS, select
from alfk.method.descriptors import ForwardPass, describe
from alfk.method.perturbation import RotationAndNoise
from alfk.method.pseudo_labels import ESTIMATORS, from_copies, nearest_by_feature, predicted
from alfk.method.uncertainty import uncertainty
from alfk.networks.modes import computing, prepare
from alfk.networks.outputs import logits_of
from alfk.networks.suggestions import suggest_taps
from alfk.networks.passes import run
from alfk.networks.taps import tapped
from tests.helpers import refuses

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SIZE, CLASSES = 12, 4


class Net(nn.Module):
    """A convolutional network of one's own, which returns the logits alone."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace)
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, 2, padding=1), nn.ReLU(inplace)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, CLASSES)

    def features(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))))

    def forward(self, x):
        return self.fc(self.drop(self.features(x).mean((2, 3))))


class WithTaps(Net):
    """The same network, which returns (logits, taps) itself."""

    def forward(self, x):
        x1 = self.relu1(self.conv1(x))
        x2 = self.relu2(self.conv2(x1))
        return self.fc(self.drop(x2.mean((2, 3)))), [x1, x2]


def made(kind, **options):
    """A network of that class, with the same weights every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return kind(**options)


def with_taps(names=("relu1", "relu2"), **options):
    return tapped(made(Net, **options), names)


def split(count, seed, labels=True):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, CLASSES, (count,), generator=generator) if labels else None, (0.5,), (0.3,))


POOL, VALIDATION = split(14, 1), split(9, 2)
IMAGES = next(POOL.batches(5))[0]


def rz(model):
    return describe(model, POOL, batch_size=8, name="the pool")


def rzg_pred(model):
    return describe(model, POOL, None, predicted, 8, name="the pool")


def rzg_pz(model):
    rule = nearest_by_feature(describe(model, VALIDATION), VALIDATION.labels)
    return describe(model, POOL, None, rule, 8)


def estimated(key, model):
    copies = RotationAndNoise().draw(2, IMAGES.shape[1:], torch.Generator().manual_seed(0))
    return describe(model, POOL, None, from_copies(ESTIMATORS[key], model, None, copies), 8)


PASSES = {
    "Rz": rz,
    "Rzg_pred": rzg_pred,
    "Rzg_pz": rzg_pz,
    **{f"Rzg_{key}": lambda model, key=key: estimated(key, model) for key in ESTIMATORS},
}
every_method = pytest.mark.parametrize("method", PASSES)


def equal(ours, wanted):
    """Whether descriptors are equal to the bit."""
    return all(torch.equal(getattr(ours, key), getattr(wanted, key)) for key in ("vectors", "pseudo_labels"))


# Equal to the bit


def frozen(model):
    return model.requires_grad_(False)


def frozen_backbone(model):
    model.model.conv1.requires_grad_(False)
    model.model.conv2.requires_grad_(False)
    return model


def frozen_own(_):
    return made(WithTaps).requires_grad_(False)


def backbone_without_gradients(_):
    class Own(Net):
        def features(self, x):
            with torch.no_grad():
                return super().features(x)

    return tapped(made(Own), ["relu2"])


def backbone_in_inference_mode(_):
    class Own(Net):
        def features(self, x):
            with torch.inference_mode():
                return super().features(x)

    return tapped(made(Own), ["relu2"])


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


def copied(model):
    return copy.deepcopy(model)


def made_in_inference_mode(_):
    with torch.inference_mode():
        return with_taps()


SAME = (
    frozen,
    frozen_backbone,
    frozen_own,
    backbone_without_gradients,
    backbone_in_inference_mode,
    compiled,
    compiled_outside,
    compiled_in_place,
    compiled_inside,
    data_parallel,
    tapped_data_parallel,
    scripted,
    inplace,
    normalising_in_place,
    copied,
    made_in_inference_mode,
)


@every_method
@pytest.mark.parametrize("kind", SAME)
def test_the_same_network_in_another_shape_gives_the_same_to_the_bit(kind, method):
    changed = prepare(kind(with_taps()))
    names = changed.names if hasattr(changed, "names") else ["relu1", "relu2"]
    with computing():
        assert equal(PASSES[method](changed), PASSES[method](with_taps(names)))


@every_method
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_whatever_is_set_around_a_query_changes_nothing(around, method):
    model = with_taps()
    wanted = PASSES[method](model)
    with around():
        assert equal(PASSES[method](model), wanted)
        assert torch.is_autocast_enabled("cpu") == (not isinstance(around, type))


@every_method
def test_a_networks_own_taps_and_tapped_ones_are_equal(method):
    assert equal(PASSES[method](made(WithTaps)), PASSES[method](with_taps()))


def test_images_made_in_inference_mode():
    with torch.inference_mode():
        pool = split(14, 1)
        model = with_taps()
        assert equal(rzg_pred(model), rzg_pred(with_taps()))
    assert torch.equal(describe(with_taps(), pool, None, predicted, 8).vectors, rzg_pred(with_taps()).vectors)


def test_a_network_that_is_random_in_evaluation_gives_the_same_in_every_call():
    class Own(Net):
        def forward(self, x):
            return self.fc(F.dropout(self.features(x), 0.5, training=True).mean((2, 3)))

    model = tapped(made(Own), ["conv2"])
    first = rzg_pred(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert equal(rzg_pred(model), first)
    assert torch.equal(torch.get_rng_state(), state)


# Reduced precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_method
def test_weights_in_another_precision_are_computed_in_float32(dtype, method):
    model = with_taps().to(dtype)
    with computing():
        assert equal(PASSES[method](prepare(model)), PASSES[method](with_taps().to(dtype).float()))
    assert next(model.parameters()).dtype == dtype


def test_uncertainty_and_logits_of_half_precision_are_float32():
    model, same = with_taps().half(), with_taps().half().float()
    assert torch.equal(logits_of(model, POOL), logits_of(same, POOL))
    scores = [uncertainty("BALD", [m], POOL, 4, torch.Generator(), 8) for m in (model, same)]
    assert torch.equal(*scores)


class Autocast(WithTaps):
    """Computes in reduced precision inside its forward."""

    dtype = torch.float16

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return super().forward(x)


class Bfloat16(Autocast):
    dtype = torch.bfloat16


@pytest.mark.parametrize("kind", [Autocast, Bfloat16])
@every_method
def test_autocast_inside_a_forward_gives_float32_descriptors_of_its_accuracy(kind, method):
    with computing():
        ours, wanted = PASSES[method](made(kind)), PASSES[method](made(WithTaps))
    assert ours.vectors.dtype == torch.float32
    same = ours.pseudo_labels == wanted.pseudo_labels  # an estimate near a tie may change
    assert same.float().mean() > 0.7
    cosine = F.cosine_similarity(ours.vectors, wanted.vectors)
    assert (cosine[same] > 0.99).all()


def test_small_gradients_survive_float16():
    """Fisher scores of 1e-8, which float16 rounds to 0."""

    class Sure(Autocast):
        def forward(self, x):
            logits, taps = super().forward(x)
            logits = logits + torch.tensor([14.0, 0, 0, 0])
            return logits, taps

    plain = made(Sure)
    plain.dtype = torch.bfloat16
    labels = torch.zeros(5, dtype=torch.int64)
    with computing():
        ours = ForwardPass(made(Sure).eval(), IMAGES, None, None, grad=True)
        wanted = ForwardPass(plain.eval(), IMAGES, None, None, grad=True)
        for mine, theirs in zip(ours.scores(labels, last=False), wanted.scores(labels), strict=True):
            assert 0 < mine.abs().max() < 6e-8
            assert (F.cosine_similarity(1e9 * mine, 1e9 * theirs) > 0.98).all()
        assert ours.jacobian().isfinite().all()


@pytest.mark.parametrize("call", [rz, lambda model: logits_of(model, POOL)])
def test_batch_norm_that_mixes_the_images_of_a_batch_is_refused(call):
    model = with_taps()
    model.model.relu1 = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU())
    refuses(lambda: call(model), "the choice would depend on the batch size")


def test_no_module_is_refused():
    refuses(lambda: rz(lambda images: images), "must be a torch.nn.Module")


# The contract of a forward


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
    "detached tap": (
        lambda logits, taps: (logits, [taps[0], taps[1].detach()]),
        "logits must be computed from the tap",
    ),
    "unused tap": (lambda logits, taps: (logits, [taps[0], taps[1] + 1]), "logits must be computed from the tap"),
}


class Returning(WithTaps):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(*super().forward(x))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_forward_that_breaks_the_contract_gets_one_line(change, words, grad):
    refuses(lambda: ForwardPass(Returning(change).eval(), IMAGES, None, None, grad), words)


@pytest.mark.parametrize("key", ["Rzg_pred", "Rzg_trace", "Rzg_mi"])
@pytest.mark.parametrize(("change", "words"), NEED_A_GRAPH.values(), ids=NEED_A_GRAPH)
def test_taps_that_the_logits_do_not_depend_on(change, words, key):
    model = Returning(change).eval()
    refuses(lambda: PASSES[key](model), words)
    assert rz(model).vectors.isfinite().all()  # features alone need no gradient


@pytest.mark.parametrize("key", ["dictionary", "logits alone", "one tap", "three", "one logit", "labels"])
def test_logits_and_uncertainty_check_the_same_contract(key):
    change, words = BAD[key]
    words = words.replace("(5", "(14")
    refuses(lambda: logits_of(Returning(change), POOL), words)
    refuses(lambda: uncertainty("varR", [Returning(change)], POOL, 4, torch.Generator(), 14), words)


def test_logits_and_uncertainty_do_not_look_at_taps():
    model = Returning(BAD["tokens"][0])
    assert logits_of(model, POOL).shape == (14, CLASSES)
    assert uncertainty("varR", [model], POOL, 4, torch.Generator(), 8).shape == (14,)


@pytest.mark.parametrize("taps", [(2,), (0, -3)])
def test_a_tap_that_does_not_exist(taps):
    refuses(lambda: ForwardPass(made(WithTaps), IMAGES, None, taps, False), f"no tap {taps[-1]}: the model returned 2")


def test_an_own_square_map_is_taken_as_channels_first():
    """(B, 12, 12, 12) of 12 pixels: both fit."""
    model = Returning(lambda logits, taps: (logits, [taps[0].repeat(1, 2, 1, 1)]))
    assert ForwardPass(model, IMAGES, None, None, False).z.shape == (5, 12)


# Values that are not finite


@pytest.mark.parametrize("model", [with_taps(), made(WithTaps).half()])
@pytest.mark.parametrize("measure", [rz, rzg_pred, lambda model: logits_of(model, POOL, 8, "the pool")])
def test_weights_that_are_not_finite_are_an_error_that_names_the_image(measure, model):
    broken = copy.deepcopy(model)
    next(broken.parameters()).data[0] = float("nan")
    refuses(lambda: measure(broken), "image 0 of the pool: its ")
    refuses(lambda: measure(broken), "not finite, nor are the model's weights: its training diverged")


class WithBadImage(Split):
    """Image 11 has a NaN, as a loader of one's own might return it."""

    def batches(self, *arguments):
        for images, positions in super().batches(*arguments):
            images[positions == 11, :, 3, 3] = float("nan")
            yield images, positions


def test_an_image_that_is_not_finite_is_named():
    pool = WithBadImage(POOL.images, None, (0.5,), (0.3,))
    for rule in (None, predicted):
        refuses(lambda rule=rule: describe(with_taps(), pool, None, rule, 8), "image 11 of the split: its features are")
    refuses(lambda: logits_of(with_taps(), pool, 8), "image 11 of the split: its logits are not finite, nor are its")
    refuses(
        lambda: uncertainty("std", [with_taps()], pool, 4, torch.Generator(), 8, "the pool"),
        "image 11 of the pool: its",
    )


def test_an_overflow_is_named():
    model = with_taps()
    model.model.conv2.weight.data *= 1e18
    model.model.fc.weight.data *= 1e25
    refuses(lambda: rz(model), "its logits are not finite, a layer overflows")


# Whole queries


QUERYING = [key for key in METHODS if key != "random"]
WITH_GRADIENTS = [key for key in QUERYING if METHODS[key].pool_label]
LAST_LAYER = [key for key in QUERYING if "outputs" in METHODS[key].inputs]
every_query = pytest.mark.parametrize("key", QUERYING)


def choose(key, model, pool=POOL, validation=VALIDATION):
    """What a method chooses after a first query, so that uncertainty counts too."""
    told = {"annotate": lambda positions: pool.labels[positions], "rare_classes": [int(validation.labels[0])]}
    return select(key, model, pool, validation, 5, labelled=torch.tensor([2]), samples=4, **told).tolist()


def half(model):
    return model.half()


def bfloat16(model):
    return model.bfloat16()


def double(model):
    return model.double()


def mixed(model):
    """A head of double precision behind half a network of half precision, as people leave it after quantising."""
    model.model.conv1.half()
    model.model.fc.double()
    return model


QUERIED = (
    frozen,
    frozen_backbone,
    data_parallel,
    compiled_outside,
    scripted,
    inplace,
    made_in_inference_mode,
    half,
    bfloat16,
    double,
    mixed,
)


@every_query
@pytest.mark.parametrize("kind", QUERIED)
def test_queries_choose_what_the_float32_network_chooses(kind, key):
    """Layers of a script have no hooks, by which the last layer's input and shared masks are."""
    model = kind(with_taps())
    if kind is scripted and key in LAST_LAYER:
        refuses(lambda: choose(key, model), "name taps to use instead")
        return
    if kind is scripted and key == "epig":
        refuses(lambda: choose(key, model), "calls no dropout layer")
        return
    wanted = choose(key, kind(with_taps()).float() if kind in (half, bfloat16, mixed) else with_taps())
    with torch.inference_mode():
        assert choose(key, model) == wanted


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
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
}


@every_query
@pytest.mark.parametrize("around", AROUND)
def test_similarities_too_are_float32_whatever_is_set_around_a_query(around, key):
    """A pool of 200 images, of which similarities of reduced precision choose others."""
    pool, model = split(200, 3), with_taps()
    wanted = choose(key, model, pool)
    with AROUND[around]():
        assert choose(key, model, pool) == wanted


@every_query
def test_the_global_generator_does_not_change_a_choice(key):
    """Dropout that is active in evaluation too, besides a layer."""

    class Own(Net):
        def forward(self, x):
            return self.fc(self.drop(F.dropout(self.features(x), 0.5, training=True).mean((2, 3))))

    model, found = tapped(made(Own), ["conv2"]), []
    for seed in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            found.append(choose(key, model))
    assert found[0] == found[1]


RETURNED = {**{name: BAD[name] for name in ("dictionary", "logits alone", "dictionary of taps")}, **NEED_A_GRAPH}


@every_query
@pytest.mark.parametrize("name", RETURNED)
def test_the_contract_is_stated_by_every_method_that_needs_it(name, key):
    """A tap aside is no trouble for features and uncertainty alone."""
    change, words = RETURNED[name]
    if name in BAD:
        refuses(lambda: choose(key, Returning(change)), words.partition("(")[0])
        refuses(lambda: choose(key, Returning(change)), "forward must return (logits (B, C), list of taps)")
    elif key in WITH_GRADIENTS:
        refuses(lambda: choose(key, Returning(change)), words)
    else:
        assert len(choose(key, Returning(change))) == 5


class CastsItsInput(Net):
    def forward(self, x):
        return super().forward(x.half())


class CastsToItsWeights(Net):
    def forward(self, x):
        return super().forward(x.to(self.conv1.weight.dtype))


@every_query
def test_networks_that_cast_their_input(key):
    """To the type of their weights, which are float32 in a query; or to a fixed one, which no longer fits."""
    model = tapped(made(CastsToItsWeights).half(), ["relu1", "relu2"])
    assert choose(key, model) == choose(key, with_taps().half().float())
    model = tapped(made(CastsItsInput).half(), ["relu1", "relu2"])
    refuses(lambda: choose(key, model), "pass model.float(), without casts in its forward")


class NotFinite(WithTaps):
    """Features and logits of images whose first pixel is white are NaN."""

    def features(self, x):
        white = x[:, 0, 0, 0] > 1
        return super().features(x).masked_fill(white.view(-1, 1, 1, 1), float("nan"))

    def forward(self, x):
        x2 = self.features(x)
        return self.fc(self.drop(x2.mean((2, 3)))), [x2]


@every_query
def test_rows_that_are_not_finite_are_never_chosen(key):
    pool = Split(POOL.images.clamp(max=200), POOL.labels, (0.5,), (0.3,))
    pool.images[11, 0, 0, 0] = 255
    validation = Split(VALIDATION.images.clamp(max=200), VALIDATION.labels, (0.5,), (0.3,))
    refuses(lambda: choose(key, made(NotFinite), pool, validation), "image 11 of the pool: its ")
    diverged = with_taps()
    diverged.model.fc.weight.data[1] = float("nan")
    refuses(lambda: choose(key, diverged), "not finite, nor are the model's weights: its training diverged")


# Taps by hooks


def test_tapped_reads_what_a_layer_returns():
    model, net = with_taps(["conv2", "drop", "fc"]), made(Net).eval()
    logits, taps = run(model.eval(), IMAGES)
    assert torch.equal(taps[0], net.conv2(net.relu1(net.conv1(IMAGES))))
    assert torch.equal(taps[1], net.features(IMAGES).mean((2, 3)))
    assert torch.equal(taps[2], logits)
    assert torch.equal(logits, net(IMAGES))


def test_an_in_place_activation_behind_the_tap_does_not_change_it():
    names = ["conv1", "conv2"]
    found = [ForwardPass(with_taps(names, inplace=way).eval(), IMAGES, None, None, grad=True) for way in (True, False)]
    labels = torch.arange(5) % CLASSES
    assert torch.equal(found[0].z, found[1].z)
    assert torch.equal(found[0].g(labels), found[1].g(labels))
    assert (found[0].features[0] < 0).any()


def test_an_output_that_is_the_input_and_changed_in_place_is_refused():
    class Own(Net):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def features(self, x):
            x = super().features(x)
            y = self.same(x)
            x += 1
            return x + y

    refuses(lambda: rz(tapped(made(Own), ["same"])), "'same' is changed in place")


def hooks(model):
    return [name for name, module in model.named_modules() if module._forward_hooks]


def test_no_hook_stays_and_modes_are_restored():
    model = with_taps()
    model.model.conv2.eval()
    rzg_pred(model)
    suggest_taps(model, IMAGES)
    assert not hooks(model)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.zeros(2, 3, SIZE, SIZE))
    with pytest.raises(RuntimeError, match="channels"):
        suggest_taps(model, torch.zeros(2, 3, SIZE, SIZE))
    assert not hooks(model)
    assert model.model.training
    assert not model.model.conv2.training


def test_a_tapped_network_is_trained_like_its_network():
    model, net = with_taps(), made(Net)
    labels = torch.arange(5) % CLASSES
    with torch.random.fork_rng([]):
        for forward in (lambda x: model(x)[0], net):
            torch.manual_seed(3)
            F.cross_entropy(forward(IMAGES), labels).backward()
    for mine, theirs in zip(model.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_a_layer_that_is_replaced_later_is_the_one_that_is_read():
    model = with_taps(["fc"])
    model.model.fc = nn.Linear(8, 7)
    assert run(model, IMAGES)[0].shape == (5, 7)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conv3"], "no layer 'conv3': did you mean conv2, conv1?"),
        (["zzz"], "it has conv1, relu1, conv2, relu2, drop, fc; alfk.suggest_taps"),
        (["conv1."], "no layer 'conv1.'"),
        ([""], "no layer ''"),
        ([], "no layer to tap"),
        (["conv1", "conv1"], "named twice"),
    ],
)
def test_names_that_are_no_layers(names, words):
    refuses(lambda: with_taps(names), words)


def test_one_name_is_a_list_of_one():
    assert with_taps("conv1").names == ["conv1"]


class Odd(nn.Module):
    """Layers that do not return one float tensor once."""

    class Two(nn.Module):
        def forward(self, x):
            return {"a": x}

    def __init__(self):
        super().__init__()
        self.shared, self.unused, self.dictionary = nn.ReLU(), nn.ReLU(), self.Two()
        self.mean, self.fc = nn.AvgPool2d(SIZE), nn.Linear(1, CLASSES)
        self.counts, self.none = nn.ReLU(), nn.Identity()

    def forward(self, x):
        x = self.dictionary(self.shared(self.shared(x)))["a"]
        self.counts(x.long())
        self.none(None)
        return self.fc(self.mean(x).flatten(1))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shared", "runs more than once"),
        ("unused", "does not run"),
        ("dictionary", "returns a dictionary (a), not a float tensor"),
        ("counts", "int64, not a float tensor"),
        ("none", "returns None"),
        ("mean", "one channel"),
    ],
)
def test_layers_that_are_no_taps(name, words):
    refuses(lambda: rz(tapped(made(Odd), [name])), words)


class Output(dict):
    """As of the transformers library: a dictionary with attributes."""

    @property
    def logits(self):
        return self["logits"]


@pytest.mark.parametrize(
    "output",
    [
        lambda y: {"logits": y, "loss": None},
        lambda y: Output(logits=y),
        lambda y: Result(y),
        lambda y: (y, None),
        lambda y: (y, [y]),
        lambda y: [y],
    ],
)
def test_logits_are_found_in_what_a_model_returns(output):
    class Own(Net):
        def forward(self, x):
            return output(super().forward(x))

    assert equal(rzg_pred(tapped(made(Own), ["conv1"])), rzg_pred(with_taps(["conv1"])))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda y: {"out": y}, "a dictionary (out), where the logits"),
        (lambda y: (y, y + 1), "a tuple of 2 (a tensor (8, 4)"),
        (lambda y: None, "returned None"),
        (lambda y: y[..., None], "not (8, classes)"),
        (lambda y: y[:, :1], "one logit"),
    ],
)
def test_logits_that_cannot_be_told(output, words):
    class Own(Net):
        def forward(self, x):
            return output(super().forward(x))

    refuses(lambda: rz(tapped(made(Own), ["conv1"])), words)


def test_a_scripted_network_cannot_be_tapped():
    refuses(lambda: tapped(torch.jit.script(made(Net)), ["conv1"]), "before torch.jit.script")
    refuses(lambda: suggest_taps(torch.jit.script(made(Net)), IMAGES), "before torch.jit.script")


# Tokens, and maps with the channels last

WIDTH = 6


class Block(nn.Module):
    """A residual block of a transformer: its type says nothing of its output."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, WIDTH // 2)).movedim((2, 3), (0, 2))
        x = x + F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Tokens of 4 by 4 pixels, so 9 tokens."""

    def __init__(self, side=4):
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, side, side)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def tokens(self, x):
        return self.patches(x).flatten(2).mT

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc(x.mean(1))


@pytest.mark.parametrize("answer", [None, True])
@pytest.mark.parametrize("name", ["blocks.1", "blocks.1.norm2", "blocks.1.mlp", "blocks.1.mlp.1", "attention"])
def test_tokens_are_averaged_over_tokens(name, answer):
    net, seen = made(Transformer).eval(), []
    layer = net.get_submodule(name)
    handle = layer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    logits = net(IMAGES)
    handle.remove()
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    labels = torch.arange(5) % CLASSES
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), tokens)
    batch = ForwardPass(tapped(net, [name], answer).eval(), IMAGES, None, None, grad=True)
    assert torch.allclose(batch.features[0], tokens.mean(1), atol=1e-6)
    assert torch.allclose(batch.scores(labels)[0], gradient.mean(1), atol=1e-7)
    assert torch.equal(batch.logits, logits)


@every_method
def test_a_tap_before_attention(method):
    """The fused attention has no second derivative, which Rzg_trace needs; the batched one of Rzg_mi is not exact."""
    with computing():
        found = PASSES[method](tapped(made(Transformer), ["blocks.0", "patches"]))
    assert found.vectors.isfinite().all()
    assert found.vectors.shape[1] == WIDTH * (2 if method == "Rz" else 4)


def test_estimates_before_attention_are_those_of_the_plain_formula():
    class Plain(Transformer):
        def forward(self, x):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return super().forward(x)

    for key in ESTIMATORS:
        with computing():
            labels = [estimated(key, tapped(made(kind), ["blocks.0"])).pseudo_labels for kind in (Transformer, Plain)]
        assert torch.equal(*labels)


def test_a_layer_without_a_second_derivative_is_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g

    class Own(Net):
        def features(self, x):
            return Once.apply(super().features(x))

    refuses(lambda: PASSES["Rzg_trace"](tapped(made(Own), ["conv1"])), "use Rzg_pz")


class Functional(nn.Module):
    """A custom layer whose type and insides say nothing: (B, c, l) or (B, T, D)?"""

    def __init__(self, transpose):
        super().__init__()
        self.transpose, self.scale = transpose, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * (x.mT if self.transpose else x)


class Sequence(nn.Module):
    def __init__(self, transpose=False, side=SIZE):
        super().__init__()
        self.layer, self.fc = Functional(transpose), nn.LazyLinear(CLASSES)
        self.side = side

    def forward(self, x):
        return self.fc(self.layer(x[:, 0, : self.side]).flatten(1))


@pytest.mark.parametrize("side", [4, SIZE])
@pytest.mark.parametrize("transpose", [False, True])
def test_an_ambiguous_layer_needs_the_users_answer(transpose, side):
    model = made(Sequence, transpose=transpose, side=side)
    model(IMAGES)
    refuses(lambda: rz(tapped(model, ["layer"])), "channels_last=True) for tokens (B, T, D), False for (B, c, l)")
    rows = IMAGES[:, 0, :side].mT if transpose else IMAGES[:, 0, :side]
    for answer in (False, True):
        batch = ForwardPass(tapped(model, ["layer"], answer), IMAGES, None, None, grad=False)
        assert torch.allclose(batch.features[0], rows.mean(1 if answer else 2))


def test_a_container_that_transposes_squares_is_not_guessed():
    """9 tokens of 9 channels: after the transpose the shape is that of the linear layer before."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU())
            self.fc = nn.Linear(SIZE, CLASSES)

        def forward(self, x):
            return self.fc(self.mix(x[:, 0]).mean(1))

    refuses(lambda: rz(tapped(made(Own), ["mix"])), "say which dimension")
    assert rz(tapped(made(Own), ["mix.0"])).vectors.shape == (14, SIZE)


def test_tokens_before_images_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(SIZE, 3), nn.Linear(3, CLASSES)

        def forward(self, x):
            return self.fc(self.rnn(x[:, 0].transpose(0, 1))[0].mean(0))

    refuses(lambda: rz(tapped(made(Own), ["rnn"])), "batch_first=True")


class ChannelsLast(nn.Module):
    """Maps (B, h, w, c) by linear layers, as in Swin."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(1, 5, 2, 2), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.merge, self.fc = Functional(False), nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.merge(self.stage(self.stem(x).permute(0, 2, 3, 1)))
        return self.fc(x.mean((1, 2)))


@pytest.mark.parametrize("name", ["stage", "stage.0", "stage.1", "merge"])
def test_maps_with_the_channels_last_are_averaged_over_space(name):
    model = made(ChannelsLast)
    wanted = model.stage(model.stem(IMAGES).permute(0, 2, 3, 1))
    wanted = wanted if name != "stage.0" else model.stage[0](model.stem(IMAGES).permute(0, 2, 3, 1))
    for answer in (None, True):
        batch = ForwardPass(tapped(model, [name, "stem"], answer), IMAGES, None, None, grad=True)
        assert torch.allclose(batch.features[0], wanted.mean((1, 2)), atol=1e-6)
        assert torch.allclose(batch.features[1], model.stem(IMAGES).mean((2, 3)), atol=1e-6)
        assert [g.shape for g in batch.scores(torch.zeros(5, dtype=torch.int64))] == [(5, 5), (5, 5)]


# Suggestions


@pytest.mark.parametrize("side", [32, 64])
def test_the_last_stages_of_a_residual_network(side):
    found = suggest_taps(torchvision.models.resnet18(num_classes=CLASSES), torch.rand(2, 3, side, side))
    assert (found.last, found.last_two) == (["layer4"], ["layer3", "layer4"])
    names = [candidate.name for candidate in found.candidates]
    assert names[:4] == ["conv1", "relu", "maxpool", "layer1.0.conv1"]  # relu changes bn1's output in place
    assert "fc" not in names
    assert "layer4" in str(found)
    assert next(line for line in str(found).splitlines() if line.startswith("layer4 ")).endswith("last, last_two")


@pytest.mark.parametrize(
    ("name", "last_two"),
    [
        ("swin_t", ["features.5", "norm"]),
        ("mobilenet_v3_small", ["features.8", "features"]),
        ("squeezenet1_1", ["features.7", "features"]),
        ("shufflenet_v2_x0_5", ["stage3", "conv5"]),
    ],
)
def test_the_last_stages_of_torchvisions_networks(name, last_two):
    found = suggest_taps(getattr(torchvision.models, name)(num_classes=CLASSES), torch.rand(2, 3, 64, 64))
    assert found.last_two == last_two
    assert found.last == last_two[-1:]


def test_the_last_blocks_of_a_transformer():
    vit = torchvision.models.VisionTransformer(16, 4, 3, 2, WIDTH, 8, num_classes=CLASSES)
    found = suggest_taps(vit, torch.rand(2, 3, 16, 16))
    assert found.last_two == ["encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2"]
    _, taps = run(tapped(vit, found.last_two), torch.rand(2, 3, 16, 16), grad=True)
    assert [tap.shape for tap in taps] == [(2, WIDTH, 17)] * 2
    assert suggest_taps(made(Transformer), POOL).last_two == ["blocks.1", "blocks.2"]


def test_the_last_hidden_layers_of_a_perceptron():
    layers = nn.Flatten(), nn.Linear(SIZE * SIZE, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 7), nn.ReLU(True)
    found = suggest_taps(nn.Sequential(*layers, nn.Linear(7, CLASSES)), IMAGES)
    assert found.last_two == ["2", "5"]
    assert [c.shape for c in found.candidates] == [(5, 144), (5, 9), (5, 9), (5, 7)]


def test_suggestions_for_a_network_as_it_comes():
    wanted = suggest_taps(made(Net), IMAGES)
    assert wanted.last_two == ["relu1", "relu2"]
    for model in (made(Net).half(), nn.DataParallel(made(Net)), with_taps(), made(WithTaps), made(Net).train()):
        assert suggest_taps(model, IMAGES) == wanted
    assert suggest_taps(made(Net), POOL.images[:5]) == wanted  # uint8
    refuses(lambda: suggest_taps(nn.Sequential(nn.Flatten(0, 1), nn.Flatten()), torch.rand(5, 1, 2, 2)), "no layer of")
