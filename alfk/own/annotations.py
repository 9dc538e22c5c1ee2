"""What people enter: read from CSV files and from Label Studio's exports; and requests for labels, to be filled in.

Beside the names of classes two words are entered: `skip` takes an image out, `unsure` leaves it for later.
"""

import csv
import dataclasses
import difflib
import functools
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alfk.own import label_studio
from alfk.own.label_studio import SKIP, UNSURE
from alfk.own.queries import Query, unescaped, write_csv
from alfk.support.errors import Problems, UserError
from alfk.support.files import read_file

WORDS = (SKIP, UNSURE)
MARKS = ",;\t"  # that separate values
MOST_PROBLEMS = 20  # that an error lists
MOST_COMPARED = 2000  # names with which a misspelt one is compared: 50 ms


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What people entered. All tensors are int64 and ordered by position.

    Attributes:
        positions: (k,), positions in the pool of the labelled images.
        labels: (k,), their classes.
        skipped: (s,), positions of the images that are not to be trained on, nor asked for again.
        unsure: (u,), positions of the images that are not to be trained on, but may be asked for again.
    """

    positions: Tensor
    labels: Tensor
    skipped: Tensor
    unsure: Tensor

    @property
    def settled(self) -> Tensor:
        """Positions of the images that are labelled or skipped, ascending."""
        return torch.cat([self.positions, self.skipped]).sort().values

    def missing(self, indices: Tensor) -> Tensor:
        """The pool positions among `indices` (n,) for which nothing is entered, in order."""
        return indices[~torch.isin(indices, torch.cat([self.settled, self.unsure]))]


def read_annotations(
    paths: str | Path | Iterable[str | Path], files: Sequence[object], classes: Sequence[str] | None
) -> Annotations:
    """Read labels from CSV files with the columns `file` and `label`, and from Label Studio's exports (.json).

    Values are separated by commas, semicolons or tabs; the text is UTF-8, or UTF-16 with a byte order mark. A row
    without a label is a missing one. Names are matched exactly or, where that is not ambiguous, ignoring case, Unicode
    form and the spaces around them. An image may be named several times if its entries agree; a label or `skip` has
    precedence over `unsure`.

    Args:
        paths: one file or several; those that do not exist yet count as empty.
        files: names of all pool images, as in the column `file`.
        classes: names of the classes; if None, labels are the numbers of the classes.
    Raises:
        UserError: a file cannot be read, names an image that is not in the pool or a label that is no class, or two
            labels disagree. The first 20 problems of all files are listed, one a line.
    """
    pool, known = _Names(map(str, files)), _Names([*(classes or ()), *WORDS])
    if len(pool.number) < len(files):
        raise UserError("two images of the pool have the same name: give names that differ, as paths do")
    for name in classes or ():
        if _folded(name) in WORDS:
            raise UserError(f"a class cannot be called {name!r}, which is entered in place of a label: rename it")
    problems: list[_Problem] = []
    entered = _merged(_entries(paths, problems), pool, known, classes, problems)
    if problems:
        more = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        raise Problems("\n".join([*map(str, problems[:MOST_PROBLEMS]), *more]))
    numbers = {i: int(x) if classes is None else known.number[x] for i, x in entered.items() if x not in WORDS}
    skipped, unsure = ([i for i, x in entered.items() if x == word] for word in WORDS)
    columns = list(numbers), list(numbers.values()), skipped, unsure
    return Annotations(*(torch.tensor(column, dtype=torch.int64) for column in columns))


def _merged(
    entries: Iterable[tuple[str, str, str]],
    pool: "_Names",
    known: "_Names",
    classes: Sequence[str] | None,
    problems: list["_Problem"],
) -> dict[int, str]:
    """Position in the pool -> label or word, ascending, of entries (place, file, entry); problems are added to a list.

    Args:
        known: the classes and words.
    """
    merged: dict[int, tuple[str, str]] = {}  # position -> label, place
    for place, file, entry in entries:
        if entry == "" or not (entry.strip() or entry in known.number):
            continue
        name, label = pool.find(file), known.find(entry) or _number(entry)
        label = label if label in known.number or classes is None else None
        if name is None:
            unknown = f"{shown(file)} is not among the pool's files" if file.strip() else f"{entry!r} has no file"
            problems.append(_Problem(f"{place}: {unknown}", file, pool))
        if label is None:
            problems.append(_Problem(f"{place}: {entry!r} is {_no_class(classes)}", entry, known))
        if name is None or label is None:
            continue
        before, where = merged.setdefault(pool.number[name], (label, place))
        if before == UNSURE:
            merged[pool.number[name]] = label, place
        elif label not in (before, UNSURE):
            problems.append(_Problem(f"{place}: {shown(name)} has the label {label} here, {before} in {where}"))
    return {position: label for position, (label, _) in sorted(merged.items())}


def _no_class(classes: Sequence[str] | None) -> str:
    """What is wrong with a label, and how a new class is made."""
    if classes is None:
        return f"no class number, nor {SKIP} or {UNSURE}"
    known = ", ".join(map(shown, classes[:10])) + (", ..." if len(classes) > 10 else "")
    return f"none of the classes ({known}), nor {SKIP} or {UNSURE}; clean images of a new class make it one"


def _number(entry: str) -> str | None:
    """A class number, also as spreadsheets write it: 3.0; not 03, which may be a name."""
    found = re.fullmatch(r"(0|[1-9]\d{0,8})(\.0*)?", entry.strip(), re.ASCII)
    return found and found[1]


# Names


def shown(name: str) -> str:
    """The name of a file for a line of text: quoted if it has unprintable characters or spaces at its ends."""
    return name if name.isprintable() and name == name.strip() else repr(name)


def _folded(name: str) -> str:
    """The name without outer spaces, and without differences of case and of Unicode form."""
    form = functools.partial(unicodedata.normalize, "NFD")
    return form(form(name.strip()).casefold())


class _Names:
    """Known names.

    Attributes:
        number: name -> its number, from 0.
    """

    def __init__(self, names: Iterable[str]):
        self.number = {name: i for i, name in enumerate(names)}

    @functools.cached_property
    def _alike(self) -> dict[str, list[str]]:
        """Folded name -> names."""
        alike: dict[str, list[str]] = {}
        for name in self.number:
            alike.setdefault(_folded(name), []).append(name)
        return alike

    def find(self, entry: str) -> str | None:
        """The name that is meant; None if there is none, or more than one."""
        for name in (entry, entry.strip()):
            if name in self.number:
                return name
        alike = self._alike.get(_folded(entry), ())
        return alike[0] if len(alike) == 1 else None

    def hint(self, entry: str) -> str:
        """What can be meant by an entry that is no name: the rest of a line."""
        if any("\udc80" <= character <= "\udcff" for character in entry):  # bytes that are not UTF-8
            return "; save the file as CSV in UTF-8"
        alike = self._alike.get(_folded(entry))
        if alike:
            return f"; it could be {' or '.join(map(shown, alike))}: enter one of them exactly"
        meant, names = _folded(entry), list(self._alike)
        in_folders = [n for n in names if n.endswith(f"/{meant}")] if meant else []
        if len(names) > MOST_COMPARED:  # of many, those that begin or end alike
            half = len(meant) // 2 or 1
            similar = (n for n in names if n.startswith(meant[:half]) or n.endswith(meant[-half:]))
            names = list(itertools.islice(similar, MOST_COMPARED))
        closest = in_folders or difflib.get_close_matches(meant, names, 1)
        return f"; did you mean {shown(self._alike[closest[0]][0])}?" if closest else ""


class _Problem(NamedTuple):
    """Something wrong in a file: where and what, and for an unknown name the entry and the names that are known."""

    text: str
    entry: str = ""
    names: _Names | None = None

    def __str__(self) -> str:
        return self.text + (self.names.hint(self.entry) if self.names else "")


# Files


def _entries(paths: str | Path | Iterable[str | Path], problems: list[_Problem]) -> Iterator[tuple[str, str, str]]:
    """(place, file, entry) of all rows of all files, whose problems are added to a list."""
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not os.path.exists(path):
            continue
        try:
            yield from label_studio.read(path) if path.suffix.lower() == ".json" else _read_table(path, problems)
        except UserError as problem:
            problems.append(_Problem(str(problem)))


def _read_table(path: Path, problems: list[_Problem]) -> Iterator[tuple[str, str, str]]:
    """(place, file, entry) of every row of a CSV file. Raises UserError if it is none, at a line or as a whole."""
    lines = io.StringIO(_text(path), newline="")  # a quoted name may have line breaks, which are kept
    head = lines.readline()
    lines.seek(0)
    reader = csv.reader(lines, delimiter=max(MARKS, key=head.count), strict=True)
    try:
        columns = [name.strip().lower() for name in next(reader, ())]
        if [columns.count(name) for name in ("file", "label")] != [1, 1]:
            raise UserError(f"{path}: its first line has to name one column file and one column label; save it as CSV")
        for row in reader:
            place, row = f"{path}, line {reader.line_num}", [unescaped(cell) for cell in row]
            if any(map(str.strip, row[len(columns) :])):
                many = f"{place}: {len(row)} values in {len(columns)} columns"
                problems.append(_Problem(f"{many}; put a name with {reader.dialect.delimiter!r} in double quotes"))
                continue
            if len(row) == 1 < len(columns) and any(mark in row[0] for mark in {*MARKS} - {reader.dialect.delimiter}):
                one = f"{place}: {shown(row[0])} is one value"
                problems.append(
                    _Problem(f"{one}; separate values by {reader.dialect.delimiter!r} as in the first line")
                )
                continue
            values = dict(zip(columns, row, strict=False))
            yield place, values.get("file", ""), values.get("label", "")
    except csv.Error as problem:
        raise UserError(f"{path}, line {reader.line_num}: {problem}; save it as CSV in UTF-8") from None


def _text(path: Path) -> str:
    """The text of a file; what is not UTF-8 becomes surrogates, as in names of files. Raises UserError."""
    content = read_file(path)
    if not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-8-sig", "surrogateescape")
    try:
        return content.decode("utf-16")
    except UnicodeDecodeError as problem:
        raise UserError(f"cannot read {path}: {problem}; save it as CSV in UTF-8") from None


def write_request(path: str | Path, query: Query, files: Sequence[object], validation_files: Sequence[object]) -> None:
    """Write a CSV file for the annotators: the images of a query in order, and why each was chosen.

    Its columns: number, from 1, as in the picture of a query; file; label, to be filled in; then the reasons, as in
    `Query.rows`. `pseudo_label` and `prediction` are empty where they are the class `error_label`, which stands beside
    them. Filled in, it is a file for `read_annotations`.

    Args:
        files, validation_files: names of all pool images and of all validation images.
    Raises:
        UserError: the file cannot be written.
    """
    rows = []
    for number, reasons in enumerate(query.rows(files, validation_files), 1):
        for guess in ("pseudo_label", "prediction"):
            if guess in reasons and reasons[guess] == reasons.get("error_label"):
                reasons[guess] = ""
        file = reasons.pop("file")
        del reasons["index"]
        rows.append({"number": number, "file": file, "label": "", **reasons})
    write_csv(path, rows, ("number", "file", "label"), encoding="utf-8-sig")
