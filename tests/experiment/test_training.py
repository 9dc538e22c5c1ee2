"""The training loop and its parts."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

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
from alfk.networks.weights import fingerprint, snapshot, uniform_fan_in
from alfk.support.errors import UserError
from mnist.config import DIGITS, MNIST
from mnist.custom_models.lenet import LeNet


def digits(count=60):
    train, _ = DIGITS.load(None)
    return train.subset(torch.arange(count))


def lenet(seed=0, classes=10):
    model = LeNet(classes)
    uniform_fan_in(model, torch.Generator().manual_seed(seed))
    return model


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
            found = Evaluator(digits(500), 500)(model).predictions
            prints.append((fingerprint(snapshot(model)), found.tolist()))
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
    assert (found.count - found.errors, found.count) == (by_hand, 240)
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
        assert (found.errors, found.count) == (int((wanted != split.labels).sum()), 300)
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
        found = evaluator(model, Evaluation(others, whole.count))
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
