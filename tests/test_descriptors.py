"""Descriptors against direct computations: one image at a time, numpy's correlation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from alfk.data.split import Split
from alfk.method.descriptors import ForwardPass, describe, standardise
from alfk.networks.passes import pool_spatially


class Tiny(nn.Module):
    """Two taps of different kinds: (B, 3, h, w) and (B, 4)."""

    def __init__(self, generator):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(3 * 36, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, images):
        x = torch.tanh(self.conv(images))
        logits = self.fc(x.flatten(1))
        return logits, [x, logits]


@pytest.fixture
def tiny():
    return Tiny(torch.Generator().manual_seed(1)).double()


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (11, 2, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 4, (11,), generator=generator), (0.4, 0.5), (0.2, 0.3))


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_inner_product_is_the_correlation_times_a_constant(length, seed):
    a, b = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assume(min(a.std(), b.std()) > 1e-3)  # else the 1e-10 beside the deviation shows
    similarity = standardise([a[None]])[0] @ standardise([b[None]])[0]
    assert float(similarity) == pytest.approx((length - 1) * np.corrcoef(a, b)[0, 1], abs=1e-6)


def test_scales_are_standardised_apart_and_add_up():
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(5, n, dtype=torch.float64, generator=generator) * 10**n for n in (2, 3, 7)]
    whole = standardise(scales)
    assert whole.shape == (5, 12)
    parts = sum(standardise([s]) @ standardise([s]).T for s in scales)
    assert torch.allclose(whole @ whole.T, parts)


def test_a_constant_vector_becomes_zero():
    assert (standardise([torch.full((1, 6), 3.25)]) == 0).all()


def test_spatial_average():
    tap = torch.arange(24.0).view(1, 2, 3, 4)
    assert pool_spatially(tap).tolist() == [[5.5, 17.5]]
    assert pool_spatially(tap[:, :, 0, 0]).tolist() == [[0.0, 12.0]]


def test_scores_are_each_images_own_gradient(tiny, split):
    """One backward pass for the batch equals a pass for each image with the loss computed by hand."""
    images, positions = next(split.batches(11))
    images = images.double()
    probe = ForwardPass(tiny.eval(), images, positions, None, grad=True)
    scores = probe.scores(split.labels)
    for i in range(11):
        x = torch.tanh(tiny.conv(images[i : i + 1])).detach().requires_grad_()
        logits = tiny.fc(x.flatten(1))
        loss = logits.logsumexp(1)[0] - logits[0, split.labels[i]]
        gradient = torch.autograd.grad(loss, x)[0].mean((2, 3))[0]
        assert torch.allclose(scores[0][i], gradient, atol=1e-12)
        at_logits = logits.softmax(1)[0] - F.one_hot(split.labels[i], 4)
        assert torch.allclose(scores[1][i], at_logits, atol=1e-12)


def test_probe_gives_gradients_for_several_labels(tiny, split):
    images, positions = next(split.batches(11))
    probe = ForwardPass(tiny.eval(), images.double(), positions, (1,), grad=True)
    for label in range(4):
        wanted = probe.logits.softmax(1) - F.one_hot(torch.tensor(label), 4)
        assert torch.allclose(probe.scores(torch.full((11,), label), last=False)[0], wanted)


def test_describe_keeps_order_modes_and_labels(split):
    model = Tiny(torch.Generator().manual_seed(1))
    model.conv.eval()
    described = describe(model, split, (0,), lambda probe: split.labels[probe.positions], batch_size=4)
    assert described.vectors.shape == (11, 6)
    assert torch.equal(described.pseudo_labels, split.labels)
    assert model.training
    assert model.fc.training
    assert not model.conv.training
    one = describe(model, split.subset(torch.tensor([7])), (0,), lambda probe: split.labels[7:8])
    assert torch.allclose(described.vectors[7], one.vectors[0], atol=1e-5)
    z = describe(model, split, (0,))
    assert torch.allclose(z.vectors, described.vectors[:, :3], atol=1e-5)
    assert (z.pseudo_labels == -1).all()


def test_no_images(split):
    with pytest.raises(ValueError, match="no image"):
        describe(Tiny(torch.Generator()), split.subset(torch.tensor([], dtype=torch.int64)))
