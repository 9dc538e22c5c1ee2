"""How weights are drawn, and LeNet's taps and pooling."""

import pytest
import torch
import torch.nn.functional as F

from alfk.networks.weights import fingerprint, kaiming_fan_out, snapshot, uniform_fan_in
from mnist.config import DIGITS, MNIST
from mnist.custom_models.lenet import LeNet, max_pool


def lenet(seed=0):
    model = LeNet(10)
    uniform_fan_in(model, torch.Generator().manual_seed(seed))
    return model


def test_lenet_starts_from_pytorchs_default_initialisation():
    """Against torch's own layers: the same bounds, filled evenly, biases too; and the seed decides."""
    draws = [snapshot(lenet(seed)) for seed in range(20)]
    theirs = [snapshot(LeNet()) for _ in range(20)]
    for name in draws[0]:
        bound = {"conv1": 25, "conv2": 250, "fc1": 320, "fc2": 50}[name.split(".")[0]] ** -0.5
        for states in (draws, theirs):
            values = torch.cat([state[name].flatten() for state in states])
            assert 0.98 * bound < float(values.abs().max()) <= bound * (1 + 1e-6), name
            assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.1), name
    assert fingerprint(draws[3]) == fingerprint(snapshot(lenet(seed=3))) != fingerprint(draws[4])
    assert MNIST.initialise is DIGITS.initialise is uniform_fan_in


def test_residual_networks_start_from_kaiming_normal_convolutions():
    model = LeNet()
    kaiming_fan_out(model, torch.Generator().manual_seed(3))
    assert float(model.conv2.weight.detach().std()) == pytest.approx((2 / (20 * 25)) ** 0.5, rel=0.05)
    assert not model.conv1.bias.any()
    for layer, fan_in in ((model.fc1, 320), (model.fc2, 50)):
        for values in (layer.weight.detach(), layer.bias.detach()):
            assert float(values.abs().max()) <= fan_in**-0.5
        assert float(layer.weight.detach().std()) == pytest.approx((1 / fan_in / 3) ** 0.5, rel=0.1)


def test_lenet_taps_have_the_stated_shapes():
    logits, taps = lenet()(torch.zeros(2, 1, 28, 28))
    assert [tuple(tap.shape) for tap in taps] == [(2, 10, 12, 12), (2, 20, 4, 4), (2, 50), (2, 10)]
    assert logits is taps[3]
    for length, indices in MNIST.descriptors.items():
        assert sum((10, 20, 50, 10)[i] for i in indices) == length


@pytest.mark.parametrize("size", [28, 27, 29, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_is_torchs(size, layout):
    """Values and gradients to the bit, also of odd maps and where all values of a window are equal."""
    images = torch.randn(3, 4, size, size, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    images[:, :, :9] = 0.5
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    pooled, wanted = max_pool(ours), F.max_pool2d(theirs, 2)
    assert torch.equal(pooled, wanted)
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    pooled.backward(gradient)
    wanted.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)
    with torch.inference_mode():
        assert torch.equal(max_pool(images), wanted)
