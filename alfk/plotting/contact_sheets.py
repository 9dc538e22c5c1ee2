"""Contact sheets of a run: the images that a method chose, and why, one block per AL iteration."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk.data.split import UNOFFICIAL, Dataset, Split
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder
from alfk.experiment.records import BASELINES, Record
from alfk.experiment.trial import Trial, number_name
from alfk.method.selection import Selection
from alfk.own.queries import Query
from alfk.plotting import plots, reasons
from alfk.plotting.results import Results, name_of
from alfk.plotting.saving import save
from alfk.support.errors import UserError
from alfk.support.files import has_array, open_array

MAX_IMAGES = 125  # images shown per AL iteration
MAX_PAIRS = 8  # the same with the validation images that they answer
AGAIN = "the run's own command makes it again"


def contact_sheets(experiment: Experiment, results: Results, datadir: Path, out: Path) -> Iterator[Path]:
    """Draw one sheet of the chosen images per run and trial of `results`, and for methods that match another one of
    their reasons; yields the paths without suffix.

    Raises:
        UserError: the images or an index list are missing or damaged.
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
        plots.plot_contact_sheet(path, title, [_row(r, pool, _chosen(folder, trial, r), experiment) for r in records])
        yield path
        about = _of_run(records[0])
        validation = functools.partial(_validation, folder, data, results.holdout, about, trial.validation_size)
        blocks = [_reasons(folder, trial, r, pool, validation) for r in records]
        if any(blocks):
            path = out / f"{experiment.name}_matches_run{run}_{trial.name}"
            figure = reasons.draw(f"{title}, and the errors that these images answer", [b for b in blocks if b])
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
    """An array of a run, whose header must have the expected entries."""
    if not has_array(path):
        needed = "--show-selected needs the run's index lists, not only its results lines"
        raise UserError(f"there is no {path}: {needed}; {AGAIN}")
    return np.array(open_array(path, expected, fix=f"delete it, and {AGAIN}")[0])


def _is_kept(path: Path) -> bool:
    """Whether there is an array or its header, or a link that should lead to it."""
    return any(map(os.path.lexists, (path, path.with_suffix(".json"))))


def _of_run(record: Record) -> dict[str, Any]:
    """The entries of a header that tell whether a file is of the record's run."""
    return {key: record[key] for key in ("dataset", "run", "seed")}


def _of_iteration(trial: Trial, record: Record) -> dict[str, Any]:
    """The entries of a header that tell whether a file is of the record's iteration and made with its settings."""
    made_with = {key: record[key] for key in ("made_with",) if key in record}
    return {**_of_run(record), **trial.facts(), "b": record["b"], **made_with}


def _chosen(folder: RunFolder, trial: Trial, record: Record) -> np.ndarray:
    """Positions in the pool of the images that an iteration chose."""
    size, of_iteration = record.get("queried", record["labelled"]), _of_iteration(trial, record)
    query = folder.query(trial, record["b"], size)
    if _is_kept(query):
        return np.ascontiguousarray(_read(query, {"kind": "query", **of_iteration})["index"])
    rows = _read(folder.index_list(trial, record["b"], size), {"kind": "labelled set", **of_iteration})
    return rows[-sum(record["selected_histogram"]) :]


def _row(record: Record, pool: Split, chosen: np.ndarray, experiment: Experiment) -> plots.Row:
    labels = np.full(len(chosen), -1) if pool.labels is None else pool.labels.cpu().numpy()[chosen]
    images = reasons.pictures(pool, torch.from_numpy(chosen[:MAX_IMAGES]))
    more = f", the first {MAX_IMAGES} of {len(chosen)}" if len(chosen) > MAX_IMAGES else ""
    name = f"b={record['b']}, {record['labelled']} labelled, then {record['accuracy']:.1f} % test accuracy{more}"
    minority = record.get("minority", experiment.minority)
    return plots.Row(name, images, labels, minority, pool.classes)


def _reasons(
    folder: RunFolder, trial: Trial, record: Record, pool: Split, validation_images: Callable[[], Split]
) -> reasons.Block | None:
    """The first images of a query beside their errors; None if it has no reasons, or was not kept with them."""
    path = folder.query(trial, record["b"], record.get("queried", record["labelled"]))
    if not _is_kept(path):
        return None
    selection = Selection.of_array(_read(path, {"kind": "query", **_of_iteration(trial, record)}))
    if selection.matches is None:
        return None
    validation = validation_images()
    query = Query.of(selection, trial.method, validation.labels, pool.classes)
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
