"""The state of one run that all its stages share: folder, random generators, data on the device, models."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data import bias
from alfk.data.split import Split
from alfk.experiment.config import Experiment, digest_of
from alfk.experiment.folder import RunFolder, check_settings
from alfk.experiment.records import BASELINE, VALIDATION_ALONE
from alfk.experiment.trial import Trial, number_name
from alfk.networks.weights import fingerprint, fits, is_in_layers, linear_layers, snapshot
from alfk.support import distributed
from alfk.support.checkpoints import load_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import has_array, has_file, locked, open_array, save_array
from alfk.support.seeding import generator

Report = Callable[..., None]  # report(event, **information), for progress displays

DATA_SETTINGS = ("classes", "minority", "validation_per_class", "holdout")
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
        recipe: constants of another training, which replace the experiment's among the settings.
        initial_command: the command that makes a trial's initial models, for messages.
        recorded: settings of a finished run, which replace the experiment's constants.
        pretrained_with: the run's recorded settings of pretraining; initial models with other settings are refused.
    """

    experiment: Experiment
    folder: RunFolder
    train: Split
    test: Split
    seed: int
    device: torch.device
    report: Report = no_report
    separate_validation: Split | None = None
    recipe: Mapping[str, Any] | None = None
    initial_command: Callable[[Trial], str] = Trial.initial_command
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pretrained_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _initial_models: dict[Path, tuple[dict[str, Any], str]] = dataclasses.field(default_factory=dict, repr=False)
    _drawn_layers: dict[tuple[str, int], dict[str, Tensor]] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._labels = digest_of([split.labels.tolist() for split in (self.train, self.test)])

    def settings(self, stage: str = "learning") -> dict[str, Any]:
        """The settings that a stage depends on: "data" (the index lists in data/), "initial" or "learning"."""
        settings = self._common_settings()
        if stage == "data":
            settings |= {k: v for k, v in self.experiment.settings("initial").items() if k in DATA_SETTINGS}
        elif stage == "learning" and self.recipe is not None:
            settings |= self.experiment.settings("initial") | {"query_size": self.experiment.query_size} | self.recipe
        else:
            settings |= self.experiment.settings(stage)
        return {key: self.recorded.get(key, value) for key, value in settings.items()}

    def behaviour(self, stage: str = "learning") -> dict[str, Any]:
        """What the constants do that are functions (see `Experiment.behaviour`), the sizes of the tensors that
        `initialise` draws, and the labels of the images: recorded with the settings, but newer than the digests of
        settings in files, and no part of them.
        """
        found = self.experiment.behaviour(stage)
        if self.recipe is not None:
            found = {"network.structure": found["network.structure"]}
        network = self.experiment.network(self.experiment.classes)
        self.experiment.initialise(network, generator(0, "behaviour"))
        drawn = [f"{values.float().norm():.2g}" for values in network.parameters()]  # equal on all processors
        return found | {"network.initial": digest_of(drawn), "labels": self._labels}

    @contextlib.contextmanager
    def lock(self, name: str, stage: str = "learning") -> Iterator[None]:
        """Hold a lock of the run's folder inside the block. As long as it is held the run's settings do not change.

        Raises:
            UserError: another process holds it, or the settings changed before.
        """
        settings = self.settings(stage)
        with self.folder.lock(name):
            distributed.broadcast_from_main(lambda: self.folder.check_manifest(settings))
            yield

    def _common_settings(self) -> dict[str, Any]:
        common = {"protocol": PROTOCOL, "dataset": self.experiment.name, "seed": self.seed, "device": self.device.type}
        common["data"] = [self.train.source, self.test.source]  # None for official images
        if self.train.classes:
            common["class_names"] = list(self.train.classes)
        return common

    def generator(self, *purpose: object, member: int = 0) -> torch.Generator:
        """The generator for one purpose; that of member 0 of an ensemble is the generator of a single model."""
        return generator(self.seed, self.folder.number, *purpose, *([f"member {member}"] if member else []))

    def identity(self) -> dict[str, Any]:
        """The entries of headers and checkpoints that identify this run."""
        return {"dataset": self.experiment.name, "run": self.folder.number, "seed": self.seed}

    def made_with(self, trial: Trial) -> str:
        """The digest of all settings that a trial's results depend on, those of its initial models included."""
        initial = [digest_of(self.initial_settings(trial, member)) for member in range(trial.ensemble)]
        return digest_of({**self.settings(), "initial": initial})

    def initial_settings(self, trial: Trial, member: int = 0) -> dict[str, Any]:
        """The settings that an initial model was made with, as its file states them."""
        return self._initial_model(trial, member)[0]

    def initial_weights(self, trial: Trial) -> list[str]:
        """The fingerprints of a trial's initial models, as they are in their files."""
        return [self._initial_model(trial, member)[1] for member in range(trial.ensemble)]

    def _initial_model(self, trial: Trial, member: int) -> tuple[dict[str, Any], str]:
        """The settings and the fingerprint of an initial model. Read once."""
        path = self.folder.initial(trial.distortion, trial.unsupervised, member, trial.select)
        if path not in self._initial_models:
            with distributed.single_process():  # the processes need not come here together
                state, found = self._load_initial(trial, member)
            self._initial_models[path] = found.get("settings", {}), fingerprint(state)
        return self._initial_models[path]

    def validation_indices(self) -> Tensor:
        """(V,) positions of the validation images in the training set: drawn once, then read from a file."""
        return self._draw_once("validation", self._draw_validation)

    def validation(self, size: int | None = None) -> Split:
        """The validation set, or a part of `size` images with the same shares of classes. Raises UserError.

        A smaller part is contained in a larger one.
        """
        whole = self.separate_validation
        if whole is None:
            whole = self.train.subset(self.validation_indices())
        if size is None:
            return whole
        check_validation_size(size, len(whole))
        labels = whole.labels.cpu()
        counts = bias.proportional_counts(torch.bincount(labels), size)

        def draw() -> Tensor:
            return bias.split_validation(labels, counts, self.generator("validation size"))[0]

        return whole.subset(self._draw_once(f"validation_{size}", draw))

    def hold_out(self, share: float) -> None:
        """Divide images that are both validation and test images: a random `share` of each class is for test."""
        images, rows = self.separate_validation, self._held_out(share)
        rest = torch.ones(len(images), dtype=torch.bool)
        rest[rows] = False
        self.test, self.separate_validation = images.subset(rows), images.subset(rest.nonzero().flatten())

    def _held_out(self, share: float) -> Tensor:
        """(N,) positions among the validation images of those for test. Raises UserError if a side would be empty."""
        images = self.separate_validation

        def draw() -> Tensor:
            labels, generator = images.labels.cpu(), self.generator("holdout")
            counts = [round(share * count) for count in torch.bincount(labels).tolist()]
            return bias.split_validation(labels, counts, generator)[0]

        rows = self._draw_once(f"test_{number_name(share)}", draw)
        if not 0 < len(rows) < len(images):
            raise UserError(f"of {len(images)} validation images --holdout-val {share:g} leaves none for one side")
        return rows

    def trained_on(self, trial: Trial) -> int | None:
        """The number of images that a baseline trains on; None for a trial with AL iterations."""
        if trial.method == BASELINE:
            return len(self.pool_indices(trial.ir, trial.distortion))
        return len(self.validation(trial.validation_size)) if trial.method == VALIDATION_ALONE else None

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
        """Raises UserError if a pool is too small for that many AL iterations, or the validation images to be divided.

        Nothing is written if the run's folder has not been created.
        """
        held_out = len(self._held_out(self.experiment.holdout)) if self.experiment.holdout else 0
        separate, name = self.separate_validation, self.experiment.name
        validation = len(self.validation_indices() if separate is None else separate) - held_out
        for trial in trials:
            check_validation_size(trial.validation_size or 0, validation)
            if trial.method == VALIDATION_ALONE and separate is self.test and not held_out:
                raise UserError(
                    f"{name}'s validation images are its test images: --baseline-validation would train on them"
                )
            if trial.adds_validation and separate is not None:
                raise UserError(
                    f"--add-validation is for validation images drawn from the training images; those of {name} are a "
                    "set of their own"
                )
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
        """An index list in data/, drawn and written by the first process that needs it, read by all others.

        As long as the run's folder has not been created it is drawn in memory.
        """
        path = self.folder.data(name)
        about = {"kind": name, **self.identity(), "made_with": digest_of(self.settings("data"))}
        if not distributed.broadcast_from_main(path.parent.is_dir):
            return draw()

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
            UserError: the initial model has not been made, is damaged, foreign or of other settings.
        """
        state, _ = self._load_initial(trial, member)
        return state | self._new_layers(trial.init, member) if trial.unsupervised else state

    def _new_layers(self, init: str, member: int) -> dict[str, Tensor]:
        """The weights of the layers that replace those of a rotation model; drawn once, as all others are with them."""
        key = init, member
        if key not in self._drawn_layers:
            network = self.experiment.network(self.experiment.classes)
            new = linear_layers(network) if init == "rotation_conv" else [network.head]
            state = self.random_state(self.experiment.classes, "head", member)
            self._drawn_layers[key] = {name: value for name, value in state.items() if is_in_layers(name, new)}
        return self._drawn_layers[key]

    def rotation_state(self, trial: Trial) -> dict[str, Tensor]:
        """The weights of the rotation model on a trial's pool, whose last layer tells four rotations apart."""
        return self._load_initial(dataclasses.replace(trial, init="rotation"), 0)[0]

    def _load_initial(self, trial: Trial, member: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights and the description of an initial model's file."""
        path = self.folder.initial(trial.distortion, trial.unsupervised, member, trial.select)
        command = self.initial_command(trial)
        if not has_file(path):
            raise UserError(f"there is no initial model {path}: {command} makes it")
        kind = "rotation" if trial.unsupervised else "random"
        about = {"kind": "initial", "init": kind, "ir": trial.ir, "nr": trial.nr, **self.identity()}
        about |= {"select": trial.select} if trial.unsupervised else {}
        fix = f"delete it, then {command} makes it again"
        state, found = load_checkpoint(path, {**about, "member": member}, fix)
        settings = {k: v for k, v in self.settings("initial").items() if not k.startswith("pretraining.")}
        if not fits(state, self.experiment.network(4 if trial.unsupervised else self.experiment.classes)):
            raise UserError(f"{path} is of another network: {fix}")
        made_with = found.get("settings", {}) | found.get("behaviour", {})
        check_settings(path, made_with, settings, fix)  # the command that made it had flags of its own
        for key, value in self.pretrained_with.items():
            if made_with.get(key, value) != value:
                self.folder.check_is_known(key, value)
                raise UserError(f"{path} was made with {key} = {made_with[key]}, the run with {value}: {fix}")
        return state, found


def check_validation_size(size: int, count: int) -> None:
    """Raises UserError if there are fewer than `size` validation images."""
    if size > count:
        raise UserError(f"--validation-size {size} is more than the {count} validation images that there are")


def join_states(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The states of an ensemble's members as one, names prefixed by the member's number as in an nn.ModuleList."""
    return {f"{e}.{name}": value for e, state in enumerate(states) for name, value in state.items()}
