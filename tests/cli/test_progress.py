"""What a long run prints: a line for each iteration, and in a log after a minute of silence what is being done."""

import pytest

from alfk.cli import progress
from tests.helpers import made_up_record


@pytest.fixture
def clock(monkeypatch):
    """The seconds that progress sees, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_what_is_being_done_after_a_minute_of_silence(clock, capsys):
    with progress.Progress(total=2) as shown:
        shown("epoch", run=3, doing="rotation", epoch=1, of=8)
        assert capsys.readouterr().out == ""
        clock[0] += progress.SILENCE
        shown("epoch", run=3, doing="rotation", epoch=2, of=8)
        assert capsys.readouterr().out.endswith("  run 3  rotation epoch 2/8\n")
        shown("epoch", run=3, doing="rotation", epoch=3, of=8)
        assert capsys.readouterr().out == ""


def test_lines_say_which_epochs_were_kept():
    column = progress.COLUMNS.index("epoch") + len("epoch")
    line = progress.line(made_up_record(epochs=[0], seconds={"retrain": 1.0}, misclassified=12))
    assert line[:column].split()[-1] == "0"
    assert "3/0/12" in progress.line(made_up_record(epochs=[3, 0, 12], ensemble=3, seconds={"retrain": 1.0}))
