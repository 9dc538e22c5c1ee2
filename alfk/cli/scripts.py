"""The entry points of a data set's scripts: each parses its flags, runs, and returns the exit status."""

import argparse
import datetime
import functools
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk import distributed
from alfk.cli import options as flags
from alfk.cli.guard import guard
from alfk.cli.jobs import RunTask, run_in_parallel, run_sequentially
from alfk.cli.progress import Progress, cost_table, table
from alfk.config import Experiment, Load
from alfk.data import Dataset
from alfk.errors import UserError
from alfk.runs import RunFolder, Trial
from alfk.stages.acquire import acquire
from alfk.stages.describe import databases, describe
from alfk.stages.loop import active_learning, baselines
from alfk.stages.pretrain import make_initial_models
from alfk.stages.retrain import retrain
from alfk.stages.round import Round
from alfk.stages.workspace import Report, Workspace

Experiments = Mapping[str, Experiment]  # by name; the first is the default
Options = argparse.Namespace


Annotate = Callable[[Experiment, Options, Sequence[Trial]], int]


def run(experiments: Experiments, cfgs: Mapping[str, flags.Cfg], about: str, annotate: Annotate | None = None) -> int:
    """run.py: the initial models, the baselines or all AL iterations of the configuration, for a range of runs.

    Args:
        annotate: called instead, with --annotate.
    """
    parser = flags.common_parser(experiments, about)
    flags.add_init(parser)
    flags.add_loop(parser)

    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        trials = flags.trials_of(cfgs[options.dataset], experiment, options)
        if annotate and options.annotate and not options.initial:
            return annotate(experiment, options, trials)
        return _run(experiment, trials, options)

    return guarded(parser, body, distributable=True)


def unsup(experiments: Experiments, about: str) -> int:
    """unsup.py: the initial models of one run."""
    parser = flags.common_parser(experiments, about)
    flags.add_run(parser, experiments)

    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        with Progress(total=2 * options.ensemble) as progress:
            work = open_workspace(experiment, options, options.run, progress, initial=True)
            ir = options.ir or experiment.default_ir
            make_initial_models(work, ir, options.nr, options.ensemble, options.select)
        return 0

    return guarded(parser, body, distributable=True)


def gen_descr(experiments: Experiments, about: str) -> int:
    """gen_descr.py: the descriptor databases of one AL iteration."""

    def stage(current: Round) -> None:
        describe(current)
        paths = [str(current.database(name)) for name in databases(current)]
        print("\n".join(paths) or f"{current.trial.method} needs no descriptors at b={current.b}")

    return _one_iteration(experiments, about, stage)


def main_descr(experiments: Experiments, about: str) -> int:
    """main_descr.py: matching, acquisition and retraining of one AL iteration."""

    def stage(current: Round) -> None:
        record = current.finished()
        if record is None:
            acquire(current)
            record = retrain(current)
        current.work.report("iteration", record=record)
        print(current.checkpoint)

    return _one_iteration(experiments, about, stage)


def _one_iteration(experiments: Experiments, about: str, stage: Callable[[Round], None]) -> int:
    parser = flags.common_parser(experiments, about)
    flags.add_run(parser, experiments)
    flags.add_init(parser)
    flags.add_iteration(parser)

    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        if getattr(options, "annotate", None):
            raise UserError("--annotate is for run.py, which does all stages of an iteration")
        method = flags.method_key(options.sub, options.aug)
        length = options.descr_length or experiment.default_length
        trial = flags.trial_of(
            experiment, options.ir or experiment.default_ir, method, length, options.ensemble, options
        )
        check_initial_models(experiment, options, [options.run], [trial])
        before = experiment.for_data(data(experiment, options).train).query_size * options.b
        if options.train_size not in (None, before):
            raise UserError(f"before b={options.b} {before} images are labelled, not -ts {options.train_size}")
        with Progress(total=1) as progress:
            work = open_workspace(experiment, options, options.run, progress, [trial], options.b + 1)
            with work.folder.lock(trial.name):
                stage(Round(work, trial, options.b))
        return 0

    return guarded(parser, body, distributable=True)


