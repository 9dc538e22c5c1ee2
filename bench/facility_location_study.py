"""Variants of Rzg_fl, facility location on the paper's kernel (alfk/rivals/facility_location.py), on two small beds.

    python3 bench/facility_location_study.py DIGITS --runs 10
    python3 bench/facility_location_study.py SILHOUETTES --runs 6 --variants base "same label" Rzg_pz
    python3 bench/facility_location_study.py DIGITS --table                  # what the results file has

Each variant differs from Rzg_fl in what its line in VARIANTS says. Runs start from the rotation model, L=80. On
SILHOUETTES the test images are not used: 100 training images of each class take their place. A run and variant gives
one line of --results: bed, variant, run, test accuracy in percent after every AL iteration. What has a line is not run
again. Methods of the registry may stand among --variants under their keys; "@100" after a name means a validation set
of 100 images.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from alfk.cli.options import ROOT
from alfk.data.bias import split_validation
from alfk.data.split import Split
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder
from alfk.experiment.loop import active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace
from alfk.method.acquisition import as_tensor
from alfk.method.matching import draw, load_rows, match
from alfk.method.registry import METHODS, Method, Situation, register
from alfk.method.selection import Selection, top_scoring
from alfk.rivals.flqmi import class_weights
from alfk.rivals.scores import entropy, margin
from alfk.support.seeding import generator
from bench.common import guarded
from mnist.config import DIGITS, SILHOUETTES

HELD_OUT = 100  # training images of each class of SILHOUETTES in place of the test images


@dataclasses.dataclass(frozen=True)
class Variant:
    """Facility location with s = similarity(cos), cos the cosine of the parts of two descriptors.

    Attributes:
        similarity: a key of SIMILARITIES.
        part: of the descriptors: "zg", "z", "g"; "X2", "X4" for z and g of one scale; "equal" for the mean of
            the cosines of z and g of each scale.
        eta, renew: see `facility_location`.
        weights: of the queries: "one"; "class", inverse to the number of errors of the class; "loss", cross-entropy;
            all of mean 1.
        queries: "errors"; "doubts", errors and the correct images whose margin is below the errors' median, with weight
            1 - margin; "all" validation images, with weight 1 - p_y; "all by margin", with 1 - p_y + p_c, c the
            likeliest class but y.
        covered: how much of its similarity each labelled pool image ("all"), or each that is predicted correctly
            ("right"), covers of the queries before the first choice.
        doubt: what s_ij is multiplied by: None, 1 - "margin" of pool image j, or 1 - p_s, s its pseudo-"label".
        same: what of pool image and query has to be equal for s_ij not to be 0: None; "label", the pseudo-label and the
            label; "error", the predictions too.
        other: what chooses the second half of a query: None, the paper's "walk", "entropy".
        enough: errors per image of the query from which on the second half is chosen as the first.
    """

    similarity: str = "half"
    part: str = "zg"
    eta: float = 1.0
    renew: float | None = 0.1
    weights: str = "one"
    queries: str = "errors"
    covered: tuple[str, float] | None = None
    doubt: str | None = None
    same: str | None = None
    other: str | None = None
    enough: float = np.inf


SIMILARITIES = {
    "half": lambda cos: (1 + cos) / 2,
    "square": lambda cos: ((1 + cos) / 2) ** 2,
    "fourth": lambda cos: ((1 + cos) / 2) ** 4,
    "cosine": lambda cos: cos.clamp(min=0),
    "cosine2": lambda cos: cos.clamp(min=0) ** 2,
}

SCALES = [list(range(start, stop)) for start, stop in ((0, 10), (10, 30), (30, 80))]  # X1, X2, X4
PARTS = {  # columns of a descriptor [z, g] of LeNet, 80 each
    "zg": [list(range(160))],
    "z": [list(range(80))],
    "g": [list(range(80, 160))],
    "X2": [[*range(10, 30), *range(90, 110)]],
    "X4": [[*range(30, 80), *range(110, 160)]],
    "equal": [*SCALES, *([80 + column for column in scale] for scale in SCALES)],
}

VARIANTS = {
    "base": Variant(),
    "eta 0": Variant(eta=0),
    "eta 0.3": Variant(eta=0.3),
    "eta 3": Variant(eta=3),
    "by class": Variant(weights="class"),
    "by loss": Variant(weights="loss"),
    "square": Variant("square"),
    "fourth": Variant("fourth"),
    "cosine": Variant("cosine"),
    "cosine2": Variant("cosine2"),
    "z": Variant(part="z"),
    "g": Variant(part="g"),
    "X2": Variant(part="X2"),
    "X4": Variant(part="X4"),
    "equal scales": Variant(part="equal"),
    "one round": Variant(renew=None),
    "renew 0.3": Variant(renew=0.3),
    "renew 1": Variant(renew=1.0),
    "right cover 1": Variant(covered=("right", 1.0)),
    "right cover 0.7": Variant(covered=("right", 0.7)),
    "labelled cover 0.7": Variant(covered=("all", 0.7)),
    "half walk": Variant(other="walk"),
    "half entropy": Variant(other="entropy"),
    "late walk": Variant(other="walk", enough=7),
    "late entropy": Variant(other="entropy", enough=7),
    "doubts": Variant(queries="doubts"),
    "all by 1 - p": Variant(queries="all"),
    "all by margin": Variant(queries="all by margin"),
    "unsure by margin": Variant(doubt="margin"),
    "unsure by label": Variant(doubt="label"),
    "unsure, all": Variant(doubt="label", queries="all"),
    "same label": Variant(same="label"),
    "same error": Variant(same="error"),
    "same label, unsure": Variant(same="label", doubt="margin"),
    "doubts by class": Variant(queries="doubts", weights="class"),
    "doubts by loss": Variant(queries="doubts", weights="loss"),
    "doubts, unsure": Variant(queries="doubts", doubt="margin"),
    "by class, unsure": Variant(weights="class", doubt="margin"),
}


# The variants as methods


def choose(situation: Situation, variant: Variant) -> Selection:
    """The query of a variant; at random if there is no error."""
    measurement, labels = situation.measurement, situation.validation_labels.cpu()
    logits = measurement.validation_outputs.logits.double()
    wrong = logits.argmax(1) != labels
    if not wrong.any():
        return Selection(draw(situation.available, situation.n, situation.generator), 0, at_random=situation.n)
    rows, weights = queries_of(variant, logits, labels, wrong)
    pool, validation = (
        load_rows(d.vectors, slice(None), labels.device) for d in (measurement.pool, measurement.validation)
    )
    similarity = SIMILARITIES[variant.similarity](cosine(variant.part, pool, validation[rows]))
    if variant.doubt:
        similarity = similarity * doubt(variant.doubt, situation)[:, None]
    if variant.same:
        similarity *= agreement(variant.same, situation, labels[rows], logits[rows].argmax(1))
    halved = variant.other is not None and int(wrong.sum()) < variant.enough * situation.n
    n = -(-situation.n // 2) if halved else situation.n
    chosen = greedy(
        similarity, situation.available, n, weights, variant, covered_before(situation, variant, similarity)
    )
    if halved:
        left = situation.available.clone()
        left[chosen] = False
        rest = situation.n - n
        if variant.other == "walk":
            more = match(validation[wrong], pool, left, rest, situation.generator).indices
        else:
            more = top_scoring(entropy(measurement.pool_outputs.logits), left, rest, situation.generator)
        chosen = torch.cat([chosen, more])
    return Selection(chosen, misclassified=int(wrong.sum()))


def queries_of(variant: Variant, logits: Tensor, labels: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (Q,) in the validation set and weights (Q,) float32."""
    if variant.queries.startswith("all"):
        p, of_label = logits.softmax(1), labels[:, None]
        other = p.scatter(1, of_label, 0).amax(1) if variant.queries == "all by margin" else 0
        return torch.arange(len(labels)), (1 - p.gather(1, of_label)[:, 0] + other).clamp(min=0).float()
    weights = torch.ones(int(wrong.sum()))
    if variant.weights == "class":
        weights = class_weights(labels[wrong])
    if variant.weights == "loss":
        weights = torch.nn.functional.cross_entropy(logits[wrong], labels[wrong], reduction="none").float()
        weights /= weights.mean()
    if variant.queries == "errors":
        return wrong.nonzero().flatten(), weights
    lead = -margin(logits)
    weighted = (1 - lead).float()
    weighted[wrong] = weights
    rows = (wrong | (lead < lead[wrong].median())).nonzero().flatten()
    return rows, weighted[rows]


