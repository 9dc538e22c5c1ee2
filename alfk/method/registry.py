"""The registry of acquisition methods: what a method declares, what it is given, and what it returns.

A method declares its inputs (`alfk.method.inputs`) and an acquisition function that maps them to a `Selection`.
`alfk.method.acquisition` registers the paper's methods, `alfk.rivals` those of other papers. How to add a method:
docs/method.md, section 11.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alfk.method import pseudo_labels
from alfk.method.inputs import INPUTS, File, Input, Measurement
from alfk.method.selection import Selection, top_scoring
from alfk.support.errors import UserError


@dataclasses.dataclass
class Situation:
    """The argument of a method's acquisition function.

    Attributes:
        available: (N,) bool, pool images that are not labelled yet.
        n: query size; at most the number of available images.
        generator: source of all random draws.
        measurement: None in an iteration in which the method draws at random.
        validation_labels: (V,) int64, true labels.
        annotate: positions (k,) in the pool -> their labels (k,), for methods that need "annotation"; for those that
            need "labels", of labelled images alone.
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
        pool_label, validation_label: the rules for the labels of g of pool and validation images ("scores"), keys of
            `pseudo_labels.RULES`.
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
        if unknown := self.inputs - INPUTS.keys():
            raise ValueError(f"{self.key} needs unknown inputs: {', '.join(sorted(unknown))}")
        if unknown := {self.pool_label, self.validation_label} - pseudo_labels.RULES.keys() - {None}:
            raise ValueError(f"{self.key} has unknown label rules: {', '.join(sorted(unknown))}")

    @property
    def declared(self) -> tuple[Input, ...]:
        """Its inputs, in the order in which they were registered."""
        return tuple(each for key, each in INPUTS.items() if key in self.inputs)

    @property
    def files(self) -> tuple[File, ...]:
        """What holds its inputs."""
        return tuple(dict.fromkeys(file for each in self.declared for file in each.files))

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
        return any(each.compute for each in self.declared)

    @property
    def needs_validation(self) -> bool:
        """Whether it needs the images of the validation set."""
        return any(each.validation for each in self.declared)

    @property
    def needs_validation_labels(self) -> bool:
        return any(each.validation == "labels" for each in self.declared)

    @property
    def is_informed(self) -> bool:
        """Whether it knows more than the pool: the validation set, rare classes, or labels inside the query."""
        return any(each.validation or (each.compute is None and each.key != "labels") for each in self.declared)

    @property
    def acts_first(self) -> bool:
        """Whether it chooses the first query too, which the others draw at random."""
        return self.needs_passes and not self.random_first

    @property
    def estimates_from_copies(self) -> bool:
        """Whether its pseudo-labels come from perturbed copies of the images."""
        return self.pool_label in pseudo_labels.ESTIMATORS

    @property
    def estimates_labels(self) -> bool:
        """Whether pool images get pseudo-labels, whose accuracy can be reported."""
        return self.pool_label not in (None, "true")

    def check_classes(self, classes: int) -> None:
        """Raises UserError if there are too many classes for it."""
        if self.max_classes is not None and classes > self.max_classes:
            raise UserError(f"{self.key} cannot be computed for {classes:,} classes, only for up to {self.max_classes}")


def take_top(values: Tensor, situation: Situation) -> Selection:
    """The n available images with the highest values (N,), equal ones in random order; score: the value."""
    values = values.cpu()
    chosen = top_scoring(values, situation.available, situation.n, situation.generator)
    return Selection(chosen, score=values[chosen])


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method. Raises ValueError if its key is taken."""
    if method.key in METHODS:
        raise ValueError(f"there is a method {method.key!r} already")
    METHODS[method.key] = method
    return method
