"""Contact sheets of the images that a method chose, one block per AL iteration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from alfk.config import Experiment
from alfk.data import Split
from alfk.errors import UserError
from alfk.plotting import plots
from alfk.plotting.results import Results, name_of
from alfk.runs import BASELINE, Record, RunFolder, Trial, open_array

MAX_IMAGES = 125  # images shown per AL iteration


def contact_sheets(experiment: Experiment, results: Results, datadir: Path, out: Path) -> Iterator[Path]:
    """Draw one sheet per run and trial of `results`; yields the paths without suffix.

    Raises:
        UserError: the images or an index list are missing or damaged.
    """
    groups: dict[tuple[int, Trial], list[Record]] = {}
    for record in results.records:
        if record["method"] != BASELINE:
            groups.setdefault((record["run"], Trial.of(record)), []).append(record)
    options = {"strict": False} if experiment.has_subsets else {}
    train = experiment.load(datadir / experiment.name, **options)[0] if groups else None
    if groups and (results.sources or [train.source])[0] != train.source:
        raise UserError(
            f"the images of {experiment.name} last used are not those of these runs: give their folder to run.py again"
        )
    for (run, trial), records in groups.items():
        folder = RunFolder(results.folder, run)
        pool = _read(folder.data(f"pool_{trial.distortion}"))
        rows = []
        for record in sorted(records, key=lambda r: r["b"]):
            labelled = _read(folder.index_list(trial, record["b"], record["labelled"]))
            chosen = pool[labelled[-sum(record["selected_histogram"]) :]]
            rows.append(_row(record, train, torch.from_numpy(chosen)))
        path = out / f"{experiment.name}_selected_run{run}_{trial.name}"
        title = f"{experiment.name}, {trial.ir:g}x class imbalance, run {run}: what {name_of(trial)} chose"
        plots.plot_contact_sheet(path, title, rows, experiment.minority or ())
        yield path


def _read(path: Path) -> np.ndarray:
    if not path.exists():
        raise UserError(f"there is no {path}: --show-selected needs the run's index lists, not only its results lines")
    return np.array(open_array(path, {})[0])


def _row(record: Record, train: Split, chosen: torch.Tensor) -> plots.Row:
    part = train.subset(chosen)
    first = chosen[:MAX_IMAGES]
    normalised = next(train.subset(first).batches(len(first)))[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (train.mean, train.std))
    images = (normalised.cpu() * std + mean).clamp(0, 1).numpy()
    more = f", the first {MAX_IMAGES} of {len(chosen)}" if len(chosen) > MAX_IMAGES else ""
    name = f"b={record['b']}, {record['labelled']} labelled, then {record['accuracy']:.1f} % test accuracy{more}"
    return plots.Row(name, images, part.labels.cpu().numpy())
