"""Several runs, one after the other or side by side in processes of their own."""

import dataclasses
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from alfk.cli.progress import Progress
from alfk.errors import UserError
from alfk.stages.workspace import Report

RunTask = Callable[[int, Report], None]  # all of one run's work: (run, report)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a run ended early."""

    run: int
    cause: str  # one line
    user: bool  # whether the user can mend it
    details: str = ""  # a traceback


def run_sequentially(runs: Sequence[int], task: RunTask, progress: Progress) -> list[Failure]:
    """One run after the other in this process, up to the first failure."""
    for run in runs:
        failure = _attempt(run, task, progress)
        if failure:
            return [failure]
    return []


def run_in_parallel(runs: Sequence[int], task: RunTask, progress: Progress, jobs: int) -> list[Failure]:
    """Up to `jobs` runs at a time, each in a process of its own; when one fails the others go on.

    Args:
        task: must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    waiting, living, failures = list(runs), {}, []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or living:
            while waiting and len(living) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                run = waiting.pop(0)
                process = context.Process(target=_child_main, args=(run, task, sender, threads), daemon=True)
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


def _child_main(run: int, task: RunTask, sender: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def report(event: str, **info: Any) -> None:
        sender.send((event, info))

    try:
        sender.send(("end", {"failure": _attempt(run, task, report)}))
    except KeyboardInterrupt:
        os._exit(130)  # the parent prints it


def _exit_with_parent() -> None:
    """Exit when the parent is killed; else the same command could not be started again beside this process."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _attempt(run: int, task: RunTask, report: Report) -> Failure | None:
    try:
        task(run, report)
    except UserError as problem:
        return Failure(run, str(problem), user=True)
    except Exception as problem:
        cause = f"{type(problem).__name__}: {problem}".splitlines()[0]
        return Failure(run, cause, user=False, details=traceback.format_exc())
    return None
