"""The tables that run_plot.py prints and writes: curves, summaries and the paper's claims, as rows and as text."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from tabulate import tabulate

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
    compare,
    gains,
    labels_saved,
    parse_series,
    rare_groups,
    series,
)
from alfk.plotting.families import RIVAL_KEYS
from alfk.plotting.results import FigureData, name_of

Rows = list[dict[str, object]]


def curve_rows(figure: FigureData) -> Rows:
    """All points of the figure with the paper's and the release's: one row per trial and share."""
    rows: Rows = []
    for trial, curve in figure.curves.items():
        others = {"paper": figure.paper(trial), "release": figure.as_released(trial)}
        compared = {source: {c.share: c for c in compare(curve, other)} for source, other in others.items() if other}
        for i, share in enumerate(curve.shares):
            row = {**_about(trial), "labeled_percent": float(share)}
            row |= {
                "accuracy_mean": float(curve.mean[i]),
                "accuracy_std": float(curve.std[i]),
                "runs": int(curve.runs[i]),
            }
            for source in others:
                row |= _comparison_columns(source, compared.get(source, {}).get(float(share)))
            rows.append(row)
    return rows


def _about(trial: Trial) -> dict[str, object]:
    """The columns of a row that identify its trial."""
    about = {"series": series(trial), "init": trial.init, "select": trial.select}
    return about | {key: getattr(trial, key) or "" for key in SPECIAL}


def _comparison_columns(source: str, found: Comparison | None) -> dict[str, object]:
    """The columns for a point of the paper or of the release, empty if there is none."""
    return {
        f"{source}_mean": found.other if found else math.nan,
        f"{source}_std": found.other_std if found else math.nan,
        f"{source}_runs": found.other_runs if found else "",
        f"{source}_difference": found.difference if found else math.nan,
        f"{source}_standard_error": found.standard_error if found else math.nan,
        f"{source}_within_2_se": "" if found is None or found.within is None else found.within,
    }


def summary_rows(figure: FigureData, minority: Sequence[int], hardest: Sequence[int] = ()) -> Rows:
    """Per trial: runs, area, last accuracy, accuracy of the minority classes early and at the end, seconds."""
    rows: Rows = []
    curves = figure.curves
    span = _span(curves.values())
    for trial, curve in curves.items():
        records = figure.trials[trial]
        whole = len(curve) > 1 and (float(curve.shares[0]), float(curve.shares[-1])) == span
        row = {**_about(trial), "runs": int(curve.runs.max())}
        row |= {"area": area(curve) if whole else math.nan, "last": float(curve.mean[-1])}
        last = max(r["b"] for r in records)
        row["labels_early"] = next((r["labelled"] for r in records if r["b"] == EARLY), "")
        for name, classes in rare_groups(minority, hardest).items():
            for when, b in (("early", EARLY), ("last", last)):
                at = [r for r in records if r["b"] == b]
                accuracy = accuracy_of_minority if name == "minority" else accuracy_of_classes
                row[f"{name} {when}"] = accuracy(at, classes)
        for when, b in (("early", EARLY), ("last", last)):
            row[f"chosen minority {when}"] = chosen_of_minority(records, minority, b)
        row["acquisition_seconds"] = acquisition_seconds(records)
        rows.append(row)
    return rows


def _span(curves: Iterable[Curve]) -> tuple[float, float]:
    curves = list(curves)
    return (
        min((float(c.shares[0]) for c in curves), default=math.nan),
        max((float(c.shares[-1]) for c in curves), default=math.nan),
    )


def claim_trial(figure: FigureData, wanted: str | None) -> Trial | None:
    """The trial that claims compare with all others: series `wanted`, else Rzg_pz at its largest L, rotation first."""
    candidates = [t for t in figure.curves if (series(t) == wanted if wanted else t.method == "Rzg_pz")]
    return max(candidates, key=lambda t: (t.init == "rotation", t.length, t.ensemble), default=None)


def claim_rows(figure: FigureData, ours: Trial, accuracy: float | None) -> Rows:
    """Labels saved at equal accuracy and points gained at equal labels, against each other trial of the figure."""
    rows: Rows = []
    curves = figure.curves
    for trial, other in curves.items():
        if trial == ours:
            continue
        saved = labels_saved(curves[ours], other, accuracy)
        difference = gains(curves[ours], other)
        share, largest_gain = max(difference, key=lambda pair: pair[1], default=(math.nan, math.nan))
        rows.append(
            {
                **_about(trial),
                "accuracy": saved.accuracy if saved else (accuracy or math.nan),
                "labels_ours": saved.ours if saved else math.nan,
                "labels_theirs": saved.other if saved else math.nan,
                "saved_percent": saved.percent if saved else math.nan,
                "at_least": saved.at_least if saved else "",
                "gain_mean": float(np.mean([gain for _, gain in difference])) if difference else math.nan,
                "gain_most": largest_gain,
                "gain_most_at": share,
            }
        )
    return rows


def comparison_table(figure: FigureData, form: str = "simple") -> str:
    """Our accuracies and those of paper and release, per trial and share; empty if there is nothing to compare."""
    rows = curve_rows(figure)
    sources = [source for source in SOURCES if any(not math.isnan(row[f"{source}_mean"]) for row in rows)]
    body = []
    for row in rows:
        if all(math.isnan(row[f"{source}_mean"]) for source in sources):
            continue
        cells = [row_name(row), f"{row['labeled_percent']:.2f}"]
        cells += [plus_minus(row["accuracy_mean"], row["accuracy_std"]), row["runs"]]
        for source in sources:
            if math.isnan(row[f"{source}_mean"]):
                cells += ["", "", "", ""]
                continue
            cells += [plus_minus(row[f"{source}_mean"], row[f"{source}_std"]), row[f"{source}_runs"]]
            cells += [f"{row[f'{source}_difference']:+.2f}", WITHIN[row[f"{source}_within_2_se"]]]
        body.append(cells)
    heads = ["method", "% of pool", "ours", "runs"]
    for source in sources:
        heads += [f"the {source}", "runs", "difference", "within\n2 s.e."]
    return text_table(body, heads, form)


def digest(figure: FigureData) -> str:
    """The paper's, the release's and our accuracy of every trial at five shares, as Markdown, up to three rows a trial.

    Our cells are marked p or r if they lie outside two standard errors of the paper's or of the release's.
    """
    all_shares = sorted({float(share) for curve in figure.curves.values() for share in curve.shares})
    shares = sorted({all_shares[min(i, len(all_shares) - 1)] for i in (0, 1, 2, 4, 9)}) if all_shares else []
    body = []
    for trial, curve in figure.curves.items():
        name = name_of(trial)
        for source, other in (("paper", figure.paper(trial)), ("release", figure.as_released(trial))):
            if other is not None:
                body.append([name, source, _runs(other), *_cells(other, shares)])
                name = ""
        outside = [""] * len(shares)
        for mark, other in (("p", figure.paper(trial)), ("r", figure.as_released(trial))):
            within = {round(c.share, 3): c.within for c in compare(curve, other)} if other is not None else {}
            outside = [o + mark * (within.get(round(s, 3)) is False) for o, s in zip(outside, shares, strict=True)]
        cells = [f"{cell} {o}".strip() for cell, o in zip(_cells(curve, shares), outside, strict=True)]
        body.append([name, "ours", _runs(curve), *cells])
    return text_table(body, ["method", "", "runs", *(f"{round(share, 2):g} %" for share in shares)], "github")


def _cells(curve: Curve, shares: Sequence[float]) -> list[str]:
    points = [curve.at(share) for share in shares]
    return ["" if i is None else plus_minus(curve.mean[i], curve.std[i], 1) for i in points]


def _runs(curve: Curve) -> str:
    few, many = int(curve.runs.min()), int(curve.runs.max())
    return str(many) if few == many else f"{few} to {many}"


SOURCES = ("paper", "release")
WITHIN = {True: "yes", False: "no", "": "?"}


def agreement(figure: FigureData) -> str:
    """How many of our points lie within two standard errors of the paper's and of the release's, in a line each."""
    lines, rows = [], curve_rows(figure)
    for source in SOURCES:
        counts: dict[str, list[bool]] = {}
        for row in rows:
            if row[f"{source}_within_2_se"] != "":
                counts.setdefault(row_name(row), []).append(row[f"{source}_within_2_se"])
        if counts:
            parts = ", ".join(f"{name} {sum(within)} of {len(within)}" for name, within in counts.items())
            lines.append(f"Within two standard errors of the {source}, points: {parts}.")
    return "\n".join(lines)


def summary_table(rows: Rows, form: str = "simple") -> str:
    """The table of `summary_rows`, without empty columns."""
    labels = {row["labels_early"] for row in rows} - {""}
    early = f"at {labels.pop()} labels" if len(labels) == 1 else f"b={EARLY}"
    rare = [name for name in (rows[0] if rows else ()) if name.endswith((" early", " last"))]
    chosen = [name for name in rare if name.startswith("chosen")]
    rare = [name for name in rare if name not in chosen]
    rare.sort(key=lambda name: name.endswith(" last"))
    columns = {
        "runs": ("runs", "{}"),
        "area": ("area,\nmean %", "{:.2f}"),
        "last": ("last\n%", "{:.2f}"),
        **{name: (_head(name, early), "{:.1f}") for name in rare},
        **{name: (_head(name, early), "{:.0f}") for name in chosen},
        "acquisition_seconds": ("acquisition\ns", "{:.2f}"),
    }
    used = {k: v for k, v in columns.items() if any(_number(row.get(k, math.nan), v[1]) for row in rows)}
    body = [[row_name(row), *(_number(row[k], number) for k, (_, number) in used.items())] for row in rows]
    return text_table(body, ["method", *(head for head, _ in used.values())], form)


def _head(name: str, early: str) -> str:
    """ "minority early" -> "minority %\nat 375 labels"."""
    group, when = name.rsplit(" ", 1)
    if group.startswith("chosen"):
        return f"minority images\n{early if when == 'early' else when}"
    return f"{group} %\n{early if when == 'early' else when}"


def classes_table(figure: FigureData) -> str:
    """Mean accuracy of every class after AL iteration EARLY (or the last one), as Markdown; empty for many classes."""
    last = max((r["b"] for trial in figure.curves for r in figure.trials[trial]), default=0)
    body, count = [], 0
    for trial in figure.curves:
        at = [r["accuracy_per_class"] for r in figure.trials[trial] if r["b"] == min(EARLY, last)]
        columns = [[value for value in of_class if value is not None] for of_class in zip(*at, strict=False)]
        count = max(count, len(columns))
        body.append([name_of(trial), *(f"{np.mean(values):.1f}" if values else "" for values in columns)])
    return "" if count > LISTED else text_table(body, ["method", *map(str, range(count))], "github")


def knowledge_table(figure: FigureData) -> str:
    """What each method of a figure uses besides the pool, the network it runs, and seconds of a query, as Markdown."""
    body = []
    for trial in figure.curves:
        method = METHODS.get(trial.method)
        if method is None:
            continue
        informed = (
            method.needs_validation_labels,
            method.needs_validation,
            "annotation" in method.inputs,
            "rare_classes" in method.inputs,
        )
        network = "plain"
        if method.needs_uncertainty or "information" in method.inputs:
            network = "dropout samples"
        if method.of_rotation_model:
            network = "rotation model"
        if not method.needs_passes:
            network = "none"
        first = "acts" if method.acts_first and not trial.first_batch else "random"
        seconds = _number(acquisition_seconds(figure.trials[trial]), "{:.2f}")
        body.append([name_of(trial), *("yes" if each else "no" for each in informed), network, first, seconds])
    heads = ["method", "labels of the validation set", "its images", "labels inside the batch", "knows rare classes"]
    return text_table(body, [*heads, "network", "b=0", "s per query"], "github")


def claim_table(rows: Rows, form: str = "simple") -> str:
    """The table of `claim_rows`."""
    body = [
        [
            row_name(row),
            _number(row["accuracy"], "{:.2f}"),
            _number(row["labels_ours"], "{:.3f}"),
            _number(row["labels_theirs"], "{:.3f}"),
            ("≥ " if row["at_least"] else "") + _number(row["saved_percent"], "{:.0f}"),
            _number(row["gain_mean"], "{:+.2f}"),
            _number(row["gain_most"], "{:+.2f}"),
            _number(row["gain_most_at"], "{:.2f}"),
        ]
        for row in rows
    ]
    heads = ["against", "at accuracy\n%", "ours,\n% of pool", "other,\n% of pool", "labels\nsaved, %"]
    return text_table(body, [*heads, "points gained,\nmean", "\nmost", "\nat % of pool"], form)


def minority_text(figure: FigureData, known: Sequence[int], names: Sequence[str]) -> str:
    """The minority classes by name, in a line; empty if there are none, or if classes have no names.

    Args:
        known: minority classes of records that do not state theirs.
    """
    records = [record for records in figure.trials.values() for record in records]
    found = {tuple(record.get("minority", known) or ()) for record in records}
    if not any(found) or not names:
        return ""
    if len(found) > 1:
        return "minority classes: other ones in every run"
    (classes,) = found
    named = [names[c] for c in classes]
    more = f", and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return f"minority classes: {', '.join(named[:LISTED])}{more}"


LISTED = 20  # names of classes in a line


def markdown(
    figure: FigureData,
    summary: Rows,
    claims: Rows,
    ours: Trial | None,
    minority: str = "",
    left_out: Sequence[str] = (),
) -> str:
    """All tables of a figure as a Markdown page.

    Args:
        minority: a line about the minority classes.
        left_out: messages about results lines that are in no table.
    """
    parts = [
        f"# {figure.title}",
        f"![{figure.title}]({figure.name}.png)",
        "## Test accuracy, %, mean ± standard deviation over runs (p, r: outside 2 s.e. of the paper, of the release)"
        if figure.curves
        else "",
        digest(figure),
        figure.lines_text,
        "## Curves as numbers" if summary else "",
        summary_table(summary, "github"),
        minority if summary else "",
        "## What each method knows" if any(t.method in RIVAL_KEYS for t in figure.trials) else "",
        knowledge_table(figure) if any(t.method in RIVAL_KEYS for t in figure.trials) else "",
        "## Accuracy of each class after the third query, %" if figure.curves and classes_table(figure) else "",
        classes_table(figure),
        f"## {name_of(ours)} against the others" if claims else "",
        claim_table(claims, "github"),
        "## Ours, the paper's and the release's" if figure.reference and figure.curves else "",
        comparison_table(figure, "github"),
        agreement(figure),
        "\n".join(["Left out:", "", *(f"- {text}" for text in left_out)]) if left_out else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def row_name(row: dict[str, object]) -> str:
    """The trial of a row."""
    method, length, ensemble = parse_series(row["series"])
    special = {key: row[key] or None for key in SPECIAL if row.get(key)}
    return name_of(Trial(0, method, length, ensemble, 0, row["init"], row["select"], **special))


def csv_cell(value: object) -> object:
    """A cell of a CSV file: at most four decimals, empty for NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}".rstrip("0").rstrip(".")
    return value


def _number(value: object, form: str) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else form.format(value)


def plus_minus(mean: float, std: float, digits: int = 2) -> str:
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def text_table(body: Sequence[Sequence[object]], heads: Sequence[str], form: str) -> str:
    if not body:
        return ""
    heads = list(heads) if form == "simple" else [head.replace("\n", " ").strip() for head in heads]
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(body, headers=heads, tablefmt=form, disable_numparse=True, colalign=align)
