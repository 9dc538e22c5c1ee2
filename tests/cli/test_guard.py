"""How scripts end whatever goes wrong: one line and an exit status, in the process and in those of --jobs."""

import argparse
import errno
import io
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.cli import guard as guards
from alfk.cli.guard import NOT_READ, Output, OutputClosed, check_writable, guard, line_of
from alfk.cli.jobs import run_in_parallel, run_sequentially
from alfk.cli.opening import initial_command, other_files
from alfk.data.split import Dataset, Split
from alfk.experiment.records import line_of as line_of_record
from alfk.experiment.trial import Trial
from alfk.plotting import plots, results
from alfk.support.errors import UserError
from tests.helpers import ONE_THREAD, SMALL, call, command, made_up_record, refused

ERRORS = [errno.ENOSPC, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.EINVAL]


DRAW = ["run_plot.py", "--dataset", "DIGITS"]


def write_result(datadir: Path) -> None:
    """One results line of a run of DIGITS."""
    (datadir / "DIGITS" / "run0").mkdir(parents=True)
    (datadir / "DIGITS" / "run0" / "results.jsonl").write_text(line_of_record(made_up_record(ir=20)))


class Fails:
    """A RunTask that fails in every run; it can be sent to other processes."""

    def __init__(self, problem):
        self.problem = problem

    def __call__(self, number, report):
        raise self.problem


class Quiet:
    """A Progress that shows nothing."""

    def __call__(self, event, **info):
        pass

    def print_line(self, line):
        pass


# The line


@pytest.mark.parametrize("number", ERRORS)
def test_errors_of_the_system_name_the_file_and_the_reason(number):
    reason = os.strerror(number)
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
        assert line.startswith("the memory does not suffice ("), line
        assert "\n" not in line
        assert "enforce" not in line  # torch's place in its source


def test_bugs_have_no_line():
    for problem in (ValueError("x"), RuntimeError("x"), OSError("an image that is none"), AssertionError()):
        assert line_of(problem) is None


# The exit status


def guarded(body, capsys):
    status = guard("x.py", body)
    return status, capsys.readouterr().err


def fail(problem):
    raise problem


@pytest.mark.parametrize(
    ("problem", "status", "said"),
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
def test_how_a_script_ends(problem, status, said, capsys):
    assert guarded(lambda: fail(problem), capsys) == (status, said)


def test_a_bug_is_not_hidden(capsys):
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, capsys)


@pytest.mark.parametrize("jobs", [0, 2])
def test_errors_of_the_system_in_runs_are_the_users(jobs):
    problem = PermissionError(errno.EACCES, "Permission denied", "a/b")
    if jobs:
        failures = run_in_parallel([3, 4], Fails(problem), Quiet(), jobs)
    else:
        failures = run_sequentially([3, 4], Fails(problem), Quiet())
    found = {(failure.run, failure.user, failure.cause, failure.details) for failure in failures}
    assert found == {(run, True, "a/b: Permission denied", "") for run in ((3, 4) if jobs else (3,))}


def test_memory_that_does_not_suffice_in_a_run():
    (failure,) = run_sequentially([0], Fails(MemoryError()), Quiet())
    assert failure.user
    (failure,) = run_sequentially([0], Fails(KeyError("x")), Quiet())
    assert not failure.user
    assert "Traceback" in failure.details


@pytest.mark.parametrize("number", ERRORS)
def test_an_error_while_the_figures_are_drawn(number, tmp_path, monkeypatch):
    write_result(tmp_path)
    monkeypatch.setattr(plots, "plot_curves", lambda *_: fail(OSError(number, os.strerror(number), "x.png")))
    refused(*DRAW, "--datadir", tmp_path, "--out", tmp_path / "out", words=f"x.png: {os.strerror(number)}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", ["run_plot.py", "mnist/visualize_tsne.py", "mnist/run.py"])
def test_signals(script, number, tmp_path, monkeypatch):
    """All scripts end with the same line."""
    interrupt = lambda *_, **__: signal.raise_signal(number)  # noqa: E731
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    monkeypatch.setattr(results, "read_runs", interrupt)
    monkeypatch.setattr("alfk.cli.visualise._workspace", interrupt)
    monkeypatch.setattr("alfk.cli.scripts.data", interrupt)
    where = ["--datadir", tmp_path] if script == "mnist/run.py" else ["--out", tmp_path]
    done = call(
        script, "--dataset", "DIGITS", *where, *(["--initial"] if "run.py" in script else []), status=128 + number
    )
    assert done.stderr == f"{Path(script).name}: interrupted; the same command continues from here\n"


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
        full.flush()  # what is left goes nowhere
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


