"""Drawing: accuracy curves, contact sheets of selected images, confusion matrices and t-SNE maps, as PNG and PDF."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import AutoMinorLocator

from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS
from alfk.method.uncertainty import MEASURES
from alfk.plotting.curves import Curve
from alfk.plotting.saving import save
from alfk.support.errors import UserError

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of dates in matplotlib's fonts

# One colour and marker per method in all figures: Okabe and Ito's palette, safe for colour-blind readers. Markers and
# dashes distinguish them in greyscale.
STYLES = {
    "random": ("#000000", "o"),
    "vaal": ("#8C6BB1", "*"),
    "varR": ("#0072B2", "X"),
    "entropy": ("#08519C", "<"),
    "BALD": ("#4292C6", ">"),
    "std": ("#6BAED6", "d"),
    "Rz": ("#56B4E9", "s"),
    "Rzg_trace": ("#B8A800", "p"),
    "Rzg_mi": ("#999999", "h"),
    "Rzg_mi_diag": ("#666666", "H"),
    "Rzg_pred": ("#E69F00", "v"),
    "Rzg_pz": ("#D55E00", "D"),
    "Rzg_pzg": ("#CC79A7", "^"),
    "Rzg_true": ("#009E73", "P"),
    "margin": ("#7B3294", "8"),
    "leastconf": ("#B58ACB", (3, 1, 0)),
    "entropy_det": ("#E7298A", (8, 1, 0)),
    "badge": ("#1B7837", (4, 1, 0)),
    "coreset": ("#8C510A", (4, 1, 45)),
    "typiclust": ("#80B1D3", (6, 1, 0)),
    "galaxy": ("#4D4D9F", (5, 1, 180)),
    "galaxy_v": ("#A6A6DD", (3, 1, 180)),
    "epig": ("#66A61E", "+"),
    "flqmi": ("#1B9E77", "x"),
    "flqmi_z": ("#C51B7D", "1"),
    "flqmi_rare": ("#B15928", "2"),
}
THIN = ("+", "x", "1", "2")  # markers of little area, as stars have: drawn larger
DASHES = {10: (1, 1), 20: (4, 2), 30: (5, 1, 1, 1), 90: (8, 2), 256: (4, 2), 448: (4, 2), 512: (5, 1, 1, 1)}  # by L
NOTATION = {key: method.notation for key, method in METHODS.items()} | {"vaal": "VAAL"}


@dataclasses.dataclass(frozen=True)
class PlottedCurve:
    """A curve of a figure. Its source is "ours", the "paper", or the paper's "release" as run here."""

    curve: Curve
    trial: Trial
    source: str = "ours"


def notation(trial: Trial) -> str:
    """A trial as the paper's figures label it, in TeX."""
    parts = [NOTATION.get(trial.method, trial.method)]
    parts += [f"$L_{{{trial.length}}}$"] if trial.length else []
    parts += [f"$E={trial.ensemble}$"] if trial.method in MEASURES else []
    parts += [r"$\theta_{rnd}$"] if trial.init == "random" else []
    parts += [f"copies by {trial.other_copies}"] if trial.other_copies else []
    parts += ["first batch random"] if trial.first_batch else []
    parts += [f"$V={trial.validation_size:,}$".replace(",", "{,}")] if trial.validation_size else []
    parts += ["validation set added"] if trial.adds_validation else []
    return ", ".join(parts)


def plot_curves(path: Path, title: str, plotted: Sequence[PlottedCurve], lines: Sequence[tuple[float, str]]) -> None:
    """Accuracy against labelled share: our means with bars of one standard deviation, the paper's curves faint, the
    release's dotted.

    Args:
        lines: accuracies of trainings on the whole pool or on the validation set, and their labels in the legend.
    """
    with plt.rc_context(FONT):
        figure, axes = plt.subplots(figsize=(7.6, 4.3), layout="constrained")
        ours = [each for each in plotted if each.source == "ours"]
        known = {_identity(each) for each in ours}
        entries = []
        for each in plotted:
            if each.source != "ours":
                hidden = _identity(each) in known or each.source == "release"
                entries.append((each.curve.mean[-1], _draw_faint(axes, each), hidden, each))
        for each in ours:
            entries.append((each.curve.mean[-1], _draw_ours(axes, each), False, each))
        for number, (accuracy, label) in enumerate(lines):
            dashes = (7, 2, *(1, 2) * (number + 1))
            rule = axes.axhline(accuracy, color="0.35", linewidth=1.1, linestyle=(0, dashes), zorder=1)
            entries.append((accuracy, rule, False, label))
        axes.set_title(title, loc="left")  # centred, a long one would begin outside the figure
        axes.set(xlabel="labelled images, % of the undistorted pool", ylabel="test accuracy, %")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_minor_locator(AutoMinorLocator(2))
        shares = sorted({float(share) for each in plotted for share in each.curve.shares})
        if 1 < len(shares) <= 10:
            axes.set_xticks(shares, [f"{share:.2f}".rstrip("0").rstrip(".") for share in shares])
        handles, labels = [], []
        for _, handle, hidden, each in sorted(entries, key=lambda e: -e[0]):  # in the order of the curves' right ends
            if not hidden:
                handles.append(handle)
                labels.append(each if isinstance(each, str) else _legend_label(each, bool(ours)))
        if known & {_identity(each) for each in plotted if each.source == "paper"}:
            handles.append(Line2D([], [], color="0.5", linewidth=1, linestyle=(0, (4, 1.5)), alpha=0.8))
            labels.append("faint: the paper's")
        if any(each.source == "release" for each in plotted):
            handles.append(Line2D([], [], color="0.3", linewidth=1.2, linestyle=(0, DOTS)))
            labels.append("dotted: its release's, run here")
        figure.legend(handles, labels, loc="outside right center", frameon=False, handlelength=2.8, labelspacing=0.7)
        _save(figure, path)


