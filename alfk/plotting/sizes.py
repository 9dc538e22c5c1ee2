"""Accuracy against the size of the validation set: the figure's data and table."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from alfk.experiment.records import BASELINES, VALIDATION_ALONE, Record
from alfk.experiment.trial import Trial
from alfk.plotting.curves import EARLY
from alfk.plotting.figures import by_setting
from alfk.plotting.names import name_of, place
from alfk.plotting.text import Table, plus_minus


@dataclasses.dataclass(frozen=True)
class SizeCurve:
    """Accuracy of one trial against the size of the validation set, at one number of labels.

    Attributes:
        sizes: (n,) ascending; a single 0 for a method that uses no validation image.
        mean, std: (n,) over the runs that have all sizes; std is NaN for one run.
    """

    trial: Trial
    sizes: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    runs: int


@dataclasses.dataclass(frozen=True)
class SizesData:
    """A figure of accuracy against the size of the validation set; panels: number of labels -> curves."""

    name: str
    title: str
    panels: dict[str, list[SizeCurve]]


def size_figures(dataset: str, records: Sequence[Record], whole: int | None, own_images: bool) -> list[SizesData]:
    """A figure for each setting in which the size of the validation set was varied.

    Args:
        whole: the size of the whole validation set, None if it is not known.
        own_images: whether the pool is a user's, imbalanced as it is.
    """
    found = []
    for setting, trials in by_setting(records).items():
        trials = {t: r for t, r in trials.items() if not t.adds_validation and not t.first_batch}
        varied = [t for t in trials if t.validation_size and t.method not in BASELINES]
        runs = {record["run"] for t in varied for record in trials[t]}
        by_method: dict[Trial, list[Record]] = {}  # the records of all sizes
        for trial, of_trial in trials.items():
            members = by_method.setdefault(_of_all_sizes(trial), [])
            members += [record for record in of_trial if record["run"] in runs]
        wanted = {_of_all_sizes(t) for t in varied} | {t for t in by_method if t.method in ("random", VALIDATION_ALONE)}
        by_b: dict[int, int] = {}  # iteration -> number of labels
        for record in (r for t, of_method in by_method.items() if t.method not in BASELINES for r in of_method):
            by_b[record["b"]] = max(by_b.get(record["b"], 0), record["labelled"])
        panels = {}
        for b in dict.fromkeys((min(EARLY, max(by_b)), max(by_b))) if varied else ():
            if b in by_b:
                curves = [_curve_of(t, by_method[t], b, whole) for t in sorted(wanted, key=place)]
                panels[f"{by_b[b]:,} labels"] = [curve for curve in curves if curve is not None]
        if panels:
            title = f"{setting.title(dataset, own_images)}: size of the validation set"
            found.append(SizesData(f"{setting.name(dataset)}_validation_size", title, panels))
    return found


def _of_all_sizes(trial: Trial) -> Trial:
    return dataclasses.replace(trial, validation_size=None)


def _curve_of(trial: Trial, records: Iterable[Record], b: int, whole: int | None) -> SizeCurve | None:
    """The curve of a trial at iteration b; None if no run has all sizes."""
    alone = trial.method == VALIDATION_ALONE
    unused = trial.method == "random" and trial.select != "val"
    found: dict[int, dict[int, float]] = {}  # size -> run -> accuracy
    for record in records:
        size = record.get("validation_size") or (record["labelled"] if alone else whole)
        if (alone or record["b"] == b) and (size or unused):
            found.setdefault(0 if unused else size, {})[record["run"]] = record["accuracy"]
    runs = sorted(set.intersection(*map(set, found.values()))) if found else []
    if not runs:
        return None
    sizes = sorted(found)
    values = np.array([[found[size][run] for run in runs] for size in sizes])
    std = values.std(axis=1) if len(runs) > 1 else np.full(len(sizes), np.nan)
    return SizeCurve(trial, np.array(sizes), values.mean(axis=1), std, len(runs))


def sizes_table(figure: SizesData) -> Table:
    """Accuracy by the size of the validation set: a row for each number of labels and method."""
    sizes = sorted({int(size) for curves in figure.panels.values() for c in curves for size in c.sizes if size})
    rows = []
    for labels, curves in figure.panels.items():
        for curve in curves:
            alone = curve.trial.method == VALIDATION_ALONE
            cells = {int(s): plus_minus(m, d, 1) for s, m, d in zip(curve.sizes, curve.mean, curve.std, strict=True)}
            name = "the validation images alone" if alone else f"{name_of(curve.trial)}, {labels}"
            row = [name, curve.runs, *(cells.get(size, cells.get(0, "")) for size in sizes)]
            if row not in rows:
                rows.append(row)
    return Table(["trained on", "runs", *(f"V={size:,}" for size in sizes)], rows)
