"""The flags of the scripts. Their names are those of the paper's release."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from alfk.experiment.config import Experiment, Recipe
from alfk.method.acquisition import METHODS
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES
from alfk.rivals import RIVALS
from alfk.support import distributed
from alfk.support.errors import UserError

Experiments = Mapping[str, Experiment]  # by name; the first is the default

ROOT = Path(__file__).resolve().parents[2]

LARGEST = 2**31 - 1  # of a number of things


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors as one line."""

    def error(self, message: str) -> NoReturn:
        distributed.print_error(f"{self.prog}: {message} (see --help)")
        self.exit(2)


# Parsers


def data_parser(experiments: Experiments, about: str) -> Parser:
    """The flags for data set, label noise, folders, device and --select."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(images=None)  # see alfk.experiment.config.Flags
    names = list(experiments)
    add = parser.add_argument
    add("--dataset", choices=names, default=names[0], help=f"data set ({names[0]})")
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", type=count, metavar="N", help="CUDA device N")
    device.add_argument("--device", help="torch device, e.g. cpu or cuda:1 (a GPU if there is one, else the CPU)")
    text = "epoch whose weights are kept: the best one on the test images (the paper's protocol, the default of its "
    text += "data sets) or on the validation images (the default of your own images), or the last one"
    add("--select", choices=("test", "val", "last"), help=text)
    add("-nr", type=noise_ratio, default=0.0, metavar="NR", help="share of the pool's labels made random (0)")
    add("--datadir", type=Path, default=ROOT / "local_data", help="folder of the data sets (local_data)")
    if any(experiment.has_subsets for experiment in experiments.values()):
        add("--allow-subset", action="store_true", help="accept data files that are not the official ones")
    add("--save-folder", type=Path, help="folder of the runN folders (<datadir>/<DATASET>)")
    for dataset_flags in dict.fromkeys(e.flags for e in experiments.values() if e.flags):
        dataset_flags.add(parser)
    return parser


def protocol_parser(experiments: Experiments, about: str) -> Parser:
    """The flags of every method, including VAAL.

    Flags of the other parsers that `experiment_of` and `ExperimentRun` read have defaults here.
    """
    parser = data_parser(experiments, about)
    parser.set_defaults(where_run_is="")  # in messages: where run.py is; "" in the same folder, None for run.py itself
    parser.set_defaults(epochs=None, training_batch=None, lr=None, samples=None, descr_batch=None, descr_dtype=None)
    parser.set_defaults(iterations=None, initial=False, baseline=None, restart_stalled=0)
    add = parser.add_argument
    add("--seed", type=seed, default=0, help="seed of all random draws; every run derives its own seeds from it (0)")
    add("--unsup-epochs", type=positive, metavar="E", help="epochs of the rotation pretraining (the data set's)")
    add("-as", "--query-size", type=positive, metavar="N", help="images labelled in each AL iteration (the data set's)")
    return parser


def common_parser(experiments: Experiments, about: str) -> Parser:
    """The flags that unsup.py, gen_descr.py, main_descr.py and run.py share."""
    parser = protocol_parser(experiments, about)
    add = parser.add_argument
    text = "start rotation trainings that stall in their first epoch again, up to N (3) times; the paper does not (0)"
    add("--restart-stalled", type=count, nargs="?", const=3, default=0, metavar="N", help=text)
    add("-e", "--epochs", type=positive, metavar="E", help="epochs of an AL iteration (the data set's)")
    text = "images per training batch, in total over all processes (the data set's)"
    add("--batch-size", dest="training_batch", type=positive, metavar="N", help=text)
    add("--lr", type=rate, help="base learning rate of the schedule (the data set's)")
    add("-smp", "--samples", type=positive, metavar="K", help="dropout samples or perturbed copies of an image")
    add("-gbs", "--descr-batch", type=positive, metavar="N", help="images per batch outside training")
    text = "data type of descriptors on disk (the data set's); float16 takes half the space"
    add("--descr-dtype", choices=("float32", "float16"), help=text)
    return parser


def unsup_parser(experiments: Experiments, about: str) -> Parser:
    """The flags of unsup.py."""
    parser = common_parser(experiments, about)
    add_run(parser, experiments)
    return parser


def stage_parser(experiments: Experiments, about: str) -> Parser:
    """The flags of gen_descr.py and main_descr.py, which work on one AL iteration of one method."""
    parser = unsup_parser(experiments, about)
    add_variants(parser)
    add = parser.add_argument
    add("-sub", metavar="KEY", help=f"method: {', '.join(METHODS)}, or the release's name for one")
    add("-aug", metavar="NAME", help="the release's family of methods; not needed with a key of -sub")
    add("-dl", "--descr-length", type=positive, metavar="L", help="descriptor length (the data set's)")
    add("-b", type=count, default=0, metavar="B", help="AL iteration, from 0 (0)")
    add("-ts", "--train-size", type=count, metavar="N", help="number of images labelled so far; checked if it is given")
    return parser


def run_parser(experiments: Experiments, about: str) -> Parser:
    """The flags of run.py."""
    parser = common_parser(experiments, about)
    parser.set_defaults(where_run_is=None)
    add_variants(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--initial", action="store_true", help="make the initial models and stop")
    text = "train on the whole distorted pool, the line in the figures; one run unless --run-stop is given"
    mode.add_argument("--baseline", action="store_const", const="pool", help=text)
    text = "train on the validation set alone; one run unless --run-stop is given"
    mode.add_argument("--baseline-validation", dest="baseline", action="store_const", const="validation", help=text)
    add_runs(parser, "those of cfg")
    add = parser.add_argument
    text = f"methods (those of cfg): {', '.join(METHODS)}; rivals stands for all from {RIVALS[0].key} on"
    add("--methods", nargs="+", metavar="KEY", help=text)
    add("-dl", "--descr-length", type=positive, nargs="+", metavar="L", help="descriptor lengths (those of cfg)")
    text = "ensemble sizes of the uncertainty methods (those of cfg, 1); -ens 1 4 adds E=4"
    add("-ens", "--ensemble", type=positive, nargs="+", metavar="E", help=text)
    add("--keep-descr", action="store_true", help="keep the descriptor files of finished iterations")
    return parser


# Groups of flags


def add_variants(parser: Parser) -> None:
    """The flags for variants of a trial: its initial model, perturbed copies, first query and validation set."""
    add = parser.add_argument
    text = "start from the random (0) or the rotation-pretrained (1, default) initial model"
    add("-unsup", "--unsupervised", type=int, choices=(0, 1), default=1, help=text)
    text = "keep only the convolutions of the rotation-pretrained model: all linear layers are new, not just the last"
    add("--conv-only", action="store_true", help=text)
    text = "perturbed copies of Rzg_trace and Rzg_mi: angles as in the paper's release (default), or in degrees"
    add("--copies", choices=tuple(STRATEGIES), default=DEFAULT_COPIES, help=text)
    text = "draw the first query at random also for methods that choose it (the others draw it in any case)"
    add("--first-batch", choices=("random",), help=text)
    text = "use V of the validation images, with the same shares of classes (all); initial models use all"
    add("--validation-size", type=positive, metavar="V", help=text)
    add("--add-validation", action="store_true", help="train on the labelled images and the validation images")


def add_run(parser: Parser, experiments: Experiments) -> None:
    """The flags of a script that works on one run: its number, imbalance ratio and ensemble size."""
    add = parser.add_argument
    defaults = ", ".join(f"{e.default_ir:g} for {e.name}" for e in experiments.values())
    add("-r", "--run", type=count, default=0, metavar="R", help="number of the run (0)")
    add("-ir", type=imbalance_ratio, metavar="IR", help=f"imbalance ratio ({defaults})")
    add("-ens", "--ensemble", type=positive, default=1, metavar="E", help="number of models in the ensemble (1)")


def add_runs(parser: Parser, default_irs: str) -> None:
    """The flags of a loop over runs."""
    add = parser.add_argument
    add("--run-start", type=count, default=0, metavar="R", help="first run (0)")
    add("--run-stop", type=positive, metavar="R", help="the run before which to stop (the data set's number of runs)")
    add("-ir", type=imbalance_ratio, nargs="+", metavar="IR", help=f"imbalance ratios ({default_irs})")
    add("--iterations", type=positive, metavar="B", help="number of AL iterations (the data set's)")
    add("--jobs", type=up_to(1000), default=1, metavar="N", help="runs in parallel, each in a separate process (1)")


# Types of values


def positive(text: str, most: int = LARGEST) -> int:
    return _integer(text, 1, most)


def count(text: str) -> int:
    return _integer(text, 0, LARGEST)


def seed(text: str) -> int:
    return _integer(text, -(2**63), 2**63 - 1)


def up_to(most: int) -> Callable[[str], int]:
    """`positive` with another limit."""
    return lambda text: positive(text, most)


def _integer(text: str, least: int, most: int) -> int:
    shown = text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown} is not a whole number") from None
    if value < least:
        wrong = {0: "negative", 1: "not a positive number"}.get(least, f"below the limit of {least}")
        raise argparse.ArgumentTypeError(f"{shown} is {wrong}")
    if value > most:
        raise argparse.ArgumentTypeError(f"{shown} is above the limit of {most}")
    return value


def rate(text: str) -> float:
    return number(text, lambda value: 0 < value < float("inf"), "a learning rate is above 0")


def imbalance_ratio(text: str) -> float:
    return number(text, lambda value: 1 <= value < float("inf"), "an imbalance ratio is at least 1")


def accuracy(text: str) -> float:
    return number(text, lambda value: 0 <= value <= 100, "an accuracy is from 0 to 100 percent")


def noise_ratio(text: str) -> float:
    return number(text, lambda value: 0 <= value < 1, "a noise ratio is in [0, 1)")


def number(text: str, allowed: Callable[[float], bool], rule: str) -> float:
    """The number, if it is allowed; `rule` says which are."""
    value = float(text)
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"{rule}, not {text}")
    return value


# What the values change


def experiment_of(experiments: Experiments, options: argparse.Namespace) -> Experiment:
    """The data set's constants, changed by the flags; options.select is set. Raises UserError."""
    experiment = experiments[options.dataset]
    if experiment.flags:
        experiment = experiment.flags.apply(experiment, options)
    options.select = options.select or experiment.default_select
    if options.restart_stalled and experiment.stalled_below is None:
        raise UserError(f"--restart-stalled: for {experiment.name} it is not known what tells a stalled training")
    overrides = {
        "query_size": options.query_size,
        "descriptor_batch": options.descr_batch,
        "descriptor_dtype": options.descr_dtype,
        "samples": options.samples,
        "iterations": options.iterations,
        "restarts": options.restart_stalled,
        "retraining": _recipe(experiment.retraining, options.epochs, options, experiment.own_images),
        "pretraining": _recipe(experiment.pretraining, options.unsup_epochs, options, experiment.own_images),
    }
    return replace(experiment, **_given(overrides))


