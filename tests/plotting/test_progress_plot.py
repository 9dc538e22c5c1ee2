"""The figure of a progress report."""

import pytest

from alfk.own.progress import progress_report
from alfk.plotting import progress

LABELS = [0, 1] * 50


def predictions(errors):
    return [1 - label if i < errors else label for i, label in enumerate(LABELS)]


@pytest.mark.parametrize(
    ("errors", "labelled", "ticks"),
    [([40], [10], ["10"]), ([40, 30, 20], [10, 20, 1000], None), ([40, 30, 20], [10, 20, 40], ["10", "20", "40"])],
)
def test_labels_accuracy_and_lines(errors, labelled, ticks, tmp_path):
    report = progress_report(labelled, list(map(predictions, errors)), LABELS, clean=predictions(35))
    figure = progress(report, tmp_path / "progress.png", "My moths: $1")
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"
    (axes,) = figure.axes
    curve, *lines = axes.lines
    assert curve.get_xydata().tolist() == [[n, 100 - e] for n, e in zip(labelled, errors, strict=True)]
    assert [line.get_ydata()[0] for line in lines] == [65, 50]
    texts = sorted(text.get_text() for text in axes.texts)
    assert texts == [f"{labelled[-1]:,} labels: {100 - errors[-1]}.0 %", "chance: 50 %", "clean images alone: 65.0 %"]
    assert figure.get_suptitle().replace("\n", " ") == f"My moths: $1 {report.sentence}"
    assert axes.get_ylabel() == "accuracy on 100 held-out images, %"
    if ticks:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks


def test_chance_far_below_leaves_the_height_to_the_results():
    report = progress_report([10, 20], [predictions(2), predictions(1)], LABELS)
    (axes,) = progress(report).figure.axes
    assert axes.get_ylim()[0] > 85
    assert "chance: 50 %, far below" in [text.get_text() for text in axes.texts]
