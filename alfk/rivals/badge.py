"""BADGE: k-means++ seeding over the gradients g = a z' of the available images.

a = p - e_y for the predicted class y, z the input of the last linear layer. The first centre is the image with the
largest |g|. Each next one is drawn with probability D(i)^2 / sum D^2, D(i) the distance of g_i from the nearest centre:

    |g_i - g_c|^2 = |a_i|^2 |z_i|^2 + |a_c|^2 |z_c|^2 - 2 <a_i, a_c> <z_i, z_c>

Distances only fall. An image drawn by old distances and kept with probability D_new^2 / D_old^2 therefore has the same
law, and the distances of all images need not be updated after every centre.

References: Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep batch active learning by diverse, uncertain gradient
lower bounds, ICLR 2020.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from alfk.method.matching import draw
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.gradients import gradients, row_slices, squared_norms

PATIENCE = 16  # how many more draws by old distances may be refused than kept; affects speed only
NEAR = 1e-3  # squared distances below this part of |g|^2 are computed in float64
SMALL = 1e-30  # |a|^2 and |g|^2 below which products in float32 lose their digits
ROUNDING = 1e-12  # the part of |g|^2 below which a squared distance in float64 is 0


class OuterProducts:
    """Squared distances between the matrices g = a z', which are never formed.

    Attributes:
        a: (N, C).
        z: (N, D).
        norms: (N,) float64, |g|^2.
        small: (N,) bool, rows whose products in float32 lose their digits.
    """

    def __init__(self, a: Tensor, z: Tensor):
        norms = squared_norms(a)
        self.a, self.z, self.norms = a, z, norms * squared_norms(z)
        self.small = (norms < SMALL) | (self.norms < SMALL)

    def to_nearest(self, rows: Tensor | slice, centres: Tensor) -> Tensor:
        """min |g - g_c|^2 over the centres (m,) for r of the rows: (r,) float64. O(r m) memory.

        A relative error of about 1e-4 at most; 0 for a row that is equal to a centre.
        """
        norms = self.norms[rows]
        product = self._product(rows, centres, torch.float32)
        found = norms + product.mul_(-2).add_(self.norms[centres].float()).amin(1)
        near = ((found < NEAR * norms) | self.small[rows]).nonzero().flatten()
        if len(near):
            rows = near + rows.start if isinstance(rows, slice) else rows[near]
            scale = norms[near, None] + self.norms[centres]
            exact = scale - 2 * self._product(rows, centres, torch.float64)
            found[near] = exact.masked_fill_(exact < ROUNDING * scale, 0).amin(1)
        return found

    def _product(self, rows: Tensor | slice, centres: Tensor, dtype: torch.dtype) -> Tensor:
        """<g, g_c>: (r, m)."""
        of_a, of_z = (x[rows].to(dtype) @ x[centres].to(dtype).T for x in (self.a, self.z))
        return of_a.mul_(of_z)

    def lower(self, distances: Tensor, centres: Tensor) -> None:
        """Update the squared distances (N,) of all rows for further centres (m,)."""
        for tile in row_slices(len(distances), len(centres)):
            torch.minimum(distances[tile], self.to_nearest(tile, centres), out=distances[tile])


def badge(
    a: Tensor,
    z: Tensor,
    available: Tensor,
    n: int,
    generator: torch.Generator | None,
    refresh: int = 1024,
    uniforms: Iterable[float] | None = None,
) -> Selection:
    """n of the available images, in the order in which they became centres; once all distances are 0, at random.

    2 N n (C + D) operations in products of matrices; O(N) memory and a tile.

    Args:
        a: (N, C) gradients by the logits for the predicted classes.
        z: (N, D) features.
        available: (N,) bool.
        n: query size.
        refresh: number of centres after which all distances are updated, earlier if most draws are refused. 1 is the
            sequential form, in which no draw is refused and each takes one number.
        uniforms: numbers in [0, 1) to draw with, instead of `generator`: u draws the first i for which the cumulative
            sum of D^2 is at least u times the total.
    Returns:
        a selection with `indices` and `at_random`.
    Raises:
        ValueError: fewer than n images are available.
    """
    available = available.to(z.device)
    if not 1 <= n <= int(available.sum()):
        raise ValueError(f"cannot choose {n} of {int(available.sum())} available images")
    uniforms = _draws(generator) if uniforms is None else iter(uniforms)
    products = OuterProducts(a, z)
    distances = torch.full_like(products.norms, torch.inf).masked_fill_(~available, 0)
    chosen = [int(products.norms.masked_fill(~available, -1).argmax())]
    included = 0  # centres that the distances account for
    while len(chosen) < n:
        products.lower(distances, torch.tensor(chosen[included:], device=z.device))
        distances[chosen] = 0
        included = len(chosen)
        cumulative = distances.cumsum(0)
        if not cumulative[-1] > 0:
            break
        refused = 0
        while len(chosen) < n and len(chosen) - included < refresh and refused <= len(chosen) - included + PATIENCE:
            place = torch.searchsorted(cumulative, next(uniforms) * cumulative[-1])
            if _keep(products, distances, place, chosen[included:], uniforms):
                chosen.append(int(place))
            else:
                refused += 1
    left = available.index_fill(0, torch.tensor(chosen, device=z.device), False)
    rest = draw(left, n - len(chosen), generator)
    return Selection(torch.cat([torch.tensor(chosen), rest]), at_random=len(rest))


def _draws(generator: torch.Generator | None) -> Iterator[float]:
    for _ in itertools.count():
        yield float(torch.rand((), dtype=torch.float64, generator=generator))


def _keep(
    products: OuterProducts, distances: Tensor, place: Tensor, added: list[int], uniforms: Iterator[float]
) -> bool:
    """Whether an image drawn by old distances is taken, given the centres added since."""
    old = new = float(distances[place])
    if added:
        new = min(old, float(products.to_nearest(place[None], torch.tensor(added, device=place.device))))
    return new > 0 and (new == old or next(uniforms) * old < new)


def choose_badge(situation: Situation) -> Selection:
    """The images that `badge` chooses by the current network's gradients."""
    pool = situation.measurement.pool_outputs
    a = gradients(pool.logits)
    return badge(a, pool.features, situation.available, situation.n, situation.generator)


METHODS = (Method("badge", "BADGE", choose_badge, frozenset({"outputs"}), random_first=True),)
