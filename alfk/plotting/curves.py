"""Accuracy curves over runs, and the paper's claims computed from them: labels saved, points gained, area.

Shares are percent of the undistorted pool, accuracies percent of the test set. Missing points are never interpolated in
a curve.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np

from alfk.experiment.records import Record
from alfk.support.errors import UserError

EARLY = 2  # the AL iteration after which the paper states accuracies of minority classes: 375 labels


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy against labelled share, over runs.

    Attributes:
        shares: (n,) ascending.
        mean: (n,), over the runs that have the point.
        std: (n,), with the number of runs as divisor, as in the paper's error bars; NaN for one run or if unknown.
        runs: (n,) int64, number of runs.
    """

    shares: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    runs: np.ndarray

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Curve":
        """The curve of one trial's records, one per run and iteration."""
        values: dict[float, dict[int, float]] = {}  # share -> run -> accuracy
        for record in records:
            values.setdefault(round(record["labelled_share"], 6), {})[record["run"]] = record["accuracy"]
        shares = sorted(values)
        columns = [np.array(list(values[share].values())) for share in shares]
        return cls(
            np.array(shares),
            np.array([column.mean() for column in columns]),
            np.array([column.std() if len(column) > 1 else math.nan for column in columns]),
            np.array([len(column) for column in columns], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.shares)

    def at(self, share: float) -> int | None:
        """The index of the point at that share, None if there is none."""
        (found,) = np.nonzero(np.abs(self.shares - share) < 1e-3)
        return int(found[0]) if len(found) else None

    def variance_of_mean(self, point: int) -> float:
        """Squared standard error of a point's mean, from the unbiased variance; NaN for one run."""
        runs = int(self.runs[point])
        return float(self.std[point]) ** 2 / (runs - 1) if runs > 1 else math.nan


Reference = dict[tuple[str, str], Curve]  # (series, initial model) -> a curve to compare with


def read_reference(path: Path, runs: int) -> Reference:
    """The paper's curves of one figure, without the points outside its axes.

    Args:
        runs: number of runs of the paper's means.
    Raises:
        UserError: the file is damaged.
    """
    found = {}
    for key, rows in _read_table(path, "labeled_percent", "accuracy_mean", "accuracy_std").items():
        points = sorted(row for row in rows if not math.isnan(row[1]))
        if points:
            found[key] = Curve(*np.array(points).T, np.full(len(points), runs, dtype=np.int64))
    return found


def read_release(path: Path) -> Reference:
    """Curves of the paper's released scripts as run here, one row per run and iteration. Raises UserError."""
    columns = {"labelled_share": "labeled_percent", "accuracy": "accuracy", "run": "run"}
    tables = _read_table(path, *columns.values())
    return {key: Curve.of(dict(zip(columns, row, strict=True)) for row in rows) for key, rows in tables.items()}


def _read_table(path: Path, *columns: str) -> dict[tuple[str, str], list[tuple[float, ...]]]:
    """(series, initial model) -> rows of numbers, NaN for empty cells. Raises UserError."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                numbers = tuple(math.nan if row[column] == "" else float(row[column]) for column in columns)
                found.setdefault((row["series"], row["init"]), []).append(numbers)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: it is not a table of curves") from None
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A point of our curve and of another one at the same share.

    `within`: whether they differ by at most two standard errors of the difference; None if those are unknown.
    """

    share: float
    ours: float
    other: float
    other_std: float
    other_runs: int
    standard_error: float

    @property
    def difference(self) -> float:
        return self.ours - self.other

    @property
    def within(self) -> bool | None:
        return None if math.isnan(self.standard_error) else abs(self.difference) <= 2 * self.standard_error


def compare(ours: Curve, other: Curve) -> list[Comparison]:
    """All points that both curves have.

    The standard error is that of the difference of two independent means; NaN if either has one run.
    """
    rows = []
    for i, share in enumerate(ours.shares):
        j = other.at(share)
        if j is not None:
            error = math.sqrt(ours.variance_of_mean(i) + other.variance_of_mean(j))
            theirs = float(other.mean[j]), float(other.std[j]), int(other.runs[j])
            rows.append(Comparison(float(share), float(ours.mean[i]), *theirs, error))
    return rows


def share_at(curve: Curve, accuracy: float) -> float | None:
    """The share at which the mean curve first reaches `accuracy`, by linear interpolation; None if it does not.

    If its first point already reaches it, that point's share, an upper bound.
    """
    reached = np.nonzero(curve.mean >= accuracy)[0]
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(curve.shares[0])
    (x0, x1), (y0, y1) = curve.shares[i - 1 : i + 1], curve.mean[i - 1 : i + 1]
    return float(x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0))


