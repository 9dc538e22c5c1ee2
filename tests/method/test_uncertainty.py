"""Uncertainty measures against NumPy and SciPy, limits, and how the samples are taken."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from alfk.data.split import Split
from alfk.method.uncertainty import MEASURES, Samples, sampler, uncertainty
from alfk.networks.dropout import MCDropout, dropout
from alfk.networks.modes import dropout_mode
from alfk.networks.weights import kaiming_fan_out
from mnist.custom_models.lenet import LeNet
from tests.helpers import refuses

K, B, C = 7, 5, 3


def running(logits):
    """Samples of (K, B, C) logits, one by one."""
    found = Samples(logits.shape[1], logits.shape[2])
    for sample in logits:
        found.add(sample)
    return found


@pytest.fixture
def logits():
    return 3 * torch.randn(K, B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_measures_are_what_numpy_and_scipy_compute(logits):
    p = scipy.special.softmax(logits.numpy(), axis=2)
    found = running(logits)
    votes = np.stack([np.bincount(p[:, i].argmax(1), minlength=C) for i in range(B)])
    mean_entropy = scipy.stats.entropy(p, axis=2, base=2).mean(0)
    entropy = scipy.stats.entropy(p.mean(0), axis=1, base=2)
    for ours, wanted in (
        (found.variation_ratio(), 1 - votes.max(1) / K),
        (found.predictive_entropy(), entropy),
        (found.mutual_information(), entropy - mean_entropy),
        (found.mean_deviation(), p.std(0).mean(1)),
    ):
        np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-12)


def test_limits(logits):
    equal = running(logits[:1].expand(K, B, C))
    for measure in (Samples.variation_ratio, Samples.mutual_information, Samples.mean_deviation):
        assert torch.allclose(measure(equal), torch.zeros(B, dtype=torch.float64), atol=1e-7)
    certain = running(torch.tensor([[[1000.0, 0.0]], [[0.0, 1000.0]]]))  # probabilities of exactly 0 and 1
    assert all(measure(certain).isfinite().all() for measure in MEASURES.values())
    assert float(certain.mutual_information()) == pytest.approx(1)


def images(count=6):
    generator = torch.Generator().manual_seed(1)
    return Split(
        torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator), None, (0.1,), (0.3,)
    )


def lenet(seed):
    model = LeNet(C)
    kaiming_fan_out(model, torch.Generator().manual_seed(seed))
    return model


def test_the_first_convolution_is_computed_once_a_batch():
    model, calls = lenet(0), []
    model.conv1.register_forward_hook(lambda *_: calls.append("conv1"))
    model.conv2.register_forward_hook(lambda *_: calls.append("conv2"))
    uncertainty("varR", [model], images(), 8, torch.Generator(), 3)
    assert (calls.count("conv1"), calls.count("conv2")) == (2, 16)


def without_dropout(model):
    model.drop1 = model.drop2 = model.drop4 = nn.Identity()
    return model


def test_masks_depend_on_the_generator_alone():
    def scores(seed):
        torch.manual_seed(99)
        return uncertainty("BALD", [lenet(0)], images(), 8, torch.Generator().manual_seed(seed), 3).tolist()

    assert scores(1) == scores(1) != scores(2)
    model, state = lenet(0), torch.get_rng_state()
    uncertainty("BALD", [model], images(), 2, torch.Generator(), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_ensemble_without_dropout_is_averaged_over_members():
    models = [without_dropout(lenet(seed)) for seed in range(3)]
    split = images()
    batch = next(split.batches(6))[0]
    with torch.inference_mode():
        by_hand = running(torch.stack([model(batch)[0] for model in models]))
    ours = uncertainty("entropy", models, split, 6, torch.Generator(), 4)
    assert torch.allclose(ours, by_hand.predictive_entropy(), atol=1e-6)


class Own(nn.Module):
    """A network whose only tap is the logits."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        logits = self.layers(x)
        return logits, [logits]


class DropoutAsAFunction(nn.Module):
    """Dropout that depends on the mode of the whole network."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, C)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def with_p(p):
    model = lenet(0)
    for module in model.modules():
        if isinstance(module, MCDropout):
            module.p = p
    return model


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("model", [without_dropout(lenet(0)), Own(DropoutAsAFunction()), with_p(0.0)])
def test_samples_that_do_not_differ_are_an_error(model, measure):
    refuses(
        lambda: uncertainty(measure, [model, model], images(), 4, torch.Generator(), 3),
        "the 4 dropout samples are equal, since no dropout is active: use",
    )
    for other in ([model, lenet(1)], [lenet(1), model]):
        assert uncertainty(measure, other, images(), 2, torch.Generator(), 3).shape == (6,)


def test_numbers_of_samples():
    assert (uncertainty("entropy", [lenet(0)], images(), 1, torch.Generator(), 3) > 0).all()
    for measure in MEASURES.keys() - {"entropy"}:
        words = f"{measure} measures how samples differ, of which there is one: take more samples"
        refuses(lambda m=measure: uncertainty(m, [lenet(0)], images(), 1, torch.Generator(), 3), words)
    for samples in (0, 2, 5):
        with pytest.raises(ValueError, match=f"{samples} samples cannot be shared by 3"):
            uncertainty("varR", [lenet(s) for s in range(3)], images(), samples, torch.Generator(), 4)


def test_dropout_layers_of_torch_stay_random_and_batch_norm_does_not():
    layers = [nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, C)]
    own = Own(nn.Sequential(*layers)).train()
    before = layers[0].running_mean.clone()
    assert (uncertainty("std", [own], images(), 9, torch.Generator(), 4) > 0).all()
    assert torch.equal(layers[0].running_mean, before)
    assert own.training
    assert layers[0].training


@pytest.mark.parametrize("shape", [(40, 10, 12, 12), (200, 50), (3, 7, 5)])
@pytest.mark.parametrize("p", [0.5, 0.25, 0.125, 0.3])
def test_dropout_zeroes_its_share_and_scales_the_rest(shape, p):
    """0.3 is no power of 1/2 and takes torch's way; entries are independent of their neighbours."""
    torch.manual_seed(0)
    features = torch.rand(shape) + 1
    if features.ndim == 4:
        features = features.to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    draws = [dropout(features, p) for _ in range(30 if features.numel() > 1000 else 600)]
    zeros = torch.stack([draw == 0 for draw in draws]).double()
    error = (p * (1 - p) / zeros.numel()) ** 0.5
    assert abs(float(zeros.mean()) - p) < 5 * error
    together = zeros[:, :-1] * zeros[:, 1:]
    assert abs(float(together.mean()) - p * p) < 5 * (p * p / together.numel()) ** 0.5 + 0.01 * p
    kept = draws[0] != 0
    assert torch.allclose(draws[0][kept], features[kept] / (1 - p))
    torch.manual_seed(1)
    assert torch.equal(dropout(features, p), draws[0])


def test_dropout_acts_while_uncertainty_is_sampled_and_nowhere_else():
    model, batch = lenet(0), next(images().batches(6))[0]
    plain = without_dropout(lenet(0))
    for mode in (model.train, model.eval):
        mode()
        assert torch.equal(model(batch)[0], plain(batch)[0])
    with dropout_mode([model]), torch.inference_mode():
        first, second = sampler(model, batch)(), sampler(model, batch)()
    assert not torch.equal(first, second)
    assert torch.equal(model(batch)[0], plain(batch)[0])
    with pytest.raises(ZeroDivisionError), dropout_mode([model]):
        raise ZeroDivisionError
    assert not any(module.active for module in model.modules() if isinstance(module, MCDropout))
