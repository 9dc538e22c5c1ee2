"""Labels from people: read from a CSV file, and requests for labels that say why each image was chosen."""

import csv
import dataclasses
import io
import os
from collections.abc import Container, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alfk.own.queries import Query, stands_for, write_csv
from alfk.support.errors import UserError
from alfk.support.files import read_file

SKIP = "skip"  # in place of a label: the file is left out


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What people entered into labels.csv.

    Attributes:
        positions: (k,) int64, positions in the pool of the labelled files, ascending.
        labels: (k,) int64, their classes.
        skipped: (s,) int64, positions of the files that people skipped, ascending.
    """

    positions: Tensor
    labels: Tensor
    skipped: Tensor

    @property
    def settled(self) -> Tensor:
        """Positions of the files that are labelled or skipped, ascending."""
        return torch.cat([self.positions, self.skipped]).sort().values

    def missing(self, indices: Tensor) -> Tensor:
        """The pool positions among `indices` (n,) that are neither labelled nor skipped, in order."""
        return indices[~torch.isin(indices, self.settled)]


def read_annotations(path: str | Path, files: Sequence[str], classes: Sequence[str]) -> Annotations:
    """Read a CSV file with the columns `file` and `label`, separated by commas or semicolons.

    An empty label is a missing one; with the label `skip` a file is neither trained on nor asked for. Spaces around a
    name are ignored unless they belong to it. A file may be named several times if its labels that are not empty agree.

    Args:
        files: names of the pool images, as in the column `file`.
        classes: names of the classes.
    Raises:
        UserError: the file cannot be read, names a file that is not in the pool, a label that is no class, or two
            labels for a file.
    """
    if SKIP in classes:
        raise UserError(f"a class cannot be called {SKIP!r}, the word that leaves a file out: rename it")
    path, position = Path(path), {name: i for i, name in enumerate(files)}
    number = {name: i for i, name in enumerate(classes)}
    entered: dict[int, str] = {}
    for line, file, entry in _read(path):
        name, label = _matched(file, position), _matched(entry, number)
        if name not in position:
            raise UserError(f"{path}, line {line}: {shown(name)} is not among the pool's files")
        if label == "":
            continue
        if label != SKIP and label not in number:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            remedy = f"not a class of the validation set ({known}), and not {SKIP!r}"
            raise UserError(f"{path}, line {line}: {label!r} is {remedy}")
        if entered.setdefault(position[name], label) != label:
            before = entered[position[name]]
            raise UserError(f"{path}, line {line}: {shown(name)} has the label {before} above, here {label}")
    labelled = sorted(i for i, label in entered.items() if label != SKIP)
    skipped = sorted(i for i, label in entered.items() if label == SKIP)
    return Annotations(
        torch.tensor(labelled, dtype=torch.int64),
        torch.tensor([number[entered[i]] for i in labelled], dtype=torch.int64),
        torch.tensor(skipped, dtype=torch.int64),
    )


def _matched(entry: str, names: Container[str]) -> str:
    """An entry, without the spaces around it unless it is one of the names with them."""
    return entry if entry in names else entry.strip()


def shown(name: str) -> str:
    """The name of a file for a line of text: quoted if it has unprintable characters or spaces at its ends."""
    return name if name.isprintable() and name == name.strip() else repr(name)


def _read(path: Path) -> list[tuple[int, str, str]]:
    """(line number, file, label) of every row with a file name; empty if there is no such file yet."""
    if not os.path.exists(path):
        return []
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"cannot read {path}: {problem}; save it as CSV in UTF-8") from None
    lines = io.StringIO(text, newline="")  # a quoted name may have line breaks, which are kept
    head = lines.readline()
    lines.seek(0)
    reader = csv.DictReader(lines, delimiter=";" if head.count(";") > head.count(",") else ",")
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"file", "label"} <= set(names):
            raise UserError(f"{path}: its first line has to be file,label")
        reader.fieldnames = names
        rows = [(reader.line_num, row["file"] or "", row["label"] or "") for row in reader]
    except csv.Error as problem:
        raise UserError(f"{path}, line {reader.line_num}: {problem}; save it as CSV in UTF-8") from None
    return [row for row in rows if row[1].strip()]


def write_request(path: str | Path, query: Query, files: Sequence[str], validation_files: Sequence[str]) -> None:
    """Write a CSV file for the annotators: the files of a query in order, and why each was chosen.

    Its columns: file; guess, the method's pseudo-label or prediction; nearest_error, the misclassified validation image
    that it matches; error_class, the class of that image; mistaken_for, its prediction; similarity of both; with
    facility location also stands_for, in words. Methods without matching have the columns file, guess and, if there is
    one, score.

    Args:
        files, validation_files: names of all pool images and of all validation images.
    Raises:
        UserError: the file cannot be written.
    """
    rows = []
    for row in query.rows(files, validation_files):
        guess = row.get("pseudo_label", row.get("prediction"))
        entry = {"file": row["file"], "guess": "" if guess is None else guess}
        if "matches" in row:
            error = {"nearest_error": row["matches_file"], "error_class": row["error_label"]}
            entry |= error | {"mistaken_for": row["error_prediction"], "similarity": row["similarity"]}
        if "stands_for" in row:
            entry["stands_for"] = stands_for(row)
        elif "score" in row:
            entry["score"] = row["score"]
        rows.append(entry)
    write_csv(path, rows)
