"""The active-learning loop (paper, Algorithm 1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from alfk.experiment.choose import acquire
from alfk.experiment.describe import describe
from alfk.experiment.memory import reset_peak
from alfk.experiment.records import Record
from alfk.experiment.round import Round
from alfk.experiment.train import retrain, train_on_all
from alfk.experiment.training import at_chance
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace


class Stages(NamedTuple):
    """The three stages of an AL iteration. Each writes files, and does nothing if they exist."""

    describe: Callable[[Round], None]
    acquire: Callable[[Round], None]
    retrain: Callable[[Round], Record]


STAGES = Stages(describe, acquire, retrain)  # of all methods in the registry


def active_learning(
    work: Workspace, trials: Sequence[Trial], stages: Stages = STAGES, keep_descriptors: bool = False
) -> None:
    """Every AL iteration of every trial; finished ones are skipped."""
    for trial in trials:
        with work.folder.lock(trial.name):
            for b in range(work.experiment.iterations):
                current = Round(work, trial, b)
                record = current.finished()
                skipped = record is not None
                if not skipped:
                    reset_peak(work.device)
                    if not current.is_labelled():
                        stages.describe(current)
                        stages.acquire(current)
                    record = stages.retrain(current)
                current.delete_temporary_files(keep_descriptors)
                work.report("iteration", record=record, skipped=skipped)
            if not skipped:
                warn_at_chance(current, record)


def warn_at_chance(current: Round, record: Record) -> None:
    """Report a warning if the test accuracy of an iteration, the last one for now, is that of guessing."""
    work = current.work
    if at_chance(record["accuracy"], work.experiment.classes, len(work.test)):
        text = f"the test accuracy of {current.trial.short()} ended at chance, as far as {len(work.test)} test images "
        text += "can tell: more epochs (-e), another --lr, "
        work.report("warning", text=f"{text}a smaller --batch-size, or more labels (-as)")


def baselines(work: Workspace, trials: Sequence[Trial]) -> None:
    """Training on the whole distorted pool, the line "all train", or on the validation set alone, for every trial (of a
    method in records.BASELINES).
    """
    for trial in trials:
        with work.folder.lock(trial.name):
            current = Round(work, trial, 0)
            record = current.finished()
            skipped = record is not None
            if not skipped:
                reset_peak(work.device)
                record = train_on_all(current)
            work.report("iteration", record=record, skipped=skipped)
