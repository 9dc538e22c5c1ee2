"""Drawing accuracy curves, and contact sheets of selected images, as PNG and PDF."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import AutoMinorLocator, MaxNLocator

from alfk.experiment.records import BASELINE, VALIDATION_ALONE
from alfk.experiment.trial import Trial
from alfk.method.uncertainty import MEASURES
from alfk.plotting.axes import label_ends, tidy
from alfk.plotting.curves import Curve
from alfk.plotting.figures import FigureData
from alfk.plotting.names import STYLES, count_of_runs, name_of, notation, parse_series, place
from alfk.plotting.saving import save
from alfk.plotting.sizes import SizesData
from alfk.plotting.text import shortened
from alfk.support.errors import UserError

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of dates in matplotlib's fonts

FONT = {"font.size": 9.5, "axes.titlesize": 10.5, "legend.fontsize": 9, "mathtext.fontset": "cm", "pdf.fonttype": 42}
DASHES = {10: (1, 1), 20: (4, 2), 30: (5, 1, 1, 1), 90: (8, 2), 256: (4, 2), 448: (4, 2), 512: (5, 1, 1, 1)}  # by L
DOTS = (1, 1.4)
LONGEST = 12  # characters of a class name on an image
THIN = ("+", "x", "1", "2")  # markers of little area, as stars have: drawn larger


@dataclasses.dataclass(frozen=True)
class PlottedCurve:
    """A curve of a figure. Its source is "ours", the "paper", or the paper's "release" as run here."""

    curve: Curve
    trial: Trial
    source: str = "ours"

    @property
    def identity(self) -> tuple:
        """What a curve of ours and one of the paper have in common."""
        return self.trial.method, self.trial.length, self.trial.ensemble, self.trial.init

    def label(self, beside_ours: bool) -> str:
        """In the legend."""
        if self.source == "paper":
            return f"{notation(self.trial)} (paper)" if beside_ours else notation(self.trial)
        return f"{notation(self.trial)} ({count_of_runs(int(self.curve.runs.max()))})"


def plot_curves(path: Path, figure: FigureData, with_reference: bool) -> None:
    """Accuracy against labelled share, as <path>.png and .pdf: our means with bars of one standard deviation, and, if
    wanted, the paper's curves faint and the release's dotted. A legend stands at the right, in the order of the curves'
    right ends.
    """
    ours = [PlottedCurve(curve, trial) for trial, curve in figure.curves.items()]
    others = _reference_curves(figure) if with_reference else []
    known = {each.identity for each in ours}
    with plt.rc_context(FONT):
        drawing, axes = plt.subplots(figsize=(8.2, 4.8), layout="constrained")
        entries = []  # height of the right end, handle, label
        for each in others:
            handle = _draw_reference(axes, each, beside_ours=each.identity in known)
            if each.source == "paper" and each.identity not in known:
                entries.append((each.curve.mean[-1], handle, each.label(bool(ours))))
        for each in ours:
            entries.append((each.curve.mean[-1], _draw_ours(axes, each), each.label(True)))
        for number, (accuracy, label) in enumerate(figure.lines):
            dashes = (7, 2, *(1, 2) * (number + 1))
            rule = axes.axhline(accuracy, color="0.35", linewidth=1.1, linestyle=(0, dashes), zorder=1)
            entries.append((accuracy, rule, label))
        entries.sort(key=lambda entry: -entry[0])
        handles, labels = [entry[1] for entry in entries], [entry[2] for entry in entries]
        if any(each.source == "paper" and each.identity in known for each in others):
            handles.append(Line2D([], [], color="0.5", linewidth=1, linestyle=(0, (4, 1.5)), alpha=0.8))
            labels.append("faint: the paper's")
        if any(each.source == "release" for each in others):
            handles.append(Line2D([], [], color="0.3", linewidth=1.2, linestyle=(0, DOTS)))
            labels.append("dotted: its release's, run here")
        drawing.legend(handles, labels, loc="outside right center", frameon=False, handlelength=2.8, labelspacing=0.7)
        title = figure.title if figure.trials else f"{figure.title}: the paper's curves"
        axes.set_title(title, loc="left")  # centred, a long one would begin outside the figure
        axes.set(xlabel="labelled images, % of the undistorted pool", ylabel="test accuracy, %")
        axes.yaxis.set_minor_locator(AutoMinorLocator(2))
        tidy(axes)
        shares = sorted({float(share) for each in ours + others for share in each.curve.shares})
        if 1 < len(shares) <= 10:
            axes.set_xticks(shares, [f"{share:.2f}".rstrip("0").rstrip(".") for share in shares])
        save_png_and_pdf(drawing, path)


