"""Facility location: pool images that are similar to a set of query images and cover it, chosen greedily.

With s_ij in [0, 1] the similarity of pool image j and query image i, w_i > 0 the weight of query image i, and S the
images chosen so far, each next image is the one of the largest gain:

    gain(j) = coverage(j) + eta max_i s_ij,    coverage(j) = sum_i w_i max(0, s_ij - best_i)
    best_i  = max_{j in S} s_ij, 0 in the beginning

which is greedy maximisation of f(S) = sum_i w_i max_{j in S} s_ij + eta sum_{j in S} max_i s_ij, FLQMI in SIMILAR
(`alfk.rivals.flqmi`). Once few query images are covered, what remains to be gained is near copies of them. In *rounds*
they are covered again: best is set to 0 whenever no image has a coverage of `renew`.

s = (1 + cos) / 2, cos the cosine of two feature vectors, such as descriptors, or of two gradients of the cross-entropy
by weights and bias of the last layer, a [1; z]', which is the product of the cosines of a and of [1; z].
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from alfk.method.matching import Rows, budget, load_rows, smallest
from alfk.rivals.gradients import row_slices, squared_norms

SHORTLIST = 1024  # rows of the kernel in memory; affects speed only
RENEWED = 32  # rows of the shortlist whose gains are updated at a time; affects speed only
BLOCK = 2**20  # entries that are computed at a time, which fit in a processor's cache


@dataclasses.dataclass(frozen=True)
class Factors:
    """What the similarities of images are computed from.

    Attributes:
        features: (N, D), in memory or mapped from a file.
        gradients: (N, C) a = p - e_y, y the predicted class of pool images and the label of query images; None for the
            cosine of the features alone.
    """

    features: Rows
    gradients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def at(self, rows: Tensor | slice, device: torch.device) -> "Factors":
        """Some rows, on a device."""
        gradients = None if self.gradients is None else self.gradients[rows].to(device)
        return Factors(load_rows(self.features, rows, device), gradients)

    def scales(self) -> Tensor:
        """1 / |z|, or 1 / (|a| |[1; z]|): (N,) float64; 0 for a row of zeros, whose cosines are then 0."""
        norms = squared_norms(self.features)
        if self.gradients is not None:
            norms = (1 + norms) * squared_norms(self.gradients)
        return norms.rsqrt().masked_fill_(norms == 0, 0)


class Kernel:
    """The similarities s (N, Q) of pool images and queries, computed row by row on demand, on the queries' device."""

    def __init__(self, pool: Factors, queries: Factors):
        self.pool, self.queries, self.device = pool, queries, queries.features.device
        self.scales = pool.scales().div_(2).to(self.device)
        self.right = scaled(queries, queries.scales())

    def __call__(self, rows: Tensor) -> Tensor:
        """The rows (r,) of s: (r, Q) float32."""
        part, one = self.pool.at(rows, self.device), torch.ones((), dtype=torch.float32, device=self.device)
        left = scaled(part, self.scales[rows])
        found = torch.empty(len(rows), len(self.queries), dtype=torch.float32, device=self.device)
        width = max(1, BLOCK // len(rows))
        for start in range(0, len(self.queries), width):
            columns = slice(start, start + width)
            cosine = left @ self.right[columns].T
            if part.gradients is not None:
                cosine.mul_(torch.addmm(one, part.features, self.queries.features[columns].T))
            torch.add(cosine, 0.5, out=found[:, columns])
        return found

    def sums(self, weights: Tensor) -> Tensor:
        """sum_i w_i s_ij of every pool image: (N,) float64 with an error of about 1e-6 sum w.

        Computed from the sum of the queries' vectors, without s.
        """
        right = self.right * weights[:, None]
        total = right.sum(0)
        of_outer = None if self.pool.gradients is None else right.T @ self.queries.features
        found = torch.empty(len(self.pool), dtype=torch.float64, device=self.device)
        for rows in row_slices(*self.pool.features.shape):
            part = self.pool.at(rows, self.device)
            left = scaled(part, self.scales[rows])
            found[rows] = left @ total
            if of_outer is not None:
                found[rows] += (left @ of_outer).mul_(part.features).sum(1)
        return found.add_(float(weights.sum(dtype=torch.float64)) / 2)


def scaled(factors: Factors, scales: Tensor) -> Tensor:
    """The gradients, or the features if there are none, times `scales` (N,): float32."""
    vectors = factors.features if factors.gradients is None else factors.gradients
    return (vectors * scales[:, None]).float()


@dataclasses.dataclass(frozen=True)
class Cover:
    """The chosen images in the order of choice, and what each is chosen for. All tensors are on the CPU.

    Attributes:
        indices: (n,) int64, rows of the pool.
        gains: (n,) float64; they never rise within a round.
        gained_for: (n,) int64, the query for which its coverage is largest; the most similar one if it covers nothing.
        similarity: (n,) float32, s of the chosen image and that query.
        nearest: (Q,) int64, for each query the place in `indices` of the most similar chosen image.
    """

    indices: Tensor
    gains: Tensor
    gained_for: Tensor
    similarity: Tensor
    nearest: Tensor


def facility_location(
    pool: Factors,
    queries: Factors,
    available: Tensor,
    n: int,
    eta: float = 1.0,
    weights: Tensor | None = None,
    renew: float | None = None,
) -> Cover:
    """The n available pool images with the largest gains. Of equal ones the lowest is taken.

    Args:
        pool: N pool images.
        queries: Q validation images, at least one, on the device that computes similarities.
        available: (N,) bool.
        n: query size.
        eta: weight of the similarity to the nearest query, 0 or larger.
        weights: (Q,) of the queries, w; 1 if None.
        renew: a new round begins when no available image has this coverage; None for one round.
    Raises:
        ValueError: no query, fewer than n available images, or features or gradients that are not finite.
    """
    if not 1 <= n <= int(available.sum()):
        raise ValueError(f"cannot choose {n} of {int(available.sum())} available images")
    if not len(queries):
        raise ValueError("there is no query")
    kernel = Kernel(pool, queries)
    weights = torch.ones(len(queries)) if weights is None else weights
    weights = weights.to(kernel.device, torch.float32)
    bounds = kernel.sums(weights)
    if not bounds.isfinite().all():
        raise ValueError("features or gradients are not finite")
    bounds += 1e-5 * float(weights.sum())  # rounding
    bounds.masked_fill_(~available.to(kernel.device), -torch.inf)
    return lazy_greedy(kernel, bounds, weights, n, eta, renew)


def lazy_greedy(
    kernel: Callable[[Tensor], Tensor],
    bounds: Tensor,
    weights: Tensor,
    n: int,
    eta: float = 1.0,
    renew: float | None = None,
) -> Cover:
    """`facility_location` with a kernel. Exact.

    The coverage of an image only falls in a round, so that its value at an earlier step is an upper bound. Similarities
    are computed for the rows with the largest bounds. Rows are taken from these as long as the largest gain is above
    all other bounds.

    Args:
        kernel: rows (r,) -> their similarities (r, Q), from 0 to 1.
        bounds: (N,) float64, upper bounds of the coverage when best is 0; -inf for rows that may not be taken.
        weights: (Q,) float32.
    """
    greedy = _Greedy(kernel, bounds, weights, eta)
    while len(greedy.chosen) < n:
        greedy.take(n, renew)
    return greedy.cover()


class _Greedy:
    """The state of the greedy search.

    Attributes:
        coverage: (N,) float64, upper bounds of the coverage for the current `best`.
        relevance: (N,) float64, eta max_i s_ij, or an upper bound.
        fresh: whether the current round has not chosen anything.
    """

    def __init__(self, kernel: Callable[[Tensor], Tensor], bounds: Tensor, weights: Tensor, eta: float):
        self.kernel, self.weights, self.eta, self.first_bounds = kernel, weights, eta, bounds.clone()
        self.size = max(1, min(SHORTLIST, budget(bounds.device) // (4 * len(weights))))
        self.uniform = bool((weights == 1).all())
        self.coverage, self.relevance = bounds.clone(), torch.full_like(bounds, eta)
        self.chosen, self.gains, self.gained_for, self.similarity = [], [], [], []
        self.best, self.fresh = torch.zeros_like(weights), True
        self.largest, self.nearest = torch.full_like(weights, -1), torch.zeros_like(weights, dtype=torch.int64)

    def take(self, n: int, renew: float | None) -> None:
        """Choose from the rows with the largest bounds until another may have a larger gain, or a new round begins."""
        bounds = self.coverage + self.relevance
        rows = smallest(-bounds, self.size)
        similarity, upper = self.kernel(rows), bounds[rows]
        self.relevance[rows] = relevance = self.eta * similarity.amax(1).double()
        bounds[rows] = -torch.inf
        limit, other = bounds.max(0)
        renewed = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        while len(self.chosen) < n:
            place = upper.argmax()
            row = rows[place]
            if upper[place] < limit or (upper[place] == limit and row > other):
                break
            if not renewed[place]:
                some = smallest(-upper.masked_fill(renewed, -torch.inf), RENEWED)
                self._renew(rows[some], similarity[some])
                upper[some] = upper[some].minimum(self.coverage[rows[some]] + relevance[some])
                renewed[some] = True
            elif renew is not None and not self.fresh and not self._reaches(renew, row, rows, similarity):
                self.coverage = self.first_bounds.clone()
                self.best.zero_()
                self.fresh = True
                break
            else:
                self._choose(row, similarity[place], float(upper[place]))
                upper[place] = -torch.inf
                renewed[:] = False

    def _choose(self, row: Tensor, similarity: Tensor, gain: float) -> None:
        part = (similarity - self.best).relu_().mul_(self.weights)
        matched = part.argmax() if part.max() > 0 else similarity.argmax()
        nearer = similarity > self.largest
        self.nearest[nearer] = len(self.chosen)
        self.largest = self.largest.maximum(similarity)
        self.chosen.append(int(row))
        self.gains.append(gain)
        self.gained_for.append(int(matched))
        self.similarity.append(float(similarity[matched]))
        self.best = self.best.maximum(similarity)
        self.coverage[row] = self.first_bounds[row] = -torch.inf
        self.fresh = False

    def _renew(self, rows: Tensor, similarity: Tensor) -> None:
        """Compute the coverage of rows (r,) from their similarities (r, Q)."""
        gain = (similarity - self.best).relu_()
        if not self.uniform:
            gain.mul_(self.weights)
        self.coverage[rows] = self.coverage[rows].minimum(gain.sum(1, dtype=torch.float64))

    def _reaches(self, renew: float, row: Tensor, rows: Tensor, similarity: Tensor) -> bool:
        """Whether an available image has a coverage of `renew`: `row`, one of the shortlist, or any other."""
        if self.coverage[row] >= renew:
            return True
        self._renew(rows, similarity)
        if self.coverage[rows].max() >= renew:
            return True
        while self.coverage.max() >= renew:
            some = smallest(-self.coverage, self.size)
            self._renew(some, self.kernel(some))
            if self.coverage[some].max() >= renew:
                return True
        return False

    def cover(self) -> Cover:
        return Cover(
            torch.tensor(self.chosen),
            torch.tensor(self.gains, dtype=torch.float64),
            torch.tensor(self.gained_for),
            torch.tensor(self.similarity),
            self.nearest.cpu(),
        )
