"""Pseudo-labels from perturbed copies against examples/paper.py, which takes a backward pass for each class."""

import functools
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
from alfk.networks.weights import kaiming_fan_out
from alfk.support.errors import UserError
from examples import paper
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


def chosen_taps(model, taps):
    """The model with some of its taps, as paper.py takes all."""
    return lambda images: (lambda logits, every: (logits, [every[tap] for tap in taps]))(*model(images))


@functools.cache
def plain_statistics(length):
    """A network in double precision, 20 images, their copies, and Z (20, L, K) and G (20, 10, L, K) of these."""
    model = LeNet(10)
    kaiming_fan_out(model, torch.Generator().manual_seed(0))
    model = model.double().eval()
    images = next(digits(20).batches(20))[0].double()
    many = RotationAndNoise().draw(K, (1, 28, 28), torch.Generator().manual_seed(3))
    Z, G = paper.statistics(chosen_taps(model, MNIST.taps(length)), [copy(images) for copy in many], 10)
    return model, images, many, Z, G


def of_diagonals(Z, G):
    """The mutual information of every entry of z with the same entry of g, summed."""
    return sum(paper.mutual_information(Z[:, i : i + 1], G[:, :, i : i + 1]) for i in range(Z.shape[1]))


PLAIN = {"trace": paper.trace, "mi": paper.mutual_information, "mi_diag": of_diagonals}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("length", [10, 20, 80])
def test_estimators_equal_the_plain_ones(kind, length):
    """All L are above K, so that the determinants are those of K x K matrices; the next test has K above L."""
    model, images, many, Z, G = plain_statistics(length)
    ours, theirs = pseudo_labels.ESTIMATORS[kind](model, MNIST.taps(length), images, many), PLAIN[kind](Z, G)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))


def test_pseudo_labels_of_mutual_information_in_single_precision(parity):
    """On 100 digits and the recorded network."""
    trained = LeNet(10).eval()
    weights = {k.removeprefix("weights/"): v for k, v in parity.items() if k.startswith("weights/")}
    trained.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    pixels = torch.from_numpy(parity["pool_images"][::15][:100]).unsqueeze(1)
    images, positions = next(Split(pixels, None, MNIST.mean, MNIST.std).batches(100))
    many = RotationAndNoise().draw(24, (1, 28, 28), torch.Generator().manual_seed(5))
    rule = pseudo_labels.from_copies(pseudo_labels.mutual_information, trained, (1,), many)
    ours = rule(ForwardPass(trained, images, positions, (1,), grad=True))
    Z, G = paper.statistics(chosen_taps(trained, (1,)), [copy(images) for copy in many], 10)
    theirs = paper.mutual_information(Z.double(), G.double()).argmax(1)
    assert len(theirs.unique()) == 10
    assert (ours == theirs).double().mean() >= 0.99


def test_linearity_gives_every_class_its_gradient(model):
    images, taps = next(digits(4).batches(4))[0], (0, 1, 2, 3)
    batch = ForwardPass(model, images, None, taps, grad=True)
    p, rows = batch.logits.softmax(1), batch.jacobian()
    assert rows.shape == (4, 10, 90)
    for c in range(10):
        wanted = torch.cat(paper.g(model, images, torch.full((4,), c)), 1)
        assert torch.allclose(torch.einsum("bc,bcl->bl", p, rows) - rows[:, c], wanted, atol=1e-6)


def test_both_sides_get_estimated_labels(model):
    split = digits(30)
    sampling = Sampling(torch.Generator().manual_seed(0), 4, STRATEGIES["degrees"])
    for key in ("Rzg_trace", "Rzg_mi", "Rzg_mi_diag"):
        found = measure(METHODS[key], [model], split, split, sampling, (1,), 7)
        assert torch.equal(found.pool.pseudo_labels, found.validation.pseudo_labels)  # the same copies for both
        assert found.pool.pseudo_labels.unique().numel() > 1


