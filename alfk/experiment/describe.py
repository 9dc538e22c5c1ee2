"""Stage 1 of an AL iteration: databases of the inputs that its method declares (paper, Section 4.1)."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from alfk.data.split import Split
from alfk.experiment.round import Round
from alfk.experiment.training import accuracy, accuracy_per_class
from alfk.method.acquisition import measure
from alfk.method.inputs import File, Measurement, Sampling
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES
from alfk.method.registry import Method
from alfk.networks.contract import FEW, check_model
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import complete_array, create_array, has_array, open_array, read_header, save_array

FIX = "delete it, then gen_descr.py or run.py makes it again"


def databases(current: Round) -> tuple[str, ...]:
    """The names of the databases that the iteration's method chooses from; none if it draws at random."""
    return tuple(file.name for file in _files(current))


def _files(current: Round) -> tuple[File, ...]:
    method = current.method
    if current.b == 0 and (method.random_first or current.trial.first_batch == "random"):
        return ()
    return method.files


class _Folder:
    """Where `measure` writes large inputs: the files of an iteration, under a temporary name.

    Attributes:
        arrays: by the names of the files; None in processes that do not write.
    """

    def __init__(self, current: Round):
        self.current, self.arrays = current, {}
        self.floats = np.dtype(current.experiment.descriptor_dtype).newbyteorder("<")

    def create(self, name: str, images: int, fields: Sequence[tuple]) -> np.ndarray | None:
        self.arrays[name] = create_array(self.current.database(name), (images,), np.dtype(fields))
        return self.arrays[name]


def describe(current: Round) -> None:
    """Write runN/descr/<name>_*.npy for every database of the iteration.

    Nothing is done if all of them exist and were made with the same model.
    """
    files = _files(current)
    if not files:
        return
    method, experiment = current.method, current.experiment
    taps = experiment.taps(current.trial.length) if method.needs_descriptors else None
    models, model_hash = current.described_models()
    if distributed.broadcast_from_main(lambda: all(_is_current(current, file, model_hash) for file in files)):
        return
    used = () if taps is None else taps
    check_model(models[0], next(current.pool.batches(FEW))[0], used, scores=method.pool_label is not None)
    current.report("stage", trial=current.trial, b=current.b, doing=" and ".join(file.name for file in files))
    start = time.perf_counter()
    strategy = STRATEGIES[current.trial.copies or DEFAULT_COPIES]
    sampling = Sampling(current.generator("sample"), experiment.samples, strategy)
    splits, folder = (current.pool, current.validation), _Folder(current)
    found = measure(method, models, *splits, sampling, taps, experiment.descriptor_batch, folder)
    header = {
        "model": model_hash,
        "taps": None if taps is None else list(taps),
        "forward": found.forward,
        "backward": found.backward,
        "pseudo_labels": _pseudo_label_accuracy(method, found, current.pool, experiment.classes),
        "seconds": time.perf_counter() - start,
    }
    for file in files:
        path, about = current.database(file.name), {**_expected(current, file), "fields": file.fields, **header}
        if file.name in folder.arrays:
            complete_array(path, folder.arrays[file.name], about)
        else:
            save_array(path, file.store(getattr(found, file.name)), about)


def read_databases(current: Round) -> tuple[Measurement | None, dict[str, Any]]:
    """The iteration's measurement and a database's header; (None, {}) if it has none.

    Raises:
        UserError: a database is missing, damaged, of another trial, or of another model than the iteration starts from.
    """
    files, values, header = _files(current), {}, {}
    if not files:
        return None, {}
    if not all(has_array(current.database(file.name)) for file in files):
        raise UserError(f"there are no descriptors of {current.trial.label()} b={current.b}: run gen_descr.py first")
    _, model_hash = current.described_models()
    for file in files:
        expected = {**_expected(current, file), "model": model_hash}
        array, header = open_array(current.database(file.name), expected, fix=FIX)
        values[file.name] = file.load(array, current.pool.device)
    return Measurement(**values), header


def _expected(current: Round, file: File) -> dict[str, Any]:
    return {"kind": file.kind or file.name, **current.identity()}


def _is_current(current: Round, file: File, model_hash: str) -> bool:
    path = current.database(file.name)
    return has_array(path) and read_header(path, _expected(current, file), FIX).get("model") == model_hash


def _pseudo_label_accuracy(method: Method, found: Measurement, pool: Split, classes: int) -> dict[str, Any] | None:
    """Accuracy of the pool's pseudo-labels in percent, in total and for each true class; in the main process."""
    if not method.estimates_labels or not distributed.is_main_process():
        return None
    estimated, true = torch.from_numpy(np.array(found.pool.pseudo_labels)), pool.labels.cpu()
    return {"accuracy": accuracy(estimated, true), "per_class": accuracy_per_class(estimated, true, classes)}
