"""The inputs of acquisition methods: what each is, how it is computed, and the files that hold it.

An input is one `Input`, registered in one line; a method names its inputs by their keys. The passes through the
network, the files of a run and the attributes of `Measurement` follow from it. The inputs of the paper's methods, and
those that several other methods use, are registered at the end of this file.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method import pseudo_labels
from alfk.method.descriptors import Descriptors, LabelRule, descriptors_of
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES, Strategy, Transformation
from alfk.method.uncertainty import uncertainty
from alfk.networks.outputs import Outputs, logits_of, outputs_of
from alfk.support.errors import UserError

POOL, VALIDATION = "the pool", "the validation set"  # in messages


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a method takes K samples of an image: dropout masks, or copies perturbed by a strategy.

    Attributes:
        generator: source of masks or perturbations.
        samples: K, the total over the members of an ensemble.
    """

    generator: torch.Generator
    samples: int = 128
    strategy: Strategy = dataclasses.field(default_factory=lambda: STRATEGIES[DEFAULT_COPIES])


class Storage(Protocol):
    """Where large inputs are written batch by batch, instead of memory.

    Attributes:
        floats: the type of descriptors and features.
    """

    floats: np.dtype

    def create(self, name: str, images: int, fields: Sequence[tuple]) -> np.ndarray | None:
        """The structured array (images,) of a file; None in a process of a group that does not write files."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What inputs are computed from.

    Attributes:
        key: of the method.
        pool_label, validation_label: the method's rules for the labels of g, keys of `pseudo_labels.RULES`, or None.
        models: one network, or the ensemble of an uncertainty method; they keep the contract, in float32.
        taps: indices of the taps that make the descriptor; all if None.
        batch_size: images per forward pass.
        storage: None to keep everything in memory.
    """

    key: str
    pool_label: str | None
    validation_label: str | None
    models: Sequence[nn.Module]
    pool: Split
    validation: Split | None
    sampling: Sampling
    taps: Sequence[int] | None
    batch_size: int
    storage: Storage | None

    def side(self, side: str) -> tuple[Split, str]:
        """The split of the "validation" set or the "pool", and its name in messages."""
        return (self.pool, POOL) if side == "pool" else (self.validation, VALIDATION)


def load_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """A file's array as a tensor on the CPU."""
    return torch.from_numpy(np.array(array))


def store_tensor(value: Tensor) -> np.ndarray:
    """The inverse of `load_tensor`."""
    return value.cpu().numpy()


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a run with a row for each image, and the attribute of `Measurement` of the same name.

    Attributes:
        name: of both.
        fields: what the array holds, a sentence for the file's header.
        kind: what the file is, for its header; the name if None.
        load: (memory-mapped array, device of the pool) -> value of the attribute.
        store: value -> array, for a value that was not written to `Task.storage`.
    """

    name: str
    fields: str
    kind: str | None = None
    load: Callable[[np.ndarray, torch.device], Any] = load_tensor
    store: Callable[[Any], np.ndarray] = store_tensor


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of acquisition methods.

    Attributes:
        key: its name.
        meaning: what it is.
        compute: task -> the value of each of its files, by name. None if it does not come from a network but from the
            one who asks, by an attribute of `Situation`.
        files: what holds it. An input is not computed if another one has filled all its files.
        validation: what it uses of the validation set: None, "images", or "labels" for images and labels.
    """

    key: str
    meaning: str
    compute: Callable[[Task], Mapping[str, Any]] | None = None
    files: tuple[File, ...] = ()
    validation: str | None = None


INPUTS: dict[str, Input] = {}
FILES: dict[str, File] = {}


def register_input(each: Input) -> Input:
    """Add an input. Raises ValueError if its key, or the name of a file, is taken."""
    if each.key in INPUTS or any(FILES.get(file.name, file) is not file for file in each.files):
        raise ValueError(f"there is an input {each.key!r} already, or one with a file of the same name")
    INPUTS[each.key] = each
    FILES.update({file.name: file for file in each.files})
    return each


