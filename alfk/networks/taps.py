"""Taps, the layers whose features and Fisher scores describe an image, read from any model by forward hooks."""

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from alfk.networks.contract import kind
from alfk.networks.layout import Layouts, batch_is_second, channels_last_by_type, first_tensor
from alfk.networks.modes import unwrap
from alfk.support.errors import UserError


def tapped(model: nn.Module, names: Sequence[str], channels_last: bool | None = None) -> "Tapped":
    """A model that returns (logits, taps) from any model and the names of its layers.

    The network is shared, not copied: train either. Layers are read by forward hooks that exist during a forward pass
    only. A tap is read before any layer behind it can change it in place, and may lie in a frozen part of the network.

    Args:
        model: returns the logits (B, C), or a dictionary, object or tuple with them.
        names: layers, as in `model.named_modules()`; `suggest_taps` proposes some.
        channels_last: whether outputs are tokens (B, T, D) or maps (B, H, W, C); their channels are then moved to the
            second dimension of the tap. If None, the layers' types and the maps' strides decide, and an output for
            which they do not is refused. It is not needed for layers whose type decides, such as Conv2d or Linear.
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

    channels_first = True  # in every tap

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
        layers = dict(self.model.named_modules(remove_duplicate=False))
        for name in self.names:
            _check_name(name, layers)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        layers = {name: self.model.get_submodule(name) for name in self.names}
        reader = _Reader(Layouts(images, self.channels_last), len(images))
        with contextlib.ExitStack() as stack:
            if self.channels_last is None and any(channels_last_by_type(layer) is None for layer in layers.values()):
                stack.enter_context(reader.layouts.following(self.model))
            for name, layer in layers.items():
                stack.callback(layer.register_forward_hook(reader.hook(name)).remove)
            output = self.model(images)
        return find_logits(output, len(images)), reader.taps(self.names)


def _check_name(name: str, layers: Mapping[str, nn.Module]) -> None:
    """Raises UserError unless there is a layer of that name that can have a hook."""
    if name not in layers or not name:
        names = [each for each in layers if each]
        near = difflib.get_close_matches(str(name), names, 3, 0.5)
        hint = f"it has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}; alfk.suggest_taps lists all"
        if near:
            hint = f"did you mean {', '.join(near)}?"
        raise UserError(f"the model has no layer {name!r}: {hint}")
    path = name.split(".")
    around = [layers[".".join(path[:depth])] for depth in range(len(path) + 1)]
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in around):
        raise UserError(f"layer {name!r} is scripted: pass the module as it is before torch.jit.script")


class _Reader:
    """Reads the outputs of tapped layers in one forward pass.

    Args:
        layouts: decides where the channels are.
        batch: number of images.
    """

    def __init__(self, layouts: Layouts, batch: int):
        self.layouts, self.batch = layouts, batch
        self.grad = torch.is_grad_enabled()
        self.found: dict[str, tuple[Tensor, int]] = {}  # name -> tap, and how often it had been changed in place

    def hook(self, name: str) -> Callable[[nn.Module, tuple, object], object]:
        """The forward hook of a layer: it keeps the output, and passes a copy on to the rest of the network."""
        return lambda layer, _, output: _replace_first(output, self.read(name, layer, output))

    def read(self, name: str, layer: nn.Module, output: object) -> Tensor:
        """Keep a layer's output as a tap. Returns what the rest of the network gets in its place."""
        self._check(name, layer, output)
        tensor = first_tensor(output)
        channels_last = self.layouts.channels_last(layer, tensor)
        if channels_last is None:
            raise UserError(
                f"layer {name!r} returns {tuple(tensor.shape)}: say which dimension is the channels, by "
                "alfk.tapped(..., channels_last=True) for tokens (B, T, D), False for (B, c, l)"
            )
        # A network may run the layer under no_grad(): with a gradient from here on, the rest still depends on the tap.
        with torch.inference_mode(False) if self.grad else contextlib.nullcontext(), torch.set_grad_enabled(self.grad):
            if self.grad and not tensor.requires_grad:
                tensor = (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()
            tap = tensor.movedim(-1, 1) if channels_last else tensor
            rest = (tap.movedim(1, -1) if channels_last else tap).clone()
        self.found[name] = tap, _version(tap)
        return rest

    def _check(self, name: str, layer: nn.Module, output: object) -> None:
        """Raises UserError unless the layer returns, once in a pass, a float tensor (B, ...)."""
        if name in self.found:
            raise UserError(f"layer {name!r} runs more than once in a forward pass: tap a layer that contains it")
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            raise UserError(f"layer {name!r} returns {kind(output)}, not a float tensor: tap a layer inside it")
        shape = tuple(tensor.shape)
        if tensor.ndim == 3 and batch_is_second(layer):
            raise UserError(f"layer {name!r} returns {shape}, tokens before images: make it with batch_first=True")
        if tensor.ndim < 2 or len(tensor) != self.batch:
            raise UserError(f"layer {name!r} returns {shape} for {self.batch} images: tap one that is (B, ...)")

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


def _replace_first(output: object, tensor: Tensor) -> object:
    """`output` with `tensor` in the place of `first_tensor(output)`."""
    if isinstance(output, Tensor):
        return tensor
    rest = [tensor, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def find_logits(output: object, batch: int) -> Tensor:
    """The logits in a model's output: the output itself, its `logits`, or the only tensor (batch, C) of a tuple.

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
            f"the model returned {kind(output)}, where the logits (B, C) cannot be recognised: wrap it in a module "
            "whose forward returns only them"
        )
    return found
