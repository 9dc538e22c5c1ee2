"""What every pass of a network over a split needs: the forward pass, the count of images, pooling, finite values."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alfk.data.split import Split
from alfk.support.errors import UserError


def run(
    model: nn.Module, images: Tensor, taps: Sequence[int] | None = None, grad: bool = False, twice: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, C) and the chosen taps of one forward pass.

    Args:
        model: keeps the contract (`alfk.networks.contract`), which is not checked here.
        images: (B, C, H, W), or features (B, D).
        taps: indices into the model's list of taps; all if None.
        grad, twice: see `forward`.
    """
    logits, every = forward(model, images, grad, twice)
    return logits, list(every) if taps is None else [every[index] for index in taps]


def forward(model: nn.Module, images: Tensor, grad: bool = False, twice: bool = False) -> object:
    """What a model returns for images (B, ...).

    Args:
        grad: whether the logits will be differentiated with respect to the taps. The images then require a gradient, so
            that a network whose weights are all frozen has a graph too.
        twice: whether they are differentiated again, or in a batch. Attention is then computed by the plain formula,
            since the fused kernels have no second derivatives.
    """
    if grad and images.is_floating_point():
        # A non-leaf copy with requires_grad: models cannot modify leaves in place.
        images = (images.clone() if images.is_inference() else images.detach()).requires_grad_().clone()
    attention = sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()
    with torch.set_grad_enabled(grad), attention:
        return model(images)


@dataclasses.dataclass
class Passes:
    """Number of images in forward and in backward passes."""

    forward: int = 0
    backward: int = 0


_passes: contextvars.ContextVar[Passes | None] = contextvars.ContextVar("passes", default=None)


@contextlib.contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the passes that `add_passes` reports inside the block, in this process."""
    passes = Passes()
    token = _passes.set(passes)
    try:
        yield passes
    finally:
        _passes.reset(token)


def add_passes(forward: int = 0, backward: int = 0) -> None:
    """Add images in forward and backward passes to the count of the enclosing `count_passes`, if there is one."""
    passes = _passes.get()
    if passes is not None:
        passes.forward += forward
        passes.backward += backward


def pool_spatially(tap: Tensor) -> Tensor:
    """Average over space: (B, c, ...) -> (B, c); a tap (B, c) is returned unchanged."""
    return tap.flatten(2).mean(2) if tap.ndim > 2 else tap


def require_finite(
    finite: Tensor, checked: Sequence[str], positions: Tensor, models: Sequence[nn.Module], split: Split, name: str
) -> None:
    """Raises UserError if values of an image are not finite, with its position and, if it can be seen, the cause.

    In a process group all processes call it with the results of the same batch, so that all of them stop.

    Args:
        finite: (B, k) bool, whether an image's values of each of k kinds are finite.
        checked: names of the k kinds.
        positions: (B,) int64, of the images in `split`.
        name: of the split.
    """
    if finite.all():
        return
    row, kind = (~finite).nonzero()[0].tolist()
    position = int(positions[row])
    image = next(split.batches(1, torch.tensor([position])))[0]
    weights = [values for model in models for values in (*model.parameters(), *model.buffers())]
    if not image.isfinite().all():
        cause = "nor are its pixels: fix or remove the image"
    elif not all(values.isfinite().all() for values in weights):
        cause = "nor are the model's weights: its training diverged"
    else:
        cause = "a layer overflows: pixels or weights may be too large"
    raise UserError(f"image {position} of {name}: its {checked[kind]} are not finite, {cause}")


def put(target: Tensor | np.ndarray | None, positions: Tensor, rows: Tensor) -> None:
    """Write `rows` (B, ...) at the positions (B,) of an array; nothing for None."""
    if isinstance(target, Tensor):
        target[positions.to(target.device)] = rows.to(target.device, target.dtype)
    elif target is not None:
        target[positions.cpu().numpy()] = rows.cpu().numpy()
