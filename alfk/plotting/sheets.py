"""The layout of sheets: images in pairs, with words below, in one picture or on pages to print.

Lengths are in inches, from the upper left corner.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alfk.plotting.fonts import choose_fonts, wrapped

A4 = 8.27, 11.69
WIDTH = 10.6  # of a picture, for four pairs beside each other; a page has three
SIDE, MARGIN = 1.13, 0.35  # of an image, of the sheet
CLOSE, GAP, SPACE = 0.05, 0.2, 0.11  # between image and words or the other image, between pairs, between lines
BOX = 0.28  # height of the box for a label
SIZE, HEADING, TITLE = 7.0, 8.5, 11.0  # of letters, in points
DPI = 160  # pixels per inch of the files
CHOSEN, ERROR = "#D55E00", "#555555"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A chosen image and the validation image that it matches.

    Attributes:
        number: of the chosen image, drawn in its corner.
        chosen: (C, H, W) in [0, 1].
        error: likewise; None for an image that matches none.
        label: what a person said, below the chosen image.
        box: whether there is a box to write into, below the chosen image.
        caption, error_caption: words below the two images.
        reason: words below both.
    """

    number: int
    chosen: np.ndarray
    error: np.ndarray | None = None
    label: str = ""
    box: bool = False
    caption: str = ""
    error_caption: str = ""
    reason: str = ""

    @property
    def width(self) -> float:
        return SIDE if self.error is None else 2 * SIDE + CLOSE

    @property
    def words_height(self) -> float:
        """Of what stands below one of the images."""
        left = BOX * self.box + _height(self.label, SIDE, weight="bold") + _height(self.caption, SIDE)
        return max(left, _height(self.error_caption, SIDE)) + CLOSE / 2

    @property
    def height(self) -> float:
        return SIDE + CLOSE + self.words_height + _height(self.reason, self.width) + SPACE


@dataclasses.dataclass(frozen=True)
class Block:
    """Pairs under a heading, which may be empty."""

    heading: str
    pairs: Sequence[Pair]


Legend = Sequence[tuple[str, str]]  # colours of frames, and their meanings
Line = str | Sequence[Pair]  # a heading, or pairs beside each other


def draw(title: str, blocks: Sequence[Block], legend: Legend = ()) -> Figure:
    """A figure of pairs; a chosen image has an orange frame, a validation image a grey one."""
    lines: list[Line] = []
    for block in blocks:
        lines += [block.heading] if block.heading else []
        lines += _lines(block.pairs, WIDTH)
    height = _head_height(title, legend, WIDTH) + sum(_line_height(line, WIDTH) for line in lines) + MARGIN
    return _sheet(title, legend, lines, (WIDTH, height))


def draw_pages(title: str, pairs: Sequence[Pair], legend: Legend = ()) -> list[Figure]:
    """The same on pages of A4, each with title, legend and number."""
    width, height = A4
    room = height - MARGIN - _head_height(f"{title}, page 99 of 99", legend, width)
    pages: list[list[Line]] = [[]]
    for line in _lines(pairs, width):
        if pages[-1] and sum(_line_height(each, width) for each in (*pages[-1], line)) > room:
            pages.append([])
        pages[-1].append(line)
    count = len(pages)
    titles = [title if count == 1 else f"{title}, page {i} of {count}" for i in range(1, count + 1)]
    return [_sheet(heading, legend, lines, A4) for heading, lines in zip(titles, pages, strict=True)]


def _lines(pairs: Sequence[Pair], width: float) -> list[Line]:
    """As many pairs beside each other as a sheet of this width has room for."""
    per_line = int((width - 2 * MARGIN + GAP) / (max(pair.width for pair in pairs) + GAP)) if pairs else 1
    return [pairs[i : i + per_line] for i in range(0, len(pairs), per_line)]


def _line_height(line: Line, width: float) -> float:
    if isinstance(line, str):
        return CLOSE + _height(line, width - 2 * MARGIN, HEADING)
    return max(pair.height for pair in line)


def _head_height(title: str, legend: Legend, width: float) -> float:
    inner = width - 2 * MARGIN
    words = sum(_height(text, inner - GAP, HEADING) for _, text in legend)
    return MARGIN + _height(title, inner, TITLE) + CLOSE + words + SPACE


def _sheet(title: str, legend: Legend, lines: Sequence[Line], size: tuple[float, float]) -> Figure:
    (width, height), figure = size, Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    top = MARGIN + _write(axes, title, MARGIN, MARGIN, width - 2 * MARGIN, size=TITLE) + CLOSE
    for colour, text in legend:
        axes.add_patch(Rectangle((MARGIN, top + 0.01), 0.1, 0.1, fill=False, edgecolor=colour, linewidth=2))
        top += _write(axes, text, MARGIN + GAP, top, width - 2 * MARGIN - GAP, size=HEADING)
    top += SPACE
    for line in lines:
        if isinstance(line, str):
            _write(axes, line, MARGIN, top, width - 2 * MARGIN, size=HEADING)
        else:
            for column, pair in enumerate(line):
                _draw_pair(axes, pair, MARGIN + column * (pair.width + GAP), top)
        top += _line_height(line, width)
    choose_fonts(figure)
    return figure


def _draw_pair(axes: Axes, pair: Pair, left: float, top: float) -> None:
    _picture(axes, pair.chosen, left, top, CHOSEN)
    number = {"facecolor": CHOSEN, "edgecolor": CHOSEN, "pad": 1.5}
    place = left + 0.035, top + 0.035
    axes.text(*place, f"{pair.number}", va="top", fontsize=8, weight="bold", color="white", bbox=number)
    below = top + SIDE + CLOSE
    if pair.error is not None:
        _picture(axes, pair.error, left + SIDE + CLOSE, top, ERROR)
        _write(axes, pair.error_caption, left + SIDE + CLOSE, below, SIDE, ERROR)
    _write(axes, pair.reason, left, below + pair.words_height, pair.width, ERROR)
    if pair.box:
        axes.add_patch(Rectangle((left, below), SIDE, BOX - CLOSE, facecolor="white", edgecolor="black", linewidth=0.8))
        below += BOX
    below += _write(axes, pair.label, left, below, SIDE, weight="bold")
    _write(axes, pair.caption, left, below, SIDE)


def _picture(axes: Axes, image: np.ndarray, left: float, top: float, colour: str) -> None:
    """An image that fills a square, or as much of it as its shape allows, and a frame."""
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    width, height = (SIDE * length / max(image.shape[1:]) for length in (image.shape[2], image.shape[1]))
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=2))


def _write(
    axes: Axes,
    text: str,
    left: float,
    top: float,
    width: float,
    colour: str = "black",
    size: float = SIZE,
    weight: str = "normal",
) -> float:
    """Write a text in lines of at most this width; returns its height."""
    for i, line in enumerate(wrapped(text, width, size, weight)):
        place = left, top + i * _leading(size) + size / 72
        axes.text(*place, line, va="baseline", fontsize=size, color=colour, weight=weight, parse_math=False)
    return _height(text, width, size, weight)


def _height(text: str, width: float, size: float = SIZE, weight: str = "normal") -> float:
    return len(wrapped(text, width, size, weight)) * _leading(size)


def _leading(size: float) -> float:
    """From one line of letters to the next."""
    return 1.25 * size / 72
