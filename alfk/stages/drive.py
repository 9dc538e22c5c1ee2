"""The driver: all AL iterations of all trials of a run, and several runs side by side."""

import dataclasses
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from alfk import ranks
from alfk.data import Split
from alfk.errors import UserError
from alfk.runs import Record, Trial, has_array
from alfk.stages.describe import delete_databases, write_databases
from alfk.stages.memory import reset_peak
from alfk.stages.pretrain import initial_models
from alfk.stages.report import Progress
from alfk.stages.retrain import all_train, retrain
from alfk.stages.workspace import Report, Workspace

Work = Callable[[int, Report], None]  # all of one run's work: (run, report)
Advance = Callable[[Trial, int, Split, Split], Record]  # one AL iteration: (trial, b, pool, validation) -> its record


def active_learning(work: Workspace, trials: Sequence[Trial], keep_descriptors: bool = False) -> None:
    """Every AL iteration of every trial, skipping what is complete. The loop of the paper's Algorithm 1."""

    def advance(trial: Trial, b: int, pool: Split, validation: Split) -> Record:
        if not ranks.agreed(lambda: has_array(work.folder.index_list(trial, b, work.size(b)))):
            write_databases(work, trial, b, pool, validation)
        return retrain(work, trial, b, pool, validation)

    def tidy(trial: Trial, b: int) -> None:
        if not keep_descriptors:
            delete_databases(work, trial, b)

    for trial in trials:
        every_iteration(work, trial, advance, tidy)


def every_iteration(work: Workspace, trial: Trial, advance: Advance, tidy: Callable[[Trial, int], None]) -> None:
    """The AL iterations of one trial in turn, skipping what is complete.

    Args:
        advance: does iteration b of the trial, given pool and validation set, and returns its record.
        tidy: removes what a complete iteration needs no more; also called for those that are skipped, since a crash
            may have come before it.
    """
    with work.folder.exclusively(trial.name):
        done = ranks.agreed(lambda: _done(work, trial))
        pool = validation = None
        for b in range(work.experiment.iterations):
            if b in done:
                tidy(trial, b)
                work.report("iteration", record=done[b], skipped=True)
                continue
            if pool is None:
                pool, validation = work.pool(trial.ir, trial.nr, trial.distortion), work.validation()
            reset_peak(work.device)
            record = advance(trial, b, pool, validation)
            tidy(trial, b)
            work.report("iteration", record=record)


def _done(work: Workspace, trial: Trial) -> dict[int, Record]:
    """The records of the trial's complete iterations, by iteration."""
    records = {r["b"]: r for r in work.folder.results() if trial.describes(r)}
    return {b: r for b, r in records.items() if work.folder.checkpoint(trial, b, work.size(b)).exists()}


def baselines(work: Workspace, trials: Sequence[Trial]) -> None:
    """The line "all train" of every distortion that the trials name."""
    for trial in trials:
        with work.folder.exclusively(trial.name):
            pool, validation = work.pool(trial.ir, trial.nr, trial.distortion), work.validation()
            done = ranks.agreed(work.folder.checkpoint(trial, 0, len(pool)).exists)
            reset_peak(work.device)
            work.report("iteration", record=all_train(work, trial, pool, validation), skipped=done)


def make_initial_models(work: Workspace, trials: Sequence[Trial]) -> None:
    """The random and the rotation models of every distortion and ensemble that the trials need."""
    for (ir, nr), members in distortions(trials).items():
        initial_models(work, ir, nr, members, trials[0].select)


def distortions(trials: Sequence[Trial]) -> dict[tuple[float, float], int]:
    """(ir, nr) of the trials, and the size of the largest ensemble of each."""
    sizes: dict[tuple[float, float], int] = {}
    for trial in trials:
        sizes[trial.ir, trial.nr] = max(trial.ensemble, sizes.get((trial.ir, trial.nr), 1))
    return sizes


@dataclasses.dataclass(frozen=True)
class Failure:
    """How one run ended early."""

    run: int
    cause: str  # one line
    user: bool  # whether the user can mend it
    details: str = ""  # a traceback


def run_in_turn(runs: Sequence[int], work: Work, progress: Progress) -> list[Failure]:
    """One run after the other in this process, up to the first failure."""
    for run in runs:
        failure = _attempt(run, work, progress)
        if failure:
            return [failure]
    return []


def run_side_by_side(runs: Sequence[int], work: Work, progress: Progress, jobs: int) -> list[Failure]:
    """Up to `jobs` runs at a time, each in a process of its own; when one fails the others go on.

    Args:
        work: must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    waiting, living, failures = list(runs), {}, []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or living:
            while waiting and len(living) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                run = waiting.pop(0)
                process = context.Process(target=_in_child, args=(run, work, sender, threads), daemon=True)
                process.start()
                sender.close()
                living[receiver] = (run, process)
            for receiver in wait(list(living)):
                run, process = living[receiver]
                try:
                    event, info = receiver.recv()
                except EOFError:
                    process.join()
                    failures.append(Failure(run, f"its process died (exit status {process.exitcode})", user=False))
                    del living[receiver]
                    continue
                if event != "end":
                    progress(event, **info)
                    continue
                process.join()
                del living[receiver]
                if info["failure"]:
                    failures.append(info["failure"])
                    progress.say(f"run {run} failed: {info['failure'].cause}")
    finally:
        for _, process in living.values():
            process.terminate()
    return failures


def _in_child(run: int, work: Work, sender: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(event: str, **info: Any) -> None:
        sender.send((event, info))

    try:
        sender.send(("end", {"failure": _attempt(run, work, report)}))
    except KeyboardInterrupt:
        os._exit(130)  # the parent says it


def _end_with_parent() -> None:
    """A killed parent must not leave work going on: the same command could not be started again beside it."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _attempt(run: int, work: Work, report: Report) -> Failure | None:
    try:
        work(run, report)
    except UserError as problem:
        return Failure(run, str(problem), user=True)
    except Exception as problem:
        cause = f"{type(problem).__name__}: {problem}".splitlines()[0]
        return Failure(run, cause, user=False, details=traceback.format_exc())
    return None
