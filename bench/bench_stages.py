"""Stages of the method against examples/paper.py and plain PyTorch, on the CPU: seconds, peak memory, equal results.

    python3 bench/bench_stages.py            # two minutes on 2 CPU cores, 2 GB of memory
    python3 bench/bench_stages.py --quick    # small sizes: a quick check of this script

Both implementations get the same random vectors or images and the same number of threads, and each runs in a process of
its own, because peak memory is measured per process. Seconds are the fastest of --repeats.
"""

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader

from alfk.cli.options import Parser, positive
from alfk.data.split import Split
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.experiment.training import Evaluator
from alfk.method.matching import k_centre, top_matches
from bench.bench_iteration import PilImages
from bench.common import fastest, guarded, machine
from examples import paper
from mnist.config import MNIST
from mnist.custom_models.lenet import LeNet

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage at some size.

    Attributes:
        draw: the inputs, from torch's global generator.
        ours, plain: inputs -> result, a tensor of integers.
        size: in words.
    """

    draw: Callable[[], tuple]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    size: str


def evaluation(images: int) -> Stage:
    """Predictions of a LeNet; plain: PIL images, transformed one by one by a DataLoader."""

    def draw() -> tuple[LeNet, Split]:
        pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8)
        model = LeNet().to(memory_format=torch.channels_last)
        return model, Split(pixels, torch.randint(10, (images,)), MNIST.mean, MNIST.std)

    @torch.no_grad()
    def plain(model: LeNet, split: Split) -> Tensor:
        loader = DataLoader(PilImages(split), 1000)
        return torch.cat([model.eval()(batch)[0].argmax(1) for batch, _ in loader])

    def ours(model: LeNet, split: Split) -> Tensor:
        return Evaluator(split, MNIST.descriptor_batch)(model).predictions[:, 0]

    return Stage(draw, ours, plain, f"{images:,} images")


def centres(n: int, errors: int, length: int) -> Stage:
    """Greedy k-centre; plain: the whole matrix of similarities, and all those to the centres so far in every step."""
    return Stage(
        lambda: (random_rows(errors, length),),
        lambda rows: k_centre(rows, n, 0),
        lambda rows: torch.tensor(paper.k_centre(rows @ rows.T, n, 0)),
        f"{n:,} of {errors:,} x {length}",
    )


def matches(queries: int, database: int, length: int, k: int, batch: int) -> Stage:
    """The k most similar rows for `batch` queries at a time; plain: the whole matrix of similarities."""

    def ours(rows: Tensor, others: Tensor) -> Tensor:
        return torch.cat([top_matches(part, others, k)[1] for part in rows.split(batch)])

    return Stage(
        lambda: (random_rows(queries, length), random_rows(database, length)),
        ours,
        lambda rows, others: (rows @ others.T).topk(k, dim=1).indices,
        f"{queries:,} x {database:,} x {length}, k={k}",
    )


def random_rows(count: int, length: int) -> Tensor:
    return paper.standardise(torch.randn(count, length))


# The vectors to match are [z, g] of L=80; the search for a pseudo-label compares z alone, a batch of images at a time.
FULL = {
    "evaluation": evaluation(10_000),
    "greedy k-centre": centres(1250, 10_000, 160),
    "top-k matching": matches(1250, 100_000, 160, 32, 1250),
    "nearest validation image": matches(25_851, 10_000, 80, 1, MNIST.descriptor_batch),
}
QUICK = {
    "evaluation": evaluation(500),
    "greedy k-centre": centres(60, 1000, 64),
    "top-k matching": matches(100, 10_000, 160, 32, 100),
    "nearest validation image": matches(1000, 1000, 80, 1, MNIST.descriptor_batch),
}


def main() -> int:
    options = parse()
    print(machine(CPU), flush=True)
    rows = []
    for name, stage in (QUICK if options.quick else FULL).items():
        found = []
        for side in ("ours", "plain"):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found.append(fresh.submit(measure, options.quick, name, side, options.repeats).result())
        (seconds, memory, result), (plain_seconds, plain_memory, wanted) = found
        numbers = [f"{seconds:.3f}", f"{plain_seconds:.3f}", f"{plain_seconds / seconds:.1f}", memory, plain_memory]
        rows.append([name, stage.size, *numbers, f"{int((result == wanted).sum()):,}/{wanted.numel():,}"])
        print(f"{name}: {seconds:.3f} s", file=sys.stderr, flush=True)
    headers = ["stage", "size", "seconds", "plain s", "ratio", "MiB", "plain MiB", "equal"]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=positive, default=3, help="number of repetitions, of which the fastest is reported (3)")
    add("--quick", action="store_true", help="small sizes")
    return parser.parse_args()


def measure(quick: bool, name: str, side: str, repeats: int) -> tuple[float, int, Tensor]:
    """Seconds, growth of the peak memory in MiB and result of one implementation, in a fresh process."""
    torch.manual_seed(0)
    small, stage = QUICK[name], (QUICK if quick else FULL)[name]
    getattr(small, side)(*small.draw())  # starts threads, whose memory is not counted
    torch.manual_seed(0)
    inputs = stage.draw()
    reset_peak(CPU)
    before = peak_mib(CPU)
    seconds, result = fastest(repeats, lambda: getattr(stage, side)(*inputs))
    return seconds, peak_mib(CPU) - before, result


if __name__ == "__main__":
    sys.exit(guarded(main))
