"""The figure of a progress report: accuracy on held-out images against the number of labels."""

import textwrap
from itertools import pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alfk.own.progress import Progress
from alfk.plotting.axes import label_ends, tidy
from alfk.plotting.saving import save

LABELS, CLEAN, CHANCE = "#D55E00", "#0072B2", "#555555"
FILLED = 0.25  # of the height that results have to fill, else chance lies below the axis
TICKS = 15  # as many numbers of labels fit below the axis
WIDTH = 106  # characters of a line of the sentence
DPI = 160  # pixels per inch of the files


def progress(report: Progress, path: str | Path | None = None, title: str | None = None) -> Figure:
    """Draw accuracy against the number of labels, with lines for chance and for the clean images alone.

    The report's sentence stands above it. The band (a bar after one round) is the 95 % interval of an accuracy; the
    interval of a change, in the sentence, is narrower than two bands suggest, since rounds share their images.

    Args:
        path: .png, .pdf or .svg file to write; None writes nothing.
        title: a line above the sentence.
    Returns:
        the figure, which is not registered with `matplotlib.pyplot`.
    Raises:
        UserError: the file cannot be written.
    """
    labels, last = report.labelled, report.accuracy[-1]
    values, low, high = zip(*((each.value, each.low, each.high) for each in report.accuracy), strict=True)
    with rc_context({"font.size": 10, "figure.titlesize": 10}):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(labels, values, color=LABELS, marker="o", linewidth=2)
        axes.fill_between(labels, low, high, color=LABELS, alpha=0.18, linewidth=0)
        if len(labels) == 1:
            axes.vlines(labels, low, high, color=LABELS)
        ends = [(last.value, labels[-1], f"{labels[-1]:,} labels: {last.value:.1f} %", LABELS)]
        ends += _lines(axes, report)
        shape = "bar" if len(labels) == 1 else "band"
        axes.set(xlabel=f"number of labels ({shape}: 95 % interval)", xlim=axes.get_xlim(), ylim=axes.get_ylim())
        axes.set_ylabel(f"accuracy on {sum(report.images):,} held-out images, %")
        steps = [after - before for before, after in pairwise(labels)]
        if TICKS * min(steps, default=0) >= sum(steps):
            axes.set_xticks(labels)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        tidy(axes)
        label_ends(axes, ends)
        lines = [title, textwrap.fill(report.sentence, WIDTH)] if title else [textwrap.fill(report.sentence, WIDTH)]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", parse_math=False)
    if path is not None:
        save(figure, Path(path), DPI)
    return figure


def _lines(axes: Axes, report: Progress) -> list[tuple[float, float, str, str]]:
    """Draw the lines of the clean images alone and of chance. Returns their labels, for `label_ends`."""
    ends, right, chance = [], axes.get_xlim()[1], 100 / len(report.classes)
    if report.clean is not None:
        axes.axhline(report.clean.value, color=CLEAN, linewidth=1.4, linestyle="--", zorder=1)
        ends.append((report.clean.value, right, f"clean images alone: {report.clean.value:.1f} %", CLEAN))
    low, high = axes.get_ylim()
    if high - low >= FILLED * (high - chance):
        axes.axhline(chance, color=CHANCE, linewidth=1.4, linestyle="--", zorder=1)
        return [*ends, (chance, right, f"chance: {chance:.3g} %", CHANCE)]
    return [*ends, (low, right, f"chance: {chance:.3g} %, far below", CHANCE)]
