"""Acquisition at full size on random descriptors: seconds and peak memory, with the pool memory-mapped from a file.

    python3 bench/bench_scale.py                       # 500,000 x 768 pool, 20,000 x 768 misclassified, n=1250
    python3 bench/bench_scale.py -L 1536 --errors 40000    # [z, g] of L=768, and twice the misclassified images
    python3 bench/bench_scale.py --imagenet --part 10      # a tenth of 1,281,167 x 1536, 50,000 misclassified, n=64,000
    python3 bench/bench_scale.py -L 1536 --facility        # facility location, of rows with a spectrum as MNIST's
    python3 bench/bench_scale.py --imagenet -L 1024 --part 10 --facility

k-centre chooses the centres, then the matching streams over the pool. The pool's file (4 bytes per entry, 2 with
--half) is written to --folder first and deleted at the end. The rows are normal; what facility location takes depends
on them, so that its rows are as MNIST's descriptors R_{z,g} of the rotation model: a mean of norm 0.67, and variances
that fall by 13 % from one main direction to the next, 64 of them, and a little noise.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from alfk.cli.options import Parser, device_of, positive
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.method.matching import budget, k_centre, match
from alfk.rivals.facility_location import Factors, facility_location
from alfk.rivals.flqmi import RENEW
from alfk.support.seeding import generator
from bench.common import Clock, guarded, machine

T = TypeVar("T")

CHUNK = 10_000  # rows written at a time


def main() -> int:
    options = parse()
    device = device_of(options)
    print(machine(device))
    if options.part > 1:
        print(f"1/{options.part} of pool, misclassified images and n: full size takes {options.part**2} times as long")
    print(f"pool {options.pool:,} x {options.length}, {options.errors:,} misclassified, n={options.query_size:,}")
    source = generator(0, "bench_scale")
    draw = descriptors(options.length, source) if options.facility else normal(options.length, source)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pool, errors = write_pool(Path(folder) / "pool.npy", options, draw), draw(options.errors).to(device)
        rows = []
        if options.facility:
            available = torch.ones(options.pool, dtype=torch.bool)
            factors = Factors(pool), Factors(errors)
            chosen = functools.partial(facility_location, *factors, available, options.query_size, renew=RENEW)
            seconds, peak, _ = timed(device, chosen)
            print(tabulate([["facility location", f"{seconds:.1f}", peak]], headers=["stage", "seconds", "peak MiB"]))
            return 0
        if options.query_size < options.errors:
            seconds, peak, _ = timed(device, lambda: k_centre(errors, options.query_size, 0))
            rows.append(["k-centre", f"{seconds:.1f}", peak])
        available, start = torch.ones(options.pool, dtype=torch.bool), generator(0, "start")
        chosen = functools.partial(match, errors, pool, available, options.query_size, start)
        seconds, peak, selection = timed(device, chosen)
        rows.append(["k-centre and matching", f"{seconds:.1f}", peak])
        print(tabulate(rows, headers=["stage", "seconds", "peak MiB"], disable_numparse=True))
        print(f"{len(selection.indices):,} distinct images; largest tensor at most {budget(device) / 2**20:,.0f} MiB")
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=positive, default=500_000, help="pool images (500,000)")
    add("--errors", type=positive, default=20_000, help="misclassified validation images (20,000)")
    add("-L", "--length", type=positive, help="entries of a descriptor (768; with --imagenet 1,536)")
    add("-n", "--query-size", type=positive, default=1250, help="images to choose (1,250)")
    add("--facility", action="store_true", help="facility location instead of k-centre and matching")
    add("--half", action="store_true", help="store the pool's file in half precision")
    add("--imagenet", action="store_true", help="ImageNet's sizes at L=768 with g, in half precision")
    add("--part", type=positive, default=1, metavar="F", help="divide pool, misclassified images and n by F (1)")
    add("--folder", type=Path, help="where the pool's file is written (the system's temporary folder)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    options = parser.parse_args()
    if options.imagenet:
        options.pool, options.errors, options.query_size, options.half = 1_281_167, 50_000, 64_000, True
    options.length = options.length or (1536 if options.imagenet else 768)
    for size in ("pool", "errors", "query_size"):
        setattr(options, size, max(1, getattr(options, size) // options.part))
    return options


def normal(length: int, source: torch.Generator) -> Callable[[int], Tensor]:
    """Draws rows of independent normal entries."""
    return lambda count: torch.randn(count, length, generator=source)


def descriptors(length: int, source: torch.Generator) -> Callable[[int], Tensor]:
    """Draws rows with a spectrum as that of descriptors, on the device of the generator."""
    rank, normal = min(64, length - 1), functools.partial(torch.randn, generator=source, device=source.device)
    directions = torch.linalg.qr(normal(length, rank + 1))[0].T
    scales = 0.87 ** (torch.arange(rank, device=source.device) / 2)
    scales *= 0.74 / scales.norm()

    def draw(count: int) -> Tensor:
        rows = (normal(count, rank) * scales) @ directions[1:] + 0.67 * directions[0]
        return rows.add_(normal(count, length), alpha=0.05 / length**0.5)

    return draw


def write_pool(path: Path, options: argparse.Namespace, draw: Callable[[int], Tensor]) -> np.ndarray:
    """Random rows, written in chunks, then memory-mapped read-only."""
    dtype = np.dtype("<f2" if options.half else "<f4")
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(options.pool, options.length))
    for start in range(0, options.pool, CHUNK):
        count = min(CHUNK, options.pool - start)
        array[start : start + count] = draw(count).numpy()
    array.flush()
    del array
    return np.load(path, mmap_mode="r")


def timed(device: torch.device, function: Callable[[], T]) -> tuple[float, int, T]:
    """Seconds, peak memory in MiB (on a CPU including pages of a mapped file) and result of a call of `function`."""
    reset_peak(device)
    clock = Clock(device)
    with clock.part("call"):
        result = function()
    return clock.seconds["call"], peak_mib(device), result


if __name__ == "__main__":
    sys.exit(guarded(main))
