"""Results records grouped into figures, with the paper's curves and those of its release."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alfk.data.split import UNOFFICIAL
from alfk.experiment.folder import RunFolder
from alfk.experiment.records import BASELINE, BASELINES, VALIDATION_ALONE, Record, read_results
from alfk.experiment.trial import Trial, number_name, selection_suffix
from alfk.plotting import plots
from alfk.plotting.curves import Curve, Reference, missing, parse_series, ranges, read_reference, read_release, series
from alfk.plotting.families import RIVAL_KEYS, families
from alfk.plotting.plots import PlottedCurve
from alfk.support.errors import DamagedFileError
from alfk.support.files import read_json

Print = Callable[[str], None]


@dataclasses.dataclass
class Results:
    """The results of one data set.

    Attributes:
        remark: appended to every title.
        sources: `Split.source` of training and test images; empty if the data set has none.
        validation: number of validation images, None if they are not drawn from the training images.
        holdout: share of the validation images that was kept for test.
        classes: names of the classes, empty if they are numbers.
        left_out: a message about each results line that was left out.
        dataset: its name, which is mostly the folder's.
    """

    folder: Path
    records: list[Record]
    minority: tuple[int, ...]
    remark: str = ""
    sources: tuple[str | None, ...] = ()
    holdout: float = 0.0
    classes: tuple[str, ...] = ()
    left_out: list[str] = dataclasses.field(default_factory=list)
    dataset: str = ""
    validation: int | None = None

    @property
    def runs(self) -> list[int]:
        return sorted({record["run"] for record in self.records})


def read_runs(folder: Path, start: int, stop: int | None, warn: Print) -> Results:
    """All records under `folder`/run<N>, N from `start` to before `stop`.

    Args:
        warn: called with a message about a line that is left out, a damaged manifest, or runs whose settings differ.

    Raises:
        UserError: a file that cannot be read.
    """
    records, settings, left_out = [], {}, []
    for run in sorted(run_folders(folder, start, stop), key=lambda run: run.path.name):
        found, made_with, problems = _read_run(run)
        records += found
        left_out += problems
        settings[run.path.name] = made_with
    for text in left_out + differing_settings(records):
        warn(f"warning: {text}")
    first = next((each for each in settings.values() if each), {})
    for name, other in settings.items():
        differing = [k for k in first if k in other and other[k] != first[k]]
        if differing:
            warn(f"warning: {folder / name} was made with other settings than the first run: {', '.join(differing)}")
    sources = [source or "" for other in settings.values() for source in other.get("data", ())]
    remark = " (not the official files)" if any(source.startswith(UNOFFICIAL) for source in sources) else ""
    return Results(
        folder,
        records,
        tuple(first.get("minority") or ()),
        remark,
        tuple(first.get("data", ())),
        first.get("holdout", 0.0),
        tuple(first.get("class_names", ())),
        left_out,
        first.get("dataset", folder.name),
        sum(first.get("validation_per_class") or ()) or None,
    )


def run_folders(folder: Path, start: int = 0, stop: int | None = None) -> Iterator[RunFolder]:
    """The folders run<N> in `folder`, N from `start` to before `stop`."""
    for path in folder.glob("run*"):
        number = path.name.removeprefix("run")
        if number.isdecimal() and int(number) >= start and (stop is None or int(number) < stop):
            yield RunFolder(folder, int(number))


def _read_run(run: RunFolder) -> tuple[list[Record], dict[str, Any], list[str]]:
    """The records of a run, the settings in its manifest, and messages about what is wrong with them."""
    manifest, lines = run.path / "manifest.json", run.path / "results.jsonl"
    settings, problems = {}, []
    try:
        settings = read_settings(manifest) if manifest.exists() else {}
    except DamagedFileError as problem:
        problems.append(f"{str(problem).partition(':')[0]}; the next command that works on the run makes it again")
    records, wrong = [], []
    if os.path.lexists(lines):  # if not, there is none yet; a link that leads nowhere is an error
        known = {key: settings[key] for key in ("dataset", "seed") if key in settings}
        records, wrong = read_results(lines, {"run": run.number, **known})
    return records, settings, problems + (wrong or run.without_line(records))


def read_settings(manifest: Path) -> dict[str, Any]:
    """The settings of a manifest. Raises DamagedFileError if those that figures use are of a wrong type."""
    settings = read_json(manifest).get("settings")
    if not isinstance(settings, dict):
        raise DamagedFileError(f"{manifest} is damaged (no settings): delete it")
    for key, check in MANIFEST.items():
        if not check(settings.get(key)):
            raise DamagedFileError(f"{manifest} is damaged ({key} cannot be {settings[key]!r}): delete it")
    return settings


def _list_of(kinds: type, value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, kinds) for each in value))


MANIFEST: dict[str, Callable[[Any], bool]] = {
    "minority": functools.partial(_list_of, int),
    "data": functools.partial(_list_of, str | None),
    "dataset": lambda value: value is None or isinstance(value, str),
    "validation_per_class": functools.partial(_list_of, int),
    "seed": lambda value: value is None or isinstance(value, int),
    "class_names": functools.partial(_list_of, str),
    "holdout": lambda value: value is None or (isinstance(value, int | float) and 0 <= value < 1),
}


def differing_settings(records: Sequence[Record]) -> list[str]:
    """A message about each trial whose records were made with different settings."""
    digests: dict[Trial, set[str]] = {}
    for record in records:
        if "made_with" in record:  # lines of earlier versions have none
            digests.setdefault(Trial.of(record), set()).add(record["made_with"])
    differing = [trial.label() for trial, found in digests.items() if len(found) > 1]
    return [f"{label} has lines that were made with different settings" for label in differing]


@dataclasses.dataclass
class FigureData:
    """One figure: its file name, its title, our trials with their records, the paper's curves and the release's."""

    name: str
    title: str
    ir: float
    trials: dict[Trial, list[Record]]
    reference: Reference
    release: Reference = dataclasses.field(default_factory=dict)

    @property
    def curves(self) -> dict[Trial, Curve]:
        """The curves of our trials, in the order of STYLES."""
        order = sorted((t for t in self.trials if t.method not in BASELINES), key=place)
        return {trial: Curve.of(self.trials[trial]) for trial in order}

    @property
    def has_curves(self) -> bool:
        """Whether there is a curve to draw, ours or the paper's, besides the line "all train"."""
        return bool(self.curves) or any(name != BASELINE for name, _ in self.reference)

    @property
    def all_train(self) -> tuple[float, str] | None:
        """The accuracy of training on the whole pool, ours or else the published one, and its label."""
        of_all = (t for t in self.trials if t.method == BASELINE and not t.adds_validation)
        ours = [record["accuracy"] for trial in of_all for record in self.trials[trial]]
        if ours:
            return float(np.mean(ours)), f"all train ({len(ours)} run{'s' if len(ours) > 1 else ''})"
        published = [curve for (name, _), curve in self.reference.items() if name == BASELINE]
        return (float(published[0].mean[-1]), "all train (paper)") if published else None

    @property
    def lines(self) -> list[tuple[float, str]]:
        """The accuracies of trainings without active learning, and their labels."""
        found = [self.all_train] if self.all_train else []
        for trial, records in self.trials.items():
            if trial.method == BASELINE and trial.adds_validation:
                accuracy = float(np.mean([record["accuracy"] for record in records]))
                found.append((accuracy, f"all train and validation images ({len(records)} runs)"))
        for trial in sorted((t for t in self.trials if t.method == VALIDATION_ALONE), key=place):
            records = self.trials[trial]
            size = int(np.mean([record["labelled"] for record in records]))
            runs = f"{len(records)} run{'s' if len(records) > 1 else ''}"
            found.append((float(np.mean([r["accuracy"] for r in records])), f"{size:,} validation images ({runs})"))
        return found

    @property
    def lines_text(self) -> str:
        return "; ".join(f"{label}: {accuracy:.2f} %" for accuracy, label in self.lines)

    def paper(self, trial: Trial) -> Curve | None:
        return self.reference.get((series(trial), trial.init))

    def as_released(self, trial: Trial) -> Curve | None:
        return self.release.get((series(trial), trial.init))


