"""Fisher-kernel descriptors of images (paper, Section 4; the numbers are those of examples/paper.py).

For an image i, a tap a of the network (one *scale*) and a label s_i, with <.>_space the mean over the tap's positions:

    (1)  z_i = <a_i>_space                                     features, one value per channel
    (2)  g_i = <d cross-entropy(logits_i, s_i) / d a_i>_space  Fisher scores at the tap
    (3)  z~  = (z - mean z) / (std z + 1e-10), g~ likewise     each vector by its own mean and unbiased std
    (4)  R_z(i, j)     = sum over scales of <z~_i, z~_j>
    (5)  R_{z,g}(i, j) = sum over scales of <z~_i, z~_j> + <g~_i, g~_j>

An inner product of standardised vectors is, up to a constant, their Pearson correlation. The Fisher information matrix
is taken as the identity. A descriptor is the row [z~, g~] of all scales: R is the inner product of two rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method.derivatives import Graph, at_least_float32
from alfk.networks.modes import computing, evaluation_mode
from alfk.networks.passes import add_passes, pool_spatially, put, require_finite, run
from alfk.support import distributed
from alfk.support.seeding import seeded_globally

ROUNDING = 4  # a std of up to 4 eps |mean| is that of equal values, which differ by rounding


def standardise(scales: Sequence[Tensor]) -> Tensor:
    """(3): each vector of each scale minus its mean, divided by its unbiased std + 1e-10, then concatenated.

    A vector of equal values is 0: what its mean's rounding leaves of it would be divided by 1e-10.

    Args:
        scales: tensors (B, L_s), L_s at least 2.
    Returns:
        (B, L), L the sum of the L_s.
    """
    return torch.cat([_standardised(scale) for scale in scales], dim=1)


def _standardised(scale: Tensor) -> Tensor:
    mean = scale.mean(1, keepdim=True)
    centred = scale - mean
    std = centred.std(1, keepdim=True)
    equal = std <= ROUNDING * torch.finfo(scale.dtype).eps * mean.abs()
    return (centred / (std + 1e-10)).masked_fill_(equal, 0)


def pairwise_similarity(rows: Tensor, others: Tensor) -> Tensor:
    """(4), (5): R of all pairs of descriptors (B, D) and (B', D), D = L for R_z and 2L for R_{z,g}: (B, B')."""
    return rows @ others.T


class ForwardPass:
    """A batch after one forward pass: its features z, and its Fisher scores g for any labels.

    Computed from float32 copies of logits, taps and gradients, also if the network computes in reduced precision.

    Args:
        positions: of the images in their split.
        grad: whether scores are wanted, so that the autograd graph is kept.
        twice: whether `pullback` or `jacobian` are wanted.

    Attributes:
        images: (B, C, H, W).
        positions: (B,) int64; None for images outside a split.
        logits: (B, C).
        features: (1), z before it is standardised: a list of (B, L_s).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        positions: Tensor | None,
        taps: Sequence[int] | None,
        grad: bool,
        twice: bool = False,
    ):
        self.images, self.positions = images, positions
        add_passes(forward=len(images))
        logits, chosen = run(model, images, taps, grad, twice)
        self._graph = Graph(logits, chosen)
        self.logits = at_least_float32(logits.detach())
        self.features = [pool_spatially(at_least_float32(tap.detach())) for tap in chosen]

    @functools.cached_property
    def z(self) -> Tensor:
        """(B, L) standardised features."""
        return standardise(self.features)

    def g(self, labels: Tensor, last: bool = True) -> Tensor:
        """(B, L) standardised Fisher scores for `labels`; see `scores`."""
        return standardise(self.scores(labels, last))

    @property
    def predictions(self) -> Tensor:
        """(B,) int64, the arg max over classes."""
        return self.logits.argmax(1)

    def scores(self, labels: Tensor, last: bool = True) -> list[Tensor]:
        """(2), g before it is standardised: a list of (B, L_s).

        The gradient of the *sum* over the batch contains every image's own gradient, since images do not interact in
        evaluation mode.

        Args:
            labels: (B,) int64, s: true or pseudo-labels.
            last: whether this is the last call, after which the graph is freed.
        """
        add_passes(backward=len(labels))
        loss = F.cross_entropy(at_least_float32(self._graph.logits), labels, reduction="sum")
        return [pool_spatially(g) for g in self._graph.gradients(loss, keep=not last)]

    def pullback(self, v: Tensor) -> list[Tensor]:
        """J^T v, pooled, with J the Jacobian of the logits with respect to the taps: a list of (B, L_s).

        Differentiable with respect to v (B, C).
        """
        add_passes(backward=len(v))
        return [pool_spatially(g) for g in self._graph.pullback(v)]

    def jacobian(self) -> Tensor:
        """(B, C, L): J^T e_c, pooled, for every class c, from one batched backward pass, which frees the graph."""
        images, classes = self.logits.shape
        add_passes(backward=images * classes)
        rows = self._graph.jacobian()
        pooled = [pool_spatially(g.flatten(0, 1)).unflatten(0, (classes, images)) for g in rows]
        return torch.cat(pooled, dim=2).transpose(0, 1)


