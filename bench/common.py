"""Functions that the benchmarks share: MNIST, timing, the rate of a matrix product, a description of the machine."""

import argparse
import contextlib
import functools
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from alfk.cli.options import ROOT, Parser, device_of
from alfk.data.split import Split
from alfk.experiment.training import cpu_threads
from alfk.support.errors import UserError
from mnist.custom_datasets.mnist import FILES, load_mnist

T = TypeVar("T")


def mnist_is_in(folder: Path) -> bool:
    """Whether `folder`/raw has the four files, gzipped or not, so that load_mnist does not download them."""
    raw = folder / "raw"
    return all((raw / name).exists() or (raw / f"{name}.gz").exists() for name in FILES)


def mnist_parser(about: str | None) -> Parser:
    """The flags of a benchmark on MNIST: its folder and the device."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datadir", type=Path, default=ROOT / "local_data", help="folder with MNIST/raw (local_data)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    return parser


def mnist_on(options: argparse.Namespace) -> tuple[Split, Split]:
    """Training and test images on the device given by the flags. Raises UserError."""
    device = device_of(options)
    folder = options.datadir / "MNIST"
    if not mnist_is_in(folder):
        raise UserError(f"MNIST is not in {folder / 'raw'}: give --datadir the folder with MNIST/raw")
    train, test = load_mnist(folder)
    return train.to(device), test.to(device)


def fastest(repeats: int, function: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the fastest of `repeats` calls of `function` on the CPU, and the result of the last one."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


class Clock:
    """Seconds of the named parts of a computation on `device`, and counters of their images."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.amounts: defaultdict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to part `name`."""
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run asynchronously
        return time.perf_counter()


@functools.cache
def matrix_product_rate(threads: int) -> float:
    """Floating-point operations per second in a product of two float32 matrices of 1024 x 1024."""
    a, b = torch.randn(2, 1024, 1024)
    with cpu_threads(threads):
        seconds, _ = fastest(10, lambda: a @ b)
    return 2 * 1024**3 / seconds


def machine(device: torch.device) -> str:
    """Device, CPU threads and torch version, in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {cpu_name()}"
    return f"{name}; {torch.get_num_threads()} CPU threads; torch {torch.__version__}"


def cpu_name() -> str:
    """The CPU's name from /proc/cpuinfo, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def guarded(main: Callable[[], int]) -> int:
    """The exit status of `main`; a UserError is printed as one line, with status 2."""
    try:
        return main()
    except UserError as problem:
        print(f"{Path(sys.argv[0]).name}: {problem}", file=sys.stderr)
        return 2
