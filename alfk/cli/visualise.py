"""visualize_tsne.py: confusion matrices and t-SNE maps of the test images for the models of one AL iteration."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from alfk.cli import options as flags
from alfk.cli import scripts
from alfk.cli.guard import check_writable
from alfk.cli.opening import data, root
from alfk.cli.options import Experiments
from alfk.cli.trials import trial_of
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder
from alfk.experiment.journal import Journal
from alfk.experiment.round import begin
from alfk.experiment.trial import Trial, number_name, selection_suffix
from alfk.experiment.workspace import Workspace
from alfk.method.acquisition import get_method
from alfk.plotting import maps
from alfk.plotting.names import init_suffix, parse_series, select_suffix
from alfk.plotting.tsne import panel
from alfk.support.errors import UserError


def visualise(experiments: Experiments, about: str, taps: Sequence[int]) -> int:
    """visualize_tsne.py: the figure of one run, one column per method.

    Args:
        taps: indices of the taps whose features are mapped.
    """
    parser = flags.data_parser(experiments, about)
    flags.add_run(parser, experiments)
    flags.add_variants(parser)
    add = parser.add_argument
    text = "AL iteration whose starting models are shown; they were trained on b query_size labels (3)"
    add("-b", type=flags.positive, default=3, metavar="B", help=text)
    text = "methods, with their L (varR_E1 Rzg_pz_L80 Rzg_true_L80)"
    add("--methods", nargs="+", default=["varR_E1", "Rzg_pz_L80", "Rzg_true_L80"], metavar="KEY", help=text)
    add("--out", type=Path, default=flags.ROOT / "local_data" / "figures", help="folder (local_data/figures)")

    def body(options: argparse.Namespace) -> int:
        experiment = experiments[options.dataset]
        options.select = options.select or experiment.default_select
        check_writable(options.out, "--out")
        work = _workspace(experiment, options)
        ir = options.ir or experiment.default_ir
        trials = [_trial(name, ir, experiment, options) for name in options.methods]
        for trial in trials:
            if not Journal(work, trial).checkpoint(options.b - 1).exists():
                raise UserError(
                    f"run {options.run} has no model of {trial.short()} before b={options.b}: "
                    f"{_command(trial, options.run)} makes it"
                )
        panels = [panel(begin(Journal(work, trial), options.b), taps) for trial in trials]
        labels, init = work.experiment.query_size * options.b, trials[0].init
        title = f"{experiment.name} test images, {number_name(ir)}x class imbalance, {labels} labels, run {options.run}"
        title += init_suffix(init) + select_suffix(options.select)
        ending = ("" if init == "rotation" else f"_{init}") + selection_suffix(options.select)
        path = options.out / f"{experiment.name}_tsne_ir{number_name(ir)}_b{options.b}_run{options.run}{ending}"
        maps.plot_confusion_and_maps(path, title, panels, experiment.classes)
        print(f"{path}.png, .pdf")
        return 0

    return scripts.guarded(parser, body)


def _workspace(experiment: Experiment, options: argparse.Namespace) -> Workspace:
    """The workspace of the run, with the seed and query size of its manifest, which is only read."""
    folder = RunFolder(root(experiment, options), options.run)
    manifest, _ = folder.manifest()
    folder.check_format(manifest)
    settings = manifest["settings"]
    if not settings:
        raise UserError(f"there is no run {options.run} in {folder.path.parent}: run.py makes it")
    experiment = dataclasses.replace(experiment, query_size=settings.get("query_size", experiment.query_size))
    train, test, separate_validation = data(experiment, options)
    experiment = experiment.for_data(train)
    more = {"separate_validation": separate_validation, "recorded": settings}
    return Workspace(experiment, folder, train, test, settings.get("seed", 0), train.device, **more)


def _trial(name: str, ir: float, experiment: Experiment, options: argparse.Namespace) -> Trial:
    method, length, ensemble = parse_series(name)
    if ensemble > 1:
        raise UserError(f"{name}: a map shows the features of one network, not of {ensemble}")
    if get_method(method).needs_descriptors:
        length = length or experiment.default_length
    return trial_of(experiment, ir, method, length, ensemble, options)


def _command(trial: Trial, run: int) -> str:
    """The command of run.py that makes the models of a trial."""
    parts = [
        f"run.py --unsupervised {int(trial.unsupervised)}",
        "--conv-only" if trial.init == "rotation_conv" else "",
        f"--select {trial.select}" if trial.select != "test" else "",
        f"-nr {number_name(trial.nr)}" if trial.nr else "",
        f"--copies {trial.copies}" if trial.copies else "",
        f"--first-batch {trial.first_batch}" if trial.first_batch else "",
        f"--validation-size {trial.validation_size}" if trial.validation_size else "",
        "--add-validation" if trial.adds_validation else "",
        f"-ir {number_name(trial.ir)} --run-start {run} --run-stop {run + 1} --methods {trial.method}",
        f"-dl {trial.length}" if trial.length else "",
    ]
    return " ".join(filter(None, parts))