def _run(experiment: Experiment, trials: Sequence[Trial], options: Options) -> int:
    if options.baseline:
        trials = flags.baselines_of(trials)
    default_runs = options.run_start + 1 if options.baseline else experiment.runs
    runs = runs_of(options, default_runs)
    if not options.initial:
        check_initial_models(experiment, options, runs, trials)
    models = 2 * sum(ensemble_sizes(trials).values())
    each = models if options.initial else len(trials) * (1 if options.baseline else experiment.iterations)
    task = ExperimentRun(experiment, options, tuple(trials))
    if options.initial and distributed.is_main_process():
        ratios = " and ".join(f"{ir:g}" for ir in dict.fromkeys(trial.ir for trial in trials))
        iterations = len(runs) * len(trials) * experiment.iterations
        print(
            f"initial models: {len(runs) * each}, random and rotation, for ir={ratios} and {len(runs)} run(s)\n"
            f"next, without --initial: {len(trials)} curve(s), {iterations} AL iterations in all; "
            "ensembles of E need --initial -ens E first"
        )
    return over_runs(experiment, options, runs, task, each, [] if options.initial else trials)


def ensemble_sizes(trials: Sequence[Trial]) -> dict[tuple[float, float], int]:
    """The size of the largest ensemble for every distortion (ir, nr) of the trials."""
    sizes: dict[tuple[float, float], int] = {}
    for trial in trials:
        sizes[trial.ir, trial.nr] = max(trial.ensemble, sizes.get((trial.ir, trial.nr), 1))
    return sizes


def runs_of(options: Options, default_stop: int) -> range:
    """The runs from --run-start to before --run-stop (`default_stop`). Raises UserError if there is none."""
    stop = default_stop if options.run_stop is None else options.run_stop
    if options.run_start >= stop:
        raise UserError(f"there is no run from --run-start {options.run_start} up to before {stop}")
    return range(options.run_start, stop)


def over_runs(
    experiment: Experiment, options: Options, runs: Sequence[int], task: RunTask, each: int, trials: Sequence[Trial]
) -> int:
    """Every run's task, one after the other or in parallel (--jobs), then the tables; returns the exit status.

    Args:
        each: units of progress per run.
        trials: the trials in the tables.
    """
    if options.jobs > 1 and distributed.world_size() > 1:
        raise UserError("--jobs is for parallel runs; under torchrun all processes work on one run: leave it out")
    jobs = min(options.jobs, len(runs))
    data(experiment, options)  # before the runs, so that a download or an error happens once
    with Progress(total=len(runs) * each) as progress:
        failures = run_sequentially(runs, task, progress) if jobs == 1 else run_in_parallel(runs, task, progress, jobs)
    if trials and len(failures) < len(runs):
        folders = [RunFolder(root(experiment, options), number) for number in runs]
        records = [record for folder in folders for record in folder.results()]
        print("\n" + "\n\n".join(filter(None, (table(records, trials), cost_table(records, trials)))))
    for failure in failures:
        distributed.print_error(f"{failure.details}{Path(sys.argv[0]).name}: run {failure.run}: {failure.cause}")
    return 0 if not failures else 2 if all(failure.user for failure in failures) else 1


@distributed.main_process_only
def check_initial_models(
    experiment: Experiment, options: Options, runs: Sequence[int], trials: Sequence[Trial], place: str = ""
) -> None:
    """Raises UserError, with the command that makes it (`place`: where), unless all initial models exist."""
    for folder in (RunFolder(root(experiment, options), number) for number in runs):
        for trial in trials:
            for member in range(trial.ensemble):
                path = folder.initial(trial.distortion, trial.unsupervised, member, trial.select)
                if not path.exists():
                    command = initial_command(experiment, options, trial, place)
                    raise UserError(f"there is no initial model {path}: {command} makes it")


