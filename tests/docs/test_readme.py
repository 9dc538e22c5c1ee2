"""The figures in README and docs follow from the committed lines of results/."""

import csv
import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import alfk
from alfk.cli import options as flags
from alfk.cli.trials import trials_of
from alfk.experiment.records import Record
from alfk.experiment.trial import Trial
from alfk.plotting import results, sizes, statistics, tables
from alfk.plotting.curves import (
    Comparison,
    Curve,
    accuracy_of_classes,
    acquisition_seconds,
    compare,
    gains,
    labels_saved,
    read_release,
)
from alfk.plotting.distortions import distortions_table
from alfk.plotting.figures import FigureData
from alfk.plotting.figures import figures as figures_of
from alfk.plotting.statistics import difference_text, interval, is_ahead, is_level
from mnist.config import MNIST
from mnist.run import EXPERIMENTS, cfg, cfg_small
from tests.helpers import ROOT

README, REPORT, RIVALS = ROOT / "README.md", ROOT / "docs" / "reproduction.md", ROOT / "docs" / "rivals.md"


def page_text(page) -> str:
    """The page in one line."""
    return " ".join(page.read_text().split())


def block(page, name: str) -> str:
    """What stands between <!-- name --> and <!-- end -->."""
    return re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end -->", page.read_text(), re.S).group(1)


@functools.cache
def lines(dataset: str = "MNIST") -> results.Results:
    return results.read_runs(ROOT / "results" / dataset, 0, None, pytest.fail)


@functools.cache
def by_trial(dataset: str = "MNIST") -> dict[Trial, list[Record]]:
    found: dict[Trial, list[Record]] = {}
    for record in lines(dataset).records:
        found.setdefault(Trial.of(record), []).append(record)
    return found


def trial(text: str) -> Trial:
    """The trial of a name and flags, e.g. "Rzg_pz L80", "margin, ir 1", "entropy_det, V 100, + validation"."""
    name, *flags = text.split(", ")
    method, length, members = re.fullmatch(r"(\w+)(?: L(\d+))?(?: E(\d+))?", name).groups()
    copies = "released" if method in ("Rzg_trace", "Rzg_mi") else None
    found = Trial(100.0, method, int(length or 0), int(members or 1), copies=copies)
    for kind, value in (flag.split(" ") for flag in flags):
        change = {
            "ir": lambda text: {"ir": float(text)},
            "nr": lambda text: {"nr": float(text)},
            "V": lambda text: {"validation_size": int(text)},
            "+": lambda text: {"adds_validation": True},
            "first": lambda text: {"first_batch": text},
            "init": lambda text: {"init": text},
            "select": lambda text: {"select": text},
            "copies": lambda text: {"copies": text},
        }[kind]
        found = replace(found, **change(value))
    return found


def curve(of: Trial) -> Curve:
    return Curve.of(by_trial()[of])


@functools.cache
def figures() -> dict[str, FigureData]:
    found = figures_of("MNIST", lines().records, ROOT / "reference", True, MNIST.panels, MNIST.runs)
    return {figure.name: figure for figure in found}


def paired(one: str, other: str, b: int, dataset: str = "MNIST", first: int = 0) -> np.ndarray:
    """(R,) accuracy of one trial minus that of another after query b, over the runs that both have."""
    records = ((r for r in by_trial(dataset)[trial(name)] if r["run"] >= first) for name in (one, other))
    return statistics.paired(*records, b)


def span(values) -> str:
    """ "0.4 to 4.2", of the sizes of some differences."""
    sizes = np.abs(list(values))
    return f"{sizes.min():.1f} to {sizes.max():.1f}"


def from_paper(name: str, figure: str = "MNIST_ir100", of: str | None = None) -> dict[float, Comparison]:
    """Share -> our point beside the paper's, or beside that of another method."""
    other = figures()[figure].others(trial(of or name))["paper"]
    return {round(c.share, 2): c for c in compare(curve(trial(name)), other)}


def quoted_form(values: np.ndarray) -> str:
    """As `difference_text`, without the sign."""
    return difference_text(values).removeprefix("+")


