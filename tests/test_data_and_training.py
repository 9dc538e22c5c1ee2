"""Splits, the training loop and its parts."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from alfk.data.split import Split
from alfk.experiment.config import Recipe, StepDecay
from alfk.experiment.training import (
    BestEpoch,
    Evaluation,
    Evaluator,
    accuracy,
    accuracy_per_class,
    classify,
    cpu_threads,
    fit,
    rotate,
)
from alfk.networks.weights import fingerprint, kaiming_fan_out, snapshot, uniform_fan_in
from alfk.support.errors import UserError
from mnist.config import DIGITS, MNIST
from mnist.custom_models.lenet import LeNet, max_pool
from tests.helpers import refuses


def digits(count=60):
    train, _ = DIGITS.load(None)
    return train.subset(torch.arange(count))


def lenet(seed=0, classes=10):
    model = LeNet(classes)
    uniform_fan_in(model, torch.Generator().manual_seed(seed))
    return model


def test_batches_are_what_torchvision_makes_of_the_images():
    split = digits(7)
    recipe = transforms.Compose([transforms.ToTensor(), transforms.Normalize(split.mean, split.std)])
    wanted = torch.stack([recipe(Image.fromarray(image[0].numpy())) for image in split.images])
    batches = list(split.batches(3))
    assert [len(positions) for _, positions in batches] == [3, 3, 1]
    assert torch.allclose(torch.cat([images for images, _ in batches]), wanted, atol=1e-6)


def test_batches_follow_an_order_and_floats_are_taken_as_scaled():
    split = digits(9)
    floats = Split(split.images.float() / 255, split.labels, split.mean, split.std)
    order = torch.tensor([8, 0, 3])
    (ours, positions), (theirs, _) = next(split.batches(5, order)), next(floats.batches(5, order))
    assert positions.tolist() == order.tolist()
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(split.subset(order).labels, split.labels[order])


@pytest.mark.parametrize(("images", "labels"), [((3, 28, 28), 3), ((3, 1, 28, 28), 2)])
def test_a_split_refuses_what_does_not_fit(images, labels):
    with pytest.raises(UserError, match=r"images"):
        Split(torch.zeros(images, dtype=torch.uint8), torch.zeros(labels), (0.5,), (0.5,))


def test_two_subsets_are_joined():
    """In the order given, each with the labels that it has; the images stay where they are."""
    whole = digits(20)
    noisy = whole.subset([4, 1, 9], [7, 7, 7])
    joined = noisy.joined(whole.subset([0, 19]))
    assert len(joined) == 5
    assert joined.labels.tolist() == [7, 7, 7, int(whole.labels[0]), int(whole.labels[19])]
    assert torch.equal(joined.images, whole.images[[4, 1, 9, 0, 19]])
    assert joined.store is whole.store
    assert (joined.mean, joined.std, joined.classes) == (whole.mean, whole.std, whole.classes)
    everything = Split(whole.images, whole.labels, (0.5,), (0.5,))
    assert torch.equal(everything.joined(everything.subset([3])).images, whole.images[[*range(20), 3]])
    assert len(everything.subset([]).joined(everything)) == 20


def test_what_was_not_one_split_is_not_joined():
    whole = digits(20)
    unlabelled = Split(whole.images, None, (0.5,), (0.5,))
    another = Split(whole.images, whole.labels, (0.5,), (0.5,))
    for one, other in ((whole, another), (unlabelled, unlabelled), (whole, unlabelled)):
        refuses(lambda one=one, other=other: one.joined(other), "only labelled images that were one split before")


def test_schedule_counts_epochs_from_one():
    rate = StepDecay(every=15)
    assert [round(rate(epoch), 9) for epoch in (1, 14, 15, 29, 30, 45, 50)] == [1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]


def test_rotations_are_labelled_in_quarters():
    images = torch.arange(8.0).view(2, 1, 2, 2)
    turned, quarter = rotate(images)
    assert quarter.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for i, q in enumerate(quarter.tolist()):
        assert np.array_equal(turned[i, 0].numpy(), np.rot90(images[i % 2, 0].numpy(), q))


def test_fit_is_plain_sgd():
    """Two epochs against the update rule written out: momentum buffer, decayed learning rate, weight decay."""
    recipe = Recipe(epochs=2, batch_size=20, lr=0.1, momentum=0.9, weight_decay=0.01, schedule=StepDecay(2))
    split, ours, theirs = digits(60), lenet(), lenet()
    fit(ours, split, recipe, torch.Generator().manual_seed(5))
    generator, momentum = torch.Generator().manual_seed(5), [torch.zeros_like(p) for p in theirs.parameters()]
    for epoch in (1, 2):
        for rows in torch.randperm(60, generator=generator).split(20):
            images = (split.images[rows].float() / 255 - split.mean[0]) / split.std[0]
            loss = torch.nn.functional.cross_entropy(theirs(images)[0], split.labels[rows])
            gradients = torch.autograd.grad(loss, list(theirs.parameters()))
            for parameter, gradient, buffer in zip(theirs.parameters(), gradients, momentum, strict=True):
                buffer.mul_(0.9).add_(gradient + 0.01 * parameter.data)
                parameter.data.sub_(0.1 * 0.1 ** (epoch // 2) * buffer)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_training_with_a_fixed_number_of_threads_does_not_depend_on_the_others():
    prints = []
    for threads in (1, 2):
        with cpu_threads(threads):
            model = lenet().to(memory_format=torch.channels_last)
            fit(model, digits(100), MNIST.pretraining, torch.Generator().manual_seed(1), rotate_to_ten, threads=1)
            answers = Evaluator(digits(500), 500)(model).predictions
            prints.append((fingerprint(snapshot(model)), answers.tolist()))
    assert prints[0] == prints[1]


def rotate_to_ten(images, labels):
    return rotate(images, labels)


def test_after_epoch_is_told_every_epoch():
    seen = []
    recipe = Recipe(epochs=3, batch_size=25, lr=0.01, momentum=0, weight_decay=0, schedule=StepDecay(15))
    fit(lenet(), digits(), recipe, torch.Generator(), after_epoch=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("task", "rate"), [(None, 1e10), (rotate_to_ten, 1e10), (None, math.nan)])
def test_a_training_that_diverges_is_stopped(task, rate):
    """Also in the only epoch, after whose last step no loss is computed."""
    recipe = Recipe(epochs=3, batch_size=25, lr=rate, momentum=0, weight_decay=0, schedule=StepDecay(15))
    seen = []
    with pytest.raises(UserError, match=rf"diverged in epoch 1: .* {re.escape(f'{rate:g}')}: give a lower --lr"):
        fit(lenet(), digits(), recipe, torch.Generator(), task or classify, seen.append)
    assert seen == []
    one_step = dataclasses.replace(recipe, epochs=1, batch_size=len(digits()), lr=math.inf)
    with pytest.raises(UserError, match="diverged in epoch 1"):
        fit(lenet(), digits(), one_step, torch.Generator(), task or classify)


def test_scores():
    said, true = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2, 0])
    assert accuracy(said, true) == 50
    assert accuracy_per_class(said, true, 4) == [50, 100, 0, None]
    model, split = lenet(classes=4), digits()
    images = (split.images.float() / 255 - split.mean[0]) / split.std[0]
    by_hand = sum(int((model(images.rot90(q, (2, 3)))[0].argmax(1) == q).sum()) for q in range(4))
    found = Evaluator(split, 13, rotate)(model)
    assert (found.answers - found.errors, found.answers) == (by_hand, 240)
    assert found.accuracy == pytest.approx(100 * by_hand / 240)


def test_an_evaluation_is_the_networks_own_arg_max_in_any_order():
    split = digits(300)
    model, evaluator = trained_a_little(split), Evaluator(split, 32)
    images = (split.images.float() / 255 - split.mean[0]) / split.std[0]
    wanted = model(images)[0].argmax(1)
    first = evaluator(model)
    assert evaluator.difficulty.bool().tolist() == (wanted != split.labels).tolist()
    again = evaluator(model)  # the wrong ones come first now
    for found in (first, again):
        assert found.predictions[:, 0].tolist() == wanted.tolist()
        assert (found.errors, found.answers) == (int((wanted != split.labels).sum()), 300)
    five = Evaluator(split, 32, k=5)(model).predictions
    assert five.tolist() == model(images)[0].topk(5).indices.tolist()


def trained_a_little(split, epochs=2):
    model = lenet()
    recipe = Recipe(epochs=epochs, batch_size=25, lr=0.05, momentum=0.5, weight_decay=0, schedule=StepDecay(15))
    fit(model, split, recipe, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("task", [classify, rotate])
def test_evaluation_stops_once_an_epoch_cannot_be_the_best(task, monkeypatch):
    """And never before: it ends with None if, and only if, there are as many errors as the best epoch has."""
    split, seen = digits(300), []
    fetch = Split.batches
    monkeypatch.setattr(Split, "batches", lambda *a: (seen.append(len(b[0])) or b for b in fetch(*a)))
    model, evaluator = trained_a_little(split), Evaluator(split, 10, task)
    whole = evaluator(model)
    assert sum(seen) == 300 + 2 * 300  # the training's too
    for others, kept in ((whole.errors + 1, True), (whole.errors, False), (1, False)):
        seen.clear()
        found = evaluator(model, Evaluation(others, whole.answers))
        assert (found is not None) == kept
        assert found is None or found.errors == whole.errors
        assert sum(seen) == 300 if kept else sum(seen) <= 300
    assert sum(seen) == 10  # the first batch holds what was wrong lately


def test_the_best_epoch_is_the_first_of_the_best():
    errors, states = iter([5, 7, 3, 3, 4]), lenet()
    best = BestEpoch(lambda model, rival: Evaluation(next(errors), 10))
    weights = []
    for epoch in range(5):
        with torch.no_grad():
            states.fc2.bias.fill_(epoch)
        best(epoch, states, last=epoch == 4)
        weights.append(float(best.weights["fc2.bias"][0]))
    assert (best.epoch, best.evaluation.errors, weights) == (2, 3, [0, 0, 2, 2, 2])
    assert best.last.errors == 4
    latest = BestEpoch(None)
    for epoch in (0, 1):
        latest(epoch, states, last=epoch == 1)
    assert (latest.epoch, latest.evaluation) == (1, None)


def test_pooling_without_gradients_has_the_same_bits():
    images = torch.randn(3, 5, 24, 24, generator=torch.Generator().manual_seed(0))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = images.contiguous(memory_format=layout)
        with torch.inference_mode():
            assert torch.equal(max_pool(x), torch.nn.functional.max_pool2d(x, 2))


def test_lenet_starts_from_pytorchs_default_initialisation():
    """Against torch's own layers: the same bounds, filled evenly, biases too; and the seed decides."""
    draws = [snapshot(lenet(seed)) for seed in range(40)]
    theirs = [snapshot(LeNet()) for _ in range(40)]
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
def test_pooling_in_evaluation_is_torchs(size, layout):
    """Values and gradients to the bit, also of odd maps and where all values of a window are equal."""
    images = torch.randn(3, 4, size, size, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    images[:, :, :9] = 0.5
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    pooled, wanted = max_pool(ours), torch.nn.functional.max_pool2d(theirs, 2)
    assert torch.equal(pooled, wanted)
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    pooled.backward(gradient)
    wanted.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)