def initial_command(experiment: Experiment, options: Options, trial: Trial, place: str = "") -> str:
    """The command that makes the initial models of a trial: for a user's own images the one that was given, whose flags
    they need, with --initial, if its script has that flag.
    """
    if experiment.own_images and hasattr(options, "initial") and not place:
        return f"the same command with --initial{' in place of --baseline' if options.baseline else ''}"
    command, images = trial.initial_command(), getattr(options, "folder", None)
    return (command.replace("run.py", f"run.py {images}", 1) if images else command) + place


class ExperimentRun:
    """A RunTask: everything that is computed in one run, in this process or, pickled, in another."""

    def __init__(self, experiment: Experiment, options: Options, trials: tuple[Trial, ...]):
        self.experiment, self.options, self.trials = experiment, options, trials

    def __call__(self, number: int, report: Report) -> None:
        work = self.open(number, report)
        if self.options.initial:
            for (ir, nr), members in ensemble_sizes(self.trials).items():
                make_initial_models(work, ir, nr, members, self.options.select)
        elif self.options.baseline:
            baselines(work, self.trials)
        else:
            self.learn(work)

    def open(self, number: int, report: Report) -> Workspace:
        iterations = 0 if self.options.baseline else self.experiment.iterations
        arguments = (self.trials, iterations, self.options.initial)
        return open_workspace(self.experiment, self.options, number, report, *arguments)

    def learn(self, work: Workspace) -> None:
        """Active learning."""
        active_learning(work, self.trials, keep_descriptors=self.options.keep_descr)


