"""What a model must return, checked once on a few images before a query uses it.

The contract: a model's forward returns (logits (B, C), list of taps), and the logits are computed from the taps. They
are what a softmax makes probabilities of, not the probabilities; their logarithms are logits too. A tap
is (B, c), (B, c, h, w) or (B, c, d, h, w) with c channels, at least 2, over which a descriptor is standardised; it is
averaged over all other dimensions. An in-place operation in a model's own forward changes a tap that it returns: the
tap is then the result of that operation.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from alfk.networks.layout import channels_last_by_shape
from alfk.networks.modes import evaluation_mode
from alfk.networks.passes import forward
from alfk.support.errors import UserError, one_line
from alfk.support.seeding import seeded_globally

FEW = 5  # images that a model is checked on
# What torch, torchvision, timm and transformers say of images that do not fit.
SHAPES = r"(?i)channels?\b|shapes\b|size of tensor|invalid for input of size|elements not|normalized_shape|height|width"

CONTRACT = (
    "forward must return (logits (B, C), list of taps); alfk.tapped(model, names of layers) makes one of any model"
)


def check_model(model: nn.Module, images: Tensor, taps: Sequence[int] | None = None, scores: bool = False) -> int:
    """Run a model on a few images and check what it returns.

    Args:
        images: (B, ...), normalised.
        taps: indices of the taps that will be used; all if None, none if empty.
        scores: whether gradients of the logits with respect to these taps will be used.
    Returns:
        C, the number of classes.
    Raises:
        UserError: the model breaks the contract, or cannot be run on float32 images on this device.
    """
    with evaluation_mode(model), seeded_globally(0, images.device), forward_errors(images.shape):
        # By the graph a sigmoid at the end is known. A script is compiled for the passes that it sees first.
        is_script = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
        output = forward(model, images, grad=scores or not is_script)
        if hasattr(model, "before_dropout"):  # as MC-dropout runs it
            _check_pair(model.after_dropout(model.before_dropout(images)), len(images))
    logits, every = _check_pair(output, len(images))
    chosen = _chosen(every, taps)
    for index, tap in chosen.items():
        _check_tap(tap, images, f"tap {index}", getattr(model, "channels_first", False))
    if scores:
        _check_gradients(logits, chosen)
    return logits.shape[1]


@contextlib.contextmanager
def forward_errors(shape: Sequence[int]) -> Iterator[None]:
    """Raises UserError for errors about devices, about types, as from a network that casts its input, and about shapes.

    Args:
        shape: of the images (B, ...).
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as problem:
        if re.search(SHAPES, str(problem)):
            raise UserError(
                f"the model's forward fails with images {tuple(shape[1:])} ({one_line(problem)}): give images of the "
                "size and the channels that it was trained with, grey ones for a colour network as "
                "images.expand(-1, 3, -1, -1)"
            ) from problem
        if re.search(r"on the same device|torch\.cuda\.\w+Tensor", str(problem)):
            raise UserError("model and images are on different devices: move one, e.g. pool.to(device)") from problem
        if not re.search(r"\b(d?type|scalar type)\b.*(Half|BFloat16|Float|Double|float|Byte)", str(problem)):
            raise
        raise UserError(
            f"the model's forward fails with float32 images and weights ({one_line(problem)}): pass model.float(), "
            "without casts in its forward"
        ) from problem


@contextlib.contextmanager
def derivative_errors() -> Iterator[None]:
    """Raises UserError for torch's errors about derivatives that a layer does not have."""
    try:
        yield
    except RuntimeError as problem:
        if "use_reentrant" in str(problem):
            raise UserError(
                "the model uses torch.utils.checkpoint with use_reentrant=True, which allows no gradients for taps: "
                "use use_reentrant=False"
            ) from problem
        if not re.search(r"derivative for|differentiate twice|used in the graph|vmap", str(problem)):
            raise
        raise UserError(
            f"a layer behind the taps has no derivative of the kind that the method needs ({one_line(problem)}): use "
            "Rzg_pz, which takes first derivatives for one label"
        ) from problem


