"""The points of bench/gpu.py. Each is a function that yields the rows of its part of the table one by one."""

import copy
import dataclasses
import functools
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from statistics import fmean, median
from typing import IO

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alfk.cli.options import ROOT
from alfk.data.image_files import MEMORY, ImageFiles, default_workers, has_dali
from alfk.data.split import Split
from alfk.experiment.folder import RunFolder
from alfk.experiment.memory import peak_mib, reset_peak
from alfk.experiment.records import Record
from alfk.experiment.training import fit
from alfk.experiment.trial import Trial
from alfk.method.acquisition import acquire, get_method, measure
from alfk.method.descriptors import descriptors_of
from alfk.method.inputs import Measurement, Sampling
from alfk.method.matching import Rows, k_centre, match
from alfk.method.pseudo_labels import predicted
from alfk.method.registry import Situation
from alfk.method.selection import Selection
from alfk.own.queries import query
from alfk.rivals.facility_location import Factors, facility_location
from alfk.rivals.flqmi import RENEW
from alfk.support.checkpoints import load_checkpoint
from alfk.support.errors import UserError
from alfk.support.seeding import generator
from bench.bench_loaders import fastest, pass_over
from bench.bench_scale import CHUNK, timed
from bench.bench_scale import descriptors as rows_with_spectrum
from bench.common import mnist_is_in
from imagenet.config import IMAGENET
from mnist.config import EXPERIMENTS, MNIST
from mnist.custom_datasets.digits import load_digits
from mnist.custom_datasets.mnist import load_mnist

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")
RECORDED = ROOT / "results"  # lines of runs on CPUs


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        what: was measured.
        value: found on the device.
        unit: of `value` and `cpu`.
        cpu: the same on the CPU.
    """

    what: str
    value: float | bool | str
    unit: str = ""
    cpu: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a point works.

    Attributes:
        device: that is to be shown.
        small: whether sizes are small.
        datadir: with MNIST/raw.
        photos: with train/<class>/*.JPEG.
        folder: temporary, for the files of all points.
        ends: when the point is ended, in seconds of `time.monotonic`.
    """

    device: torch.device
    small: bool
    datadir: Path
    photos: Path
    folder: Path
    ends: float

    @property
    def no_mnist(self) -> str:
        """Why MNIST is not used, or nothing."""
        if self.small:
            return "small sizes"
        return "" if mnist_is_in(self.datadir / "MNIST") else f"MNIST is not in {self.datadir}"


# (a) Active learning


def active_learning(setting: Setting) -> Iterator[Row]:
    """Runs of mnist/run.py side by side, their seconds, and their accuracies beside those on the CPU.

    Iterations that there is no time for are left out.
    """
    name, runs = ("DIGITS", 1) if setting.no_mnist else ("MNIST", 3)
    few = ["--iterations", 2, "-e", 2, "--unsup-epochs", 1] if setting.small else []
    trial = Trial(EXPERIMENTS[name].default_ir, "Rzg_pz", 80)
    yield Row("data set", name, note=setting.no_mnist)

    def learn(device: torch.device, folder: Path) -> Iterator[float]:
        """The seconds of each of the two commands."""
        flags = ["--dataset", name, "--datadir", setting.datadir, "--save-folder", folder, "--device", device]
        flags += ["--methods", trial.method, "-dl", trial.length, "-ir", trial.ir, "--run-stop", runs, "--jobs", runs]
        for stage in (["--initial"], []):
            yield run_script("mnist/run.py", *stage, *flags, *few, limit=setting.ends - time.monotonic() - 5)[0]

    learning = learn(setting.device, setting.folder / "runs")
    yield Row(f"initial models, {runs} runs at a time", next(learning), "s")
    seconds, found = next(learning), records_of(trial, setting.folder / "runs", runs)
    yield Row(f"{len(found)} iterations, {runs} runs at a time", seconds, "s")
    if not found:
        raise RuntimeError("no iteration was finished in time")
    for stage in ("describe", "acquire", "retrain"):  # each run's first iteration loads libraries
        yield Row(f"an iteration: {stage}, median", median(record["seconds"][stage] for record in found), "s")
    yield Row("peak memory", max(record["peak_memory_mib"] for record in found), "MiB")
    on_cpu, source = records_of(trial, RECORDED / name, runs), f"results/{name}"
    if not on_cpu:
        list(learn(CPU, setting.folder / "on_cpu"))
        on_cpu, source = records_of(trial, setting.folder / "on_cpu", runs), "computed now"
    for b in sorted({record["b"] for record in found}):
        here, there = ([record["accuracy"] for record in records if record["b"] == b] for records in (found, on_cpu))
        each = " ".join(f"{value:.2f}" for value in here)
        beside = fmean(there) if there else None
        yield Row(f"test accuracy, b={b}", fmean(here), "%", beside, f"{each}; CPU: {source}")


