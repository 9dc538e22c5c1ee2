"""Images per second that each loader decodes, crops, scales and normalises.

    python3 bench/bench_loaders.py DIR --image-size 224 --workers 2     # DIR holds train/<class>/ and val/<class>/

All images of train/ are read once as a warm-up, then once timed. The ratio is DALI's rate over torchvision's.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tabulate import tabulate

from alfk.cli.options import Parser, device_of, positive
from alfk.data import Split
from alfk.image_files import default_workers, has_dali
from bench.common import guarded, machine
from imagenet.custom_datasets.image_folder import load_folder


def main() -> int:
    options = parse()
    device = device_of(options)
    print(machine(device))
    loaders = ["torchvision", "dali"] if has_dali() else ["torchvision"]
    rows = []
    with tempfile.TemporaryDirectory() as lists:
        for purpose, seed in (("evaluation", None), ("training", 0)):
            rates = []
            for loader in loaders:
                size, workers = options.image_size, options.workers
                images = load_folder(Path(lists), options.folder, size, loader, workers).train.to(device)
                pass_over(images, options.batch, seed)
                start = time.perf_counter()
                count = pass_over(images, options.batch, seed)
                rates.append(count / (time.perf_counter() - start))
            ratio = f"{rates[1] / rates[0]:.2f}" if len(rates) > 1 else ""
            rows.append([purpose, *(f"{rate:,.0f}" for rate in rates), ratio])
    print(f"{count:,} images to {size} x {size} pixels, {options.batch} per batch, {workers} workers")
    print(tabulate(rows, headers=["images/s", *loaders, "ratio"], disable_numparse=True))
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder with train/<class>/*.JPEG and val/<class>/*.JPEG")
    add("--image-size", type=positive, default=224, metavar="PIXELS", help="side of the crops (224)")
    add("--batch", type=positive, default=128, metavar="N", help="images per batch (128)")
    add("--workers", type=positive, default=default_workers(), metavar="N", help="threads or processes (all CPUs)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    return parser.parse_args()


def pass_over(images: Split, batch_size: int, seed: int | None) -> int:
    """Read all images once; returns their number."""
    count = sum(len(positions) for _, positions in images.batches(batch_size, None, seed))
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return count


if __name__ == "__main__":
    sys.exit(guarded(main))
