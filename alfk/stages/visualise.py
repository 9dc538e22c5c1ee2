"""Confusion matrices and t-SNE maps of the test images for the models of one AL iteration (paper, Section 5)."""

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from alfk.acquisition import get_method
from alfk.config import Experiment
from alfk.curves import parse_series, rare_groups, series
from alfk.descriptors import describe
from alfk.errors import UserError
from alfk.runs import RunFolder, Trial, has_array, open_array, read_json, save_array, selection_suffix
from alfk.stages import cli, draw
from alfk.stages import options as flags
from alfk.stages.plot import drawn_of, selected, started
from alfk.stages.workspace import Workspace
from alfk.training import accuracy, accuracy_per_class


def visualise(experiments: Mapping[str, Experiment], about: str, taps: Sequence[int]) -> int:
    """visualize_tsne.py: the figure of one run, a column a method.

    Args:
        taps: whose features are mapped.
    """
    parser = flags.places_parser(experiments, about)
    flags.add_run(parser, experiments)
    flags.add_init(parser)
    add = parser.add_argument
    text = "AL iteration: the models it starts from, which b times the query size labels have taught (3)"
    add("-b", type=flags.positive, default=3, metavar="B", help=text)
    text = "methods, with their L (varR_E1 Rzg_pz_L80 Rzg_true_L80)"
    add("--methods", nargs="+", default=["varR_E1", "Rzg_pz_L80", "Rzg_true_L80"], metavar="KEY", help=text)
    add("--out", type=flags.Path, default=flags.ROOT / "local_data" / "figures", help="folder (local_data/figures)")

    def body(options: argparse.Namespace) -> int:
        experiment = experiments[options.dataset]
        work = _workspace(experiment, options)
        ir = options.ir or experiment.default_ir
        trials = [_trial(name, ir, experiment, options) for name in options.methods]
        for trial in trials:
            if not work.folder.checkpoint(trial, options.b - 1, work.size(options.b - 1)).exists():
                length = f" -dl {trial.length}" if trial.length else ""
                start = f"--unsupervised {options.unsupervised}{' --conv-only' if options.conv_only else ''}"
                raise UserError(
                    f"run {options.run} has no model of {series(trial)} before b={options.b}: "
                    f"run.py {start} -ir {ir:g} --run-start {options.run} "
                    f"--run-stop {options.run + 1} --methods {trial.method}{length} makes it"
                )
        panels = [_panel(work, trial, options.b, taps) for trial in trials]
        labels = work.size(options.b - 1)
        init = trials[0].init
        title = f"{experiment.name} test images, {ir:g}x class imbalance, {labels} labels, run {options.run}"
        title += started(init) + selected(options.select)
        ending = ("" if init == "rotation" else f"_{init}") + selection_suffix(options.select)
        path = options.out / f"{experiment.name}_tsne_ir{ir:g}_b{options.b}_run{options.run}{ending}"
        draw.confusion_and_maps(path, title, panels, experiment.classes)
        print(f"{path}.png, .pdf")
        return 0

    return cli.guarded(parser, body)


def _workspace(experiment: Experiment, options: argparse.Namespace) -> Workspace:
    """The run as it was made, with its own seed and query size; nothing is written into its manifest."""
    folder = RunFolder(cli.root(experiment, options), options.run)
    manifest = folder.path / "manifest.json"
    if not manifest.exists():
        raise UserError(f"there is no run {options.run} in {folder.path.parent}: run.py makes it")
    made = read_json(manifest).get("settings", {})
    experiment = flags.replace(experiment, query_size=made.get("query_size", experiment.query_size))
    train, test, apart = cli.data(experiment, options)
    experiment = experiment.for_data(train)
    return Workspace(experiment, folder, train, test, made.get("seed", 0), train.device, apart=apart)


def _trial(name: str, ir: float, experiment: Experiment, options: argparse.Namespace) -> Trial:
    method, length, ensemble = parse_series(name)
    if ensemble > 1:
        raise UserError(f"{name}: a map shows the features of one network, not of {ensemble}")
    if get_method(method).matches:
        length = length or experiment.default_length
    return flags.trial_of(experiment, ir, method, length, ensemble, options)


def _panel(work: Workspace, trial: Trial, b: int, taps: Sequence[int]) -> draw.Panel:
    (model,), model_is = work.models_before(trial, b)
    found = describe(model, work.test, taps, batch_size=work.experiment.descriptor_batch)
    said, truth = found.predictions.cpu(), work.test.labels.cpu()
    per_class = accuracy_per_class(said, truth, work.experiment.classes)
    groups = rare_groups(work.experiment.minority or ())
    parts = [f"{name} {np.mean([per_class[c] for c in classes]):.0f} %" for name, classes in groups.items()]
    text = ", ".join([f"{accuracy(said, truth):.1f} %", *parts])
    print(f"{series(trial)}: {text}", flush=True)
    name = drawn_of(trial).label()
    return draw.Panel(name, text, truth.numpy(), said.numpy(), _map(work, trial, b, model_is, found.vectors))


def _map(work: Workspace, trial: Trial, b: int, model_is: str, features: torch.Tensor) -> np.ndarray:
    """t-SNE of `features` (N, L): (N, 2), from the run's folder if it is there for the same model."""
    path = work.folder.data(f"tsne_{trial.stem(b, work.size(b - 1))}")
    about = {
        "kind": "t-SNE of the test images",
        **work.identity(trial, b),
        "model": model_is,
        "features": features.shape[1],
    }
    if has_array(path):
        array, header = open_array(path, {})
        if all(header.get(key) == value for key, value in about.items()):
            return np.array(array)
    from sklearn.manifold import TSNE  # slow to import, and needed here only

    print(f"t-SNE of {len(features):,} test images ... ", end="", flush=True)
    start = time.perf_counter()
    seed = int(torch.randint(2**31, (1,), generator=work.generator("t-SNE", b)))
    places = TSNE(init="pca", random_state=seed, n_jobs=-1).fit_transform(features.cpu().numpy())
    print(f"{time.perf_counter() - start:.0f} s")
    save_array(path, places, about)
    return places
