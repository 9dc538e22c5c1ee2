"""The active-learning loop (paper, Algorithm 1)."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from alfk.experiment.choose import Labelled, choose, label
from alfk.experiment.describe import databases, describe
from alfk.experiment.journal import Acquired, Journal, Outcome, opened
from alfk.experiment.memory import reset_peak
from alfk.experiment.round import Round, begin
from alfk.experiment.train import everything, train
from alfk.experiment.training import at_chance
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Workspace
from alfk.method.registry import METHODS
from alfk.support.files import delete_array


class Stages(NamedTuple):
    """The stages in which methods may differ. The iteration itself keeps their results on disk (see `Journal`)."""

    describe: Callable[[Round], None]  # writes the databases that the method chooses from
    choose: Callable[[Round], Acquired]
    train: Callable[[Round, Labelled], Outcome]


STAGES = Stages(describe, choose, train)  # of all methods in the registry


def active_learning(
    work: Workspace, trials: Sequence[Trial], stages: Stages = STAGES, keep_descriptors: bool = False
) -> None:
    """Algorithm 1 for every trial, from its first iteration that is not finished."""
    for trial in trials:
        with opened(work, trial) as journal:
            for current in unfinished(journal, work.experiment.iterations, keep_descriptors):
                acquired = current.acquired()  # on disk if the training was interrupted
                if acquired is None:
                    stages.describe(current)
                    acquired = current.keep(stages.choose(current))
                current.finish(stages.train(current, label(current, acquired)))


def baselines(work: Workspace, trials: Sequence[Trial]) -> None:
    """Training on the whole distorted pool, the paper's line "all train", or on the validation set alone."""
    for trial in trials:
        with opened(work, trial) as journal:
            for current in unfinished(journal, 1):
                current.finish(train(current, everything(current)))


def unfinished(journal: Journal, iterations: int, keep_descriptors: bool = False) -> Iterator[Round]:
    """Yields the unfinished iterations; the caller finishes each before the next.

    Also writes the trial's exports again, reports every iteration, and deletes its temporary files.
    """
    work, trial, worked = journal.work, journal.trial, False
    journal.export()
    lines = [record["b"] for record in work.folder.results() if trial.describes(record)]
    for b in range(iterations):
        worked = journal.finished(b) is None
        if worked and b in lines:
            text = f"the checkpoint of {trial.label()} b={b} is lost: the iteration is trained again"
            work.report("warning", text=text)
        if worked:
            reset_peak(work.device)
            yield begin(journal, b)
        journal.delete_temporary(b)
        if trial.method in METHODS and not keep_descriptors:
            delete_databases(Round(work, trial, b, journal))
        work.report("iteration", record=journal.finished(b), skipped=not worked)
    if worked:
        warn_at_chance(journal, iterations - 1)


def delete_databases(current: Round) -> None:
    """Delete the databases that a finished iteration has chosen from."""
    for name in databases(current):
        delete_array(current.database(name))


def warn_at_chance(journal: Journal, b: int) -> None:
    """Report a warning if the test accuracy of a finished iteration is that of guessing."""
    work = journal.work
    if at_chance(journal.finished(b)["accuracy"], work.experiment.classes, len(work.test)):
        text = f"the test accuracy of {journal.trial.short()} ended at chance, given {len(work.test)} test images: "
        text += "try more epochs (-e), another --lr, "
        work.report("warning", text=f"{text}a smaller --batch-size, or more labels (-as)")