def _check_pair(output: object, batch: int) -> tuple[Tensor, Sequence[object]]:
    """The output as (logits (batch, C), taps)."""
    if not isinstance(output, tuple | list) or len(output) != 2 or not isinstance(output[1], tuple | list):
        raise UserError(f"the model returned {kind(output)}: {CONTRACT}")
    logits, taps = output
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise UserError(f"the model's logits are {kind(logits)}: {CONTRACT}")
    if logits.ndim != 2 or len(logits) != batch:
        raise UserError(f"the model's logits are {kind(logits)} for {batch} images, not ({batch}, classes)")
    if logits.shape[1] < 2:
        raise UserError("the model has one logit: return one for each of two classes, torch.cat([0 * x, x], 1) of it")
    if type(logits.grad_fn).__name__ == "SigmoidBackward0":
        raise UserError("the model returns sigmoids of its logits: leave out the sigmoid at its end")
    rounding = max(1e-4, torch.finfo(logits.dtype).eps)
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() <= rounding).all():
        raise UserError("the model returns probabilities, not logits: leave out the softmax at its end")
    return logits, taps


def _chosen(every: Sequence[object], indices: Sequence[int] | None) -> dict[int, object]:
    """Index -> tap."""
    if indices is None:
        if not every:
            raise UserError(f"the model returned no taps: {CONTRACT}")
        indices = range(len(every))
    for index in indices:
        if not -len(every) <= index < len(every):
            raise UserError(f"there is no tap {index}: the model returned {len(every)}, counted from 0")
    return {index: every[index] for index in indices}


def _check_tap(tap: object, images: Tensor, name: str, channels_first: bool) -> None:
    """Raises UserError unless a tap is a float tensor (B, c, ...) with at least 2 channels.

    Args:
        channels_first: whether the second dimension is known to be the channels.
    """
    if not isinstance(tap, Tensor) or not tap.is_floating_point():
        raise UserError(f"{name} is {kind(tap)}, not a float tensor (B, channels, ...)")
    shape = tuple(tap.shape)
    if not 2 <= tap.ndim <= 5 or shape[0] != len(images):
        raise UserError(f"{name} is {shape} for {len(images)} images, not (B, c), (B, c, h, w) or (B, c, d, h, w)")
    fix = "make the model by alfk.tapped(..., channels_last=True), or False if the second dimension is the channels"
    if not channels_first and tap.ndim == 3:
        raise UserError(f"{name} is {shape}, which may be tokens or channels first: {fix}")
    if not channels_first and channels_last_by_shape(shape, images.shape):
        raise UserError(f"{name} is {shape}, whose channels seem to be the last dimension: {fix}")
    if shape[1] < 2:
        raise UserError(f"{name} is {shape}, with one channel, but a correlation needs two: tap another layer")


def _check_gradients(logits: Tensor, taps: Mapping[int, Tensor]) -> None:
    """Raises UserError unless the logits can be differentiated with respect to every tap."""
    if not logits.requires_grad:
        raise UserError(
            "the logits have no gradient: the model's forward detaches them, or computes them under torch.no_grad(); "
            "compute the layers behind the taps with gradients"
        )
    computed_from = "logits must be computed from the tap (alfk.tapped(model, names of layers) ensures it)"
    for index, tap in taps.items():
        if not tap.requires_grad:
            raise UserError(
                f"tap {index} has no gradient, since it is detached or made under torch.no_grad(): {computed_from}"
            )
    with derivative_errors():
        gradients = torch.autograd.grad(logits.sum(), list(taps.values()), allow_unused=True)
    for index, gradient in zip(taps, gradients, strict=True):
        if gradient is None:
            raise UserError(f"the logits do not depend on tap {index}: {computed_from}")


def kind(value: object) -> str:
    """What a value is, in a few words for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a dictionary ({', '.join(map(str, value))})"
    if isinstance(value, tuple | list):
        kinds = [kind(entry) if isinstance(entry, Tensor) else f"a {type(entry).__name__}" for entry in value[:4]]
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds)}{', ...' if len(value) > 4 else ''})"
    return "None" if value is None else f"a {type(value).__name__}"