def figures(
    dataset: str,
    records: Sequence[Record],
    reference_folder: Path,
    paper_alone: bool,
    panels: Mapping[float, str],
    paper_runs: int,
    own_images: bool = False,
) -> list[FigureData]:
    """The figures with records: one for each distortion, initial model and --select, and the paper's ablation.

    Args:
        paper_alone: also figures of the paper without a record.
        panels: imbalance ratio -> letter of the paper's figure.
        paper_runs: number of runs of the paper's means.
        own_images: whether the pool is a user's, imbalanced as it is.
    """
    groups: dict[tuple[float, float, str, str], dict[Trial, list[Record]]] = {}
    for record in records:
        trial = Trial.of(record)
        groups.setdefault((trial.ir, trial.nr, trial.init, trial.select), {}).setdefault(trial, []).append(record)
    stems = [path.stem for path in reference_folder.glob(f"{dataset.lower()}_ir*.csv")] if paper_alone else []
    for stem in stems:
        ir = stem.removesuffix("_ablation").rpartition("_ir")[2]
        groups.setdefault((float(ir), 0.0, "rotation", "test"), {})
    found = []
    for (ir, nr, init, select), trials in sorted(groups.items()):
        plain = nr == 0 and init == "rotation" and select == "test"
        compared = nr == 0 and init != "random"
        stem = f"{dataset.lower()}_ir{number_name(ir)}"
        main = _reference(reference_folder, stem, paper_runs) if compared else {}
        main = {(name, init): curve for (name, _), curve in main.items()}  # all of them start from rotation models
        released = reference_folder / f"release_{stem}.csv"
        release = read_release(released) if plain and released.exists() else {}
        ablation = (
            _reference(reference_folder, f"{dataset.lower()}_ir{number_name(ir)}_ablation", paper_runs)
            if nr == 0
            else {}
        )
        ablation_only = set(ablation) - set(main)
        ordinary = {t: r for t, r in trials.items() if t == t.plain and t.method != VALIDATION_ALONE}
        main_trials = {t: r for t, r in ordinary.items() if (series(t), init) not in ablation_only}
        main_trials = {t: r for t, r in main_trials.items() if t.method not in RIVAL_KEYS}
        name, about = figure_name(dataset, ir, nr, init, select), describe(dataset, ir, nr, init, select, own_images)
        if any(t.method != BASELINE for t in main_trials) or (main and paper_alone):
            letter = f"{panels[ir]} " if compared and ir in panels else ""
            found.append(FigureData(name, f"{letter}{about}", ir, main_trials, main, release))
        for suffix, (what, members) in families(trials, ordinary).items():
            found.append(FigureData(f"{name}_{suffix}", f"{about}: {what}", ir, members, {}))
        if plain and ablation:
            candidates = {**groups.get((ir, nr, "random", "test"), {}), **ordinary}
            ablation_trials = {t: r for t, r in candidates.items() if (series(t), t.init) in ablation}
            if paper_alone or any((series(t), t.init) in ablation_only for t in ablation_trials):
                title = f"(c) {about}: pseudo-labels and initial models"
                found.append(FigureData(f"{name}_ablation", title, ir, ablation_trials, ablation, release))
    return found


