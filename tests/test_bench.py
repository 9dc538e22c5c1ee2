"""The benchmarks run: small sizes, and no assertion on a time (their flags: bench/README.md)."""

from pathlib import Path

import pytest
import torch

from bench import common
from tests.helpers import call


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("bench_scale.py", "--pool 5000 --errors 500 -n 100"),
        ("bench_scale.py", "--pool 3000 --errors 400 -n 50 -L 200 --facility"),
        ("bench_rivals.py", "--quick"),
        ("bench_rivals_other.py", "--quick"),
    ],
)
def test_benchmark(script: str, flags: str):
    assert call(f"bench/{script}", *flags.split()).stdout.count("\n") > 3


def test_benchmark_of_an_iteration(mnist_raw: Path, monkeypatch: pytest.MonkeyPatch):
    """On a tenth of MNIST; the plain implementation chooses the same images."""
    load = common.mnist_on
    monkeypatch.setattr(
        common, "mnist_on", lambda options: [s.subset(torch.arange(0, len(s), 10)) for s in load(options)]
    )
    flags = ("--epochs", 1, "--images", 500, "--workers", 0, "--datadir", mnist_raw.parent.parent)
    lines = call("bench/bench_iteration.py", *flags).stdout.splitlines()
    for part in ("descriptors", "matching", "SGD steps", "evaluation", "total"):
        assert any(line.startswith(part) for line in lines)
    same = next(line for line in lines if "chosen images are the same" in line)
    assert int(same.split()[0]) >= 120, same