def plot_plain(path: Path, figure: FigureData, claim: Trial | None) -> None:
    """The figure for a page, a PNG file of 900 x 500 pixels: accuracy against the number of labelled images, our means
    with bands of one standard deviation and, dashed, the paper's curve of the trial `claim`, labelled at their right
    ends.
    """
    runs = sorted({int(curve.runs.max()) for curve in figure.curves.values()})
    number = count_of_runs(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]} runs"
    with plt.rc_context({"font.size": 13, "axes.titlesize": 14}):
        drawing, axes = plt.subplots(figsize=(9, 5), layout="constrained")
        ends = []  # height, x, label, colour
        for trial, ours in figure.curves.items():
            record, colour = figure.trials[trial][0], _style(trial)["color"]
            per_percent = record["labelled"] / record["labelled_share"]
            labels = ours.shares * per_percent
            axes.plot(labels, ours.mean, color=colour, linewidth=2.4)
            axes.fill_between(labels, ours.mean - ours.std, ours.mean + ours.std, color=colour, alpha=0.18, linewidth=0)
            ends.append((float(ours.mean[-1]), float(labels[-1]), name_of(trial), colour))
            paper = figure.others(trial).get("paper")
            if trial == claim and paper is not None:
                axes.plot(paper.shares * per_percent, paper.mean, color=colour, linewidth=1.8, linestyle="--")
                end = float(paper.mean[-1]), float(paper.shares[-1] * per_percent)
                ends.append((*end, f"{name_of(trial)} (paper)", colour))
        axes.set(xlabel="labelled images", ylabel="test accuracy, %", xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2.5, 5, 10]))
        axes.set_title(figure.title, loc="left")
        axes.text(0.99, 0.02, f"mean ± standard deviation, {number}", transform=axes.transAxes, ha="right", fontsize=11)
        tidy(axes)
        label_ends(axes, ends)
        save(drawing, path, dpi=100)
        plt.close(drawing)


def _reference_curves(figure: FigureData) -> list[PlottedCurve]:
    """The paper's curves and those of its release that have more than three points."""
    found = []
    for source, curves in figure.sources.items():
        for (name, init), curve in curves.items():
            if name != BASELINE and len(curve) > (3 if source == "release" else 0):
                method, length, ensemble = parse_series(name)
                trial = Trial(figure.ir, method, length, ensemble, init="random" if init == "random" else "rotation")
                found.append(PlottedCurve(curve, trial, source))
    return sorted(found, key=lambda each: place(each.trial))


def _draw_ours(axes: Axes, each: PlottedCurve) -> Line2D:
    """A curve of ours with bars of one standard deviation, unless it is of one run."""
    curve, style = each.curve, _style(each.trial)
    return _with_bars(axes, curve.shares, curve.mean, curve.std, style)


def _with_bars(axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray, style: dict[str, object]) -> Line2D:
    size = 7.5 if style["marker"] in THIN or isinstance(style["marker"], tuple) else 5
    look = {"markersize": size, "markeredgewidth": 1, "linewidth": 1.4, "elinewidth": 0.8, **style}
    bars = None if np.isnan(std).all() else std
    drawn = axes.errorbar(x, mean, yerr=bars, **look, zorder=3)
    for bar in drawn.lines[2]:
        bar.set_alpha(0.5)
    return drawn


def _draw_reference(axes: Axes, each: PlottedCurve, beside_ours: bool) -> Line2D:
    """A curve of the paper, faint, or of its release, dotted; without markers beside a curve of ours."""
    style = _style(each.trial)
    if each.source == "release":
        look = {"color": style["color"], "dashes": DOTS, "linewidth": 1.3, "alpha": 0.8}
    else:
        dashes = tuple(part * 0.6 for part in style["dashes"]) or (5, 1.5)  # never solid
        look = {**style, "dashes": dashes, "linewidth": 1.1, "alpha": 0.6, "markersize": 3.5, "markeredgewidth": 0.7}
        look |= {"marker": ""} if beside_ours else {}
    (drawn,) = axes.plot(each.curve.shares, each.curve.mean, **look, zorder=2)
    return drawn


def _style(trial: Trial) -> dict[str, object]:
    """Colour and marker of the method, dashes by L or E, an open marker where the initial model is random.

    Where the validation images are trained on, the dashes are the longer the more there are.
    """
    colour, marker = STYLES.get(trial.method, ("#000000", "."))
    hollow = trial.init == "random" or trial.other_copies or trial.adds_validation
    dashes = (4, 2) if trial.method in MEASURES and trial.ensemble == 1 else DASHES.get(trial.length, ())
    if trial.adds_validation and trial.validation_size:
        dashes = (max(1, 2 * math.log10(trial.validation_size) - 3), 1.5)
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": "white" if hollow else colour,
        "dashes": dashes,
    }


