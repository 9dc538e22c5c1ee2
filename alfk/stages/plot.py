"""What run_plot.py shows: results lines gathered into figures, tables of the paper's claims, contact sheets."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from alfk.curves import (
    BASELINE,
    Curve,
    Reference,
    accuracy_of_classes,
    acquisition_seconds,
    area,
    compare,
    gains,
    labels_saved,
    missing,
    parse_series,
    ranges,
    rare_groups,
    read_reference,
    series,
)
from alfk.errors import UserError
from alfk.runs import Record, Trial, read_json, read_results
from alfk.stages import draw
from alfk.stages.draw import Drawn

Say = Callable[[str], None]

PANELS = {  # the paper's figures: (data set, imbalance ratio) -> letter
    ("MNIST", 1): "(a) ",
    ("MNIST", 100): "(b) ",
    ("SVHN", 1): "(a) ",
    ("SVHN", 100): "(b) ",
    ("ImageNet", 1): "(c) ",
    ("ImageNet", 100): "(d) ",
}
PAPER_RUNS = {"MNIST": 10, "SVHN": 5, "ImageNet": 1}
EARLY = 2  # the AL iteration after which the paper states accuracies of minority classes: 375 labels on MNIST


@dataclasses.dataclass
class Results:
    """The results of one data set: records, the runs among them, minority classes; `remark` goes into every title."""

    folder: Path
    records: list[Record]
    minority: tuple[int, ...]
    remark: str = ""

    @property
    def runs(self) -> list[int]:
        return sorted({record["run"] for record in self.records})


def read_runs(folder: Path, start: int, stop: int | None, warn: Say) -> Results:
    """All records under `folder`/run<N>, N from `start` to before `stop`.

    `warn` is told of truncated lines and of runs whose settings differ, which do not belong into one mean.

    Raises:
        UserError: a damaged file.
    """
    records, settings = [], {}
    for path in sorted(folder.glob("run*/results.jsonl")):
        number = path.parent.name.removeprefix("run")
        if not number.isdecimal() or int(number) < start or (stop is not None and int(number) >= stop):
            continue
        found = read_results(path, lambda text: warn(f"warning: {text}"))
        for record in found:
            try:
                Trial.of(record)
                record["b"], record["run"], record["accuracy"], record["labelled_share"]
            except (KeyError, TypeError):
                raise UserError(f"{path} has a line that is not a results record; remove that line") from None
        records += found
        manifest = path.parent / "manifest.json"
        if manifest.exists():
            settings[path.parent.name] = read_json(manifest).get("settings", {})
    first = next(iter(settings.values()), {})
    for name, other in settings.items():
        differing = [k for k in first if k in other and other[k] != first[k]]
        if differing:
            warn(f"warning: {folder / name} was made with other settings than the first run: {', '.join(differing)}")
    sources = [source or "" for other in settings.values() for source in other.get("data", ())]
    remark = " (not the official files)" if any(source.startswith("unofficial") for source in sources) else ""
    return Results(folder, records, tuple(first.get("minority", ())), remark)


@dataclasses.dataclass
class FigureOf:
    """One figure: its file name, its title, our trials with their records, and the paper's curves."""

    name: str
    title: str
    ir: float
    trials: dict[Trial, list[Record]]
    reference: Reference

    @property
    def curves(self) -> dict[Trial, Curve]:
        """Of our trials, in the order of the legend's styles."""
        order = sorted((t for t in self.trials if t.method != BASELINE), key=_place)
        return {trial: Curve.of(self.trials[trial]) for trial in order}

    @property
    def all_train(self) -> tuple[float, str] | None:
        """The accuracy of training on the whole pool, ours or else the published one, and what to call it."""
        ours = [r["accuracy"] for trial, records in self.trials.items() if trial.method == BASELINE for r in records]
        if ours:
            return float(np.mean(ours)), f"all train ({len(ours)} run{'s' if len(ours) > 1 else ''})"
        published = self.reference.get((BASELINE, "rotation"))
        return (float(published.mean[-1]), "all train (paper)") if published else None

    @property
    def all_train_said(self) -> str:
        return f"{self.all_train[1]}: {self.all_train[0]:.2f} %" if self.all_train else ""

    def paper(self, trial: Trial) -> Curve | None:
        return self.reference.get((series(trial), trial.init))


