"""One AL iteration of MNIST, ir=100, Rzg_pz L80, b=3 (375 -> 500 labels): the times of its parts, beside a plain
implementation and the time of its arithmetic.

    python3 bench/bench_iteration.py                       # about four minutes on 2 CPU cores
    python3 bench/bench_iteration.py --without plain       # one minute
    python3 bench/bench_iteration.py --epochs 2 --images 2000      # a quick check of this script

The models before b=3 are trained first, in a temporary folder, and the rotation model for one epoch alone: accuracies
are no results. The plain implementation starts from the same weights and labels. It takes its formulas from
examples/paper.py; every image is a PIL item of a DataLoader, z and g take separate passes over the images, k-centre
looks at all similarities in every step, and every epoch is evaluated on all test images.

The limit of a part is its number of floating-point operations, counted by torch's FlopCounterMode, divided by the rate
of the machine in a product of two 1024 x 1024 matrices with the same number of threads.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import Compose, Normalize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import positive
from alfk.data.split import Split
from alfk.experiment import train
from alfk.experiment.folder import RunFolder
from alfk.experiment.journal import Journal
from alfk.experiment.loop import STAGES, active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.records import Record
from alfk.experiment.round import Round, begin
from alfk.experiment.training import Evaluator
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace
from alfk.method.descriptors import ForwardPass
from alfk.method.uncertainty import uncertainty
from alfk.networks.weights import snapshot
from bench.common import Clock, fastest, guarded, machine, matrix_product_rate, mnist_on, mnist_parser
from examples import paper
from mnist.config import MNIST

TRIAL = Trial(ir=100, method="Rzg_pz", length=80)
B = 3  # the iteration that is timed
SAMPLES = 16  # dropout samples per image in the timing of sampling; time is proportional to their number


def main() -> int:
    options = parse()
    torch.backends.cudnn.deterministic = True  # as the scripts do
    with small_run(*mnist_on(options), options.epochs) as work:
        print(f"{machine(work.device)}; {MNIST.training_threads} thread(s) in training steps", flush=True)
        clock = Clock(work.device)
        record = timed_iteration(work, clock)
        print_parts(clock, record, options.epochs, len(work.test))
        if "limits" not in options.without:
            print_limits(work, clock, record, options)
        if "plain" not in options.without:
            print_plain(Plain(work, options.workers, options.epochs), clock, record, work)
    return 0


def parse() -> argparse.Namespace:
    parser = mnist_parser(__doc__)
    add = parser.add_argument
    epochs = MNIST.retraining.epochs
    add("-e", "--epochs", type=positive, default=epochs, help=f"epochs of an iteration ({epochs})")
    add("--workers", type=int, default=2, help="processes of the plain implementation's DataLoader (2)")
    add("--images", type=positive, default=10_000, help="pool images in the timing of dropout sampling (10,000)")
    add("--without", nargs="+", default=[], choices=("limits", "plain"), help="parts to leave out")
    return parser.parse_args()


@contextlib.contextmanager
def small_run(train_images: Split, test: Split, epochs: int) -> Iterator[Workspace]:
    """A run in a temporary folder with initial models, pretrained for an epoch, and AL iterations 0 to B-1."""
    start = time.perf_counter()
    retraining, pretraining = replace(MNIST.retraining, epochs=epochs), replace(MNIST.pretraining, epochs=1)
    experiment = replace(MNIST, retraining=retraining, pretraining=pretraining).for_data(train_images)
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(Path(root), 0)
        folder.create()
        work = Workspace(experiment, folder, train_images, test, seed=0, device=train_images.device)
        make_initial_models(work, TRIAL.ir, TRIAL.nr)
        active_learning(with_iterations(work, B), [TRIAL])
        seconds = time.perf_counter() - start
        print(f"trained the models before b={B}, {epochs} epoch(s) per iteration, in {seconds:.1f} s", file=sys.stderr)
        yield work


def with_iterations(work: Workspace, count: int) -> Workspace:
    return replace(work, experiment=replace(work.experiment, iterations=count))


def iteration(work: Workspace, b: int) -> Round:
    return begin(Journal(work, TRIAL), b)


def timed_iteration(work: Workspace, clock: Clock) -> Record:
    """AL iteration B with the stages of the scripts. Returns its results record."""

    def timed(part: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with clock.part(part):
                return stage(*arguments)

        return call

    parts = {"describe": "descriptors", "choose": "matching", "train": "retraining"}
    stages = STAGES._replace(**{stage: timed(part, getattr(STAGES, stage)) for stage, part in parts.items()})
    with retraining_timed(clock):
        active_learning(with_iterations(work, B + 1), [TRIAL], stages)
    return next(record for record in work.folder.results() if record["b"] == B)


@contextlib.contextmanager
def retraining_timed(clock: Clock) -> Iterator[None]:
    """Inside the block evaluations are timed, their images counted, and the SGD steps between them timed."""
    evaluate, fetch, fit = Evaluator.__call__, Split.batches, train.fit

    def timed_evaluate(self: Evaluator, *args: Any) -> Any:
        def counted(split: Split, *more: Any) -> Iterator[tuple[Tensor, Tensor]]:
            for images, positions in fetch(split, *more):
                clock.amounts["evaluated"] += len(images)
                yield images, positions

        with mock.patch.object(Split, "batches", counted), clock.part("evaluation"):
            return evaluate(self, *args)

    def timed_fit(*args: Any, after_epoch: Callable[[int], None], **named: Any) -> None:
        def after(epoch: int) -> None:
            with clock.part("after epochs"):
                after_epoch(epoch)

        with clock.part("fit"):
            fit(*args, after_epoch=after, **named)

    with mock.patch.object(Evaluator, "__call__", timed_evaluate), mock.patch.object(train, "fit", timed_fit):
        yield


def steps_of(record: Record, epochs: int) -> int:
    return epochs * -(-record["labelled"] // MNIST.retraining.batch_size)


def print_parts(clock: Clock, record: Record, epochs: int, test_images: int) -> None:
    """Print the times of the iteration's parts."""
    seconds = clock.seconds
    total = seconds["descriptors"] + seconds["matching"] + seconds["retraining"]
    sgd, evaluation = seconds["fit"] - seconds["after epochs"], seconds["evaluation"]
    evaluated, whole = clock.amounts["evaluated"], (epochs + 1) * test_images
    sizes = f"{record['misclassified']:,} misclassified, {record['centres']} centres"
    lines = [
        ("descriptors", seconds["descriptors"], "validation and pool, with pseudo-labels, written to files"),
        ("matching", seconds["matching"], sizes),
        ("SGD steps", sgd, f"{steps_of(record, epochs):,} of {MNIST.retraining.batch_size} images"),
        ("evaluation", evaluation, f"{evaluated:,} of {whole:,} images: until an epoch cannot be the best"),
        ("other", seconds["retraining"] - sgd - evaluation, "copies of weights, files"),
        ("total", total, ""),
    ]
    before = f"{record['labelled'] - MNIST.query_size} -> {record['labelled']} labels"
    print(f"\nMNIST b={record['b']}, {before}, ir={record['ir']:g}, {TRIAL.short()}\n")
    print(f"{'part':<18}{'seconds':>10}{'share':>9}")
    for name, value, remark in lines:
        print(f"{name:<18}{value:>10.3f}{100 * value / total:>7.1f} %   {remark}".rstrip())
    clock.seconds["total"] = total


