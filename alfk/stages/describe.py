"""Stage 2: what the current model says of the pool, in databases (paper, Section 4.1): descriptors, or uncertainty."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk import ranks
from alfk.acquisition import Measurement, Method, Sampling, get_method, measure
from alfk.data import Split
from alfk.descriptors import Descriptors
from alfk.perturbation import STRATEGIES
from alfk.runs import Trial, complete_array, create_array, delete_array, has_array, open_array, save_array
from alfk.stages.workspace import Workspace
from alfk.training import accuracy, accuracy_per_class

FIELDS = (
    "descriptor: z, then g if the method uses it, each standardised per scale; "
    "pseudo_label: the label g was taken for, -1 without g; prediction: the model's"
)


def databases(trial: Trial, b: int) -> tuple[str, ...]:
    """What AL iteration b of a trial has to be told before it chooses; nothing if it draws at random."""
    method = get_method(trial.method)
    if method.matches:
        return ("validation", "pool")
    return ("uncertainty",) if method.doubts and b > 0 else ()


def write_databases(work: Workspace, trial: Trial, b: int, pool: Split, validation: Split) -> None:
    """Write runN/descr/{validation,pool,uncertainty}_*.npy for AL iteration b, as far as its method wants them.

    Databases that are there already and were made with the same model are kept.
    """
    wanted = databases(trial, b)
    if not wanted:
        return
    method = get_method(trial.method)
    taps = work.experiment.taps(trial.length) if method.matches else None
    models, model_is = work.models_before(trial, b)
    if ranks.agreed(lambda: all(_up_to_date(work, trial, b, name, model_is) for name in wanted)):
        return
    work.report("stage", run=work.folder.number, trial=trial, b=b, doing="descriptors" if taps else "uncertainty")
    start = time.perf_counter()
    arrays: dict[str, np.memmap | None] = {}

    def allocate(side: str, images: int, width: int) -> Descriptors:
        vector = ("descriptor", np.dtype(work.experiment.descriptor_dtype).newbyteorder("<"), (width,))
        dtype = np.dtype([vector, ("pseudo_label", "<i8"), ("prediction", "<i8")])
        arrays[side] = create_array(database_path(work, trial, b, side), (images,), dtype)
        if ranks.first():
            return _fields(arrays[side])
        if side == "validation":  # where every rank looks for the nearest
            return _fields(np.zeros(images, dtype))
        return dataclasses.replace(Descriptors.empty(images, 0), vectors=None)

    sampling = Sampling(work.generator("sample", b), work.experiment.samples, STRATEGIES[trial.copies or "degrees"])
    batch_size = work.experiment.descriptor_batch
    found = measure(method, models, pool, validation, sampling, taps, batch_size, allocate)
    header = {
        "model": model_is,
        "taps": None if taps is None else list(taps),
        "fields": FIELDS if method.matches else "uncertainty of every pool image, the larger the less certain",
        "forward": found.forward,
        "backward": found.backward,
        "pseudo_labels": _pseudo_labels(method, found, pool, work.experiment.classes),
        "seconds": time.perf_counter() - start,
    }
    for name in wanted:
        path, about = database_path(work, trial, b, name), {**_expected(work, trial, b, name), **header}
        if name == "uncertainty":
            save_array(path, found.uncertainty.cpu().numpy(), about)
        else:
            complete_array(path, arrays[name], about)


def read_databases(work: Workspace, trial: Trial, b: int, model_is: str) -> tuple[Measurement | None, dict[str, Any]]:
    """What AL iteration b has to be told, the vectors memory-mapped, and the header; (None, {}) if that is nothing.

    Raises:
        UserError: missing, damaged, of another trial, or of another model than `model_is`.
    """
    found, header = {}, {}
    for name in databases(trial, b):
        expected = {**_expected(work, trial, b, name), "model": model_is}
        array, header = open_array(database_path(work, trial, b, name), expected)
        found[name] = torch.from_numpy(np.array(array)) if name == "uncertainty" else _fields(array)
    return Measurement(**found) if found else None, header


def delete_databases(work: Workspace, trial: Trial, b: int) -> None:
    """Remove the databases of AL iteration b."""
    for name in databases(trial, b):
        delete_array(database_path(work, trial, b, name))


def have_databases(work: Workspace, trial: Trial, b: int) -> bool:
    """Whether the databases of AL iteration b are there, of whatever model."""
    return ranks.agreed(lambda: all(has_array(database_path(work, trial, b, name)) for name in databases(trial, b)))


def database_path(work: Workspace, trial: Trial, b: int, name: str) -> Path:
    return work.folder.descriptors(name, trial, b, work.size(b - 1))


def _expected(work: Workspace, trial: Trial, b: int, name: str) -> dict[str, Any]:
    kind = name if name == "uncertainty" else f"{name} descriptors"
    return {"kind": kind, **work.identity(trial, b)}


def _up_to_date(work: Workspace, trial: Trial, b: int, name: str, model_is: str) -> bool:
    path = database_path(work, trial, b, name)
    if not has_array(path):
        return False
    _, header = open_array(path, _expected(work, trial, b, name))
    return header.get("model") == model_is


def _fields(array: np.ndarray) -> Descriptors:
    return Descriptors(array["descriptor"], array["pseudo_label"], array["prediction"])


def _pseudo_labels(method: Method, found: Measurement, pool: Split, classes: int) -> dict[str, Any] | None:
    """How many of the pool's pseudo-labels are right, in percent: of all, and of each true class."""
    if not method.estimates_labels or pool.labels is None:
        return None
    said, true = torch.from_numpy(np.array(found.pool.pseudo_labels)), pool.labels.cpu()
    return {"accuracy": accuracy(said, true), "per_class": accuracy_per_class(said, true, classes)}
