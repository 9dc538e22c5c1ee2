"""The claims as numbers, on curves whose claims are known by hand."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alfk.experiment.records import BASELINE
from alfk.experiment.trial import Trial
from alfk.plotting import curves
from alfk.plotting.curves import Curve
from alfk.plotting.names import parse_series, series
from alfk.support.errors import UserError


def curve(shares, means, std=0.0, runs=10):
    shares = np.array(shares, dtype=float)
    return Curve(shares, np.array(means, dtype=float), np.full(len(shares), std), np.full(len(shares), runs))


def record(share, accuracy, run=0, b=0, **more):
    seconds = {"describe": 1.0, "acquire": 0.5, "retrain": 9.0}
    return {"labelled_share": share, "accuracy": accuracy, "run": run, "b": b, "seconds": seconds, **more}


OURS = curve([1, 2, 3, 4], [50, 60, 70, 80])
OTHER = curve([1, 2, 3, 4], [40, 50, 55, 60])


def test_a_curve_over_runs():
    of_runs = [record(0.25, 50), record(0.25, 54, 1), record(0.25, 58, 2)]
    found = Curve.of([record(0.5, 60), *of_runs])
    assert found.shares.tolist() == [0.25, 0.5]
    assert found.mean.tolist() == [54, 60]
    assert found.std[0] == pytest.approx(statistics.pstdev([50, 54, 58]))
    assert math.isnan(found.std[1])  # one run has no deviation
    assert found.runs.tolist() == [3, 1]


def test_labels_saved_at_equal_accuracy():
    saved = curves.labels_saved(OURS, OTHER)  # 60 %, the other's best: 2 against 4
    assert (saved.accuracy, saved.ours, saved.other, saved.percent, saved.at_least) == (60, 2, 4, 50, False)
    saved = curves.labels_saved(OURS, OTHER, 52.5)  # 1.25 against 2.5, both between two points
    assert (saved.ours, saved.other, saved.percent) == (1.25, 2.5, 50)
    saved = curves.labels_saved(OURS, OTHER, 45)  # ours starts above: 1 label or fewer against 1.5
    assert saved.at_least
    assert saved.percent == pytest.approx(100 / 3)
    assert curves.labels_saved(OURS, OTHER, 65) is None  # the other never gets there
    assert curves.labels_saved(OTHER, OURS).percent == -100  # the worse of two needs twice as many
    assert curves.share_at(curve([1, 2, 3, 4], [50, 70, 60, 80]), 65) == 1.75  # the first time counts


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=12),
    st.lists(st.floats(0, 100), min_size=2, max_size=12),
)
def test_what_is_saved_is_what_the_interpolated_curves_say(a, b):
    ours, other = curve(range(1, len(a) + 1), a), curve(range(1, len(b) + 1), b)
    saved = curves.labels_saved(ours, other)
    if saved is None:
        return
    for share, one in ((saved.ours, ours), (saved.other, other)):
        assert one.shares[0] <= share <= one.shares[-1]
        height = np.interp(share, one.shares, one.mean)
        assert height >= saved.accuracy - 1e-6  # equal, or the curve starts above it
        before = one.mean[one.shares < share - 1e-9]
        assert (before < saved.accuracy).all()


def test_points_gained_and_area():
    assert curves.gains(OURS, OTHER) == [(1, 10), (2, 10), (3, 15), (4, 20)]
    assert curves.gains(OURS, curve([2, 3.5], [0, 0])) == [(2, 60)]
    assert curves.area(OURS) == 65
    assert curves.area(OTHER) == (45 + 52.5 + 57.5) / 3
    assert math.isnan(curves.area(curve([1], [50])))


def test_two_standard_errors():
    ours = Curve.of([record(0.25, 70), record(0.25, 72, 1), record(0.5, 80)])
    paper = curve([0.25, 0.5, 0.75], [73.8, 80, 90], std=3.0)
    first, second = curves.compare(ours, paper)
    expected = math.sqrt(statistics.variance([70, 72]) / 2 + 3**2 * 10 / 9 / 10)
    assert first.difference == pytest.approx(-2.8)
    assert first.standard_error == pytest.approx(expected) == pytest.approx(math.sqrt(2))
    assert first.within is True
    assert curves.Comparison(0.25, 71, 73.9, 3.0, 10, expected).within is False
    assert second.within is None  # one run: not known


def test_rare_classes_and_seconds():
    records = [
        record(1, 50, accuracy_per_class=[90, 10, None, 20]),
        record(1, 50, b=1, accuracy_per_class=[90, 30, 1, 40]),
    ]
    assert curves.accuracy_of_classes(records, (1, 3)) == 25
    assert curves.accuracy_of_classes(records, (2,)) == 1
    assert math.isnan(curves.accuracy_of_classes(records, (7,)))
    assert curves.rare_groups((5, 6, 7, 8, 9), (5, 8, 9)) == {"{5,8,9}": (5, 8, 9), "minority": (5, 6, 7, 8, 9)}
    assert curves.rare_groups((1, 2)) == {"minority": (1, 2)}
    assert curves.acquisition_seconds(records) == 1.5  # of b=1 alone
    assert math.isnan(curves.acquisition_seconds(records[:1]))


def test_images_of_minority_classes_that_were_chosen():
    """Mean over the runs that have all iterations; a record's own minority classes count before the known ones."""
    chosen = [(0, 0, [5, 1], {}), (0, 1, [4, 2], {}), (1, 0, [3, 3], {}), (1, 1, [2, 4], {"minority": [0]})]
    records = [record(1, 50, run, b, selected_histogram=counts, nr=0.0, **more) for run, b, counts, more in chosen]
    assert curves.chosen_of_minority(records, (1,), 0) == 2
    assert curves.chosen_of_minority(records, (1,), 1) == (3 + 5) / 2
    assert curves.chosen_of_minority(records[:3], (1,), 1) == 3
    assert math.isnan(curves.chosen_of_minority([{**records[0], "nr": 0.1}], (1,), 0))  # of noisy labels


