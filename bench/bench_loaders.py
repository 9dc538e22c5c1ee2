"""Images per second that each loader decodes, crops, scales and normalises.

    python3 bench/bench_loaders.py DIR --image-size 224 --workers 2     # DIR holds train/<class>/ and val/<class>/

All images of train/ are read once as a warm-up, then three times; the fastest counts. The reference is a DataLoader
whose worker processes do the same with each image as the loader torchvision, which has threads. "kept": the loader
torchvision when decoded images are kept in memory. Ratios are to the reference.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader

from alfk.cli.options import Parser, device_of, positive
from alfk.data.decoding import draw_crops, open_image, scaled
from alfk.data.image_files import MEMORY, ImageFiles, default_workers, has_dali
from alfk.data.split import Split
from bench.common import guarded, machine
from imagenet.custom_datasets.image_folder import load_folder


def main() -> int:
    options = parse()
    device = device_of(options)
    print(machine(device))
    size, workers = options.image_size, options.workers
    with tempfile.TemporaryDirectory() as lists:
        split = load_folder(Path(lists), options.folder, size, "torchvision", workers).train
        paths = np.array(split.store.paths)

    def files(loader: str, memory: int) -> Split:
        store = ImageFiles(split.store.root, paths, size, loader, workers, device, memory)
        return Split(store, split.labels, split.mean, split.std)

    tries = {"processes": Processes(files("torchvision", 0), options.batch, workers)}
    loaders = {"torchvision": ("torchvision", 0), "kept": ("torchvision", MEMORY)}
    if has_dali():
        loaders["dali"] = ("dali", 0)
    for name, (loader, memory) in loaders.items():
        tries[name] = functools.partial(pass_over, files(loader, memory), options.batch)
    rows = []
    for purpose, seed in (("evaluation", None), ("training", 0)):
        rates = [len(paths) / fastest(functools.partial(read, seed)) for read in tries.values()]
        rows.append([purpose, *(f"{rate:,.0f} ({rate / rates[0]:.2f})" for rate in rates)])
    print(f"{len(paths):,} images to {size} x {size} pixels, {options.batch} per batch, {workers} workers")
    print(tabulate(rows, headers=["images/s (ratio)", *tries], disable_numparse=True))
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder with train/<class>/*.JPEG and val/<class>/*.JPEG")
    add("--image-size", type=positive, default=224, metavar="PIXELS", help="side of the crops (224)")
    add("--batch", type=positive, default=128, metavar="N", help="images per batch (128)")
    add(
        "--workers",
        type=positive,
        default=default_workers(),
        metavar="N",
        help="threads, and processes of the reference (all CPUs)",
    )
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    return parser.parse_args()


def fastest(read: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest repeat, after a warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def pass_over(images: Split, batch_size: int, seed: int | None) -> None:
    """Read all images once."""
    for _ in images.batches(batch_size, None, seed):
        pass
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


class Processes:
    """The same by plain DataLoaders, one for evaluation and one for training, whose processes persist."""

    def __init__(self, images: Split, batch_size: int, workers: int):
        self.device, self.loaders = images.device, {}
        self.mean, self.std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (images.mean, images.std))
        context = torch.multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
        more = {"num_workers": workers, "multiprocessing_context": context, "persistent_workers": True}
        for seed in (None, 0):
            self.loaders[seed] = DataLoader(Items(images.store, seed), batch_size, **more)

    def __call__(self, seed: int | None) -> None:
        for batch in self.loaders[seed]:
            stored = batch.to(self.device).permute(0, 3, 1, 2)
            stored.float().div_(255).sub_(self.mean).div_(self.std)


class Items(torch.utils.data.Dataset):
    """The images of a store, one by one: (size, size, 3) uint8."""

    def __init__(self, store: ImageFiles, seed: int | None):
        self.paths = [f"{store.root}/{os.fsdecode(path)}" for path in store.paths]
        self.size = store.size
        self.crops = None if seed is None else draw_crops(len(store), torch.Generator().manual_seed(seed)).numpy()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        crop = None if self.crops is None else self.crops[i]
        return torch.from_numpy(scaled(open_image(self.paths[i]), self.size, crop).copy())


if __name__ == "__main__":
    sys.exit(guarded(main))