def open_workspace(
    experiment: Experiment,
    options: Options,
    number: int,
    report: Report,
    trials: Sequence[Trial] = (),
    iterations: int = 0,
    initial: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> Workspace:
    """The workspace of run `number`, its manifest checked and this session recorded in it.

    Args:
        recipe: see `Workspace`.
    Raises:
        UserError: settings that differ from the run's, or a pool too small for the AL iterations of the trials.
    """
    torch.backends.cudnn.deterministic = True
    train, test, separate_validation = data(experiment, options)
    if train.device.type == "cuda" and distributed.world_size() > 1:
        torch.cuda.set_device(train.device)
    experiment = experiment.for_data(train)
    folder = RunFolder(root(experiment, options), number)
    work = Workspace(experiment, folder, train, test, options.seed, train.device, report, separate_validation, recipe)
    settings = work.settings("initial" if initial else "learning")
    recorded, told = distributed.broadcast_from_main(lambda: folder.check_manifest(settings))
    work.pretrained_with = {k: v for k, v in recorded["settings"].items() if k.startswith("pretraining.")}
    _warn(report, told)
    work.check_sizes(trials, iterations)
    folder.create()  # a command that is refused leaves no folder
    folder.record_session(settings, _session(train.device))
    if experiment.holdout:
        work.hold_out(experiment.holdout)
    told = []
    if recipe is None:
        sized = experiment.own_images or options.query_size or options.training_batch
        told += doubts(experiment, initial, bool(sized))
    told += other_files(Dataset(train, test, separate_validation)) + emptied(work, trials)
    _warn(report, told + folder.read_results(dataset=experiment.name, seed=options.seed)[1])
    return work


def _warn(report: Report, texts: Sequence[str]) -> None:
    """Report warnings, once for all processes."""
    for text in texts if distributed.is_main_process() else ():
        report("warning", text=text)


def doubts(experiment: Experiment, initial: bool, sized: bool) -> list[str]:
    """Warnings about a training that will learn little.

    Args:
        initial: whether it is that of the initial models.
        sized: whether the sizes of query and batch are a user's, not the paper's.
    """
    found, recipe = [], experiment.pretraining if initial else experiment.retraining
    epochs, batch = ("--unsup-epochs" if initial else "-e"), recipe.batch_size
    warm = getattr(recipe.schedule, "warm", 0)
    if recipe.epochs <= warm and warm > 1:
        factor = recipe.schedule(recipe.epochs, 1.0)
        found.append(
            f"{recipe.epochs} epochs lie within the warm-up of {warm}: the learning rate ends at {factor:.0%} of --lr; "
            f"{epochs} {4 * warm} is beyond it"
        )
    if sized and not initial and experiment.query_size < batch:
        found.append(
            f"{experiment.query_size} labels are fewer than a batch of {batch}: an epoch is a single step; "
            f"--batch-size {max(2, experiment.query_size // 4)} makes more of them, with a lower --lr"
        )
    return found


def other_files(images: Dataset) -> list[str]:
    """A warning if files of other types lie beside the images of a folder, or folders inside those of its classes."""
    splits = {id(split): split for split in images if split is not None}.values()
    count = sum(split.left_out for split in splits)
    if count == 1:
        return ["1 file that is no .jpeg, .jpg or .png, or folder inside a class, was left out"]
    return [f"{count} files that are no .jpeg, .jpg or .png, or folders inside a class, were left out"] if count else []


def emptied(work: Workspace, trials: Sequence[Trial]) -> list[str]:
    """A warning for each imbalance ratio that leaves classes of the pool without images."""
    found = []
    for ir, distortion in dict.fromkeys((trial.ir, trial.distortion) for trial in trials if trial.ir != 1):
        labels = work.train.labels.cpu()
        before, after = (
            int(torch.bincount(each).count_nonzero()) for each in (labels, labels[work.pool_indices(ir, distortion)])
        )
        if after < before:
            found.append(f"-ir {ir:g} leaves {before - after} of {before} classes of the pool without images")
    return list(dict.fromkeys(found))


def root(experiment: Experiment, options: Options) -> Path:
    return options.save_folder or options.datadir / experiment.name


def data(experiment: Experiment, options: Options) -> Dataset:
    """The data set's images on the device. Raises UserError."""
    strict = not getattr(options, "allow_subset", False)
    return _load(experiment.load, options.datadir / experiment.name, strict, flags.device_of(options))


@functools.cache
def _load(load: Load, path: Path, strict: bool, device: torch.device) -> Dataset:
    found = Dataset(*distributed.main_process_first(lambda: load(path) if strict else load(path, strict=False)))
    train, test = found.train.to(device), found.test.to(device)
    if found.validation is None:
        return Dataset(train, test)
    return Dataset(train, test, test if found.validation is found.test else found.validation.to(device))


def _session(device: torch.device) -> dict[str, Any]:
    """Command, hardware and versions, for a run's manifest."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": f"{device.type}: {name}, {torch.get_num_threads()} threads",
        "processes": distributed.world_size(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": _commit(),
    }


def _processor() -> str:
    """Model and instruction set of the processor, on which rounding, and so training, depends."""
    found = dict(re.findall(r"^(model name|cpu family|model|stepping)\s*: (.*)", _text(Path("/proc/cpuinfo")), re.M))
    name = found.pop("model name", platform.processor() or platform.machine())
    numbers = "".join(f" {key} {value}" for key, value in sorted(found.items()))
    return f"{name}{numbers}, {torch.backends.cpu.get_cpu_capability()}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(flags.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def guarded(parser: argparse.ArgumentParser, body: Callable[[Options], int], distributable: bool = False) -> int:
    """Parse the flags and call `body`; returns the exit status (see `guard`).

    Args:
        distributable: whether torchrun may start several processes.
    """

    def attempt() -> int:
        options = parser.parse_args()
        if distributed.world_size() == 1:  # torchrun's SIGTERM has to end a process that waits in a collective
            signal.signal(signal.SIGTERM, _interrupt)
        elif not distributable:
            raise UserError("this script runs as one process: start it without torchrun")
        return body(options)

    return distributed.run_distributed(lambda: guard(parser.prog, attempt))


def _interrupt(number: int, _: object) -> None:
    """Ends the script as Ctrl-C does: processes of --jobs are ended, and a line is printed."""
    raise KeyboardInterrupt(number)
