"""Statistics over runs: paired differences with intervals and an exact test, and means without the extremes.

Methods of one run share pool, validation set and initial model: their differences are paired. All are in points of
accuracy.
"""

from collections.abc import Iterable

import numpy as np
from scipy import stats

from alfk.experiment.records import Record

LEAST_RUNS = 6  # of five pairs no outcome has a p below 0.05: the smallest is 2/32
SIGNIFICANT = 0.05
EXACT_RUNS = 16  # with more, 2^EXACT_RUNS of the assignments of signs are drawn: time doubles with each run
LEVEL = 1.0  # two methods are level if the interval of their difference lies within ± this


def paired(one: Iterable[Record], other: Iterable[Record], b: int) -> np.ndarray:
    """(R,) accuracy of one trial minus that of another after AL iteration b, over the R runs that both have."""
    of, less = ({r["run"]: r["accuracy"] for r in records if r["b"] == b} for records in (one, other))
    return np.array([of[run] - less[run] for run in sorted(of.keys() & less.keys())])


def standard_error(values: np.ndarray) -> float:
    """That of the mean, from the unbiased variance."""
    return float(stats.sem(values))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of two or more values by Student's t.

    With 6 or 10 values BCa bootstrap intervals cover the mean less often (bench/interval_coverage.py).
    """
    half = stats.t.ppf(0.975, len(values) - 1) * standard_error(values)
    return float(values.mean() - half), float(values.mean() + half)


def sign_flip_p(values: np.ndarray) -> float:
    """The exact two-sided p value of the mean, if each difference could as well have had the other sign.

    All 2^R assignments of signs are compared: twice the share of those whose mean is at least as far to the side. Above
    EXACT_RUNS a part is drawn, always the same, and p is an estimate.
    """

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(values, axis=axis).round(9)  # equal means are equal, whatever the order of the sum

    options = {"permutation_type": "samples", "n_resamples": 2**EXACT_RUNS, "batch": 2**12, "rng": 0}
    return float(stats.permutation_test((values,), mean, vectorized=True, **options).pvalue)


def is_ahead(values: np.ndarray) -> bool:
    """Whether a lead is claimed: at least LEAST_RUNS differences, with a mean above 0 and p < 0.05."""
    return len(values) >= LEAST_RUNS and values.mean() > 0 and sign_flip_p(values) < SIGNIFICANT


def is_level(values: np.ndarray) -> bool:
    """Whether two methods are called level: at least LEAST_RUNS differences, whose interval lies within ± 1 point."""
    return len(values) >= LEAST_RUNS and max(map(abs, interval(values))) <= LEVEL


def interquartile_mean(values: np.ndarray) -> float:
    """The mean without the lowest and the highest quarter, each rounded down: of ten values that of the middle six.

    As rliable has it (Agarwal et al. 2021), over runs alone.
    """
    return float(stats.trim_mean(values, 0.25))


def difference_text(values: np.ndarray) -> str:
    """ "+4.0 [2.6, 5.4]": mean and interval of at least LEAST_RUNS differences; of fewer mean ± standard error, with
    which nothing is claimed.
    """
    if len(values) >= LEAST_RUNS:
        low, high = interval(values)
        return f"{values.mean():+.1f} [{low:.1f}, {high:.1f}]"
    return f"{values.mean():+.1f} ± {standard_error(values):.1f}" if len(values) > 1 else f"{values.mean():+.1f}"