def markdown(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


# Tables


@pytest.mark.parametrize(
    ("page", "name"),
    [(REPORT, name) for name in ("MNIST_ir100", "MNIST_ir100_ablation", "MNIST_ir1")]
    + [(RIVALS, f"MNIST_ir100_{name}") for name in ("kernel", "rivals", "rivals_informed")],
)
def test_tables_of_curves(page, name):
    figure = figures()[name]
    assert block(page, name) == f"{tables.digest(figure)}\n\n{tables.agreement(figure)}".rstrip()


def test_other_tables_of_rivals():
    assert block(RIVALS, "MNIST_distortions") == str(distortions_table(lines().records))
    found = {figure.name: figure for figure in sizes.size_figures("MNIST", lines().records, lines().validation, False)}
    name = "MNIST_ir100_validation_size"
    assert block(RIVALS, name) == str(sizes.sizes_table(found[name]))


def six_rows() -> str:
    """The cells of reproduction.md's table at three shares."""
    shares, figure = (0.5, 0.75, 2.5), figures()["MNIST_ir100"]
    rows = [["method", "our runs", *(head for share in shares for head in (f"{share} %: paper", "ours"))]]
    for name in ("random", "varR", "Rz L20", "Rzg_pz L20", "Rzg_pz L80", "Rzg_true L20"):
        ours, theirs = curve(trial(name)), figure.others(trial(name))["paper"]
        row = [name, str(ours.runs[0])]
        for share in shares:
            i, j = ours.at(share), theirs.at(share)
            error = np.hypot(*(np.sqrt(c.variance_of_mean(k)) for c, k in ((ours, i), (theirs, j))))
            far = " *" if abs(ours.mean[i] - theirs.mean[j]) > 2 * error else ""
            row.append(tables.plus_minus(theirs.mean[j], theirs.std[j], 1))
            row.append(tables.plus_minus(ours.mean[i], ours.std[i], 1) + far)
        rows.append(row)
    return markdown(rows)


VAL = ", select val"
FL, PZ = "Rzg_fl L80", "Rzg_pz L80"
NOT_LOOKED_AT = {"MNIST": 5, "SILHOUETTES": 4}  # the first run that was not, while Rzg_fl was made
CHOICES = {  # table in rivals.md -> its pairs of trials
    "select val": [
        *((FL + VAL, other + VAL, NOT_LOOKED_AT["MNIST"]) for other in (PZ, "flqmi_z")),
        *(
            (one + VAL, other + VAL)
            for one, others in {
                FL: (PZ, "flqmi_z", "Rzg_flw L80", "entropy_det", "random"),
                PZ: ("flqmi_z", "entropy_det", "margin", "badge", "galaxy", "varR", "random"),
                "entropy_det": ("margin", "badge", "galaxy", "varR"),
            }.items()
            for other in others
        ),
    ],
    "parts": [
        (FL, PZ),
        (FL, "flqmi_z"),
        ("Rzg_fl L20", "Rzg_pz L20"),
        ("Rz_fl L20", "Rz L20"),
        ("Rzg_fl L20", "Rz_fl L20"),
        ("Rzg_fl L20", "flqmi_z"),
        ("Rz_fl L20", "flqmi_z"),
        (FL, "Rz_fl L80"),
        ("Rzg_flw L80", FL),
        ("Rzg_rc L80", PZ),
        ("Rzg_rc L20", "Rzg_pz L20"),
        ("Rz_rc L20", "Rz L20"),
        (FL, "Rzg_rc L80"),
    ],
    "conditions": [
        (f"{FL}, {flag}", f"{PZ}, {flag}")
        for flag in (
            *("V 3000", "V 1000", "V 300", "V 100"),
            *("ir 1", "ir 10", "ir 1000", "nr 0.1", "nr 0.3", "first random", "init random"),
        )
    ],
    "other papers": [
        *((PZ, other) for other in ("varR", "glister", "direct")),
        *((f"{PZ}, first random", other) for other in ("varR", "entropy_det", "margin", "badge", "galaxy")),
        *(("varR", other) for other in ("entropy_det", "leastconf", "margin", "badge", "epig")),
        *(("entropy_det", other) for other in ("leastconf", "margin", "badge", "coreset", "glister", "direct")),
        *(("galaxy", "galaxy_v"), ("flqmi_z", "flqmi"), ("flqmi", "flqmi_rare"), ("typiclust", "random")),
    ],
}
SILHOUETTES = [("Rzg_fl L80", other) for other in ("Rzg_pz L80", "flqmi_z", "entropy_det", "margin", "random")]
SILHOUETTES += [
    ("flqmi_z", "Rzg_pz L80"),
    ("Rzg_pz L80", "entropy_det"),
    ("Rzg_rc L80", "Rzg_pz L80"),
    ("Rzg_flw L80", "Rzg_fl L80"),
    ("entropy_det", "margin"),
]
EQUAL = [*SILHOUETTES[:3], SILHOUETTES[4], ("Rzg_pz L80", "entropy_det"), ("entropy_det", "random")]  # at ir=1


def ranges(sizes: list[int], step: int) -> str:
    """ "125, 375-625": numbers of labels, successive ones joined."""
    starts, stops = ([n for n in sizes if n + d not in sizes] for d in (-step, step))
    return ", ".join(f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in zip(starts, stops, strict=True))


def title(one: str, other: str, first: int) -> str:
    """ "Rzg_fl L80 - Rzg_pz L80 (ir 10)"; flags of one of the two stand behind its name."""
    (a, *of_one), (b, *of_other) = (
        [part for part in name.split(", ") if part != "select val"] for name in (one, other)
    )
    common = [flag for flag in of_one if flag in of_other] + [f"from run {first}"] * (first > 0)

    def with_flags(name: str, flags: list[str]) -> str:
        return f"{name} ({', '.join(flags)})" if flags else name

    names = [with_flags(x, [flag for flag in flags if flag not in common]) for x, flags in ((a, of_one), (b, of_other))]
    return with_flags(" - ".join(names), common)


def differences(pairs, labels=(125, 250, 375, 625, 1250), dataset="MNIST") -> str:
    """A table of paired differences after some numbers of labels, and of all numbers of labels at which a lead is
    claimed, or that both are level.

    Args:
        pairs: two trials, and the first run if not 0.
    """
    head = ["difference", "runs", f"{labels[0]} labels", *(f"{n:,}" for n in labels[1:]), "ahead", "behind", "level"]
    rows = [head]
    for one, other, *first in pairs:
        if all(trial(name) in by_trial(dataset) for name in (one, other)):
            step, run = labels[0], sum(first)
            at = {n: paired(one, other, n // step - 1, dataset, run) for n in range(step, labels[-1] + 1, step)}
            tests = is_ahead, lambda values: is_ahead(-values), is_level
            when = [ranges([n for n in at if holds(at[n])], step) for holds in tests]
            found = [difference_text(at[n]) for n in labels]
            rows.append([title(one, other, run), str(len(at[step])), *found, *when])
    return markdown(rows)


@functools.cache
def validation_selected() -> FigureData:
    """All methods with six runs or more whose epoch is chosen on the validation images, ir=100."""
    found = {of: records for of, records in by_trial().items() if of.select == "val"}
    return FigureData("", "", 100.0, {of: records for of, records in found.items() if len(records) >= 6 * 10})


def silhouettes() -> str:
    pairs = [
        (f"{one}, ir {ir}", f"{other}, ir {ir}") for ir, each in ((20, SILHOUETTES), (1, EQUAL)) for one, other in each
    ]
    pairs[:0] = [(f"{FL}, ir 20", f"{other}, ir 20", NOT_LOOKED_AT["SILHOUETTES"]) for other in (PZ, "flqmi_z")]
    return differences(pairs, (50, 100, 150, 250, 500), "SILHOUETTES")


REPORTED = [  # pairs of the report
    *((PZ, other) for other in ("random", "varR", "varR E4", "Rzg_pz L20")),
    *(("Rzg_pz L20", other) for other in ("Rz L20", "Rzg_pred L20", "Rzg_trace L20", "Rzg_mi L20")),
    ("Rzg_true L20", "Rzg_pz L20"),
    *(
        (f"{PZ}, ir 1", f"{other}, ir 1")
        for other in ("random", "varR", "Rz L20", "Rzg_pred L20", "Rzg_pz L20", "Rzg_true L20", "margin")
    ),
]


PHOTOS = {  # what is trained -> settings of a line
    "the last layer, on labels": ("backbone", False),
    "the whole network, on labels": ("none", False),
    "the whole network, on labels and clean images": ("none", True),
}


@functools.cache
def on_photos() -> dict[tuple, list[float]]:
    """(what is trained, method, labels) -> accuracies of the pools that all have."""
    found: dict[tuple, list[float]] = {}
    for line in map(json.loads, (ROOT / "results" / "photos.jsonl").read_text().splitlines()):
        key = line["freeze"], line["add_validation"], line["method"], line["labels"]
        found.setdefault(key, []).append(line["accuracy"])
    pools = min(map(len, found.values()))
    return {key: values[:pools] for key, values in found.items()}


def photos() -> str:
    """The table of accuracies on photos in docs/own_data.md."""
    cell = {key: f"{np.mean(values):.1f} ± {np.std(values):.1f}" for key, values in on_photos().items()}
    seeds = len(next(iter(on_photos().values())))
    rows = [[f"trained ({seeds} pools)", "chosen by", "no label", "40 labels", "80", "120"]]
    for about, settings in PHOTOS.items():
        if not settings[1]:
            alone = cell[*settings, "clean images alone", 0]
            rows.append([about.replace("labels", "clean images alone"), "", alone, "", "", ""])
        for method in ("random", "entropy_det", "Rzg_pz", "Rzg_fl"):
            rows.append([about, f"`{method}`", "", *(cell[*settings, method, n] for n in (40, 80, 120))])
    return markdown(rows)


def test_photos():
    mean = {key: float(np.mean(values)) for key, values in on_photos().items()}
    labels = sorted(mean["none", False, m, 120] for m in ("random", "entropy_det", "Rzg_pz", "Rzg_fl"))
    values = mean["none", False, "clean images alone", 0], labels[0], labels[-1], mean["none", True, "random", 120]
    text = "the 204 clean images alone gave {:.1f} %, 120 labels of the pool {:.1f} to {:.1f} % whichever method chose "
    text += "them, and the clean images with 120 random labels {:.1f} %"
    assert text.format(*values) in page_text(README)


VARIANTS = {  # of the study of facility location, in words
    "square": "similarity s squared",
    "eta 0.3": "eta 0.3",
    "eta 0": "eta 0",
    "one round": "one round",
    "renew 1": "a new round below a coverage of 1",
    "same label": "s = 0 unless pseudo-label and label agree",
    "doubts": "the least certain correct validation images as queries too",
    "doubts by loss": "the same, weighted by loss",
    "by class": "weights by class (`Rzg_flw`)",
    "right cover 1": "labelled images that are predicted right cover too",
    "Rzg_pz": "the paper's `Rzg_pz`",
    "flqmi_z": "`flqmi_z`",
}


@functools.cache
def studied() -> dict[str, dict[int, np.ndarray]]:
    """Variant -> run -> accuracies on DIGITS."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for line in (ROOT / "results" / "facility_location_study.txt").read_text().splitlines():
        bed, name, run, *values = line.split("\t")
        if bed == "DIGITS":
            found.setdefault(name, {})[int(run)] = np.array(list(map(float, values)))
    return found


def study() -> str:
    """The table of variants of facility location that have ten runs."""
    base, rows = studied()["base"], [["variant", "15 labels", "45", "90", "difference"]]
    for name, about in [("base", "`Rzg_fl`"), *VARIANTS.items()]:
        values = np.array([studied()[name][run] for run in range(10)])
        differences = (values - [base[run] for run in range(10)]).mean(1)
        means = [f"{values[:, b].mean():.1f}" for b in (0, 2, 5)]
        rows.append([about, *means, difference_text(differences) if name != "base" else ""])
    return markdown(rows)


def test_variants_of_facility_location():
    base, others = studied()["base"], studied().keys() - {"base", "random"}
    assert {name for name in others if len(studied()[name]) == 10} == set(VARIANTS)
    for name in VARIANTS:
        assert interval(np.array([(studied()[name][run] - base[run]).mean() for run in range(10)]))[0] < 0
    assert f"{len(others) - len(VARIANTS)} more variants had one or two runs" in page_text(RIVALS)


def sessions() -> str:
    """The table of commits in results/README.md, of all sessions in the manifests."""
    found: dict[tuple[str, str, str], int] = {}
    for path in (ROOT / "results").glob("*/run*/manifest.json"):
        for session in json.loads(path.read_text())["sessions"]:
            processor = session["device"].removeprefix("cpu: ").replace("(R)", "").removesuffix(", 1 threads")
            key = path.parents[1].name, session["commit"], processor
            found[key] = found.get(key, 0) + 1
    rows = [[*key, str(count)] for key, count in sorted(found.items())]
    return markdown([["data set", "commit", "processor, one thread", "sessions"], *rows])


def commits() -> str:
    """The table of commits behind each table in results/README.md: those of the sessions whose command names a curve
    and run of the table.
    """
    made: dict[tuple[str, Trial, int], set[str]] = {}
    parser = flags.run_parser(EXPERIMENTS, "")
    for path in (ROOT / "results").glob("*/run*/manifest.json"):
        dataset, run = path.parents[1].name, int(path.parent.name.removeprefix("run"))
        for session in json.loads(path.read_text())["sessions"]:
            options = parser.parse_args(session["command"][1:])
            if session["time"] < "2026-11-27T08:29":  # until commit bbf6f47 copies were by degrees unless stated
                options.copies = options.copies or "degrees"
            rows = cfg_small if dataset == "SILHOUETTES" else cfg
            named = trials_of(rows, flags.experiment_of(EXPERIMENTS, options), options)
            for each in [] if options.initial or options.baseline else named:
                made.setdefault((dataset, each, run), set()).add(session["commit"][:7])
    shown = {name for page in (REPORT, RIVALS) for name in re.findall(r"<!-- (MNIST_\w+) -->", page.read_text())}
    tables_of = {name: ("MNIST", figure.trials) for name, figure in figures().items() if name in shown}
    tables_of["MNIST_distortions"] = "MNIST", {t: r for t, r in by_trial().items() if t.ir not in (1, 100) or t.nr}
    tables_of["MNIST_ir100_validation_size"] = "MNIST", {t: r for t, r in by_trial().items() if t.validation_size}
    tables_of["select val"] = "MNIST", validation_selected().trials
    tables_of["silhouettes"] = "SILHOUETTES", by_trial("SILHOUETTES")
    rows = [["table", "curves and runs", "of known session", "commits"]]
    for name, (dataset, trials) in tables_of.items():
        pairs = {(dataset, each, record["run"]) for each, records in trials.items() for record in records}
        known = [made[pair] for pair in pairs if pair in made]
        rows.append([name, str(len(pairs)), str(len(known)), ", ".join(sorted(set().union(*known)))])
    return markdown(rows)


BLOCKS = {  # page, name of the table -> its text; `python3 -m tests.docs.test_readme` writes them into the pages
    (README, "six rows"): six_rows,
    (REPORT, "paired differences"): lambda: differences(REPORTED),
    (REPORT, "validation set"): lambda: differences([(f"{PZ}, V {n}", PZ) for n in (3000, 1000, 300, 100)]),
    **{(RIVALS, name): functools.partial(differences, pairs) for name, pairs in CHOICES.items()},
    (RIVALS, "accuracies, select val"): lambda: str(tables.digest(validation_selected())),
    (RIVALS, "wins, select val"): lambda: str(tables.wins_table(validation_selected())),
    (RIVALS, "silhouettes"): silhouettes,
    (RIVALS, "study"): study,
    (ROOT / "docs" / "own_data.md", "photos"): photos,
    (ROOT / "results" / "README.md", "sessions"): sessions,
    (ROOT / "results" / "README.md", "commits"): commits,
}


@pytest.mark.parametrize(("page", "name"), BLOCKS, ids=lambda part: getattr(part, "name", part))
def test_blocks(page, name):
    assert block(page, name) == BLOCKS[page, name]()


def test_the_version_that_is_cited():
    assert f"\nversion: {alfk.__version__}\n" in (ROOT / "CITATION.cff").read_text()


# Sentences

CLAIMED = [  # leads that the text claims without numbers of labels: one trial, the other, b at which all must hold
    *((FL + VAL, PZ + VAL, (0, 1, 2)), (FL + VAL, "flqmi_z" + VAL, (0, 1)), ("flqmi_z" + VAL, PZ + VAL, (0, 1, 2))),
    *((PZ + VAL, other + VAL, range(5)) for other in ("entropy_det", "margin", "badge", "galaxy", "varR")),
    *((f"{name}{VAL}", "random" + VAL, range(1, 10)) for name in ("entropy_det", "margin", "badge", "galaxy", "varR")),
    ("entropy_det" + VAL, "badge" + VAL, (2, 4)),
    *(("Rzg_rc L80", PZ, (0, 1, 2)), (FL, "Rzg_rc L80", (0, 1, 2)), ("Rzg_rc L20", "Rzg_pz L20", range(10))),
    *(("Rz_rc L20", "Rz L20", range(10)), ("Rzg_fl L20", "Rz_fl L20", range(10)), ("Rzg_flw L80", FL, (0,))),
    *((f"{FL}, {flag}", f"{PZ}, {flag}", (0,)) for flag in ("V 3000", "V 1000", "V 300", "ir 10", "ir 1000")),
    *((f"{FL}, {flag}", f"{PZ}, {flag}", (0,)) for flag in ("nr 0.1", "nr 0.3", "init random")),
    (f"{FL}, first random", f"{PZ}, first random", (1,)),
    *((PZ, other, (0, 1, 2)) for other in ("varR", "glister", "direct")),
    *((f"{PZ}, first random", other, (1,)) for other in ("varR", "entropy_det", "margin", "badge", "galaxy")),
    *(("galaxy", "galaxy_v", range(3, 10)), ("flqmi_z", "flqmi", range(7)), ("entropy_det", "coreset", (7, 8, 9))),
    *(("varR", other, (2,)) for other in ("margin", "badge")),
    ("random", "typiclust", (4,)),
]
CLAIMED_ON_SILHOUETTES = [
    *((f"{FL}, ir {ir}", f"{PZ}, ir {ir}", range(10)) for ir in (1, 20)),
    *((f"{FL}, ir {ir}", f"entropy_det, ir {ir}", range(10)) for ir in (1, 20)),
    *((f"{FL}, ir {ir}", f"random, ir {ir}", range(10)) for ir in (1, 20)),
    ("flqmi_z, ir 20", f"{PZ}, ir 20", range(10)),
    (f"{PZ}, ir 20", "entropy_det, ir 20", range(10)),
    ("Rzg_rc L80, ir 20", f"{PZ}, ir 20", range(10)),
    (f"{FL}, ir 20", "Rzg_flw L80, ir 20", range(2, 9)),
    ("random, ir 1", "entropy_det, ir 1", range(1, 6)),
    ("margin, ir 20", "random, ir 20", range(4, 10)),
]
LEVEL = [(one + VAL, other + VAL) for one, other in ((PZ, "flqmi_z"), (FL, "flqmi_z"), ("entropy_det", "margin"))]
LEVEL += [(FL + VAL, PZ + VAL)]
LEVEL += [(PZ + VAL, other + VAL) for other in ("entropy_det", "margin", "badge", "galaxy")]
LEVEL += [(f"{FL}, ir 1", f"{PZ}, ir 1")]
UNKNOWN = [(FL + VAL, "Rzg_flw L80" + VAL, range(10)), ("entropy_det" + VAL, "margin" + VAL, range(10))]
UNKNOWN += [("entropy_det" + VAL, "varR" + VAL, range(10)), ("margin" + VAL, "varR" + VAL, range(10))]
UNKNOWN += [(PZ + VAL, "varR" + VAL, (9,))]
UNKNOWN += [
    ("varR", "entropy_det", range(10)),
    ("entropy_det", "leastconf", range(10)),
    ("varR", "leastconf", range(10)),
]
UNKNOWN += [
    (f"{FL}, {flag}", f"{PZ}, {flag}", when)
    for flag, when in {"ir 1": range(10), "V 1000": range(1, 10), "V 300": range(1, 10), "V 100": range(8)}.items()
]


@pytest.mark.parametrize("dataset", ["MNIST", "SILHOUETTES"])
def test_leads_that_are_claimed_of_rivals(dataset):
    claimed = {"MNIST": CLAIMED, "SILHOUETTES": CLAIMED_ON_SILHOUETTES}[dataset]
    assert [(*pair, b) for *pair, when in claimed for b in when if not is_ahead(paired(*pair, b, dataset))] == []
    first = NOT_LOOKED_AT[dataset]
    again = {
        "MNIST": [(FL + VAL, PZ + VAL, (0, 1, 2)), (FL + VAL, "flqmi_z" + VAL, (0, 1))],
        "SILHOUETTES": [(f"{FL}, ir 20", f"{PZ}, ir 20", range(10))],
    }
    assert all(is_ahead(paired(*pair, b, dataset, first)) for *pair, when in again[dataset] for b in when)


def test_differences_between_rivals_of_which_none_is_known():
    """Methods that the text calls level after the last query, and differences of which it says that none is known."""
    assert [pair for pair in LEVEL if not is_level(paired(*pair, 9))] == []
    values = {(*pair, b): paired(*pair, b) for *pair, when in UNKNOWN for b in when}
    assert [each for each in values if is_ahead(values[each]) or is_ahead(-values[each])] == []


def test_claims_of_the_report():
    """The table of the paper's claims, and the README's sentence on the lead over random choice."""
    text = page_text(REPORT)

    def at_375(name: str) -> np.ndarray:
        return np.array([r["accuracy"] for r in by_trial()[trial(name)] if r["b"] == 2])

    def hardest(name: str) -> np.ndarray:
        of = [[r] for r in by_trial()[trial(name)] if r["b"] == 2]
        return np.array([accuracy_of_classes(record, MNIST.hardest) for record in of])

    def with_interval(values: np.ndarray, digits: int = 1) -> str:
        mean, low, high = (f"{value:.{digits}f}" for value in (values.mean(), *interval(values)))
        return f"{mean} % ({len(values)}; {low} to {high})"

    assert all(f" {with_interval(at_375(name))} " in text for name in ("Rzg_pz L80", "random"))
    four, single = at_375("varR E4"), with_interval(at_375("varR"))
    assert f"{four.mean():.1f} % ({len(four)}), {single}" in text
    share, most = max(gains(curve(trial("Rzg_pz L80")), curve(trial("random"))), key=lambda pair: pair[1])
    low, high = interval(paired("Rzg_pz L80", "random", 3))
    assert share == 1
    assert f"{most:.1f} points at 1 % (10; {low:.1f} to {high:.1f})" in text
    theirs = [figures()["MNIST_ir100"].others(trial(name))["paper"] for name in ("Rzg_pz L80", "random")]
    theirs = np.subtract(*(each.mean[each.at(0.75)] for each in theirs))
    found = paired("Rzg_pz L80", "random", 2)
    assert interval(found)[1] < theirs
    assert f"at 0.75 % the lead is lower, {found.mean():.1f} instead of {theirs:.1f} points" in text
    saved = [labels_saved(curve(trial("Rzg_pz L80")), curve(trial(name)), 88.0) for name in ("varR E4", "varR")]
    words = "{:.0f} % against `varR` E=4 (3), {:.0f} % against E=1 (6)"
    assert words.format(*(each.percent for each in saved)) in text
    assert ", ".join(with_interval(hardest(name), 0) for name in ("varR", "Rzg_pz L80", "Rzg_true L80")) in text
    assert interval(hardest("varR"))[0] > 36  # the paper's
    for name in ("Rzg_pz L20", "Rzg_pz L80"):
        gained = [difference_text(paired(name, f"{name}, init random", b)) for b in (1, 2, 3)]
        assert f"{', '.join(gained)} ({name.split()[1]})" in text
    lead = paired("Rzg_pz L80", "random", 2)
    words = "{:.1f} points above random choice at 375 labels (95 % interval {:.1f} to {:.1f})"
    assert words.format(lead.mean(), *interval(lead)) in page_text(README)
    leads = (paired(FL + VAL, PZ + VAL, b, first=NOT_LOOKED_AT["MNIST"]) for b in (0, 2))
    words = "ahead of `Rzg_pz` by {} points at 125 labels and {} at 375 (ten runs not looked at"
    assert words.format(*map(quoted_form, leads)) in page_text(README)


def test_rotation_models_of_the_report():
    text = page_text(REPORT)
    with open(ROOT / "results" / "MNIST" / "rotation_models.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["select"] == "test" and row["member"] == "0"]
    found = {ir: np.array([float(r["rotation_accuracy"]) for r in rows if r["ir"] == ir]) for ir in ("1", "100")}
    biased, balanced = found["100"], found["1"]
    assert f"{biased.min():.1f} to {biased.max():.1f} % (mean {biased.mean():.1f}) in our ten runs" in text
    assert f"at ir=1 {balanced.min():.1f} to {balanced.max():.1f} %" in text
    study = {"seeded": [], "module": []}
    for line in (ROOT / "results" / "rotation_study.txt").read_text().splitlines():
        kind, _, *epochs = line.split()
        study[kind].append(max(map(float, epochs)))
    seeded, module = (f"{np.mean(best):.1f} ± {np.std(best):.1f} %" for best in study.values())
    assert f"20 trainings ended at {seeded}, with those of torch's layers at {module}" in text
    assert f"t-test p = {stats.ttest_ind(*study.values()).pvalue:.2f}" in text


def test_ablations_of_the_report():
    text, paper = page_text(REPORT), figures()["MNIST_ir100"]

    def quoted(of: Curve) -> str:
        return "{:.1f}, {:.1f}, {:.1f} and {:.1f}".format(*of.mean[[0, 1, 2, 4]])

    features = quoted(curve(trial("Rz_rc L20"))), quoted(paper.others(trial("Rz L20"))["paper"])
    assert "`Rz` in the same way {} % (`Rz_rc`, 10 runs) and in the paper {} %".format(*features) in text
    long, short = (quoted(curve(trial(f"Rzg_rc L{length}"))) for length in (80, 20))
    assert f"the walk gave {long} % at 0.25, 0.5, 0.75 and 1.25 % with L=80 and {short} % with L=20 (10 runs)" in text
    long, short = (quoted(paper.others(trial(f"Rzg_pz L{length}"))["paper"]) for length in (80, 20))
    assert f"the paper {long} % and {short} %" in text
    kept = [r["accuracy"] for r in by_trial()[trial("Rzg_pz L20")] if r["b"] == 2 and r["run"] not in (0, 2, 7)]
    assert f"L20 is at {np.mean(kept):.1f} % at 375 labels instead of" in text

    long, short = (from_paper(f"Rzg_rc L{length}", of=f"Rzg_pz L{length}") for length in (80, 20))
    below = [c.difference for c in long.values() if not c.within]
    assert len(below) == 5
    quoted = f"of the paper's `Rzg_pz`, the others {span(below)} points below"
    assert f"five of ten points are within two standard errors {quoted}" in text
    assert [share for share, c in short.items() if not c.within] == [0.25]
    assert f"at L=20 nine are, and the first is {short[0.25].difference:.1f} points above" in text


def test_distances_from_the_paper():
    text, all_shares = page_text(REPORT), {name: from_paper(name) for name in ("Rz L20", "Rzg_true L20", "varR E4")}
    all_shares |= {name: from_paper(name) for name in ("Rzg_pz L80", "Rzg_pz L20")}

    def below(name: str, first: float, last: float = 2.5) -> str:
        found = [c.difference for share, c in all_shares[name].items() if first <= share <= last]
        assert max(found) < 0
        return span(found)

    assert f"is {below('Rzg_pz L80', 0.5, 1.25)} points below the paper between 0.5 and 1.25 %" in text
    sentence = f"Rz by {below('Rz L20', 0.75, 1.75)} points from 0.75 to 1.75 % and by {below('Rz L20', 2)} after that"
    assert f"{sentence}, Rzg_true by {below('Rzg_true L20', 0.75)} points from 0.75 % on" in text
    assert f"(3 runs) is {below('varR E4', 0.5)} points below the paper from 0.5 % on" in text
    names = "random", "varR", "varR E4", "Rz L20", "Rzg_pred L20", "Rzg_pz L20", "Rzg_pz L80", "Rzg_true L20"
    balanced = {name: from_paper(f"{name}, ir 1", "MNIST_ir1") for name in names}
    at = {share: {name: each[share] for name, each in balanced.items() if share in each} for share in (0.25, 0.5, 2.5)}
    sizes = {share: [point.difference for point in found.values()] for share, found in at.items()}
    assert max(sizes[0.25] + sizes[0.5]) < 0
    assert min(sizes[2.5]) > -0.2
    assert [name for name, point in at[0.25].items() if point.within] == ["Rzg_true L20"]
    assert f"by {span(sizes[0.25])} points at 0.25 %" in text
    assert f"by {span(sizes[0.5])} at 0.5 %, by less than 0.2 at 2.5 %" in text
    up_to = [f"{max(-c.difference for c in all_shares[f'Rzg_pz L{length}'].values()):.0f}" for length in (80, 20)]
    assert "stays up to {} points below its published curve, L20 up to {} ".format(*up_to) in page_text(README)
    for length, places in ((20, "+7.4, +6.3, +3.3"), (80, "+4.1, +3.1, +1.9")):
        theirs = (
            figures()["MNIST_ir100_ablation"].others(trial(f"Rzg_pz L{length}{init}"))["paper"]
            for init in ("", ", init random")
        )
        rotation, weights = ([each.mean[each.at(share)] for share in (0.5, 0.75, 1)] for each in theirs)
        assert ", ".join(f"{a - b:+.1f}" for a, b in zip(rotation, weights, strict=True)) == places
        assert places in text
    within = {
        "within two standard errors of the paper at {} of nine points (6 runs)": ("Rzg_pz L20, init random",),
        "(angles in radians, 6 runs) is within two standard errors of it at {} of nine points": ("Rzg_mi L20",),
        "by degrees (3 runs; nothing is claimed) at {}": ("Rzg_mi L20, copies degrees",),
        "is within at all {} points with either kind": ("Rzg_trace L20", "Rzg_trace L20, copies degrees"),
    }
    for sentence, names in within.items():
        for name in names:
            count = sum(point.within for point in from_paper(name, "MNIST_ir100_ablation").values())
            assert sentence.format({2: "two", 8: "eight", 9: "nine"}[count]) in text
    biased, balanced = (figures()[name].lines[0][0] for name in ("MNIST_ir100", "MNIST_ir1"))
    assert f"at ir=100: {biased:.1f} %, in the paper 92.5 %; at ir=1 {balanced:.1f} % in both" in text


def test_what_is_claimed_in_the_report():
    steps = ("Rzg_pz L80", "Rzg_pz L20"), ("Rzg_pz L20", "Rz L20"), ("Rzg_true L20", "Rzg_pz L20")
    at = (1, 2, 4, 9)
    assert all(is_ahead(paired(*pair, b)) for pair in steps for b in at)
    for other in ("Rzg_pred L20", "Rzg_trace L20", "Rzg_mi L20"):
        assert not any(is_ahead(paired("Rzg_pz L20", other, b)) for b in at)
    balanced = {
        name: [b for b in at if is_ahead(paired("Rzg_pz L80, ir 1", f"{name}, ir 1", b))]
        for name in ("random", "Rz L20", "Rzg_pred L20", "Rzg_pz L20", "Rzg_true L20")
    }
    assert balanced.pop("Rzg_true L20") == [4, 9]
    assert all(each == list(at) for each in balanced.values())


def test_processing():
    """Claim 5."""
    ours, single, four = ([r for r in by_trial()[trial(n)] if r["b"]] for n in ("Rzg_pz L80", "varR", "varR E4"))
    passes = [sum(records[0]["passes"].values()) for records in (single, ours)]
    times = [acquisition_seconds(records) / acquisition_seconds(ours) for records in (four, single)]
    quoted = (
        f"1/{passes[0] / passes[1]:.0f} of the passes; 1/{times[0]:.0f} (E=4) and 1/{times[1]:.0f} (E=1) of the time"
    )
    assert quoted in page_text(REPORT)


def test_our_loop_on_pools_of_the_release():
    text = page_text(REPORT)
    with open(ROOT / "reference" / "release_rotation_models.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(ROOT / "reference" / "release_mnist_ir100.csv", newline="") as file:
        theirs = [row for row in csv.DictReader(file) if row["series"] == "Rzg_pz_L20"]
    release = {(row["run"], float(row["labeled_percent"])): float(row["accuracy"]) for row in theirs}
    found = {
        (row["run"], float(row["labeled_percent"])): float(row["accuracy"]) for row in rows if row["loop"] == "ours"
    }
    for row in rows:
        if row["loop"] == "release":
            assert release[row["run"], float(row["labeled_percent"])] == float(row["accuracy"])
    means = [np.mean([found[key] - release[key] for key in found if key[0] == run]) for run in ("3", "4")]
    assert f"minus that of its scripts was {means[0]:.1f} and {means[1]:.1f} points in the mean of ten shares" in text
    shares, own = (0.25, 0.5, 0.75, 1.25, 2.5), by_trial()[trial("Rzg_pz L20")]
    theirs = {share: [found[str(run), share] for run in range(3, 10)] for share in shares}
    ours = {share: [r["accuracy"] for r in own if round(r["labelled_share"], 3) == share] for share in shares}
    numbers = [[f"{np.mean(each[share]):.1f}" for share in shares] for each in (theirs, ours)]
    quoted = ["{}, {}, {}, {} and {} %".format(*each) for each in numbers]
    assert f"our loop gave {quoted[0]} at 0.25, 0.5, 0.75, 1.25 and 2.5 %, from our models {quoted[1]} (10" in text
    low, high = stats.ttest_ind(theirs[0.75], ours[0.75], equal_var=False).confidence_interval()
    assert f"{np.mean(theirs[0.75]) - np.mean(ours[0.75]):.1f} [{low:.1f}, {high:.1f}] points less (Welch" in text
    random = read_release(ROOT / "reference" / "release_mnist_ir1.csv")["random", "rotation"]
    assert random.runs.tolist() == [2, 2]
    assert "83.1 and 82.0 % at 0.25 %, 88.6 and 88.6 % at 0.5 %;" in text
    assert random.mean == pytest.approx([(83.14 + 81.99) / 2, (88.59 + 88.62) / 2])


def test_figures_in_the_text_on_rivals():
    text = page_text(RIVALS)

    first = [
        [sum(r["selected_histogram"][c] for c in MNIST.minority) for r in by_trial()[trial(name + VAL)] if not r["b"]]
        for name in ("Rzg_fl L80", "Rzg_pz L80")
    ]
    (a, b), (c, d) = ((min(each), max(each)) for each in first)
    assert f"{a} to {b} were of the rare classes (Rzg_pz: {c} to {d})" in text
    alone = curve(trial("validation, V 1000")).mean[-1]
    chosen = [
        m + v for m in ("Rzg_pz L80", "flqmi_z", "Rzg_fl L80") for v in ("", *(f", V {n}" for n in (300, 1000, 3000)))
    ]
    most = max(curve(trial(name)).mean[-1] for name in chosen)
    assert f"1,000 clean images alone gave {alone:.1f} %, 1,250 chosen labels at most {most:.1f} %" in text
    lead = quoted_form(paired("margin, ir 1", "Rzg_pz L80, ir 1", 9))
    assert f"without a validation set, {lead} points ahead of" in text
    trained, apart = (curve(trial(n)).mean[2] for n in ("entropy_det, V 100, + validation", "Rzg_pz L80, V 100"))
    assert f"chooses gave {trained:.1f} % at 375 labels, keeping them apart for Rzg_pz {apart:.1f} %" in text


def test_seconds_of_rivals():
    """The last column of the table of methods, and the sentence below it."""
    rows = re.findall(r"^\| (`.*?)(?: \(.*?)? \|.*\| ([\d.to ]+) \|$", RIVALS.read_text(), re.M)

    def seconds(key: str) -> float:
        return acquisition_seconds(by_trial()[trial(key)])

    assert len(rows) == 12
    for keys, quoted in rows:
        found = [round(seconds(key), 0 if key == "epig" else 1) for key in re.findall(r"`(\w+)`", keys)]
        assert quoted == " to ".join(
            f"{value:g}" if value > 9 else f"{value:.1f}" for value in sorted({min(found), max(found)})
        )
    assert f"`varR` takes {seconds('varR'):.0f} s and Rzg_pz {seconds('Rzg_pz L80'):.1f} s" in page_text(RIVALS)


def test_restarted_rotation_trainings():
    """Means of ten runs, of which three start from rotation models that were started again."""
    restarted = results.read_runs(ROOT / "results" / "restarted" / "MNIST", 0, None, pytest.fail).records
    quoted = []
    for length in (20, 80):
        of = trial(f"Rzg_pz L{length}")
        old = {(r["run"], r["b"]): r["accuracy"] for r in by_trial()[of]}
        new = old | {(r["run"], r["b"]): r["accuracy"] for r in restarted if Trial.of(r) == of}
        assert {run for run, b in old if new[run, b] != old[run, b]} == {0, 2, 7}
        for found in (new, old):
            means = [np.mean([found[run, b] for run in range(10)]) for b in (0, 1, 2, 4, 9)]
            quoted.append("{:.1f}, {:.1f}, {:.1f}, {:.1f} and {:.1f}".format(*means))
    text = "become {} % instead of {} at 125, 250, 375, 625 and 1,250 labels with L=20, and {} instead of {} with L=80"
    assert text.format(*quoted) in page_text(REPORT)


def test_coverage_of_intervals():
    with open(ROOT / "results" / "interval_coverage.txt", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    bca, student = ([float(row[name]) for row in rows] for name in ("BCa", "Student's t"))
    quoted = f"covered the mean in {min(bca):.0f} to {max(bca):.0f} % of samples, Student's t in {min(student):.0f} to"
    assert f"{quoted} {max(student):.0f} %" in page_text(REPORT)


@pytest.mark.parametrize("length", [20, 80])
def test_sentences_on_the_release(length):
    text, ours = page_text(REPORT), curve(trial(f"Rzg_pz L{length}"))
    release = read_release(ROOT / "reference" / "release_mnist_ir100.csv")[f"Rzg_pz_L{length}", "rotation"]
    first = [", ".join(f"{value:.1f}" for value in each.mean[:4]) for each in (ours, release)]
    fifth = [f"{each.mean[4]:.1f}" for each in (ours, release)]
    runs = release.runs[0]
    assert f"{first[0]} and {fifth[0]} % (10 runs) beside {first[1]} and {fifth[1]} % ({runs} runs)" in text
    later = release.mean[5:] - ours.mean[5:]
    quoted = f"it is {later.min():.1f} to {later.max():.1f}" if length == 80 else f"it is {later[-1]:.1f}"
    assert f"{quoted} points lower" in text


def test_sentences_on_choosing_the_epoch_by_the_validation_images():
    text, lower, above = page_text(REPORT), [], []
    for name in ("random", "varR", "Rzg_pz L80"):
        values = np.mean([paired(name, f"{name}, select val", b) for b in range(10)], axis=0)
        lower.append(f"{quoted_form(values)} ({name}, {len(values)} runs)")
        above.append(f"{np.mean([r['accuracy'] - r['accuracy_last'] for r in by_trial()[trial(name)]]):.1f}")
    assert "minus val, is {}, {} and {} points".format(*lower) in text
    assert above[1] == above[2]
    assert f"above the last by {above[1]} points on average for varR and Rzg_pz L80 and by {above[0]} for" in text


if __name__ == "__main__":
    for (path, name), text in BLOCKS.items():
        before, rest = path.read_text().split(f"<!-- {name} -->\n\n")
        path.write_text(f"{before}<!-- {name} -->\n\n{text()}\n\n{rest[rest.index('<!-- end -->') :]}")
