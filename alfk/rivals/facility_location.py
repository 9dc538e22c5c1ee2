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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alfk.method.matching import Rows, load_rows
from alfk.rivals.gradients import row_slices, squared_norms

GROUP, GROUPS = 256, 64  # query images of a group, about, and most groups; affects speed only
FEWEST, GROWTH, MOST = 32, 8, 8192  # rows whose bounds are lowered at a time; affects speed only
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

    def __call__(self, rows: Tensor) -> "KernelRows":
        """Rows (r,) of s."""
        part = self.pool.at(rows, self.device)
        return KernelRows(self, part, scaled(part, self.scales[rows]))

    def sums(self, weights: Tensor, groups: Sequence[slice]) -> Tensor:
        """sum w_i s_ij over the queries of each of K groups: (N, K) float32 with an error of about 1e-6 sum w.

        Computed from sums of the queries' vectors, without s.
        """
        right = self.right * weights[:, None]
        totals = torch.stack([right[group].sum(0) for group in groups], dim=1)
        of_outer = []
        if self.pool.gradients is not None:
            of_outer = [right[group].T @ self.queries.features[group] for group in groups]
        found = torch.empty(len(self.pool), len(groups), device=self.device)
        for rows in row_slices(*self.pool.features.shape):
            part = self.pool.at(rows, self.device)
            left = scaled(part, self.scales[rows])
            found[rows] = left @ totals
            for k, outer in enumerate(of_outer):
                found[rows, k] += (left @ outer).mul_(part.features).sum(1)
        return found.add_(torch.stack([weights[group].sum() for group in groups]) / 2)


# rows (r,) of s -> (some of these rows or None for all, columns) -> their similarities
Similarities = Callable[[Tensor], Callable[[Tensor | None, slice], Tensor]]


@dataclasses.dataclass(frozen=True)
class KernelRows:
    """Rows of a kernel: images `part` and their scaled vectors `left`."""

    kernel: Kernel
    part: Factors
    left: Tensor

    def __call__(self, some: Tensor | None, columns: slice) -> Tensor:
        """The similarities of `some` of the rows (all if None) and of the queries `columns`: float32."""
        left = self.left if some is None else self.left[some]
        cosine = left @ self.kernel.right[columns].T
        if self.part.gradients is not None:
            features = self.part.features if some is None else self.part.features[some]
            one = torch.ones((), dtype=torch.float32, device=left.device)
            cosine.mul_(torch.addmm(one, features, self.kernel.queries.features[columns].T))
        return cosine.add_(0.5)


def shortened(pool: Factors, queries: Factors) -> tuple[Factors, Factors]:
    """Features of RANK + 1 values whose cosines are at least those of the given features, and often little larger.

    With x = z / |z|, P the projection on the RANK main directions of the queries, and r^2 = 1 - |P x|^2, the features
    [P x, r] of two images have the inner product <P x, P x'> + r r', which is at least <x, x'> (Cauchy and Schwarz).
    """
    device, x = queries.features.device, scaled(queries, queries.scales())
    directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -RANK:]

    def short(factors: Factors) -> Factors:
        found, scales = torch.empty(len(factors), RANK + 1, device=device), factors.scales().to(device)
        for rows in row_slices(*factors.features.shape):
            projected = scaled(factors.at(rows, device), scales[rows]) @ directions
            rest = (1 - projected.square().sum(1)).clamp_(min=0) + 1e-5  # more than rounding
            found[rows] = torch.cat([projected, rest.sqrt()[:, None]], dim=1)
        return Factors(found)

    return short(pool), short(queries)


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
    order, groups = grouped(queries)
    device = order.device
    queries = queries.at(order, device)
    kernel = coarse = Kernel(pool, queries)
    weights = torch.ones(len(queries)) if weights is None else weights
    weights = weights.to(device, torch.float32)[order]
    bounds = kernel.sums(weights, groups)
    if not bounds.isfinite().all():
        raise ValueError("features or gradients are not finite")
    bounds += 1e-5 * torch.stack([weights[group].sum() for group in groups])  # rounding
    if queries.gradients is None and queries.features.shape[1] > 2 * RANK:
        coarse = Kernel(*shortened(pool, queries))
    cover = lazy_greedy(kernel, coarse, bounds, weights, groups, available.to(device), n, eta, renew)
    order = order.cpu()
    nearest = torch.empty_like(cover.nearest).index_copy_(0, order, cover.nearest)
    return dataclasses.replace(cover, gained_for=order[cover.gained_for], nearest=nearest)


