"""Copies finished results of run folders into this folder: lines of results.jsonl and sessions of manifests.

    python3 results/collect.py local_data/MNIST [...]

Lines that are here already are kept, and compared. If an iteration was made again with another outcome, it is named and
left out with all later iterations of its trial, and the exit status is 1. Times and memory may differ.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alfk.cli.options import Parser  # noqa: E402
from alfk.cli.scripts import guarded  # noqa: E402
from alfk.experiment.folder import RunFolder, check_settings  # noqa: E402
from alfk.experiment.records import Record, key_of, line_of  # noqa: E402
from alfk.experiment.trial import Trial  # noqa: E402
from alfk.plotting.results import run_folders  # noqa: E402
from alfk.support.errors import UserError  # noqa: E402
from alfk.support.files import atomic, read_file, write_json  # noqa: E402


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="folder of runN folders, named as the data set")
    add("--into", type=Path, default=ROOT / "results", metavar="DIR", help="folder of copies (results)")
    return guarded(parser, run)


def run(options: argparse.Namespace) -> int:
    """Copy what is new; returns the exit status. Raises UserError."""
    agree = True
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        runs = sorted(run_folders(folder), key=lambda found: found.number)
        if not runs:
            raise UserError(f"there is no runN folder in {folder}")
        for source in runs:
            agree &= collect(source, RunFolder(options.into / folder.resolve().name, source.number))
    return 0 if agree else 1


def collect(source: RunFolder, target: RunFolder) -> bool:
    """Add the new lines of `source` to `target`; returns whether the lines that both have agree. Raises UserError."""
    known, records = {key_of(record): record for record in _records(target)}, _records(source)
    new, same, differing = set(), 0, set()
    for record in sorted(records, key=lambda record: record["b"]):
        trial, old = Trial.of(record), known.get(key_of(record))
        if trial in differing:
            continue
        if old is None:
            new.add(key_of(record))
        elif same_outcome(record, old):
            same += 1
        else:
            differing.add(trial)
            print(f"{source.path}: {trial.name}, b={record['b']} made again with another outcome; left out from there")
    if new:
        _add(source, target, [record for record in records if key_of(record) in new])
    print(f"{source.path}: {len(new)} new lines, {same} made again with the same outcome")
    return not differing


def same_outcome(a: Record, b: Record) -> bool:
    """Whether two lines about an iteration report the same choice and training."""
    exact = all(a[key] == b[key] for key in ("labelled", "epochs", "selected_histogram"))
    return exact and math.isclose(a["accuracy"], b["accuracy"], abs_tol=1e-9)


def _records(folder: RunFolder) -> list[Record]:
    records, problems = folder.read_results()
    if problems:
        raise UserError(problems[0])
    return records


def _add(source: RunFolder, target: RunFolder, new: Sequence[Record]) -> None:
    """Add sessions and settings to the manifest, then lines to the results."""
    target.path.mkdir(parents=True, exist_ok=True)
    made, path, lines = _manifest(source), target.path / "manifest.json", target.path / "results.jsonl"
    manifest = _manifest(target) if path.exists() or lines.exists() else {**made, "sessions": []}
    check_settings(target.path, manifest["settings"], made["settings"])
    manifest["settings"] = {**made["settings"], **manifest["settings"]}
    manifest["sessions"] += [session for session in made["sessions"] if session not in manifest["sessions"]]
    write_json(path, manifest)
    content = read_file(lines) if lines.exists() else b""
    with atomic(lines) as file:
        file.write(content + "".join(map(line_of, new)).encode())


def _manifest(folder: RunFolder) -> dict[str, Any]:
    """Raises UserError for a lost or damaged manifest: its replacement lacks the sessions, which say what was run."""
    manifest, problems = folder.manifest()
    if problems:
        raise UserError(problems[0].partition(":")[0])
    return manifest


if __name__ == "__main__":
    sys.exit(main())
