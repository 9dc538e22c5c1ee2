"""Tables as text: on a terminal, in Markdown, as CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from tabulate import tabulate


@dataclasses.dataclass(frozen=True)
class Table:
    """Heads, which may have line breaks, and rows of cells; the first column is left-aligned, all others right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        """As Markdown; empty without a row."""
        return self._text([head.replace("\n", " ").strip() for head in self.heads], "github")

    def for_terminal(self) -> str:
        """As text of few columns; empty without a row."""
        return self._text(self.heads, "simple")

    def _text(self, heads: Sequence[str], form: str) -> str:
        align = ("left", *["right"] * (len(heads) - 1))
        return tabulate(self.rows, heads, form, disable_numparse=True, colalign=align) if self.rows else ""


def number(value: object, form: str) -> str:
    """A formatted number; empty for NaN."""
    return "" if isinstance(value, float) and math.isnan(value) else form.format(value)


def plus_minus(mean: float, std: float, digits: int = 2) -> str:
    """ "92.54 ± 0.31"; the mean alone if `std` is NaN."""
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def shortened(name: str, most: int) -> str:
    """At most so many characters of a name, its end cut off."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def csv_text(rows: Sequence[dict[str, object]]) -> str:
    """Rows as CSV under their keys: floats with at most four decimals, NaN as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}".rstrip("0").rstrip(".")
    return value
