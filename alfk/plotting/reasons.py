"""Pictures of a query for people: every chosen image beside the misclassified validation image that it matches."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from alfk.data.split import Split
from alfk.own.queries import Query
from alfk.plotting.saving import save
from alfk.plotting.sheets import CHOSEN, DPI, ERROR, Block, Pair, draw, draw_pages
from alfk.support.errors import UserError

WEAK = 95  # percentile below which a match is called weak
LEGEND = (
    (CHOSEN, "orange: label this one, under its number"),
    (ERROR, "grey: the clean image with a wrong prediction that it resembles; it needs no label"),
)


def matches(
    query: Query,
    pool: Split,
    validation: Split | None,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    most: int = 24,
    boxes: bool = False,
    labels: Mapping[int, str] | Sequence[str | None] | None = None,
) -> Figure:
    """Draw the images of a query for people who label them, each beside the validation image that it matches.

    Images are numbered from 1 in the order they were chosen. A match is called weak if it is more similar than fewer
    than WEAK percent of all pairs. Methods that do not match have their images drawn alone, with the score.

    Args:
        pool, validation: the splits of the query; images (N, C, H, W), C 1 or 3. validation may be None for methods
            that do not match.
        path: .png or .svg file to write, or .pdf, on pages of A4; None writes nothing.
        most: number of images drawn, in the order they were chosen.
        boxes: whether there is a box for the label under every chosen image, to print and write on.
        labels: what people said, shown in place of boxes and guesses: position in the pool -> label, or one for each
            image of the query, None where there is none yet.
    Returns:
        the figure, of a .pdf file its first page; it is not registered with `matplotlib.pyplot`.
    Raises:
        UserError: the splits do not hold pictures, `most` is not positive, the labels are fewer or more than the
            images, or the file cannot be written.
    """
    if most < 1:
        raise UserError(f"most is {most}: draw at least one image")
    shown = min(most, len(query))
    heading = title or f"{query.method}: {len(query)} images to label"
    heading += f", the first {shown}" if shown < len(query) else ""
    drawn = pairs(query, pool, validation, shown, boxes, labels)
    legend = LEGEND[: 1 if query.matches is None else 2]
    if path is not None and Path(path).suffix.lower() == ".pdf":
        figures = draw_pages(heading, drawn, legend)
        save(figures, Path(path), DPI)
        return figures[0]
    figure = draw(heading, [Block("", drawn)], legend)
    if path is not None:
        save(figure, Path(path), DPI)
    return figure


def pairs(
    query: Query,
    pool: Split,
    validation: Split | None,
    count: int,
    boxes: bool = False,
    labels: Mapping[int, str] | Sequence[str | None] | None = None,
) -> list[Pair]:
    """The first `count` images of a query with their captions; other arguments as in `matches`. Raises UserError."""
    if validation is None and query.matches is not None:
        raise UserError("the query matches images of the validation set: give the validation set too")
    given = _labels_of(query, labels)
    chosen = pictures(pool, query.indices[:count])
    others = [None] * count if query.matches is None else pictures(validation, query.matches[:count])
    found = []
    for i, row in enumerate(query.rows()[:count]):
        found.append(
            Pair(
                i + 1,
                chosen[i],
                others[i],
                label=f"labelled: {given[i]}" if given[i] else "",
                box=boxes and not given[i],
                caption="" if given[i] else _guess(row),
                error_caption="" if others[i] is None else _error(row),
                reason="\n".join(_reasons(row)),
            )
        )
    return found


def _labels_of(query: Query, labels: Mapping[int, str] | Sequence[str | None] | None) -> list[str | None]:
    """What people said of each image of a query. Raises UserError for other than one label for each."""
    if labels is None:
        return [None] * len(query)
    if isinstance(labels, Mapping):
        return [labels.get(i) for i in query.indices.tolist()]
    if len(labels) != len(query):
        raise UserError(
            f"there are {len(labels)} labels for {len(query)} images: give one for each, None if there is none"
        )
    return list(labels)


def _guess(row: dict[str, object]) -> str:
    """What the method takes an image for, if that says more than the class of the error that it matches."""
    guess = row.get("pseudo_label", row.get("prediction"))
    return "" if guess is None or guess == row.get("error_label") else f"guess: {guess}"


def _error(row: dict[str, object]) -> str:
    return f"class: {row['error_label']}\npredicted: {row['error_prediction']}"


def _reasons(row: dict[str, object]) -> list[str]:
    """Lines below both images: how similar they are, and what the chosen one stands for; or the score."""
    lines = [_similarity(row)] if "similarity" in row else []
    if "stands_for" in row:
        lines.append(_stands_for(row))
    elif "score" in row:
        lines.append(f"score {row['score']:.3g}")
    return lines


def _similarity(row: dict[str, object]) -> str:
    text, percentile = f"similarity {row['similarity']:.2f}", row.get("percentile")
    if percentile is None:
        return text
    if percentile < WEAK:
        return f"weak match: {text},\nmore similar than {int(percentile)} % of pairs"
    return f"{text}, top {max(1, math.ceil(100 - percentile))} % of pairs"


def _stands_for(row: dict[str, object]) -> str:
    count, truth, prediction = (row[f"stands_for{key}"] for key in ("", "_label", "_prediction"))
    if not count:
        return "stands for no error of its own"
    return (
        f"for {count:,} errors, mostly {truth} as {prediction}"
        if count > 1
        else f"for 1 error, {truth} as {prediction}"
    )


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
