"""What the benchmarks share: whether MNIST is here, a stopwatch, and the machine they ran on."""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from alfk.cli.options import ROOT, Parser, device_of
from alfk.data import Split
from alfk.errors import UserError
from mnist.custom_datasets.mnist import FILES, load_mnist

T = TypeVar("T")


def mnist_is_in(folder: Path) -> bool:
    """Whether `folder`/raw has the four files, gzipped or not. load_mnist itself would go and download them."""
    raw = folder / "raw"
    return all((raw / name).exists() or (raw / f"{name}.gz").exists() for name in FILES)


def mnist_parser(about: str | None) -> Parser:
    """The flags of a benchmark on MNIST: where it is, and the device to work on."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datadir", type=Path, default=ROOT / "local_data", help="folder with MNIST/raw (local_data)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU where there is one, else the CPU)")
    return parser


def mnist_on(options: argparse.Namespace) -> tuple[Split, Split]:
    """Training and test images on the device that the flags name. Raises UserError."""
    device = device_of(options)
    if not mnist_is_in(options.datadir / "MNIST"):
        raise UserError(f"MNIST is not in {options.datadir / 'MNIST' / 'raw'}: name its folder's parent with --datadir")
    train, test = load_mnist(options.datadir / "MNIST")
    return train.to(device), test.to(device)


def fastest(repeats: int, work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the fastest of `repeats` calls of `work` on the CPU, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def machine(device: torch.device) -> str:
    """Device, CPU threads and torch version, in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {cpu_name()}"
    return f"{name}; {torch.get_num_threads()} CPU threads; torch {torch.__version__}"


def cpu_name() -> str:
    """The CPU's name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def guarded(main: Callable[[], int]) -> int:
    """The exit status of `main`; what the user can mend becomes one line and status 2."""
    try:
        return main()
    except UserError as problem:
        print(f"{Path(sys.argv[0]).name}: {problem}", file=sys.stderr)
        return 2
