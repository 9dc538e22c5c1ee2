"""Fisher-kernel descriptors of images (paper, Section 4; docs/method.md, section 5).

For an image i, a tap a of the network (one *scale*) and a label s_i, with <.>_space the mean over the tap's positions:

    z_i = <a_i>_space                                         features, one value per channel
    g_i = <d cross-entropy(logits_i, s_i) / d a_i>_space      Fisher score at the tap
    z~  = (z - mean z) / (std z + 1e-10), g~ likewise         each vector by its own mean and unbiased std
    R_z(i, j)     = sum over scales of <z~_i, z~_j>
    R_{z,g}(i, j) = sum over scales of <z~_i, z~_j> + <g~_i, g~_j>

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

from alfk import distributed
from alfk.data import Split
from alfk.network import add_passes, evaluation_mode


def pool_spatially(tap: Tensor) -> Tensor:
    """Average over space: (B, c, h, w) -> (B, c); a (B, c) tap is returned unchanged."""
    return tap.flatten(2).mean(2) if tap.ndim > 2 else tap


def standardise(scales: Sequence[Tensor]) -> Tensor:
    """Each vector of each scale minus its mean, divided by its unbiased standard deviation + 1e-10, then concatenated.

    The inner product of two results is, up to a constant, the Pearson correlation summed over scales (Section 4.2).

    Args:
        scales: tensors of shape (B, L_s), L_s at least 2.
    Returns:
        (B, L), L the sum of the L_s.
    """
    centred = [scale - scale.mean(1, keepdim=True) for scale in scales]
    return torch.cat([c / (c.std(1, keepdim=True) + 1e-10) for c in centred], dim=1)


class ForwardPass:
    """A batch after one forward pass, with the autograd graph kept for Fisher scores of any labels.

    Attributes:
        images: (B, C, H, W), the input.
        positions: (B,) int64, positions in the split (None for images outside a split).
        logits: (B, C).
        features: the pooled taps, a list of (B, L_s).
    """

    def __init__(
        self, model: nn.Module, images: Tensor, positions: Tensor | None, taps: Sequence[int] | None, grad: bool
    ):
        self.images, self.positions = images, positions
        add_passes(forward=len(images))
        with torch.set_grad_enabled(grad):
            logits, every_tap = model(images)
        self._live_logits, self._live_taps = logits, [every_tap[i] for i in taps] if taps is not None else every_tap
        self.logits = logits.detach()
        self.features = [pool_spatially(tap.detach()) for tap in self._live_taps]

    @functools.cached_property
    def z(self) -> Tensor:
        """(B, L) standardised features."""
        return standardise(self.features)

    @property
    def predictions(self) -> Tensor:
        """(B,) int64, the arg max over classes."""
        return self.logits.argmax(1)

    def scores(self, labels: Tensor, last: bool = True) -> list[Tensor]:
        """Gradients of cross-entropy(logits, labels) with respect to the taps, pooled: a list of (B, L_s).

        The gradient of the *sum* over the batch contains the gradient of every image, since images do not interact in
        evaluation mode.

        Args:
            labels: (B,) int64, true or pseudo labels.
            last: whether this is the last call, after which the graph is freed.
        """
        add_passes(backward=len(labels))
        loss = F.cross_entropy(self._live_logits, labels, reduction="sum")
        return [pool_spatially(g) for g in torch.autograd.grad(loss, self._live_taps, retain_graph=not last)]

    def g(self, labels: Tensor, last: bool = True) -> Tensor:
        """(B, L) standardised Fisher scores for `labels`; see `scores`."""
        return standardise(self.scores(labels, last))

    def pullback(self, v: Tensor) -> list[Tensor]:
        """J^T v, pooled, with J the Jacobian of the logits with respect to the taps: a list of (B, L_s).

        Differentiable with respect to v (B, C).
        """
        add_passes(backward=len(v))
        return [
            pool_spatially(g) for g in torch.autograd.grad(self._live_logits, self._live_taps, v, create_graph=True)
        ]

    def jacobian(self) -> Tensor:
        """(B, C, L): J^T e_c, pooled, for every class c, from one batched backward pass, which frees the graph."""
        images, classes = self.logits.shape
        add_passes(backward=images * classes)
        units = torch.eye(classes, dtype=self.logits.dtype, device=self.logits.device)
        units = units.unsqueeze(1).expand(classes, images, classes)
        rows = torch.autograd.grad(self._live_logits, self._live_taps, units, is_grads_batched=True)
        pooled = [pool_spatially(g.flatten(0, 1)).unflatten(0, (classes, images)) for g in rows]
        return torch.cat(pooled, dim=2).transpose(0, 1)


LabelRule = Callable[[ForwardPass], Tensor]


@dataclasses.dataclass
class Descriptors:
    """Descriptors of a split, in memory or mapped from a file.

    Attributes:
        vectors: (N, L) z, or (N, 2L) [z, g] if Fisher scores are used, standardised per scale: the similarity R_z or
            R_{z,g} of two images is the inner product of their rows.
        pseudo_labels: (N,) int64, the labels of g, -1 without g.
        predictions: (N,) int64, the model's arg max.
    """

    vectors: Tensor | np.ndarray | None  # None in a process that needs only the labels
    pseudo_labels: Tensor | np.ndarray
    predictions: Tensor | np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def empty(cls, images: int, width: int, device: torch.device | str = "cpu") -> "Descriptors":
        """Uninitialised descriptors of `images` images, with `width` values each."""
        label = torch.full((images,), -1, dtype=torch.int64, device=device)
        return cls(torch.empty(images, width, device=device), label, label.clone())


def describe(
    model: nn.Module,
    split: Split,
    taps: Sequence[int] | None = None,
    label: LabelRule | None = None,
    batch_size: int = 1000,
    allocate: Callable[[int, int], Descriptors] | None = None,
) -> Descriptors:
    """Descriptors of every image of `split`. Processes share the batches.

    Args:
        model: returns (logits (B, C), list of taps), each tap (B, c, h, w) or (B, c).
        taps: indices of the taps that make the descriptor, all if None.
        label: the rule for the labels of g; if None, the descriptor is z alone.
        allocate: (images, width) -> arrays to write into, by default new tensors on the split's device.
    """
    if len(split) == 0:
        raise ValueError("there is no image to describe")

    def describe_batch(images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        batch = ForwardPass(model, images, positions, taps, grad=label is not None)
        if label is None:
            return batch.z, batch.predictions
        labels = label(batch)
        return torch.cat([batch.z, batch.g(labels)], dim=1), batch.predictions, labels

    out = None
    with evaluation_mode(model):
        for positions, (rows, predictions, *labels) in distributed.map_batches(describe_batch, split, batch_size):
            if out is None:
                width = rows.shape[1]
                out = allocate(len(split), width) if allocate else Descriptors.empty(len(split), width, split.device)
            _put(out.vectors, positions, rows)
            _put(out.predictions, positions, predictions)
            _put(out.pseudo_labels, positions, labels[0] if labels else torch.full_like(predictions, -1))
    return out


def _put(target: Tensor | np.ndarray | None, positions: Tensor, rows: Tensor) -> None:
    if isinstance(target, Tensor):
        target[positions.to(target.device)] = rows.to(target.device, target.dtype)
    elif target is not None:
        target[positions.cpu().numpy()] = rows.cpu().numpy()
