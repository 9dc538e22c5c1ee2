"""The state of one run that all its stages share: folder, random generators, data on the device, models."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alfk import bias, distributed
from alfk.config import Experiment
from alfk.data import Split
from alfk.errors import UserError
from alfk.files import has_array, has_file, load_checkpoint, locked, open_array, save_array
from alfk.network import is_in_layers, linear_layers, snapshot
from alfk.runs import RunFolder, Trial
from alfk.seeding import generator

Report = Callable[..., None]  # report(event, **information), for progress displays

PROTOCOL = 2  # raised when results under unchanged settings change; runs of another number are not continued


def no_report(event: str, **information: Any) -> None:
    """A Report that does nothing."""


@dataclasses.dataclass
class Workspace:
    """One run of an experiment.

    Attributes:
        train, test: the data set without distortion, on `device`.
        separate_validation: the validation images, if they are not drawn from the training images.
        seed: of the whole experiment; the run's generators are derived from it and the run's number.
    """

    experiment: Experiment
    folder: RunFolder
    train: Split
    test: Split
    seed: int
    device: torch.device
    report: Report = no_report
    separate_validation: Split | None = None

    def settings(self, initial: bool = False) -> dict[str, Any]:
        """The settings on which active learning depends, or, with `initial`, the initial models."""
        common = {"protocol": PROTOCOL, "dataset": self.experiment.name, "seed": self.seed, "device": self.device.type}
        if self.train.source or self.test.source:
            common["data"] = [self.train.source, self.test.source]
        if self.train.classes:
            common["class_names"] = list(self.train.classes)
        return common | self.experiment.settings("initial" if initial else "learning")

    def generator(self, *purpose: object, member: int = 0) -> torch.Generator:
        """The generator for one purpose; that of member 0 of an ensemble is the generator of a single model."""
        return generator(self.seed, self.folder.number, *purpose, *([f"member {member}"] if member else []))

    def identity(self) -> dict[str, Any]:
        """The entries of headers and checkpoints that identify this run."""
        return {"dataset": self.experiment.name, "run": self.folder.number, "seed": self.seed}

    def validation_indices(self) -> Tensor:
        """(V,) positions of the validation images in the training set: drawn once, then read from a file."""
        return self._draw_once("validation", self._draw_validation)

    def validation(self) -> Split:
        if self.separate_validation is not None:
            return self.separate_validation
        return self.train.subset(self.validation_indices())

    def hold_out(self, share: float) -> None:
        """Divide images that are both validation and test images: a random `share` of each class is for test."""
        images = self.separate_validation

        def draw() -> Tensor:
            labels, generator = images.labels.cpu(), self.generator("holdout")
            counts = [round(share * count) for count in torch.bincount(labels).tolist()]
            return bias.split_validation(labels, counts, generator)[0]

        rows = self._draw_once(f"test_{share:g}", draw)
        if not 0 < len(rows) < len(images):
            raise UserError(f"of {len(images)} validation images --holdout-val {share:g} leaves none for one side")
        rest = torch.ones(len(images), dtype=torch.bool)
        rest[rows] = False
        self.test, self.separate_validation = images.subset(rows), images.subset(rest.nonzero().flatten())

    def undistorted_pool_size(self) -> int:
        """Number of pool images at imbalance ratio 1."""
        return len(self.train) - sum(self.experiment.validation_per_class)

    def pool_size_of_shares(self, pool: Split) -> int:
        """The number of images of which labelled shares are percentages: of the pool that there is for a user's own
        images, of the undistorted pool in the paper's experiments.
        """
        return len(pool) if self.experiment.own_images else self.undistorted_pool_size()

    def pool_indices(self, ir: float, distortion: str) -> Tensor:
        """(P,) positions of the distorted pool in the training set: drawn once, then read from a file."""
        return self._draw_once(f"pool_{distortion}", lambda: self._draw_pool(ir, distortion))

    def pool(self, ir: float, nr: float, distortion: str) -> Split:
        """The distorted pool, with noisy labels if nr is not 0."""
        rows = self.pool_indices(ir, distortion)
        labels = (
            self._draw_once(f"labels_{distortion}", lambda: self._draw_labels(rows, nr, distortion)) if nr else None
        )
        return self.train.subset(rows, labels)

    def check_sizes(self, trials: Sequence[Trial], iterations: int) -> None:
        """Raises UserError if a pool is too small for that many AL iterations."""
        for trial in trials:
            size = len(self.pool_indices(trial.ir, trial.distortion))
            needed = self.experiment.query_size * iterations
            if needed > size:
                raise UserError(
                    f"{iterations} AL iterations of {self.experiment.query_size} images need {needed} pool images, "
                    f"the pool at ir={trial.ir:g} has {size}: lower -as or --iterations"
                )

    def _draw_validation(self) -> Tensor:
        labels = self.train.labels.cpu()
        try:
            return bias.split_validation(labels, self.experiment.validation_per_class, self.generator("split"))[0]
        except ValueError as problem:
            raise UserError(f"the training images of {self.experiment.name} do not suffice: {problem}") from None

    def _draw_pool(self, ir: float, distortion: str) -> Tensor:
        taken = torch.zeros(len(self.train), dtype=torch.bool)
        if self.separate_validation is None:
            taken[self.validation_indices()] = True
        rows = (~taken).nonzero().flatten()
        if ir == 1:
            return rows
        labels = self.train.labels.cpu()[rows]
        generator, minority = self.generator("bias", distortion), self.experiment.minority
        if minority is None:
            return rows[bias.thin_half_of_classes(labels, self.experiment.classes, ir, generator)]
        return rows[bias.thin_minority(labels, minority, ir, generator)]

    def _draw_labels(self, rows: Tensor, nr: float, distortion: str) -> Tensor:
        labels = self.train.labels.cpu()[rows]
        return bias.add_label_noise(labels, nr, self.experiment.classes, self.generator("noise", distortion))

    def _draw_once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """An index list in data/, drawn and written by the first process that needs it, read by all others."""
        path, about = self.folder.data(name), {"kind": name, **self.identity()}

        def make() -> None:
            with locked(self.folder.path / f".{name}.lock"):  # another trial of the run may need it too
                if not has_array(path):
                    save_array(path, draw().numpy(), about)

        distributed.broadcast_from_main(make)
        array, _ = open_array(path, about)
        return torch.from_numpy(np.array(array))

    def network(self, classes: int) -> nn.Module:
        return self.experiment.network(classes).to(self.device, memory_format=torch.channels_last)

    def random_state(self, classes: int, purpose: str, member: int) -> dict[str, Tensor]:
        """Random weights of a network for `classes` and `purpose`; on the CPU, so that they are equal on all devices.

        They are drawn in memory order and so depend on the memory format.
        """
        model = self.experiment.network(classes).to(memory_format=torch.channels_last)
        self.experiment.initialise(model, self.generator(purpose, member=member))
        return snapshot(model)

    def initial_state(self, trial: Trial, member: int = 0) -> dict[str, Tensor]:
        """The weights that a trial starts from. Of a rotation model the last linear layer is replaced by a new one; for
        the initial model "rotation_conv" all linear layers are.

        Raises:
            UserError: the initial model has not been made.
        """
        path = self.folder.initial(trial.distortion, trial.unsupervised, member, trial.select)
        if not has_file(path):
            raise UserError(f"there is no initial model {path}: {trial.initial_command()} makes it")
        kind = "rotation" if trial.unsupervised else "random"
        about = {"kind": "initial", "init": kind, "ir": trial.ir, "nr": trial.nr, **self.identity()}
        about |= {"select": trial.select} if trial.unsupervised else {}
        state, _ = load_checkpoint(path, {**about, "member": member})
        if trial.unsupervised:
            network = self.experiment.network(self.experiment.classes)
            new = linear_layers(network) if trial.init == "rotation_conv" else [network.head]
            fresh = self.random_state(self.experiment.classes, "head", member)
            state |= {name: value for name, value in fresh.items() if is_in_layers(name, new)}
        return state


def join_states(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The states of an ensemble's members as one, names prefixed by the member's number as in an nn.ModuleList."""
    return {f"{e}.{name}": value for e, state in enumerate(states) for name, value in state.items()}
