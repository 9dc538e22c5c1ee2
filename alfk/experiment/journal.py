"""What a trial has done, on disk: which AL iterations are finished, which query waits, and what the files are called.

One file of an AL iteration decides:

    checkpoint/best_<stem>.pt     a finished iteration: weights, results record, query, labelled set
    checkpoint/query_<stem>.pt    a query that waits for training

Everything else is an export for people and plots, and is never read here: index_list_<stem>.npy, query_<stem>.csv and
the lines of results.jsonl. `Journal.export` writes the exports again.
"""

import contextlib
import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alfk.experiment.folder import RunFolder, check_settings
from alfk.experiment.records import Record
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace
from alfk.method.selection import Selection
from alfk.networks.weights import fingerprint
from alfk.support import distributed
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import FIX, atomic, check, damaged, delete_file, has_file


@dataclasses.dataclass(frozen=True)
class Acquired:
    """What an AL iteration acquired: its query.

    Attributes:
        selection: the images that were chosen, and why.
        queried: (k,) int64, positions in the pool of the images of all queries so far, in the order they were chosen.
        facts: what the acquisition cost and how good its pseudo-labels were, for the results record.
    """

    selection: Selection
    queried: Tensor
    facts: Mapping[str, Any]

    def pack(self) -> dict[str, Any]:
        """The query as tensors and plain values, for a checkpoint."""
        own = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(self.selection).items()
        }
        return {**vars(self), "selection": own, "facts": dict(self.facts)}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> "Acquired":
        """The query in a checkpoint; those of earlier versions have further entries."""
        return cls(Selection(**packed["selection"]), packed["queried"], packed["facts"])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an AL iteration leaves.

    Attributes:
        record: its results record.
        weights: of all members of the ensemble, named as in an nn.ModuleList.
        acquired: None if the whole pool or validation set was trained on.
        starts_from: hash of the weights that the training started from; None if these do not matter.
        leaves: what the next iteration needs besides the weights.
    """

    record: Record
    weights: Mapping[str, Tensor]
    acquired: Acquired | None
    starts_from: str | None = None
    leaves: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Journal:
    """The finished iterations and the waiting query of one trial in one run.

    In a process group all processes call its methods together.
    """

    def __init__(self, work: Workspace, trial: Trial):
        self.work, self.trial = work, trial
        self._read: dict[Path, dict[str, Any]] = {}  # descriptions of checkpoints

    @property
    def folder(self) -> RunFolder:
        return self.work.folder

    # Identity

    def size(self, b: int) -> int:
        """Number of images queried in iterations 0 to b; for a baseline the number that it trains on."""
        return self.work.trained_on(self.trial) or self.work.experiment.query_size * (b + 1)

    def identity(self, b: int) -> dict[str, Any]:
        """The entries of every file's description that identify an iteration and the settings behind it."""
        made_with = self.work.made_with(self.trial)
        return {**self.work.identity(), **self.trial.facts(), "b": b, "made_with": made_with}

    def checkpoint(self, b: int) -> Path:
        """The file of a finished iteration; its presence marks the iteration finished."""
        return self.folder.checkpoint("best", self.trial, b, self.size(b))

    def waiting(self, b: int) -> Path:
        """The file of a query that was not trained on yet."""
        return self.folder.checkpoint("query", self.trial, b, self.size(b))

    def partial(self, b: int) -> Path:
        """The state of an interrupted training."""
        return self.folder.checkpoint("part", self.trial, b, self.size(b))

    # What is done

    def finished(self, b: int) -> Record | None:
        """The results record of a finished iteration, else None.

        Raises:
            UserError: its file is damaged, of other settings, or was not trained from the previous iteration's weights
                or, the first one, the initial models.
        """
        about = self._description(b)
        if about is None:
            return None
        if b == 0 and not self._is_based(about, b):
            raise UserError(f"{self.checkpoint(b)} was trained from other initial models than there are now: {FIX}")
        before = self._description(b - 1) if b else None
        if before and about["starts_from"] is not None and before["weights"] != about["starts_from"]:
            raise UserError(
                f"{self.checkpoint(b)} was trained from another model than {self.checkpoint(b - 1)} is: {FIX}"
            )
        return about["record"]

    def acquired(self, b: int) -> Acquired | None:
        """The query of an iteration that is finished or waits; None if there is none yet. Raises UserError."""
        about = self._description(b)
        if about is not None:
            return Acquired.unpack(about["acquired"]) if about["acquired"] else None
        if not has_file(self.waiting(b)):
            return None
        about = load_checkpoint(self.waiting(b), {"kind": "query", **self.identity(b)})[1]
        waiting, before = Acquired.unpack(about["acquired"]), self.queried_before(b)
        follows = torch.equal(waiting.queried[: len(before)], before)  # not if earlier images were chosen again
        return waiting if follows and self._is_based(about, b) else None

    def queried_before(self, b: int) -> Tensor:
        """(k,) int64 positions in the pool queried before iteration b. Raises UserError if the previous one is lost."""
        return self._previous(b)["acquired"]["queried"] if b else torch.empty(0, dtype=torch.int64)

    def left_before(self, b: int) -> dict[str, Any]:
        """What the iteration before b left for this one besides its weights (see `Outcome`). Raises UserError."""
        return self._previous(b)["leaves"]

    def weights(self, b: int) -> tuple[dict[str, Tensor], str]:
        """The weights that a finished iteration left, of all its members, and their fingerprint. Raises UserError."""
        self._previous(b + 1)
        state, about = self._load(b)
        if fingerprint(state) != about["weights"]:
            raise damaged(self.checkpoint(b), "its weights are not those that it states")
        return state, about["weights"]

    def _base(self, b: int) -> list[str]:
        """The fingerprints of the models that an iteration stands on: the initial ones or the previous iteration's."""
        return [self._previous(b)["weights"]] if b else self.work.initial_weights(self.trial)

    def _is_based(self, about: Mapping[str, Any], b: int) -> bool:
        """Whether a file stands on the models that there are; those of earlier versions do not say."""
        return "base" not in about or about["base"] == self._base(b)

    def _previous(self, b: int) -> dict[str, Any]:
        about = self._description(b - 1)
        if about is None:
            raise UserError(
                f"there is no checkpoint {self.checkpoint(b - 1)}: AL iteration b={b - 1} has to be run first"
            )
        return about

    def _description(self, b: int) -> dict[str, Any] | None:
        """The description of an iteration's checkpoint, None if there is none. Read once."""
        path = self.checkpoint(b)
        if path not in self._read:
            if not has_file(path):
                return None
            self._read[path] = distributed.broadcast_from_main(lambda: self._load(b, weights=False)[1])
        return self._read[path]

    def _load(self, b: int, weights: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path, identity = self.checkpoint(b), self.identity(b)
        made_with = identity.pop("made_with")
        with distributed.single_process():
            state, about = load_checkpoint(path, {"kind": "iteration", **identity}, weights=weights)
        check_settings(path, about.get("settings", {}), self.work.settings(), FIX)  # names it
        check(path, about, {"made_with": made_with})
        return state, about

    # What is recorded

    def keep(self, b: int, acquired: Acquired) -> None:
        """Write a query that is going to be trained on."""
        about = {"kind": "query", **self.identity(b), "base": self._base(b), "acquired": acquired.pack()}
        save_checkpoint(self.waiting(b), {}, about)
        self._export_query(b, acquired)

    def finish(self, b: int, outcome: Outcome) -> None:
        """Write the checkpoint, which marks the iteration finished, and its results line."""
        about = {
            "kind": "iteration",
            **self.identity(b),
            "settings": self.work.initial_settings(self.trial) | self.work.settings(),
            "behaviour": self.work.behaviour(),
            "base": self._base(b),
            "starts_from": outcome.starts_from,
            "weights": fingerprint(outcome.weights),
            "record": outcome.record,
            "acquired": outcome.acquired and outcome.acquired.pack(),
            "leaves": dict(outcome.leaves),
        }
        save_checkpoint(self.checkpoint(b), outcome.weights, about)
        self._read[self.checkpoint(b)] = about
        if outcome.acquired:
            self._export_query(b, outcome.acquired)
        self.folder.add_results([outcome.record])

    def delete_temporary(self, b: int) -> None:
        """Delete the files that a finished iteration does not need any longer, also those left by a crash."""
        delete_file(self.waiting(b))
        delete_file(self.partial(b))

    # Exports

    def export(self) -> None:
        """Write the exports of all finished iterations again."""
        records = []
        for b in range(self.work.experiment.iterations):
            about = self._description(b)
            if about is not None:
                records.append(about["record"])
                if about["acquired"]:
                    self._export_query(b, Acquired.unpack(about["acquired"]))
        if records:
            self.folder.add_results(records)

    @distributed.main_process_only
    def _export_query(self, b: int, acquired: Acquired) -> None:
        size, folder = self.size(b), self.folder
        with atomic(folder.export("index_list", self.trial, b, size, ".npy")) as file:
            np.save(file, acquired.queried.numpy())
        columns = {"index": acquired.selection.indices, **acquired.selection.reasons}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        with atomic(folder.export("query", self.trial, b, size, ".csv")) as file:
            file.write(text.getvalue().encode())


@contextlib.contextmanager
def opened(work: Workspace, trial: Trial) -> Iterator[Journal]:
    """The journal of a trial, locked inside the block.

    Raises:
        UserError: another process works on the trial.
    """
    with work.lock(trial.name):
        yield Journal(work, trial)
