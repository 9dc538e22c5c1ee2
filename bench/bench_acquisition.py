"""The cost of one acquisition for each method: MNIST, ir=100, b=3, a pool of 25,851 images, K=128.

    python3 bench/bench_acquisition.py                                # the paper's method against varR: 2 minutes
    python3 bench/bench_acquisition.py --methods Rz Rzg_trace Rzg_mi  # other methods against varR; minutes each
    python3 bench/bench_acquisition.py --samples 2                    # a quick check of this script

Times measurement and choice, in memory; the paper's claim is a tenth of the processing of MC-dropout ensembles.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import positive
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.experiment.workspace import Workspace
from alfk.method.acquisition import METHODS, acquire, get_method, measure
from alfk.method.inputs import Sampling
from alfk.method.registry import Situation
from bench.bench_iteration import B, iteration, small_run
from bench.common import guarded, machine, mnist_on, mnist_parser
from mnist.config import MNIST


def main() -> int:
    options = parse()
    with small_run(*mnist_on(options), epochs=1) as work:
        print(machine(work.device), flush=True)
        print(f"\n{'method':<16}{'seconds':>9}{'of varR':>9}{'forward':>11}{'backward':>11}{'peak MiB':>10}")
        reference = cost(work, "varR", 0, options.samples)
        show("varR", 0, reference, reference[0])
        for key in options.methods:
            length = options.length if get_method(key).needs_descriptors else 0
            show(key, length, cost(work, key, length, options.samples), reference[0])
    return 0


def parse() -> argparse.Namespace:
    parser = mnist_parser(__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", default=["Rzg_pz"], choices=METHODS, metavar="KEY", help="methods (Rzg_pz)")
    add("--samples", type=positive, default=MNIST.samples, metavar="K", help=f"samples of an image ({MNIST.samples})")
    add("-dl", "--length", type=positive, default=80, metavar="L", help="descriptor length (80)")
    return parser.parse_args()


def cost(work: Workspace, key: str, length: int, samples: int) -> tuple[float, int, int, int]:
    """Seconds of one acquisition, images in forward and backward passes, peak memory in MiB."""
    method, current = get_method(key), iteration(work, B)
    pool, validation = current.pool, current.validation
    models, _ = current.starting_models()
    taps = MNIST.taps(length) if method.needs_descriptors else None
    available = torch.ones(len(pool), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    situation = Situation(available, MNIST.query_size, generator, validation_labels=validation.labels)
    reset_peak(work.device)
    start = time.perf_counter()
    if method.needs_passes:
        sampling = Sampling(generator, samples)
        situation.measurement = measure(method, models, pool, validation, sampling, taps, MNIST.descriptor_batch)
    acquire(method, situation)
    measurement = situation.measurement
    seconds = time.perf_counter() - start
    passes = (measurement.forward, measurement.backward) if measurement else (0, 0)
    return seconds, *passes, peak_mib(work.device)


def show(key: str, length: int, costs: tuple[float, int, int, int], reference: float) -> None:
    seconds, forward, backward, peak = costs
    name = key + (f" L{length}" if length else "")
    ratio = f"1/{reference / seconds:.0f}" if seconds < reference else f"{seconds / reference:.1f}"
    print(f"{name:<16}{seconds:>9.2f}{ratio:>9}{forward:>11,}{backward:>11,}{peak:>10,}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
