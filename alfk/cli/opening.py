"""Opening a run: its images, its folder with a checked manifest, and what is said before the work begins."""

import argparse
import datetime
import functools
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk.cli import options as flags
from alfk.data.split import Dataset
from alfk.experiment.config import Experiment, Load
from alfk.experiment.folder import RunFolder
from alfk.experiment.round import Round
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Report, Workspace
from alfk.method.acquisition import METHODS
from alfk.support import distributed
from alfk.support.errors import UserError

Options = argparse.Namespace


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

    A command that is refused leaves no folder.

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
    work.initial_command = functools.partial(initial_command, options)
    stage = "initial" if initial else "learning"
    settings = work.settings(stage) | work.behaviour(stage)
    # Where initial models are not made, their epochs and restarts may be named again, and have no other use.
    named = {"pretraining.epochs": options.unsup_epochs} if options.unsup_epochs else {}
    named |= {"pretraining.restarts": options.restart_stalled} if options.restart_stalled else {}
    manifest, warnings = distributed.broadcast_from_main(lambda: folder.check_manifest(settings | named))
    work.pretrained_with = {k: v for k, v in manifest["settings"].items() if k.startswith("pretraining.")}
    _warn(report, warnings)
    work.check_sizes(trials, iterations)
    check_classes(work, trials)
    folder.create()
    folder.record_session(settings, _session(train.device))
    if experiment.holdout:
        work.hold_out(experiment.holdout)
    if recipe is None:
        sized = experiment.own_images or options.query_size or options.training_batch
        _warn(report, doubts(experiment, initial, bool(sized)))
    _warn(report, other_files(Dataset(train, test, separate_validation)) + emptied(work, trials))
    _warn(report, folder.read_results(dataset=experiment.name, seed=options.seed)[1])
    return work


def check_classes(work: Workspace, trials: Sequence[Trial]) -> None:
    """Raises UserError if there are too many classes for a method, or no rare ones for one that has to know them."""
    for trial in trials:
        if trial.method not in METHODS:
            continue
        method = METHODS[trial.method]
        method.check_classes(work.experiment.classes)
        if "rare_classes" in method.inputs and not Round(work, trial, 0).minority:
            raise UserError(
                f"{trial.method} has to know which classes are rare, and none is known to be rare in the pool at "
                f"ir={trial.ir:g}: name other methods"
            )


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
        "versions": {
            **{"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "scikit-learn": importlib.metadata.version("scikit-learn"),
        },
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


def initial_command(options: Options, trial: Trial) -> str:
    """The command that makes the initial models of a trial: of run.py the one that was given, with --initial; else
    run.py with the flags that say where.
    """
    if options.where_run_is is None:
        flag = {"pool": " in place of --baseline", "validation": " in place of --baseline-validation"}
        return f"the same command with --initial{flag.get(options.baseline, '')}"
    images = getattr(options, "images", None)
    flags_given = ("--dataset", "--datadir", "--save-folder", "--seed")
    values = {flag: getattr(options, flag.strip("-").replace("-", "_"), None) for flag in flags_given}
    given = {flag: value for flag, value in values.items() if any(a.partition("=")[0] == flag for a in sys.argv)}
    command = " ".join([trial.initial_command(), *(f"{flag} {value}" for flag, value in given.items())])
    return (command.replace("run.py", f"run.py {images}", 1) if images else command) + options.where_run_is