# The limits of the arithmetic


def print_limits(work: Workspace, clock: Clock, record: Record, options: argparse.Namespace) -> None:
    """Print the seconds of the parts divided by the time of their arithmetic at the rate of a matrix product."""
    after = iteration(work, B + 1)
    pool, validation = after.pool, after.validation
    (model,), _ = after.starting_models()
    images, batch = next(validation.batches(100))[0], MNIST.descriptor_batch
    labels = torch.zeros(100, dtype=torch.int64)
    forward = flop(lambda: model(images)) / 100
    both = flop(lambda: F.cross_entropy(model(images)[0], labels).backward()) / 100
    taps = MNIST.taps(TRIAL.length)
    scored = flop(lambda: ForwardPass(model, images, None, taps, grad=True).g(labels)) / 100
    search = 2 * len(pool) * len(validation) * TRIAL.length
    hidden = model.before_dropout(images)
    sampled = flop(lambda: model.after_dropout(hidden)) / 100

    some = pool.subset(torch.arange(min(options.images, len(pool))))
    sampling = lambda: uncertainty("varR", [model], some, SAMPLES, torch.Generator(), batch)  # noqa: E731
    uncertainty("varR", [model], some.subset(torch.arange(batch)), 2, torch.Generator(), batch)
    sampling_seconds = fastest(2, sampling)[0]
    sgd = clock.seconds["fit"] - clock.seconds["after epochs"]
    trained = options.epochs * record["labelled"]
    described = (len(pool) + len(validation)) * scored + search
    few, many = (matrix_product_rate(threads) for threads in (MNIST.training_threads, torch.get_num_threads()))
    rows = [
        ("SGD steps", sgd, trained * both / few),
        ("evaluation", clock.seconds["evaluation"], clock.amounts["evaluated"] * forward / many),
        ("descriptors", clock.seconds["descriptors"], described / many),
        (f"sampling, K={SAMPLES}", sampling_seconds, len(some) * SAMPLES * sampled / many),
    ]
    print(f"\n{few / 1e9:.0f} GFLOP/s with {MNIST.training_threads} thread(s), {many / 1e9:.0f} with all\n")
    print(f"{'part':<18}{'seconds':>10}{'limit':>9}{'ratio':>8}")
    for name, seconds, limit in rows:
        print(f"{name:<18}{seconds:>10.3f}{limit:>9.3f}{seconds / limit:>8.1f}")


