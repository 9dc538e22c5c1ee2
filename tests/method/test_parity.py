"""Descriptors and selections against those recorded from the paper's released experiments."""

import numpy as np
import pytest
import torch

from alfk.data.split import Split
from alfk.method import acquisition, matching
from alfk.method.descriptors import ForwardPass, descriptors_of, standardise
from mnist.config import MNIST
from mnist.custom_models.lenet import LeNet

METHODS = {"none": "Rz", "gradAbl": "Rzg_true", "grad": "Rzg_pred", "gradFmap": "Rzg_pz"}
CASES = [(name, length) for name in METHODS for length in (20, 80)]


@pytest.fixture(scope="module")
def problem(parity):
    """The recorded model, pool and validation set."""
    model = LeNet()
    model.load_state_dict({k.split("/")[1]: torch.from_numpy(v) for k, v in parity.items() if k.startswith("weights/")})
    splits = [
        Split(
            torch.from_numpy(parity[f"{side}_images"]).unsqueeze(1),
            torch.from_numpy(parity[f"{side}_labels"]),
            MNIST.mean,
            MNIST.std,
        )
        for side in ("pool", "val")
    ]
    return model.eval(), *splits


def raw(model, split, taps, labels):
    """z and g before standardisation, of the whole split in one batch."""
    images, positions = next(split.batches(len(split)))
    probe = ForwardPass(model, images, positions, taps, grad=True)
    return torch.cat(probe.features, 1), torch.cat(probe.scores(labels(probe)), 1)


def measured(name, problem, taps):
    model, pool, validation = problem
    method, sampling = acquisition.METHODS[METHODS[name]], acquisition.Sampling(torch.Generator())
    return acquisition.measure(method, [model], pool, validation, sampling, taps, 500)


def relative(ours, theirs):
    """Largest difference over the largest norm of a recorded vector."""
    theirs = torch.from_numpy(np.ascontiguousarray(theirs))
    return float((ours - theirs).norm(dim=1).max() / theirs.norm(dim=1).max())


@pytest.mark.parametrize(("name", "length"), CASES)
def test_descriptors(problem, parity, name, length):
    model, pool, validation = problem
    taps = MNIST.taps(length)
    found = measured(name, problem, taps)
    scales = {20: [20], 80: [10, 20, 50]}[length]
    for side, split, described in (("pool", pool, found.pool), ("val", validation, found.validation)):
        recorded = parity[f"{name}_L{length}/{side}"]
        labels = described.pseudo_labels
        if name == "none":
            z, _ = raw(model, split, taps, lambda p: p.predictions)
            assert relative(z, recorded[..., 0]) < 1e-5
            assert (labels == -1).all()
            continue
        z, g = raw(model, split, taps, lambda p, s=labels: s)
        if name == "gradFmap" and side == "pool":  # recorded after standardisation
            assert relative(described.vectors[:, :length], recorded[..., 0]) < 1e-5
        else:
            assert relative(z, recorded[..., 0]) < 1e-5
        same = torch.from_numpy(recorded[..., 1]).sub(g).norm(dim=1) < 1e-5 * g.norm(dim=1).max()
        assert same.all(), f"{int((~same).sum())} of {len(same)} images have another label or gradient"
        parts = torch.from_numpy(recorded[..., 1]).split(scales, dim=1)
        loose = (g.norm(dim=1) > 1e-3).nonzero().flatten()  # tiny gradients standardise to noise
        assert relative(described.vectors[loose, length:], standardise(parts)[loose].numpy()) < 1e-3


@pytest.mark.parametrize(("name", "length"), CASES)
@pytest.mark.parametrize(("n", "at_least"), [(400, 395), (60, 58)])
def test_selections(problem, parity, name, length, n, at_least):
    _, pool, validation = problem
    found = measured(name, problem, MNIST.taps(length))
    errors = found.validation.vectors[found.validation.predictions != validation.labels]
    available = torch.ones(len(pool), dtype=torch.bool)
    first = int(parity[f"{name}_L{length}/first_center_{n}"]) if n < len(errors) else None
    chosen = matching.match(errors, found.pool.vectors, available, n, torch.Generator(), first)
    agree = np.intersect1d(chosen.indices.numpy(), parity[f"{name}_L{length}/selected_{n}"]).size
    print(f"{name} L{length}: {agree} of {n} selections agree (M={chosen.misclassified}, {chosen.centres} centres)")
    assert len(chosen.indices.unique()) == n
    assert agree >= at_least


def test_third_column_is_the_gradient_of_the_prediction(problem, parity):
    model, _, validation = problem
    for length in (20, 80):
        _, g = raw(model, validation, MNIST.taps(length), lambda probe: probe.predictions)
        assert relative(g, parity[f"gradFmap_L{length}/val"][..., 2]) < 1e-5


def test_batches_do_not_change_descriptors(problem):
    model, pool, _ = problem
    whole = descriptors_of(model, pool, (0, 1, 2), lambda probe: probe.predictions, 5000)
    parts = descriptors_of(model, pool, (0, 1, 2), lambda probe: probe.predictions, 97)
    assert torch.allclose(whole.vectors, parts.vectors, atol=1e-4)
    assert torch.equal(whole.predictions, parts.predictions)