@dataclasses.dataclass(frozen=True)
class Saving:
    """The labelled shares of two methods at equal accuracy, and the saving in percent of the other's.

    `at_least`: our curve starts above that accuracy, so that the saving is a lower bound.
    """

    accuracy: float
    ours: float
    other: float
    at_least: bool

    @property
    def percent(self) -> float:
        return 100 * (1 - self.ours / self.other)


def labels_saved(ours: Curve, other: Curve, accuracy: float | None = None) -> Saving | None:
    """The paper's "-40 %": labels at equal accuracy, by default the highest that both mean curves reach.

    None if one of them does not reach it.
    """
    level = float(min(ours.mean.max(), other.mean.max())) if accuracy is None else accuracy
    our_share, other_share = share_at(ours, level), share_at(other, level)
    if our_share is None or other_share is None:
        return None
    return Saving(level, our_share, other_share, at_least=bool(ours.mean[0] > level))


def gains(ours: Curve, other: Curve) -> list[tuple[float, float]]:
    """(share, accuracy of ours minus that of the other) at all shares that both curves have."""
    pairs = [(i, other.at(share)) for i, share in enumerate(ours.shares)]
    return [(float(ours.shares[i]), float(ours.mean[i] - other.mean[j])) for i, j in pairs if j is not None]


def area(curve: Curve) -> float:
    """Area under the mean curve (trapezoids) divided by its width: the mean accuracy. NaN for a single point."""
    if len(curve) < 2:
        return math.nan
    return float(np.trapezoid(curve.mean, curve.shares) / (curve.shares[-1] - curve.shares[0]))


def rare_groups(minority: Sequence[int], hardest: Sequence[int] = ()) -> dict[str, tuple[int, ...]]:
    """The groups of minority classes in tables of accuracy, by name, e.g. "{5,8,9}"."""
    groups = {"minority": tuple(minority)}
    if hardest and set(hardest) < set(minority):
        groups = {f"{{{','.join(map(str, hardest))}}}": tuple(hardest)} | groups
    return groups


def accuracy_of_classes(records: Iterable[Record], classes: Sequence[int]) -> float:
    """Mean test accuracy of some classes, with equal weights of classes and runs; NaN if there is none."""
    values = [r["accuracy_per_class"][c] for r in records for c in classes if c < len(r["accuracy_per_class"])]
    values = [value for value in values if value is not None]
    return fmean(values) if values else math.nan


def accuracy_of_minority(records: Iterable[Record], known: Sequence[int]) -> float:
    """Mean test accuracy of the minority classes, which may differ from run to run; NaN if there are none.

    Args:
        known: minority classes of records that do not state theirs.
    """
    values = [accuracy_of_classes([record], record.get("minority", known) or ()) for record in records]
    values = [value for value in values if not math.isnan(value)]
    return fmean(values) if values else math.nan


def chosen_of_minority(records: Sequence[Record], known: Sequence[int], b: int) -> float:
    """Images of the minority classes among those labelled up to AL iteration b, mean over the runs that have all of
    these iterations. NaN if there is none, without minority classes, and with label noise: histograms are of the labels
    that were trained on.
    """
    counts: dict[int, list[int]] = {}
    for record in records:
        minority = record.get("minority", known) or ()
        if record["b"] <= b and minority and not record["nr"]:
            counts.setdefault(record["run"], []).append(sum(record["selected_histogram"][c] for c in minority))
    whole = [sum(of_run) for of_run in counts.values() if len(of_run) == b + 1]
    return fmean(whole) if whole else math.nan


def acquisition_seconds(records: Iterable[Record]) -> float:
    """Median seconds of measurement and choice over the iterations after the first; NaN if there are none.

    The median, since other programs slow down single iterations.
    """
    later = [r["seconds"]["describe"] + r["seconds"]["acquire"] for r in records if r["b"] > 0]
    return median(later) if later else math.nan


def missing(records: Iterable[Record], runs: Iterable[int], iterations: Iterable[int]) -> dict[tuple[int, ...], list]:
    """The missing iterations of one trial: tuples of iterations -> the runs in which exactly these are missing."""
    present = {(record["run"], record["b"]) for record in records}
    runs_by_gap: dict[tuple[int, ...], list[int]] = {}
    for run in runs:
        gap = tuple(b for b in iterations if (run, b) not in present)
        if gap:
            runs_by_gap.setdefault(gap, []).append(run)
    return runs_by_gap


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)
