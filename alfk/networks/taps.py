"""Taps, the layers whose features and Fisher scores describe an image: a model's contract, and taps of any model.

The contract: a model's forward returns (logits (B, C), list of taps), and the logits are computed from the taps. A tap
is (B, c), (B, c, h, w) or (B, c, d, h, w) with c channels, at least 2, over which a descriptor is standardised; it is
averaged over all other dimensions. `run` checks this for every batch; `tapped` makes such a model of any other one, and
`suggest_taps` proposes its layers. An in-place operation in a model's own forward changes a tap that it returns: such a
tap is what the operation leaves.
"""

import contextlib
import difflib
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alfk.networks.modes import unwrap
from alfk.support.errors import UserError, one_line

CONTRACT = (
    "forward must return (logits (B, C), list of taps); alfk.tapped(model, names of layers) makes one of any model"
)

# One forward pass


def run(
    model: nn.Module, images: Tensor, taps: Sequence[int] | None = None, grad: bool = False, twice: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The logits and the chosen taps of one forward pass, checked.

    Args:
        images: (B, C, H, W).
        taps: indices into the model's list of taps; all if None.
        grad: whether gradients of the logits with respect to the taps are wanted. The images then require a gradient,
            so that a network whose weights are all frozen has a graph too.
        twice: whether they are differentiated again, or batched. Attention is then computed by the plain formula, since
            the fused kernels have no second derivatives.
    Returns:
        (B, C) and a list of taps, with the graph if `grad`.
    Raises:
        UserError: the model breaks the contract.
    """
    if grad:
        images = _with_gradient(images)
    attention = sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()
    with torch.set_grad_enabled(grad), attention, forward_errors():
        output = model(images)
    logits, chosen = check_output(output, images, taps, channels_first=isinstance(model, Tapped))
    if grad:
        _check_graph(logits, chosen)
    return logits, list(chosen.values())


def logits_of_batch(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C): the checked logits of one forward pass; taps are not looked at."""
    with forward_errors():
        output = model(images)
    return check_output(output, images, ())[0]


def _with_gradient(images: Tensor) -> Tensor:
    """A copy that requires a gradient, and no leaf, which a model could not change in place."""
    if not images.is_floating_point():
        return images
    return (images.clone() if images.is_inference() else images.detach()).requires_grad_().clone()


@contextlib.contextmanager
def forward_errors() -> Iterator[None]:
    """Raises UserError for torch's errors about devices, and about types, as of a network that casts its input."""
    try:
        yield
    except RuntimeError as problem:
        if re.search(r"on the same device|torch\.cuda\.\w+Tensor", str(problem)):
            raise UserError("model and images are on different devices: move one, e.g. pool.to(device)") from problem
        if not re.search(r"\b(d?type|scalar type)\b.*(Half|BFloat16|Float|Double|float|Byte)", str(problem)):
            raise
        raise UserError(
            f"the model's forward fails with float32 images and weights ({one_line(problem)}): pass model.float(), "
            "without casts in its forward"
        ) from problem


def check_output(
    output: object, images: Tensor, taps: Sequence[int] | None = None, channels_first: bool = False
) -> tuple[Tensor, dict[int, Tensor]]:
    """The logits and the chosen taps of a model's output.

    Args:
        output: what forward returned for `images` (B, ...).
        taps: indices of the taps; all if None.
        channels_first: whether the second dimension of every tap is known to be its channels.
    Returns:
        (B, C) and index -> tap, in the order of `taps`.
    Raises:
        UserError: the output is not (logits, list of taps), a tap does not exist or cannot be used.
    """
    if not isinstance(output, tuple | list) or len(output) != 2 or not isinstance(output[1], tuple | list):
        raise UserError(f"the model returned {_kind(output)}: {CONTRACT}")
    logits, every = output
    check_logits(logits, len(images))
    if taps is None:
        chosen = list(range(len(every)))
        if not chosen:
            raise UserError(f"the model returned no taps: {CONTRACT}")
    else:
        chosen = [operator.index(tap) for tap in taps]
    for index in chosen:
        if not -len(every) <= index < len(every):
            raise UserError(f"there is no tap {index}: the model returned {len(every)}, counted from 0")
        check_tap(every[index], images, f"tap {index}", channels_first)
    return logits, {index: every[index] for index in chosen}


def check_logits(logits: object, batch: int) -> None:
    """Raises UserError unless `logits` is a float tensor (batch, C), C at least 2."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise UserError(f"the model's logits are {_kind(logits)}: {CONTRACT}")
    if logits.ndim != 2 or len(logits) != batch:
        raise UserError(f"the model's logits are {_kind(logits)} for {batch} images, not ({batch}, classes)")
    if logits.shape[1] < 2:
        raise UserError("the model has one logit: return one for each of two classes, torch.cat([0 * x, x], 1) of it")


def check_tap(tap: object, images: Tensor, name: str, channels_first: bool) -> None:
    """Raises UserError unless `tap` can describe `images`: a float tensor (B, c, ...) with at least 2 channels."""
    if not isinstance(tap, Tensor) or not tap.is_floating_point():
        raise UserError(f"{name} is {_kind(tap)}, not a float tensor (B, channels, ...)")
    shape = tuple(tap.shape)
    if not 2 <= tap.ndim <= 5 or shape[0] != len(images):
        raise UserError(f"{name} is {shape} for {len(images)} images, not (B, c), (B, c, h, w) or (B, c, d, h, w)")
    fix = "make the model by alfk.tapped(..., channels_last=True), or False if the second dimension is the channels"
    if not channels_first and tap.ndim == 3:
        raise UserError(f"{name} is {shape}, where tokens and channels cannot be told apart: {fix}")
    if not channels_first and channels_last_by_shape(shape, images.shape):
        raise UserError(f"{name} is {shape}, whose channels seem to be the last dimension: {fix}")
    if shape[1] < 2:
        raise UserError(f"{name} is {shape}, with one channel, but a correlation needs two: tap another layer")


def _check_graph(logits: Tensor, taps: Mapping[int, Tensor]) -> None:
    if not logits.requires_grad:
        raise UserError(
            "the logits have no gradient: the model's forward detaches them, or computes them under torch.no_grad(); "
            "compute the layers behind the taps with gradients"
        )
    for index, tap in taps.items():
        if not tap.requires_grad:
            raise UserError(
                f"tap {index} has no gradient, since it is detached or made under torch.no_grad(): logits must be "
                "computed from the tap (alfk.tapped(model, names of layers) sees to it)"
            )


def _kind(value: object) -> str:
    """A few words on a value, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a dictionary ({', '.join(map(str, value))})"
    if isinstance(value, tuple | list):
        kinds = [_kind(entry) if isinstance(entry, Tensor) else f"a {type(entry).__name__}" for entry in value[:4]]
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds)}{', ...' if len(value) > 4 else ''})"
    return "None" if value is None else f"a {type(value).__name__}"


