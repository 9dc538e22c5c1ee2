"""Typed constants of an experiment: a column of the table in docs/method.md, section 2."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from alfk.networks.weights import Initialiser
from alfk.support.errors import UserError

if TYPE_CHECKING:
    from alfk.data.split import Dataset, Split

Schedule = Callable[[int, float], float]  # (epoch, from 1; share of its steps completed after this step) -> factor


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Learning-rate factor that is multiplied by `factor` at every multiple of `every` epochs, counted from 1."""

    every: int
    factor: float = 0.1

    def __call__(self, epoch: int, done: float = 1.0) -> float:
        return self.factor ** (epoch // self.every)


@dataclasses.dataclass(frozen=True)
class WarmUpAndDecay:
    """Learning-rate factor with linear warm-up: it rises in every step, by 1 in `rise` epochs, during the first `warm`
    epochs, is 1 after them, and is multiplied by `factor` after each number of epochs in `falls`.
    """

    rise: int
    warm: int
    falls: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, epoch: int, done: float = 1.0) -> float:
        completed = epoch - 1
        if completed < self.warm:
            return (completed + done) / self.rise
        return self.factor ** sum(completed >= fall for fall in self.falls)

    def scaled(self, share: float) -> "WarmUpAndDecay":
        """The schedule for a training of `share` times as many epochs."""
        rise, warm, *falls = (max(1, round(epochs * share)) for epochs in (self.rise, self.warm, *self.falls))
        return dataclasses.replace(self, rise=rise, warm=warm, falls=tuple(falls))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one SGD training."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    amp: bool = False  # forward passes under torch.autocast, bfloat16
    compiled: bool = False  # whether the network is compiled by torch.compile


class Flags(Protocol):
    """Command-line flags that only one data set has."""

    def add(self, parser: Any) -> None:
        """Add them to an argparse.ArgumentParser."""

    def apply(self, experiment: "Experiment", options: Any) -> "Experiment":
        """The constants, changed by the parsed `options`.

        If the images lie in a folder that a flag names, `options.images` is set to it; it is None otherwise. Commands
        in messages name this folder first: run.py FOLDER --initial.

        Raises:
            UserError: the flags do not fit together, or not to the images.
        """


