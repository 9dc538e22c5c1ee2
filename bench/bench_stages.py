"""Each stage of the method against a plain reference, on the CPU: seconds, peak memory, and equality of the results.

    python3 bench/bench_stages.py            # about a minute on 2 CPU cores, 2 GB of memory
    python3 bench/bench_stages.py --quick    # small sizes, 20 s: a quick check of this script

Every time is the minimum over --repeats. The images are MNIST's test images if <datadir>/MNIST has them, else random
ones; the vectors are random. Both implementations get the same input and the same number of threads.
"""

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import Parser, positive
from alfk.data.split import Split
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.experiment.training import Evaluator
from alfk.method.descriptors import standardise
from alfk.method.matching import k_centre, top_matches
from alfk.networks.weights import kaiming_fan_out
from alfk.support.errors import UserError
from alfk.support.seeding import generator
from bench.common import fastest, guarded, machine, mnist_is_in
from mnist.config import MNIST
from mnist.custom_datasets.mnist import load_mnist
from mnist.custom_models.lenet import LeNet

CHECKED_CENTRES = 100  # centres of the full run of the reference k-centre, to compare the results


@dataclasses.dataclass(frozen=True)
class Matching:
    """The k most similar of `database` vectors for each of `queries` vectors of length `width`.

    The library searches for `batch` queries at a time, as in the method; the reference for all at once.
    """

    stage: str
    queries: int
    database: int
    width: int
    k: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the stages: images to evaluate; n centres of M vectors of length L; the two matchings."""

    images: int
    centres: int
    vectors: int
    length: int
    matchings: tuple[Matching, Matching]


# The vectors to match are [z, g] of L=80; the search for a pseudo-label compares z alone.
FULL = Sizes(
    images=10_000,
    centres=1250,
    vectors=20_000,
    length=256,
    matchings=(
        Matching("top-k matching", queries=1250, database=100_000, width=160, k=32, batch=1250),
        Matching("nearest validation", queries=25_851, database=10_000, width=80, k=1, batch=MNIST.descriptor_batch),
    ),
)
QUICK = Sizes(
    images=500,
    centres=60,
    vectors=1000,
    length=64,
    matchings=(
        Matching("top-k matching", queries=100, database=10_000, width=160, k=32, batch=100),
        Matching("nearest validation", queries=1000, database=1000, width=80, k=1, batch=MNIST.descriptor_batch),
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. Memory is the growth of the process's peak memory in MiB: (ours, reference)."""

    stage: str
    ours: float
    reference: float
    equal: int
    compared: int
    memory: tuple[float, float] | None = None
    remark: str = ""


def main() -> int:
    options = parse()
    sizes = sizes_of(options)
    torch.manual_seed(0)
    print(machine(torch.device("cpu")), flush=True)
    matched = [compare_matching(task, options.repeats) for task in sizes.matchings]
    evaluated = compare_evaluation(*test_images(options.datadir, sizes.images), options.repeats)
    spread = compare_k_centre(sizes, options.timed_steps, options.repeats)
    print_table([evaluated, spread, *matched], options.repeats)
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datadir", type=Path, default=ROOT / "local_data", help="folder with MNIST/raw (local_data)")
    add("--repeats", type=positive, default=3, help="number of repetitions, of which the fastest is reported (3)")
    add("--quick", action="store_true", help="small sizes: a check of this script, not a measurement")
    add("-n", "--centres", type=positive, metavar="n", help="k-centre: centres to choose (1250)")
    add("-M", "--vectors", type=positive, metavar="M", help="k-centre: vectors to choose from (20000)")
    add("-L", "--length", type=positive, metavar="L", help="k-centre: values in a vector (256)")
    steps = "k-centre: steps of the reference to time, the others are interpolated; all if it is n or more (20)"
    add("--timed-steps", type=positive, default=20, metavar="S", help=steps)
    return parser.parse_args()


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The sizes given by the flags. Raises UserError."""
    overrides = {"centres": options.centres, "vectors": options.vectors, "length": options.length}
    sizes = dataclasses.replace(QUICK if options.quick else FULL, **{k: v for k, v in overrides.items() if v})
    if sizes.length < 2 or not 2 <= sizes.centres <= sizes.vectors:
        raise UserError("k-centre needs 2 <= n <= M and L >= 2")
    return sizes


# Evaluation


def test_images(datadir: Path, count: int) -> tuple[str, Split]:
    """The name of the images and `count` of them: MNIST's test images, or random ones of the same shape."""
    if mnist_is_in(datadir / "MNIST"):
        test = load_mnist(datadir / "MNIST")[1].subset(torch.arange(count))
        return "MNIST test images", test
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, MNIST.classes, (count,))
    return f"random images, MNIST is not in {datadir}", Split(images, labels, MNIST.mean, MNIST.std)


