"""How fast VAAL trains and what limits it: steps of the MNIST recipe, and what the arithmetic alone would take.

    python3 bench/bench_vaal.py                # MNIST recipe, 1 thread and 2; a minute on 2 CPU cores
    python3 bench/bench_vaal.py --recipe SVHN  # slow on a CPU

A step is one of the task model, two of the VAE and two of the discriminator. Images are random: speed is the same.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import positive
from alfk.config import Experiment
from alfk.data import Split
from bench.common import guarded, machine
from vaal.config import RECIPES, Recipe, experiments
from vaal.model import SIZE
from vaal.solver import Solver

PARTS = {"task model and VAE": (2, 0), "and discriminator": (2, 2)}  # steps of VAE and discriminator


def main() -> int:
    registry = experiments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=registry, default="MNIST", help="whose constants to take (MNIST)")
    parser.add_argument("--steps", type=positive, default=12, metavar="N", help="steps to time (12)")
    options = parser.parse_args()
    print(machine(torch.device("cpu")))
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        product = matrix_product()
        print(f"\n{threads} threads; a product of two 1024x1024 matrices: {product:.0f} GFLOP/s")
        for name, (vae_steps, adversary_steps) in PARTS.items():
            changes = {"vae_steps": vae_steps, "adversary_steps": adversary_steps, "training_threads": threads}
            recipe = dataclasses.replace(RECIPES[options.recipe], checks=1, **changes)
            seconds, processor, work = cost(registry[options.recipe], recipe, options.steps)
            print(
                f"{name:<19}{seconds:8.3f} s a step ({processor:.3f} s of processor time), "
                f"{work:6.2f} GFLOP, {work / seconds:4.0f} GFLOP/s"
            )
    return 0


def cost(experiment: Experiment, recipe: Recipe, steps: int) -> tuple[float, float, float]:
    """Seconds and processor seconds of a step, and its 10^9 floating-point operations."""
    pool = Split(
        torch.randint(0, 256, (1000, len(experiment.mean), SIZE, SIZE), dtype=torch.uint8),
        torch.randint(0, experiment.classes, (1000,)),
        (0.0,) * len(experiment.mean),
        (1.0,) * len(experiment.mean),
    )
    network = recipe.network or experiment.network

    def steps_of(count: int) -> Callable[[], None]:
        fixed = dataclasses.replace(recipe, train_iterations=count)
        draws = [torch.Generator().manual_seed(number) for number in range(3)]
        solver = Solver(fixed, network(experiment.classes), pool, *draws[:2])
        return lambda: solver.train(torch.arange(125), torch.arange(125, 1000), draws[2], lambda: None)

    steps_of(2)()
    with FlopCounterMode(display=False) as counter:
        steps_of(1)()
    go = steps_of(steps)
    start, processor = time.perf_counter(), time.process_time()
    go()
    taken, busy = time.perf_counter() - start, time.process_time() - processor
    return taken / steps, busy / steps, counter.get_total_flops() / 1e9


def matrix_product() -> float:
    """10^9 floating-point operations a second that a matrix product reaches."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    a @ b
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    return 20 * 2 * 1024**3 / (time.perf_counter() - start) / 1e9


if __name__ == "__main__":
    sys.exit(guarded(main))
