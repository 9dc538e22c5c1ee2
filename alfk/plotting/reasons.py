"""Pictures of a query: every chosen image beside the misclassified validation image that it matches."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from alfk.data.split import Split
from alfk.own.queries import Query
from alfk.plotting.saving import save
from alfk.plotting.text import shortened
from alfk.support.errors import UserError

PER_LINE = 4  # pairs beside each other
SIDE, GAP, CAPTION, HEADING = 0.95, 0.12, 0.42, 0.3  # inches: side of an image, gaps, height of captions and headings
LONGEST = 11  # characters of a class name in a caption, which is as wide as an image
DPI = 160  # pixels per inch of the files
CHOSEN, ERROR = "#D55E00", "#555555"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A chosen image (C, H, W) in [0, 1] and the validation image that it matches, if any, with their captions."""

    chosen: np.ndarray
    error: np.ndarray | None
    caption: str
    error_caption: str = ""


@dataclasses.dataclass(frozen=True)
class Block:
    """Pairs under a heading, which may be empty."""

    heading: str
    pairs: Sequence[Pair]


def matches(
    query: Query,
    pool: Split,
    validation: Split | None,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    most: int = 24,
) -> Figure:
    """Draw the images of a query, each beside the validation image that it matches, with labels and similarity.

    Methods that do not match have their images drawn alone, with the score.

    Args:
        pool, validation: the splits of the query; images (N, C, H, W), C 1 or 3. validation may be None for methods
            that do not match.
        path: .png, .pdf or .svg file to write; None writes nothing.
        most: number of images drawn, in the order they were chosen.
    Returns:
        the figure, which is not registered with `matplotlib.pyplot`.
    Raises:
        UserError: the splits do not hold pictures, `most` is not positive, or the file cannot be written.
    """
    if most < 1:
        raise UserError(f"most is {most}: draw at least one image")
    shown = min(most, len(query))
    heading = title or f"{query.method}: {len(query)} images to label"
    heading += f", the first {shown}" if shown < len(query) else ""
    figure = draw(heading, [Block("", pairs(query, pool, validation, shown))])
    if path is not None:
        save(figure, Path(path), DPI)
    return figure


def pairs(query: Query, pool: Split, validation: Split | None, count: int) -> list[Pair]:
    """The first `count` images of a query with their captions. Raises UserError."""
    if validation is None and query.matches is not None:
        raise UserError("the query matches images of the validation set: give the validation set too")
    chosen = pictures(pool, query.indices[:count])
    others = [None] * count if query.matches is None else pictures(validation, query.matches[:count])
    rows = query.rows()[:count]
    return [
        Pair(chosen[i], others[i], _caption(i + 1, row), "" if others[i] is None else _error_caption(row))
        for i, row in enumerate(rows)
    ]


def _caption(number: int, row: dict[str, object]) -> str:
    guess = row.get("pseudo_label", row.get("prediction"))
    lines = [f"{number}. {shortened(str(guess), LONGEST)}?" if guess is not None else f"{number}."]
    if "similarity" in row:
        lines.append(f"similarity {row['similarity']:.2f}")
    if "stands_for" in row:
        lines.append(_stands_for(row))
    elif "score" in row:
        lines.append(f"score {row['score']:.3g}")
    return "\n".join(lines)


def _stands_for(row: dict[str, object]) -> str:
    """What an image stands for, in a line below both images."""
    if not row["stands_for"]:
        return "stands for no error of its own"
    kind = [shortened(str(row[f"stands_for_{key}"]), LONGEST) for key in ("label", "prediction")]
    return f"for {row['stands_for']:,} errors, mostly {' as '.join(kind)}"


def _error_caption(row: dict[str, object]) -> str:
    truth, prediction = (shortened(str(row[key]), LONGEST) for key in ("error_label", "error_prediction"))
    return f"error: {truth},\ntaken for {prediction}"


def pictures(split: Split, positions: Tensor) -> np.ndarray:
    """(k, C, H, W) in [0, 1]. Raises UserError for features, or images with other than 1 or 3 channels."""
    if split.store.ndim != 4:
        raise UserError("features have no picture: query.rows() and query.to_csv(path) state the reasons in words")
    images = next(split.subset(positions).batches(len(positions)))[0].cpu()
    if images.shape[1] not in (1, 3):
        raise UserError(f"images of {images.shape[1]} channels cannot be drawn; 1 and 3 can")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (split.mean, split.std))
    return in_unit_range(images * std + mean)


def in_unit_range(images: Tensor) -> np.ndarray:
    """Images (k, C, H, W); if their values leave [0, 1], as normalised ones do, each is stretched to it."""
    if images.min() < -0.01 or images.max() > 1.01:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp(min=1e-6)
    return images.clamp(0, 1).numpy()


def draw(title: str, blocks: Sequence[Block]) -> Figure:
    """A figure of pairs, PER_LINE in a line; a chosen image has an orange frame, a validation image a grey one."""
    alone = all(pair.error is None for block in blocks for pair in block.pairs)
    breadth = (1 if alone else 2) * SIDE + GAP / 2 + 2 * GAP  # of a pair, with the gap after it
    per_line = PER_LINE * 2 if alone else PER_LINE
    heights = [math.ceil(len(block.pairs) / per_line) * (SIDE + CAPTION) for block in blocks]
    height = HEADING + GAP + sum(heights) + sum(HEADING for block in blocks if block.heading)
    width = per_line * breadth + GAP
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(GAP, GAP, title, va="top", fontsize=10.5, parse_math=False)
    top = HEADING + GAP
    for block, block_height in zip(blocks, heights, strict=True):
        if block.heading:
            axes.text(GAP, top + HEADING - 0.07, block.heading, va="bottom", fontsize=8.5, parse_math=False)
            top += HEADING
        for i, pair in enumerate(block.pairs):
            line, column = divmod(i, per_line)
            left = GAP + column * breadth
            _picture(axes, pair.chosen, left, top + line * (SIDE + CAPTION), pair.caption, CHOSEN)
            if pair.error is not None:
                place = left + SIDE + GAP / 2, top + line * (SIDE + CAPTION)
                _picture(axes, pair.error, *place, pair.error_caption, ERROR)
        top += block_height
    return figure


def _picture(axes: Axes, image: np.ndarray, left: float, top: float, caption: str, colour: str) -> None:
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    extent = (left, left + SIDE, top + SIDE, top)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="auto")
    axes.add_patch(Rectangle((left, top), SIDE, SIDE, fill=False, color=colour, linewidth=1.6))
    axes.text(left, top + SIDE + 0.05, caption, fontsize=6, va="top", color=colour, clip_on=False, parse_math=False)
