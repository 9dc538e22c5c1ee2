"""Scores, EPIG, GALAXY, TypiClust and GLISTER on random clustered images: seconds and memory, beside plain loops.

    python3 bench/bench_rivals_other.py             # MNIST's size: 25,851 images, n=125, K=128, T=1,000; a minute
    python3 bench/bench_rivals_other.py --svhn      # all but EPIG: 500,000 x 512, n=1,250, 12,500 labelled
    python3 bench/bench_rivals_other.py --methods galaxy
    python3 bench/bench_rivals_other.py --quick     # small sizes: a quick check of this script

The references follow the authors' formulations: EPIG as the divergence of every pair of images, GALAXY by a walk along
the whole path for every query, TypiClust by all distances within a cluster, GLISTER by the gradients of all images.
They score some images or make some of the choices; their seconds are extrapolated in proportion. "equal" counts their
choices (scores, to 1e-12) that agree with ours for the same images. Memory is what a method takes in addition to its
inputs.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from alfk.cli.options import Parser
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.networks.outputs import Outputs
from alfk.rivals import scores
from alfk.rivals.epig import epig
from alfk.rivals.galaxy import galaxy
from alfk.rivals.glister import RATE, glister
from alfk.rivals.gradients import gradients
from alfk.rivals.typiclust import k_means, typiclust
from alfk.support.seeding import generator
from bench.common import guarded, machine

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Size:
    """Pool images, labelled ones among them, length of the features, query size, samples and target images of EPIG,
    validation images of GLISTER.
    """

    pool: int
    labelled: int
    length: int
    n: int
    samples: int = 128
    targets: int = 1_000
    validation: int = 10_000


SIZES = {"MNIST": Size(25_851, 375, 50, 125), "SVHN": Size(500_000, 12_500, 512, 1_250, validation=104_388)}
QUICK = Size(2_000, 100, 20, 30, samples=8, targets=50, validation=500)
CLASSES = 10
FEW = 10  # choices, or images, of the references


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features (N, D), logits (N, C), labels (N,), available (N,) bool, n; and EPIG's sizes."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    available: Tensor
    size: Size


def draw_problem(size: Size) -> Problem:
    """Features max(0, x) of Gaussian clusters, ten a class, and logits of a linear layer that is right for many."""
    source = generator(0, "bench_rivals_other")
    centres = torch.randn(10 * CLASSES, size.length, generator=source)
    cluster = torch.randint(len(centres), (size.pool,), generator=source)
    features = torch.randn(size.pool, size.length, generator=source).mul_(0.5).add_(centres[cluster]).relu_()
    means = torch.stack([centres[c::CLASSES].relu().mean(0) for c in range(CLASSES)])
    logits = (features - features[:1000].mean(0)) @ (means - means.mean(0)).T
    available = torch.ones(size.pool, dtype=torch.bool)
    available[torch.randperm(size.pool, generator=source)[: size.labelled]] = False
    return Problem(features, 3 * logits / logits[:1000].std(), cluster % CLASSES, available, size)


Row = tuple[float, int, float, str]  # seconds and MiB of ours, seconds of the reference, equal results


def measured(function: Callable[[], Tensor]) -> tuple[Tensor, float, int]:
    """The result of a function, its seconds, and the growth of the peak memory in MiB."""
    reset_peak(CPU)
    before, start = peak_mib(CPU), time.perf_counter()
    result = function()
    return result, time.perf_counter() - start, peak_mib(CPU) - before


def agreement(found: Tensor, wanted: Tensor) -> str:
    return f"{int((found == wanted).sum())}/{len(wanted)}"


def compare_scores(problem: Problem) -> Row:
    """All three scores, against numpy in float64 on the whole matrix."""

    def ours() -> Tensor:
        return torch.stack([f(problem.logits) for f in (scores.margin, scores.least_confidence, scores.entropy)])

    def plain() -> Tensor:
        p = problem.logits.double().softmax(1).numpy()
        top = np.sort(p, axis=1)
        return torch.from_numpy(np.stack([top[:, -2] - top[:, -1], -top[:, -1], -(p * np.log(p)).sum(1)]))

    found, seconds, memory = measured(ours)
    wanted, reference, _ = measured(plain)
    return seconds, memory, reference, agreement(((found - wanted).abs() < 1e-12).all(0), torch.ones(len(found.T)))


def compare_epig(problem: Problem) -> Row:
    """K samples of every image, logits with noise; the reference scores a few images."""
    size, source = problem.size, generator(0, "samples")

    def sampled(logits: Tensor) -> Tensor:
        return logits.unsqueeze(1) + torch.randn(len(logits), size.samples, CLASSES, generator=source)

    pool, targets = sampled(problem.logits), sampled(problem.logits[: size.targets])

    def plain() -> Tensor:
        p, q = (x.double().softmax(2) for x in (pool[:FEW], targets))
        joint = sum(p[:, None, k, :, None] * q[None, :, k, None, :] for k in range(size.samples)) / size.samples
        product = p.mean(1)[:, None, :, None] * q.mean(1)[None, :, None, :]
        return (joint * (joint / product).log()).sum((2, 3)).mean(1)

    found, seconds, memory = measured(lambda: epig(pool, targets))
    wanted, reference, _ = measured(plain)
    equal = agreement((found[:FEW] - wanted).abs() < 1e-12, torch.ones(FEW))
    return seconds, memory, reference * len(pool) / FEW, equal


def compare_galaxy(problem: Problem) -> Row:
    """The reference walks along the path of a class for each of its first queries."""
    labels, available, n = problem.labels, problem.available, problem.size.n
    p = problem.logits.double().softmax(1)

    def ask(n: int) -> Tensor:
        return galaxy(p, available, labels[~available], n, lambda i: int(labels[i]), generator(0))[0]

    def plain() -> Tensor:
        known, asked, paths = (~available).numpy(), [], sorted_paths(p.numpy())
        for c, path in enumerate(paths[:FEW]):
            asked.append(walk(path.tolist(), known, (labels == c).numpy()))
            known[asked[-1]] = True
        return torch.tensor(asked)

    found, seconds, memory = measured(lambda: ask(n))
    _, sorting, _ = measured(lambda: sorted_paths(p.numpy()))
    wanted, reference, _ = measured(plain)
    return seconds, memory, sorting + (reference - sorting) * n / FEW, agreement(found[:FEW], wanted)


def sorted_paths(p: np.ndarray) -> list[np.ndarray]:
    largest = p.max(1)
    return [(p[:, c] - largest + 1e-8 * largest).argsort(kind="stable") for c in range(CLASSES)]


def walk(path: list[int], known: np.ndarray, positive: np.ndarray) -> int:
    """The middle of the shortest run of unlabelled images between known ones of opposite sign, image by image."""
    best, last = (len(path), len(path)), None
    for rank, image in enumerate(path):
        if not known[image]:
            continue
        if last is not None and positive[image] != positive[path[last]] and rank - last > 1:
            steps = 1 + (rank - last - 1) // 2
            best = min(best, (rank - last, path[last + steps if positive[image] else rank - steps]))
        last = rank
    return best[1]


def compare_typiclust(problem: Problem) -> Row:
    """k-means is scikit-learn's in both; the reference then repeats some turns, with the matrix of all distances.

    Its seconds are extrapolated in proportion to the sizes of these matrices.
    """
    features, available, size = problem.features, problem.available, problem.size
    rows = features / features.norm(dim=1, keepdim=True)
    k_means(rows[:10], 2, generator(0))  # imports scikit-learn
    found, seconds, memory = measured(lambda: typiclust(features, available, size.n, generator(0)))
    clusters, clustering, _ = measured(lambda: k_means(rows, min(500, size.labelled + size.n), generator(0)))
    count, labelled = torch.bincount(clusters), torch.bincount(clusters[~available], minlength=int(clusters.max()) + 1)
    order = sorted(range(len(count)), key=lambda c: (int(labelled[c]), -int(count[c])))
    order = [c for c in order if count[c] > 5]
    distances = [int(count[order[i % len(order)]]) ** 2 for i in range(size.n)]
    turns = torch.linspace(0, min(size.n, len(order)) - 1, FEW).long().tolist()  # of the first round

    def plain() -> Tensor:
        chosen = []
        for turn in turns:
            images = ((clusters == order[turn]) & available).nonzero().flatten()
            squares = torch.cdist(rows[images], rows[images]).square()
            k = min(20, len(images) // 2)
            chosen.append(int(images[squares.sort(1).values[:, 1 : k + 1].mean(1).argmin()]))
        return torch.tensor(chosen)

    wanted, reference, _ = measured(plain)
    reference *= sum(distances) / sum(distances[turn] for turn in turns)
    return seconds, memory, clustering + reference, agreement(found[turns], wanted)


def compare_glister(problem: Problem) -> Row:
    """The first images of the pool are the validation images; the reference makes a few choices."""
    size, available, labels = problem.size, problem.available, problem.labels
    pool = Outputs(problem.features, problem.logits)
    validation = Outputs(problem.features[: size.validation], problem.logits[: size.validation])
    truth = labels[: size.validation]

    def outer(logits: Tensor, features: Tensor, of: Tensor | None = None) -> Tensor:
        """g of every image: (N, C, 1 + D)."""
        return gradients(logits, of)[:, :, None] * torch.cat([torch.ones(len(features), 1), features], 1)[:, None]

    def parts(*tensors: Tensor) -> Iterator[Tensor]:
        """`outer` of 1,000 images at a time."""
        return (outer(*rows) for rows in zip(*(x.split(1000) for x in tensors), strict=True))

    def plain() -> Tensor:
        left, chosen, logits = available.clone(), [], validation.logits.double()
        step = sum(g.sum(0) for g in parts(pool.logits[~left], pool.features[~left], labels[~left]))
        for _ in range(FEW):
            logits -= RATE * (validation.features @ step[:, 1:].T + step[:, 0])
            mean = sum(g.sum(0) for g in parts(logits, validation.features, truth)) / len(logits)
            gains = torch.cat([g.flatten(1) @ mean.flatten() for g in parts(pool.logits, pool.features)])
            chosen.append(int(gains.masked_fill(~left, -torch.inf).argmax()))
            left[chosen[-1]] = False
            step = outer(pool.logits[chosen[-1:]], pool.features[chosen[-1:]])[0]
        return torch.tensor(chosen)

    found, seconds, memory = measured(
        lambda: glister(pool, validation, truth, available, labels[~available], size.n)[0]
    )
    wanted, reference, _ = measured(plain)
    return seconds, memory, reference * size.n / FEW, agreement(found[:FEW], wanted)


METHODS = {
    "scores": compare_scores,
    "epig": compare_epig,
    "galaxy": compare_galaxy,
    "typiclust": compare_typiclust,
    "glister": compare_glister,
}


def main() -> int:
    options = parse()
    print(machine(CPU), flush=True)
    size = QUICK if options.quick else SIZES["SVHN" if options.svhn else "MNIST"]
    print(size, flush=True)
    problem, rows = draw_problem(size), []
    for name in options.methods or [name for name in METHODS if name != "epig" or not options.svhn]:
        seconds, memory, reference, equal = METHODS[name](problem)
        rows.append([name, f"{seconds:.2f}", f"{memory:,}", f"{reference:.1f}", f"{reference / seconds:.1f}", equal])
    print(tabulate(rows, headers=["method", "seconds", "MiB", "plain s", "ratio", "equal"], disable_numparse=True))
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, metavar="KEY", help=f"{', '.join(METHODS)} (all; --svhn: not epig)")
    add("--svhn", action="store_true", help="SVHN's size")
    add("--quick", action="store_true", help="small sizes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guarded(main))