# Which dimension is the channels

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,  # batch and instance norm
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (
    nn.Linear,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.RNNBase,
)


def channels_last_by_type(module: nn.Module) -> bool | None:
    """Whether the channels of a layer's output are its last dimension; None if its type does not settle it."""
    if isinstance(module, _CHANNELS_FIRST):
        return False
    # Classes derived from LayerNorm may transpose, as torchvision's LayerNorm2d does.
    norm = type(module) in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1
    return True if norm or isinstance(module, _CHANNELS_LAST) else None


def channels_last_by_shape(shape: Sequence[int], images: Sequence[int]) -> bool | None:
    """Whether the channels of a map (B, ...) are its last dimension, from equal strides on the images (B, C, H, W).

    Returns:
        False if only (B, c, h, w) has equal strides, True if only (B, h, w, c) has, None if both have or none has.
    """
    if len(shape) != len(images) or len(shape) < 4:
        return None
    first, last = _equal_strides(shape[2:], images[2:]), _equal_strides(shape[1:-1], images[2:])
    return None if first == last else last


def _equal_strides(sides: Sequence[int], images: Sequence[int]) -> bool:
    """Whether a map's sides are the image's sides divided by the same number, up to padding where they differ."""
    pairs = list(zip(sides, images, strict=True))
    (side, length), rest = pairs[0], pairs[1:]
    return all(abs(other - of * side / length) <= (0 if of == length else 1) for other, of in rest)