def doubt(kind: str, situation: Situation) -> Tensor:
    """(N,) float32: 1 - the lead of the likeliest class over the second, or 1 - the probability of the pseudo-label."""
    logits = situation.measurement.pool_outputs.logits
    if kind == "margin":
        return (1 + margin(logits)).float()
    labels = as_tensor(situation.measurement.pool.pseudo_labels)
    return (1 - logits.double().softmax(1).gather(1, labels[:, None])[:, 0]).float()


def agreement(what: str, situation: Situation, labels: Tensor, predictions: Tensor) -> Tensor:
    """(N, Q) bool: whether pseudo-labels, and for "error" predictions, of pool images are those of queries (Q,)."""
    pool = situation.measurement.pool
    same = as_tensor(pool.pseudo_labels)[:, None] == labels
    return same & (as_tensor(pool.predictions)[:, None] == predictions) if what == "error" else same


def cosine(part: str, pool: Tensor, queries: Tensor) -> Tensor:
    """(N, Q) cosines of a part (see PARTS) of the rows (N, 160) and (Q, 160); their mean if there are several."""
    found = 0
    for columns in PARTS[part]:
        left, right = (torch.nn.functional.normalize(rows[:, columns], dim=1) for rows in (pool, queries))
        found += left @ right.T / len(PARTS[part])
    return found