def plot_sizes(path: Path, figure: SizesData) -> None:
    """Accuracy against the size of the validation set, one panel for each number of labels."""
    with plt.rc_context(FONT):
        size = 2.4 + 3.1 * len(figure.panels), 3.6
        drawing, grid = plt.subplots(
            1, len(figure.panels), figsize=size, layout="constrained", sharey=True, squeeze=False
        )
        handles: dict[str, object] = {}
        sizes = sorted({int(s) for curves in figure.panels.values() for curve in curves for s in curve.sizes if s})
        for axes, (labels, curves) in zip(grid[0], figure.panels.items(), strict=True):
            for curve in curves:
                alone, style = curve.trial.method == VALIDATION_ALONE, _style(curve.trial)
                name = "trained on these images alone" if alone else notation(curve.trial)
                label = f"{name} ({count_of_runs(curve.runs)})"
                if not curve.sizes.any():  # a method that does not use the validation set
                    handles[label] = axes.axhline(curve.mean[0], color=style["color"], linewidth=1.4)
                    continue
                if alone:
                    style |= {"color": "0.35", "markerfacecolor": "0.35", "dashes": (7, 2, 1, 2)}
                handles[label] = _with_bars(axes, curve.sizes, curve.mean, curve.std, style)
            axes.set(title=labels, xlabel="validation images, V", xscale="log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
            axes.set_xticks([], minor=True)
            tidy(axes)
        grid[0, 0].set_ylabel("test accuracy, %")
        drawing.suptitle(figure.title, fontsize=10.5)
        drawing.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
        save_png_and_pdf(drawing, path)


def save_png_and_pdf(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write <path>.png and <path>.pdf and close the figure. Raises UserError where they cannot be written."""
    try:
        for suffix in (".png", ".pdf"):
            save(figure, path.with_name(path.name + suffix), dpi)
    except UserError as problem:
        raise UserError(f"{problem}; choose another --out") from None
    finally:
        plt.close(figure)


@dataclasses.dataclass(frozen=True)
class Row:
    """The query of one AL iteration: its first images (k, C, H, W) in [0, 1] and the labels of all its images (n,).

    Attributes:
        minority: minority classes, None if they are not known.
        classes: names of the classes, None if they are numbers.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    minority: Sequence[int] | None = None
    classes: Sequence[str] | None = None

    @property
    def heading(self) -> str:
        """With the number of images of minority classes, if there are such classes."""
        if not self.minority:
            return self.name
        rare = int(np.isin(self.labels, self.minority).sum())
        return f"{self.name}: {rare} of {len(self.labels)} from minority classes"

    def label(self, i: int) -> str:
        """The class of image i, at most LONGEST characters of its name."""
        return shortened(self.classes[self.labels[i]], LONGEST) if self.classes else str(self.labels[i])


def plot_contact_sheet(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Images in rows, one block per AL iteration, each with its true label; minority classes framed."""
    large = rows[0].images.shape[-1] > 40
    width = min(10 if large else 25, max(len(row.images) for row in rows))
    lines = [-(-len(row.images) // width) for row in rows]
    cell, margin, head = 0.9 if large else 0.36, 0.12, 0.2  # inches: side of an image, margin, height of the title
    gap = 0.25 / cell  # height of a heading, in images
    height = sum(lines) + gap * len(rows)
    inches = max(cell * width, 6) + 2 * margin, cell * height + head + 2 * margin
    with plt.rc_context(FONT):
        figure = plt.figure(figsize=inches)
        box = (margin / inches[0], margin / inches[1], cell * width / inches[0], cell * height / inches[1])
        axes = figure.add_axes(box, xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        figure.text(margin / inches[0], 1 - margin / inches[1], title, va="top", fontsize=10.5)
        top = 0.0
        for row, count in zip(rows, lines, strict=True):
            axes.text(0, top + gap - 0.03 / cell, row.heading, va="bottom", fontsize=8.5)
            top += gap
            extent = (0, width, top + count, top)
            picture = tiled(row.images, width)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="auto")
            for i in range(len(row.images)):
                _mark(axes, row.label(i), i % width, top + i // width, framed=row.labels[i] in (row.minority or ()))
            top += count
        save_png_and_pdf(figure, path)


def tiled(images: np.ndarray, width: int) -> np.ndarray:
    """(k, C, H, W) -> one picture with `width` images per row, (h, w) or (h, w, 3), white in empty cells."""
    k, channels, height, breadth = images.shape
    lines, edge = -(-k // width), max(1, height // 14)
    cells = np.ones((lines * width, channels, height + 2 * edge, breadth + 2 * edge), dtype=np.float32)
    cells[:k, :, edge:-edge, edge:-edge] = images
    sheet = cells.reshape(lines, width, channels, height + 2 * edge, breadth + 2 * edge).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(lines * (height + 2 * edge), width * (breadth + 2 * edge), channels)
    return sheet if channels == 3 else sheet[..., 0]


def _mark(axes: Axes, label: str, x: float, y: float, framed: bool) -> None:
    box = {"boxstyle": "square,pad=0.1", "linewidth": 0, "facecolor": "#D55E00" if framed else "#555555"}
    font = {"fontsize": 5.5, "color": "white", "weight": "bold"}
    axes.text(x + 0.1, y + 0.1, label.replace("$", r"\$"), **font, ha="left", va="top", bbox=box)
    if framed:
        axes.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, color="#D55E00", linewidth=1.4))
