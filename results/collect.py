"""Copies finished results of run folders into this folder: lines of results.jsonl and sessions of manifests.

    python3 results/collect.py local_data/MNIST [...]

Lines that are here already are kept, and compared: one that was made again with another outcome is named, and the exit
status is then 1. Times and memory may differ.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alfk.cli.options import Parser  # noqa: E402
from alfk.cli.scripts import guarded  # noqa: E402
from alfk.errors import UserError  # noqa: E402
from alfk.files import atomic, read_file, write_json  # noqa: E402
from alfk.plotting.results import run_folders  # noqa: E402
from alfk.records import Record, key_of, line_of  # noqa: E402
from alfk.runs import RunFolder, Trial, check_settings  # noqa: E402


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="folder of runN folders, named as the data set"
    )
    parser.add_argument("--into", type=Path, default=ROOT / "results", metavar="DIR", help="folder of copies (results)")
    return guarded(parser, run)


def run(options: argparse.Namespace) -> int:
    """Copy what is new; returns the exit status. Raises UserError."""
    agree = True
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        for source in sorted(run_folders(folder), key=lambda found: found.number):
            agree &= collect(source, RunFolder(options.into / folder.resolve().name, source.number))
    return 0 if agree else 1


def collect(source: RunFolder, target: RunFolder) -> bool:
    """Copy what `target` lacks of a run; returns whether the lines that both have agree. Raises UserError."""
    records, problems = source.read_results()
    there, damaged = target.read_results()
    if problems or damaged:
        raise UserError((problems + damaged)[0])
    known = {key_of(record): record for record in there}
    both = [record for record in records if key_of(record) in known]
    new = [record for record in records if key_of(record) not in known]
    other = [record for record in both if not same_outcome(record, known[key_of(record)])]
    for record in other:
        print(f"{source.path}: {Trial.of(record).name}, b={record['b']}, was made again with another outcome; left out")
    if new:
        _add(source, target, new)
    print(f"{source.path}: {len(new)} new lines, {len(both) - len(other)} made again with the same outcome")
    return not other


def same_outcome(a: Record, b: Record) -> bool:
    """Whether two lines about an iteration report the same choice and training."""
    exact = all(a[key] == b[key] for key in ("labelled", "epochs", "selected_histogram"))
    return exact and math.isclose(a["accuracy"], b["accuracy"], abs_tol=1e-9)


def _add(source: RunFolder, target: RunFolder, new: Sequence[Record]) -> None:
    target.path.mkdir(parents=True, exist_ok=True)
    made = source.manifest()[0]
    manifest = target.manifest()[0] if (target.path / "manifest.json").exists() else {**made, "sessions": []}
    check_settings(target.path, manifest["settings"], made["settings"])
    manifest["settings"] = {**made["settings"], **manifest["settings"]}
    manifest["sessions"] += [session for session in made["sessions"] if session not in manifest["sessions"]]
    lines = target.path / "results.jsonl"
    content = read_file(lines) if lines.exists() else b""
    with atomic(lines) as file:
        file.write(content + "".join(map(line_of, new)).encode())
    write_json(target.path / "manifest.json", manifest)


if __name__ == "__main__":
    sys.exit(main())
