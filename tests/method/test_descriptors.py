"""Descriptors against examples/paper.py, one image at a time, and numpy's correlation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from alfk.data.split import Split
from alfk.method.descriptors import ForwardPass, descriptors_of, standardise
from examples import paper


class Tiny(nn.Module):
    """Two taps of different kinds: (B, 3, h, w) and (B, 4)."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(3 * 36, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        x = torch.tanh(self.conv(images))
        logits = self.fc(x.flatten(1))
        return logits, [x, logits]


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (11, 2, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 4, (11,), generator=generator), (0.4, 0.5), (0.2, 0.3))


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_inner_product_is_the_correlation_times_a_constant(length, seed):
    a, b = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assume(min(a.std(), b.std()) > 1e-3)  # else the 1e-10 beside the deviation shows
    wanted = pytest.approx((length - 1) * np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert float(standardise([a[None]])[0] @ standardise([b[None]])[0]) == wanted
    assert float(paper.similarity([a[None]], [b[None]])) == wanted


def test_scales_are_standardised_separately_and_add_up():
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(5, n, dtype=torch.float64, generator=generator) * 10**n for n in (2, 3, 7)]
    whole = standardise(scales)
    assert whole.shape == (5, 12)
    assert torch.allclose(whole @ whole.T, paper.similarity(scales, scales))


def test_small_and_constant_vectors():
    constant = torch.tensor([3.25, 0.1, 14.62]).repeat(64, 1)  # the means of the last two are rounded
    constant[::2] = constant[::2].nextafter(torch.tensor(torch.inf))
    assert (standardise([constant.T, constant[1::2].T]) == 0).all()
    small = 1e-10 * torch.tensor([[-1.0, 0.0, 1.0]])  # its deviation is the 1e-10 that is added
    assert standardise([small]).flatten().tolist() == pytest.approx([-0.5, 0, 0.5])


def test_descriptors_are_those_of_the_paper_for_each_image(split):
    """Features and scores of a batch equal those of single images."""
    model = Tiny().double().eval()
    images, positions = next(split.batches(11))
    batch = ForwardPass(model, images.double(), positions, None, grad=True)
    scores = batch.scores(split.labels)
    for i, image in enumerate(images.double().split(1)):
        z, g = paper.z(model, image), paper.g(model, image, split.labels[i : i + 1])
        for found, wanted in zip([*batch.features, *scores], [*z, *g], strict=True):
            assert torch.allclose(found[i], wanted[0], atol=1e-12)


def test_scores_for_several_labels(split):
    """At the logits the gradient of the cross-entropy is the softmax minus the label's unit vector."""
    images, positions = next(split.batches(11))
    batch = ForwardPass(Tiny().double().eval(), images.double(), positions, (1,), grad=True)
    for label in range(4):
        wanted = batch.logits.softmax(1) - F.one_hot(torch.tensor(label), 4)
        assert torch.allclose(batch.scores(torch.full((11,), label), last=False)[0], wanted)


def test_describe_keeps_order_modes_and_labels(split):
    model = Tiny()
    model.conv.eval()
    found = descriptors_of(model, split, None, lambda batch: split.labels[batch.positions], batch_size=4)
    assert (model.training, model.fc.training, model.conv.training) == (True, True, False)
    images = next(split.batches(11))[0]
    z, g = paper.z(model, images), paper.g(model, images, split.labels)
    wanted = [paper.standardise(scale) for scale in (*z, *g)]
    assert torch.allclose(found.vectors, torch.cat(wanted, 1), atol=1e-4)
    assert torch.equal(found.pseudo_labels, split.labels)
    assert torch.equal(found.predictions, model(images)[0].argmax(1))
    one_tap = descriptors_of(model, split, (1,))
    assert torch.allclose(one_tap.vectors, wanted[1], atol=1e-4)
    assert (one_tap.pseudo_labels == -1).all()


def test_no_images(split):
    with pytest.raises(ValueError, match="no image"):
        descriptors_of(Tiny(), split.subset(torch.tensor([], dtype=torch.int64)))