def _recipe(recipe: Recipe, epochs: int | None, options: argparse.Namespace, scaled: bool) -> Recipe:
    """The recipe with the values given; `scaled`: whether the schedule follows the number of epochs."""
    changed = replace(recipe, **_given({"epochs": epochs, "batch_size": options.training_batch, "lr": options.lr}))
    if scaled and changed.epochs != recipe.epochs:
        changed = replace(changed, schedule=recipe.schedule.scaled(changed.epochs / recipe.epochs))
    return changed


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of --gpu or --device, under torchrun that of this process. Raises UserError if there is none."""
    name = options.device
    if name is None and options.gpu is not None:
        name = f"cuda:{options.gpu}"
    elif name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = _gpu(name, device)
        elif str(device) != name or (name.startswith("cpu:") and device.index):  # torch takes cpu:256 for cpu:0
            raise UserError(f"there is no device {name!r}")
        torch.ones(1, device=device).item()
    except UserError:
        raise
    except Exception as problem:  # its type depends on the backend
        reason = str(problem).splitlines()[:1] or [type(problem).__name__]
        raise UserError(f"there is no device {name!r}: {reason[0].partition('. ')[0]}") from None
    return device


def _gpu(name: str, device: torch.device) -> torch.device:
    """The GPU of this process. Raises UserError if it is not there."""
    number, devices = name.partition(":")[2], torch.cuda.device_count()
    device = distributed.local_device(device)
    if int(number or device.index or 0) in range(devices):
        return device
    fix = "name none and the CPU is used" if not devices else f"there are cuda:0 to cuda:{devices - 1}"
    if distributed.world_size() > 1:
        fix = f"start {devices} processes on this machine, or work on the CPU: --device cpu"
    raise UserError(f"there is no {name if number else device}: {devices} CUDA devices here; {fix}")
