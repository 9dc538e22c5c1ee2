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
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from alfk.method.matching import Rows, load_rows
from alfk.rivals.gradients import row_slices, squared_norms

COMPUTED = 32  # rows whose gains are computed at a time, always as many: then equal rows have equal gains
LOWERED = 1024  # rows whose bounds are lowered at a time; affects speed only
BLOCK = 2**20  # similarities that are computed at a time, which fit in a processor's cache; affects speed only
RANK = 63  # directions of the space of `shortened` features; affects speed only


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
    """The similarities s (N, Q) of pool images and queries, computed on demand, on the queries' device."""

    def __init__(self, pool: Factors, queries: Factors):
        self.pool, self.queries, self.device = pool, queries, queries.features.device
        self.scales = pool.scales().div_(2).to(self.device)
        self.right = scaled(queries, queries.scales())

    def __call__(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of the rows (r,) of s: which columns, and their similarities (r, q) float32."""
        part, one = self.pool.at(rows, self.device), torch.ones((), dtype=torch.float32, device=self.device)
        left = scaled(part, self.scales[rows])
        width = max(1, BLOCK // len(rows))
        for start in range(0, len(self.queries), width):
            columns = slice(start, start + width)
            cosine = left @ self.right[columns].T
            if part.gradients is not None:
                cosine.mul_(torch.addmm(one, part.features, self.queries.features[columns].T))
            yield columns, cosine.add_(0.5)

    def sums(self, weights: Tensor) -> Tensor:
        """sum_i w_i s_ij of every pool image: (N,) float64 with an error of about 1e-6 sum w.

        Computed from the weighted sum of the queries' vectors, without s.
        """
        total, of_outer = weights @ self.right, None
        if self.pool.gradients is not None:
            of_outer = (self.right * weights[:, None]).T @ self.queries.features
        found = torch.empty(len(self.pool), dtype=torch.float64, device=self.device)
        for rows in row_slices(*self.pool.features.shape):
            part = self.pool.at(rows, self.device)
            left = scaled(part, self.scales[rows])
            found[rows] = left @ total
            if of_outer is not None:
                found[rows] += (left @ of_outer).mul_(part.features).sum(1)
        return found.add_(float(weights.sum(dtype=torch.float64)) / 2)


def shortened(kernel: Kernel) -> Kernel:
    """A kernel of features of RANK + 1 values, whose similarities are at least those of `kernel`, often little larger.

    With x = z / |z|, P the projection on the RANK main directions of the queries, and r^2 = 1 - |P x|^2, the features
    [P x, r] of two images have the inner product <P x, P x'> + r r', which is at least <x, x'> (Cauchy and Schwarz).
    """
    x = kernel.right
    gram = (x.T @ x).double()  # of few queries it has many eigenvalues of 0, with which float32 may not converge
    directions = torch.linalg.eigh(gram).eigenvectors[:, -RANK:].float()

    def short(factors: Factors) -> Factors:
        found = torch.empty(len(factors), RANK + 1, device=kernel.device)
        scales = factors.scales().to(kernel.device)
        for rows in row_slices(*factors.features.shape):
            projected = scaled(factors.at(rows, kernel.device), scales[rows]) @ directions
            rest = (1 - projected.square().sum(1)).clamp_(min=0) + 1e-5  # more than rounding
            found[rows] = torch.cat([projected, rest.sqrt()[:, None]], dim=1)
        return Factors(found)

    return Kernel(short(kernel.pool), short(kernel.queries))


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
    kernel = coarse = Kernel(pool, queries)
    weights = torch.ones(len(queries)) if weights is None else weights
    weights = weights.to(kernel.device, torch.float32)
    bounds = kernel.sums(weights)
    if not bounds.isfinite().all():
        raise ValueError("features or gradients are not finite")
    bounds += 1e-5 * float(weights.sum())  # rounding
    if queries.gradients is None and queries.features.shape[1] > 2 * RANK:
        coarse = shortened(kernel)
    return lazy_greedy(kernel, coarse, bounds, weights, available.to(kernel.device), n, eta, renew)


# rows (r,) of s -> blocks of columns, and their similarities (r, q), which may be overwritten
Similarities = Callable[[Tensor], Iterable[tuple[slice, Tensor]]]


def lazy_greedy(
    kernel: Similarities,
    coarse: Similarities,
    bounds: Tensor,
    weights: Tensor,
    available: Tensor,
    n: int,
    eta: float,
    renew: float | None,
) -> Cover:
    """`facility_location` with a kernel. Exact.

    The coverage of an image only falls in a round, so that its value at an earlier step is an upper bound. In each step
    the images with the largest bounds have these lowered by the coarse kernel, and where that does not suffice their
    gains computed, until no other image can have a gain as large as the largest known one.

    Args:
        kernel: s, from 0 to 1.
        coarse: upper bounds of s, up to rounding, which may be faster to compute; or the kernel itself.
        bounds: (N,) float64, upper bounds of the coverage while best is 0.
        weights: (Q,) float32.
        available: (N,) bool.
    """
    greedy = _Greedy(kernel, coarse, bounds, weights, available, eta)
    while len(greedy.chosen) < n:
        row, gain = greedy.largest_gain()
        if renew is not None and not greedy.reaches(renew, row):
            greedy.begin_round()
            row, gain = greedy.largest_gain()
        greedy.choose(row, gain)
    return greedy.cover()


class _Greedy:
    """The state of the greedy search.

    Attributes:
        best: (Q,) float32.
        coverage: (N,) float64, upper bounds of the coverage; -inf for images that may not be taken.
        relevance: (N,) float64, upper bounds of eta max_i s_ij.
        chosen, gains, gained_for, similarity, nearest: see `Cover`.
        to_nearest: (Q,) float32, the similarity of each query to the nearest chosen image.
    """

    def __init__(
        self, kernel: Similarities, coarse: Similarities, bounds: Tensor, weights: Tensor, available: Tensor, eta: float
    ):
        self.kernel, self.coarse, self.bounds, self.eta = kernel, coarse, bounds, eta
        self.weights, self.available = weights, available.clone()
        self.rounding = 1e-6 * float(weights.sum())
        self.relevance = torch.full_like(bounds, eta)
        self.chosen, self.gains, self.gained_for, self.similarity = [], [], [], []
        self.nearest, self.to_nearest = torch.zeros_like(weights, dtype=torch.int64), -torch.ones_like(weights)
        self.begin_round()

    def begin_round(self) -> None:
        self.best = torch.zeros_like(self.weights)
        self.coverage = self.bounds.masked_fill(~self.available, -torch.inf)

    def largest_gain(self) -> tuple[int, float]:
        """The image with the largest gain, the lowest of equal ones, and its gain."""
        row, gain = len(self.coverage), None
        candidates = _Candidates(self, self.relevance)
        while len(rows := candidates.compute(gain)):
            gains = self.coverage[rows] + self.relevance[rows]
            largest = float(gains.max())
            if gain is None or largest >= gain:
                lowest = int(rows[gains == largest].min())
                row = min(row, lowest) if largest == gain else lowest
                gain = largest
        return row, gain

    def reaches(self, coverage: float, row: int) -> bool:
        """Whether an image has this coverage: `row`, whose coverage is known, or another one."""
        found, candidates = self.coverage[row], _Candidates(self, torch.zeros_like(self.relevance))
        while found < coverage and len(rows := candidates.compute(coverage)):
            found = self.coverage[rows].max()
        return bool(found >= coverage)

    def lower_bounds(self, rows: Tensor) -> None:
        """Lower the bounds of images (r,) by the coarse kernel."""
        coverage, similarity = self._evaluate(self.coarse(rows), len(rows), torch.float32)
        self.coverage[rows] = self.coverage[rows].minimum(coverage + self.rounding)
        self.relevance[rows] = self.relevance[rows].minimum(self.eta * (similarity + 1e-6))

    def compute(self, rows: Tensor) -> None:
        """Compute coverage and relevance of images (r,), at most COMPUTED."""
        coverage, similarity = self._evaluate(self.kernel(_padded(rows)), COMPUTED, torch.float64)
        self.coverage[rows], self.relevance[rows] = coverage[: len(rows)], self.eta * similarity[: len(rows)]

    def _evaluate(
        self, blocks: Iterable[tuple[slice, Tensor]], count: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """sum_i w_i max(0, s_ij - best_i), summed in `dtype` in each block, and max_i s_ij: (count,) float64."""
        coverage, similarity = self.bounds.new_zeros(count), self.weights.new_zeros(count)
        for columns, s in blocks:
            similarity = similarity.maximum(s.amax(1))
            coverage += s.sub_(self.best[columns]).relu_().mul_(self.weights[columns]).sum(1, dtype=dtype)
        return coverage, similarity.double()

    def choose(self, row: int, gain: float) -> None:
        """Add an image to the chosen ones."""
        rows = _padded(torch.tensor([row], device=self.best.device))
        s = torch.cat([similarities[0] for _, similarities in self.kernel(rows)])
        part = (s - self.best).relu_().mul_(self.weights)
        query = part.argmax() if part.max() > 0 else s.argmax()
        self.nearest[s > self.to_nearest] = len(self.chosen)
        self.to_nearest = self.to_nearest.maximum(s)
        self.chosen.append(row)
        self.gains.append(gain)
        self.gained_for.append(int(query))
        self.similarity.append(float(s[query]))
        self.best = self.best.maximum(s)
        self.available[row], self.coverage[row] = False, -torch.inf

    def cover(self) -> Cover:
        return Cover(
            torch.tensor(self.chosen),
            torch.tensor(self.gains, dtype=torch.float64),
            torch.tensor(self.gained_for),
            torch.tensor(self.similarity),
            self.nearest.cpu(),
        )


def _padded(rows: Tensor) -> Tensor:
    """The rows (r,) and the first again, COMPUTED in all."""
    return torch.cat([rows, rows[:1].expand(COMPUTED - len(rows))])


class _Candidates:
    """Images by descending bounds in one step of the greedy search.

    Args:
        relevance: (N,), what is added to the coverage.
    """

    def __init__(self, greedy: _Greedy, relevance: Tensor):
        self.greedy, self.relevance = greedy, relevance
        self.rows = greedy.available.nonzero().flatten()
        self.bounds = (greedy.coverage + relevance)[self.rows]
        self.lowered = torch.zeros_like(self.rows, dtype=torch.bool)

    def compute(self, limit: float | None) -> Tensor:
        """Compute coverage and relevance of the images with the largest bounds, if these are at least `limit`.

        Returns:
            (r,) int64, at most COMPUTED; empty if all bounds are below `limit`. An image is returned once.
        """
        while limit is not None:
            self._keep(self.bounds >= limit)
            first = self.bounds.topk(min(LOWERED, len(self.rows))).indices
            stale = first[~self.lowered[first]]
            if not len(stale):
                break
            rows = self.rows[stale]
            self.greedy.lower_bounds(rows)
            self.bounds[stale] = self.greedy.coverage[rows] + self.relevance[rows]
            self.lowered[stale] = True
        first = self.bounds.topk(min(COMPUTED, len(self.rows))).indices
        rows = self.rows[first]
        if len(rows):
            self.greedy.compute(rows)
            self._keep(torch.ones_like(self.lowered).index_fill_(0, first, False))
        return rows

    def _keep(self, kept: Tensor) -> None:
        self.bounds, self.rows, self.lowered = self.bounds[kept], self.rows[kept], self.lowered[kept]
