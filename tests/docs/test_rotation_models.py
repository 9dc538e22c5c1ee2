"""What docs/method.md says of stalled rotation trainings follows from results/ and reference/."""

import csv
import itertools

import numpy as np
from scipy.stats import binomtest, pearsonr

from bench.rotation_accuracy import our_points
from mnist.config import MNIST
from tests.helpers import ROOT

TEXT = " ".join((ROOT / "docs" / "method.md").read_text().split())


def rows(path):
    with open(ROOT / path, newline="") as file:
        return list(csv.DictReader(file))


def rate(hits, count):
    low, high = binomtest(hits, count).proportion_ci()
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def test_the_rule_on_the_study():
    lines = (ROOT / "results" / "rotation_study.txt").read_text().splitlines()
    epochs = np.array([line.split()[2:] for line in lines], dtype=float)
    first, best = epochs[:, 0], epochs.max(1)
    named, low = first < MNIST.stalled_below, best < 96
    assert len(named) == 40
    assert f"five were then below {MNIST.stalled_below} %" in TEXT
    assert named.sum() == named[best.argsort()[:6]].sum() == 5
    assert first[~named].min() > 83
    assert f"told all {low.sum()} that ended below 96 % (95 % interval of this rate {rate(3, 3)})" in TEXT
    assert named[low].all()
    assert f"and {named[~low].sum()} of the {(~low).sum()} others ({rate(2, 37)})" in TEXT


def test_the_rule_on_the_runs():
    runs = [r for r in rows("results/MNIST/rotation_models.csv") if (r["ir"], r["select"]) == ("100", "test")]
    named = [r for r in runs if float(r["first_epoch"]) < MNIST.stalled_below]
    first, last = ([f"{float(r[key]):.1f}" for r in named] for key in ("first_epoch", "rotation_accuracy"))
    numbers, first, last = ("{}, {} and {}".format(*each) for each in ([r["run"] for r in named], first, last))
    assert f"it names {numbers} ({first} %); they ended at {last} %" in TEXT
    assert [r["run"] for r in runs if float(r["rotation_accuracy"]) < 96] == ["7"]


def test_the_order_of_the_images():
    found = [line.split() for line in (ROOT / "results" / "rotation_orders.txt").read_text().splitlines()]
    found = {(weights, order): float(accuracy) for _, weights, _, order, accuracy in found}
    weights = [value for (w, order), value in found.items() if order == "1" and w != "1"]
    orders = [value for (w, order), value in found.items() if order != "1" and w == "1"]
    assert len(weights) == len(orders) == 3
    assert f"were at {min(weights):.0f} to {max(weights):.0f} % after" in TEXT
    assert f"in three other orders at {min(orders):.0f} to {max(orders):.0f} %" in TEXT


def test_what_a_stalled_training_cost():
    ours = [
        (r["rotation_accuracy"], float(r["accuracy"]))
        for r in rows("reference/release_rotation_models.csv")
        if (r["loop"], r["labeled_percent"]) == ("ours", "0.75")
    ]
    ((_, stalled),) = [each for each in ours if each[0] == "90.8"]
    others = [accuracy for rotation, accuracy in ours if rotation != "90.8"]
    difference = f"{np.mean(others) - stalled:.0f} points less than in the mean of {len(others)} others"
    assert f"had {stalled} % at 375 labels from its model, {difference}" in TEXT


def test_correlations_of_the_report():
    text, found = " ".join((ROOT / "docs" / "reproduction.md").read_text().split()), {}
    for length, labelled in itertools.product((20, 80), (375, 1250)):
        result = pearsonr(*zip(*our_points(length, labelled), strict=True))
        found[length, labelled] = f"{result.statistic:.2f}", "{:.2f} to {:.2f}".format(*result.confidence_interval())
    (r, around), (r80, around80) = found[20, 375], found[80, 375]
    assert f"(r = {r}, 95 % interval {around}, for L20; {r80}, {around80}, for L80)" in text
    (r, around), (r80, around80) = found[20, 1250], found[80, 1250]
    assert f"r is {r} ({around}) and {r80} ({around80})" in text