def records_of(trial: Trial, folder: Path, runs: int) -> list[Record]:
    """The results records of a trial in the first runs of a folder."""
    records = [record for number in range(runs) for record in RunFolder(folder, number).results()]
    return [record for record in records if trial.describes(record)]


# (b) Descriptors


def descriptors(setting: Setting) -> Iterator[Row]:
    """The inputs of Rzg_pz L80 and its choice, computed twice on the device and once on the CPU.

    torch convolves in TF32 on a GPU, with 10 bits of mantissa: a third time is without, to tell that from errors.
    """
    problem, note = lenet_problem(setting, validation=200 if setting.small else 10_000)
    yield Row("images", len(problem.pool) + len(problem.validation), note=note)
    first = problem.to(setting.device).measured()  # the first call loads libraries
    seconds, _, second = timed(setting.device, problem.to(setting.device).measured)
    cpu_seconds, _, other = timed(CPU, problem.measured)
    torch.backends.cudnn.allow_tf32 = False  # of this point's process
    exact = problem.to(setting.device).measured()
    sides = "validation", "pool"
    here, again, without, there = (
        [torch.cat([getattr(getattr(measurement, side), part).cpu() for side in sides]) for part in PARTS]
        for measurement in (first, second, exact, other)
    )
    yield Row("descriptors and pseudo-labels", seconds, "s", cpu_seconds)
    yield Row("two calls give the same bits", all(map(torch.equal, here, again)))
    for found, how in ((here, ""), (without, ", without TF32")):
        yield Row(f"equal pseudo-labels as on the CPU{how}", share(found[1] == there[1]), "%")
        yield Row(f"equal predictions as on the CPU{how}", share(found[2] == there[2]), "%")
        same = found[1] == there[1]
        differences = (found[0] - there[0])[same].abs()
        note = "of images with equal pseudo-labels; entries have standard deviation 1"
        yield Row(f"largest difference to the CPU{how}", float(differences.max()), note=note)
        yield Row(f"mean difference to the CPU{how}", float(differences.mean()))
    for n in (10, 50) if setting.small else (125, 1250):
        chosen, beside = problem.chosen(first, n), problem.chosen(other, n)
        note = f"{beside.misclassified} misclassified, {beside.centres} centres"
        yield Row(
            f"equal choices as on the CPU, n={n}", share(torch.isin(chosen.indices, beside.indices)), "%", note=note
        )


