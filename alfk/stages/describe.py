"""Stage 2: descriptor databases of validation set and pool under the current model (paper, Section 4.1)."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alfk.acquisition import Measurement, Method, get_method, measure
from alfk.data import Split
from alfk.descriptors import Descriptors
from alfk.runs import Trial, complete_array, create_array, delete_array, has_array, open_array
from alfk.stages.workspace import Workspace
from alfk.training import accuracy

SIDES = ("validation", "pool")


def write_descriptors(work: Workspace, trial: Trial, b: int, pool: Split, validation: Split) -> None:
    """Write runN/descr/{validation,pool}_*.npy for AL iteration b; nothing to do for a method that does not match.

    Databases that are there already and were made with the same model are kept.
    """
    method = get_method(trial.method)
    if not method.matches:
        return
    taps = work.experiment.taps(trial.length)
    model, model_is = work.model_before(trial, b)
    if all(_up_to_date(work, trial, b, side, model_is) for side in SIDES):
        return
    work.report("stage", run=work.folder.number, trial=trial, b=b, doing="descriptors")
    start = time.perf_counter()
    arrays: dict[str, np.memmap] = {}

    def allocate(side: str, images: int, width: int) -> Descriptors:
        dtype = np.dtype([("descriptor", "<f4", (width,)), ("pseudo_label", "<i8"), ("prediction", "<i8")])
        arrays[side] = create_array(_path(work, trial, b, side), (images,), dtype)
        return _fields(arrays[side])

    found = measure(method, model, pool, validation, taps, work.experiment.descriptor_batch, allocate)
    seconds = time.perf_counter() - start
    for side, split, described in zip(SIDES, (validation, pool), (found.validation, found.pool), strict=True):
        header = {
            **_expected(work, trial, b, side),
            "images": len(described),
            "fields": "descriptor: z, then g if the method uses it, each standardised per scale; "
            "pseudo_label: the label g was taken for, -1 without g; prediction: the model's",
            "taps": list(taps),
            "model": model_is,
            "pseudo_label_accuracy": _pseudo_label_accuracy(method, described, split) if side == "pool" else None,
            "seconds": seconds,
        }
        complete_array(_path(work, trial, b, side), arrays[side], header)


def read_descriptors(work: Workspace, trial: Trial, b: int, model_is: str) -> tuple[Measurement, dict[str, Any]]:
    """The databases of AL iteration b, the vectors memory-mapped, and the pool's header.

    Raises:
        UserError: missing, damaged, of another trial, or of another model than `model_is`.
    """
    opened, headers = {}, {}
    for side in SIDES:
        expected = {**_expected(work, trial, b, side), "model": model_is}
        array, headers[side] = open_array(_path(work, trial, b, side), expected)
        opened[side] = _fields(array)
    return Measurement(**opened), headers["pool"]


def delete_descriptors(work: Workspace, trial: Trial, b: int) -> None:
    """Remove the databases of AL iteration b."""
    for side in SIDES:
        delete_array(_path(work, trial, b, side))


def have_descriptors(work: Workspace, trial: Trial, b: int) -> bool:
    """Whether the databases of AL iteration b are there, of whatever model."""
    return all(has_array(_path(work, trial, b, side)) for side in SIDES)


def _path(work: Workspace, trial: Trial, b: int, side: str) -> Path:
    return work.folder.descriptors(side, trial, b, work.size(b - 1))


def _expected(work: Workspace, trial: Trial, b: int, side: str) -> dict[str, Any]:
    return {"kind": f"{side} descriptors", **work.identity(trial, b)}


def _up_to_date(work: Workspace, trial: Trial, b: int, side: str, model_is: str) -> bool:
    path = _path(work, trial, b, side)
    if not has_array(path):
        return False
    _, header = open_array(path, _expected(work, trial, b, side))
    return header.get("model") == model_is


def _fields(array: np.ndarray) -> Descriptors:
    return Descriptors(array["descriptor"], array["pseudo_label"], array["prediction"])


def _pseudo_label_accuracy(method: Method, pool: Descriptors, split: Split) -> float | None:
    if not method.estimates_labels:
        return None
    return accuracy(torch.from_numpy(np.array(pool.pseudo_labels)), split.labels.cpu())
