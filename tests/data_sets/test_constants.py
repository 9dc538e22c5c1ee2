"""The constants of each data set against those of the paper and its release (docs/method.md, sections 2 and 10)."""

import pytest

from alfk.experiment.config import StepDecay, WarmUpAndDecay
from alfk.networks.weights import kaiming_fan_out, uniform_fan_in
from imagenet.config import IMAGENET
from mnist.config import MNIST
from svhn.config import SVHN
from vaal.config import RECIPES

HALF, COLOURS = (0.5,) * 3, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SPLIT = (10_439,) * 8 + (10_438,) * 2  # of SVHN's validation set
PAPER = {
    "MNIST": {
        "settings": (MNIST, 10, (0.1307,), (0.3081,), (1000,) * 10, 10, 125, 10, 128, uniform_fan_in, "float32"),
        "retraining": (50, 25, 0.05, 0.5, 0.0, StepDecay(15)),
        "pretraining": (8, 25, 0.05, 0.5, 0.0, StepDecay(3)),
        "lengths": {10: 1, 20: 1, 30: 2, 80: 3, 90: 4},
    },
    "SVHN": {
        "settings": (SVHN, 10, HALF, HALF, SPLIT, 10, 1250, 5, 64, kaiming_fan_out, "float32"),
        "retraining": (35, 128, 0.1, 0.5, 0.0, StepDecay(15)),
        "pretraining": (8, 128, 0.1, 0.5, 0.0, StepDecay(3)),
        "lengths": {256: 1, 512: 1, 768: 2},
    },
    "ImageNet": {
        "settings": (IMAGENET, None, *COLOURS, (), 10, 64_000, 1, 32, kaiming_fan_out, "float16"),
        "retraining": (60, 128, 0.1, 0.9, 1e-4, WarmUpAndDecay(5, 5, (30, 50, 57))),
        "pretraining": (15, 128, 0.1, 0.9, 1e-4, WarmUpAndDecay(5, 2, (6, 10, 14))),
        "lengths": {448: 3, 512: 1, 768: 2},
    },
}
RATES = {  # epoch from 1 -> factors of the learning rate at its last step
    ("MNIST", "retraining"): {1: 1, 14: 1, 15: 0.1, 29: 0.1, 30: 0.01, 45: 0.001, 50: 0.001},
    ("SVHN", "retraining"): {14: 1, 15: 0.1, 30: 0.01, 35: 0.01},
    ("MNIST", "pretraining"): {2: 1, 3: 0.1, 6: 0.01, 8: 0.01},
}
VAAL = {"MNIST": (2, 2, 5e-4), "SVHN": (1, 0, 5e-4), "ImageNet": (1, 0, 1e-3)}  # divisor, padding, rate


@pytest.mark.parametrize("name", PAPER)
def test_constants_of_an_experiment(name):
    experiment, *wanted = PAPER[name]["settings"]
    fields = ("classes", "mean", "std", "validation_per_class", "iterations", "query_size", "runs", "samples")
    assert experiment.name == name
    assert [getattr(experiment, field) for field in (*fields, "initialise", "descriptor_dtype")] == wanted
    for kind in ("retraining", "pretraining"):
        recipe = getattr(experiment, kind)
        found = recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.schedule
        assert found == PAPER[name][kind]
    assert {length: len(taps) for length, taps in experiment.descriptors.items()} == PAPER[name]["lengths"]
    assert experiment.minority == (None if name == "ImageNet" else (5, 6, 7, 8, 9))


@pytest.mark.parametrize(("name", "kind"), RATES)
def test_rates(name, kind):
    schedule = getattr(PAPER[name]["settings"][0], kind).schedule
    found = {epoch: schedule(epoch, 1.0) for epoch in RATES[name, kind]}
    assert found == pytest.approx(RATES[name, kind])


@pytest.mark.parametrize("name", VAAL)
def test_constants_of_vaal(name):
    recipe = RECIPES[name]
    assert (recipe.divisor, recipe.padding, recipe.lr) == VAAL[name]
    assert (recipe.batch_size, recipe.train_iterations, recipe.vae_steps, recipe.adversary_steps) == (25, 10_000, 2, 2)
    assert (recipe.latent_dim, recipe.adversary_param) == (32, 1.0)
    assert [recipe.rate(step) / recipe.lr for step in (0, 399, 400, 9_999)] == pytest.approx([1, 1, 0.9, 0.9**24])
    assert recipe.check_steps() == [1, 2001, 4001, 6001, 8001]


def test_the_schedule_of_imagenet():
    """Linear warm-up in every step of 5 epochs, then 1 until epoch 30, 0.1 until 50, 0.01 until 57, 0.001."""
    schedule = WarmUpAndDecay(5, 5, (30, 50, 57))
    rates = [schedule(1, 0.5), schedule(3, 0.25), schedule(5, 1.0), *map(schedule, (6, 30, 31, 50, 51, 57, 58))]
    assert rates == pytest.approx([0.1, 0.45, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])
