"""Results records: the lines of results.jsonl (docs/files.md), read with checks of types, ranges and checksums."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from alfk.method.perturbation import STRATEGIES
from alfk.support.errors import UserError
from alfk.support.files import read_file, with_crc32, without_crc32

Record = dict[str, Any]
Check = Callable[[Any], bool]

RESTORED = "the run's own command restores it from the checkpoint"  # said of what is lost or damaged

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


def _integer(low: float = -math.inf) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _number(low: float, high: float = math.inf) -> Check:
    """A finite number, from `low` to `high`."""

    def check(value: Any) -> bool:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and math.isfinite(value) and low <= value <= high

    return check


def _one_of(*known: str) -> Check:
    return lambda value: isinstance(value, str) and value in known


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_percent = _number(0, 100)
_images = _integer(0)

REQUIRED: dict[str, Check] = {
    "dataset": _text,
    "run": _integer(0),
    "seed": _integer(),
    "method": _text,
    "L": _integer(0),
    "ir": _number(1),
    "nr": lambda value: _number(0, 1)(value) and value < 1,
    "init": _one_of(*INITS),
    "ensemble": _integer(1),
    "select": _one_of("test", "val", "last"),
    "b": _integer(0),
    "labelled": _integer(1),
    "labelled_share": lambda value: _number(0, 100.0001)(value) and value > 0,
    "accuracy": _percent,
    "accuracy_members": _list(_percent),
    "epochs": _list(_integer(0)),
    "accuracy_per_class": _list(_or_none(_percent)),
    "selected_histogram": _list(_images),
    "pseudo_label_accuracy": _or_none(_percent),
    "pseudo_label_accuracy_per_class": _or_none(_list(_or_none(_percent))),
    "misclassified": _or_none(_images),
    "centres": _or_none(_images),
    "at_random": _images,
    "passes": lambda value: _entries(value, ("forward", "backward"), _integer(0)),
    "seconds": lambda value: _entries(value, ("describe", "acquire", "retrain"), _number(0)),
    "peak_memory_mib": _number(0),
}
OPTIONAL: dict[str, Check] = {
    "copies": _one_of(*STRATEGIES),
    "first_batch": _one_of("random"),
    "validation_size": _integer(1),
    "adds_validation": lambda value: value is True,
    "queried": _images,
    "accuracy_last": _percent,
    "accuracy_validation": _percent,
    "accuracy_top5": _percent,
    "minority": _or_none(lambda value: value == [] or _list(_integer(0))(value)),
    "matched": _or_none(_images),
    "similarity": _or_none(_number(-1.001, 1.001)),
    "made_with": _text,
}


def _entries(value: Any, keys: Iterable[str], check: Check) -> bool:
    return isinstance(value, dict) and all(check(value.get(key)) for key in keys)


def problem(record: Any) -> str | None:
    """What is wrong with a results record, in a few words; None if its types and ranges are right."""
    if not isinstance(record, dict):
        return "not a results record"
    for key, check in REQUIRED.items():
        if key not in record:
            return f"no {key}"
        if not check(record[key]):
            return f"{key} cannot be {_short(record[key])}"
    wrong = [key for key, check in OPTIONAL.items() if key in record and not check(record[key])]
    return f"{wrong[0]} cannot be {_short(record[wrong[0]])}" if wrong else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a record from the others of its run."""
    return tuple(record.get(key) for key in KEY)


def line_of(record: Mapping[str, Any]) -> str:
    """The line of a record, with its checksum."""
    return json.dumps(with_crc32(record)) + "\n"


def read_results(path: Path, expected: Mapping[str, Any]) -> tuple[list[Record], list[str]]:
    """The records of a results file, and a message about each line that is left out, or that there is none.

    A line is left out if it is no record, its checksum or a value is wrong, or it is there twice; of two lines about
    the same iteration the last one counts.

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
        wrong = wrong or next((f"of {k} {record[k]}" for k, value in expected.items() if record[k] != value), None)
        if wrong:
            problems.append(f"{path}, line {number}: {wrong}; left out, {RESTORED}")
            continue
        key = key_of(record)
        if key in records:
            problems.append(f"{path}, line {number}: a second line about the same iteration; the last one counts")
        records.pop(key, None)
        records[key] = record
    return list(records.values()), problems


def _parse(line: str) -> tuple[Record, str | None]:
    """A line's record, and what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "cut short or not a results record" if line.strip() else "empty"
    wrong = problem(record)
    if wrong:
        return {}, wrong
    try:
        return without_crc32(record), None
    except ValueError as problem_of_crc:
        return {}, str(problem_of_crc)


def check_record(record: Any, where: str) -> Record:
    """The record itself. Raises UserError if something is wrong with it."""
    wrong = problem(record)
    if wrong:
        raise UserError(f"{where}: {wrong}")
    return record
