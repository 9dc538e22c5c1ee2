"""Results records: the lines of results.jsonl (docs/files.md), each with a checksum of its content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alfk.support.files import read_file, with_crc32, without_crc32

Record = dict[str, Any]

RESTORED = "the run's own command restores it from the checkpoint"  # end of messages about lost or damaged lines

BASELINE = "all_train"  # in place of a method: training on the whole distorted pool, a line in figures
VALIDATION_ALONE = "validation"  # likewise: training on the validation images and nothing else
BASELINES = (BASELINE, VALIDATION_ALONE)

INITS = {  # initial model -> prefix of file names
    "rotation": "unsup_",  # from the rotation model, its last linear layer new (docs/method.md, section 4)
    "rotation_conv": "unsup_conv_",  # from the rotation model's convolutions, every linear layer new
    "random": "",
}

SPECIAL = ("copies", "first_batch", "validation_size", "adds_validation")  # entries that most records do not have
KEY = ("method", "L", "ir", "nr", "init", "ensemble", "select", *SPECIAL, "b")  # what tells a run's records apart


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a record from the others of its run."""
    return tuple(record.get(key) for key in KEY)


def line_of(record: Mapping[str, Any]) -> str:
    """The line of a record, with its checksum."""
    return json.dumps(with_crc32(record)) + "\n"


def read_results(path: Path, expected: Mapping[str, Any]) -> tuple[list[Record], list[str]]:
    """The records of a results file, and a message about each line that is left out, or that there is none.

    A line is left out if it is no record, its checksum is wrong, or it is there twice; of two lines about the same
    iteration the last one counts.

    Args:
        expected: entries that the records must have, e.g. data set and run.
    Raises:
        UserError: the file cannot be read.
    """
    records: dict[tuple[Any, ...], Record] = {}
    lines = read_file(path).decode(errors="replace").splitlines()
    problems = [] if lines else [f"{path}: empty; {RESTORED}"]
    for number, line in enumerate(lines, 1):
        record, wrong = _parse(line)
        wrong = wrong or next(
            (f"of {k} {record.get(k)}" for k, value in expected.items() if record.get(k) != value), None
        )
        if wrong:
            problems.append(f"{path}, line {number}: {wrong}; left out, {RESTORED}")
            continue
        key = key_of(record)
        if key in records:
            problems.append(f"{path}, line {number}: a second line about the same iteration; the last one counts")
        records[key] = record
    return list(records.values()), problems


def _parse(line: str) -> tuple[Record, str | None]:
    """A line's record, and what is wrong with it."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return {}, "not a results record"
        return without_crc32(record), None
    except json.JSONDecodeError:
        return {}, "cut short or not a results record" if line.strip() else "empty"
    except (ValueError, RecursionError) as problem:
        return {}, str(problem)
