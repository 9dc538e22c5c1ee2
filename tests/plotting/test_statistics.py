"""Statistics over runs: by hand, and against scipy's and plain formulas."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from alfk.experiment.trial import Trial
from alfk.plotting.figures import FigureData
from alfk.plotting.statistics import (
    difference_text,
    interquartile_mean,
    interval,
    is_ahead,
    is_level,
    paired,
    sign_flip_p,
    standard_error,
)
from alfk.plotting.tables import wins_table
from tests.helpers import made_up_record

VALUES = st.lists(st.floats(-20, 20).map(lambda value: round(value, 1)), min_size=2, max_size=8).map(np.array)


def test_by_hand():
    """The sum of 1, 2, 3, 4, 5 and -1 is 14. Of 64 assignments of signs 3 reach that: with the last, the first or none
    of the six negative, 14, 14 and 16.
    """
    values = np.array([1.0, 2, 3, 4, 5, -1])
    assert sign_flip_p(values) == 2 * 3 / 64
    half = 2.5705818 * values.std(ddof=1) / np.sqrt(6)  # t of 5 degrees of freedom
    assert interval(values) == pytest.approx((14 / 6 - half, 14 / 6 + half))
    assert interquartile_mean(values) == 2.5  # of 1, 2, 3, 4
    assert interquartile_mean(np.arange(10.0)) == 4.5  # of 2 to 7


def test_more_runs_than_are_compared_exactly():
    """Of 18, all 2^18 assignments of signs give 0.00546; a part of them is drawn."""
    values = np.array([1.0] * 12 + [2, 3, -1, -1, -1, 0.5])
    assert sign_flip_p(values) == sign_flip_p(values) == pytest.approx(0.00546, abs=0.001)


def test_equal_differences():
    assert interval(np.full(6, 0.1)) == pytest.approx((0.1, 0.1))
    assert sign_flip_p(np.zeros(6)) == 1


@given(VALUES)
@example(np.array([0.0, 0.5, 0.7, 0.2, -1.5, -1.2, -1.7, 3.0]))  # a mean of 0, but for rounding
def test_the_test_against_all_flips(values):
    means = np.array([np.mean(signs) for signs in itertools.product(*((v, -v) for v in values))])
    tails = [np.mean(means >= values.mean() - 1e-9), np.mean(means <= values.mean() + 1e-9)]
    assert sign_flip_p(values) == pytest.approx(min(1, 2 * min(tails)))
    assert sign_flip_p(-values) == pytest.approx(sign_flip_p(values))


@given(VALUES.filter(lambda values: len(set(values)) > 1))
def test_intervals_against_scipy(values):
    low, high = interval(values)
    assert stats.t.interval(0.95, len(values) - 1, values.mean(), standard_error(values)) == pytest.approx((low, high))
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)))


def test_what_is_claimed():
    six = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert is_ahead(six)  # p = 2/64
    assert not is_ahead(-six)
    assert not is_ahead(six[:5])
    assert not is_ahead(np.array([0.1, 0.2, 0.3, 0.4, 0.5, -0.1]))  # p = 4/64
    assert is_level(six)
    assert not is_level(six * 3)
    assert not is_level(six[:5])
    assert not is_ahead(np.zeros(10))


def test_texts():
    assert difference_text(np.array([1.0, 2, 3, 4, 5, 6])) == "+3.5 [1.5, 5.5]"
    assert difference_text(np.array([-1.0, -3])) == "-2.0 ± 1.0"
    assert difference_text(np.array([1.0])) == "+1.0"


def test_pairs_are_of_the_same_run():
    one = [made_up_record(run=run, b=b, accuracy=50.0 + run + b) for run in (0, 2, 1) for b in (0, 1)]
    other = [made_up_record(run=run, b=1, accuracy=10.0 * run) for run in (1, 2, 3)]
    assert paired(one, other, 1).tolist() == [42.0, 33.0]
    assert paired(one, other, 0).tolist() == []


def test_wins_by_hand():
    """Ahead in both queries by a point each; in one alone; and with five runs no row."""
    accuracies = {"random": (50, 60, 6), "Rz": (51, 61, 6), "margin": (51, 59, 6), "varR": (90, 90, 5)}
    trials = {
        Trial(100.0, name, 20 if name == "Rz" else 0): [
            made_up_record(method=name, run=run, b=b, labelled_share=b + 1.0, accuracy=float(values[b]))
            for run in range(values[2])
            for b in (0, 1)
        ]
        for name, values in accuracies.items()
    }
    table = wins_table(FigureData("name", "title", 100.0, trials))
    assert table.heads == ["ahead of", "random", "Rz L20", "margin"]
    assert table.rows == [["random", "", 0, 1], ["Rz L20", 2, "", 1], ["margin", 1, 0, ""]]