class PilImages(Dataset):
    """The images in the manner of torchvision's data sets: PIL images, transformed one by one."""

    def __init__(self, split: Split):
        self.images, self.labels = split.images[:, 0], split.labels
        self.transform = Compose([ToTensor(), Normalize(split.mean, split.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[item].numpy())), int(self.labels[item])


class PlainLeNet(LeNet):
    """LeNet with PyTorch's max pooling."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        x1 = F.relu(F.max_pool2d(self.conv1(images), 2))
        x2 = F.relu(F.max_pool2d(self.conv2(x1), 2))
        x4 = F.relu(self.fc1(x2.flatten(1)))
        logits = self.fc2(x4)
        return logits, [x1, x2, x4, logits]


@torch.no_grad()
def plain_predict(model: nn.Module, loader: DataLoader) -> Tensor:
    """(N,) int64, the arg max for every image. About 1 s for 10,000 images, most of it for loading them."""
    model.eval()
    return torch.cat([model(images)[0].argmax(1) for images, _ in loader])


def compare_evaluation(source: str, test: Split, repeats: int) -> Row:
    """Predictions of an untrained LeNet with equal weights. The reference is run with its faster number of workers."""
    log(f"evaluation of {len(test):,} {source}")
    plain = PlainLeNet(MNIST.classes)
    kaiming_fan_out(plain, generator(0, "bench"))
    model = LeNet(MNIST.classes).to(memory_format=torch.channels_last)
    model.load_state_dict(plain.state_dict())
    ours, predictions = fastest(repeats, lambda: Evaluator(test, MNIST.descriptor_batch)(model).predictions[:, 0])
    tries = {}
    for workers in (0, 2):
        loader = DataLoader(PilImages(test), batch_size=1000, num_workers=workers)
        tries[workers] = fastest(repeats, lambda loader=loader: plain_predict(plain, loader))
    workers = min(tries, key=lambda count: tries[count][0])
    reference, reference_predictions = tries[workers]
    others = ", ".join(f"{seconds:.3f} s with {count}" for count, (seconds, _) in tries.items() if count != workers)
    remark = f"{len(test):,} {source}; reference with {workers} loader workers ({others})"
    return Row("evaluation", ours, reference, *agreement(predictions, reference_predictions), remark=remark)


# Greedy k-centre


def textbook_step(vectors: Tensor, centres: Tensor) -> Tensor:
    """The next centre, with the similarities to all centres recomputed: O(M s D) for s centres."""
    closest = (vectors @ vectors[centres].T).amax(1)
    closest[centres] = torch.inf
    return closest.argmin()


def textbook_k_centre(vectors: Tensor, n: int, first: int) -> Tensor:
    """(n,) int64, greedy k-centre in O(n^2 M D)."""
    centres = torch.tensor([first])
    while len(centres) < n:
        centres = torch.cat([centres, textbook_step(vectors, centres)[None]])
    return centres


def sampled_seconds(vectors: Tensor, centres: Tensor, timed_steps: int, repeats: int) -> tuple[float, int]:
    """Seconds of `textbook_k_centre`, interpolated from some of its steps, and the number of steps timed.

    The time of a step depends on the number of centres alone, so that those of our result are used.
    """
    steps = len(centres) - 1
    timed = np.unique(np.linspace(1, steps, min(timed_steps, steps)).round().astype(int))
    seconds = [fastest(repeats, lambda s=s: textbook_step(vectors, centres[:s]))[0] for s in timed]
    return float(np.interp(np.arange(1, steps + 1), timed, seconds).sum()), len(timed)


def compare_k_centre(sizes: Sizes, timed_steps: int, repeats: int) -> Row:
    """Seconds at full size, extrapolated for the reference; equality of the centres at CHECKED_CENTRES."""
    n, few = sizes.centres, min(CHECKED_CENTRES, sizes.centres)
    log(f"k-centre, n={n:,} of M={sizes.vectors:,}, L={sizes.length}")
    vectors = random_rows(sizes.vectors, sizes.length)
    ours, centres = fastest(repeats, lambda: k_centre(vectors, n, 0))
    reference, timed = sampled_seconds(vectors, centres, timed_steps, repeats)
    extent = f"EXTRAPOLATED from {timed} of {n - 1:,} steps" if timed < n - 1 else f"sum of all {timed:,} steps"
    start = time.perf_counter()
    equal, compared = agreement(k_centre(vectors, few, 0), textbook_k_centre(vectors, few, 0))
    log(f"  the reference in full for n={few}: {time.perf_counter() - start:.1f} s")
    remark = f"n={n:,}, M={sizes.vectors:,}, L={sizes.length}; reference {extent}; compared in full for n={few}"
    return Row("greedy k-centre", ours, reference, equal, compared, remark=remark)


# Matching


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of one implementation in a separate process: seconds, peak memory in MiB, (queries, k) indices."""

    seconds: float
    memory: float
    index: np.ndarray


def full_matrix(queries: Tensor, database: Tensor, task: Matching) -> Tensor:
    """(m, k) int64, the k most similar rows, from the whole m x N matrix of similarities."""
    similarity = queries @ database.T
    return similarity.argmax(1, keepdim=True) if task.k == 1 else similarity.topk(task.k, dim=1).indices


def streamed(queries: Tensor, database: Tensor, task: Matching) -> Tensor:
    """(m, k) int64, the k most similar rows, by the library's tiled search."""
    return torch.cat([top_matches(batch, database, task.k)[1] for batch in queries.split(task.batch)])


SIDES: dict[str, Callable[[Tensor, Tensor, Matching], Tensor]] = {"ours": streamed, "reference": full_matrix}


def measure(task: Matching, side: str, repeats: int) -> Measured:
    """Run one implementation of a matching in this process, which must be fresh."""
    torch.manual_seed(0)
    queries, database = random_rows(task.queries, task.width), random_rows(task.database, task.width)
    search = SIDES[side]
    search(queries[:8], database[:100], task)  # starts the threads, whose memory must not be counted
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_mib(cpu)
    seconds, index = fastest(repeats, lambda: search(queries, database, task))
    return Measured(seconds, peak_mib(cpu) - before, index.numpy())


def compare_matching(task: Matching, repeats: int) -> Row:
    """Both implementations, each in a fresh process, because peak memory is measured per process."""
    size = f"{task.queries:,} queries x {task.database:,} x {task.width}, k={task.k}"
    log(f"{task.stage}, {size}")
    done = {}
    for side in SIDES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            done[side] = fresh.submit(measure, task, side, repeats).result()
    ours, reference = done["ours"], done["reference"]
    equal, compared = agreement(torch.from_numpy(ours.index), torch.from_numpy(reference.index))
    memory = (ours.memory, reference.memory)
    return Row(
        task.stage,
        ours.seconds,
        reference.seconds,
        equal,
        compared,
        memory,
        f"{size}; ours {task.batch:,} queries at a time; random vectors",
    )


# Common functions


def random_rows(count: int, width: int) -> Tensor:
    """Random vectors, standardised like descriptors of one scale."""
    return standardise([torch.randn(count, width)])


def agreement(result: Tensor, reference: Tensor) -> tuple[int, int]:
    """The number of equal entries and of all entries."""
    return int((result == reference).sum()), result.numel()


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_table(rows: list[Row], repeats: int) -> None:
    columns = ("stage", "ours s", "ref. s", "ratio", "equal entries", "ours MiB", "ref. MiB")
    print("\n{:<20}{:>10}{:>10}{:>8}{:>20}{:>10}{:>10}".format(*columns))
    for row in rows:
        memory = "".join(f"{mib:>10.0f}" for mib in row.memory) if row.memory else f"{'-':>10}{'-':>10}"
        equal = f"{row.equal:,}/{row.compared:,}"
        seconds = f"{row.ours:>10.4f}{row.reference:>10.4f}{row.reference / row.ours:>8.1f}"
        print(f"{row.stage:<20}{seconds}{equal:>20}{memory}")
    print(f"\nratio: reference / ours; seconds: fastest of {repeats}; MiB: growth of the process's peak memory")
    for row in rows:
        print(f"{row.stage}: {row.remark}")


if __name__ == "__main__":
    sys.exit(guarded(main))
