"""DIRECT: a threshold on every class's path of confidences, and images on both sides of it.

The path of class c is GALAXY's, here from the highest confidence d_c = p_c - max p + 1e-8 max p to the lowest. Known
labels are + (class c) or -. The threshold of c is the number t of images before the best cut of its path:

    t = argmax of #(+ before) - #(- before) - #(+ after) + #(- after), the smallest of equal ones

    1. Half of the n labels are shared evenly among the classes, at most 60 a class. For a class at most 20 images at a
       time are drawn at random, between the last + of those before all -, and the first - of those after all +. Their
       labels are then known on all paths.
    2. The others are shared evenly too. From the threshold of each class images without a label are taken in turn
       before and after it, the nearest first.

Classes come in the order of their numbers of labelled images in 1, the fewest first, and in random order in 2; where
labels cannot be shared evenly the first ones get one more. The thresholds of 2 are those after 1.

References: Nuggehalli, Zhang, Jain and Nowak, DIRECT: deep active learning under imbalance and label noise, ICML 2025.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.rivals.annotator import annotator, known_labels
from alfk.rivals.galaxy import sort_by_confidence

DRAWN = 20  # images that are drawn at a time
MOST = 60  # images that are drawn for a class


def direct(
    probabilities: Tensor,
    available: Tensor,
    labels: Tensor,
    n: int,
    annotate: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """n images in the order in which they are chosen.

    O(N C log N); O(N) memory in addition to the probabilities.

    Args:
        probabilities: (N, C) of all images, the labelled ones too.
        available: (N,) bool, images that are not labelled; all others are.
        labels: (k,) int64, of the labelled images in the order of their positions.
        n: query size.
        annotate: positions (k,) of images -> their labels (k,), called with up to DRAWN images of step 1.
        generator: source of the draws.
    Returns:
        (n,) int64, on the CPU.
    Raises:
        ValueError: fewer than n images are available, or there is not one label for each of the others.
    """
    free, (images, classes) = available.cpu().numpy().copy(), probabilities.shape
    if not 1 <= n <= free.sum() or len(labels) != images - free.sum():
        raise ValueError(f"cannot choose {n} of {free.sum()} images, of {images} with {len(labels)} labels")
    known = np.full(images, -1)
    known[~free] = labels.cpu().numpy()
    largest, chosen = probabilities.amax(1).double(), []

    def path_of(c: int) -> np.ndarray:
        return sort_by_confidence(probabilities[:, c], largest, descending=True)

    def take(some: np.ndarray) -> None:
        free[some] = False
        chosen.extend(some.tolist())

    rarest_first = np.bincount(known[known >= 0], minlength=classes).argsort(kind="stable")
    for c, share in _shares(n // 2, rarest_first):
        path, share = path_of(c), min(share, MOST)
        while share:
            candidates = path[uncertain(signs_of(known[path], c))]
            candidates = candidates[free[candidates]]
            drawn = candidates[torch.randperm(len(candidates), generator=generator)[: min(share, DRAWN)].numpy()]
            if not len(drawn):
                break
            known[drawn] = annotate(torch.from_numpy(drawn).long()).numpy()
            take(drawn)
            share -= len(drawn)
    for c, share in _shares(n - len(chosen), torch.randperm(classes, generator=generator).numpy()):
        path = path_of(c)
        take(around(path, threshold(signs_of(known[path], c)), free, share))
    return torch.tensor(chosen)


def _shares(count: int, classes: np.ndarray) -> list[tuple[int, int]]:
    """`count` shared evenly: pairs of a class and its share, without those whose share is 0."""
    each, more = divmod(count, len(classes))
    shares = [each + (i < more) for i in range(len(classes))]
    return [(int(c), share) for c, share in zip(classes, shares, strict=True) if share]


def signs_of(labels: np.ndarray, c: int) -> np.ndarray:
    """1 for class c, -1 for others, 0 for unknown labels, which are -1."""
    return np.where(labels < 0, 0, np.where(labels == c, 1, -1))


def threshold(signs: np.ndarray) -> int:
    """t of a path with signs (N,): the number of images from its beginning whose sum of signs is largest."""
    return int(np.append(0, signs.cumsum()).argmax())


def uncertain(signs: np.ndarray) -> slice:
    """The ranks between the last + of those before all -, and the first - of those after all +."""
    plus, minus = np.append(-1, (signs > 0).nonzero()[0]), np.append((signs < 0).nonzero()[0], len(signs))
    return slice(plus[plus < minus[0]][-1] + 1, minus[minus > plus[-1]][0])


def around(path: np.ndarray, t: int, free: np.ndarray, count: int) -> np.ndarray:
    """`count` free images of a path, those of `free` (N,), in turn before and after a threshold, the nearest first."""
    before, after = path[:t][::-1], path[t:]
    sides = [side[free[side]][:count] for side in (before, after)]
    turns = np.concatenate([np.arange(len(side)) for side in sides])
    return np.concatenate(sides)[turns.argsort(kind="stable")][:count]


def choose_direct(situation: Situation) -> Selection:
    """The images that `direct` chooses. The annotator is first asked for the labels of all labelled images."""
    probabilities = situation.measurement.logits.double().softmax(1)
    classes = probabilities.shape[1]
    labels = known_labels(situation, classes)
    annotate = annotator(situation, classes)
    return Selection(direct(probabilities, situation.available, labels, situation.n, annotate, situation.generator))


METHODS = (Method("direct", "DIRECT", choose_direct, frozenset({"logits", "annotation"}), random_first=True),)
