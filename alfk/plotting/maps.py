"""Drawing confusion matrices and t-SNE maps of test images, as PNG and PDF."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from alfk.plotting.plots import FONT, save_png_and_pdf

CLASS_COLOURS = plt.get_cmap("tab10")


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
        save_png_and_pdf(figure, path)


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
