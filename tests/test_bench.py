"""The benchmarks run: small sizes, and no assertion on a time (their flags: bench/README.md)."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import common, gpu
from tests.helpers import ROOT, call, call_process


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


@pytest.mark.slow
def test_what_a_gpu_has_to_show(tmp_path: Path):
    """All points of bench/gpu.sh on the CPU: none fails, and the CPU agrees with itself."""
    table = call_process(
        ["bash", str(ROOT / "bench/gpu.sh"), "--device", "cpu", "--small", "--out", str(tmp_path / "gpu")]
    )
    points = json.loads((tmp_path / "gpu.json").read_text())["points"]
    assert (tmp_path / "gpu.md").read_text() in table.stdout
    assert {key: point["error"] for key, point in points.items()} == dict.fromkeys("abcdefg")
    for row in (row for point in points.values() for row in point["rows"]):
        assert row["value"] is not False, row
        if "equal" in row["what"]:
            assert row["value"] == 100, row
        if "difference" in row["what"]:
            assert row["value"] == 0, row
    assert sum(row["value"] is True for point in points.values() for row in point["rows"]) == 7


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os._exit(3), "died (exit status 3)"),
        (lambda: time.sleep(60), "ended at its limit"),
    ],
)
def test_a_point_that_fails_keeps_its_rows(end, words):
    def rows() -> Iterator[int]:
        yield 1
        end()

    row, failure = gpu.in_process(rows, limit=1)
    assert row == 1
    assert words in failure.error
