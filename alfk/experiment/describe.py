"""Stage 2: databases of the current model's descriptors, uncertainty or logits (paper, Section 4.1).

The databases of an iteration follow from the inputs that its method declares.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from alfk.data.split import Split
from alfk.experiment.round import Round
from alfk.experiment.training import accuracy, accuracy_per_class
from alfk.method.acquisition import Sampling, measure
from alfk.method.descriptors import Descriptors
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES
from alfk.method.registry import DATABASES, Measurement, Method
from alfk.networks.outputs import Outputs
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import complete_array, create_array, has_array, open_array, read_header, save_array

DESCRIPTOR_FIELDS = (
    "descriptor: z, then g if the method uses it, each standardised per scale; "
    "pseudo_label: the label of g, -1 without g; prediction: the model's"
)
FIELDS = {
    "uncertainty": "uncertainty of every pool image, the larger the less certain",
    "logits": "the network's output for every pool image",
    "information": "expected information gain of every pool image about validation images, in nats",
}
OUTPUTS = ("pool_outputs", "validation_outputs")
OUTPUT_FIELDS = "features: input of the network's last linear layer; logits: its output"

FIX = "delete it, then gen_descr.py or run.py makes it again"


def databases(current: Round) -> tuple[str, ...]:
    """The names of the databases that the iteration's method chooses from; none if it draws at random."""
    method = current.method
    if current.b == 0 and (method.random_first or current.trial.first_batch == "random"):
        return ()
    names = [name for needed in DATABASES if needed in method.inputs for name in DATABASES[needed]]
    return tuple(dict.fromkeys(names))


def describe(current: Round) -> None:
    """Write runN/descr/<name>_*.npy for every database of the iteration.

    Nothing is done if all of them exist and were made with the same model.
    """
    names = databases(current)
    if not names:
        return
    method, work = current.method, current.work
    taps = work.experiment.taps(current.trial.length) if method.needs_descriptors else None
    models, model_hash = current.described_models()
    if distributed.broadcast_from_main(lambda: all(_is_current(current, name, model_hash) for name in names)):
        return
    current.report("stage", trial=current.trial, b=current.b, doing=" and ".join(names))
    start = time.perf_counter()
    arrays: dict[str, np.memmap | None] = {}

    stored = np.dtype(work.experiment.descriptor_dtype).newbyteorder("<")

    def allocate(side: str, images: int, width: int) -> Descriptors:
        vector = ("descriptor", stored, (width,))
        dtype = np.dtype([vector, ("pseudo_label", "<i8"), ("prediction", "<i8")])
        arrays[side] = create_array(current.database(side), (images,), dtype)
        if distributed.is_main_process():
            return _fields(arrays[side])
        if side == "validation":  # every process searches it for the nearest validation images
            return _fields(np.zeros(images, dtype))
        return dataclasses.replace(Descriptors.empty(images, 0), vectors=None)

    def allocate_outputs(side: str, images: int, width: int, classes: int) -> Outputs:
        name, dtype = f"{side}_outputs", np.dtype([("features", stored, (width,)), ("logits", "<f4", (classes,))])
        arrays[name] = create_array(current.database(name), (images,), dtype)
        return _outputs(arrays[name]) if distributed.is_main_process() else Outputs(None, None)

    strategy = STRATEGIES[current.trial.copies or DEFAULT_COPIES]
    sampling = Sampling(current.generator("sample"), work.experiment.samples, strategy)
    batch_size = work.experiment.descriptor_batch
    splits = current.pool, current.validation
    found = measure(method, models, *splits, sampling, taps, batch_size, allocate, allocate_outputs)
    header = {
        "model": model_hash,
        "taps": None if taps is None else list(taps),
        "forward": found.forward,
        "backward": found.backward,
        "pseudo_labels": _pseudo_label_accuracy(method, found, current.pool, work.experiment.classes),
        "seconds": time.perf_counter() - start,
    }
    for name in names:
        fields = OUTPUT_FIELDS if name in OUTPUTS else FIELDS.get(name, DESCRIPTOR_FIELDS)
        about = {**_expected(current, name), "fields": fields, **header}
        if name in FIELDS:
            save_array(current.database(name), getattr(found, name).cpu().numpy(), about)
        else:
            complete_array(current.database(name), arrays[name], about)


def read_databases(current: Round) -> tuple[Measurement | None, dict[str, Any]]:
    """The iteration's measurement, descriptors memory-mapped, and a database's header; (None, {}) if it has none.

    Raises:
        UserError: a database is missing, damaged, of another trial, or of another model than the iteration starts from.
    """
    names, found, header = databases(current), {}, {}
    if not names:
        return None, {}
    if not all(has_array(current.database(name)) for name in names):
        raise UserError(f"there are no descriptors of {current.trial.label()} b={current.b}: run gen_descr.py first")
    _, model_hash = current.described_models()
    for name in names:
        array, header = open_array(current.database(name), {**_expected(current, name), "model": model_hash}, fix=FIX)
        if name in OUTPUTS:
            found[name] = _outputs(array).to(current.pool.device)
        else:
            found[name] = torch.from_numpy(np.array(array)) if name in FIELDS else _fields(array)
    return Measurement(**found), header


def _expected(current: Round, name: str) -> dict[str, Any]:
    kind = name if name in FIELDS else name.replace("_", " ") if name in OUTPUTS else f"{name} descriptors"
    return {"kind": kind, **current.identity()}


def _is_current(current: Round, name: str, model_hash: str) -> bool:
    path = current.database(name)
    if not has_array(path):
        return False
    return read_header(path, _expected(current, name), FIX).get("model") == model_hash


def _fields(array: np.ndarray) -> Descriptors:
    return Descriptors(array["descriptor"], array["pseudo_label"], array["prediction"])


def _outputs(array: np.ndarray) -> Outputs:
    return Outputs(array["features"], array["logits"])


def _pseudo_label_accuracy(method: Method, found: Measurement, pool: Split, classes: int) -> dict[str, Any] | None:
    """Accuracy of the pool's pseudo-labels in percent, in total and for each true class."""
    if not method.estimates_labels or pool.labels is None:
        return None
    estimated, true = torch.from_numpy(np.array(found.pool.pseudo_labels)), pool.labels.cpu()
    return {"accuracy": accuracy(estimated, true), "per_class": accuracy_per_class(estimated, true, classes)}
