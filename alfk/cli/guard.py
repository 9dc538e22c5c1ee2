"""How scripts end: an error that the user can fix takes one line and exit status 2, whatever raises it."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from alfk.support import distributed
from alfk.support.errors import Problems, UserError

NOT_READ = 128 + signal.SIGPIPE  # the exit status when nobody reads the output, as shells report it


class OutputClosed(BrokenPipeError):
    """The reader of standard output or error has closed it, as `| head` does."""


class Output:
    """Standard output or error that stops a computation only if its reader has closed it.

    Characters that the terminal does not have are replaced. After an error of the operating system, such as a full
    disk, all further output is dropped.

    Attributes:
        problem: that error; None if there was none.
    """

    def __init__(self, stream: TextIO | None):
        """Wraps a stream; None, as after a shell's `>&-`, discards everything."""
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.problem: OSError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, function: Callable[..., object], *arguments: object) -> None:
        """Raises OutputClosed."""
        if self.problem is not None:
            return
        try:
            function(*arguments)
        except OSError as problem:
            self.problem = problem
            self._drop()
            if isinstance(problem, BrokenPipeError):
                raise OutputClosed(*problem.args) from None

    def _drop(self) -> None:
        """Redirect what is buffered to /dev/null, else the interpreter reports the error again at its end."""
        with contextlib.suppress(OSError):  # a stream that is not a file
            number, nowhere = self.stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def guard(name: str, body: Callable[[], int]) -> int:
    """Call `body` and return the exit status, after one line on standard error if it failed.

    The status is that of `body`; 2 after an error that the user can fix, or if all was done but standard output could
    not be written; 128 plus its number after a signal; NOT_READ, without a line, if nobody reads the output.

    Args:
        name: the script's, for the line.
    """
    with contextlib.redirect_stdout(Output(sys.stdout)) as out, contextlib.redirect_stderr(Output(sys.stderr)):
        try:
            status = _status(name, body)
            out.flush()
            if isinstance(out.problem, BrokenPipeError):  # argparse ignores it while it prints --help
                return NOT_READ
            if out.problem is not None:
                distributed.print_error(f"{name}: cannot write to the standard output: {reason_of(out.problem)}")
                status = status or 2
            return status
        except OutputClosed:
            return NOT_READ


def _status(name: str, body: Callable[[], int]) -> int:
    try:
        return body()
    except SystemExit as end:  # of the parser
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        distributed.print_error(f"{name}: interrupted; the same command continues from here")
        return 128 + (stop.args or [signal.SIGINT])[0]
    except OutputClosed:
        raise
    except Exception as problem:
        line = line_of(problem)
        if line is None:
            raise
        distributed.print_error(f"{name}: {line}")
        return 2


def line_of(problem: BaseException) -> str | None:
    """A line about an error that the user can fix: a UserError, an error of the operating system (a full disk, missing
    permission, too many open files), or too little memory; several lines of `Problems`. None for all others, which are
    bugs.
    """
    if isinstance(problem, Problems):
        return str(problem)
    if isinstance(problem, UserError):
        text = str(problem)
    elif isinstance(problem, OSError) and problem.errno is not None:
        named = [os.fsdecode(f) for f in (problem.filename, problem.filename2) if isinstance(f, str | bytes | Path)]
        text = f"{' -> '.join(named)}: {reason_of(problem)}" if named else reason_of(problem)
    elif is_out_of_memory(problem):
        found = (str(problem).splitlines() or [type(problem).__name__])[0].rpartition("Allocator: ")[2]
        text = f"there is not enough memory ({found}): use smaller batches or fewer --jobs"
    else:
        return None
    return " ".join(text.splitlines())


def reason_of(problem: OSError) -> str:
    """The reason of an error of the operating system, without the file's name."""
    return problem.strerror or os.strerror(problem.errno or 0)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory was exhausted in Python, NumPy or torch, whose error has no type of its own on a CPU."""
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


def check_writable(folder: Path, flag: str) -> None:
    """Make the folder.

    Args:
        flag: the flag that names it.
    Raises:
        UserError: the folder cannot be made, or files cannot be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise UserError(f"cannot write to {folder}: {reason_of(problem)}; choose another {flag}") from None
