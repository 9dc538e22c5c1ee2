"""Results records grouped into figures, with the paper's curves and those of its release."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alfk.experiment.records import BASELINE, BASELINES, VALIDATION_ALONE, Record
from alfk.experiment.trial import Trial, number_name, selection_suffix
from alfk.method.acquisition import METHODS, get_method
from alfk.plotting.curves import Comparison, Curve, Reference, compare, missing, ranges, read_reference, read_release
from alfk.plotting.names import count_of_runs, init_suffix, name_of, parse_series, place, select_suffix, series
from alfk.rivals import RIVALS

Trials = dict[Trial, list[Record]]
RIVAL_KEYS = {rival.key: rival for rival in RIVALS}


class Setting(NamedTuple):
    """What all curves of a figure have in common: distortion of the pool, initial model and --select."""

    ir: float
    nr: float = 0.0
    init: str = "rotation"
    select: str = "test"

    @classmethod
    def of(cls, trial: Trial) -> "Setting":
        return cls(trial.ir, trial.nr, trial.init, trial.select)

    @property
    def is_the_papers(self) -> bool:
        """Whether it is that of the paper's main figures."""
        return self == Setting(self.ir)

    def name(self, dataset: str) -> str:
        """The name of a figure's files."""
        noise = f"_nr{number_name(self.nr)}" if self.nr else ""
        start = "" if self.init == "rotation" else f"_{self.init}"
        return f"{dataset}_ir{number_name(self.ir)}{noise}{start}{selection_suffix(self.select)}"

    def title(self, dataset: str, own_images: bool) -> str:
        """The title of a figure.

        Args:
            own_images: whether the pool is a user's, imbalanced as it is.
        """
        distortion = f"{'no' if self.ir == 1 else f'{number_name(self.ir)}x'} class imbalance"
        if own_images and self.ir == 1:
            distortion = "the pool as it is"
        distortion += f", {self.nr:.0%} label noise" if self.nr else ""
        return f"{dataset}, {distortion}{init_suffix(self.init)}{select_suffix(self.select)}"


def by_setting(records: Iterable[Record]) -> dict[Setting, Trials]:
    """The records grouped by setting and trial."""
    groups: dict[Setting, Trials] = {}
    for record in records:
        trial = Trial.of(record)
        groups.setdefault(Setting.of(trial), {}).setdefault(trial, []).append(record)
    return groups


@dataclasses.dataclass
class FigureData:
    """One figure: its file name, its title, our trials with their records, the paper's curves and the release's."""

    name: str
    title: str
    ir: float
    trials: Trials
    paper: Reference = dataclasses.field(default_factory=dict)
    release: Reference = dataclasses.field(default_factory=dict)

    @property
    def curves(self) -> dict[Trial, Curve]:
        """The curves of our trials, in the order of names.STYLES."""
        trials = sorted((t for t in self.trials if t.method not in BASELINES), key=place)
        return {trial: Curve.of(self.trials[trial]) for trial in trials}

    @property
    def has_curves(self) -> bool:
        """Whether there is a curve to draw, ours or the paper's, besides the line "all train"."""
        return bool(self.curves) or any(name != BASELINE for name, _ in self.paper)

    @property
    def sources(self) -> dict[str, Reference]:
        return {"paper": self.paper, "release": self.release}

    def others(self, trial: Trial) -> dict[str, Curve]:
        """The paper's and the release's curve of one of our trials, as far as there are such, by source."""
        key = series(trial), trial.init
        return {source: curves[key] for source, curves in self.sources.items() if key in curves}

    def compared(self, trial: Trial) -> dict[str, dict[float, Comparison]]:
        """The points of one of our curves beside the paper's and the release's: source -> share -> comparison."""
        ours = Curve.of(self.trials[trial])
        return {source: {c.share: c for c in compare(ours, other)} for source, other in self.others(trial).items()}

    @property
    def lines(self) -> list[tuple[float, str]]:
        """The accuracies of trainings without active learning, and their labels."""
        found = []
        ours = sorted((t for t in self.trials if t.method in BASELINES), key=lambda t: (t.method != BASELINE, place(t)))
        for trial in ours:
            records = self.trials[trial]
            about = "all train and validation images" if trial.adds_validation else "all train"
            if trial.method == VALIDATION_ALONE:
                about = f"{int(np.mean([record['labelled'] for record in records])):,} validation images"
            accuracy = float(np.mean([record["accuracy"] for record in records]))
            found.append((accuracy, f"{about} ({count_of_runs(len(records))})"))
        if not any(t.method == BASELINE and not t.adds_validation for t in ours):
            published = [curve for (name, _), curve in self.paper.items() if name == BASELINE]
            found = [(float(curve.mean[-1]), "all train (paper)") for curve in published[:1]] + found
        return found

    def narrowed(self, methods: Sequence[str], init: str | None) -> "FigureData":
        """The figure with the paper's and the release's curves filtered by --methods and --init."""
        paper, release = (
            {key: curve for key, curve in curves.items() if key[0] == BASELINE or _is_wanted(*key, methods, init)}
            for curves in (self.paper, self.release)
        )
        return dataclasses.replace(self, paper=paper, release=release)