def grouped(queries: Factors) -> tuple[Tensor, list[slice]]:
    """An order (Q,) in which similar queries are neighbours, and slices of it, the groups.

    A group has the queries that are most similar to one of K queries, which are taken at equal distances.
    """
    device = queries.features.device
    count = max(1, min(GROUPS, len(queries) // GROUP))
    heads = torch.arange(count, device=device) * len(queries) // count
    every = torch.arange(len(queries), device=device)
    nearest = Kernel(queries, queries.at(heads, device))(every)(None, slice(None)).argmax(1)
    ends = nearest.bincount(minlength=count).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    groups = [slice(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
    return nearest.argsort(stable=True), groups


def lazy_greedy(
    kernel: Similarities,
    coarse: Similarities,
    bounds: Tensor,
    weights: Tensor,
    groups: Sequence[slice],
    available: Tensor,
    n: int,
    eta: float = 1.0,
    renew: float | None = None,
) -> Cover:
    """`facility_location` with a kernel. Exact.

    The coverage of an image only falls in a round, so that its value at an earlier step is an upper bound. In each step
    the images with the largest bounds have these lowered by the coarse kernel, and where that does not suffice their
    gains computed, until no other image can have a gain as large as the largest known one.

    Args:
        kernel: s, from 0 to 1.
        coarse: upper bounds of s, up to rounding, which may be faster to compute; or the kernel itself.
        bounds: (N, K) float32, upper bounds of the coverage of each group of queries while best is 0.
        weights: (Q,) float32.
        groups: K slices of the queries.
        available: (N,) bool.
    """
    greedy = _Greedy(kernel, coarse, bounds, weights, groups, available, eta)
    while len(greedy.chosen) < n:
        row, gain = greedy.largest_gain()
        if renew is not None and not greedy.fresh and not greedy.reaches(renew, row):
            greedy.begin()
            row, gain = greedy.largest_gain()
        greedy.choose(row, gain)
    return greedy.cover()


class _Candidates:
    """Images by descending bounds in one step of the greedy search.

    Args:
        relevance: (N,), what is added to the coverage.
    """

    def __init__(self, greedy: "_Greedy", relevance: Tensor):
        self.greedy, self.relevance, self.size = greedy, relevance, FEWEST
        self.bounds = greedy.coverage + relevance
        self.rows = torch.arange(len(self.bounds), device=self.bounds.device)
        self.lowered = torch.zeros_like(self.rows, dtype=torch.bool)

    def compute(self, limit: float) -> Tensor:
        """Compute coverage and relevance of the next images, whose bounds are largest: (r,) int64.

        Empty if all bounds are below `limit`.
        """
        while True:
            self._keep(self.bounds >= max(limit, 0))
            if not len(self.rows):
                return self.rows
            first = self.bounds.topk(min(self.size, len(self.rows))).indices
            stale = first[~self.lowered[first]]
            if not len(stale) or limit < 0:
                break
            self.bounds[stale] = self.greedy.lower(self.rows[stale], limit, self.relevance)
            self.lowered[stale] = True
            self.size = min(MOST, GROWTH * self.size)
        first = first[:FEWEST]
        rows = self.rows[first]
        self.greedy.compute(rows)
        self._keep(torch.ones_like(self.lowered).index_fill_(0, first, False))
        return rows

    def _keep(self, kept: Tensor) -> None:
        self.bounds, self.rows, self.lowered = self.bounds[kept], self.rows[kept], self.lowered[kept]


class _Greedy:
    """The state of the greedy search.

    Attributes:
        best: (Q,) float32.
        history: (choices in this round + 1, K) float64, the sums of w_i best_i in each group before and after them.
        parts: (N, K) float32, upper bounds of the coverage of each group, of which the coverage is the sum.
        computed: (N, K) int32, the row of `history` at which a part was computed; -1 if not in this round.
        coverage: (N,) float64, upper bounds of the coverage; -inf for images that may not be taken.
        largest: (N,) float32, the largest similarity of the coarse kernel that was computed.
        relevance: (N,) float64, upper bounds of eta max_i s_ij.
        fresh: whether nothing has been chosen in this round.
    """

    def __init__(
        self,
        kernel: Similarities,
        coarse: Similarities,
        bounds: Tensor,
        weights: Tensor,
        groups: Sequence[slice],
        available: Tensor,
        eta: float,
    ):
        self.kernel, self.coarse, self.bounds, self.groups, self.eta = kernel, coarse, bounds, groups, eta
        self.weights, self.available, self.uniform = weights, available.clone(), bool((weights == 1).all())
        self.rounding = 1e-6 * self._sums(torch.ones_like(weights))
        self.largest = torch.zeros(len(available), device=weights.device)
        self.relevance = torch.full((len(available),), eta, dtype=torch.float64, device=weights.device)
        self.chosen, self.gains, self.gained_for, self.similarity = [], [], [], []
        self.nearest, self.to_nearest = torch.zeros_like(weights, dtype=torch.int64), -torch.ones_like(weights)
        self.begin()

    def begin(self) -> None:
        """Begin a round."""
        self.best, self.fresh = torch.zeros_like(self.weights), True
        self.history = self._sums(self.best)[None]
        self.parts = self.bounds.clone()
        self.computed = torch.full(self.parts.shape, -1, dtype=torch.int32, device=self.parts.device)
        self.coverage = self.parts.sum(1, dtype=torch.float64).masked_fill_(~self.available, -torch.inf)

    def largest_gain(self) -> tuple[int, float]:
        """The image with the largest gain, the lowest of equal ones, and its gain."""
        row, gain = len(self.coverage), -torch.inf
        candidates = _Candidates(self, self.relevance)
        while len(rows := candidates.compute(gain)):
            gains = self.coverage[rows] + self.relevance[rows]
            if gains.max() >= gain:
                lowest = int(rows[gains == gains.max()].min())
                row = lowest if gains.max() > gain else min(row, lowest)
                gain = float(gains.max())
        return row, gain

    def reaches(self, coverage: float, row: int) -> bool:
        """Whether an image has this coverage: `row`, whose coverage is known, or another one."""
        found, candidates = self.coverage[row], _Candidates(self, torch.zeros_like(self.relevance))
        while found < coverage and len(rows := candidates.compute(coverage)):
            found = self.coverage[rows].max()
        return bool(found >= coverage)

    def lower(self, rows: Tensor, limit: float, relevance: Tensor) -> Tensor:
        """Lower the bounds of images (r,) by the coarse kernel, at least below `limit` if it can; returns them.

        Parts that may have fallen most are computed first, for the images whose bounds are still too large.

        Args:
            relevance: (N,), what is added to the coverage.
        """
        similarities, now = self.coarse(rows), len(self.history) - 1
        parts, computed, largest = self.parts[rows], self.computed[rows], self.largest[rows]
        fall = self.history[now] - self.history.gather(0, computed.clamp(min=0).long())
        fall = torch.where(computed < 0, torch.inf, fall).minimum(parts)  # at most
        stale = (fall > 0) | (computed < 0)
        bounds = parts.sum(1, dtype=torch.float64) + relevance[rows]
        for k in fall.sum(0).argsort(descending=True).tolist():
            some = (stale[:, k] & (bounds >= limit)).nonzero().flatten()
            if not len(some):
                continue
            s = similarities(None if len(some) == len(rows) else some, self.groups[k])
            largest[some] = largest[some].maximum(s.amax(1))
            before = parts[some, k]
            part = before.minimum(self._covered(s, self.groups[k], torch.float32) + self.rounding[k])
            parts[some, k], computed[some, k] = part, now
            bounds[some] -= before - part
        self.parts[rows], self.computed[rows], self.largest[rows] = parts, computed, largest
        self.coverage[rows] = self.coverage[rows].minimum(parts.sum(1, dtype=torch.float64))
        complete = rows[(computed >= 0).all(1)]
        upper = self.eta * (self.largest[complete].double() + 1e-6)
        self.relevance[complete] = self.relevance[complete].minimum(upper)
        return self.coverage[rows] + relevance[rows]

    def compute(self, rows: Tensor) -> None:
        """Coverage and relevance of images (r,)."""
        similarities, coverage = self.kernel(rows), torch.zeros_like(self.coverage[rows])
        largest = torch.zeros_like(self.largest[rows])
        for group in self.groups:
            s = similarities(None, group)
            largest = largest.maximum(s.amax(1))
            coverage += self._covered(s, group)
        self.coverage[rows], self.relevance[rows] = coverage, self.eta * largest.double()

    def _covered(self, s: Tensor, group: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """sum_i w_i max(0, s_ij - best_i) over a group, s (r, q): (r,) of `dtype`."""
        gain = s.sub_(self.best[group]).relu_()
        if not self.uniform:
            gain.mul_(self.weights[group])
        return gain.sum(1, dtype=dtype)

    def _sums(self, values: Tensor) -> Tensor:
        """The sums of w_i times the values (Q,) over each group: (K,) float64."""
        weighted = (self.weights * values).double()
        return torch.stack([weighted[group].sum() for group in self.groups])

    def choose(self, row: int, gain: float) -> None:
        similarities = self.kernel(torch.tensor([row], device=self.best.device))
        s = torch.cat([similarities(None, group)[0] for group in self.groups])
        part = (s - self.best).relu_().mul_(self.weights)
        query = part.argmax() if part.max() > 0 else s.argmax()
        self.nearest[s > self.to_nearest] = len(self.chosen)
        self.to_nearest = self.to_nearest.maximum(s)
        self.chosen.append(row)
        self.gains.append(gain)
        self.gained_for.append(int(query))
        self.similarity.append(float(s[query]))
        self.best = self.best.maximum(s)
        self.history = torch.cat([self.history, self._sums(self.best)[None]])
        self.available[row], self.coverage[row], self.fresh = False, -torch.inf, False

    def cover(self) -> Cover:
        return Cover(
            torch.tensor(self.chosen),
            torch.tensor(self.gains, dtype=torch.float64),
            torch.tensor(self.gained_for),
            torch.tensor(self.similarity),
            self.nearest.cpu(),
        )
