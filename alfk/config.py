"""Typed experiment constants: what a data set's folder states about itself (the columns of the paper's protocol)."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from alfk.errors import UserError
from alfk.network import Initialiser

if TYPE_CHECKING:
    from alfk.data import Sources, Split

Schedule = Callable[[int, float], float]  # epoch, from 1, and the share of it that is done after the step -> factor


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Learning-rate factor that is multiplied by `factor` at every multiple of `every` epochs, counted from 1."""

    every: int
    factor: float = 0.1

    def __call__(self, epoch: int, done: float = 1.0) -> float:
        return self.factor ** (epoch // self.every)


@dataclasses.dataclass(frozen=True)
class WarmUpAndDecay:
    """Learning-rate factor that rises with every step, by 1 in `rise` epochs, for the first `warm` epochs, is 1 then,
    and is multiplied by `factor` after each number of epochs in `falls`.
    """

    rise: int
    warm: int
    falls: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, epoch: int, done: float = 1.0) -> float:
        past = epoch - 1
        if past < self.warm:
            return (past + done) / self.rise
        return self.factor ** sum(past >= fall for fall in self.falls)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One SGD training: epochs, images a batch, learning rate and its schedule."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    amp: bool = False  # forward passes in bfloat16 where torch.autocast finds that safe
    compiled: bool = False  # by torch.compile


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All constants of one data set, with the two callables that bring its images and its network."""

    name: str
    classes: int | None  # None: as many as its folder turns out to have
    mean: tuple[float, ...]  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...]
    minority: tuple[int, ...] | None  # classes thinned out by the imbalance ratio; None: in each run a random half
    validation_per_class: tuple[int, ...]  # drawn from the training images; none where validation has its own
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
    network: Callable[[int], nn.Module]  # number of classes -> network
    initialise: Initialiser  # draws its weights
    load: "Load"  # may raise UnofficialFiles
    load_part: "Load | None" = None  # the same from files that are not the official
    train_images: int | None = None  # of the official files; with fewer the validation set shrinks in proportion
    descriptor_dtype: str = "float32"  # of databases on disk: float32 or float16
    image_size: int | None = None  # pixels that images in files are cropped to
    loader: str | None = None  # who decodes them
    holdout: float = 0.0  # share of the validation images that are for test alone, where both are the same images
    top5: bool = False  # whether accuracy among the five likeliest classes is recorded too
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None  # the data set's own flags
    with_flags: "Callable[[Experiment, argparse.Namespace], Experiment] | None" = None  # these constants as they say

    def taps(self, length: int) -> tuple[int, ...]:
        """Indices of the taps whose concatenation is a descriptor of `length` values. Raises UserError."""
        if length not in self.descriptors:
            known = ", ".join(map(str, self.descriptors))
            raise UserError(f"{self.name} has no descriptor of length L={length}; there are {known}")
        return self.descriptors[length]

    def for_data(self, train: "Split") -> "Experiment":
        """These constants for the training images that there are: of fewer than the official ones the validation set is
        shrunk in proportion; classes are counted where the constants leave that open.
        """
        changed: dict[str, object] = {}
        if self.train_images not in (None, len(train)):
            parts = (max(1, count * len(train) // self.train_images) for count in self.validation_per_class)
            changed["validation_per_class"] = tuple(parts)
        if self.classes is None:
            changed["classes"] = 1 + int(train.labels.max())
        return dataclasses.replace(self, **changed)

    def settings(self) -> dict[str, object]:
        """The constants on which results depend, as flat JSON-able values: what a run's manifest records."""
        neither = {"name", "runs", "iterations", "descriptors", "default_length", "default_ir", "load"}
        neither |= {"network", "initialise", "load_part", "train_images", "add_flags", "with_flags"}
        flat: dict[str, object] = {
            "network": self.network.__name__,
            "initialise": self.initialise.__name__,
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


Load = Callable[[Path], "tuple[Split, Split] | Sources"]  # data directory -> train and test, or more