def select(records: Iterable[Record], irs: Sequence[float], methods: Sequence[str], init: str | None) -> list[Record]:
    """The records filtered by -ir, --methods (keys such as Rzg_pz, or series such as Rzg_pz_L80) and --init."""
    methods = methods and [*methods, *BASELINES]
    return [
        record
        for record in records
        if (not irs or record["ir"] in irs) and _is_wanted(series(Trial.of(record)), record["init"], methods, init)
    ]


def _is_wanted(name: str, init: str, methods: Sequence[str], wanted_init: str | None) -> bool:
    """Whether --methods and --init name a series from an initial model."""
    return init == (wanted_init or init) and (not methods or name in methods or parse_series(name)[0] in methods)


def figures(
    dataset: str,
    records: Sequence[Record],
    reference: Path,
    paper_alone: bool,
    panels: Mapping[float, str],
    paper_runs: int,
    own_images: bool = False,
) -> list[FigureData]:
    """The figures of a data set: for each setting the paper's methods and those of FAMILIES, and the paper's ablation.

    Args:
        reference: folder with the paper's curves.
        paper_alone: also figures of the paper without a record.
        panels: imbalance ratio -> letter of the paper's figure.
        paper_runs: number of runs of the paper's means.
        own_images: whether the pool is a user's, imbalanced as it is.
    """
    groups, found = by_setting(records), []
    for path in reference.glob(f"{dataset.lower()}_ir*.csv") if paper_alone else ():
        ir = path.stem.removesuffix("_ablation").rpartition("_ir")[2]
        groups.setdefault(Setting(float(ir)), {})

    def papers(stem: str) -> Reference:
        path = reference / f"{stem}.csv"
        return read_reference(path, paper_runs) if path.exists() else {}

    for setting, trials in sorted(groups.items()):
        ir, nr, init, _ = setting
        stem, name, title = Setting(ir).name(dataset.lower()), setting.name(dataset), setting.title(dataset, own_images)
        ordinary = {t: r for t, r in trials.items() if t == t.plain and t.method != VALIDATION_ALONE}

        # The paper's figure (a) or (b). Its curves start from rotation models, with or without their linear layers.
        compared = nr == 0 and init != "random"
        paper = {(key, init): curve for (key, _), curve in papers(stem).items()} if compared else {}
        released = reference / f"release_{stem}.csv"
        release = read_release(released) if setting.is_the_papers and released.exists() else {}
        ablation = papers(f"{stem}_ablation") if nr == 0 else {}
        ablation_only = set(ablation) - set(paper)
        main = {t: r for t, r in ordinary.items() if (series(t), init) not in ablation_only}
        main = {t: r for t, r in main.items() if t.method not in RIVAL_KEYS}
        if any(t.method != BASELINE for t in main) or (paper and paper_alone):
            letter = f"{panels[ir]} " if compared and ir in panels else ""
            found.append(FigureData(name, f"{letter}{title}", ir, main, paper, release))

        for suffix, members in families(trials, ordinary).items():
            found.append(FigureData(f"{name}_{suffix}", f"{title}: {FAMILIES[suffix]}", ir, members))

        # Figure (c), which has curves from random models beside those from rotation models.
        if setting.is_the_papers and ablation:
            candidates = {**groups.get(Setting(ir, init="random"), {}), **ordinary}
            members = {t: r for t, r in candidates.items() if (series(t), t.init) in ablation}
            if paper_alone or any((series(t), t.init) in ablation_only for t in members):
                about = f"(c) {title}: pseudo-labels and initial models"
                found.append(FigureData(f"{name}_ablation", about, ir, members, ablation, release))
    return found