def covered_before(situation: Situation, variant: Variant, similarity: Tensor) -> Tensor:
    """(Q,) best_i at the start of every round."""
    labelled = (~situation.available).nonzero().flatten()
    if variant.covered is None or not len(labelled):
        return torch.zeros(similarity.shape[1])
    which, factor = variant.covered
    if which == "right":
        predictions = as_tensor(situation.measurement.pool.predictions, labelled)
        labelled = labelled[predictions == situation.annotate(labelled).cpu()]
    return factor * similarity[labelled].amax(0) if len(labelled) else torch.zeros(similarity.shape[1])


def greedy(s: Tensor, available: Tensor, n: int, weights: Tensor, variant: Variant, start: Tensor) -> Tensor:
    """The n available images of the largest gains, by definition: (n,) int64.

    Args:
        s: (N, Q) similarities.
        start: (Q,) best in the beginning of a round.
    """
    relevance, best, fresh, chosen = variant.eta * s.amax(1), start, True, []
    left = available.clone()
    while len(chosen) < n:
        coverage = (s - best).relu_() @ weights
        coverage[~left] = -torch.inf
        if variant.renew is not None and not fresh and coverage.max() < variant.renew:
            best, fresh = start, True
            continue
        image = int((coverage + relevance).argmax())
        chosen.append(image)
        left[image], fresh = False, False
        best = best.maximum(s[image])
    return torch.tensor(chosen)


INPUTS = frozenset({"scores", "outputs", "validation_outputs"})


def method_of(name: str) -> str:
    """The key of a variant, registered as a method, or of a method of the registry."""
    if name not in VARIANTS:
        return name
    key = f"study_{name.replace(' ', '_')}"
    if key not in METHODS:
        register(Method(key, name, functools.partial(choose, variant=VARIANTS[name]), INPUTS, False, "pz", "true"))
    return key


# Beds