def test_no_output_at_all(capsys):
    """A shell's `>&-` closes it before the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert guard("x.py", lambda: print("x") or 0) == 0
    assert Output(None).isatty() is False


def test_figures_in_a_terminal_of_ascii(tmp_path):
    """As a process: PYTHONIOENCODING counts when the interpreter starts."""
    write_result(tmp_path / "Maße")
    line = command(*DRAW, "--datadir", tmp_path / "Maße", "--out", tmp_path / "out")
    found = subprocess.run(line, capture_output=True, env={**ONE_THREAD, "PYTHONIOENCODING": "ascii"}, timeout=120)
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"/Ma?e/DIGITS" in found.stdout
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".pdf", ".md", ".csv"}


# Folders


@pytest.mark.parametrize("script", ["run_plot.py", "mnist/visualize_tsne.py"])
@pytest.mark.parametrize("where", ["file", "file/below", "locked/below"])
def test_the_folder_of_figures_is_looked_at_first(tmp_path, script, where, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(Path, "mkdir", locked(Path.mkdir))  # root may write anywhere
    monkeypatch.setattr(results, "read_runs", lambda *_: fail(AssertionError("it began")))
    monkeypatch.setattr("alfk.cli.visualise._workspace", lambda *_: fail(AssertionError("it began")))
    out = tmp_path / where
    refused(script, "--dataset", "DIGITS", "--out", out, words=f"cannot write to {out}: ")


def locked(mkdir):
    """Path.mkdir as it is without permission to write into folders called locked."""

    def make(path, *arguments, **named):
        if path.parent.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return mkdir(path, *arguments, **named)

    return make


def test_a_folder_without_permission_to_write(tmp_path, monkeypatch):
    no = lambda **_: fail(PermissionError(errno.EACCES, "Permission denied", "x"))  # noqa: E731
    monkeypatch.setattr(guards.tempfile, "TemporaryFile", no)
    with pytest.raises(UserError, match="Permission denied; choose another --out"):
        check_writable(tmp_path, "--out")


def test_a_folder_that_can_be_written_is_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]


# What is said


def test_methods_that_are_none():
    refused("run_plot.py", "--dataset", "DIGITS", "--methods", "Rz", "Rz_", words="no method or series 'Rz_'")
    refused("run_plot.py", "--dataset", "DIGITS", "--methods", "Rz_", words="no method or series 'Rz_'")


@pytest.mark.parametrize(
    ("sizes", "words"), [((0, 0), []), ((1, 0), ["1 file that is no"]), ((9, 3), ["12 files that are no"])]
)
def test_files_that_are_no_images_are_counted(sizes, words):
    train, test = (Split(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), 0.5, 0.5) for _ in range(2))
    train.left_out, test.left_out = sizes
    said = other_files(Dataset(train, test, test))  # the same images are counted once
    assert [text.partition(" .jpeg")[0] for text in said] == words


def test_the_command_that_makes_initial_models(monkeypatch):
    """Of run.py it is the one that was given, whose flags the models depend on; else one with the flags that matter."""
    trial = Trial(20, "Rz", 20, select="val")
    learning, baseline = (argparse.Namespace(where_run_is=None, baseline=value) for value in (None, "pool"))
    assert initial_command(learning, trial) == "the same command with --initial"
    assert initial_command(baseline, trial) == "the same command with --initial in place of --baseline"
    where = {"dataset": "DIGITS", "save_folder": "x", "seed": 0, "folder": "photos"}
    monkeypatch.setattr(sys, "argv", ["gen_descr.py", "photos", "--dataset", "DIGITS", "--save-folder=x", "-b", "1"])
    told = "run.py photos --initial -ir 20 --select val --dataset DIGITS --save-folder x"
    assert initial_command(argparse.Namespace(where_run_is="", **where), trial) == told
    assert initial_command(argparse.Namespace(where_run_is=" elsewhere", **where), trial) == f"{told} elsewhere"


def test_a_run_that_diverges(tmp_path):
    few = [*SMALL, "--methods", "random", "--iterations", 1, "--run-stop", 1, "--save-folder", tmp_path]
    call("mnist/run.py", *few, "--initial")
    refused("mnist/run.py", *few, "--lr", 1000, words="the training diverged in epoch")