def not_drawn(records: Iterable[Record]) -> list[str]:
    """The trials that belong to no figure: those with several of the flags of which each has a figure."""
    trials = dict.fromkeys(Trial.of(record) for record in records)
    several = (
        trial
        for trial in trials
        if (trial.first_batch and (trial.validation_size or trial.adds_validation))
        or (trial.method == BASELINE and trial.validation_size and not trial.adds_validation)
    )
    return [trial.label() for trial in several]


def figure_name(dataset: str, ir: float, nr: float, init: str, select: str) -> str:
    """The name of a figure's files."""
    noise, start = f"_nr{number_name(nr)}" if nr else "", "" if init == "rotation" else f"_{init}"
    return f"{dataset}_ir{number_name(ir)}{noise}{start}{selection_suffix(select)}"


def describe(dataset: str, ir: float, nr: float, init: str, select: str, own_images: bool = False) -> str:
    """Data set, distortion of the pool, initial model and --select, in a title."""
    distortion = (
        f"{'no' if ir == 1 else f'{number_name(ir)}x'} class imbalance{f', {nr:.0%} label noise' if nr else ''}"
    )
    if own_images and ir == 1:
        distortion = "the pool as it is"
    return f"{dataset}, {distortion}{init_suffix(init)}{select_suffix(select)}"


