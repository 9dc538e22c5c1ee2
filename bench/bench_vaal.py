"""The speed of VAAL's training: seconds per step, and its GFLOP/s in comparison with a matrix product.

    python3 bench/bench_vaal.py                # MNIST recipe, 1 thread and 2; a minute on 2 CPU cores
    python3 bench/bench_vaal.py --recipe SVHN  # slow on a CPU

A step is one update of the task model, two of the VAE and two of the discriminator. Images are random, which does not
affect the speed.
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
from alfk.data.split import Split
from alfk.experiment.config import Experiment
from bench.common import guarded, machine, matrix_product_rate
from vaal.config import RECIPES, Recipe, experiments
from vaal.model import SIZE
from vaal.solver import Solver

PARTS = {"task model and VAE": (2, 0), "and discriminator": (2, 2)}  # updates of VAE and discriminator per step


def main() -> int:
    registry = experiments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=registry, default="MNIST", help="data set whose constants are used (MNIST)")
    parser.add_argument("--steps", type=positive, default=12, metavar="N", help="steps to time (12)")
    options = parser.parse_args()
    print(machine(torch.device("cpu")))
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        product = matrix_product_rate(torch.get_num_threads()) / 1e9
        print(f"\n{threads} threads; a product of two 1024x1024 matrices: {product:.0f} GFLOP/s")
        for name, (vae_steps, adversary_steps) in PARTS.items():
            changes = {"vae_steps": vae_steps, "adversary_steps": adversary_steps, "training_threads": threads}
            recipe = dataclasses.replace(RECIPES[options.recipe], checks=1, **changes)
            seconds, processor, gflop = cost(registry[options.recipe], recipe, options.steps)
            print(
                f"{name:<19}{seconds:8.3f} s per step ({processor:.3f} s of processor time), "
                f"{gflop:6.2f} GFLOP, {gflop / seconds:4.0f} GFLOP/s"
            )
    return 0


def cost(experiment: Experiment, recipe: Recipe, steps: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and GFLOP of a step."""
    classes = experiment.classes or 1000  # ImageNet counts its folders
    pool = Split(
        torch.randint(0, 256, (1000, len(experiment.mean), SIZE, SIZE), dtype=torch.uint8),
        torch.randint(0, classes, (1000,)),
        (0.0,) * len(experiment.mean),
        (1.0,) * len(experiment.mean),
    )
    network = recipe.network or experiment.network

    def steps_of(count: int) -> Callable[[], None]:
        fixed = dataclasses.replace(recipe, train_iterations=count)
        generators = [torch.Generator().manual_seed(number) for number in range(3)]
        solver = Solver(fixed, network(classes), pool, *generators[:2])
        return lambda: solver.train(torch.arange(125), torch.arange(125, 1000), generators[2], lambda: None)

    steps_of(2)()
    with FlopCounterMode(display=False) as counter:
        steps_of(1)()
    train = steps_of(steps)
    start, processor_start = time.perf_counter(), time.process_time()
    train()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
    return seconds / steps, processor / steps, counter.get_total_flops() / 1e9


if __name__ == "__main__":
    sys.exit(guarded(main))