class LastLeaf:
    """The layer that ran last and whose type settles where the channels are: containers and activations ask it."""

    def __init__(self) -> None:
        self.last: bool | None = None
        self.shape: torch.Size | None = None

    def hook(self, module: nn.Module, inputs: tuple, output: object) -> None:
        """A forward hook for every layer without layers inside."""
        tensor = first_tensor(output)
        if tensor is None:
            return
        settled = channels_last_by_type(module)
        elementwise = type(module).__module__ in (nn.modules.activation.__name__, nn.modules.dropout.__name__)
        kept = tensor.shape == self.shape and (elementwise or tensor.shape[1] != tensor.shape[-1])
        if settled is not None or not kept:
            self.last, self.shape = settled, tensor.shape

    def of(self, tensor: Tensor) -> bool | None:
        """Whether the channels of a tensor of that shape are its last dimension; None if not known."""
        return self.last if tensor.shape == self.shape else None


def channels_last_of(
    module: nn.Module, tensor: Tensor, images: Tensor, answer: bool | None, leaf: LastLeaf
) -> bool | None:
    """Whether the channels of a layer's output (B, ...) are its last dimension; None if that is not known.

    What settles it, in this order: the layer's type, the user's answer, equal strides on the images, and the type of
    the layer inside that ran last. Maps that none of these settles have their channels first, as is usual.
    """
    if tensor.ndim < 3:
        return False
    by_type = channels_last_by_type(module)
    known = by_type if by_type is not None else answer
    if known is None:
        known = channels_last_by_shape(tensor.shape, images.shape)
    if known is None:
        known = leaf.of(tensor)
    if tensor.ndim == 3:
        # After a transpose outside of all layers a square (B, n, n) looks like the layer before.
        square = by_type is None and answer is None and tensor.shape[1] == tensor.shape[2]
        return None if square else known
    return bool(known)


# Taps of any model


def tapped(model: nn.Module, names: Sequence[str], channels_last: bool | None = None) -> "Tapped":
    """A model that returns (logits, taps) from any model and the names of its layers.

    The network is shared, not copied: train either. Layers are read by forward hooks that exist during a forward pass
    alone. A tap is read before any layer behind it can change it in place, and may lie in a frozen part of the network.

    Args:
        model: returns the logits (B, C), or a dictionary, object or tuple with them.
        names: layers, as in `model.named_modules()`; `suggest_taps` proposes some.
        channels_last: whether outputs are tokens (B, T, D) or maps (B, H, W, C); their channels are then moved to the
            second dimension of the tap. If None, it is taken from the layers and from the maps' strides, and an output
            that these do not settle is refused. Layers whose type settles it, like Conv2d or Linear, need no answer.
    Raises:
        UserError: there is no such layer, or the model is scripted.
    """
    return Tapped(model, names, channels_last)


class Tapped(nn.Module):
    """A network and the names of its tapped layers; see `tapped`.

    Attributes:
        model: the network.
        names: the layers, in the order of the taps.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], channels_last: bool | None = None):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise UserError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
        model = unwrap(model)
        self.model = model.model if isinstance(model, Tapped) else model
        self.names = [names] if isinstance(names, str) else list(names)
        self.channels_last = channels_last
        if not self.names:
            raise UserError("no layer to tap: give names as in model.named_modules(); alfk.suggest_taps proposes some")
        if len(set(self.names)) < len(self.names):
            raise UserError(f"a layer is named twice among the taps: {', '.join(self.names)}")
        self.layers()

    def layers(self) -> dict[str, nn.Module]:
        """Name -> tapped layer, as the network is now. Raises UserError."""
        every = dict(self.model.named_modules(remove_duplicate=False))
        for name in self.names:
            if name not in every or not name:
                raise UserError(f"the model has no layer {name!r}: {_near(str(name), [key for key in every if key])}")
            path = name.split(".")
            inside = [every[".".join(path[:depth])] for depth in range(len(path) + 1)]
            if any(isinstance(module, torch.jit.ScriptModule) for module in inside):
                raise UserError(f"layer {name!r} is scripted: pass the module as it is before torch.jit.script")
        return {name: every[name] for name in self.names}

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        layers = self.layers()
        reader = _Reader(images, self.channels_last)
        with contextlib.ExitStack() as hooks:
            if self.channels_last is None and any(channels_last_by_type(layer) is None for layer in layers.values()):
                for leaf in leaves(self.model):
                    hooks.callback(leaf.register_forward_hook(reader.leaf.hook).remove)
            for name, layer in layers.items():
                hooks.callback(layer.register_forward_hook(reader.hook(name)).remove)
            output = self.model(images)
        return logits_from(output, len(images)), reader.taps(self.names)


def leaves(model: nn.Module) -> list[nn.Module]:
    """Layers without layers inside; attention, which does not call its own, is one."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) or next(module.children(), None) is None
    ]


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 3, 0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"it has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}; alfk.suggest_taps lists all"


