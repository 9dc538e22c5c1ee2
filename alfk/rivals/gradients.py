"""The gradient of the cross-entropy by the logits, a = p - e_y, which BADGE and FLQMI use.

The gradient by the weights of the last layer is the outer product a z', with z the layer's input, and a [1; z]' by
weights and bias. It need not be formed, since <a z', b w'> = <a, b> <z, w>.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from alfk.method.matching import TILE, Rows, load_rows


def row_slices(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover `rows` rows in tiles of at most TILE entries (or one row) if a row takes `width`."""
    height = max(1, TILE // max(1, width))
    return (slice(start, min(rows, start + height)) for start in range(0, rows, height))


def gradients(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """a = softmax(l) - e_y of every row l.

    Args:
        logits: (N, C).
        labels: (N,) int64, y; the arg max of the logits if None, the first of equal ones.
    Returns:
        (N, C) float32; computed in float64, since p_y - 1 loses its digits where p_y is close to 1.
    """
    found = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    for rows in row_slices(*logits.shape):
        label = logits[rows].argmax(1) if labels is None else labels[rows].to(logits.device)
        p = logits[rows].double().softmax(1)
        p[torch.arange(len(p), device=p.device), label] -= 1
        found[rows] = p
    return found


def squared_norms(vectors: Rows) -> Tensor:
    """|x|^2 of the rows (N, D), in memory or mapped from a file: (N,) float64."""
    device = vectors.device if isinstance(vectors, Tensor) else torch.device("cpu")
    found = torch.empty(len(vectors), dtype=torch.float64, device=device)
    for rows in row_slices(*vectors.shape):
        found[rows] = load_rows(vectors, rows, device).double().square().sum(1)
    return found
