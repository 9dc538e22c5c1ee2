"""Taps read by hooks: which layers, where their channels are, and which layers are proposed."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import alfk
from alfk.networks.contract import check_model
from alfk.networks.modes import computing
from alfk.networks.passes import pool_spatially, run
from alfk.networks.suggestions import suggest_taps
from alfk.networks.taps import tapped
from alfk.support.errors import UserError
from tests.helpers import refuses
from tests.networks.small_networks import (
    CLASSES,
    IMAGES,
    LABELS,
    POOL,
    SIZE,
    VALIDATION,
    Net,
    WithTaps,
    made,
    with_taps,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def read(model):
    """Logits, taps and the gradients of the loss with respect to them."""
    logits, taps = run(model, IMAGES, grad=True)
    return logits, taps, torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), taps)


def check(model):
    with computing():
        return check_model(model, IMAGES, None, scores=True)


def test_tapped_reads_what_a_layer_returns():
    model, net = with_taps(["conv2", "drop", "fc"]), made(Net)
    logits, taps = model(IMAGES)
    assert torch.equal(taps[0], net.conv2(net.relu1(net.conv1(IMAGES))))
    assert torch.equal(taps[1], net.features(IMAGES).mean((2, 3)))
    assert torch.equal(taps[2], logits)
    assert torch.equal(logits, net(IMAGES))


def test_an_in_place_activation_behind_the_tap_does_not_change_it():
    ours, wanted = (read(with_taps(["conv1", "conv2"], inplace=way)) for way in (True, False))
    assert all(torch.equal(*pair) for i in (1, 2) for pair in zip(ours[i], wanted[i], strict=True))
    assert (ours[1][0] < 0).any()


def hooks(model):
    return [name for name, module in model.named_modules() if module._forward_hooks]


def test_no_hook_stays_and_modes_are_restored():
    model = with_taps().train()
    model.model.conv2.eval()
    alfk.query("Rzg_pz", model, POOL, VALIDATION, 3)
    suggest_taps(model, IMAGES)
    for call in (model, lambda images: suggest_taps(model, images)):
        with pytest.raises((RuntimeError, UserError), match="channels"):
            call(torch.zeros(2, 3, SIZE, SIZE))
    assert not hooks(model)
    assert model.model.training
    assert not model.model.conv2.training


def test_a_tapped_network_is_trained_like_its_network():
    model, net = with_taps().train(), made(Net).train()
    with torch.random.fork_rng([]):
        for forward in (lambda x: model(x)[0], net):
            torch.manual_seed(3)
            F.cross_entropy(forward(IMAGES), LABELS).backward()
    for mine, theirs in zip(model.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_a_layer_that_is_replaced_later_is_the_one_that_is_read():
    model = with_taps(["fc"])
    model.model.fc = nn.Linear(8, 7)
    assert check(model) == 7
    assert tapped(model, "conv1").names == ["conv1"]  # one name is a list of one


class Odd(nn.Module):
    """Layers that do not return one float tensor once."""

    class Two(nn.Module):
        def forward(self, x):
            return {"a": x}

    def __init__(self):
        super().__init__()
        self.shared, self.unused, self.dictionary = nn.ReLU(), nn.ReLU(), self.Two()
        self.mean, self.fc = nn.AvgPool2d(SIZE), nn.Linear(1, CLASSES)
        self.counts, self.none, self.same = nn.ReLU(), nn.Identity(), nn.Identity()
        self.rnn = nn.GRU(SIZE, 3)

    def forward(self, x):
        self.rnn(x[:, 0].transpose(0, 1))
        x = self.dictionary(self.shared(self.shared(x)))["a"]
        self.counts(x.long())
        self.none(None)
        y = self.same(x)
        x += 1
        return self.fc(self.mean(x + y).flatten(1))


LAYERS = {
    "a wrong name": (Net, ["conv3"], "no layer 'conv3': did you mean conv2, conv1?"),
    "another name": (Net, ["zzz"], "it has conv1, relu1, conv2, relu2, drop, fc; alfk.suggest_taps"),
    "a name with a dot": (Net, ["conv1."], "no layer 'conv1.'"),
    "the network": (Net, [""], "no layer ''"),
    "none": (Net, [], "no layer to tap"),
    "one twice": (Net, ["conv1", "conv1"], "named twice"),
    "scripted": (lambda: torch.jit.script(made(Net)), ["conv1"], "before torch.jit.script"),
    "runs twice": (Odd, ["shared"], "runs more than once"),
    "unused": (Odd, ["unused"], "does not run"),
    "a dictionary": (Odd, ["dictionary"], "returns a dictionary (a), not a float tensor"),
    "integers": (Odd, ["counts"], "int64, not a float tensor"),
    "None": (Odd, ["none"], "returns None"),
    "one channel": (Odd, ["mean"], "one channel"),
    "changed in place": (Odd, ["same"], "'same' is changed in place"),
    "tokens before images": (Odd, ["rnn"], "batch_first=True"),
}


@pytest.mark.parametrize(("kind", "names", "words"), LAYERS.values(), ids=LAYERS)
def test_layers_that_are_no_taps(kind, names, words):
    model = made(kind)
    refuses(lambda: check(tapped(model, names)), words)
    assert not hooks(model)


# The logits in what a model returns


class Output(dict):
    """A dictionary with attributes, as the transformers library returns."""

    @property
    def logits(self):
        return self["logits"]


@dataclasses.dataclass
class Result:
    logits: torch.Tensor


def returning(output):
    class Own(Net):
        def forward(self, x):
            return output(super().forward(x))

    return tapped(made(Own), ["conv1"])


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
    ours, wanted = read(returning(output)), read(with_taps(["conv1"]))
    assert torch.equal(ours[0], wanted[0])
    assert torch.equal(ours[2][0], wanted[2][0])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda y: {"out": y}, "a dictionary (out), where the logits"),
        (lambda y: (y, y + 1), "a tuple of 2 (a tensor (5, 4)"),
        (lambda y: None, "returned None"),
        (lambda y: y[..., None], "not (5, classes)"),
        (lambda y: y[:, :1], "one logit"),
    ],
)
def test_logits_that_are_not_recognised(output, words):
    refuses(lambda: check(returning(output)), words)


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

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc(x.mean(1))


@pytest.mark.parametrize("channels_last", [None, True])
@pytest.mark.parametrize("name", ["blocks.1", "blocks.1.norm2", "blocks.1.mlp", "blocks.1.mlp.1", "attention"])
def test_tokens_are_averaged_over_tokens(name, channels_last):
    net, seen = made(Transformer), []
    handle = net.get_submodule(name).register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    logits = net(IMAGES)
    handle.remove()
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), tokens)
    found, taps, gradients = read(tapped(net, [name], channels_last))
    assert torch.allclose(pool_spatially(taps[0]), tokens.mean(1), atol=1e-6)
    assert torch.allclose(pool_spatially(gradients[0]), gradient.mean(1), atol=1e-7)
    assert torch.equal(found, logits)


def test_a_tap_before_attention():
    """The fused attention has no second derivative, which the estimators need: it is computed by the plain formula."""

    class Plain(Transformer):
        def forward(self, x):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return super().forward(x)

    for key in ("Rz", "Rzg_pz", "Rzg_trace", "Rzg_mi"):
        ours, wanted = (
            alfk.query(key, tapped(made(kind), ["blocks.0", "patches"]), POOL, VALIDATION, 5, samples=2)
            for kind in (Transformer, Plain)
        )
        assert ours.indices.tolist() == wanted.indices.tolist()
        if key in ("Rzg_trace", "Rzg_mi"):
            assert ours.pseudo_label.tolist() == wanted.pseudo_label.tolist()


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

    model = tapped(made(Own), ["conv1"])
    assert len(alfk.query("Rzg_pz", model, POOL, VALIDATION, 3)) == 3
    refuses(lambda: alfk.query("Rzg_trace", model, POOL, VALIDATION, 3, samples=2), "use Rzg_pz")


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
        self.layer, self.fc = Functional(transpose), nn.Linear(side * SIZE, CLASSES)
        self.side = side

    def forward(self, x):
        return self.fc(self.layer(x[:, 0, : self.side]).flatten(1))


@pytest.mark.parametrize("side", [4, SIZE])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_channels_of_an_ambiguous_layer_have_to_be_stated(transpose, side):
    model = made(Sequence, transpose=transpose, side=side)
    refuses(lambda: check(tapped(model, ["layer"])), "channels_last=True) for tokens (B, T, D), False for (B, c, l)")
    rows = IMAGES[:, 0, :side].mT if transpose else IMAGES[:, 0, :side]
    for stated in (False, True):
        _, (tap,) = run(tapped(model, ["layer"], stated), IMAGES)
        assert torch.equal(tap, rows.mT if stated else rows)


def test_a_container_that_transposes_squares_is_not_guessed():
    """12 tokens of 12 channels: after the transpose the shape is that of the linear layer before."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU())
            self.fc = nn.Linear(SIZE, CLASSES)

        def forward(self, x):
            return self.fc(self.mix(x[:, 0]).mean(1))

    refuses(lambda: check(tapped(made(Own), ["mix"])), "say which dimension")
    assert check(tapped(made(Own), ["mix.0"])) == CLASSES


