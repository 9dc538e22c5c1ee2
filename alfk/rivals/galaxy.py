"""GALAXY: bisection of class boundaries on linear graphs, with labels requested one by one while the query is chosen.

For every class c all images are sorted along a path by the confidence d_c = p_c - max p + 1e-8 max p. Known labels are
+ (class c) or -. Query t of a batch uses the path of class t mod C:

    1. bisection: take the shortest run of unlabelled images between adjacent known ones of opposite sign (G images);
       query the image 1 + floor(G / 2) steps from its - end
    2. if there is no such run, query the unlabelled image for which the larger of the rank distances to the nearest +
       and to the nearest - is smallest
    3. if no + or no - is known, query an unlabelled image at random

The label is then known on all paths. Ties go to a random image in 1, to the one of the higher d_c in 2; images of equal
d_c are in the order of their positions. The authors' ties depend on memory addresses, and in step 2 they bisect between
images 2, 3, ... ranks apart, which needs O(N) in Python for every query.

References: Zhang, Katz-Samuels and Nowak, GALAXY: graph-based active learning at the extreme, ICML 2022.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alfk.method.matching import draw
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.annotator import annotator, known_labels


def galaxy(
    probabilities: Tensor,
    available: Tensor,
    labels: Tensor,
    n: int,
    annotate: Callable[[int], int],
    generator: torch.Generator,
    known_elsewhere: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """n images in the order in which they are queried, and which of them were drawn at random.

    O(N C log N) for the paths, O(known labels) for a query. 16 C N bytes for the probabilities and two tables of
    ranks: 21 GB for 1,000 classes and 1.3 million images.

    Args:
        probabilities: (N, C) of all images, the labelled ones too.
        available: (N,) bool, images that are not labelled; all others are.
        labels: labels of the labelled images, in the order of their positions.
        n: number of queries, at most the number of available images.
        annotate: position of an image -> its label, called n times.
        generator: source of the random order in which images are drawn and tied ones preferred.
        known_elsewhere: probabilities (V, C) and labels (V,) of further images with known labels, such as a validation
            set (not in the paper).
    Returns:
        (n,) int64 and (n,) bool, on the CPU.
    Raises:
        ValueError: fewer than n images are available, or there is not one label for each of the others.
    """
    available, labels = available.cpu(), labels.cpu().numpy()
    count = int(available.sum())
    if not 1 <= n <= count or len(labels) != len(available) - count:
        raise ValueError(f"cannot ask {n} of {count} images, of {len(available)} with {len(labels)} labels")
    known, images, classes = (~available).nonzero().flatten().numpy(), len(available), probabilities.shape[1]
    if known_elsewhere is not None:
        probabilities = torch.cat([probabilities, known_elsewhere[0].to(probabilities)])
        known = np.concatenate([known, np.arange(images, len(probabilities))])
        labels = np.concatenate([labels, known_elsewhere[1].cpu().numpy()])
    largest = probabilities.amax(1).double()
    paths = [_Path(sort_by_confidence(p, largest), c, known, labels) for c, p in enumerate(probabilities.T)]
    asked, given, at_random = (np.zeros(n, dtype) for dtype in (np.int64, np.int64, bool))
    left = available.numpy().copy()
    random_order = draw(available, count, generator).numpy()
    priority = np.zeros(images, np.int64)
    priority[random_order] = np.arange(count)
    random_images = (image for image in random_order if left[image])  # looked at when its turn comes
    for t in range(n):
        path, since = paths[t % classes], max(0, t - classes)
        path.add(asked[since:t], given[since:t])
        asked[t] = image = path.query(priority)
        if image < 0:
            asked[t], at_random[t] = next(random_images), True
        left[asked[t]] = False
        given[t] = annotate(int(asked[t]))
    return torch.from_numpy(asked), torch.from_numpy(at_random)


def sort_by_confidence(p: Tensor, largest: Tensor, descending: bool = False) -> np.ndarray:
    """The images along the path of a class, equal ones in the order of their positions: (N,) int32.

    Args:
        p: (N,) probabilities of the class.
        largest: (N,) float64, of all classes.
    """
    confidence = p.double() - largest + 1e-8 * largest
    return confidence.argsort(stable=True, descending=descending).int().cpu().numpy()


class _Path:
    """The path of one class.

    Args:
        order: (N,) int32, the images along it.
        known, labels: images whose labels are known.
    """

    def __init__(self, order: np.ndarray, c: int, known: np.ndarray, labels: np.ndarray):
        self.order, self.c = order, c
        self.ranks = np.empty_like(order)
        self.ranks[order] = np.arange(len(order), dtype=order.dtype)
        self.known = np.empty(0, np.int64)  # ranks of images with known labels, ascending
        self.positive = np.empty(0, bool)  # whether they are of class c
        self.add(known, labels)

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """More labels."""
        order = self.ranks[images].argsort()
        ranks = self.ranks[images][order].astype(np.int64)
        places = self.known.searchsorted(ranks)
        self.known = np.insert(self.known, places, ranks)
        self.positive = np.insert(self.positive, places, labels[order] == self.c)

    def query(self, priority: np.ndarray) -> int:
        """The image to query, of tied ones that of smallest priority (N,); -1 if no + or no - is known."""
        if self.positive.all() or not self.positive.any():
            return -1
        middles = self.order[self._middles()]
        if not len(middles):
            return int(self.order[self._nearest_to_both()])
        return int(middles[priority[middles].argmin()])

    def _middles(self) -> np.ndarray:
        """The ranks in the middle of the shortest runs between opposite signs; none if there is no such run."""
        lengths = np.diff(self.known) - 1
        runs = ((lengths > 0) & (self.positive[1:] != self.positive[:-1])).nonzero()[0]
        if len(runs):
            runs = runs[lengths[runs] == lengths[runs].min()]
        steps = 1 + lengths[runs] // 2
        return np.where(self.positive[runs + 1], self.known[runs] + steps, self.known[runs + 1] - steps)

    def _nearest_to_both(self) -> int:
        """The unlabelled rank of step 2.

        It is an end of a run of unlabelled images: where the known images around a run are of one sign, the other sign
        is farther from every image of the run, and nearest to one of its ends.
        """
        far = 2 * len(self.order)
        before, after = np.append(-1, self.known), np.append(self.known, len(self.order))
        runs = (after - before > 1).nonzero()[0]
        low, high = before[runs] + 1, after[runs] - 1
        ends = np.concatenate([low, high])
        distance = np.zeros(len(ends), np.int64)
        for sign in (self.positive, ~self.positive):
            last = np.maximum.accumulate(np.append(-far, np.where(sign, self.known, -far)))[runs]
            following = np.append(np.where(sign, self.known, far), far)
            following = np.minimum.accumulate(following[::-1])[::-1][runs]
            nearest = np.concatenate([np.minimum(r - last, following - r) for r in (low, high)])
            distance = np.maximum(distance, nearest)
        return int(ends[distance == distance.min()].max())


def choose_galaxy(situation: Situation) -> Selection:
    """The images that `galaxy` chooses. The annotator is first asked for the labels of all labelled images."""
    return _galaxy(situation, situation.measurement.logits)


def choose_galaxy_with_validation(situation: Situation) -> Selection:
    """The same, with the validation images among those with known labels."""
    probabilities = situation.measurement.validation_outputs.logits.double().softmax(1)
    known = probabilities, situation.validation_labels
    return _galaxy(situation, situation.measurement.pool_outputs.logits, known)


def _galaxy(situation: Situation, logits: Tensor, known_elsewhere: tuple[Tensor, Tensor] | None = None) -> Selection:
    probabilities = logits.double().softmax(1)
    classes = probabilities.shape[1]
    labels_of = annotator(situation, classes)
    chosen, at_random = galaxy(
        probabilities,
        situation.available,
        known_labels(situation, classes),
        situation.n,
        lambda position: int(labels_of(torch.tensor([position]))),
        situation.generator,
        known_elsewhere,
    )
    return Selection(chosen, at_random=int(at_random.sum()))


METHODS = (
    Method("galaxy", "GALAXY", choose_galaxy, frozenset({"logits", "annotation"}), random_first=True),
    Method(
        "galaxy_v",
        "GALAXY, validation",
        choose_galaxy_with_validation,
        frozenset({"outputs", "validation_outputs", "annotation"}),
    ),
)
