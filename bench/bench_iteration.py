"""One AL iteration of MNIST, ir=100, Rzg_pz L80, b=3 (375 -> 500 labels): the times of its parts, in comparison with a
plain implementation and with the time of its arithmetic.

    python3 bench/bench_iteration.py                       # about four minutes on 2 CPU cores
    python3 bench/bench_iteration.py --without plain       # one minute
    python3 bench/bench_iteration.py --epochs 2 --images 2000      # a quick check of this script

The models before b=3 are trained first, in a temporary folder, and the rotation model for one epoch alone: accuracies
are no results. In the plain implementation every image is a PIL item of a DataLoader, z and g of the descriptors take
separate passes over the images, k-centre computes all similarities in every step, and every epoch is evaluated on all
test images. It starts from the same weights and labels.

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

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import Compose, Normalize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alfk.cli.options import positive
from alfk.data.split import Split
from alfk.experiment import train as retraining
from alfk.experiment.choose import acquire
from alfk.experiment.config import Experiment
from alfk.experiment.describe import describe
from alfk.experiment.folder import RunFolder
from alfk.experiment.loop import active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.records import Record
from alfk.experiment.round import Round
from alfk.experiment.training import Evaluator
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace
from alfk.method.descriptors import ForwardPass, standardise
from alfk.method.uncertainty import uncertainty
from alfk.networks.weights import snapshot
from bench.common import Clock, fastest, guarded, machine, matrix_product_rate, mnist_on, mnist_parser
from mnist.config import MNIST

TRIAL = Trial(ir=100, method="Rzg_pz", length=80)
B = 3  # the iteration that is timed
SAMPLES = 16  # dropout samples per image in the timing of sampling; time is proportional to their number


def main() -> int:
    options = parse()
    torch.backends.cudnn.deterministic = True  # as the scripts do
    train, test = mnist_on(options)
    device = train.device
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(Path(root), 0)
        folder.create()
        work = Workspace(with_epochs(options.epochs), folder, train, test, seed=0, device=device)
        print(f"{machine(device)}; {MNIST.training_threads} thread(s) in training steps", flush=True)
        warm_up(work)
        clock = Clock(device)
        record = timed_iteration(work, clock)
        print_parts(clock, record, options)
        if "limits" not in options.without:
            print_limits(work, clock, record, options)
        if "plain" not in options.without:
            plain = Plain(work, options.workers)
            plain.iteration(options.epochs)
            print_plain(plain, clock, record, work)
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


def with_epochs(epochs: int) -> Experiment:
    """MNIST with `epochs` epochs per iteration and one epoch of pretraining."""
    retraining, pretraining = replace(MNIST.retraining, epochs=epochs), replace(MNIST.pretraining, epochs=1)
    return replace(MNIST, retraining=retraining, pretraining=pretraining)


def warm_up(work: Workspace) -> None:
    """Initial models and AL iterations 0 to b-1."""
    start = time.perf_counter()
    make_initial_models(work, TRIAL.ir, TRIAL.nr)
    active_learning(replace_iterations(work, B), [TRIAL])
    epochs = work.experiment.retraining.epochs
    seconds = time.perf_counter() - start
    print(f"trained the models before b={B}, {epochs} epoch(s) per iteration, in {seconds:.1f} s", file=sys.stderr)


def replace_iterations(work: Workspace, count: int) -> Workspace:
    return replace(work, experiment=replace(work.experiment, iterations=count))


def timed_iteration(work: Workspace, clock: Clock) -> Record:
    """AL iteration b with the stages of the scripts. Returns its results record."""
    current = Round(work, TRIAL, B)
    with clock.part("descriptors"):
        describe(current)
    with clock.part("matching"):
        acquire(current)
    with retraining_timed(clock), clock.part("retraining"):
        return retraining.retrain(current)


@contextlib.contextmanager
def retraining_timed(clock: Clock) -> Iterator[None]:
    """Inside the block evaluations are timed, their images counted, and the SGD steps between them timed."""
    evaluate, fetch, fit = Evaluator.__call__, Split.batches, retraining.fit

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

    with mock.patch.object(Evaluator, "__call__", timed_evaluate), mock.patch.object(retraining, "fit", timed_fit):
        yield


def steps_of(record: Record, epochs: int) -> int:
    return epochs * -(-record["labelled"] // MNIST.retraining.batch_size)


def print_parts(clock: Clock, record: Record, options: argparse.Namespace) -> None:
    """Print the times of the iteration's parts."""
    seconds = clock.seconds
    total = seconds["descriptors"] + seconds["matching"] + seconds["retraining"]
    sgd, evaluation = seconds["fit"] - seconds["after epochs"], seconds["evaluation"]
    evaluated, whole = clock.amounts["evaluated"], (options.epochs + 1) * 10_000
    sizes = f"{record['misclassified']:,} misclassified, {record['centres']} centres"
    lines = [
        ("descriptors", seconds["descriptors"], "validation and pool, with pseudo-labels, written to files"),
        ("matching", seconds["matching"], sizes),
        ("SGD steps", sgd, f"{steps_of(record, options.epochs):,} of {MNIST.retraining.batch_size} images"),
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
    after = Round(work, TRIAL, B + 1)
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
    """A plain implementation of the iteration."""

    def __init__(self, work: Workspace, workers: int):
        self.work, self.workers, self.clock = work, workers, Clock(work.device)
        self.current = Round(work, TRIAL, B)
        self.pool, self.validation = self.current.pool, self.current.validation
        (self.model,), _ = self.current.starting_models()
        self.taps = MNIST.taps(TRIAL.length)
        self.accuracy = 0.0
        self.chosen = torch.empty(0)

    def iteration(self, epochs: int) -> None:
        before = self.current.labelled_before()
        with self.clock.part("descriptors"):
            pool, validation = self.describe()
        with self.clock.part("matching"):
            self.chosen = self.choose(pool, validation, before)
        with self.clock.part("retraining"):
            self.retrain(torch.cat([before, self.chosen]), epochs)

    def loader(self, split: Split, batch_size: int, shuffle: bool = False) -> DataLoader:
        return DataLoader(PilImages(split), batch_size, shuffle=shuffle, num_workers=self.workers)

    def describe(self) -> tuple[Tensor, Tensor]:
        """[z, g] of pool and validation set, with one pass over the images for z and one for g."""
        validation_z, pool_z = self.features(self.validation), self.features(self.pool)
        labels = self.validation.labels[(pool_z @ validation_z.T).argmax(1)]
        validation = torch.cat([validation_z, self.scores(self.validation, self.validation.labels)], 1)
        return torch.cat([pool_z, self.scores(self.pool, labels)], 1), validation

    @torch.no_grad()
    def features(self, split: Split) -> Tensor:
        self.model.eval()
        found = []
        for images, _ in self.loader(split, 10_000):
            taps = self.model(images)[1]
            found.append(standardise([taps[i].flatten(2).mean(2) if taps[i].ndim > 2 else taps[i] for i in self.taps]))
        return torch.cat(found)

    def scores(self, split: Split, labels: Tensor) -> Tensor:
        self.model.eval()
        found, start = [], 0
        for images, _ in self.loader(split, 10_000):
            logits, taps = self.model(images)
            loss = F.cross_entropy(logits, labels[start : start + len(images)], reduction="sum")
            gradients = torch.autograd.grad(loss, [taps[i] for i in self.taps])
            found.append(standardise([g.flatten(2).mean(2) if g.ndim > 2 else g for g in gradients]))
            start += len(images)
        return torch.cat(found)

    def choose(self, pool: Tensor, validation: Tensor, before: Tensor) -> Tensor:
        """Greedy k-centre with all similarities recomputed in every step, then matches rank by rank."""
        errors, n = validation[self.misclassified()], MNIST.query_size
        start = int(torch.randint(len(errors), (1,), generator=self.current.generator("acquire")))
        centres = [start]
        while len(centres) < min(n, len(errors)):
            closest = (errors @ errors[centres].T).amax(1)
            closest[centres] = torch.inf
            centres.append(int(closest.argmin()))
        similarity = errors[centres] @ pool.T
        similarity[:, before] = -torch.inf
        value, index = similarity.topk(50, dim=1)
        order = value.argsort(dim=0, descending=True, stable=True)
        walk = index.gather(0, order).T.flatten().numpy()
        _, first = np.unique(walk, return_index=True)
        return torch.from_numpy(walk[np.sort(first)[:n]])

    @torch.no_grad()
    def misclassified(self) -> Tensor:
        self.model.eval()
        loader = self.loader(self.validation, 10_000)
        return torch.cat([self.model(images)[0].argmax(1) != labels for images, labels in loader]).nonzero().flatten()

    def retrain(self, labelled: Tensor, epochs: int) -> None:
        recipe, loader = MNIST.retraining, self.loader(self.pool.subset(labelled), 25, shuffle=True)
        optimiser = torch.optim.SGD(self.model.parameters(), recipe.lr, recipe.momentum)
        self.accuracy, best = self.test(), snapshot(self.model)
        for epoch in range(1, epochs + 1):
            optimiser.param_groups[0]["lr"] = recipe.lr * recipe.schedule(epoch, 1.0)
            self.model.train()
            for images, labels in loader:
                optimiser.zero_grad()
                F.cross_entropy(self.model(images)[0], labels).backward()
                optimiser.step()
            accuracy = self.test()
            if accuracy > self.accuracy:
                self.accuracy, best = accuracy, snapshot(self.model)
        nn.Module.load_state_dict(self.model, best)

    @torch.no_grad()
    def test(self) -> float:
        self.model.eval()
        loader = self.loader(self.work.test, 10_000)
        correct = sum(int((self.model(images)[0].argmax(1) == labels).sum()) for images, labels in loader)
        return 100 * correct / len(self.work.test)


def print_plain(plain: Plain, clock: Clock, record: Record, work: Workspace) -> None:
    ours = Round(work, TRIAL, B).labelled()[0][-MNIST.query_size :]
    common = len(set(ours.tolist()) & set(plain.chosen.tolist()))
    plain_times = {**plain.clock.seconds, "total": sum(plain.clock.seconds.values())}
    print(f"\n{'part':<18}{'ours':>10}{'plain':>10}{'ratio':>8}")
    for name in ("descriptors", "matching", "retraining", "total"):
        seconds, plain_seconds = clock.seconds[name], plain_times[name]
        print(f"{name:<18}{seconds:>10.3f}{plain_seconds:>10.3f}{plain_seconds / seconds:>8.1f}")
    print(
        f"\n{common} of {len(ours)} chosen images are the same; test accuracy {record['accuracy']:.2f} % and", end=" "
    )
    print(f"{plain.accuracy:.2f} %, with different shuffles")


if __name__ == "__main__":
    sys.exit(guarded(main))
