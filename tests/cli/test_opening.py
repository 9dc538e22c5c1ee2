"""What a command says before it begins: files that were left out, and the command that makes initial models."""

import argparse
import sys

import pytest
import torch

from alfk.cli.opening import initial_command, other_files
from alfk.data.split import Dataset, Split
from alfk.experiment.trial import Trial


@pytest.mark.parametrize(
    ("sizes", "words"), [((0, 0), []), ((1, 0), ["1 file that is no"]), ((9, 3), ["12 files that are no"])]
)
def test_files_that_are_no_images_are_counted(sizes, words):
    train, test = (Split(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), 0.5, 0.5) for _ in range(2))
    train.left_out, test.left_out = sizes
    lines = other_files(Dataset(train, test, test))  # the same images are counted once
    assert [text.partition(" .jpeg")[0] for text in lines] == words


def test_the_command_that_makes_initial_models(monkeypatch):
    """Of run.py it is the given one, on whose flags the models depend; else one with the flags that matter."""
    trial = Trial(20, "Rz", 20, select="val")
    learning, baseline = (argparse.Namespace(where_run_is=None, baseline=value) for value in (None, "pool"))
    assert initial_command(learning, trial) == "the same command with --initial"
    assert initial_command(baseline, trial) == "the same command with --initial in place of --baseline"
    where = {"dataset": "DIGITS", "save_folder": "x", "seed": 0, "images": "photos"}
    monkeypatch.setattr(sys, "argv", ["gen_descr.py", "photos", "--dataset", "DIGITS", "--save-folder=x", "-b", "1"])
    command = "run.py photos --initial -ir 20 --select val --dataset DIGITS --save-folder x"
    assert initial_command(argparse.Namespace(where_run_is="", **where), trial) == command
    assert initial_command(argparse.Namespace(where_run_is=" elsewhere", **where), trial) == f"{command} elsewhere"