def flop(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# The plain implementation


class PilImages(Dataset):
    """A split's images as PIL items, transformed one by one."""

    def __init__(self, split: Split):
        self.images, self.labels = split.images.squeeze(1).cpu().numpy(), split.labels.tolist()
        self.transform = Compose([ToTensor(), Normalize(split.mean, split.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class Plain:
    """The iteration by examples/paper.py on images from a DataLoader.

    Attributes:
        clock: seconds of its parts.
        chosen: (n,) positions of the chosen images in the pool.
        accuracy: best test accuracy over the epochs, in percent.
    """

    def __init__(self, work: Workspace, workers: int, epochs: int):
        self.workers, self.clock, current = workers, Clock(work.device), iteration(work, B)
        (self.model,), _ = current.starting_models()
        before, start = current.queried_before(), current.generator("acquire")
        with self.clock.part("descriptors"):
            descriptors = self.describe(current.pool, current.validation)
        with self.clock.part("matching"):
            self.chosen = self.choose(*descriptors, self.errors(current.validation), before, start)
        with self.clock.part("retraining"):
            self.accuracy = self.retrain(current.pool.subset(torch.cat([before, self.chosen])), work.test, epochs)

    def loader(self, split: Split, batch_size: int = 10_000, shuffle: bool = False) -> DataLoader:
        return DataLoader(PilImages(split), batch_size, shuffle=shuffle, num_workers=self.workers)

    def tapped(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, taps = self.model(images)
        return logits, [taps[i] for i in MNIST.taps(TRIAL.length)]

    def describe(self, pool: Split, validation: Split) -> tuple[list[Tensor], list[Tensor]]:
        """z and g of the pool and of the validation set, one pass over the images for z and one for g."""
        self.model.eval()

        def features(split: Split) -> list[Tensor]:
            batches = [paper.z(self.tapped, images) for images, _ in self.loader(split)]
            return [torch.cat(scale) for scale in zip(*batches, strict=True)]

        def scores(split: Split, labels: Tensor) -> list[Tensor]:
            parts = zip(self.loader(split), labels.split(10_000), strict=True)
            batches = [paper.g(self.tapped, images, part) for (images, _), part in parts]
            return [torch.cat(scale) for scale in zip(*batches, strict=True)]

        z_pool, z_validation = features(pool), features(validation)
        labels = paper.nearest_labels(paper.similarity(z_pool, z_validation), validation.labels)
        return z_pool + scores(pool, labels), z_validation + scores(validation, validation.labels)

    @torch.no_grad()
    def errors(self, split: Split) -> Tensor:
        """Positions of the misclassified images."""
        self.model.eval()
        wrong = [self.model(images)[0].argmax(1) != labels for images, labels in self.loader(split)]
        return torch.cat(wrong).nonzero().flatten()

    def choose(
        self, pool: list[Tensor], validation: list[Tensor], wrong: Tensor, before: Tensor, start: torch.Generator
    ) -> Tensor:
        errors, n = [scale[wrong] for scale in validation], MNIST.query_size
        R = paper.similarity(errors, pool)
        if len(wrong) > n:
            first = int(torch.randint(len(wrong), (1,), generator=start))
            R = R[paper.k_centre(paper.similarity(errors, errors), n, first)]
        R[:, before] = -torch.inf
        return torch.tensor(paper.walk(R, n))

    def retrain(self, labelled: Split, test: Split, epochs: int) -> float:
        """The best test accuracy in percent, epoch 0 included."""
        recipe, loader = MNIST.retraining, self.loader(labelled, MNIST.retraining.batch_size, shuffle=True)
        optimiser = torch.optim.SGD(self.model.parameters(), recipe.lr, recipe.momentum)
        fewest, _ = len(self.errors(test)), snapshot(self.model)
        for epoch in range(1, epochs + 1):
            optimiser.param_groups[0]["lr"] = recipe.lr * recipe.schedule(epoch, 1.0)
            self.model.train()
            for images, labels in loader:
                optimiser.zero_grad()
                F.cross_entropy(self.model(images)[0], labels).backward()
                optimiser.step()
            if (errors := len(self.errors(test))) < fewest:
                fewest, _ = errors, snapshot(self.model)
        return 100 * (1 - fewest / len(test))


def print_plain(plain: Plain, clock: Clock, record: Record, work: Workspace) -> None:
    ours = iteration(work, B + 1).queried_before()[-MNIST.query_size :]
    common = len(set(ours.tolist()) & set(plain.chosen.tolist()))
    plain_times = {**plain.clock.seconds, "total": sum(plain.clock.seconds.values())}
    print(f"\n{'part':<18}{'ours':>10}{'plain':>10}{'ratio':>8}")
    for name, plain_seconds in plain_times.items():
        print(
            f"{name:<18}{clock.seconds[name]:>10.3f}{plain_seconds:>10.3f}{plain_seconds / clock.seconds[name]:>8.1f}"
        )
    print(f"\n{common} of {len(ours)} chosen images are the same; test accuracy {record['accuracy']:.2f} % here and")
    print(f"{plain.accuracy:.2f} % in the plain implementation, with different shuffles")


if __name__ == "__main__":
    sys.exit(guarded(main))
