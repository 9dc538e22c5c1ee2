"""Pseudo-labels from perturbed copies against triple loops with a backward pass for each class, in double precision."""

import functools
import itertools
import math

import kornia
import numpy as np
import pytest
import scipy.ndimage
import torch

from alfk.data.split import Split
from alfk.method import pseudo_labels
from alfk.method.acquisition import METHODS, Sampling, measure
from alfk.method.descriptors import ForwardPass
from alfk.method.perturbation import STRATEGIES, ReleasedRotationAndNoise, Rotated, RotatedToNearest, RotationAndNoise
from alfk.networks.passes import pool_spatially
from alfk.networks.weights import kaiming_fan_out
from alfk.support.errors import UserError
from mnist.config import DIGITS, MNIST
from mnist.custom_models.lenet import LeNet

K = 9
EPS = 1e-8


@pytest.fixture(scope="module")
def model():
    model = LeNet(10)
    kaiming_fan_out(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def copies():
    return RotationAndNoise().draw(K, (1, 28, 28), torch.Generator().manual_seed(3))


def digits(count):
    _, test = DIGITS.load(None)
    return test.subset(torch.arange(count))


@functools.cache
def naive_statistics(length):
    """z (K, L) and, for every class, g (K, L) of 20 images: a backward pass for each class, copy and image."""
    model = LeNet(10)
    kaiming_fan_out(model, torch.Generator().manual_seed(0))
    model = model.double().eval()
    images = next(digits(20).batches(20))[0].double()
    many = RotationAndNoise().draw(K, (1, 28, 28), torch.Generator().manual_seed(3))
    features, scores = np.empty((20, 10, K, length)), np.empty((20, 10, K, length))
    for i, c, k in itertools.product(range(20), range(10), range(K)):
        logits, every = model(many[k](images[i : i + 1]))
        chosen = [every[tap] for tap in MNIST.taps(length)]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([c]))
        gradients = torch.autograd.grad(loss, chosen)
        features[i, c, k] = torch.cat([pool_spatially(tap)[0] for tap in chosen]).detach().numpy()
        scores[i, c, k] = torch.cat([pool_spatially(g)[0] for g in gradients]).numpy()
    return model, images, many, features, scores


def naive(z, g, kind):
    """METHOD's formulas for one image and class, from (K, L) features and scores."""
    if kind == "trace":
        return sum(z[k] @ g[k] for k in range(len(z)))
    zz, gg, zg = z.T @ z, g.T @ g, z.T @ g
    if kind == "mi_diag":
        zz, gg, zg = (np.diag(np.diag(m)) for m in (zz, gg, zg))
    joint = np.block([[zz, zg], [zg.T, gg]])
    parts = [np.linalg.slogdet(m + EPS * np.eye(len(m)))[1] for m in (zz, gg, joint)]
    return parts[0] + parts[1] - parts[2]


