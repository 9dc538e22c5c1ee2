"""Accuracy against the size of the validation set: the figure's data and table."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alfk.experiment.records import BASELINES, VALIDATION_ALONE, Record
from alfk.experiment.trial import Trial
from alfk.plotting.curves import EARLY
from alfk.plotting.plots import SizeCurve
from alfk.plotting.results import describe, figure_name, name_of, place
from alfk.plotting.tables import plus_minus, text_table


@dataclasses.dataclass
class SizesData:
    """A figure of accuracy against the size of the validation set; panels: number of labels -> curves."""

    name: str
    title: str
    panels: dict[str, list[SizeCurve]]


def size_figures(
    dataset: str, records: Sequence[Record], whole: int | None, own_images: bool = False
) -> list[SizesData]:
    """A figure for each distortion, initial model and --select for which the size of the validation set was varied.

    Args:
        whole: the size of the whole validation set, None if it is not known.
        own_images: whether the pool is a user's, imbalanced as it is.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        trial = Trial.of(record)
        if not trial.adds_validation and not trial.first_batch:
            groups.setdefault((trial.ir, trial.nr, trial.init, trial.select), []).append(record)
    found = []
    for (ir, nr, init, select), members in groups.items():
        methods = {dataclasses.replace(Trial.of(r), validation_size=None) for r in members if "validation_size" in r}
        methods -= {t for t in methods if t.method in BASELINES}
        if not methods:
            continue
        runs = {r["run"] for r in members if "validation_size" in r and r["method"] not in BASELINES}
        members = [r for r in members if r["run"] in runs]
        last = max(r["b"] for r in members)
        at = {b: [r for r in members if r["b"] == b] for b in dict.fromkeys((min(EARLY, last), last))}
        names = (Trial.of(r) for r in members)
        extra = {t for t in names if t.method == "random"} | {
            dataclasses.replace(Trial.of(r), validation_size=None) for r in members if r["method"] == VALIDATION_ALONE
        }
        panels = {}
        for of_b in at.values():
            labels = max((r["labelled"] for r in of_b if r["method"] not in BASELINES), default=0)
            if not labels:
                continue
            curves = [_curve_of(t, of_b, members, whole) for t in sorted(methods | extra, key=place)]
            panels[f"{labels:,} labels"] = [curve for curve in curves if curve is not None]
        name = f"{figure_name(dataset, ir, nr, init, select)}_validation_size"
        title = f"{describe(dataset, ir, nr, init, select, own_images)}: size of the validation set"
        found.append(SizesData(name, title, panels))
    return found


def _curve_of(trial: Trial, of_b: Sequence[Record], members: Sequence[Record], whole: int | None) -> SizeCurve | None:
    """The curve of a trial over sizes, of the runs that have all of them; a method that uses no validation image has
    the size 0.
    """
    alone, free = trial.method == VALIDATION_ALONE, trial.method == "random" and trial.select != "val"
    found: dict[int, dict[int, float]] = {}  # size -> run -> accuracy
    for record in members if alone else of_b:
        if dataclasses.replace(Trial.of(record), validation_size=None) == trial:
            size = record.get("validation_size") or (record["labelled"] if alone else whole)
            if size or free:
                found.setdefault(0 if free else size, {})[record["run"]] = record["accuracy"]
    runs = set.intersection(*map(set, found.values())) if found else set()
    if not runs:
        return None
    sizes = sorted(found)
    values = [[found[size][run] for run in sorted(runs)] for size in sizes]
    spread = [np.std(column) if len(runs) > 1 else np.nan for column in values]
    return SizeCurve(trial, np.array(sizes), np.mean(values, axis=1), np.array(spread), len(runs))


def sizes_table(figure: SizesData) -> str:
    """Accuracy by the size of the validation set, as Markdown: a row for each number of labels and method."""
    sizes = sorted({int(size) for curves in figure.panels.values() for c in curves for size in c.sizes if size})
    body = []
    for labels, curves in figure.panels.items():
        for curve in curves:
            alone = curve.trial.method == VALIDATION_ALONE
            cells = {int(s): plus_minus(m, d, 1) for s, m, d in zip(curve.sizes, curve.mean, curve.std, strict=True)}
            name = "the validation images alone" if alone else f"{name_of(curve.trial)}, {labels}"
            row = [name, curve.runs, *(cells.get(size, cells.get(0, "")) for size in sizes)]
            if row not in body:
                body.append(row)
    return text_table(body, ["trained on", "runs", *(f"V={size:,}" for size in sizes)], "github")
