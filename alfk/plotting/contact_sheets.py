"""Contact sheets of a run: the images that a method chose, and why, one block per AL iteration."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk.data.split import UNOFFICIAL, Dataset, Split
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder
from alfk.experiment.journal import Acquired
from alfk.experiment.records import BASELINES, Record
from alfk.experiment.trial import Trial, number_name
from alfk.method.selection import Selection
from alfk.own.queries import Query
from alfk.plotting import plots, reasons
from alfk.plotting.names import name_of
from alfk.plotting.results import Results
from alfk.plotting.saving import save
from alfk.support.checkpoints import load_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import has_array, open_array

MAX_IMAGES = 125  # images shown per AL iteration
MAX_PAIRS = 8  # the same beside the validation images that they match
AGAIN = "the run's own command makes it again"


def contact_sheets(experiment: Experiment, results: Results, datadir: Path, out: Path) -> Iterator[Path]:
    """Draw one sheet of the chosen images per run and trial of `results`, and for methods that match another one of
    their reasons; yields the paths without suffix.

    Raises:
        UserError: the images or the files of the run are missing or damaged.
    """
    groups: dict[tuple[int, Trial], list[Record]] = {}
    for record in results.records:
        if record["method"] not in BASELINES:
            groups.setdefault((record["run"], Trial.of(record)), []).append(record)
    options = {"strict": False} if experiment.has_subsets else {}
    data = Dataset(*experiment.load(datadir / experiment.name, **options)) if groups else None
    if groups and not same_images(results.sources, data.train.source):
        fix = "bring those back, or give their folder to run.py again"
        raise UserError(f"the images of {experiment.name} are not those of these runs: {fix}")
    for (run, trial), unsorted in groups.items():
        folder, records = RunFolder(results.folder, run), sorted(unsorted, key=lambda r: r["b"])
        name = f"pool_{trial.distortion}"
        pool = data.train.subset(_read(folder.data(name), {"kind": name, **_of_run(records[0])}))
        title = f"{experiment.name}, {imbalance(trial.ir)}run {run}: what {name_of(trial)} chose"
        path = out / f"{experiment.name}_selected_run{run}_{trial.name}"
        chosen = [_selection(folder, trial, record) for record in records]
        rows = [_row(r, pool, c.indices.numpy(), experiment) for r, c in zip(records, chosen, strict=True)]
        plots.plot_contact_sheet(path, title, rows)
        yield path
        about = _of_run(records[0])
        validation = functools.partial(_validation, folder, data, results.holdout, about, trial.validation_size)
        blocks = [
            _reasons(r, c, pool, validation) for r, c in zip(records, chosen, strict=True) if c.matches is not None
        ]
        if blocks:
            path = out / f"{experiment.name}_matches_run{run}_{trial.name}"
            figure = reasons.draw(f"{title}, and the errors that these images match", blocks)
            for suffix in (".png", ".pdf"):
                save(figure, path.with_name(path.name + suffix), reasons.DPI)
            yield path


def same_images(recorded: Sequence[str | None], source: str | None) -> bool:
    """Whether the training images are those of a run.

    Args:
        recorded: `Split.source` of its training and test images; empty if they had none, as official files may.
    """
    return recorded[0] == source if recorded else not (source or "").startswith(UNOFFICIAL)


def imbalance(ir: float) -> str:
    """The imbalance ratio in a title; empty for a pool that was not thinned."""
    return "" if ir == 1 else f"{number_name(ir)}x class imbalance, "


def _read(path: Path, expected: Mapping[str, Any]) -> np.ndarray:
    """An index list in data/, whose header must have the expected entries."""
    if not has_array(path):
        raise UserError(f"there is no {path}: --show-selected needs the run's data/ and checkpoint/; {AGAIN}")
    return np.array(open_array(path, expected, fix=f"delete it, and {AGAIN}")[0])


def _of_run(record: Record) -> dict[str, Any]:
    """The entries of a header that tell whether a file is of the record's run."""
    return {key: record[key] for key in ("dataset", "run", "seed")}


def _selection(folder: RunFolder, trial: Trial, record: Record) -> Selection:
    """The images that an iteration chose, and why, from its checkpoint."""
    path = folder.checkpoint("best", trial, record["b"], record["labelled"])
    if not path.exists():
        raise UserError(f"there is no {path}: --show-selected needs the run's data/ and checkpoint/; {AGAIN}")
    made_with = {key: record[key] for key in ("made_with",) if key in record}
    expected = {"kind": "iteration", **_of_run(record), **trial.facts(), "b": record["b"], **made_with}
    about = load_checkpoint(path, expected, f"delete it, and {AGAIN}", weights=False)[1]
    return Acquired.unpack(about["acquired"]).selection


def _row(record: Record, pool: Split, chosen: np.ndarray, experiment: Experiment) -> plots.Row:
    labels = pool.labels.cpu().numpy()[chosen]
    images = reasons.pictures(pool, torch.from_numpy(chosen[:MAX_IMAGES]))
    more = f", the first {MAX_IMAGES} of {len(chosen)}" if len(chosen) > MAX_IMAGES else ""
    name = f"b={record['b']}, {record['labelled']} labelled, then {record['accuracy']:.1f} % test accuracy{more}"
    minority = record.get("minority", experiment.minority)
    return plots.Row(name, images, labels, minority, pool.classes)


def _reasons(record: Record, chosen: Selection, pool: Split, validation_images: Callable[[], Split]) -> reasons.Block:
    """The first images of a query beside the errors that they match."""
    validation = validation_images()
    query = Query.of(chosen, record["method"], validation.labels, pool.classes)
    shown: Sequence[reasons.Pair] = reasons.pairs(query, pool, validation, min(MAX_PAIRS, len(query)))
    heading = f"b={record['b']}: {record['misclassified']} validation images misclassified, "
    heading += f"{record['matched']} of them matched by {len(query)} images, "
    heading += f"mean similarity {record['similarity']:.2f}"
    return reasons.Block(heading, shown)


def _validation(
    folder: RunFolder, data: Dataset, holdout: float, expected: Mapping[str, Any], size: int | None
) -> Split:
    """The validation images of a run, or a part of `size` of them.

    Args:
        expected: entries of the header of their list.
    """
    whole, part = _whole_validation(folder, data, holdout, expected), f"validation_{size}"
    return whole if size is None else whole.subset(_read(folder.data(part), {"kind": part, **expected}))


def _whole_validation(folder: RunFolder, data: Dataset, holdout: float, expected: Mapping[str, Any]) -> Split:
    if data.validation is None:
        return data.train.subset(_read(folder.data("validation"), {"kind": "validation", **expected}))
    if not holdout:
        return data.validation
    rest, name = torch.ones(len(data.validation), dtype=torch.bool), f"test_{number_name(holdout)}"
    rest[torch.from_numpy(_read(folder.data(name), {"kind": name, **expected}))] = False
    return data.validation.subset(rest)