def init_suffix(init: str) -> str:
    """The initial model as the suffix of a title or name; empty for the rotation model."""
    return {"rotation": "", "rotation_conv": ", only convolutions kept", "random": ", random init"}[init]


def select_suffix(select: str) -> str:
    """The rule of --select as the suffix of a title or name; empty for the paper's protocol."""
    return "" if select == "test" else f", --select {select}"


def name_of(trial: Trial) -> str:
    """A trial in a line of text or a table, e.g. "Rzg_pz L80, random init"."""
    return f"{trial.short()}{init_suffix(trial.init)}"  # the figure's title has --select


def _reference(folder: Path, stem: str, runs: int) -> Reference:
    path = folder / f"{stem}.csv"
    return read_reference(path, runs) if path.exists() else {}


def select(records: Iterable[Record], irs: Sequence[float], methods: Sequence[str], init: str | None) -> list[Record]:
    """The records filtered by -ir, --methods (keys such as Rzg_pz, or series such as Rzg_pz_L80) and --init."""
    kept = []
    for record in records:
        names = {record["method"], series(Trial.of(record))}
        wanted = not methods or names & {*methods, *BASELINES}
        if wanted and (not irs or record["ir"] in irs) and init in (None, record["init"]):
            kept.append(record)
    return kept


def narrow(figure: FigureData, methods: Sequence[str], init: str | None) -> FigureData:
    """The figure with the paper's and the release's curves filtered by --methods and --init."""

    def wanted(name: str, curve_init: str) -> bool:
        selected = not methods or name in methods or name.rpartition("_")[0] in methods
        return name == BASELINE or (selected and init in (None, curve_init))

    kept = [{k: c for k, c in curves.items() if wanted(*k)} for curves in (figure.reference, figure.release)]
    return dataclasses.replace(figure, reference=kept[0], release=kept[1])


def plot_figure(figure: FigureData, out: Path, with_reference: bool) -> Path:
    """Draw <out>/<name>.png and .pdf, with the reference curves if wanted; returns the path without suffix."""
    curves = [PlottedCurve(curve, trial) for trial, curve in figure.curves.items()]
    if with_reference:
        for source, references in (("paper", figure.reference), ("release", figure.release)):
            for (name, init), curve in references.items():
                method, length, ensemble = parse_series(name)
                if name != BASELINE and len(curve) > (3 if source == "release" else 0):
                    trial = Trial(
                        figure.ir, method, length, ensemble, init="rotation" if init == "rotation_conv" else init
                    )
                    curves.append(PlottedCurve(curve, trial, source))
    curves.sort(key=lambda each: place(each.trial))
    path = out / figure.name
    title = figure.title if figure.trials else f"{figure.title}: the paper's curves"
    plots.plot_curves(path, title, curves, figure.lines)
    return path


def place(each: Trial) -> tuple:
    """The order of trials in figures and tables."""
    order = list(plots.STYLES)
    known = order.index(each.method) if each.method in order else len(order)
    special = each.other_copies is not None, each.validation_size or 0, each.adds_validation
    return known, each.length, each.ensemble, each.init != "rotation", *special


def print_missing(figure: FigureData, runs: Sequence[int], write: Print) -> None:
    """Print the runs and iterations that a trial of the figure lacks and another one has."""
    iterations = sorted(
        {r["b"] for trial, records in figure.trials.items() if trial.method not in BASELINES for r in records}
    )
    for trial, records in figure.trials.items():
        if trial.method in BASELINES:
            continue
        for gap, runs_with_gap in missing(records, runs, iterations).items():
            text = "all" if len(gap) == len(iterations) else f"b={ranges(gap)}"
            write(f"  not there: {name_of(trial)}: run {ranges(runs_with_gap)}, {text}")