PARTS = "vectors", "pseudo_labels", "predictions"
METHOD = get_method("Rzg_pz")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A briefly trained LeNet with a pool and a validation set, on one device."""

    model: nn.Module
    pool: Split
    validation: Split

    def to(self, device: torch.device) -> "Problem":
        return Problem(copy.deepcopy(self.model).to(device), self.pool.to(device), self.validation.to(device))

    def measured(self) -> Measurement:
        """Descriptors of both splits."""
        splits, sampling = (self.pool, self.validation), Sampling(generator(0, "samples"))
        return measure(METHOD, [self.model], *splits, sampling, MNIST.taps(80), MNIST.descriptor_batch)

    def chosen(self, measurement: Measurement, n: int) -> Selection:
        """The choice by a measurement, on its device."""
        available, source = torch.ones(len(self.pool), dtype=torch.bool), generator(0, "acquire")
        labels = self.validation.labels.to(measurement.validation.vectors.device)
        return acquire(METHOD, Situation(available, n, source, measurement, labels))


def lenet_problem(setting: Setting, validation: int) -> tuple[Problem, str]:
    """A problem on the CPU, of MNIST's training images or as many made from DIGITS, and what it is made of."""
    if not setting.no_mnist:
        images, note = load_mnist(setting.datadir / "MNIST")[0], "MNIST"
    else:
        images, note = load_digits()[0], f"DIGITS, repeated with noise; {setting.no_mnist}"
        copies = 1 if setting.small else 43
        pixels = images.images.repeat(copies, 1, 1, 1).float()
        pixels += 8 * torch.randn(pixels.shape, generator=generator(0, "noise"))
        images = Split(pixels.clamp_(0, 255).byte(), images.labels.repeat(copies), images.mean, images.std)
    order = torch.randperm(len(images), generator=generator(0, "split"))
    model = MNIST.network(MNIST.classes)
    MNIST.initialise(model, generator(0, "model"))
    part = images.subset(order[: 500 if setting.small else 5_000])
    fit(model, part, dataclasses.replace(MNIST.retraining, epochs=1), generator(0, "train"), threads=1)
    return Problem(model, images.subset(order[validation:]), images.subset(order[:validation])), note


def share(equal: Tensor) -> float:
    """The true ones, in percent."""
    return 100 * float(equal.double().mean())


# (c) Choosing at SVHN's size