@pytest.mark.parametrize("kind", ["trace", "mi", "mi_diag"])
@pytest.mark.parametrize("length", [10, 20, 80])
def test_estimators_equal_the_triple_loop(kind, length):
    model, images, many, features, scores = naive_statistics(length)
    ours = pseudo_labels.ESTIMATORS[kind](model, MNIST.taps(length), images, many).numpy()
    theirs = np.array([[naive(features[i, c], scores[i, c], kind) for c in range(10)] for i in range(20)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert (ours.argmax(1) == theirs.argmax(1)).all()


def test_pseudo_labels_of_mutual_information_agree_with_the_plain_version(parity):
    """In single precision, on 500 digits and the recorded network, against a backward pass for each class and copy."""
    trained = LeNet(10).eval()
    weights = {k.removeprefix("weights/"): v for k, v in parity.items() if k.startswith("weights/")}
    trained.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    pixels = torch.from_numpy(parity["pool_images"][::3][:500]).unsqueeze(1)
    images, positions = next(Split(pixels, None, MNIST.mean, MNIST.std).batches(500))
    many = RotationAndNoise().draw(48, (1, 28, 28), torch.Generator().manual_seed(5))
    rule = pseudo_labels.from_copies(pseudo_labels.mutual_information, trained, (1,), many)
    ours = rule(ForwardPass(trained, images, positions, (1,), grad=True)).numpy()
    z, g = [], [[] for _ in range(10)]
    for copy in many:
        probe = ForwardPass(trained, copy(images), None, (1,), grad=True)
        z.append(probe.features[0].double().numpy())
        for c in range(10):
            g[c].append(probe.scores(torch.full((500,), c), last=False)[0].double().numpy())
    z, information = np.stack(z, 2), []
    for c in range(10):
        both = np.concatenate([z, np.stack(g[c], 2)], 1)
        joint = both @ both.transpose(0, 2, 1)
        blocks = (joint[:, :20, :20], joint[:, 20:, 20:], joint)
        parts = [np.linalg.slogdet(m + EPS * np.eye(m.shape[1]))[1] for m in blocks]
        information.append(parts[0] + parts[1] - parts[2])
    theirs = np.stack(information, 1).argmax(1)
    assert len(np.unique(theirs)) == 10
    assert (ours == theirs).mean() >= 0.99


def test_linearity_gives_every_class_its_gradient(model):
    images = next(digits(4).batches(4))[0]
    rows = ForwardPass(model, images, None, (0, 1, 2, 3), grad=True).jacobian()
    assert rows.shape == (4, 10, 90)
    probe = ForwardPass(model, images, None, (0, 1, 2, 3), grad=True)
    p = probe.logits.softmax(1)
    for c in range(10):
        wanted = torch.cat(probe.scores(torch.full((4,), c), last=False), 1)
        ours = torch.einsum("bc,bcl->bl", p, rows) - rows[:, c]
        assert torch.allclose(ours, wanted, atol=1e-6)


def test_both_sides_get_estimated_labels(model):
    split = digits(30)
    sampling = Sampling(torch.Generator().manual_seed(0), 4, STRATEGIES["degrees"])
    for key in ("Rzg_trace", "Rzg_mi", "Rzg_mi_diag"):
        found = measure(METHODS[key], [model], split, split, sampling, (1,), 7)
        assert torch.equal(found.pool.pseudo_labels, found.validation.pseudo_labels)  # the same copies for both
        assert found.pool.pseudo_labels.unique().numel() > 1
        assert found.forward == 60 + 4 * 60


def test_chunks_do_not_change_labels(model, copies, monkeypatch):
    images, positions = next(digits(50).batches(50))
    probe = ForwardPass(model, images, positions, (1,), grad=True)
    whole = pseudo_labels.from_copies(pseudo_labels.mutual_information, model, (1,), copies)(probe)
    monkeypatch.setattr(pseudo_labels, "STATISTICS", 1)
    assert torch.equal(pseudo_labels.from_copies(pseudo_labels.mutual_information, model, (1,), copies)(probe), whole)


def test_log_determinants_never_stop():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    good = a @ a.mT  # rank 4 of 6: singular but for epsilon
    wanted = torch.linalg.eigvalsh(good).clamp(min=0).add(EPS).log().sum(-1)
    assert torch.allclose(pseudo_labels.log_det(good), wanted, rtol=1e-6)
    negative = good - 1e-3 * torch.eye(6, dtype=torch.float64)
    huge = torch.full((3, 6, 6), math.inf, dtype=torch.float64)
    for bad in (negative, huge, torch.full_like(good, math.nan), torch.zeros_like(good)):
        assert pseudo_labels.log_det(bad).isfinite().all()
    found = pseudo_labels.log_det(torch.zeros(2, 5, 5, dtype=torch.float64))
    assert found.tolist() == pytest.approx([5 * math.log(EPS)] * 2)


def test_a_dead_network_still_gets_labels(copies):
    """All features and gradients zero: every determinant is that of epsilon."""
    dead = LeNet(10)
    for parameter in dead.parameters():
        torch.nn.init.zeros_(parameter)
    for name in pseudo_labels.ESTIMATORS:
        rule = pseudo_labels.from_copies(pseudo_labels.ESTIMATORS[name], dead, (0, 1, 2), copies)
        images, positions = next(digits(3).batches(3))
        assert ((labels := rule(ForwardPass(dead, images, positions, (0, 1, 2), grad=True))) >= 0).all()
        assert labels.shape == (3,)


def test_copies_are_turned_about_the_centre():
    images = next(digits(3).batches(3))[0]
    turned = Rotated(torch.tensor(90.0), torch.zeros(1, 28, 28))(images)
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-4)
    small = Rotated(torch.tensor(5.0), torch.zeros(1, 28, 28))(images)
    wanted = scipy.ndimage.rotate(images[0, 0].numpy(), 5.0, reshape=False, order=1, mode="nearest")
    assert np.abs(small[0, 0].numpy() - wanted).mean() < 0.02
    each = kornia.geometry.transform.rotate(images, torch.full((3,), 5.0), padding_mode="border")
    assert torch.allclose(small, each, atol=1e-5)


def test_strategies_draw_what_they_say():
    copies = RotationAndNoise(angle_std=5, noise_std=0.01).draw(2000, (1, 8, 8), torch.Generator().manual_seed(0))
    angles = torch.stack([copy.angle for copy in copies])
    assert float(angles.std()) == pytest.approx(5, rel=0.05)
    assert float(angles.mean()) == pytest.approx(0, abs=0.4)
    assert float(torch.stack([copy.noise for copy in copies]).std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, 2.5, math.pi / 2])
