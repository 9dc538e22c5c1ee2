"""The benchmarks run: small sizes, and no assertion on a time (their flags: bench/README.md)."""

from pathlib import Path

import pytest

from tests.helpers import call


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("bench_scale.py", "--pool 5000 --errors 500 -n 100"),
        ("bench_rivals.py", "--quick"),
        ("bench_rivals_other.py", "--quick"),
    ],
)
def test_benchmark(script: str, flags: str):
    assert call(f"bench/{script}", *flags.split()).stdout.count("\n") > 3


def test_benchmark_of_an_iteration(mnist_raw: Path):
    """The models before the timed iteration are its own settings' (headers record them)."""
    flags = ("--epochs", 1, "--images", 500, "--without", "plain", "--datadir", mnist_raw.parent.parent)
    lines = call("bench/bench_iteration.py", *flags).stdout.splitlines()
    for part in ("descriptors", "matching", "SGD steps", "evaluation", "total"):
        assert any(line.startswith(part) for line in lines)