FONT = {"font.size": 9.5, "axes.titlesize": 10.5, "legend.fontsize": 9, "mathtext.fontset": "cm", "pdf.fonttype": 42}


DOTS = (1, 1.4)


def _identity(each: PlottedCurve) -> tuple:
    """What a curve of ours and one of the paper have in common."""
    return each.trial.method, each.trial.length, each.trial.ensemble, each.trial.init


def _legend_label(each: PlottedCurve, mixed: bool) -> str:
    if each.source == "paper":
        return f"{notation(each.trial)} (paper)" if mixed else notation(each.trial)
    runs = int(each.curve.runs.max())
    return f"{notation(each.trial)} ({runs} run{'s' if runs > 1 else ''})"


def _draw_ours(axes: Axes, each: PlottedCurve) -> Line2D:
    curve = each.curve
    bars = None if np.isnan(curve.std).all() else curve.std
    look = {"markeredgewidth": 1, "linewidth": 1.4, "capsize": 2.2, "elinewidth": 0.8, **_style(each)}
    look["markersize"] = 8 if look["marker"] in THIN or isinstance(look["marker"], tuple) else 5.5
    return axes.errorbar(curve.shares, curve.mean, yerr=bars, **look, zorder=3)


def _draw_faint(axes: Axes, each: PlottedCurve) -> Line2D:
    """A curve of the paper, or of its release, dotted and without markers."""
    style, points = _style(each), (each.curve.shares, each.curve.mean)
    if each.source == "release":
        look = {"color": style["color"], "dashes": DOTS, "linewidth": 1.3, "alpha": 0.8}
    else:
        dashes = tuple(part * 0.6 for part in style["dashes"]) or (5, 1.5)  # never solid
        look = {**style, "dashes": dashes, "linewidth": 1, "alpha": 0.45, "markersize": 3.2, "markeredgewidth": 0.7}
    (drawn,) = axes.plot(*points, **look, zorder=2)
    return drawn


def _style(each: PlottedCurve) -> dict[str, object]:
    """Colour and marker of the method, dashes by L or E, an open marker where the initial model is random.

    Where the validation images are trained on, the dashes are the longer the more there are.
    """
    colour, marker = STYLES.get(each.trial.method, ("#000000", "."))
    trial = each.trial
    plain = trial.method in MEASURES and trial.ensemble == 1
    hollow = trial.init == "random" or trial.other_copies or trial.adds_validation
    dashes = (4, 2) if plain else DASHES.get(trial.length, ())
    if trial.adds_validation and trial.validation_size:
        dashes = (max(1, 2 * math.log10(trial.validation_size) - 3), 1.5)
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": "white" if hollow else colour,
        "dashes": dashes,
    }


def _save(figure: Figure, path: Path) -> None:
    """PNG and PDF under `path`'s stem. Raises UserError where they cannot be written."""
    try:
        for suffix in (".png", ".pdf"):
            save(figure, path.with_name(path.name + suffix), dpi=200)
    except UserError as problem:
        raise UserError(f"{problem}; choose another --out") from None
    finally:
        plt.close(figure)


@dataclasses.dataclass(frozen=True)
class Row:
    """The query of one AL iteration: its first images (k, C, H, W) in [0, 1] and the labels of all its images (n,), -1
    if they are not known.

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
        """The class of image i, at most LONGEST characters of its name; empty if it is not known."""
        if self.labels[i] < 0:
            return ""
        return shortened(self.classes[self.labels[i]], LONGEST) if self.classes else str(self.labels[i])


LONGEST = 12  # characters of a class name on an image


def shortened(name: str, most: int) -> str:
    """At most so many characters of a name, its end cut off."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


@dataclasses.dataclass(frozen=True)
class SizeCurve:
    """Accuracy against the size of the validation set, at one number of labels; method "validation": trained on the
    validation set alone. Arrays (n,): sizes, mean, std over runs (NaN for one run).
    """

    trial: Trial
    sizes: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    runs: int