def choosing(setting: Setting) -> Iterator[Row]:
    """k-centre, matching and facility location on rows with the spectrum of MNIST's descriptors; seconds and memory."""
    pool, errors, length, n = (2_000, 300, 64, 50) if setting.small else (500_000, 20_000, 1_536, 1_250)
    smaller = 10  # times on both sides, for the comparison with the CPU
    draw = rows_with_spectrum(length, torch.Generator(setting.device).manual_seed(0))
    rows, centres = torch.empty(pool, length, device=setting.device), draw(errors)
    for part in rows.split(CHUNK):
        part.copy_(draw(len(part)))
    note = f"{n:,} of {pool:,} rows of {length:,} entries, {errors:,} misclassified"
    yield Row("the descriptors themselves", rows.nbytes / 2**20, "MiB", note=note)
    few = rows[: pool // smaller], centres[: errors // smaller], max(1, n // smaller)
    few_on_cpu = few[0].cpu(), few[1].cpu(), few[2]
    for name, choose in CHOICES.items():
        choose(*few)  # the first call loads libraries
        seconds, peak, _ = timed(setting.device, functools.partial(choose, rows, centres, n))
        yield Row(name, seconds, "s")
        yield Row(f"{name}: peak memory", peak, "MiB", note="descriptors included")
        seconds, _, here = timed(setting.device, functools.partial(choose, *few))
        cpu_seconds, _, there = timed(CPU, functools.partial(choose, *few_on_cpu))
        yield Row(f"{name}: a {smaller}th of all sizes", seconds, "s", cpu_seconds)
        yield Row(f"{name}: equal choices as on the CPU", share(torch.isin(here.cpu(), there)), "%")
    seconds, *_ = timed(setting.device, functools.partial(CHOICES["matching"], rows.cpu().numpy(), centres, n))
    yield Row("matching, the pool in the CPU's memory", seconds, "s")


def all_available(pool: Rows) -> Tensor:
    return torch.ones(len(pool), dtype=torch.bool)


CHOICES: dict[str, Callable[[Rows, Tensor, int], Tensor]] = {  # pool, misclassified images, n -> what is chosen
    "k-centre": lambda pool, errors, n: k_centre(errors, n, 0),
    "matching": lambda pool, errors, n: match(errors, pool, all_available(pool), n, generator(0, "start")).indices,
    "facility location": lambda pool, errors, n: (
        facility_location(Factors(pool), Factors(errors), all_available(pool), n, renew=RENEW).indices
    ),
}


# (d) Photos


def photos(setting: Setting) -> Iterator[Row]:
    """Images a second that are loaded, described and trained on, by ResNet-18."""
    size, batch = (32, 8) if setting.small else (IMAGENET.image_size, IMAGENET.descriptor_batch)
    files = [] if setting.small else some_files(setting.photos / "train")
    note = f"{len(files):,} of {setting.photos}"
    if not files:
        files = made_up_photos(setting.folder, 16 if setting.small else 1_200)
        note = f"{len(files):,} made-up JPEG files of 500 x 375 pixels"
    root = files[0].parents[1]
    paths = np.array([os.fsencode(path.relative_to(root)) for path in files])
    classes = sorted({path.parent.name for path in files})
    labels = torch.tensor([classes.index(path.parent.name) for path in files])

    def split(loader: str, memory: int = 0) -> Split:
        store = ImageFiles(root, paths, size, loader, default_workers(), setting.device, memory)
        return Split(store, labels, IMAGENET.mean, IMAGENET.std)

    yield Row("photos", f"{size} pixels", note=f"{note}; {default_workers()} workers")
    for loader in ("torchvision", *["dali"] * has_dali()):
        for purpose, seed in (("evaluation", None), ("training", 0)):
            read = functools.partial(pass_over, split(loader), batch, seed)
            yield Row(f"loading for {purpose}, {loader}", len(files) / fastest(read, 1 if setting.small else 3), RATE)
    count = 16 if setting.small else 2_048
    rows = torch.arange(count) % len(files)
    decoded = split("torchvision", MEMORY).images
    images = Split(decoded.to(setting.device), labels, IMAGENET.mean, IMAGENET.std).subset(rows)
    torch.manual_seed(0)
    model = IMAGENET.network(len(classes)).to(setting.device, memory_format=torch.channels_last)
    describe = functools.partial(descriptors_of, model, images, IMAGENET.taps(768), predicted, batch)
    describe()  # the first call loads libraries
    yield Row("description, L=768, z and g", count / timed(setting.device, describe)[0], RATE, note="images in memory")
    yield from training(setting, model, images)


def training(setting: Setting, model: nn.Module, images: Split) -> Iterator[Row]:
    """Images a second of the last epoch, with and without --amp and --compile."""
    epochs, batch = (2, 8) if setting.small else (3, IMAGENET.retraining.batch_size)
    for amp, compiled in ((False, False), (True, False), (True, True), (False, True)):
        name = ("bfloat16 (--amp)" if amp else "float32") + ", --compile" * compiled
        if setting.small and compiled:
            yield Row(f"training, {name}", "left out", note="takes a minute")
            continue
        recipe, ends = dataclasses.replace(IMAGENET.retraining, epochs=epochs, batch_size=batch), []
        recipe = dataclasses.replace(recipe, amp=amp, compiled=compiled)
        reset_peak(setting.device)
        start = time.perf_counter()
        fit(model, images, recipe, generator(0), after_epoch=lambda _: ends.append(time.perf_counter()))  # noqa: B023
        note = f"images in memory; first epoch {ends[0] - start:.1f} s, peak {peak_mib(setting.device):,} MiB"
        yield Row(f"training, {name}", len(images) / (ends[-1] - ends[-2]), RATE, note=note)


RATE = "images/s"


def some_files(root: Path) -> list[Path]:
    """Up to 240 images of each of the first ten classes; none if there is no such folder."""
    classes = sorted(path for path in root.iterdir() if path.is_dir())[:10] if root.is_dir() else []
    return [path for folder in classes for path in sorted(folder.glob("*.JPEG"))[:240]]


def made_up_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of smooth noise with some detail, in ten classes: folder/<class>/<i>.JPEG."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 40, (375, 500, 3), dtype=np.uint8)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 200, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        paths.append(folder / "photos" / f"class{i % 10}" / f"{i}.JPEG")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.minimum(pixels, 215) + fine).save(paths[-1], quality=90)
    return sorted(paths)


# (e) Killed and resumed, (f) one process under torchrun


def resuming(setting: Setting) -> Iterator[Row]:
    """A run of DIGITS that is killed in an iteration and started again, beside one that is not."""
    with_initial_models(setting, killed := setting.folder / "killed")
    output = undisturbed(setting)
    with open(os.devnull, "w") as nowhere:
        process = start_script(deterministic_run(setting, killed), nowhere)
        while process.is_alive() and not list(killed.glob("run0/checkpoint/query_*batch_1_*")):
            time.sleep(0.001)
        process.kill()
        process.join()
    yield Row("killed in iteration 1", process.exitcode == -signal.SIGKILL)
    run_script(*deterministic_run(setting, killed))
    yield from same_runs(setting.folder / "undisturbed", killed)
    operations = sorted(set(re.findall(r"(\S+) does not have a deterministic", output)))
    yield Row("operations without a deterministic algorithm", ", ".join(operations) or "none")


def one_process(setting: Setting) -> Iterator[Row]:
    """A run of DIGITS by one process under torchrun beside one without it; and the collectives of a group of one."""
    with_initial_models(setting, group := setting.folder / "group")
    undisturbed(setting)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    torchrun += ["--local-addr", "127.0.0.1"]  # without a network the host's own name may have no address
    done = subprocess.run(
        [*torchrun, *deterministic_run(setting, group)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"torchrun: {last_line(done.stderr.decode())}")
    yield from same_runs(setting.folder / "undisturbed", group)
    backend, name = "gloo", "gloo"
    if setting.device.type == "cuda":
        torch.cuda.set_device(setting.device)
        backend, name = "cpu:gloo,cuda:nccl", "nccl"  # as in alfk.support.distributed
    dist.init_process_group(backend, init_method=f"file://{setting.folder}/store", rank=0, world_size=1)
    yield Row(f"{name}: collectives return what they were given", collectives_work(setting.device))
    note = "weights after an SGD step through DistributedDataParallel"
    yield Row(f"{name}: largest difference to a step without", ddp_difference(setting.device), note=note)
    dist.destroy_process_group()


def deterministic_run(setting: Setting, folder: Path, *stage: str) -> list[str]:
    """The command of a run of DIGITS with deterministic algorithms."""
    flags = ["--dataset", "DIGITS", "--methods", "Rzg_pz", "-dl", 80, "--run-stop", 1, "--iterations", 3]
    flags += ["-e", 3, "--unsup-epochs", 1] if setting.small else ["-e", 20, "--unsup-epochs", 4]
    flags += ["--device", setting.device, "--save-folder", folder]
    return [str(each) for each in ("bench/deterministic.py", "mnist/run.py", *stage, *flags)]


def with_initial_models(setting: Setting, folder: Path) -> None:
    """Make `folder`, a run with its initial models, which are computed once for all points."""
    initial = setting.folder / "initial"
    run_script(*deterministic_run(setting, initial, "--initial"))
    shutil.copytree(initial, folder)


def undisturbed(setting: Setting) -> str:
    """Learn in the run `undisturbed`, once for all points; returns what was printed."""
    folder = setting.folder / "undisturbed"
    if not folder.exists():
        with_initial_models(setting, folder)
    return run_script(*deterministic_run(setting, folder))[1]


def same_runs(one: Path, other: Path) -> Iterator[Row]:
    """Whether the checkpoints of two runs have the same weights, to the bit, and the same images were chosen."""
    folders = [folder / "run0" for folder in (one, other)]
    names = [sorted(path.name for path in folder.glob("checkpoint/best_*.pt")) for folder in folders]
    weights = [
        torch.cat([value.double().flatten() for name in names[0] for value in weights_in(folder / "checkpoint" / name)])
        for folder in folders
    ]
    choices = [[np.load(path).tolist() for path in sorted(folder.glob("index_list_*.npy"))] for folder in folders]
    note = f"{len(names[0])} checkpoints, largest difference {float((weights[0] - weights[1]).abs().max()):.1g}"
    yield Row("the same weights to the bit", names[0] == names[1] and torch.equal(*weights), note=note)
    yield Row("the same choices", choices[0] == choices[1])


def weights_in(checkpoint: Path) -> list[Tensor]:
    return list(load_checkpoint(checkpoint, {})[0].values())


def collectives_work(device: torch.device) -> bool:
    """Whether the collectives of `alfk.support.distributed` return, in a group of one, what they were given."""
    given = torch.arange(5.0, device=device)
    gathered, sent, objects, listed = [torch.empty_like(given)], given.clone(), [None], ["listed"]
    dist.all_gather(gathered, given)
    dist.broadcast(sent, src=0)
    dist.all_gather_object(objects, "object")
    dist.broadcast_object_list(listed, src=0)
    return torch.equal(gathered[0], given) and torch.equal(sent, given) and objects + listed == ["object", "listed"]


def ddp_difference(device: torch.device) -> float:
    """The largest difference of weights after an SGD step through DistributedDataParallel, and after one without."""
    source, alone = generator(0, "step"), MNIST.network(MNIST.classes)
    MNIST.initialise(alone, source)
    images, labels = torch.randn(100, 1, 28, 28, generator=source).to(device), torch.arange(100, device=device) % 10
    alone = alone.to(device)
    group = DistributedDataParallel(copy.deepcopy(alone), [device] if device.type == "cuda" else None)
    for network in (alone, group):
        F.cross_entropy(network(images)[0], labels).backward()
        torch.optim.SGD(network.parameters(), 0.05).step()
    one, other = (nn.utils.parameters_to_vector(network.parameters()).detach() for network in (alone, group))
    return float((one - other).abs().max())


# (g) Model and pool on different devices


def devices(setting: Setting) -> Iterator[Row]:
    """alfk.query with the model on one device and the images on the other: the same choice, or a line that refuses."""
    problem, note = lenet_problem(setting, validation=200 if setting.small else 2_000)
    problem = dataclasses.replace(problem, pool=problem.pool.subset(torch.arange(min(5_000, len(problem.pool)))))
    here = problem.to(setting.device)

    def chosen(model: Problem, images: Problem) -> Tensor:
        taps = MNIST.taps(80)
        return query("Rzg_pz", model.model, images.pool, images.validation, 50, taps=taps, generator=0).indices

    expected = chosen(here, here)
    yield Row(
        "all on the device: equal choices as on the CPU",
        share(torch.isin(expected, chosen(problem, problem))),
        "%",
        note=note,
    )
    for name, model, images in (
        ("model on the device, images on the CPU", here, problem),
        ("model on the CPU, images on the device", problem, here),
    ):
        try:
            yield Row(f"{name}: equal choices", share(torch.isin(chosen(model, images), expected)), "%")
        except UserError as problem_line:
            yield Row(name, f"refused: {problem_line}")


# Scripts


def run_script(*command: object, limit: float | None = None) -> tuple[float, str]:
    """Run a script as `python3 script flags` would, and kill it after `limit` seconds.

    Returns:
        seconds, and what it printed.
    Raises:
        RuntimeError: it failed; with its last line.
    """
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = start_script([str(each) for each in command], output)
        process.join(limit)
        seconds, killed = time.perf_counter() - start, process.is_alive()
        process.kill()
        process.join()
        output.seek(0)
        printed = output.read()
    if process.exitcode and not killed:
        raise RuntimeError(f"{command[0]}: {last_line(printed)}")
    return seconds, printed


def start_script(command: Sequence[str], output: IO[str]) -> ForkProcess:
    """Start a script in a process of its own, which has everything imported."""
    process = FORK.Process(target=_script, args=(command, output.fileno()))
    process.start()
    return process


def _script(command: Sequence[str], output: int) -> None:
    os.chdir(ROOT)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = [str(ROOT / command[0]), *command[1:]]  # absolute, since processes of --jobs run it again
    runpy.run_path(sys.argv[0], run_name="__main__")


def last_line(printed: str) -> str:
    return (printed.strip().splitlines() or ["it printed nothing"])[-1]
