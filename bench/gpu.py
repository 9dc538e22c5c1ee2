"""What a GPU has to show, in at most 8 minutes: correct results, seconds, memory.

    bash bench/gpu.sh                          # all points, on the GPU
    bash bench/gpu.sh --points c e             # some of them (bench/gpu_points.py)
    bash bench/gpu.sh --device cpu --small     # small sizes: a quick check of this script

Each point runs in a process of its own with a time limit. One that fails is recorded with its error, keeps the rows
that it had, and does not stop the others. MNIST is read from --datadir, never downloaded; where it or --photos is
missing, scikit-learn's digits and made-up photos take its place, as the table then says. Writes --out with the suffixes
.json and .md.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tabulate import tabulate

from alfk.cli.options import Parser, device_of
from alfk.data.image_files import has_dali
from alfk.support.errors import UserError, one_line
from bench import gpu_points
from bench.common import guarded, machine
from bench.gpu_points import Row, Setting

START = 30  # seconds, limit of the first look at the device
FORK = multiprocessing.get_context("fork")  # starts at once; this process itself never touches the GPU


@dataclasses.dataclass(frozen=True)
class Point:
    """A part of the table: what it shows, its rows one by one, and its limit in seconds."""

    title: str
    rows: Callable[[Setting], Iterator[Row]]
    limit: int


POINTS = {  # with START, and some seconds for imports, the limits add up to 8 minutes
    "a": Point("active learning, Rzg_pz L80", gpu_points.active_learning, 135),
    "b": Point("descriptors", gpu_points.descriptors, 30),
    "c": Point("choosing at SVHN's size", gpu_points.choosing, 60),
    "d": Point("ResNet-18 on photos", gpu_points.photos, 115),
    "e": Point("killed and resumed, with deterministic algorithms", gpu_points.resuming, 50),
    "f": Point("torchrun with one process", gpu_points.one_process, 40),
    "g": Point("query with model and pool on different devices", gpu_points.devices, 15),
}


def main() -> int:
    options = parse()
    found = in_process(describe_machine, options, limit=START)
    if isinstance(found[-1], Failure):
        raise UserError(found[-1].error)
    device, line = found
    print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = all_points(options, torch.device(device), line, Path(folder))
    print("\n" + markdown(report))
    return int(any(point["error"] for point in report["points"].values()))


def all_points(options: argparse.Namespace, device: torch.device, line: str, folder: Path) -> dict[str, Any]:
    """The report of the points, which is written after each of them."""
    report = {"small": options.small, "machine": line, "points": {}}
    for key in options.points:
        point, start = POINTS[key], time.monotonic()
        places = options.datadir.absolute(), options.photos.absolute(), folder
        setting = Setting(device, options.small, *places, ends=start + point.limit)
        found = in_process(rows_of, point, setting, limit=point.limit)
        error = found.pop().error if found and isinstance(found[-1], Failure) else None
        seconds = round(time.monotonic() - start, 1)
        rows = [dataclasses.asdict(row) for row in found]
        report["points"][key] = {"title": point.title, "seconds": seconds, "error": error, "rows": rows}
        print(f"({key}) {point.title}: {len(rows)} rows in {seconds} s" + (f"; {error}" if error else ""), flush=True)
        write(options.out, report)
    return report


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--points", nargs="+", default=list(POINTS), choices=POINTS, metavar="P", help="points, a to g (all)")
    add("--small", action="store_true", help="small sizes")
    add("--datadir", type=Path, default=ROOT / "local_data", help="folder with MNIST/raw (local_data)")
    text = "folder with train/<class>/*.JPEG (<datadir>/ILSVRC2012_pytorch)"
    add("--photos", type=Path, metavar="DIR", help=text)
    add("--out", type=Path, help="the results' files without suffix (local_data/gpu)")
    add("--gpu", type=int, metavar="N", help="CUDA device N")
    add("--device", help="torch device (default: a GPU if there is one, else the CPU)")
    options = parser.parse_args()
    options.out = options.out or ROOT / "local_data" / "gpu"
    options.photos = options.photos or options.datadir / "ILSVRC2012_pytorch"
    return options


# A process for each point


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a process did not end well, in one line."""

    error: str


def in_process(function: Callable[..., Iterator[Any]], *arguments: Any, limit: float) -> list[Any]:
    """What `function(*arguments)` yields in a process of its own; last a Failure if it fails or is ended at the limit.

    Args:
        limit: seconds.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    process, found = FORK.Process(target=_send, args=(sender, function, arguments)), []
    deadline = time.monotonic() + limit
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0, deadline - time.monotonic())):
            found.append(receiver.recv())
        found.append(Failure(f"ended at its limit of {limit} s"))
    except EOFError:
        process.join()
        if process.exitcode and not (found and isinstance(found[-1], Failure)):
            found.append(Failure(f"its process died (exit status {process.exitcode})"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.kill()
        process.join()
    return found


def _send(sender: Connection, function: Callable[..., Iterator[Any]], arguments: tuple) -> None:
    os.setsid()  # a process group of its own
    try:
        for each in function(*arguments):
            sender.send(each)
    except Exception as problem:
        text = one_line(problem)
        sender.send(Failure(text if isinstance(problem, UserError) else f"{type(problem).__name__}: {text}"))


def describe_machine(options: argparse.Namespace) -> Iterator[str]:
    """The name of the device, and a line with the versions that matter."""
    device = device_of(options)
    versions = [f"torchvision {importlib.metadata.version('torchvision')}"]
    versions += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"] * (device.type == "cuda")
    versions += ["float32 convolutions in TF32"] * (device.type == "cuda" and torch.backends.cudnn.allow_tf32)
    versions.append("DALI" if has_dali() else "DALI is not installed: its rows are left out")
    if not importlib.util.find_spec("kornia"):
        versions.append("kornia is not installed, and not needed here")
    yield str(torch.empty(0, device=device).device)  # with its number
    yield "; ".join([machine(device), f"{len(os.sched_getaffinity(0))} CPUs", *versions])


def rows_of(point: Point, setting: Setting) -> Iterator[Row]:
    torch.backends.cudnn.deterministic = True  # as the scripts do
    yield from point.rows(setting)


# The results


def write(out: Path, report: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_name(f"{out.name}.md").write_text(markdown(report) + "\n")


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for key, point in report["points"].items():
        rows.append([f"**{key}**", f"**{point['title']}**", "", "", f"{point['seconds']} s in all"])
        rows += [["", row["what"], shown(row, "value"), shown(row, "cpu"), row["note"]] for row in point["rows"]]
        if point["error"]:
            rows.append(["", "**failed**", "", "", point["error"].replace("|", "\\|")])
    table = tabulate(rows, ["", "what", "found", "on the CPU", "note"], tablefmt="pipe", disable_numparse=True)
    small = ", small sizes: seconds and accuracies mean nothing" if report["small"] else ""
    return f"{report['machine']}{small}\n\n{table}"


def shown(row: dict[str, Any], key: str) -> str:
    """A value of a row with its unit."""
    value = row[key]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, str):
        return value
    return f"{value:,.0f} {row['unit']}" if abs(value) >= 1000 else f"{value:.4g} {row['unit']}".rstrip()


if __name__ == "__main__":
    sys.exit(guarded(main))
