"""What drawings of curves share: plain axes, and labels beside the curves' right ends."""

from collections.abc import Sequence

from matplotlib.axes import Axes


def tidy(axes: Axes) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write labels beside the right ends (height, x, label, colour) of curves, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)  # height of a label
    heights = [end[0] for end in sorted(ends)]
    for _ in range(100):
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i], heights[i + 1] = heights[i] - overlap / 2, heights[i + 1] + overlap / 2
    for height, (end, x, label, colour) in zip(heights, sorted(ends), strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2}
        place = {"xytext": (1.03, axes.transLimits.transform((0, height))[1]), "textcoords": "axes fraction"}
        axes.annotate(label, (x, end), **place, color=colour, va="center", arrowprops=line, annotation_clip=False)
