"""TypiClust: the most typical images of the clusters with the fewest labels.

    1. clusters     k-means of the unit-norm features of the whole pool, k = min(labelled + n, cap)
    2. order        clusters by the number of labelled images in them, ascending, then by size, descending
    3. round robin  over the clusters: from each the unlabelled image of highest typicality, until there are n

The typicality of an image is 1 / (mean squared distance to its k nearest neighbours + 1e-5) among the unlabelled images
of its cluster, k = min(20, floor(their number / 2)); so the image of the smallest mean is taken. Clusters of
5 images or fewer are used only when all others have no unlabelled image left.

References: Hacohen, Dekel and Weinshall, Active learning on a budget: opposite strategies suit high and low budgets,
ICML 2022.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from alfk.method.matching import TILE, budget
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.support.seeding import draw_seed

SMALL = 5  # images of a cluster that is left out
NEIGHBOURS = 20
SPARE = 12  # more of them, for the images that are taken; affects speed only
ROUNDING = 128  # error of squared distances from inner products of unit vectors, in machine epsilons
EXACT = 50  # clusters up to which every sweep of k-means visits all images
SWEEPS, BATCH = 100, 5000
CLUSTERS = 500  # at most; twice the number of classes if that is more


def typiclust(
    features: Tensor,
    available: Tensor,
    n: int,
    generator: torch.Generator,
    cap: int = 500,
    clusters: Tensor | None = None,
) -> Tensor:
    """n images in the order they are taken. Ties go to the lowest position, and to the cluster of lowest number.

    k-means takes O(N D k) for a sweep, the neighbours O(m^2 D) for a cluster of m images.

    Args:
        features: (N, D), the same in all iterations of a run, e.g. of a self-supervised network. Rows are scaled to
            unit norm, and distances computed in their precision.
        available: (N,) bool, images that are not labelled; at least n.
        generator: source of the seed of k-means.
        cap: largest number of clusters.
        clusters: (N,) integers from 0, the cluster of every image, instead of k-means.
    Returns:
        (n,) int64 on the CPU.
    Raises:
        ValueError: fewer than n images are available.
    """
    available = available.cpu()
    if not 1 <= n <= int(available.sum()):
        raise ValueError(f"cannot take {n} of {int(available.sum())} images")
    rows = features / features.norm(dim=1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
    if clusters is None:
        clusters = k_means(rows, min(int((~available).sum()) + n, cap), generator)
    clusters = clusters.cpu()
    size, left = (torch.bincount(of, minlength=int(clusters.max()) + 1) for of in (clusters, clusters[available]))
    order = np.lexsort([-size.numpy(), (size - left).numpy()])
    images = available.nonzero().flatten()
    images = images[clusters[images].argsort(stable=True)].split(left.tolist())
    chosen: list[int] = []
    for small in (False, True):
        queue = [_Cluster(rows, images[c]) for c in order if (size[c] <= SMALL) == small]
        while len(chosen) < n and (queue := [cluster for cluster in queue if cluster.left.any()]):
            chosen += [cluster.take() for cluster in queue[: n - len(chosen)]]
    return torch.tensor(chosen)


class _Cluster:
    """The unlabelled images of a cluster, from which one after another is taken.

    Neighbours are searched for once, some more than are needed, and again when too many of them have been taken.

    Args:
        rows: (N, D) features of the pool, of norm 1.
        images: (m,) their positions in the pool.
    """

    def __init__(self, rows: Tensor, images: Tensor):
        self.rows, self.images = rows, images.to(rows.device)
        self.left = torch.ones_like(self.images, dtype=torch.bool)
        self.table: tuple[Tensor, Tensor] | None = None

    def take(self) -> int:
        """Take the most typical image that is left, and return its position.

        Its mean squared distance to the k nearest others that are left is the smallest, k = min(20, floor(left / 2)).
        Where it is nearly the smallest, distances are computed again, from differences: the distance from x to y is
        then exactly that from y to x, and equally typical images are ties.
        """
        left = int(self.left.sum())
        if self.table is None or left < len(self.images) - SPARE:
            self.images = self.images[self.left]
            self.left = torch.ones_like(self.images, dtype=torch.bool)
            self.table = nearest(self.rows[self.images], min(NEIGHBOURS + SPARE, left - 1))
        k = min(NEIGHBOURS, left // 2)
        distances, neighbours = self.table
        used = self.left[neighbours]
        used &= used.cumsum(1) <= k
        mean = (distances * used).sum(1).div_(max(k, 1)).masked_fill_(~self.left, torch.inf)
        best = (mean <= mean.min() + ROUNDING * torch.finfo(mean.dtype).eps).nonzero().flatten()
        exact = []
        for some in best.split(max(1, TILE // (self.rows.shape[1] * max(k, 1)))):
            others = self.rows[self.images[neighbours[some][used[some]].view(len(some), k)]]
            squares = (others - self.rows[self.images[some]].unsqueeze(1)).square_().sum(2)
            exact.append(squares.sort(1).values.sum(1))
        place = best[torch.cat(exact).argmin()]
        self.left[place] = False
        return int(self.images[place])


def nearest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each of the rows (m, D) its k nearest others: squared distances, from inner products, and places, (m, k)."""
    room = min(TILE, budget(rows.device) // (8 * rows.element_size()))
    squares, distances, places = rows.square().sum(1), [], []
    for block in torch.arange(len(rows), device=rows.device).split(max(1, room // len(rows))):
        others = torch.addmm(squares, rows[block], rows.T, alpha=-2)
        others.diagonal(int(block[0])).fill_(torch.inf)  # a row is no neighbour of itself
        value, place = others.topk(k, dim=1, largest=False)
        distances.append(value + squares[block].unsqueeze(1))
        places.append(place)
    return torch.cat(distances), torch.cat(places)


def k_means(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The cluster of every row (N, D), of at most k clusters: (N,) int64 on the CPU.

    Like the authors' code: scikit-learn's k-means++ and at most 100 sweeps, in mini-batches for more than 50 clusters.
    In one thread: with several the order of sums, and so their rounding and the clusters, would vary.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    options = {"n_init": 1, "max_iter": SWEEPS, "random_state": draw_seed(generator)}
    method = KMeans(k, **options) if k <= EXACT else MiniBatchKMeans(k, batch_size=BATCH, **options)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: some are empty
        return torch.from_numpy(method.fit_predict(rows.cpu().numpy())).long()


def choose_typiclust(situation: Situation) -> Selection:
    """The images that `typiclust` chooses by features that do not change in a run."""
    outputs, available = situation.measurement.pool_outputs, situation.available
    classes = situation.classes or outputs.logits.shape[1]
    cap = max(CLUSTERS, 2 * classes)
    return Selection(typiclust(outputs.features, available, situation.n, situation.generator, cap))


METHODS = (Method("typiclust", "TypiClust", choose_typiclust, frozenset({"outputs"}), of_rotation_model=True),)
