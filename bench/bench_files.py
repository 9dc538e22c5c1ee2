"""What checksums cost: the files of an AL iteration written and read with them and without.

python3 bench/bench_files.py              # 1 GB in a temporary folder
python3 bench/bench_files.py --mnist      # MNIST's sizes alone
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import Parser
from alfk.support import files
from bench.common import fastest, machine
from mnist.custom_models.lenet import LeNet
from svhn.custom_models.resnet10 import ResNet10

SIZES = {  # data set -> pool images, length of z and g together, network; at ir=100
    "MNIST": (25_851, 160, LeNet),
    "SVHN": (318_556, 1536, ResNet10),
}
REPEATS = 3


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", action="store_true", help="MNIST's sizes alone")
    options = parser.parse_args()
    print(machine(torch.device("cpu")))
    print("seconds                                      with  without    added")
    for name in ("MNIST",) if options.mnist else SIZES:
        measure(name)


def measure(name: str) -> None:
    """Print a line for each file, and what all of an iteration add: a database is written and read once, a checkpoint
    written once and read twice.
    """
    images, length, network = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        database, checkpoint = Path(folder) / "pool.npy", Path(folder) / "best.pt"
        state, steps = network(10).state_dict(), {}
        steps["descriptors written"] = lambda: write(database, images, length)
        steps["descriptors read"] = lambda: files.open_array(database, {})[0]["descriptor"].sum()
        steps["checkpoint written"] = lambda: files.save_checkpoint(checkpoint, state, {})
        steps["checkpoint read"] = lambda: network(10).load_state_dict(files.load_checkpoint(checkpoint, {})[0])
        seconds = [fastest(REPEATS, step)[0] for step in steps.values()]
        with without_checksums():
            without = [fastest(REPEATS, step)[0] for step in steps.values()]
    added = [a - b for a, b in zip(seconds, without, strict=True)]
    for what, *numbers in zip(steps, seconds, without, added, strict=True):
        print(f"{name + ' ' + what:36} " + " ".join(f"{number:8.3f}" for number in numbers))
    print(f"{name}: {sum(added) + added[-1]:.3f} s an iteration")


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Inside the block files are written and read without checks of their content."""
    with contextlib.ExitStack() as stack:
        for name, value in (("_crc32", "00000000"), ("_crc32_of_file", "00000000"), ("_is_finite", True)):
            stack.enter_context(mock.patch.object(files, name, return_value=value))
        yield


def write(path: Path, images: int, length: int) -> None:
    dtype = np.dtype([("descriptor", "<f4", (length,)), ("pseudo_label", "<i8"), ("prediction", "<i8")])
    array = files.create_array(path, (images,), dtype)
    array["descriptor"][:] = 1.5
    files.complete_array(path, array, {})


if __name__ == "__main__":
    main()
