"""One AL iteration of a trial in a run, the argument of the loop's stages: its images, models and random draws."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alfk.data.bias import minority_of
from alfk.data.split import Split
from alfk.experiment.config import Experiment
from alfk.experiment.journal import Acquired, Journal, Outcome
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace, join_states
from alfk.method.acquisition import get_method
from alfk.method.registry import Method
from alfk.networks.weights import fingerprint, fits
from alfk.support.errors import UserError
from alfk.support.files import FIX


@dataclasses.dataclass(frozen=True)
class Round:
    """AL iteration b, from 0, of `trial` in the run `work`.

    Attributes:
        journal: knows what the trial has done, and records what this iteration does; a new one if not given.
        start: the weights that the iteration starts from, of all members of the ensemble, and their hash; see `begin`.
    """

    work: Workspace
    trial: Trial
    b: int
    journal: Journal = None
    start: tuple[Mapping[str, Tensor], str] | None = None

    def __post_init__(self) -> None:
        if self.journal is None:
            object.__setattr__(self, "journal", Journal(self.work, self.trial))

    @property
    def experiment(self) -> Experiment:
        return self.work.experiment

    @property
    def method(self) -> Method:
        return get_method(self.trial.method)

    # Images

    @cached_property
    def pool(self) -> Split:
        """The distorted pool."""
        return self.work.pool(self.trial.ir, self.trial.nr, self.trial.distortion)

    @cached_property
    def validation(self) -> Split:
        return self.work.validation(self.trial.validation_size)

    @cached_property
    def minority(self) -> list[int]:
        """The minority classes: the data set's, else those with few images in the pool."""
        if self.experiment.minority is not None:
            return list(self.experiment.minority)
        return minority_of(self.pool.labels.cpu(), self.experiment.classes)

    def queried_before(self) -> Tensor:
        """(n b,) int64 positions in the pool queried before. Raises UserError if the previous iteration was not run."""
        return self.journal.queried_before(self.b)

    # Models

    def starting_models(self) -> tuple[list[nn.Module], str]:
        """The models that this iteration starts from, one per member of the ensemble, and a hash of their weights.

        Raises:
            UserError: the previous iteration's checkpoint is of another network.
        """
        models = nn.ModuleList(self.work.network(self.experiment.classes) for _ in range(self.trial.ensemble))
        state, found = self.start
        if not fits(state, models):
            raise UserError(f"{self.journal.checkpoint(self.b - 1)} is of another network: {FIX}")
        models.load_state_dict(state)
        return list(models), found

    def described_models(self) -> tuple[list[nn.Module], str]:
        """The models that the method's inputs come from, and a hash of their weights."""
        if not self.method.of_rotation_model:
            return self.starting_models()
        state, model = self.work.rotation_state(self.trial), self.work.network(4)
        model.load_state_dict(state)
        return [model], fingerprint(state)

    # Random draws, files, messages

    def generator(self, purpose: str, *details: object, member: int = 0) -> torch.Generator:
        """The source of this iteration's random draws for one purpose, the same for all methods of a run."""
        return self.work.generator(purpose, self.b, *details, member=member)

    def identity(self) -> dict[str, Any]:
        """The entries of files that identify this iteration."""
        return self.journal.identity(self.b)

    def database(self, name: str) -> Path:
        """A database that this iteration's acquisition reads, e.g. "pool"."""
        return self.work.folder.descriptors(name, self.trial, self.b, self.experiment.query_size * self.b)

    def report(self, event: str, **information: Any) -> None:
        self.work.report(event, run=self.work.folder.number, **information)

    # What is done, and what is recorded: see Journal

    def acquired(self) -> Acquired | None:
        return self.journal.acquired(self.b)

    def keep(self, acquired: Acquired) -> Acquired:
        self.journal.keep(self.b, acquired)
        return acquired

    def finish(self, outcome: Outcome) -> None:
        self.journal.finish(self.b, outcome)


def begin(journal: Journal, b: int) -> Round:
    """Iteration b with the weights that it starts from: those of the previous iteration, or the initial models, of
    which a rotation model gets a new last linear layer.

    Raises:
        UserError: the previous iteration was not run, or an initial model was not made.
    """
    work, trial = journal.work, journal.trial
    if b:
        start = journal.weights(b - 1)
    else:
        state = join_states([work.initial_state(trial, member) for member in range(trial.ensemble)])
        start = state, fingerprint(state)
    return Round(work, trial, b, journal, start)
