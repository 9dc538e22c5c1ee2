"""How scripts end whatever goes wrong: one line and an exit status, in the process and in those of --jobs."""

import errno
import io
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.cli import guard as guards
from alfk.cli.guard import NOT_READ, Output, OutputClosed, check_writable, guard, line_of
from alfk.cli.jobs import Failure, run_in_parallel, run_sequentially
from alfk.experiment.records import line_of as line_of_record
from alfk.plotting import plots, results
from alfk.support.errors import UserError
from tests.cli.tasks import DENIED, ends
from tests.helpers import call, made_up_record, refused, refuses


def fail(problem):
    raise problem


# The line


def test_errors_of_the_system_name_the_file_and_the_reason():
    number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
    assert line_of(OSError(number, reason, "a/b")) == f"a/b: {reason}"
    assert line_of(OSError(number, reason, b"a/b")) == f"a/b: {reason}"
    assert line_of(OSError(number, reason, "a", None, "b")) == f"a -> b: {reason}"
    assert line_of(OSError(number, reason)) == reason
    assert line_of(pickle.loads(pickle.dumps(OSError(number, reason, "a\nb")))) == f"a b: {reason}"


def test_errors_of_memory():
    with pytest.raises(MemoryError) as of_numpy:
        np.zeros(2**55)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50)
    for problem in (of_numpy.value, of_torch.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nMore")):
        line = line_of(problem)
        assert line.startswith("there is not enough memory ("), line
        assert "\n" not in line
        assert "enforce" not in line  # torch's place in its source


def test_bugs_have_no_line():
    for problem in (ValueError("x"), RuntimeError("x"), OSError("without a number"), AssertionError()):
        assert line_of(problem) is None


# The exit status


@pytest.mark.parametrize(
    ("problem", "status", "line"),
    [
        (UserError("so"), 2, "x.py: so\n"),
        (UserError("two\nlines"), 2, "x.py: two lines\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 2, "x.py: a: Is a directory\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "x.py: Broken pipe\n"),  # of another pipe than the output's
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
        (OutputClosed(errno.EPIPE, "Broken pipe"), NOT_READ, ""),
        (KeyboardInterrupt(), 130, "x.py: interrupted; the same command continues from here\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "x.py: interrupted; the same command continues from here\n"),
    ],
)
def test_how_a_script_ends(problem, status, line, capsys):
    assert guard("x.py", lambda: fail(problem)) == status
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guard("x.py", lambda: 1 // 0)


@pytest.mark.parametrize(
    ("script", "number"),
    [("run_plot.py", signal.SIGINT), ("mnist/visualize_tsne.py", signal.SIGTERM), ("mnist/run.py", signal.SIGTERM)],
)
def test_signals(script, number, tmp_path, monkeypatch):
    """All scripts end with the same line."""
    interrupt = lambda *_, **__: signal.raise_signal(number)  # noqa: E731
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    monkeypatch.setattr(results, "read_runs", interrupt)
    monkeypatch.setattr("alfk.cli.visualise._workspace", interrupt)
    monkeypatch.setattr("alfk.cli.scripts.data", interrupt)
    where = ["--datadir", tmp_path, "--initial"] if script == "mnist/run.py" else ["--out", tmp_path]
    done = call(script, "--dataset", "DIGITS", *where, status=128 + number)
    assert done.stderr == f"{Path(script).name}: interrupted; the same command continues from here\n"


# Runs


class Quiet:
    """A Progress that only remembers its lines."""

    def __init__(self):
        self.lines = []

    def __call__(self, event, **info):
        pass

    def print_line(self, line):
        self.lines.append(line)


def test_a_process_that_fails_or_dies_is_a_line_and_stops_no_other():
    quiet = Quiet()
    failures = run_in_parallel([0, 1], ends, quiet, 2)
    died = "its process died (exit status -9); if memory ran out, use fewer --jobs"
    expected = [Failure(0, died, user=False), Failure(1, "a/b: Permission denied", user=True)]
    assert sorted(failures, key=lambda failure: failure.run) == expected
    assert sorted(quiet.lines) == [f"run {failure.run} failed: {failure.cause}" for failure in expected]


@pytest.mark.parametrize(
    ("problem", "user", "cause"),
    [(DENIED, True, "a/b: Permission denied"), (MemoryError(), True, ""), (KeyError("x"), False, "KeyError: 'x'")],
)
def test_the_first_failure_ends_runs_one_after_the_other(problem, user, cause):
    (failure,) = run_sequentially([3, 4], lambda *_: fail(problem), Quiet())
    assert (failure.run, failure.user) == (3, user)
    assert cause in failure.cause
    assert ("Traceback" in failure.details) != user


def test_closed_output_is_not_the_failure_of_a_run():
    with pytest.raises(OutputClosed):
        run_sequentially([3, 4], lambda *_: fail(OutputClosed()), Quiet())


# Output


def test_a_full_disk_under_the_output_stops_nothing(capfd):
    done = []

    def body():
        for i in range(3000):
            print("a line that nobody will read")
            done.append(i)
        return 0

    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        status = guard("x.py", body)
        full.flush()  # the rest is discarded
    assert (status, len(done)) == (2, 3000)
    assert capfd.readouterr().err == "x.py: cannot write to the standard output: No space left on device\n"


def test_output_that_is_not_read_ends_it(capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        status = guard("x.py", lambda: print("x" * 100_000) or fail(AssertionError("went on")))
        short = guard("x.py", lambda: print("x") or 0)  # known only when the buffer is flushed
    assert (status, short) == (NOT_READ, 0)  # the second time nothing is left to fail
    assert capfd.readouterr().err == ""


def test_characters_that_the_terminal_does_not_have():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert guard("x.py", lambda: print("52 ± 3 \udcff") or 0) == 0
    assert raw.getvalue() == b"52 ? 3 ?\n"


def test_no_output_at_all():
    """A shell's `>&-` closes it before the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert guard("x.py", lambda: print("x") or 0) == 0
    assert Output(None).isatty() is False


# Folders of figures


@pytest.mark.parametrize("script", ["run_plot.py", "mnist/visualize_tsne.py"])
def test_the_folder_of_figures_is_checked_first(tmp_path, script, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(results, "read_runs", lambda *_: fail(AssertionError("it began")))
    monkeypatch.setattr("alfk.cli.visualise._workspace", lambda *_: fail(AssertionError("it began")))
    out = tmp_path / "file" / "below"
    refused(script, "--dataset", "DIGITS", "--out", out, words=f"cannot write to {out}: ")


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refuses(lambda: check_writable(tmp_path / "file", "--out"), "choose another --out")
    refuses(lambda: check_writable(tmp_path / "file" / "below", "--out"), "Not a directory; choose another --out")
    no = lambda **_: fail(PermissionError(errno.EACCES, "Permission denied", "x"))  # noqa: E731  # root may write anywhere
    monkeypatch.setattr(guards.tempfile, "TemporaryFile", no)
    refuses(lambda: check_writable(tmp_path, "--out"), "Permission denied; choose another --out")


def test_a_folder_that_can_be_written_is_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]


def test_an_error_while_the_figures_are_drawn(tmp_path, monkeypatch):
    (tmp_path / "DIGITS" / "run0").mkdir(parents=True)
    (tmp_path / "DIGITS" / "run0" / "results.jsonl").write_text(line_of_record(made_up_record(ir=20)))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.png")
    monkeypatch.setattr(plots, "plot_curves", lambda *_: fail(full))
    where = ["--datadir", tmp_path, "--out", tmp_path / "out"]
    refused("run_plot.py", "--dataset", "DIGITS", *where, words=f"x.png: {full.strerror}")