def test_what_is_missing():
    records = [record(1, 50, run, b) for run, b in [(0, 0), (0, 1), (0, 2), (1, 0)]]
    assert curves.missing(records, range(4), range(3)) == {(1, 2): [1], (0, 1, 2): [2, 3]}
    assert curves.missing(records, [0], range(3)) == {}
    assert curves.ranges([5, 0, 1, 2]) == "0-2, 5"
    assert curves.ranges([3]) == "3"


@pytest.mark.parametrize(
    ("trial", "name"),
    [
        (Trial(100, "Rzg_pz", 80), "Rzg_pz_L80"),
        (Trial(1, "varR", 0), "varR_E1"),
        (Trial(1, "varR", 0, 4), "varR_E4"),
        (Trial(1, "random", 0), "random"),
        (Trial(1, BASELINE, 0), "all_train"),
    ],
)
def test_names_of_the_papers_tables(trial, name):
    assert series(trial) == name
    assert parse_series(name) == (trial.method, trial.length, trial.ensemble)


@pytest.mark.parametrize("name", ["_", "", "Rz_L", "Rz_L0", "varR_E0", "Rz_L-1", "Rz_L²", "Rz_L" + "9" * 5000])
def test_names_that_are_no_series_are_methods_without_a_length(name):
    assert parse_series(name) == (name, 0, 1)


def test_the_papers_curves(tmp_path):
    head = "series,init,labeled_percent,accuracy_mean,accuracy_std,off_axis,source\n"
    path = tmp_path / "x.csv"
    path.write_text(head + "random,rotation,0.5,52,1.5,0,d\nrandom,rotation,0.25,50,,0,d\nRz_L20,random,0.25,,,1,d\n")
    found = curves.read_reference(path, 10)
    assert list(found) == [("random", "rotation")]  # a point outside the axes is no point
    assert found["random", "rotation"].shares.tolist() == [0.25, 0.5]
    assert math.isnan(found["random", "rotation"].std[0])
    for damaged in ("a,b\n1,2\n", head + "random,rotation,0.5\n", head + "random,rotation,0.5,x,,0,d\n"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"x\.csv is damaged"):
            curves.read_reference(path, 10)