def held_out(folder: Path) -> tuple[Split, Split]:
    """SILHOUETTES' training images without 100 of each class, and these; the test images are left alone."""
    train, _ = SILHOUETTES.load(folder)
    draws = generator(0, "facility location", "held out")
    test, rest = split_validation(train.labels, (HELD_OUT,) * SILHOUETTES.classes, draws)
    return train.subset(rest), train.subset(test)


BEDS = {
    "DIGITS": DIGITS,
    "SILHOUETTES": dataclasses.replace(SILHOUETTES, name="SILHOUETTES_held_out", load=held_out, train_images=None),
}


def accuracies(bed: str, name: str, number: int, images: tuple[Split, Split], root: Path) -> list[float]:
    """The test accuracies of one run of a variant."""
    experiment: Experiment = BEDS[bed]
    variant, _, size = name.partition("@")
    folder = RunFolder(root / experiment.name, number)
    folder.create()
    work = Workspace(experiment, folder, *images, seed=0, device=torch.device("cpu"))
    make_initial_models(work, experiment.default_ir, 0.0)
    key = method_of(variant)
    length = 80 if METHODS[key].needs_descriptors else 0
    trial = Trial(experiment.default_ir, key, length, validation_size=int(size) if size else None)
    active_learning(work, [trial])
    found = [record for record in folder.results() if trial.describes(record)]
    return [record["accuracy"] for record in sorted(found, key=lambda record: record["b"])]


# Results


def read(path: Path) -> dict[tuple[str, str, int], list[float]]:
    """The lines of a results file: (bed, variant, run) -> accuracies."""
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return {(bed, name, int(run)): [float(value) for value in values] for bed, name, run, *values in rows}


def table(found: dict[tuple[str, str, int], list[float]], bed: str) -> str:
    """For every variant: runs, mean accuracy after every iteration, and the paired difference to "base".

    The difference is given with its 95 % interval over runs (Student's t) for the first iteration, the mean of the
    first half, the mean of the second half, and the last one.
    """
    from scipy.stats import t  # slow to import

    names = dict.fromkeys(name for other, name, _ in found if other == bed)
    lines = []
    for name in names:
        runs = {run: np.array(values) for (b, n, run), values in found.items() if (b, n) == (bed, name)}
        size = name.partition("@")[2]
        base = {
            run: np.array(v)
            for (b, n, run), v in found.items()
            if b == bed and n == (f"base@{size}" if size else "base")
        }
        both = sorted(runs.keys() & base.keys())
        means = " ".join(f"{value:5.1f}" for value in np.mean(list(runs.values()), 0))
        text = ""
        if len(both) > 1 and not name.startswith("base"):
            differences = np.array([runs[run] - base[run] for run in both])
            half = differences.shape[1] // 2
            columns = (
                differences[:, 0],
                differences[:, :half].mean(1),
                differences[:, half:].mean(1),
                differences[:, -1],
            )
            quantile = t.ppf(0.975, len(both) - 1) / len(both) ** 0.5
            text = "  ".join(
                f"{c.mean():+5.1f} ± {quantile * c.std(ddof=1):4.1f}" for c in (*columns, differences.mean(1))
            )
        lines.append(f"{name:20s} {len(runs):2d}  {means}   {text}")
    return "\n".join([f"{bed}: runs, means; difference to base: first, first half, second half, last, all", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=BEDS)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, "Rzg_pz", "flqmi_z", "random"])
    parser.add_argument("--start", type=int, default=0, help="first run (0)")
    parser.add_argument("--runs", type=int, default=10, help="run before which to stop (10)")
    parser.add_argument("--datadir", type=Path, default=ROOT / "local_data")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "facility_location_study.txt")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        experiment = BEDS[options.bed]
        images = experiment.load(options.datadir / options.bed)
        for number in range(options.start, options.runs):
            for name in options.variants:
                if (options.bed, name, number) in read(options.results):
                    continue
                values = accuracies(options.bed, name, number, images, options.datadir / "facility_location_study")
                with options.results.open("a") as file:
                    print(options.bed, name, number, *(f"{value:.2f}" for value in values), sep="\t", file=file)
    print(table(read(options.results), options.bed))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
