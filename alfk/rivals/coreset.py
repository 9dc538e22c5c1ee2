"""Core-set by greedy k-centre: again and again the image farthest from all labelled and chosen ones.

The distances are Euclidean, between the features z of the current network, neither scaled nor centred. The largest
distance is at most twice that of the best n centres. Squared distances come from inner products, |x - c|^2 = |x|^2 +
|c|^2 - 2 <x, c>, so that greedy k-centre of `matching` applies, for the similarity -|x - c|^2 / 2.

References: Sener and Savarese, Active learning for convolutional neural networks: a core-set approach, ICLR 2018.
"""

import torch
from torch import Tensor

from alfk.method.matching import k_centre, top_matches
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.gradients import row_slices, squared_norms


def coreset(
    features: Tensor, available: Tensor, n: int, first: int | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The n available images that greedy k-centre adds to the labelled ones. Of equal images the lowest is taken.

    O(N D (L + n)) for L labelled images; one copy of the features in memory. In float32: squared distances that differ
    by less than about 1e-6 of |z|^2 are in no particular order.

    Args:
        features: (N, D).
        available: (N,) bool, images that are not labelled; the others are centres from the beginning.
        n: query size.
        first: the first choice if no image is labelled; drawn from `generator` if None.
    Returns:
        indices (n,) int64 in the order of choice, and radii (n,) float64: the distance of each from the nearest centre
        before it, inf for the first choice without labelled images. Both on the CPU.
    Raises:
        ValueError: fewer than n images are available.
    """
    available = available.to(features.device)
    if not 1 <= n <= int(available.sum()):
        raise ValueError(f"cannot choose {n} of {int(available.sum())} available images")
    rows = features.float() - origin(features)
    offsets = squared_norms(rows).div_(-2).float()
    labelled = (~available).nonzero().flatten()
    closest = None
    if len(labelled):
        closest = to_centres(rows, rows[labelled], offsets[labelled])[0].add_(offsets)
        closest[labelled] = torch.inf
        first = int(closest.argmin())
    elif first is None:
        first = int(torch.randint(len(rows), (1,), generator=generator))
    chosen = k_centre(rows, n, first, offsets, closest)
    return chosen.cpu(), radii(rows, offsets, labelled, chosen).cpu()


def origin(features: Tensor) -> Tensor:
    """The median (D,) of up to 2,000 images. Features relative to it keep more digits if they are far from 0.

    The median of whole numbers is one too, so that equal distances between them stay equal.
    """
    return features[:: max(1, len(features) // 1000)].float().median(0).values


def to_centres(rows: Tensor, centres: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The largest <x, c> + b over the centres c (m, D) with offsets b (m,): value and position, each (rows,)."""
    database = torch.cat([centres, offsets[:, None]], 1)
    found = []
    for tile in row_slices(*rows.shape):
        queries = torch.cat([rows[tile], rows.new_ones(tile.stop - tile.start, 1)], 1)
        found.append(top_matches(queries, database, 1))
    return torch.cat([value for value, _ in found])[:, 0], torch.cat([index for _, index in found])[:, 0]


def radii(rows: Tensor, offsets: Tensor, labelled: Tensor, chosen: Tensor) -> Tensor:
    """The distance of each chosen row from the nearest of the labelled and earlier chosen ones: (n,) float64."""
    centres, order = rows[chosen], torch.arange(len(chosen), device=rows.device)
    distance = torch.empty(len(chosen), dtype=torch.float64, device=rows.device)
    for tile in row_slices(len(chosen), len(chosen)):
        similarity = centres[tile] @ centres.T + offsets[chosen]
        similarity[order >= order[tile, None]] = -torch.inf
        distance[tile] = (centres[tile].double() - centres[similarity.argmax(1)].double()).norm(dim=1)
    distance[0] = torch.inf  # none was chosen before
    if len(labelled):
        nearest = rows[labelled[to_centres(centres, rows[labelled], offsets[labelled])[1]]]
        distance = distance.minimum((centres.double() - nearest.double()).norm(dim=1))
    return distance


def choose_coreset(situation: Situation) -> Selection:
    """The images that `coreset` chooses; score: the distance from the nearest labelled or chosen image."""
    features = situation.measurement.pool_outputs.features
    chosen, distances = coreset(features, situation.available, situation.n, generator=situation.generator)
    return Selection(chosen, score=distances)


METHODS = (Method("coreset", "core-set", choose_coreset, frozenset({"outputs"})),)