def figures(dataset: str, records: Sequence[Record], reference_folder: Path, paper_alone: bool) -> list[FigureOf]:
    """Every figure that has a record: one for each distortion and initial model, and the paper's ablation.

    Args:
        paper_alone: also those of the paper's that have none.
    """
    groups: dict[tuple[float, float, str], dict[Trial, list[Record]]] = {}
    for record in records:
        trial = Trial.of(record)
        groups.setdefault((trial.ir, trial.nr, trial.init), {}).setdefault(trial, []).append(record)
    stems = [path.stem for path in reference_folder.glob(f"{dataset.lower()}_ir*.csv")] if paper_alone else []
    for stem in stems:
        ir = stem.removesuffix("_ablation").rpartition("_ir")[2]
        groups.setdefault((float(ir), 0.0, "rotation"), {})
    made = []
    for (ir, nr, init), trials in sorted(groups.items()):
        plain = nr == 0 and init == "rotation"
        main = _reference(reference_folder, dataset, f"{dataset.lower()}_ir{ir:g}") if plain else {}
        ablation = _reference(reference_folder, dataset, f"{dataset.lower()}_ir{ir:g}_ablation") if nr == 0 else {}
        only_there = set(ablation) - set(main)
        where = f"{'no' if ir == 1 else f'{ir:g}x'} class imbalance{f', {nr:.0%} label noise' if nr else ''}"
        own = {t: r for t, r in trials.items() if (series(t), init) not in only_there}
        if any(t.method != BASELINE for t in own) or (main and paper_alone):
            name = f"{dataset}_ir{ir:g}{f'_nr{nr:g}' if nr else ''}{'' if init == 'rotation' else '_random'}"
            letter = PANELS.get((dataset, ir), "") if plain else ""
            started = "" if init == "rotation" else ", random initial model"
            made.append(FigureOf(name, f"{letter}{dataset}, {where}{started}", ir, own, main))
        if plain and ablation:
            everything = {**groups.get((ir, nr, "random"), {}), **trials}
            shown = {t: r for t, r in everything.items() if (series(t), t.init) in ablation}
            if paper_alone or any((series(t), t.init) in only_there for t in shown):
                title = f"(c) {dataset}, {where}: pseudo-labels and initial models"
                made.append(FigureOf(f"{dataset}_ir{ir:g}_ablation", title, ir, shown, ablation))
    return made


def _reference(folder: Path, dataset: str, stem: str) -> Reference:
    path = folder / f"{stem}.csv"
    return read_reference(path, PAPER_RUNS.get(dataset, 1)) if path.exists() else {}


def select(records: Iterable[Record], irs: Sequence[float], methods: Sequence[str], init: str | None) -> list[Record]:
    """The records that -ir, --methods (keys such as Rzg_pz, or series such as Rzg_pz_L80) and --init leave."""
    kept = []
    for record in records:
        names = {record["method"], series(Trial.of(record)), BASELINE if record["method"] == BASELINE else ""}
        wanted = not methods or names & {*methods, BASELINE}
        if wanted and (not irs or record["ir"] in irs) and init in (None, record["init"]):
            kept.append(record)
    return kept


def narrow(figure: FigureOf, methods: Sequence[str], init: str | None) -> FigureOf:
    """The same figure with the paper's curves narrowed as its own are."""
    kept = {
        key: curve
        for key, curve in figure.reference.items()
        if key[0] == BASELINE
        or ((not methods or key[0] in methods or key[0].rpartition("_")[0] in methods) and init in (None, key[1]))
    }
    return dataclasses.replace(figure, reference=kept)


def draw_figure(figure: FigureOf, out: Path, with_paper: bool) -> Path:
    """<out>/<name>.png and .pdf; returns the path without suffix."""
    drawn = [Drawn(curve, t.method, t.length, t.ensemble, t.init) for t, curve in figure.curves.items()]
    if with_paper:
        for (name, init), curve in figure.reference.items():
            if name != BASELINE:
                method, length, ensemble = parse_series(name)
                drawn.append(Drawn(curve, method, length, ensemble, init, paper=True))
    drawn.sort(key=_place)
    path = out / figure.name
    draw.curves(path, figure.title, drawn, figure.all_train)
    return path


def _place(each: Drawn | Trial) -> tuple:
    order = list(draw.STYLES)
    known = order.index(each.method) if each.method in order else len(order)
    return known, each.length, each.ensemble, each.init != "rotation"


