"""Typed experiment constants: what a data set's folder states about itself (the columns of the paper's protocol)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from alfk.errors import UserError
from alfk.network import Initialiser
from alfk.perturbation import Strategy

if TYPE_CHECKING:
    from alfk.data import Split


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Learning-rate factor that is multiplied by `factor` at every multiple of `every` epochs, counted from 1."""

    every: int
    factor: float = 0.1

    def __call__(self, epoch: int) -> float:
        return self.factor ** (epoch // self.every)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One SGD training: epochs, images a batch, learning rate and its schedule (epoch, from 1 -> factor)."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All constants of one data set, with the two callables that bring its images and its network."""

    name: str
    classes: int
    mean: tuple[float, ...]  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...]
    minority: tuple[int, ...]  # classes thinned out by the imbalance ratio
    validation_per_class: tuple[int, ...]
    iterations: int  # B, AL iterations
    query_size: int  # n, images labelled in each iteration
    runs: int
    retraining: Recipe
    pretraining: Recipe  # rotation task
    descriptors: dict[int, tuple[int, ...]]  # L -> indices into the network's list of taps
    default_length: int  # L where a method is asked for without one
    default_ir: float  # imbalance ratio likewise
    descriptor_batch: int  # images a batch outside training; changes rounding, and the order of dropout masks
    training_threads: int  # CPU threads while training: fixed, so that results depend on neither --jobs nor the machine
    samples: int  # K, dropout samples or perturbed copies of an image, over all of an ensemble
    strategy: Strategy  # how copies are perturbed
    network: Callable[[int, bool], nn.Module]  # number of classes, whether with MC-dropout -> network
    initialise: Initialiser  # draws its weights
    load: Callable[[Path], tuple["Split", "Split"]]  # data directory -> (train, test); may raise UnofficialFiles
    load_part: Callable[[Path], tuple["Split", "Split"]] | None = None  # the same from files that are not the official
    train_images: int | None = None  # of the official files; with fewer the validation set shrinks in proportion
    descriptor_dtype: str = "float32"  # of databases on disk: float32 or float16

    def taps(self, length: int) -> tuple[int, ...]:
        """Indices of the taps whose concatenation is a descriptor of `length` values. Raises UserError."""
        if length not in self.descriptors:
            known = ", ".join(map(str, self.descriptors))
            raise UserError(f"{self.name} has no descriptor of length L={length}; there are {known}")
        return self.descriptors[length]

    def for_part(self, images: int) -> "Experiment":
        """These constants for a training set of `images`: the validation set shrunk in proportion, nothing else."""
        if self.train_images in (None, images):
            return self
        shrunk = tuple(max(1, count * images // self.train_images) for count in self.validation_per_class)
        return dataclasses.replace(self, validation_per_class=shrunk)

    def settings(self) -> dict[str, object]:
        """The constants on which results depend, as flat JSON-able values: what a run's manifest records."""
        neither = {"name", "runs", "iterations", "descriptors", "default_length", "default_ir", "load"}
        neither |= {"network", "initialise", "strategy", "load_part", "train_images"}
        flat: dict[str, object] = {
            "network": self.network.__name__,
            "initialise": self.initialise.__name__,
            "strategy": str(self.strategy),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in neither:
                continue
            if isinstance(value, Recipe):
                for part in dataclasses.fields(value):
                    item = getattr(value, part.name)
                    plain = isinstance(item, int | float)
                    flat[f"{field.name}.{part.name}"] = item if plain else str(item)
            else:
                flat[field.name] = list(value) if isinstance(value, tuple) else value
        return flat