def test_chunks_do_not_change_labels(model, copies, monkeypatch):
    images, positions = next(digits(12).batches(12))
    batch = ForwardPass(model, images, positions, (1,), grad=True)
    whole = pseudo_labels.from_copies(pseudo_labels.mutual_information, model, (1,), copies)(batch)
    monkeypatch.setattr(pseudo_labels, "STATISTICS", 1)
    assert torch.equal(pseudo_labels.from_copies(pseudo_labels.mutual_information, model, (1,), copies)(batch), whole)


def test_log_determinants_are_always_finite():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    good = a @ a.mT  # rank 4 of 6: singular but for epsilon
    wanted = torch.linalg.eigvalsh(good).clamp(min=0).add(EPS).log().sum(-1)
    assert torch.allclose(pseudo_labels.log_det(good), wanted, rtol=1e-6)
    negative = good - 1e-3 * torch.eye(6, dtype=torch.float64)
    values = torch.linalg.eigvalsh(negative).add(EPS).clamp(min=EPS)
    assert torch.allclose(pseudo_labels.log_det(negative), values.log().sum(-1))
    for bad in (math.inf, math.nan, 0.0):  # as if all were zero
        found = pseudo_labels.log_det(torch.full((2, 5, 5), bad, dtype=torch.float64))
        assert found.tolist() == pytest.approx([5 * math.log(EPS)] * 2)


def test_a_dead_network_still_gets_labels(copies):
    """All features and gradients zero: every determinant is that of epsilon."""
    dead = LeNet(10)
    for parameter in dead.parameters():
        torch.nn.init.zeros_(parameter)
    images, positions = next(digits(3).batches(3))
    for estimator in pseudo_labels.ESTIMATORS.values():
        rule = pseudo_labels.from_copies(estimator, dead, (0, 1, 2), copies)
        assert (rule(ForwardPass(dead, images, positions, (0, 1, 2), grad=True)) >= 0).tolist() == [True] * 3


def test_copies_are_rotated_about_the_centre():
    images = next(digits(3).batches(3))[0]
    turned = Rotated(torch.tensor(90.0), torch.zeros(1, 28, 28))(images)
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-4)
    noise = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    small = Rotated(torch.tensor(5.0), noise)(images) - noise
    wanted = scipy.ndimage.rotate(images[0, 0].numpy(), 5.0, reshape=False, order=1, mode="nearest")
    assert np.abs(small[0, 0].numpy() - wanted).mean() < 0.02
    each = kornia.geometry.transform.rotate(images, torch.full((3,), 5.0), padding_mode="border")
    assert torch.allclose(small, each, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, 2.5, math.pi / 2])
def test_the_releases_copies_take_the_nearest_pixel(angle):
    """Pixel by pixel: rotated about pixel (14, 14), in radians, the border repeated."""
    image, noise = next(digits(1).batches(1))[0], torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = RotatedToNearest(angle, noise)(image)[0, 0].numpy()
    pixels = image[0, 0].numpy()
    for row, column in np.ndindex(28, 28):
        y, x = row - 14, column - 14
        source_y = round(math.cos(angle) * y + math.sin(angle) * x) + 14
        source_x = round(math.cos(angle) * x - math.sin(angle) * y) + 14
        wanted = pixels[min(max(source_y, 0), 27), min(max(source_x, 0), 27)]
        assert found[row, column] == pytest.approx(wanted + float(noise[0, row, column]), abs=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_draw_what_they_say(name):
    copies = STRATEGIES[name].draw(2000, (1, 8, 8), torch.Generator().manual_seed(0))
    angles = np.array([float(copy.angle) for copy in copies])
    assert (angles.std(), angles.mean()) == (pytest.approx(5, rel=0.05), pytest.approx(0, abs=0.4))
    assert float(torch.stack([copy.noise for copy in copies]).std()) == pytest.approx(0.01, rel=0.05)
    assert {type(copy) for copy in copies} == {{"degrees": Rotated, "released": RotatedToNearest}[name]}
    with pytest.raises(UserError, match="rotated images"):  # features are none
        STRATEGIES[name].draw(4, (20,), torch.Generator())


def test_the_release_draws_separately_for_validation_set_and_pool(model):
    split, drawn = digits(10), []

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