def say_missing(figure: FigureOf, runs: Sequence[int], say: Say) -> None:
    """Name every run and iteration that a trial of the figure lacks, of those that another one has."""
    iterations = sorted(
        {r["b"] for trial, records in figure.trials.items() if trial.method != BASELINE for r in records}
    )
    for trial, records in figure.trials.items():
        if trial.method == BASELINE:
            continue
        for gone, lacking in missing(records, runs, iterations).items():
            what = "all" if len(gone) == len(iterations) else f"b={ranges(gone)}"
            init = "" if trial.init == "rotation" else ", random init"
            say(f"  not there: {trial.column()}{init}: run {ranges(lacking)}, {what}")


Rows = list[dict[str, object]]


def curve_rows(figure: FigureOf) -> Rows:
    """Every point of the figure, ours beside the paper's: one row a trial and share."""
    rows: Rows = []
    for trial, curve in figure.curves.items():
        paper = figure.paper(trial)
        beside = {c.share: c for c in compare(curve, paper)} if paper else {}
        for i, share in enumerate(curve.shares):
            row = {"series": series(trial), "init": trial.init, "labeled_percent": float(share)}
            row |= {
                "accuracy_mean": float(curve.mean[i]),
                "accuracy_std": float(curve.std[i]),
                "runs": int(curve.runs[i]),
            }
            found = beside.get(float(share))
            row["paper_mean"] = found.paper if found else math.nan
            row["paper_std"] = float(paper.std[paper.at(share)]) if found else math.nan
            row["difference"] = found.difference if found else math.nan
            row["standard_error"] = found.standard_error if found else math.nan
            row["within_2_se"] = "" if found is None or found.within is None else found.within
            rows.append(row)
    return rows


def summary_rows(figure: FigureOf, minority: Sequence[int]) -> Rows:
    """Per trial: runs, area, last accuracy, accuracy of the minority classes early and at the end, seconds."""
    rows: Rows = []
    curves = figure.curves
    span = _span(curves.values())
    for trial, curve in curves.items():
        records = figure.trials[trial]
        whole = len(curve) > 1 and (float(curve.shares[0]), float(curve.shares[-1])) == span
        row = {"series": series(trial), "init": trial.init, "runs": int(curve.runs.max())}
        row |= {"area": area(curve) if whole else math.nan, "last": float(curve.mean[-1])}
        last = max(r["b"] for r in records)
        row["labels_early"] = next((r["labelled"] for r in records if r["b"] == EARLY), "")
        for name, classes in rare_groups(minority).items():
            for when, b in (("early", EARLY), ("last", last)):
                row[f"{name} {when}"] = accuracy_of_classes([r for r in records if r["b"] == b], classes)
        row["acquisition_seconds"] = acquisition_seconds(records)
        rows.append(row)
    return rows


def _span(curves: Iterable[Curve]) -> tuple[float, float]:
    curves = list(curves)
    return (
        min((float(c.shares[0]) for c in curves), default=math.nan),
        max((float(c.shares[-1]) for c in curves), default=math.nan),
    )


def hero(figure: FigureOf, wanted: str | None) -> Trial | None:
    """The trial whose claims are made: the one named, else the paper's method at its largest L, rotation first."""
    candidates = [t for t in figure.curves if (series(t) == wanted if wanted else t.method == "Rzg_pz")]
    return max(candidates, key=lambda t: (t.unsupervised, t.length, t.ensemble), default=None)


def claim_rows(figure: FigureOf, ours: Trial, accuracy: float | None) -> Rows:
    """Labels saved at equal accuracy and points gained at equal labels, against each other trial of the figure."""
    rows: Rows = []
    curves = figure.curves
    for trial, other in curves.items():
        if trial == ours:
            continue
        saved = labels_saved(curves[ours], other, accuracy)
        difference = gains(curves[ours], other)
        share, most = max(difference, key=lambda pair: pair[1], default=(math.nan, math.nan))
        rows.append(
            {
                "series": series(trial),
                "init": trial.init,
                "accuracy": saved.accuracy if saved else (accuracy or math.nan),
                "labels_ours": saved.ours if saved else math.nan,
                "labels_theirs": saved.other if saved else math.nan,
                "saved_percent": saved.percent if saved else math.nan,
                "at_least": saved.at_least if saved else "",
                "gain_mean": float(np.mean([gain for _, gain in difference])) if difference else math.nan,
                "gain_most": most,
                "gain_most_at": share,
            }
        )
    return rows