def plot_sizes(path: Path, title: str, panels: Mapping[str, Sequence[SizeCurve]]) -> None:
    """Accuracy against the size of the validation set, one panel for each number of labels, by its name."""
    with plt.rc_context(FONT):
        size = 2.4 + 3.1 * len(panels), 3.6
        figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
        handles: dict[str, object] = {}
        for axes, (labels, curves) in zip(grid[0], panels.items(), strict=True):
            for curve in curves:
                name = SIZE_NAMES.get(curve.trial.method) or notation(curve.trial)
                label = f"{name} ({curve.runs} run{'s' if curve.runs > 1 else ''})"
                look = SIZE_LOOKS.get(curve.trial.method) or _style(PlottedCurve(None, curve.trial))
                bars = None if np.isnan(curve.std).all() else curve.std
                if len(curve.sizes) == 1 and not curve.sizes[0]:  # a method that does not use the validation set
                    handles[label] = axes.axhline(curve.mean[0], color=look["color"], linewidth=1.4)
                    continue
                look = {**look, "markersize": 5.5, "linewidth": 1.4, "capsize": 2.2, "elinewidth": 0.8}
                handles[label] = axes.errorbar(curve.sizes, curve.mean, yerr=bars, **look)
            axes.set(title=labels, xlabel="validation images, V", xscale="log")
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        sizes = sorted({int(s) for curves in panels.values() for curve in curves for s in curve.sizes if s})
        for axes in grid[0]:
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
            axes.set_xticks([], minor=True)
        grid[0, 0].set_ylabel("test accuracy, %")
        figure.suptitle(title, fontsize=10.5)
        figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
        _save(figure, path)


SIZE_NAMES = {"validation": "trained on these images alone"}
SIZE_LOOKS = {"validation": {"color": "0.35", "marker": ".", "linestyle": (0, (7, 2, 1, 2))}}


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
            for i in (i for i in range(len(row.images)) if row.label(i)):
                _mark(axes, row.label(i), i % width, top + i // width, framed=row.labels[i] in (row.minority or ()))
            top += count
        _save(figure, path)


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


@dataclasses.dataclass(frozen=True)
class Panel:
    """One model's test predictions and map: name, text below it, truth (N,), predictions (N,), map (N, 2)."""

    name: str
    text: str
    labels: np.ndarray
    predictions: np.ndarray
    map: np.ndarray


def plot_confusion_and_maps(path: Path, title: str, panels: Sequence[Panel], classes: int) -> None:
    """Confusion matrices above (percent of each true class), t-SNE maps below (misclassified images as larger dots)."""
    with plt.rc_context(FONT):
        size = 4.1 * len(panels), 8.4
        figure, grid = plt.subplots(2, len(panels), figsize=size, layout="constrained", squeeze=False)
        for letter, (above, below), panel in zip("abcdefgh", grid.T, panels, strict=False):
            _confusion(above, panel, classes)
            above.set_title(f"({letter}) {panel.name}\n{panel.text}")
            _map(below, panel, classes)
        ball = {"marker": "o", "linestyle": ""}
        handles = [Line2D([], [], **ball, color=CLASS_COLOURS(c), label=str(c)) for c in range(classes)]
        for label, markersize in (("right", 2), ("wrong", 7)):
            handles.append(Line2D([], [], **ball, color="0.4", markersize=markersize, label=label))
        legend = {"loc": "outside lower center", "ncols": len(handles), "frameon": False, "handletextpad": 0.1}
        figure.legend(handles=handles, columnspacing=1.2, **legend)
        figure.suptitle(title, fontsize=11)
        _save(figure, path)


CLASS_COLOURS = plt.get_cmap("tab10")


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) percent: row the true class, column the predicted one, each row summing to 100 (0 without an image)."""
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _confusion(axes: Axes, panel: Panel, classes: int) -> None:
    shares = confusion(panel.labels, panel.predictions, classes)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.ndindex(classes, classes):
        if shares[i, j] >= 0.5:
            colour = "white" if shares[i, j] > 55 else "black"
            axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xticks=range(classes), yticks=range(classes), xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)


def _map(axes: Axes, panel: Panel, classes: int) -> None:
    right = panel.labels == panel.predictions
    colours = np.array([CLASS_COLOURS(c) for c in range(classes)])[panel.labels]
    dot = 9 if len(right) < 1000 else 1.5  # square points
    axes.scatter(*panel.map[right].T, s=dot, c=colours[right], linewidths=0, rasterized=True)
    balls = {"s": 26, "alpha": 0.75, "edgecolors": "black", "linewidths": 0.35, "rasterized": True}
    axes.scatter(*panel.map[~right].T, c=colours[~right], **balls)
    low, high = panel.map.min(0), panel.map.max(0)
    middle, reach = (low + high) / 2, 0.53 * (high - low).max()
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    axes.set(xticks=[], yticks=[], aspect="equal")
