"""Values of flags that are refused, each in one line, and devices."""

import argparse

import pytest
import torch

from alfk.cli.options import device_of
from tests.helpers import refused, refuses


def device(gpu=None, name=None):
    return device_of(argparse.Namespace(gpu=gpu, device=name))


def test_devices():
    assert device(name="cpu") == torch.device("cpu")
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for number in (97, 128, 256):  # the last two are -128 and 0 in the eight bits that torch has for them
        refuses(lambda: device(gpu=number), f"no cuda:{number}")  # noqa: B023


@pytest.mark.parametrize(
    "name",
    [
        *("toaster", "", "cuda:-1", "cuda:x", "cpu:-1", "cpu:7", "cpu:256", "meta"),
        *("mps", "xla", "hpu", "mtia", "vulkan", "lazy", "privateuseone", "opengl", "ideep"),  # not in this torch
    ],
)
def test_a_device_stores_a_value_and_returns_it(name):
    refuses(lambda: device(name=name), f"no device '{name}'")


HUGE = "1" + "0" * 300


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("mnist/run.py", ["--run-start", HUGE], "(301 characters) is above the limit of 2147483647"),
        ("mnist/run.py", ["--run-stop", "2147483648"], "2147483648 is above the limit of 2147483647"),
        ("mnist/run.py", ["--seed", HUGE], "above the limit"),
        ("mnist/run.py", ["--seed", f"-{HUGE}"], "below the limit"),
        ("mnist/run.py", ["--jobs", "1001"], "above the limit of 1000"),
        ("mnist/run.py", ["-e", "9" * 5000], "(5000 characters) is not a whole number"),
        ("mnist/run.py", ["-e", "1.5"], "1.5 is not a whole number"),
        ("mnist/run.py", ["-e", "0"], "0 is not a positive number"),
        ("mnist/unsup.py", ["-r", "-1"], "-1 is negative"),
        ("mnist/unsup.py", ["--gpu", "0", "--device", "cpu"], "not allowed with argument --gpu"),
        ("mnist/unsup.py", ["-ir", "0.5"], "at least 1, not 0.5"),
        ("mnist/unsup.py", ["-ir", "nan"], "at least 1, not nan"),
        ("mnist/unsup.py", ["-ir", "inf"], "at least 1, not inf"),
        ("mnist/unsup.py", ["-nr", "1"], "in [0, 1), not 1"),
        ("mnist/unsup.py", ["-nr", "nan"], "in [0, 1), not nan"),
        ("mnist/unsup.py", ["--lr", "nan"], "above 0, not nan"),
        ("mnist/unsup.py", ["--nonsense"], "unrecognized arguments"),
        ("run_plot.py", ["--at", "nan"], "from 0 to 100 percent, not nan"),
        ("run_plot.py", ["--dataset", "DIGITS", "--methods", "Rz", "Rz_"], "no method or series 'Rz_'"),
        ("vaal/main.py", ["--train-iterations", "1" + "0" * 15], "above the limit of 1000000"),
        ("vaal/main.py", ["--adversary-param", "nan"], "not nan"),
        ("imagenet/run.py", ["--image-size", "4097"], "above the limit of 4096"),
        ("imagenet/run.py", [".", "--holdout-val", "nan"], "under 1, not nan"),
    ],
)
def test_absurd_values_end_at_once_in_one_line(script, arguments, words):
    refused(script, *arguments, words=words)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("mnist/run.py", ["--dataset", "DIGITS", "--device", "cpu", "--save-folder", "x" * 300]),
        ("mnist/unsup.py", ["--device", "cpu", "--datadir", "x" * 300]),
        ("svhn/unsup.py", ["--device", "cpu", "--datadir", "x" * 300]),
        ("run_plot.py", ["--datadir", "x" * 300, "--out", "figures"]),
        ("run_plot.py", ["--dataset", "x" * 300, "--out", "figures"]),
        ("run_plot.py", ["--into", "x" * 300, "--out", "figures"]),
        ("imagenet/unsup.py", ["x" * 300, "--device", "cpu", "--datadir", "."]),
        ("mnist/visualize_tsne.py", ["--out", "x" * 300]),
    ],
)
def test_names_that_are_too_long_end_in_one_line(tmp_path, monkeypatch, script, arguments):
    monkeypatch.chdir(tmp_path)
    refused(script, *arguments, words="x" * 300)
