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

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.networks.modes import computing, evaluation_mode, prepare
from alfk.networks.passes import add_passes, pool_spatially, put, require_finite
from alfk.networks.taps import run
from alfk.support import distributed
from alfk.support.errors import UserError, one_line
from alfk.support.seeding import seeded_globally

LOSS_SCALES = (2.0**14, 2.0**7, 1.0)  # where float16 is involved; the first whose gradients are finite


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

    A network may compute in reduced precision, as by autocast in its forward: whatever is computed from its logits,
    taps and gradients is float32. Gradients through float16 are computed with a loss scale, lest small ones become 0.

    Args:
        grad: whether scores are wanted.
        twice: whether `pullback` or `jacobian` are wanted.
    Raises:
        UserError: the model breaks the contract (see `alfk.networks.taps`), or the logits do not depend on a tap.

    Attributes:
        images: (B, C, H, W), the input.
        positions: (B,) int64, positions in the split (None for images outside a split).
        logits: (B, C).
        features: the pooled taps, a list of (B, L_s).
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
        self._live_logits, self._live_taps = run(model, images, taps, grad, twice)
        self._scales = LOSS_SCALES if grad and _is_half_inside(self._live_logits) else (1.0,)
        self.logits = _at_least_float32(self._live_logits.detach())
        self.features = [pool_spatially(_at_least_float32(tap.detach())) for tap in self._live_taps]

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
        loss = F.cross_entropy(_at_least_float32(self._live_logits), labels, reduction="sum")
        return [pool_spatially(g) for g in self._scaled(loss, None, keep=not last)]

    def g(self, labels: Tensor, last: bool = True) -> Tensor:
        """(B, L) standardised Fisher scores for `labels`; see `scores`."""
        return standardise(self.scores(labels, last))

    def pullback(self, v: Tensor) -> list[Tensor]:
        """J^T v, pooled, with J the Jacobian of the logits with respect to the taps: a list of (B, L_s).

        Differentiable with respect to v (B, C).
        """
        add_passes(backward=len(v))
        gradients = self._gradients(self._live_logits, v.to(self._live_logits.dtype), create_graph=True)
        return [pool_spatially(_at_least_float32(g)) for g in gradients]

    def jacobian(self) -> Tensor:
        """(B, C, L): J^T e_c, pooled, for every class c, from one batched backward pass, which frees the graph."""
        images, classes = self.logits.shape
        add_passes(backward=images * classes)
        units = torch.eye(classes, dtype=self._live_logits.dtype, device=self.logits.device)
        units = units.unsqueeze(1).expand(classes, images, classes)
        rows = self._scaled(self._live_logits, units, is_grads_batched=True)
        pooled = [pool_spatially(g.flatten(0, 1)).unflatten(0, (classes, images)) for g in rows]
        return torch.cat(pooled, dim=2).transpose(0, 1)

    def _scaled(self, outputs: Tensor, v: Tensor | None, keep: bool = False, **options: bool) -> list[Tensor]:
        """v^T d outputs / d taps (1 for v if None), in float32, by the first loss scale that gives finite gradients."""
        for scale in self._scales:
            if scale == 1:
                return [_at_least_float32(g) for g in self._gradients(outputs, v, retain_graph=keep, **options)]
            by = outputs * scale if v is None else outputs
            gradients = self._gradients(by, None if v is None else v * scale, retain_graph=True, **options)
            gradients = [_at_least_float32(g) / scale for g in gradients]
            if all(g.isfinite().all() for g in gradients):
                return gradients
        raise AssertionError("the last scale is 1")

    def _gradients(self, outputs: Tensor, v: Tensor | None, **options: bool) -> Sequence[Tensor]:
        with derivative_errors():
            gradients = torch.autograd.grad(outputs, self._live_taps, v, allow_unused=True, **options)
        for index, gradient in enumerate(gradients):
            if gradient is None:
                raise UserError(
                    f"the logits do not depend on tap {index} of the {len(gradients)} in use: logits must be computed "
                    "from the tap"
                )
        return gradients


@contextlib.contextmanager
def derivative_errors() -> Iterator[None]:
    """Raises UserError for torch's errors about derivatives that a layer does not have."""
    try:
        yield
    except RuntimeError as problem:
        if not re.search(r"derivative for|differentiate twice|used in the graph|vmap", str(problem)):
            raise
        raise UserError(
            f"a layer behind the taps has no derivative of the kind that the method needs ({one_line(problem)}): use "
            "Rzg_pz, which takes first derivatives for one label"
        ) from problem


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _is_half_inside(logits: Tensor) -> bool:
    """Whether a step of the computation of `logits` gave float16, whose gradients vanish below 6e-8."""
    steps, seen = [logits.grad_fn], set()
    while steps:
        step = steps.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if any(output.dtype == torch.float16 for output in getattr(step, "_input_metadata", ())):
            return True
        steps += [before for before, _ in step.next_functions]
    return False


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
    name: str = "the split",
) -> Descriptors:
    """Descriptors of every image of `split`. Processes share the batches.

    Args:
        model: returns (logits (B, C), list of taps), each tap (B, c, h, w) or (B, c); see `alfk.networks.taps`.
        taps: indices of the taps that make the descriptor, all if None.
        label: the rule for the labels of g; if None, the descriptor is z alone.
        allocate: (images, width) -> arrays to write into, by default new tensors on the split's device.
        name: of the split, for messages.
    Raises:
        UserError: the model breaks the contract, or a feature, score or logit is not finite.
    """
    if len(split) == 0:
        raise ValueError("there is no image to describe")
    model = prepare(model)

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
