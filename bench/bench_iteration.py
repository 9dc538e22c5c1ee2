"""Where the time of one AL iteration goes: MNIST, ir=100, Rzg_pz L80, b=3 (375 -> 500 labels), the stages themselves.

    python3 bench/bench_iteration.py                                    # under a minute on 2 CPU cores
    python3 bench/bench_iteration.py --gpu 0
    python3 bench/bench_iteration.py --epochs 2 --warm-epochs 1         # checks that it works

The models before b=3 are made first, in a temporary folder, with few epochs: they are weaker than a real run's, so
the iteration has more misclassified images to spread over and its accuracy is no result. Nothing is kept.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.config import Experiment
from alfk.runs import Record, RunFolder, Trial
from alfk.stages import describe, pretrain, retrain
from alfk.stages.options import positive
from alfk.stages.workspace import Workspace
from bench.common import guarded, machine, mnist_on, mnist_parser
from mnist.config import MNIST

TRIAL = Trial(ir=100, method="Rzg_pz", length=80)
B = 3  # the iteration that is timed


class Clock:
    """Seconds and calls of the named parts of a computation on `device`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens inside the block to part `name`."""
        start = self._now()
        yield
        self.seconds[name] += self._now() - start
        self.calls[name] += 1

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls add to part `name`."""

        def wrapper(*args: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*args, **named)

        return wrapper

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run on after the call that starts them
        return time.perf_counter()


def main() -> int:
    options = parse()
    torch.backends.cudnn.deterministic = True  # as the scripts do
    train, test = mnist_on(options)
    device = train.device
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(Path(root), 0)
        folder.create()
        # Both work on one folder: what a file says it is does not include the epochs, and no manifest is opened.
        warm, full = (
            Workspace(with_epochs(epochs), folder, train, test, seed=0, select="test", device=device)
            for epochs in (options.warm_epochs, options.epochs)
        )
        print(f"{machine(device)}; {MNIST.training_threads} thread(s) while training", flush=True)
        warm_up(warm)
        clock = Clock(device)
        record = timed_iteration(full, clock)
    print_parts(clock, record, options)
    return 0


def parse() -> argparse.Namespace:
    parser = mnist_parser(__doc__)
    add = parser.add_argument
    epochs = MNIST.retraining.epochs
    add("-e", "--epochs", type=positive, default=epochs, help=f"epochs of the timed iteration ({epochs})")
    add("--warm-epochs", type=positive, default=2, help=f"epochs of the iterations before b={B} (2)")
    return parser.parse_args()


def with_epochs(epochs: int) -> Experiment:
    """MNIST with so many epochs an iteration, and one of pretraining."""
    retraining, pretraining = replace(MNIST.retraining, epochs=epochs), replace(MNIST.pretraining, epochs=1)
    return replace(MNIST, retraining=retraining, pretraining=pretraining)


def warm_up(work: Workspace) -> None:
    """Initial models and AL iterations 0 to b-1. About 10 s on 2 CPU cores with 2 epochs."""
    start = time.perf_counter()
    pretrain.initial_models(work, TRIAL.ir, TRIAL.nr)
    pool, validation = work.pool(TRIAL.ir, TRIAL.nr, TRIAL.distortion), work.validation()
    for b in range(B):
        describe.write_databases(work, TRIAL, b, pool, validation)
        retrain.retrain(work, TRIAL, b, pool, validation)  # acquires first
        describe.delete_databases(work, TRIAL, b)
    epochs = work.experiment.retraining.epochs
    seconds = time.perf_counter() - start
    print(f"made what b={B} starts from, {epochs} epoch(s) an iteration, in {seconds:.1f} s", file=sys.stderr)


def timed_iteration(work: Workspace, clock: Clock) -> Record:
    """AL iteration b, stage by stage as the scripts run it. Returns its results record."""
    pool, validation = work.pool(TRIAL.ir, TRIAL.nr, TRIAL.distortion), work.validation()
    with clock.part("descriptors"):
        describe.write_databases(work, TRIAL, B, pool, validation)
    with clock.part("matching"):
        retrain.acquire(work, TRIAL, B, pool, validation)
    with inside_of_retraining(work, clock), clock.part("retraining"):
        return retrain.retrain(work, TRIAL, B, pool, validation)


@contextlib.contextmanager
def inside_of_retraining(work: Workspace, clock: Clock) -> Iterator[None]:
    """Time the parts of `retrain.retrain` by wrapping the two functions of alfk.training that it calls."""
    predict, fit = retrain.predict, retrain.fit

    def timed_predict(model: Any, data: Any, batch_size: int) -> Any:
        with clock.part("on test" if data is work.test else "on validation"):
            return predict(model, data, batch_size)

    def timed_fit(*args: Any, after_epoch: Callable[[int], None], **named: Any) -> None:
        with clock.part("fit"):
            fit(*args, after_epoch=clock.timed("after epochs", after_epoch), **named)

    with mock.patch.object(retrain, "predict", timed_predict), mock.patch.object(retrain, "fit", timed_fit):
        yield


def print_parts(clock: Clock, record: Record, options: argparse.Namespace) -> None:
    """The table, and what the iteration was."""
    seconds, calls = clock.seconds, clock.calls
    total = seconds["descriptors"] + seconds["matching"] + seconds["retraining"]
    sgd, evaluation = seconds["fit"] - seconds["after epochs"], seconds["on test"] + seconds["on validation"]
    steps = options.epochs * -(-record["labelled"] // MNIST.retraining.batch_size)
    lines = [
        ("descriptors", seconds["descriptors"], "validation and pool, with pseudo-labels, written to files"),
        (
            "matching",
            seconds["matching"],
            f"{record['misclassified_before']:,} misclassified, {record['centres']} centres",
        ),
        ("retraining", seconds["retraining"], f"{options.epochs} epochs"),
        ("  SGD steps", sgd, f"{steps:,} of {MNIST.retraining.batch_size} images"),
        ("  evaluation", evaluation, "10,000 + 10,000 images after every epoch"),
        ("    test", seconds["on test"], f"{calls['on test']} times"),
        ("    validation", seconds["on validation"], f"{calls['on validation']} times"),
        ("  the rest", seconds["retraining"] - sgd - evaluation, "scores, copies of weights, files"),
        ("total", total, ""),
    ]
    query = MNIST.query_size
    before = f"{record['labelled'] - query} -> {record['labelled']} labels"
    print(f"\nMNIST b={record['b']}, {before}, ir={record['ir']:g}, {record['method']} L{record['L']}\n")
    print(f"{'part':<18}{'seconds':>10}{'share':>9}")
    for name, value, what in lines:
        print(f"{name:<18}{value:>10.3f}{100 * value / total:>7.1f} %   {what}".rstrip())
    warm = f"{options.warm_epochs} epoch(s) an iteration before it"
    print(f"\ntest accuracy {record['accuracy']:.2f} %: no result, with {warm}")


if __name__ == "__main__":
    sys.exit(guarded(main))
