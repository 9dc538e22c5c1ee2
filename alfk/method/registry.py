"""The registry of acquisition methods: what a method declares, what it is given, and what it returns.

A method declares its inputs and an acquisition function that maps them to a `Selection`; `alfk.method.acquisition`
registers the paper's methods, `alfk.rivals` those of other papers. How to add a method: docs/method.md, section 11.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alfk.method import pseudo_labels
from alfk.method.descriptors import Descriptors
from alfk.method.selection import Selection, top_scoring
from alfk.networks.outputs import Outputs
from alfk.support.errors import UserError

INPUTS = {
    "features": "standardised features z of every validation and pool image",
    "scores": "standardised Fisher scores g of the same images, for the labels of the method's rules; implies features",
    "uncertainty": "the method's MC-dropout measure of every pool image, from an ensemble of models",
    "logits": "the network's output for every pool image",
    "outputs": "the input of the network's last linear layer, and its output, for every pool image",
    "validation_outputs": "the same for every validation image, whose labels are used too",
    "information": "what the label of every pool image tells about those of random validation images (EPIG)",
    "annotation": "labels of pool images, requested from the annotator while the query is being chosen",
    "rare_classes": "which classes are rare, known beforehand",
}
NO_PASSES = {"annotation", "rare_classes"}  # inputs that do not come from a network
OF_VALIDATION = {"features", "scores", "validation_outputs"}  # inputs for which the validation set needs labels

DATABASES = {  # input -> the files in runN/descr that hold it
    "features": ("validation", "pool"),
    "scores": ("validation", "pool"),
    "uncertainty": ("uncertainty",),
    "logits": ("logits",),
    "outputs": ("pool_outputs",),
    "validation_outputs": ("validation_outputs",),
    "information": ("information",),
}


@dataclasses.dataclass
class Measurement:
    """The inputs of a method, in memory or memory-mapped from files; None for inputs that it does not declare.

    Attributes:
        validation, pool: descriptors of validation set and pool ("features", "scores").
        uncertainty: (N,) of the pool.
        logits: (N, C) of the pool.
        pool_outputs, validation_outputs: features (N, D) and logits (N, C) ("outputs", "validation_outputs").
        information: (N,) of the pool, in nats.
        forward, backward: number of images in forward and backward passes, the cost of the measurement.
    """

    validation: Descriptors | None = None
    pool: Descriptors | None = None
    uncertainty: Tensor | None = None
    logits: Tensor | None = None
    pool_outputs: Outputs | None = None
    validation_outputs: Outputs | None = None
    information: Tensor | None = None
    forward: int = 0
    backward: int = 0


@dataclasses.dataclass
class Situation:
    """The argument of a method's acquisition function.

    Attributes:
        available: (N,) bool, pool images that are not labelled yet.
        n: query size; at most the number of available images.
        generator: source of all random draws.
        measurement: None in an iteration in which the method draws at random.
        validation_labels: (V,) int64, true labels.
        annotate: positions (k,) in the pool -> their labels (k,), for methods that need "annotation".
        rare_classes: for methods that need them.
        classes: their number, None if it is the network's number of outputs.
    """

    available: Tensor
    n: int
    generator: torch.Generator
    measurement: Measurement | None = None
    validation_labels: Tensor | None = None
    annotate: Callable[[Tensor], Tensor] | None = None
    rare_classes: Sequence[int] | None = None
    classes: int | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """An acquisition method.

    Attributes:
        key: its name on the command line and in files.
        notation: its name in figures, in TeX.
        choose: the acquisition function, which returns the n images to label next.
        inputs: keys of INPUTS; they determine which passes through the network are run and which files are written.
        random_first: whether it draws at random while no image is labelled.
        pool_label, validation_label: the rules for the labels of g of pool and validation images ("scores").
        of_rotation_model: whether its inputs come from the rotation model, the same in all iterations, and not from the
            current one. `query` takes them from the network that it is given.
        max_classes: number of classes above which it cannot be computed; None if there is none.
    """

    key: str
    notation: str
    choose: Callable[[Situation], Selection]
    inputs: frozenset[str] = frozenset()
    random_first: bool = False
    pool_label: str | None = None
    validation_label: str | None = None
    of_rotation_model: bool = False
    max_classes: int | None = None

    def __post_init__(self) -> None:
        unknown = self.inputs - set(INPUTS)
        if unknown:
            raise ValueError(f"{self.key} needs unknown inputs: {', '.join(sorted(unknown))}")

    @property
    def needs_descriptors(self) -> bool:
        return bool(self.inputs & {"features", "scores"})

    @property
    def needs_uncertainty(self) -> bool:
        """Whether it samples networks with MC-dropout; only such a method can use an ensemble."""
        return "uncertainty" in self.inputs

    @property
    def needs_passes(self) -> bool:
        """Whether the network has to be run over the pool."""
        return bool(self.inputs - NO_PASSES)

    @property
    def needs_validation(self) -> bool:
        """Whether it needs the images of the validation set."""
        return self.needs_validation_labels or "information" in self.inputs

    @property
    def needs_validation_labels(self) -> bool:
        return bool(self.inputs & OF_VALIDATION)

    @property
    def is_informed(self) -> bool:
        """Whether it knows more than the pool: the validation set, rare classes, or labels inside the query."""
        return self.needs_validation or bool(self.inputs & NO_PASSES)

    @property
    def acts_first(self) -> bool:
        """Whether it chooses the first query too, which the others draw at random."""
        return self.needs_passes and not self.random_first

    def check_classes(self, classes: int) -> None:
        """Raises UserError if there are too many classes for it."""
        if self.max_classes is not None and classes > self.max_classes:
            raise UserError(f"{self.key} cannot be computed for {classes:,} classes, only for up to {self.max_classes}")

    @property
    def estimates_from_copies(self) -> bool:
        """Whether its pseudo-labels come from perturbed copies of the images."""
        return self.pool_label in pseudo_labels.ESTIMATORS

    @property
    def estimates_labels(self) -> bool:
        """Whether pool images get pseudo-labels, whose accuracy can be reported."""
        return self.pool_label not in (None, "true")


def take_top(values: Tensor, situation: Situation) -> Selection:
    """The n available images with the highest values (N,), equal ones in random order; score: the value."""
    values = values.cpu()
    chosen = top_scoring(values, situation.available, situation.n, situation.generator)
    return Selection(chosen, score=values[chosen])


# The registry

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method. Raises ValueError if its key is taken."""
    if method.key in METHODS:
        raise ValueError(f"there is a method {method.key!r} already")
    METHODS[method.key] = method
    return method
