"""Methods of other papers on random clustered features: seconds and peak memory, beside a plain reference.

    python3 bench/bench_rivals.py                    # MNIST's size: 25,851 x 50, n=125, 4,000 queries; half a minute
    python3 bench/bench_rivals.py --svhn             # 500,000 x 512, n=1,250, 12,500 labelled, 10,000 queries
    python3 bench/bench_rivals.py --imagenet --part 10 --methods badge    # a tenth of 1,281,167 x 512, n=64,000
    python3 bench/bench_rivals.py --quick            # small sizes: a quick check of this script

The references follow the definitions step by step: the whole matrix of distances or similarities, all distances or
gains in every step. They choose a few images, and for SVHN those with a matrix from a part of the pool. Their seconds
are extrapolated from the median of a step, in proportion to the pool. "equal" counts their choices that agree with
those of ours for the same pool and draws. "processor" are ours, of all threads together, which other programs disturb
less. Memory is what a method takes in addition to its inputs.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tabulate import tabulate
from torch import Tensor

from alfk.cli.options import Parser, device_of, positive
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.rivals.badge import badge
from alfk.rivals.coreset import coreset
from alfk.rivals.facility_location import Factors, facility_location
from alfk.rivals.gradients import gradients
from alfk.support.seeding import generator
from bench.common import guarded, machine


@dataclasses.dataclass(frozen=True)
class Size:
    """Pool images, labelled ones among them, length of the features, classes, query size, misclassified images; and
    the part of the pool for references that hold a matrix.
    """

    pool: int
    labelled: int
    length: int
    classes: int
    n: int
    queries: int
    part: float = 1.0

    def divided(self, by: int) -> "Size":
        """With a share of the images and of the query size."""
        names = "pool", "labelled", "n", "queries"
        return dataclasses.replace(self, **{name: max(1, getattr(self, name) // by) for name in names})


SIZES = {
    "MNIST": Size(25_851, 1_250, 50, 10, 125, 4_000),
    "SVHN": Size(500_000, 12_500, 512, 10, 1_250, 10_000, part=0.02),
    "ImageNet": Size(1_281_167, 64_000, 512, 1_000, 64_000, 10_000, part=0.02),
    "quick": Size(2_000, 100, 20, 10, 30, 200),
}
HEADERS = ["method", "seconds", "processor", "MiB", "plain s", "ratio", "equal"]
FEW = 8  # choices of the references


@dataclasses.dataclass(frozen=True)
class Problem:
    """The inputs of an acquisition. `queries` are misclassified validation images.

    Attributes:
        features: (N, D).
        a: (N, C) for the predicted classes.
        available: (N,) bool.
        queries: z (Q, D) and a (Q, C) for the true classes.
        n: query size.
    """

    features: Tensor
    a: Tensor
    available: Tensor
    queries: Factors
    n: int

    @property
    def pool(self) -> Factors:
        return Factors(self.features, self.a)

    def part(self, part: float) -> "Problem":
        """All labelled images and queries, and a part of the available images."""
        available = self.available.nonzero().flatten()
        kept = ~self.available
        kept[available[: int(part * len(available))]] = True
        features, a, available = self.features[kept], self.a[kept], self.available[kept]
        return dataclasses.replace(self, features=features, a=a, available=available)


def draw_problem(size: Size, device: torch.device) -> Problem:
    """Features max(0, x) of Gaussian clusters, ten a class, and logits of a linear layer."""
    source = generator(0, "bench_rivals")
    normal = functools.partial(torch.randn, generator=source)
    centres, head = normal(10 * size.classes, size.length), 4 * normal(size.length, size.classes) / size.length**0.5

    def images(count: int) -> tuple[Tensor, Tensor]:
        cluster = torch.randint(len(centres), (count,), generator=source)
        features = normal(count, size.length).mul_(0.5).add_(centres[cluster]).relu_()
        return features.to(device), (features @ head).to(device)

    features, logits = images(size.pool)
    available = torch.ones(size.pool, dtype=torch.bool)
    available[torch.randperm(size.pool, generator=source)[: size.labelled]] = False
    of_queries, query_logits = images(size.queries)
    other = torch.randint(1, size.classes, (size.queries,), generator=source).to(device)
    labels = (query_logits.argmax(1) + other) % size.classes
    queries = Factors(of_queries, gradients(query_logits, labels))
    return Problem(features, gradients(logits), available.to(device), queries, size.n)


def plain_coreset(problem: Problem) -> Iterator[int]:
    """The matrix of the distances from all labelled images, then the distances from each chosen one."""
    features, available = problem.features, problem.available
    distance = torch.cdist(features, features[~available]).amin(1)
    while True:
        place = int(distance.masked_fill(~available, -1).argmax())
        yield place
        distance = distance.minimum((features - features[place]).norm(dim=1))


def uniforms(n: int) -> list[float]:
    return torch.rand(n, dtype=torch.float64, generator=generator(0, "uniforms")).tolist()


def plain_badge(problem: Problem) -> Iterator[int]:
    """All distances from the last centre in every step."""
    a, z = problem.a, problem.features
    norms = a.double().square().sum(1) * z.double().square().sum(1)
    distance = torch.full_like(norms, torch.inf).masked_fill_(~problem.available, 0)
    place = int(norms.masked_fill(~problem.available, -1).argmax())
    for draw in uniforms(problem.n):
        yield place
        from_last = norms + norms[place] - 2 * ((a @ a[place]) * (z @ z[place])).double()
        distance = distance.minimum(from_last.clamp_(min=0))
        distance[place] = 0
        place = int(((distance / distance.sum()).cumsum(0) < draw).sum())


def plain_flqmi(problem: Problem) -> Iterator[int]:
    """The matrix of all similarities, then the gains of all images in every step."""
    query, unit = problem.queries, torch.nn.functional.normalize
    similarity = unit(with_one(problem.features)) @ unit(with_one(query.features)).T
    similarity.mul_(unit(problem.a) @ unit(query.gradients).T).add_(1).div_(2)
    best, relevance = torch.zeros_like(similarity[0]), similarity.amax(1).double()
    left = problem.available.clone()
    while True:
        gain = (similarity - best).relu_().sum(1, dtype=torch.float64) + relevance
        place = int(gain.masked_fill(~left, -torch.inf).argmax())
        yield place
        left[place] = False
        best = best.maximum(similarity[place])


def with_one(features: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(features[:, :1]), features], 1)


@dataclasses.dataclass(frozen=True)
class Method:
    """Ours, a function of a problem that returns the chosen positions; a plain reference, which yields them one by
    one; whether that holds a matrix over the pool; and ours with the reference's draws if it draws.
    """

    ours: Callable[[Problem], Tensor]
    plain: Callable[[Problem], Iterator[int]]
    has_matrix: bool
    replayed: Callable[[Problem], Tensor] | None = None


METHODS = {
    "coreset": Method(lambda p: coreset(p.features, p.available, p.n)[0], plain_coreset, True),
    "badge": Method(
        lambda p: badge(p.a, p.features, p.available, p.n, generator(0, "badge")).indices,
        plain_badge,
        False,
        lambda p: badge(p.a, p.features, p.available, p.n, None, 1, uniforms(p.n)).indices,
    ),
    "flqmi": Method(lambda p: facility_location(p.pool, p.queries, p.available, p.n).indices, plain_flqmi, True),
}


def main() -> int:
    options = parse()
    device = device_of(options)
    print(machine(device), flush=True)
    size = SIZES[options.size].divided(options.part)
    print(f"{size}", flush=True)
    problem, rows = draw_problem(size, device), []
    for name in options.methods:
        rows.append([name, *compare(METHODS[name], problem, size.part)])
        print(f"{name}: {rows[-1][1]} s", file=sys.stderr, flush=True)
    print(tabulate(rows, headers=HEADERS, disable_numparse=True))
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="KEY", help="methods (all)")
    parser.set_defaults(size="MNIST")
    add("--svhn", dest="size", action="store_const", const="SVHN", help="SVHN's size")
    add("--imagenet", dest="size", action="store_const", const="ImageNet", help="ImageNet's size")
    add("--quick", dest="size", action="store_const", const="quick", help="small sizes")
    add("--part", type=positive, default=1, metavar="F", help="divide the numbers of images by F (1)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    return parser.parse_args()


def compare(method: Method, problem: Problem, part: float) -> list[str]:
    """The columns of HEADERS but the first."""
    device = problem.features.device
    reset_peak(device)
    before = peak_mib(device)
    start, processor = time.perf_counter(), time.process_time()
    method.ours(problem)  # returns tensors on the CPU, so that a GPU is waited for
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    memory = peak_mib(device) - before
    smaller = problem.part(part) if part < 1 and method.has_matrix else problem
    expected, first, step = follow(method.plain(smaller))
    plain = (first + (problem.n - 1) * step) * len(problem.features) / len(smaller.features)
    found = (method.replayed or method.ours)(dataclasses.replace(smaller, n=FEW)).tolist()
    equal = sum(map(int.__eq__, found, expected))
    numbers = [f"{seconds:.2f}", f"{processor:.2f}", f"{memory:,}", f"{plain:.1f}", f"{plain / seconds:.1f}"]
    return [*numbers, f"{equal}/{FEW}"]


def follow(choices: Iterator[int]) -> tuple[list[int], float, float]:
    """The first choices, the seconds of the first and the median of the seconds of each further one."""
    found, seconds = [], []
    while len(found) < FEW:
        start = time.perf_counter()
        found.append(next(choices))
        seconds.append(time.perf_counter() - start)
    return found, seconds[0], statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(guarded(main))
