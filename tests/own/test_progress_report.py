"""Progress reports: intervals, the rule of the sentence, errors by class, refusals."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from alfk.own.progress import paired_change, progress_report, wilson
from tests.helpers import refuses


@pytest.mark.parametrize(("correct", "images"), [(0, 20), (20, 20), (37, 60), (279, 300)])
def test_interval_of_an_accuracy_is_scipys(correct, images):
    wanted = scipy.stats.binomtest(correct, images).proportion_ci(0.95, "wilson")
    found = wilson(correct, images)
    assert np.allclose([found.value, found.low, found.high], [100 * correct / images, *(100 * e for e in wanted)])


def test_interval_of_a_change_is_the_published_one():
    """Airway hyper-responsiveness of 21 children (Fagerland et al. 2014): 1 and 7 discordant, -0.508 to -0.013."""
    found = paired_change(1, 7, 21)
    assert [round(each, 1) for each in (found.value, found.low, found.high)] == [-28.6, -50.8, -1.3]


@pytest.mark.parametrize(("up", "down", "images"), [(0.12, 0.05, 60), (0.03, 0.03, 300), (0.3, 0.1, 150)])
def test_interval_of_a_change_covers_the_true_one(up, down, images):
    counts = np.random.default_rng(0).multinomial(images, [up, down, 1 - up - down], 4000)
    found = [paired_change(*each[:2], images) for each in counts.tolist()]
    covered = np.mean([each.low <= 100 * (up - down) <= each.high for each in found])
    assert 0.94 < covered < 0.98


def changing(images, *changes, start=0.7):
    """Predictions (r,) of `images` zeros: from each round to the next, `changes` are (gained, lost) images."""
    right = torch.arange(images) < start * images
    rounds = [right]
    for gained, lost in changes:
        right = right.clone()
        wrong, known = (~right).nonzero().flatten(), right.nonzero().flatten()
        right[wrong[:gained]], right[known[:lost]] = True, False
        rounds.append(right)
    return [(~each).long() for each in rounds], torch.zeros(images, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "changes", "verdict", "sentence"),
    [
        (300, [], "first", "Accuracy with 40 labels is 70.0 (64.6 to 74.9) %: the next round shows a change."),
        (
            300,
            [(25, 7), (0, 0)],
            "rises",
            "The last 80 labels raised accuracy by 6.0 points (2.2 to 9.7): more labels of this kind still help.",
        ),
        (
            1000,
            [(18, 14), (0, 0)],
            "flat",
            "The last 80 labels changed accuracy by +0.4 ± 1.1 points: more labels of this kind no longer help.",
        ),
        (
            5000,
            [(40, 10), (0, 0)],
            "little",
            "The last 80 labels raised accuracy by 0.6 points (0.3 to 0.9): more labels of this kind help little, by "
            "less than 1 point a round.",
        ),
        (
            60,
            [(3, 2)],
            "unclear",
            "The last 40 labels changed accuracy by +1.7 ± 8.4 points: with 60 held-out images a change under 8.4 "
            "points cannot be seen; more clean images for checking would tell.",
        ),
        (
            300,
            [(60, 0), (0, 24), (0, 0), (0, 0)],  # the first round is not among the last three
            "falls",
            "The last 120 labels lowered accuracy by 8.0 points (4.8 to 11.1): check these labels and the training "
            "before you ask for more.",
        ),
    ],
)
def test_the_sentence_follows_from_the_interval(images, changes, verdict, sentence):
    predictions, labels = changing(images, *changes)
    report = progress_report(range(40, 40 * len(predictions) + 1, 40), predictions, labels)
    assert (report.verdict, report.sentence) == (verdict, sentence)
    assert sentence in str(report)
    assert report.clean_sentence == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((30, 5), "accuracy with 40 labels is higher by 8.3 points (4.4 to 12.1)."),
        ((5, 30), "accuracy with 40 labels is lower by 8.3 points (4.4 to 12.1)."),
        ((9, 8), "accuracy with 40 labels cannot be told from it: +0.3 ± 2.8 points."),
    ],
)
def test_the_clean_images_alone_are_compared(change, words):
    (clean, last), labels = changing(300, change)
    report = progress_report([40], [last], labels, clean=clean)
    assert report.clean_sentence == f"Training on the clean images alone gives 70.0 %: {words}"
    assert report.clean == wilson(210, 300)


NAMES = ("ant", "bee", "cat", "dog")
LABELS = [0, 0, 0, 0, 0, 0, 1, 1, 3, 3]  # no image of cat
BEFORE, AFTER = [0, 0, 0, 0, 2, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 3, 3]


def test_figures_of_each_round_and_class():
    report = progress_report([8, 16], [torch.tensor(BEFORE), np.array(AFTER)], LABELS, NAMES)
    assert [each.value for each in report.accuracy] == [50, 70]
    assert report.balanced_accuracy == pytest.approx([100 * (4 / 6 + 1 / 2 + 0) / 3, 100 * (5 / 6 + 0 + 1) / 3])
    assert report.changes == (paired_change(3, 1, 10),) == (report.recent_change,)
    first, last = report.rows()
    assert (first["labels"], first["errors"], first["change"]) == (8, 5, None)
    assert (last["labels"], last["errors"], last["change"]) == (16, 3, 20)
    rows = [tuple(row.values()) for row in report.class_rows()]
    assert rows == [("bee", 2, 2, 1), ("ant", 6, 1, 2), ("dog", 2, 0, 2)]
    assert "bee 2 1 2" in " ".join(str(report).split())


def test_classes_may_be_names():
    named = [[NAMES[each] for each in values] for values in (BEFORE, AFTER, LABELS)]
    assert progress_report([8, 16], named[:2], named[2], NAMES) == progress_report(
        [8, 16], [BEFORE, AFTER], LABELS, NAMES
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labelled": [8]}, "labelled has 1 values, predictions are of 2 rounds"),
        ({"labelled": [], "predictions": []}, "labelled has 0 values"),
        ({"labelled": [16, 8]}, "labelled has to ascend"),
        ({"labelled": [8.5, 16]}, "number of labels after each round"),
        ({"labels": []}, "labels: there is no held-out image"),
        ({"labels": [4, *LABELS[1:]]}, "labels go up to 4, but the 4 classes are 0 to 3"),
        ({"predictions": [BEFORE, AFTER[1:]]}, "predictions at 16 labels are 9, for 10 held-out images"),
        ({"predictions": [BEFORE, [math.nan, *AFTER[1:]]]}, "predictions at 16 labels: image 0 has no class"),
        ({"predictions": [torch.rand(10, 4), AFTER]}, "predictions at 8 labels: labels have the shape"),
        ({"clean": [7, *AFTER[1:]]}, "predictions of clean: labels go up to 7"),
        ({"classes": None, "clean": ["ant"] * 10}, "predictions of clean are names, labels are numbers"),
    ],
)
def test_what_is_refused(changed, message):
    given = {"labelled": [8, 16], "predictions": [BEFORE, AFTER], "labels": LABELS, "classes": NAMES} | changed
    refuses(lambda: progress_report(**given), message)
