"""Several runs, one after the other or in parallel processes."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from alfk.cli.guard import OutputClosed, line_of
from alfk.cli.progress import Progress
from alfk.experiment.workspace import Report

RunTask = Callable[[int, Report], None]  # computes the run of that number and reports on it

END = "end"  # the last event that a process reports, with the run's failure or None


@dataclasses.dataclass(frozen=True)
class Failure:
    """The error that ended a run."""

    run: int
    cause: str  # one line
    user: bool  # whether the user can fix it
    details: str = ""  # the traceback, if the user cannot


def run_sequentially(runs: Sequence[int], task: RunTask, progress: Progress) -> list[Failure]:
    """One run after the other in this process, up to the first failure."""
    for run in runs:
        failure = _attempt(run, task, progress)
        if failure:
            return [failure]
    return []


def run_in_parallel(runs: Sequence[int], task: RunTask, progress: Progress, jobs: int) -> list[Failure]:
    """Up to `jobs` runs at a time, each in a separate process; if one fails, the others continue.

    Args:
        task: must be picklable.
    """
    waiting, running, failures = list(runs), {}, []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                receiver, process = _start(run, task, threads)
                running[receiver] = run, process
            for receiver in wait(list(running)):
                run, process = running[receiver]
                try:
                    event, info = receiver.recv()
                except EOFError:
                    event, info = END, {"failure": _death(run, process)}
                if event != END:
                    progress(event, **info)
                    continue
                process.join()
                del running[receiver]
                if info["failure"]:
                    failures.append(info["failure"])
                    progress.print_line(f"run {run} failed: {info['failure'].cause}")
    finally:
        for _, process in running.values():
            process.terminate()
    return failures


def _start(run: int, task: RunTask, threads: int) -> tuple[Connection, SpawnProcess]:
    """Start a process for a run; returns the connection on which its events arrive, and the process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(run, task, sender, threads), daemon=True)
    process.start()
    sender.close()  # only the child's copy is open now, so that the receiver notices when the child has ended
    return receiver, process


def _death(run: int, process: SpawnProcess) -> Failure:
    """The failure of a run whose process ended without reporting one."""
    process.join()
    killed = "; if memory ran out, use fewer --jobs" if process.exitcode == -signal.SIGKILL else ""
    return Failure(run, f"its process died (exit status {process.exitcode}){killed}", user=False)


def _child_main(run: int, task: RunTask, sender: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def report(event: str, **info: Any) -> None:
        sender.send((event, info))

    try:
        report(END, failure=_attempt(run, task, report))
    except (KeyboardInterrupt, BrokenPipeError):  # the parent prints the message, or has died
        os._exit(130)


def _exit_with_parent() -> None:
    """Exit when the parent is killed, so that the same command can be started again."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _attempt(run: int, task: RunTask, report: Report) -> Failure | None:
    """Compute a run; returns its failure, if there is one. Raises OutputClosed."""
    try:
        task(run, report)
    except OutputClosed:
        raise
    except Exception as problem:
        line = line_of(problem)
        if line is not None:
            return Failure(run, line, user=True)
        cause = f"{type(problem).__name__}: {problem}".splitlines()[0]
        return Failure(run, cause, user=False, details=traceback.format_exc())
    return None
