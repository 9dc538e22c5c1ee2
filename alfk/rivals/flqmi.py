"""FLQMI, facility-location mutual information: pool images that are similar to a set of query images, and cover it.

With s_ij in [0, 1] the similarity of pool image j and query image i, images are added to S one by one, each time the
one that raises f(S) = sum_i max_{j in S} s_ij + eta sum_{j in S} max_i s_ij most:

    gain(j) = sum_i max(0, s_ij - best_i) + eta max_i s_ij,   best_i = max_{j in S} s_ij, 0 in the beginning

s = (1 + cos) / 2, and cos is that of the features z, or of the gradients of the cross-entropy by weights and bias of
the last layer, a [1; z]', which is the product of the cosines of a and of [1; z].

References: Kothawade, Beck, Killamsetty and Iyer, SIMILAR: submodular information measures based active learning in
realistic scenarios, NeurIPS 2021.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from alfk.method.matching import budget, draw, smallest
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.gradients import gradients, row_slices, squared_norms
from alfk.support.errors import UserError

SHORTLIST = 1024  # rows of the kernel in memory; affects speed only
RENEWED = 32  # rows of the shortlist whose gains are updated at a time; affects speed only
BLOCK = 2**20  # entries that are computed at a time, which fit in a processor's cache


@dataclasses.dataclass(frozen=True)
class Factors:
    """What the similarities of images are computed from.

    Attributes:
        features: (N, D) z.
        gradients: (N, C) a = p - e_y, y the predicted class of pool images and the label of query images; None for the
            cosine of the features alone.
    """

    features: Tensor
    gradients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> "Factors":
        return Factors(self.features[rows], None if self.gradients is None else self.gradients[rows])

    def scales(self) -> Tensor:
        """1 / |z|, or 1 / (|a| |[1; z]|): (N,) float64; 0 for a row of zeros, whose cosines are then 0."""
        norms = squared_norms(self.features)
        if self.gradients is not None:
            norms = (1 + norms) * squared_norms(self.gradients)
        return norms.rsqrt().masked_fill_(norms == 0, 0)


class Kernel:
    """The similarities s (N, Q) of pool images and queries, computed row by row on demand."""

    def __init__(self, pool: Factors, queries: Factors):
        self.pool, self.queries = pool, queries
        self.scales, self.right = pool.scales().div_(2), scaled(queries, queries.scales())

    def __call__(self, rows: Tensor) -> Tensor:
        """The rows (r,) of s: (r, Q) float32."""
        part, one = self.pool[rows], torch.ones((), dtype=torch.float32, device=rows.device)
        left = scaled(part, self.scales[rows])
        found = torch.empty(len(rows), len(self.queries), dtype=torch.float32, device=rows.device)
        width = max(1, BLOCK // len(rows))
        for start in range(0, len(self.queries), width):
            columns = slice(start, start + width)
            cosine = left @ self.right[columns].T
            if part.gradients is not None:
                cosine.mul_(torch.addmm(one, part.features, self.queries.features[columns].T))
            torch.add(cosine, 0.5, out=found[:, columns])
        return found

    def sums(self) -> Tensor:
        """sum_i s_ij of every pool image: (N,) float64 with an error of about 1e-6 Q.

        Computed from the sum of the queries' gradients, without s.
        """
        total, right = self.right.sum(0), self.right
        of_outer = None if self.pool.gradients is None else right.T @ self.queries.features
        found = torch.empty(len(self.pool), dtype=torch.float64, device=right.device)
        for rows in row_slices(*self.pool.features.shape):
            part = self.pool[rows]
            left = scaled(part, self.scales[rows])
            found[rows] = left @ total
            if of_outer is not None:
                found[rows] += (left @ of_outer).mul_(part.features).sum(1)
        return found.add_(len(self.queries) / 2)


def scaled(factors: Factors, scales: Tensor) -> Tensor:
    """The gradients, or the features if there are none, times `scales` (N,): float32."""
    vectors = factors.features if factors.gradients is None else factors.gradients
    return (vectors * scales[:, None]).float()


def flqmi(
    pool: Factors,
    queries: Factors,
    available: Tensor,
    n: int,
    eta: float = 1.0,
    max_queries: int | None = 10_000,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The n available pool images with the largest gains, in the order of choice. Of equal ones the lowest is taken.

    Args:
        pool: N pool images.
        queries: Q validation images, at least one.
        available: (N,) bool.
        n: query size.
        eta: weight of the similarity to the nearest query, 0 or larger.
        max_queries: if there are more queries, this many are drawn from `generator`; all are used if None.
    Returns:
        indices (n,) int64 and gains (n,) float64, which never rise, on the CPU.
    Raises:
        ValueError: no query, fewer than n available images, or features or gradients that are not finite.
    """
    device = pool.features.device
    available = available.to(device)
    if not 1 <= n <= int(available.sum()):
        raise ValueError(f"cannot choose {n} of {int(available.sum())} available images")
    if not len(queries):
        raise ValueError("there is no query")
    if max_queries is not None and len(queries) > max_queries:
        drawn = torch.randperm(len(queries), generator=generator)[:max_queries]
        queries = queries[drawn.sort().values.to(device)]
    kernel = Kernel(pool, queries)
    rounding = 1e-5 * len(queries)
    sums = kernel.sums()
    if not sums.isfinite().all():
        raise ValueError("features or gradients are not finite")
    bounds = sums.add_(eta + rounding).masked_fill_(~available, -torch.inf)  # no s_ij is above 1
    return lazy_greedy(kernel, bounds, len(queries), n, eta)