class Measurement:
    """The inputs of a method, in memory or memory-mapped from files.

    Attributes:
        validation, pool: `Descriptors` ("features", "scores").
        uncertainty: (N,) float64 of the pool.
        logits: (N, C) float32 of the pool.
        pool_outputs, validation_outputs: `Outputs` ("outputs", "validation_outputs").
        forward, backward: number of images in forward and backward passes, the cost of the measurement.

    Each further file of a registered input is an attribute as well. Attributes of inputs that the method does not
    declare are None.
    """

    def __init__(self, forward: int = 0, backward: int = 0, **values: Any):
        self.forward, self.backward = forward, backward
        self.update(values)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set the values of files by name. Raises ValueError for names that no registered input has."""
        if unknown := values.keys() - FILES.keys():
            raise ValueError(f"no input has a file {', '.join(sorted(unknown))}")
        vars(self).update(values)

    def __getattr__(self, name: str) -> None:  # only called for attributes that are not set
        if name in FILES:
            return None
        raise AttributeError(f"a measurement has no {name!r}: registered inputs have {', '.join(FILES)}")


# Descriptors of validation set and pool (Section 4.1), with labels for the scores (Section 4.4)


def _descriptors(task: Task) -> dict[str, Descriptors]:
    """z~, and g~ if the method has label rules, of the validation set, and then of the pool."""
    if task.pool_label == "true" and task.pool.labels is None:
        raise UserError(f"the oracle {task.key} needs the labels of the whole pool")
    validation_copies, pool_copies = _copies(task)
    rule = _rule(task, task.validation_label, task.validation, None, validation_copies)
    validation = _described(task, "validation", rule, task.storage)
    rule = _rule(task, task.pool_label, task.pool, validation, pool_copies)
    return {"validation": validation, "pool": _described(task, "pool", rule, task.storage)}


def _copies(task: Task) -> tuple[Sequence[Transformation], Sequence[Transformation]]:
    """The perturbations of validation and of pool images, for labels that are estimated from perturbed copies."""
    if task.pool_label not in pseudo_labels.ESTIMATORS:
        return (), ()
    sampling, shape = task.sampling, next(task.validation.batches(1))[0].shape[1:]
    copies = sampling.strategy.draw(sampling.samples, shape, sampling.generator)
    if getattr(sampling.strategy, "shared", True):
        return copies, copies
    return copies, sampling.strategy.draw(sampling.samples, shape, sampling.generator)


def _rule(
    task: Task, label: str | None, split: Split, validation: Descriptors | None, copies: Sequence[Transformation]
) -> LabelRule | None:
    """The rule for the labels of the scores of `split`, None for descriptors without scores."""
    if label is None:
        return None

    def of_predictions() -> Descriptors:
        return _described(task, "validation", pseudo_labels.predicted, None)

    known = pseudo_labels.Known(
        task.models[0], task.taps, split.labels, validation, task.validation.labels, of_predictions, copies
    )
    return pseudo_labels.RULES[label](known)


def _described(task: Task, side: str, rule: LabelRule | None, storage: Storage | None) -> Descriptors:
    """Descriptors of the "validation" set or the "pool"."""
    split, name = task.side(side)

    def allocate(images: int, width: int) -> Descriptors:
        fields = [("descriptor", storage.floats, (width,)), ("pseudo_label", "<i8"), ("prediction", "<i8")]
        array = storage.create(side, images, fields)
        if array is None and side == "validation":  # every process searches it for the nearest validation images
            array = np.zeros(images, fields)
        return Descriptors(None, None, None) if array is None else _load_descriptors(array, split.device)

    return descriptors_of(task.models[0], split, task.taps, rule, task.batch_size, storage and allocate, name)


def _load_descriptors(array: np.ndarray, device: torch.device) -> Descriptors:
    return Descriptors(array["descriptor"], array["pseudo_label"], array["prediction"])


# Inputs and outputs of the last linear layer


def _pool_outputs(task: Task) -> dict[str, Outputs]:
    return {"pool_outputs": _outputs(task, "pool")}


def _validation_outputs(task: Task) -> dict[str, Outputs]:
    return {"validation_outputs": _outputs(task, "validation")}


def _outputs(task: Task, side: str) -> Outputs:
    """From one forward pass over the "validation" set or the "pool"."""
    split, name = task.side(side)

    def allocate(images: int, width: int, classes: int) -> Outputs:
        fields = [("features", task.storage.floats, (width,)), ("logits", "<f4", (classes,))]
        array = task.storage.create(f"{side}_outputs", images, fields)
        return Outputs(None, None) if array is None else Outputs(array["features"], array["logits"])

    return outputs_of(task.models[0], split, task.taps, task.batch_size, name, task.storage and allocate)


def _load_outputs(array: np.ndarray, device: torch.device) -> Outputs:
    return Outputs(array["features"], array["logits"]).to(device)


# The other inputs from a network


def _uncertainty(task: Task) -> dict[str, Tensor]:
    samples, generator = task.sampling.samples, task.sampling.generator
    return {"uncertainty": uncertainty(task.key, task.models, task.pool, samples, generator, task.batch_size, POOL)}


def _logits(task: Task) -> dict[str, Tensor]:
    return {"logits": logits_of(task.models[0], task.pool, task.batch_size, POOL)}


# The registry

DESCRIPTOR_FIELDS = (
    "descriptor: z, then g if the method uses it, each standardised per scale; "
    "pseudo_label: the label of g, -1 without g; prediction: the model's"
)
OUTPUT_FIELDS = "features: input of the network's last linear layer; logits: its output"

DESCRIPTOR_FILES = (
    File("validation", DESCRIPTOR_FIELDS, "validation descriptors", _load_descriptors),
    File("pool", DESCRIPTOR_FIELDS, "pool descriptors", _load_descriptors),
)
POOL_OUTPUTS = File("pool_outputs", OUTPUT_FIELDS, "pool outputs", _load_outputs)
VALIDATION_OUTPUTS = File("validation_outputs", OUTPUT_FIELDS, "validation outputs", _load_outputs)
UNCERTAINTY = File("uncertainty", "uncertainty of every pool image, the larger the less certain")
LOGITS = File("logits", "the network's output for every pool image")

for _input in (
    Input("features", "standardised features z of validation and pool", _descriptors, DESCRIPTOR_FILES, "labels"),
    Input("scores", "the same with Fisher scores g, for the method's rules", _descriptors, DESCRIPTOR_FILES, "labels"),
    Input("uncertainty", "MC-dropout uncertainty of the pool, of the method's key", _uncertainty, (UNCERTAINTY,)),
    Input("logits", "the network's output for the pool", _logits, (LOGITS,)),
    Input("outputs", "inputs and outputs of the last linear layer for the pool", _pool_outputs, (POOL_OUTPUTS,)),
    Input("validation_outputs", "likewise for validation", _validation_outputs, (VALIDATION_OUTPUTS,), "labels"),
    Input("labels", "labels of the labelled pool images"),
    Input("annotation", "labels of pool images, requested from the annotator while the query is being chosen"),
    Input("rare_classes", "which classes are rare, known beforehand"),
):
    register_input(_input)