LabelRule = Callable[[ForwardPass], Tensor]  # a batch -> the labels (B,) int64 of its scores


@dataclasses.dataclass
class Descriptors:
    """Descriptors of a split, in memory or mapped from a file.

    Attributes:
        vectors: (N, L) z~, or (N, 2L) [z~, g~] if Fisher scores are used.
        pseudo_labels: (N,) int64, the labels s of the scores, -1 without scores.
        predictions: (N,) int64, the model's arg max.
    """

    vectors: Tensor | np.ndarray | None  # all None in a process that does not keep them
    pseudo_labels: Tensor | np.ndarray | None
    predictions: Tensor | np.ndarray | None

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def empty(cls, images: int, width: int, device: torch.device | str = "cpu") -> "Descriptors":
        """Uninitialised descriptors of `images` images, with `width` values each."""
        label = torch.full((images,), -1, dtype=torch.int64, device=device)
        return cls(torch.empty(images, width, device=device), label, label.clone())


def descriptors_of(
    model: nn.Module,
    split: Split,
    taps: Sequence[int] | None = None,
    label: LabelRule | None = None,
    batch_size: int = 1000,
    allocate: Callable[[int, int], Descriptors] | None = None,
    name: str = "the split",
) -> Descriptors:
    """Descriptors of every image of `split`. Processes share the batches.

    Args:
        model: keeps the contract (`alfk.networks.contract`), in float32.
        taps: indices of the taps that make the descriptor, all if None.
        label: the rule for the labels of g; if None, the descriptor is z~ alone.
        allocate: (images, width) -> arrays to write into, by default new tensors on the split's device.
        name: of the split, for messages.
    Raises:
        UserError: a feature, score or logit is not finite.
    """
    if len(split) == 0:
        raise ValueError("there is no image to describe")

    def describe_batch(images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        # Layers that are random in evaluation too get the same draws in every call.
        with seeded_globally(int(positions[0]), split.device):
            batch = ForwardPass(model, images, positions, taps, grad=label is not None)
            labels = None if label is None else label(batch)
            parts = [batch.z] if label is None else [batch.z, batch.g(labels)]
        finite = torch.stack([part.isfinite().all(1) for part in (*parts, batch.logits)], dim=1)
        return torch.cat(parts, dim=1), batch.predictions, finite, *([] if labels is None else [labels])

    out, checked = None, ("features", "logits") if label is None else ("features", "Fisher scores", "logits")
    with computing(), evaluation_mode(model):
        for positions, results in distributed.map_batches(describe_batch, split, batch_size):
            rows, predictions, finite, *labels = results
            require_finite(finite, checked, positions, [model], split, name)
            if out is None:
                width = rows.shape[1]
                out = allocate(len(split), width) if allocate else Descriptors.empty(len(split), width, split.device)
            put(out.vectors, positions, rows)
            put(out.predictions, positions, predictions)
            put(out.pseudo_labels, positions, labels[0] if labels else torch.full_like(predictions, -1))
    return out