# Metadata of fields: the stages whose results depend on them. Without metadata both stages depend on a field.
FREE: dict[str, tuple[str, ...]] = {"stages": ()}
INITIAL = {"stages": ("initial",)}
LEARNING = {"stages": ("learning",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All constants of one data set, with the functions that load its images and build its network."""

    name: str = field(metadata=FREE)
    classes: int | None  # None: counted from the training labels
    mean: tuple[float, ...]  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...]
    minority: tuple[int, ...] | None  # classes thinned out by the imbalance ratio; None: a random half in each run
    validation_per_class: tuple[int, ...]  # drawn from the training images; empty if there is a separate validation set
    iterations: int = field(metadata=FREE)  # B, AL iterations
    query_size: int = field(metadata=LEARNING)  # n, images labelled in each iteration; 0: 5 % of the training images
    runs: int = field(metadata=FREE)  # the paper's number of runs
    retraining: Recipe = field(metadata=LEARNING)
    pretraining: Recipe = field(metadata=INITIAL)  # rotation task
    stalled_below: float | None = field(default=None, metadata=FREE)  # rotation accuracy after its first epoch, in %
    restarts: int = field(default=0, metadata=FREE)  # of a stalled rotation training, at most
    descriptors: dict[int, tuple[int, ...]] = field(metadata=FREE)  # L -> indices into the network's list of taps
    default_length: int = field(metadata=FREE)  # L if the command line gives none
    default_ir: float = field(metadata=FREE)  # imbalance ratio if the command line gives none
    descriptor_batch: int = field(metadata=LEARNING)  # images per batch outside training; affects rounding and masks
    training_threads: int  # CPU threads while training: fixed, so that results depend on neither --jobs nor the machine
    samples: int = field(metadata=LEARNING)  # K, dropout samples or perturbed copies, in total over an ensemble
    network: Callable[[int], nn.Module]  # number of classes -> network
    initialise: Initialiser  # draws its weights
    load: "Load" = field(metadata=FREE)
    has_subsets: bool = field(default=False, metadata=FREE)  # whether load(..., strict=False) accepts unofficial files
    train_images: int | None = field(default=None, metadata=FREE)  # official number; fewer shrink the validation set
    descriptor_dtype: str = field(default="float32", metadata=LEARNING)  # of databases on disk: float32 or float16
    image_size: int | None = None  # pixels that images in files are cropped to
    loader: str | None = None  # of image files: "dali" or "torchvision"
    holdout: float = 0.0  # share of the validation images reserved for test, if both are the same images
    top5: bool = field(default=False, metadata=LEARNING)  # whether top-5 accuracy is recorded too
    flags: Flags | None = field(default=None, metadata=FREE)  # flags that only this data set has
    own_images: bool = field(default=False, metadata=FREE)  # a user's: thinned only if -ir says so, schedules follow -e
    default_select: str = field(default="test", metadata=FREE)  # --select if the command line gives none
    panels: Mapping[float, str] = field(default_factory=dict, metadata=FREE)  # ir -> the paper's panel
    hardest: tuple[int, ...] = field(default=(), metadata=FREE)  # minority classes whose accuracy the paper reports

    def taps(self, length: int) -> tuple[int, ...]:
        """Indices of the taps whose concatenation is a descriptor of `length` values. Raises UserError."""
        if length not in self.descriptors:
            known = ", ".join(map(str, self.descriptors))
            raise UserError(f"{self.name} has no descriptor of length L={length}; there are {known}")
        return self.descriptors[length]

    def for_data(self, train: "Split") -> "Experiment":
        """The constants adapted to the images `train`: if there are fewer than `train_images`, the validation set
        shrinks in proportion; `classes` None and a query size of 0 are replaced by numbers.
        """
        changed: dict[str, object] = {}
        if self.train_images not in (None, len(train)):
            parts = (max(1, count * len(train) // self.train_images) for count in self.validation_per_class)
            changed["validation_per_class"] = tuple(parts)
        if self.classes is None:
            changed["classes"] = len(train.classes) if train.classes else 1 + int(train.labels.max())
        if not self.query_size:
            changed["query_size"] = max(1, len(train) // 20)
        return dataclasses.replace(self, **changed)

    def settings(self, stage: str) -> dict[str, object]:
        """The constants on which results depend, as flat JSON-able values, for a run's manifest."""
        flat: dict[str, object] = {}
        for each in dataclasses.fields(self):
            name, value = each.name, getattr(self, each.name)
            if stage not in each.metadata.get("stages", (stage,)):
                continue
            if isinstance(value, Recipe):
                for part in dataclasses.fields(value):
                    item = getattr(value, part.name)
                    flat[f"{name}.{part.name}"] = item if isinstance(item, int | float) else str(item)
            elif callable(value):
                flat[name] = value.__name__
            else:
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat

    def behaviour(self, stage: str) -> dict[str, object]:
        """What the functions among the constants do, of which `settings` has the names: the network's structure, and
        of the stage "initial" or "learning" the learning rates of all epochs, and the restarts of stalled trainings or
        the taps of each length.
        """
        name = "pretraining" if stage == "initial" else "retraining"
        recipe: Recipe = getattr(self, name)
        rates = [f"{recipe.schedule(epoch, 0.5):.6g}" for epoch in range(1, recipe.epochs + 1)]
        found = {"network.structure": digest_of(str(self.network(self.classes))), f"{name}.rates": digest_of(rates)}
        if stage == "initial":
            found["pretraining.restarts"] = self.restarts
        else:
            found |= {f"taps.{length}": list(taps) for length, taps in self.descriptors.items()}
        return found


def digest_of(content: object) -> str:
    """Sixteen hexadecimal digits that tell JSON-able values apart."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


# (data directory: Path[, strict: bool]) -> training and test images, or a Dataset
Load = Callable[..., "tuple[Split, Split] | Dataset"]