FAMILIES = {  # suffix of the name -> title
    "rivals": "rivals that know the pool alone",
    "rivals_informed": "rivals that know more",
    "kernel": "other choices with the paper's similarity",
    "first_random": "the first batch random for all",
    "and_validation": "trained on the validation images too",
}


def families(trials: Trials, ordinary: Trials) -> dict[str, Trials]:
    """The figures besides the paper's: methods of other papers, and results of the flags for first batch and
    validation set, each with some of the paper's methods in the same runs.

    Args:
        trials: those of one setting.
        ordinary: those without a random first batch, another validation set, or training on it.
    """
    rivals = [t for t in ordinary if t.method in RIVAL_KEYS]
    groups = {
        "rivals": [t for t in rivals if not RIVAL_KEYS[t.method].is_informed],
        "rivals_informed": [t for t in rivals if RIVAL_KEYS[t.method].is_informed and not t.length],
        "kernel": [t for t in rivals if t.length],
        "first_random": [t for t in trials if t.first_batch and not t.validation_size and not t.adds_validation],
        "and_validation": [t for t in trials if t.adds_validation and not t.first_batch],
    }
    single = [t for t in ordinary if t.ensemble == 1]
    random, varr, entropy, matching, by_features = (
        [t for t in single if t.method == key] for key in ("random", "varR", "entropy_det", "Rzg_pz", "flqmi_z")
    )
    ours = sorted(matching, key=lambda t: t.length)[-1:]
    beside = {
        "rivals": random + varr + ours,
        "rivals_informed": random + varr + ours,
        "kernel": random + entropy + matching + by_features,
        "first_random": [t for t in single if t.method in METHODS and not get_method(t.method).acts_first],
        "and_validation": random + ours + [t for t in trials if t.method == VALIDATION_ALONE],
    }
    found = {}
    for name, group in groups.items():
        if group:
            runs = {record["run"] for t in group for record in trials[t]}
            same_runs = {t: [r for r in trials[t] if r["run"] in runs] for t in beside[name]}
            found[name] = {t: trials[t] for t in group} | {t: records for t, records in same_runs.items() if records}
    return found


def not_drawn(records: Iterable[Record]) -> list[str]:
    """The trials that belong to no figure: those with several of the flags of which each has a figure."""
    return [
        trial.label()
        for trial in dict.fromkeys(map(Trial.of, records))
        if (trial.first_batch and (trial.validation_size or trial.adds_validation))
        or (trial.method == BASELINE and trial.validation_size and not trial.adds_validation)
    ]


def print_missing(figure: FigureData, runs: Iterable[int], write: Callable[[str], None]) -> None:
    """Print the runs and iterations that a trial of the figure lacks and another one has."""
    trials = {t: records for t, records in figure.trials.items() if t.method not in BASELINES}
    iterations = sorted({record["b"] for records in trials.values() for record in records})
    for trial, records in trials.items():
        for gap, runs_with_gap in missing(records, runs, iterations).items():
            text = "all" if len(gap) == len(iterations) else f"b={ranges(gap)}"
            write(f"  not there: {name_of(trial)}: run {ranges(runs_with_gap)}, {text}")