class ChannelsLast(nn.Module):
    """Maps (B, h, w, c) by linear layers, as in Swin."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(1, 5, 2, 2), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.merge, self.fc = Functional(False), nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.merge(self.stage(self.stem(x).permute(0, 2, 3, 1)))
        return self.fc(x.mean((1, 2)))


@pytest.mark.parametrize("channels_last", [None, True])
@pytest.mark.parametrize("name", ["stage", "stage.0", "stage.1", "merge"])
def test_maps_with_the_channels_last_are_averaged_over_space(name, channels_last):
    model = made(ChannelsLast)
    maps = model.stem(IMAGES)
    wanted = (model.stage[0] if name == "stage.0" else model.stage)(maps.permute(0, 2, 3, 1))
    _, taps, gradients = read(tapped(model, [name, "stem"], channels_last))
    assert torch.allclose(taps[0], wanted.permute(0, 3, 1, 2), atol=1e-6)
    assert torch.equal(taps[1], maps)
    assert [pool_spatially(g).shape for g in gradients] == [(5, 5), (5, 5)]


# Suggestions


def test_the_last_stages_of_a_residual_network():
    found = suggest_taps(torchvision.models.resnet18(num_classes=CLASSES), torch.rand(2, 3, 32, 32))
    assert (found.last, found.last_two) == (["layer4"], ["layer3", "layer4"])
    names = [candidate.name for candidate in found.candidates]
    assert names[:4] == ["conv1", "relu", "maxpool", "layer1.0.conv1"]  # relu changes bn1's output in place
    assert "fc" not in names
    assert next(line for line in str(found).splitlines() if line.startswith("layer4 ")).endswith("last, last_two")


@pytest.mark.parametrize(
    ("name", "last_two"),
    [
        ("mobilenet_v3_small", ["features.8", "features"]),
        ("squeezenet1_1", ["features.7", "features"]),
        ("shufflenet_v2_x0_5", ["stage3", "conv5"]),
    ],
)
def test_the_last_stages_of_torchvisions_networks(name, last_two):
    found = suggest_taps(getattr(torchvision.models, name)(num_classes=CLASSES), torch.rand(2, 3, 64, 64))
    assert found.last_two == last_two
    assert found.last == last_two[-1:]


def test_the_last_blocks_of_transformers():
    images = torch.rand(2, 3, 16, 16)
    vit = torchvision.models.VisionTransformer(16, 4, 3, 2, WIDTH, 8, num_classes=CLASSES)
    found = suggest_taps(vit, images)
    assert found.last_two == ["encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2"]
    assert [tap.shape for tap in tapped(vit, found.last_two)(images)[1]] == [(2, WIDTH, 17)] * 2
    swin = torchvision.models.SwinTransformer([2, 2], 8, [1, 1, 1], [2, 2, 2], [4, 4], num_classes=CLASSES)
    assert suggest_taps(swin, images).last_two == ["features.3", "norm"]
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
    refuses(lambda: suggest_taps(torch.jit.script(made(Net)), IMAGES), "before torch.jit.script")