def lazy_greedy(
    kernel: Callable[[Tensor], Tensor], bounds: Tensor, queries: int, n: int, eta: float
) -> tuple[Tensor, Tensor]:
    """The n rows with the largest gains: indices (n,) int64 and gains (n,) float64, on the CPU.

    A gain only falls, so that its value at an earlier step is an upper bound. Similarities are computed for the rows
    with the largest bounds. Rows are taken from these as long as the largest gain is above all other bounds. Exact.

    Args:
        kernel: rows (r,) -> their similarities (r, Q), 0 or larger.
        bounds: (N,) float64, upper bounds of the gains at the first step; -inf for rows that may not be taken.
        queries: Q.
    """
    chosen, gains, bounds = [], [], bounds.clone()
    size = max(1, min(SHORTLIST, budget(bounds.device) // (4 * queries)))
    best = torch.zeros(queries, dtype=torch.float32, device=bounds.device)
    while len(chosen) < n:
        rows = smallest(-bounds, size)
        similarity, upper = kernel(rows), bounds[rows]
        relevance = eta * similarity.amax(1).double()
        bounds[rows] = -torch.inf
        limit, other = bounds.max(0)
        renewed = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        while len(chosen) < n:
            place = upper.argmax()
            if upper[place] < limit or (upper[place] == limit and rows[place] > other):
                break
            if renewed[place]:
                chosen.append(int(rows[place]))
                gains.append(float(upper[place]))
                best = torch.maximum(best, similarity[place])
                upper[place] = -torch.inf
                renewed[:] = False
            else:
                largest = smallest(-upper.masked_fill(renewed, -torch.inf), RENEWED)
                gain = (similarity[largest] - best).relu_().sum(1, dtype=torch.float64) + relevance[largest]
                upper[largest] = upper[largest].minimum(gain)
                renewed[largest] = True
        bounds[rows] = upper
    return torch.tensor(chosen), torch.tensor(gains, dtype=torch.float64)


def choose_flqmi(situation: Situation) -> Selection:
    """The images that `flqmi` chooses with the misclassified validation images as queries; score: the gain."""
    return _flqmi(situation, _misclassified(situation), by_gradients=True)


def choose_flqmi_by_features(situation: Situation) -> Selection:
    """The same with similarities of features alone."""
    return _flqmi(situation, _misclassified(situation), by_gradients=False)


def choose_flqmi_of_rare_classes(situation: Situation) -> Selection:
    """The same with all validation images of the rare classes as queries. Raises UserError if there are none."""
    labels = situation.validation_labels.cpu()
    if not situation.rare_classes:
        raise UserError("flqmi_rare has to know which classes are rare, and of this pool none is known to be")
    rare = torch.tensor(list(situation.rare_classes), dtype=labels.dtype)
    queried = torch.isin(labels, rare)
    if not queried.any():
        raise UserError("flqmi_rare chooses by validation images of the rare classes, and there is none")
    return _flqmi(situation, queried, by_gradients=True)


def _misclassified(situation: Situation) -> Tensor:
    """(V,) bool."""
    labels = situation.validation_labels
    predictions = situation.measurement.validation_outputs.logits.argmax(1)
    return (predictions.to(labels.device) != labels).cpu()


def _flqmi(situation: Situation, queried: Tensor, by_gradients: bool) -> Selection:
    pool, validation = situation.measurement.pool_outputs, situation.measurement.validation_outputs
    device = pool.features.device
    rows = queried.nonzero().flatten().to(device)
    if not len(rows):
        images = draw(situation.available, situation.n, situation.generator)
        return Selection(images, misclassified=int(_misclassified(situation).sum()), at_random=len(images))
    pool_a = validation_a = None
    if by_gradients:
        labels = situation.validation_labels.to(device)[rows]
        pool_a, validation_a = gradients(pool.logits), gradients(validation.logits[rows], labels)
    queries = Factors(validation.features[rows], validation_a)
    factors, generator = Factors(pool.features, pool_a), situation.generator
    chosen, gains = flqmi(factors, queries, situation.available, situation.n, generator=generator)
    return Selection(chosen, misclassified=int(_misclassified(situation).sum()), score=gains)


OUTPUTS = frozenset({"outputs", "validation_outputs"})

METHODS = (
    Method("flqmi", "FLQMI", choose_flqmi, OUTPUTS),
    Method("flqmi_z", "FLQMI, $z$", choose_flqmi_by_features, OUTPUTS),
    Method("flqmi_rare", "FLQMI, rare classes", choose_flqmi_of_rare_classes, OUTPUTS | {"rare_classes"}),
)
