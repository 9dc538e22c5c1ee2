"""The tables of a figure: every point, summaries, and the paper's claims, as rows of CSV files and as text."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from alfk.experiment.records import SPECIAL
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS
from alfk.plotting.curves import (
    EARLY,
    Comparison,
    Curve,
    accuracy_of_classes,
    accuracy_of_minority,
    acquisition_seconds,
    area,
    chosen_of_minority,
    gains,
    labels_saved,
    rare_groups,
)
from alfk.plotting.figures import FigureData
from alfk.plotting.names import name_of, series
from alfk.plotting.results import Results
from alfk.plotting.statistics import LEAST_RUNS, difference_text, interquartile_mean, is_ahead, paired
from alfk.plotting.text import Table, number, plus_minus

Row = dict[str, object]
T = TypeVar("T", int, float)
LISTED = 20  # classes in a table or line, at most
SOURCES = ("paper", "release")


# Rows of CSV files


def curve_rows(figure: FigureData) -> list[Row]:
    """All points of the figure with the paper's and the release's: one row per trial and share."""
    rows = []
    for trial, curve in figure.curves.items():
        compared = figure.compared(trial)
        for share, mean, std, runs in zip(curve.shares, curve.mean, curve.std, curve.runs, strict=True):
            row = {**about(trial), "labeled_percent": float(share)}
            row |= {"accuracy_mean": float(mean), "accuracy_std": float(std), "runs": int(runs)}
            for source in SOURCES:
                row |= _comparison_columns(source, compared.get(source, {}).get(float(share)))
            rows.append(row)
    return rows


def about(trial: Trial) -> Row:
    """The columns that identify a trial."""
    columns = {"series": series(trial), "init": trial.init, "select": trial.select}
    return columns | {key: getattr(trial, key) or "" for key in SPECIAL}


def _comparison_columns(source: str, found: Comparison | None) -> Row:
    """The columns for a point of the paper or of the release, empty if there is none."""
    return {
        f"{source}_mean": found.other if found else "",
        f"{source}_std": found.other_std if found else "",
        f"{source}_runs": found.other_runs if found else "",
        f"{source}_difference": found.difference if found else "",
        f"{source}_standard_error": found.standard_error if found else "",
        f"{source}_within_2_se": "" if found is None or found.within is None else found.within,
    }


def summary(figure: FigureData, minority: Sequence[int], hardest: Sequence[int] = ()) -> dict[Trial, Row]:
    """Per trial: runs, area, last accuracy, accuracy of the minority classes early and at the end, seconds."""
    found, curves = {}, figure.curves
    ends = [(float(curve.shares[0]), float(curve.shares[-1])) for curve in curves.values()]
    widest = (min(start for start, _ in ends), max(end for _, end in ends)) if ends else ()
    for (trial, curve), span in zip(curves.items(), ends, strict=True):
        records = figure.trials[trial]
        row = {"runs": int(curve.runs.max()), "area": area(curve) if span == widest else math.nan}
        row["last"] = float(curve.mean[-1])
        last = max(record["b"] for record in records)
        row["last_iqm"] = interquartile_mean(np.array([r["accuracy"] for r in records if r["b"] == last]))
        row["labels_early"] = next((record["labelled"] for record in records if record["b"] == EARLY), "")
        when = {"early": EARLY, "last": last}
        for group, classes in rare_groups(minority, hardest).items():
            accuracy = accuracy_of_minority if group == "minority" else accuracy_of_classes
            for name, b in when.items():
                row[f"{group} {name}"] = accuracy([record for record in records if record["b"] == b], classes)
        for name, b in when.items():
            row[f"chosen minority {name}"] = chosen_of_minority(records, minority, b)
        row["acquisition_seconds"] = acquisition_seconds(records)
        found[trial] = row
    return found


def claim_trial(figure: FigureData, wanted: str | None) -> Trial | None:
    """The trial that claims compare with all others: series `wanted`, else Rzg_pz at its largest L, rotation first."""
    candidates = [t for t in figure.curves if (series(t) == wanted if wanted else t.method == "Rzg_pz")]
    return max(candidates, key=lambda t: (t.init == "rotation", t.length, t.ensemble), default=None)


def claims(figure: FigureData, ours: Trial, accuracy: float | None) -> dict[Trial, Row]:
    """Labels saved at equal accuracy and points gained at equal labels, against each other trial of the figure."""
    found, curves = {}, figure.curves
    our_curve = curves.pop(ours)
    for trial, other in curves.items():
        saved = labels_saved(our_curve, other, accuracy)
        gained = gains(our_curve, other)
        share, largest = max(gained, key=lambda pair: pair[1], default=(math.nan, math.nan))
        found[trial] = {
            "accuracy": saved.accuracy if saved else (accuracy or math.nan),
            "labels_ours": saved.ours if saved else math.nan,
            "labels_theirs": saved.other if saved else math.nan,
            "saved_percent": saved.percent if saved else math.nan,
            "at_least": saved.at_least if saved else "",
            "gain_mean": float(np.mean([gain for _, gain in gained])) if gained else math.nan,
            "gain_most": largest,
            "gain_most_at": share,
        }
    return found


# Tables for readers


def digest(figure: FigureData) -> Table:
    """The paper's, the release's and our accuracy of every trial at five shares, up to three rows a trial.

    Our cells are marked p or r if they lie outside two standard errors of the paper's or of the release's.
    """
    curves = figure.curves
    shares = five_of(sorted({float(share) for curve in curves.values() for share in curve.shares}))
    rows = []
    for trial, curve in curves.items():
        compared = figure.compared(trial)
        of_trial = [[source, other, {}] for source, other in figure.others(trial).items()]
        for source, other, marks in [*of_trial, ["ours", curve, compared]]:
            cells = [_digest_cell(other, share, marks) for share in shares]
            few, many = int(other.runs.min()), int(other.runs.max())
            rows.append(["", source, many if few == many else f"{few} to {many}", *cells])
        rows[-len(of_trial) - 1][0] = name_of(trial)
    return Table(["method", "", "runs", *(f"{round(share, 2):g} %" for share in shares)], rows)


def five_of(points: Sequence[T]) -> list[T]:
    """The first three, the fifth and the tenth of ascending points, or the last one in place of those there are not."""
    return sorted({points[min(i, len(points) - 1)] for i in (0, 1, 2, 4, 9)}) if points else []


def _digest_cell(curve: Curve, share: float, compared: dict[str, dict[float, Comparison]]) -> str:
    point = curve.at(share)
    if point is None:
        return ""
    found = [(source, points.get(float(curve.shares[point]))) for source, points in compared.items()]
    marks = "".join(source[0] for source, comparison in found if comparison and comparison.within is False)
    return f"{plus_minus(curve.mean[point], curve.std[point], 1)} {marks}".rstrip()


def agreement(figure: FigureData) -> str:
    """How many of our points lie within two standard errors of the paper's and of the release's, in a line each."""
    lines = []
    for source in SOURCES:
        parts = []
        for trial in figure.curves:
            known = [c.within for c in figure.compared(trial).get(source, {}).values() if c.within is not None]
            parts += [f"{name_of(trial)} {sum(known)} of {len(known)}"] if known else []
        if parts:
            lines.append(f"Within two standard errors of the {source}, points: {', '.join(parts)}.")
    return "\n".join(lines)


def comparison_table(figure: FigureData) -> Table:
    """All our points that the paper or the release has too, beside theirs."""
    compared = {trial: figure.compared(trial) for trial in figure.curves}
    sources = [source for source in SOURCES if any(of_trial.get(source) for of_trial in compared.values())]
    rows = []
    for trial, curve in figure.curves.items():
        for i, share in enumerate(map(float, curve.shares)):
            found = {source: compared[trial].get(source, {}).get(share) for source in sources}
            if any(found.values()):
                cells = [name_of(trial), f"{share:.2f}", plus_minus(curve.mean[i], curve.std[i]), int(curve.runs[i])]
                rows.append(cells + [cell for other in found.values() for cell in _comparison_cells(other)])
    heads = ["method", "% of pool", "ours", "runs"]
    for source in sources:
        heads += [f"the {source}", "runs", "difference", "within\n2 s.e."]
    return Table(heads, rows)


def _comparison_cells(found: Comparison | None) -> list[object]:
    if found is None:
        return ["", "", "", ""]
    within = {True: "yes", False: "no", None: "?"}[found.within]
    return [plus_minus(found.other, found.other_std), found.other_runs, f"{found.difference:+.2f}", within]


def summary_table(rows: dict[Trial, Row]) -> Table:
    """The table of `summary`, without empty columns."""
    labels = {row["labels_early"] for row in rows.values()} - {""}
    early = f"at {labels.pop()} labels" if len(labels) == 1 else f"b={EARLY}"
    columns = {"runs": ("runs", "{}"), "area": ("area,\nmean %", "{:.2f}"), "last": ("last\n%", "{:.2f}")}
    columns["last_iqm"] = ("interquartile\nmean", "{:.2f}")
    rare = [name for row in rows.values() for name in row if name.endswith((" early", " last"))]
    for name in sorted(dict.fromkeys(rare), key=lambda n: (n.startswith("chosen"), n.endswith(" last"))):
        group, when = name.rsplit(" ", 1)
        when = early if when == "early" else when
        chosen = group == "chosen minority"
        columns[name] = (f"minority images\n{when}", "{:.0f}") if chosen else (f"{group} %\n{when}", "{:.1f}")
    columns["acquisition_seconds"] = ("acquisition\ns", "{:.2f}")
    used = {k: v for k, v in columns.items() if any(number(row[k], v[1]) for row in rows.values())}
    cells = [[name_of(trial), *(number(row[k], form) for k, (_, form) in used.items())] for trial, row in rows.items()]
    return Table(["method", *(head for head, _ in used.values())], cells)


def claim_table(rows: dict[Trial, Row]) -> Table:
    """The table of `claims`."""
    columns = {
        "accuracy": ("at accuracy\n%", "{:.2f}"),
        "labels_ours": ("ours,\n% of pool", "{:.3f}"),
        "labels_theirs": ("other,\n% of pool", "{:.3f}"),
        "saved_percent": ("labels\nsaved, %", "{:.0f}"),
        "gain_mean": ("points gained,\nmean", "{:+.2f}"),
        "gain_most": ("\nmost", "{:+.2f}"),
        "gain_most_at": ("\nat % of pool", "{:.2f}"),
    }
    body = []
    for trial, row in rows.items():
        cells = {key: number(row[key], form) for key, (_, form) in columns.items()}
        if row["at_least"]:
            cells["saved_percent"] = f"≥ {cells['saved_percent']}"
        body.append([name_of(trial), *cells.values()])
    return Table(["against", *(head for head, _ in columns.values())], body)


def difference_table(figure: FigureData, ours: Trial) -> Table:
    """Accuracy of `ours` minus that of each other trial over the same runs, in points, after five of the queries."""
    iterations = five_of(sorted({record["b"] for record in figure.trials[ours]}))
    labels = {record["b"]: record["labelled"] for record in figure.trials[ours]}
    rows = []
    for trial in figure.curves:
        values = [paired(figure.trials[ours], figure.trials[trial], b) for b in iterations]
        runs = min(map(len, values))  # that have all of these queries
        if trial != ours and runs:
            rows.append([name_of(trial), runs, *map(difference_text, values)])
    return Table(["against", "runs", *(f"{labels[b]:,} labels" for b in iterations)], rows)


def wins_table(figure: FigureData) -> Table:
    """After how many of the queries a row's method is ahead of a column's (see `statistics.is_ahead`)."""
    trials = [t for t in figure.curves if len({record["run"] for record in figure.trials[t]}) >= LEAST_RUNS]
    iterations = sorted({record["b"] for trial in trials for record in figure.trials[trial]})
    rows = []
    for one in trials:
        differences = {t: [paired(figure.trials[one], figure.trials[t], b) for b in iterations] for t in trials}
        cells = ["" if t == one else sum(map(is_ahead, values)) for t, values in differences.items()]
        rows.append([name_of(one), *cells])
    return Table(["ahead of", *map(name_of, trials)], rows if len(trials) > 1 else [])


def classes_table(figure: FigureData) -> Table:
    """Mean accuracy of every class after AL iteration EARLY (or the last one); without a row for many classes."""
    last = max((r["b"] for trial in figure.curves for r in figure.trials[trial]), default=0)
    rows, count = [], 0
    for trial in figure.curves:
        at = [r["accuracy_per_class"] for r in figure.trials[trial] if r["b"] == min(EARLY, last)]
        columns = [[value for value in of_class if value is not None] for of_class in zip(*at, strict=False)]
        count = max(count, len(columns))
        rows.append([name_of(trial), *(f"{np.mean(values):.1f}" if values else "" for values in columns)])
    return Table(["method", *map(str, range(count))], [] if count > LISTED else rows)


def knowledge_table(figure: FigureData) -> Table:
    """What each method of a figure uses besides the pool, the network that it runs, and seconds per query."""
    rows = []
    for trial in figure.curves:
        method = METHODS.get(trial.method)
        if method is None:
            continue
        network = "plain"
        if method.needs_uncertainty or "information" in method.inputs:
            network = "dropout samples"
        if method.of_rotation_model:
            network = "rotation model"
        if not method.needs_passes:
            network = "none"
        uses = [method.needs_validation_labels, method.needs_validation]
        uses += [key in method.inputs for key in ("annotation", "rare_classes")]
        first = "acts" if method.acts_first and not trial.first_batch else "random"
        seconds = number(acquisition_seconds(figure.trials[trial]), "{:.2f}")
        rows.append([name_of(trial), *("yes" if each else "no" for each in uses), network, first, seconds])
    heads = ["method", "labels of the validation set", "its images", "labels inside the batch", "knows rare classes"]
    return Table([*heads, "network", "b=0", "s per query"], rows)


def minority_text(figure: FigureData, found: Results) -> str:
    """The minority classes by name, in a line; empty if there are none, or if classes have no names."""
    records = [record for records in figure.trials.values() for record in records]
    groups = {tuple(record.get("minority", found.minority) or ()) for record in records}
    if not any(groups) or not found.classes:
        return ""
    if len(groups) > 1:
        return "minority classes: other ones in every run"
    named = [found.classes[c] for c in next(iter(groups))]
    more = f", and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return f"minority classes: {', '.join(named[:LISTED])}{more}"
