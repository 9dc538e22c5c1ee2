"""The page of a figure: its tables as Markdown, for the terminal and as CSV files."""

import dataclasses
from collections.abc import Sequence

from alfk.plotting import tables
from alfk.plotting.figures import RIVAL_KEYS, FigureData
from alfk.plotting.names import name_of
from alfk.plotting.results import Results
from alfk.plotting.sizes import SizesData, sizes_table
from alfk.plotting.text import Table

WINS = "After how many queries the row is ahead of the column (six runs or more, exact sign-flip test, p < 0.05)"


@dataclasses.dataclass(frozen=True)
class Section:
    """Tables and lines of text under a heading, which may be empty."""

    heading: str
    parts: Sequence[Table | str]

    def __str__(self) -> str:
        """The parts as Markdown, without the heading."""
        return "\n\n".join(str(part) for part in self.parts if part)

    def for_terminal(self) -> str:
        parts = [part.for_terminal() if isinstance(part, Table) else part for part in self.parts if part]
        return "\n\n".join([self.heading, *parts] if self.heading else parts)


@dataclasses.dataclass(frozen=True)
class Page:
    """What is written and printed about a figure.

    Attributes:
        sections: by the name that --into has for them; "" is the main one.
        files: ending -> rows of a CSV file.
    """

    name: str
    title: str
    sections: dict[str, Section]
    files: dict[str, list[tables.Row]] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        parts = [f"# {self.title}", f"![{self.title}]({self.name}.png)"]
        for section in self.sections.values():
            parts += [f"## {section.heading}"] if section.heading else []
            parts += [str(section)]
        return "\n\n".join(parts) + "\n"


def page_of(
    figure: FigureData, found: Results, hardest: Sequence[int], claim: str | None, accuracy: float | None
) -> Page:
    """The page of a figure of curves.

    Args:
        hardest: those of the minority classes that tables state too.
        claim: series whose claims are computed; None is Rzg_pz at its largest L.
        accuracy: that at which labels are compared; None is the highest that both curves reach.
    """
    ours = tables.claim_trial(figure, claim)
    summary = tables.summary(figure, found.minority, hardest)
    claims = tables.claims(figure, ours, accuracy) if ours else {}
    with_rivals = any(trial.method in RIVAL_KEYS for trial in figure.trials)
    about = "Test accuracy, %, mean ± standard deviation over runs (p, r: outside 2 s.e. of the paper, of the release)"
    sections = {
        "": Section(about, [tables.digest(figure), tables.agreement(figure)]),
        "lines": Section("", ["; ".join(f"{label}: {accuracy:.2f} %" for accuracy, label in figure.lines)]),
        "numbers": Section("Curves as numbers", [tables.summary_table(summary)]),
        "minority": Section("", [tables.minority_text(figure, found) if summary else ""]),
        "knowledge": Section("What each method knows", [tables.knowledge_table(figure)] if with_rivals else []),
        "classes": Section("Accuracy of each class after the third query, %", [tables.classes_table(figure)]),
        "differences": Section(
            f"{name_of(ours)} minus the others over the same runs, points [95 %]" if ours else "",
            [tables.difference_table(figure, ours)] if ours else [],
        ),
        "wins": Section(WINS, [tables.wins_table(figure)]),
        "claims": Section(f"{name_of(ours)} against the others" if ours else "", [tables.claim_table(claims)]),
        "comparison": Section("Ours, the paper's and the release's", [tables.comparison_table(figure)]),
        "left out": Section("Left out", ["\n".join(f"- {text}" for text in found.left_out)]),
    }
    rows = {
        "_curves.csv": tables.curve_rows(figure),
        "_summary.csv": [tables.about(trial) | row for trial, row in summary.items()],
        "_claims.csv": [tables.about(trial) | row for trial, row in claims.items()],
    }
    return Page(figure.name, figure.title, {key: part for key, part in sections.items() if str(part)}, rows)


def page_of_sizes(figure: SizesData) -> Page:
    """The page of a figure of sizes of the validation set."""
    return Page(figure.name, figure.title, {"": Section("", [sizes_table(figure)])})