class _Reader:
    """Reads the outputs of tapped layers in one forward pass.

    Args:
        images: (B, ...), the input.
        channels_last: the user's answer; see `tapped`.
    """

    def __init__(self, images: Tensor, channels_last: bool | None):
        self.images, self.answer = images, channels_last
        self.grad = torch.is_grad_enabled()
        self.leaf = LastLeaf()
        self.found: dict[str, tuple[Tensor, int]] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple, object], object]:
        """The forward hook of a layer: it keeps the output, and passes a copy on to the rest of the network."""
        return lambda module, _, output: replace_first(output, self.read(name, module, output))

    def read(self, name: str, module: nn.Module, output: object) -> Tensor:
        """Keep a layer's output as a tap; returns what the rest of the network gets in its place."""
        if name in self.found:
            raise UserError(f"layer {name!r} runs more than once in a forward pass: tap a layer that contains it")
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            raise UserError(f"layer {name!r} returns {_kind(output)}, not a float tensor: tap a layer inside it")
        shape = tuple(tensor.shape)
        if tensor.ndim == 3 and batch_is_second(module):
            raise UserError(f"layer {name!r} returns {shape}, tokens before images: make it with batch_first=True")
        if tensor.ndim < 2 or len(tensor) != len(self.images):
            raise UserError(f"layer {name!r} returns {shape} for {len(self.images)} images: tap one that is (B, ...)")
        last = channels_last_of(module, tensor, self.images, self.answer, self.leaf)
        if last is None:
            raise UserError(
                f"layer {name!r} returns {shape}: say which dimension is the channels, by alfk.tapped(..., "
                "channels_last=True) for tokens (B, T, D), False for (B, c, l)"
            )
        # A network may run the layer under no_grad(): with a gradient from here on, the rest still depends on the tap.
        with torch.inference_mode(False) if self.grad else contextlib.nullcontext(), torch.set_grad_enabled(self.grad):
            if self.grad and not tensor.requires_grad:
                tensor = (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()
            tap = tensor.movedim(-1, 1) if last else tensor
            rest = (tap.movedim(1, -1) if last else tap).clone()
        self.found[name] = tap, _version(tap)
        return rest

    def taps(self, names: Sequence[str]) -> list[Tensor]:
        """The taps after the forward pass. Raises UserError for one that did not run, or was changed in place."""
        for name in names:
            if name not in self.found:
                raise UserError(f"layer {name!r} does not run in a forward pass: tap a layer that does")
            tap, version = self.found[name]
            if _version(tap) != version:
                raise UserError(f"the output of {name!r} is changed in place behind it: tap the layer that does it")
        return [self.found[name][0] for name in names]


def _version(tensor: Tensor) -> int:
    """Number of changes in place."""
    return 0 if tensor.is_inference() else tensor._version


def batch_is_second(module: nn.Module) -> bool:
    """Whether a layer of torch was made for (T, B, D)."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    module = getattr(module, "self_attn", module)
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase) and not module.batch_first


def first_tensor(output: object) -> Tensor | None:
    """A layer's output, or the first entry of a tuple, as attention returns; None if it is no tensor."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def replace_first(output: object, tensor: Tensor) -> object:
    """`output` with `tensor` in the place of `first_tensor(output)`."""
    if isinstance(output, Tensor):
        return tensor
    rest = [tensor, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def logits_from(output: object, batch: int) -> Tensor:
    """The logits (batch, C) in a model's output: itself, its `logits`, or the only such tensor of a tuple.

    Raises:
        UserError: there are none, or several.
    """
    found = output
    if isinstance(output, Mapping) and "logits" in output:
        found = output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = output.logits
    elif isinstance(output, tuple | list):
        tensors = [entry for entry in output if isinstance(entry, Tensor) and entry.ndim == 2 and len(entry) == batch]
        found = tensors[0] if len(tensors) == 1 else None
    if not isinstance(found, Tensor):
        raise UserError(
            f"the model returned {_kind(output)}, where the logits (B, C) cannot be told: wrap it in a module whose "
            "forward returns them alone"
        )
    check_logits(found, batch)
    return found