def test_the_releases_copies_take_the_nearest_pixel(angle):
    """Pixel by pixel: turned about pixel (14, 14), in radians, the border repeated."""
    image, noise = next(digits(1).batches(1))[0], torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = RotatedToNearest(angle, noise)(image)[0, 0].numpy()
    pixels = image[0, 0].numpy()
    for row in range(28):
        for column in range(28):
            y, x = row - 14, column - 14
            source_y = round(math.cos(angle) * y + math.sin(angle) * x) + 14
            source_x = round(math.cos(angle) * x - math.sin(angle) * y) + 14
            wanted = pixels[min(max(source_y, 0), 27), min(max(source_x, 0), 27)]
            assert found[row, column] == pytest.approx(wanted + float(noise[0, row, column]), abs=1e-6)


def test_the_releases_angles_are_radians_drawn_for_either_side(model):
    assert {"degrees": RotationAndNoise(5.0, 0.01), "released": ReleasedRotationAndNoise(5.0, 0.01)} == STRATEGIES
    copies = STRATEGIES["released"].draw(2000, (1, 8, 8), torch.Generator().manual_seed(0))
    assert np.std([copy.angle for copy in copies]) == pytest.approx(5, rel=0.05)
    turns = np.array([copy.angle for copy in copies]) % (2 * math.pi)
    assert np.histogram(turns, bins=4, range=(0, 2 * math.pi))[0].min() > 400  # almost even over the circle
    split, drawn = digits(30), []

    class Noted(ReleasedRotationAndNoise):
        def draw(self, *arguments):
            drawn.append(super().draw(*arguments))
            return drawn[-1]

    measure(METHODS["Rzg_trace"], [model], split, split, Sampling(torch.Generator().manual_seed(0), 4, Noted()), (1,))
    validation, pool = drawn
    assert [copy.angle for copy in validation] != [copy.angle for copy in pool]


def test_a_strategy_of_ones_own(model):
    class Brightness:
        def draw(self, samples, shape, generator):
            return [lambda images, f=float(f): images * f for f in 1 + 0.1 * torch.randn(samples, generator=generator)]

    split = digits(10)
    sampling = Sampling(torch.Generator().manual_seed(0), 3, Brightness())
    assert len(measure(METHODS["Rzg_trace"], [model], split, split, sampling, (1,)).pool) == 10


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_features_have_no_rotated_copies(strategy):
    with pytest.raises(UserError, match="rotated images"):
        strategy.draw(4, (20,), torch.Generator())