def paper_table(figure: FigureOf, form: str = "simple") -> str:
    """Ours beside the paper's, per method and iteration; empty where there is nothing to compare."""
    body = [
        [
            named(row),
            f"{row['labeled_percent']:.2f}",
            _pm(row["accuracy_mean"], row["accuracy_std"]),
            row["runs"],
            _pm(row["paper_mean"], row["paper_std"]),
            f"{row['difference']:+.2f}",
            {True: "yes", False: "no", "": "?"}[row["within_2_se"]],
        ]
        for row in curve_rows(figure)
        if not math.isnan(row["paper_mean"])
    ]
    return _table(body, ["method", "% of pool", "ours", "runs", "paper", "difference", "within 2 s.e."], form)


def accuracy_table(figure: FigureOf) -> str:
    """Mean and standard deviation of every trial (rows) at every share (columns), as Markdown."""
    curves = figure.curves
    shares = sorted({float(share) for curve in curves.values() for share in curve.shares})
    body = []
    for trial, curve in curves.items():
        points = [curve.at(share) for share in shares]
        body.append([name_of(trial), *("" if i is None else _pm(curve.mean[i], curve.std[i]) for i in points)])
    return _table(body, ["% of pool", *(f"{share:.2f}" for share in shares)], "github")


def summary_table(rows: Rows, form: str = "simple") -> str:
    """The table of `summary_rows`; columns that nobody fills are left out."""
    labels = {row["labels_early"] for row in rows} - {""}
    early = f"at {labels.pop()} labels" if len(labels) == 1 else f"b={EARLY}"
    columns = {
        "runs": ("runs", "{}"),
        "area": ("area,\nmean %", "{:.2f}"),
        "last": ("last\n%", "{:.2f}"),
        "{5,8,9} early": (f"{{5,8,9}} %\n{early}", "{:.1f}"),
        "minority early": (f"minority %\n{early}", "{:.1f}"),
        "{5,8,9} last": ("{5,8,9} %\nlast", "{:.1f}"),
        "minority last": ("minority %\nlast", "{:.1f}"),
        "acquisition_seconds": ("acquisition\ns", "{:.2f}"),
    }
    used = {k: v for k, v in columns.items() if any(_number(row.get(k, math.nan), v[1]) for row in rows)}
    body = [[named(row), *(_number(row[k], number) for k, (_, number) in used.items())] for row in rows]
    return _table(body, ["method", *(head for head, _ in used.values())], form)


def claim_table(rows: Rows, form: str = "simple") -> str:
    """The table of `claim_rows`."""
    body = [
        [
            named(row),
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
    heads = ["against", "at\n% right", "it needs,\n% of pool", "they need,\n% of pool", "labels\nsaved, %"]
    return _table(body, [*heads, "points gained,\nmean", "\nmost", "\nat % of pool"], form)


def markdown(figure: FigureOf, summary: Rows, claims: Rows, ours: Trial | None) -> str:
    """All tables of a figure as a Markdown page."""
    parts = [
        f"# {figure.title}",
        f"![{figure.title}]({figure.name}.png)",
        "## Test accuracy, %, mean ± standard deviation over runs" if figure.curves else "",
        accuracy_table(figure),
        figure.all_train_said,
        "## Curves as numbers" if summary else "",
        summary_table(summary, "github"),
        f"## {name_of(ours)} against the others" if claims else "",
        claim_table(claims, "github"),
        "## Ours and the paper's" if figure.reference and figure.curves else "",
        paper_table(figure, "github"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def name_of(trial: Trial) -> str:
    """A trial in a line of text."""
    return named({"series": series(trial), "init": trial.init})


def named(row: dict[str, object]) -> str:
    """What a row of a table is about."""
    return f"{row['series']}{'' if row['init'] == 'rotation' else ', random init'}"


def plain(value: object) -> object:
    """A cell of a CSV file: four decimals are more than is meant, an unknown number is empty."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}".rstrip("0").rstrip(".")
    return value


def _number(value: object, form: str) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else form.format(value)


def _pm(mean: float, std: float) -> str:
    return f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")


def _table(body: Sequence[Sequence[object]], heads: Sequence[str], form: str) -> str:
    if not body:
        return ""
    heads = list(heads) if form == "simple" else [head.replace("\n", " ").strip() for head in heads]
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(body, headers=heads, tablefmt=form, disable_numparse=True, colalign=align)
