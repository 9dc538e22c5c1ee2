"""One AL iteration of a trial in a run: its sizes, paths, identity and random draws."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.bias import minority_of
from alfk.data.split import Split
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder, check_settings
from alfk.experiment.records import BASELINE, VALIDATION_ALONE, Record, check_record
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace, join_states
from alfk.method.acquisition import get_method
from alfk.method.registry import DATABASES, Method
from alfk.networks.weights import fingerprint, fits
from alfk.support import distributed
from alfk.support.checkpoints import load_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import (
    FIX,
    check,
    delete_array,
    delete_file,
    has_array,
    has_file,
    is_array,
    open_array,
    pack_files,
    restore_array,
)

TEMPORARY = tuple(dict.fromkeys(name for names in DATABASES.values() for name in names))


@dataclasses.dataclass(frozen=True)
class Round:
    """AL iteration b of `trial`, the argument of every stage.

    Attributes:
        work: the run.
        b: from 0.
    """

    work: Workspace
    trial: Trial
    b: int

    @property
    def experiment(self) -> Experiment:
        return self.work.experiment

    @property
    def folder(self) -> RunFolder:
        return self.work.folder

    @property
    def method(self) -> Method:
        return get_method(self.trial.method)

    @cached_property
    def pool(self) -> Split:
        """The distorted pool."""
        return self.work.pool(self.trial.ir, self.trial.nr, self.trial.distortion)

    @cached_property
    def validation(self) -> Split:
        return self.work.validation(self.trial.validation_size)

    @cached_property
    def minority(self) -> list[int] | None:
        """The minority classes: the data set's, else those with few images in the pool; None for unknown labels."""
        if self.experiment.minority is not None:
            return list(self.experiment.minority)
        if self.pool.labels is None:
            return None
        return minority_of(self.pool.labels.cpu(), self.experiment.classes)

    @property
    def size(self) -> int:
        """Images labelled after this iteration; without iterations, those trained on."""
        whole = {BASELINE: lambda: len(self.pool), VALIDATION_ALONE: lambda: len(self.validation)}
        if self.trial.method in whole:
            return whole[self.trial.method]()
        return self.experiment.query_size * (self.b + 1)

    @property
    def size_before(self) -> int:
        """Images labelled before this iteration."""
        return self.experiment.query_size * self.b

    @property
    def previous(self) -> "Round":
        return dataclasses.replace(self, b=self.b - 1)

    @property
    def checkpoint(self) -> Path:
        """The trained model; its presence marks the iteration finished."""
        return self.folder.checkpoint(self.trial, self.b, self.size)

    @property
    def partial_checkpoint(self) -> Path:
        """The state of an interrupted training."""
        return self.checkpoint.with_name(f"part_{self.checkpoint.name.removeprefix('best_')}")

    @property
    def index_list(self) -> Path:
        return self.folder.index_list(self.trial, self.b, self.size)

    @property
    def query(self) -> Path:
        """The chosen images with why each was chosen, beside the index list."""
        return self.folder.query(self.trial, self.b, self.size)

    @property
    def labels(self) -> Path:
        """The labels that this iteration was trained on, where people enter them."""
        return self.folder.labels(self.trial, self.b, self.size)

    @property
    def scores(self) -> Path:
        """VAAL's scores of the pool images after this iteration, from which the next one chooses."""
        return self.folder.descriptors("scores", self.trial, self.b, self.size)

    def database(self, name: str) -> Path:
        """A database that this iteration's acquisition reads, e.g. "pool"."""
        return self.folder.descriptors(name, self.trial, self.b, self.size_before)

    def identity(self) -> dict[str, Any]:
        """The entries of headers and checkpoints that identify this iteration."""
        made_with = self.work.made_with(self.trial)
        return {**self.work.identity(), **self.trial.facts(), "b": self.b, "made_with": made_with}

    def generator(self, purpose: str, *details: object, member: int = 0) -> torch.Generator:
        """The source of this iteration's random draws for one purpose, the same for all methods of a run."""
        return self.work.generator(purpose, self.b, *details, member=member)

    def report(self, event: str, **information: Any) -> None:
        self.work.report(event, run=self.folder.number, **information)

    def is_labelled(self) -> bool:
        """Whether the iteration's images have been chosen and are known, with the reasons."""
        return has_array(self.index_list) and has_array(self.query)

    def arrays(self) -> dict[str, Any]:
        """The arrays that the iteration leaves, by file name, as values for its checkpoint."""
        return {path.name: pack_files(path) for path in self._arrays() if has_array(path)}

    def _arrays(self) -> tuple[Path, ...]:
        return self.query, self.index_list, self.labels, self.scores

    def labelled(self) -> tuple[Tensor, dict[str, Any]]:
        """(n (b+1),) int64 positions in the pool in the order they were labelled, and the index list's header.

        Raises:
            UserError: the list is missing or damaged.
        """
        if not has_array(self.index_list) and self.finished() is None:
            raise UserError(f"there is no labelled set {self.index_list}: AL iteration b={self.b} has to be run first")
        array, header = open_array(self.index_list, {"kind": "labelled set", **self.identity()})
        return torch.from_numpy(np.array(array)), header

    def labelled_before(self) -> Tensor:
        """(n b,) positions labelled before this iteration. Raises UserError if the previous one was not run."""
        return self.previous.labelled()[0] if self.b else torch.empty(0, dtype=torch.int64)

    def starting_models(self) -> tuple[list[nn.Module], str]:
        """The models that this iteration starts from, one per member of the ensemble, and a hash of their weights.

        Iteration 0 starts from the initial models; a rotation model's last linear layer is replaced by a new one.
        """
        models = [self.work.network(self.experiment.classes) for _ in range(self.trial.ensemble)]
        if self.b > 0:
            path = self.previous.checkpoint
            if not has_file(path):
                raise UserError(f"there is no checkpoint {path}: AL iteration b={self.b - 1} has to be run first")
            state, _ = self.previous._load()
            if not fits(state, nn.ModuleList(models)):
                raise UserError(f"{path} is of another network: {FIX}")
        else:
            members = range(self.trial.ensemble)
            state = join_states([self.work.initial_state(self.trial, member) for member in members])
        nn.ModuleList(models).load_state_dict(state)
        return models, fingerprint(state)

    def described_models(self) -> tuple[list[nn.Module], str]:
        """The models that the method's inputs come from, and a hash of their weights."""
        if not self.method.of_rotation_model:
            return self.starting_models()
        state, model = self.work.rotation_state(self.trial), self.work.network(4)
        model.load_state_dict(state)
        return [model], fingerprint(state)

    def finished(self) -> Record | None:
        """The record of a finished iteration, None if there is no checkpoint.

        The checkpoint decides: the results line and the arrays of the iteration are restored from it where they are
        missing or other ones.
        """
        return distributed.broadcast_from_main(self._finished)

    def _finished(self) -> Record | None:
        if not has_file(self.checkpoint):
            if self._line() is not None:
                text = f"the checkpoint of {self.trial.label()} b={self.b} is lost: the iteration is trained again"
                self.report("warning", text=text)
            return None
        about = self._about()
        self._check_start(about)
        record = check_record(about.get("record"), f"the record in {self.checkpoint}")
        arrays = about.get("arrays", {})
        for path in self._arrays():
            if path.name in arrays and not is_array(path, arrays[path.name]):
                restore_array(path, arrays[path.name])
                self.report("warning", text=f"{path} was damaged or lost: restored from the iteration's checkpoint")
        if self._line() is None:
            text = f"{self.folder.path} had no results line of {self.trial.label()} b={self.b}: restored"
            self.report("warning", text=f"{text} from the iteration's checkpoint")
        self.folder.add_result(record)
        return record

    def _line(self) -> Record | None:
        """The iteration's results line, if there is one."""
        lines = self.folder.results()
        return next((line for line in lines if self.trial.describes(line) and line["b"] == self.b), None)

    def _load(self, weights: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights and the description of the iteration's checkpoint. Raises UserError."""
        identity = self.identity()
        made_with = identity.pop("made_with")
        state, about = load_checkpoint(self.checkpoint, {"kind": "best", **identity}, weights=weights)
        check_settings(self.checkpoint, about.get("settings", {}), self.work.settings())  # names the one that differs
        check(self.checkpoint, about, {"made_with": made_with})
        return state, about

    def _about(self) -> dict[str, Any]:
        """The description of the iteration's checkpoint."""
        about = self._load(weights=False)[1]
        self.work.weights[self.checkpoint] = about.get("weights", "")
        return about

    def _check_start(self, about: dict[str, Any]) -> None:
        """Raises UserError if the iteration was not trained from the model of the previous one."""
        if not self.b or about.get("starts_from") is None or not has_file(self.previous.checkpoint):
            return
        before = self.previous
        if before.checkpoint not in self.work.weights:
            before._about()
        if self.work.weights[before.checkpoint] != about["starts_from"]:
            raise UserError(f"{self.checkpoint} was trained from another model than {before.checkpoint} is: {FIX}")

    def delete_temporary_files(self, keep_descriptors: bool = False) -> None:
        """Delete the files that a finished iteration does not need any longer, also those left by a crash."""
        for name in () if keep_descriptors else TEMPORARY:
            delete_array(self.database(name))
        delete_file(self.partial_checkpoint)
