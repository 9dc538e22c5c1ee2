"""Where the channels of a layer's output are: in its second dimension (maps (B, c, h, w)) or its last (tokens)."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

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
_ELEMENTWISE = (nn.modules.activation.__name__, nn.modules.dropout.__name__)  # modules whose layers keep the layout


def channels_last_by_type(layer: nn.Module) -> bool | None:
    """Whether the type of a layer puts its channels last; None if the type leaves it open."""
    if isinstance(layer, _CHANNELS_FIRST):
        return False
    # Classes derived from LayerNorm may transpose, as torchvision's LayerNorm2d does.
    norm = type(layer) in (nn.LayerNorm, nn.RMSNorm) and len(layer.normalized_shape) == 1
    return True if norm or isinstance(layer, _CHANNELS_LAST) else None


def channels_last_by_shape(shape: Sequence[int], images: Sequence[int]) -> bool | None:
    """Whether a map (B, ...) has its channels last, by equal strides on the images (B, C, H, W).

    Returns:
        False if only (B, c, h, w) has equal strides, True if only (B, h, w, c) has, None if both have or neither has.
    """
    if len(shape) != len(images) or len(shape) < 4:
        return None
    first, last = _equal_strides(shape[2:], images[2:]), _equal_strides(shape[1:-1], images[2:])
    return None if first == last else last


def _equal_strides(sides: Sequence[int], images: Sequence[int]) -> bool:
    """Whether a map's sides are the images' sides divided by one number, up to padding where the sides differ."""
    pairs = list(zip(sides, images, strict=True))
    (side, length), rest = pairs[0], pairs[1:]
    return all(abs(other - of * side / length) <= (0 if of == length else 1) for other, of in rest)


def batch_is_second(layer: nn.Module) -> bool:
    """Whether a layer of torch was made for sequences (T, B, D)."""
    if isinstance(layer, nn.TransformerEncoder | nn.TransformerDecoder):
        layer = layer.layers[0]
    layer = getattr(layer, "self_attn", layer)
    return isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and not layer.batch_first


def first_tensor(output: object) -> Tensor | None:
    """A layer's output, or the first entry of a tuple, as attention returns; None if it is not a tensor."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


class Layouts:
    """Decides where the channels of the layers' outputs are, during one forward pass.

    Args:
        images: (B, ...), the input of the network.
        given: whether channels are last, as the user states it; None if not stated.
    """

    def __init__(self, images: Tensor, given: bool | None):
        self.image_shape, self.given = images.shape, given
        self._last_run: tuple[torch.Size | None, bool | None] = None, None  # a layer's output shape, and its layout

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, note which innermost layer of the model ran last: a container has the layout of that."""
        with contextlib.ExitStack() as hooks:
            for layer in model.modules():
                # Attention has layers inside, but does not call them.
                if isinstance(layer, nn.MultiheadAttention) or next(layer.children(), None) is None:
                    hooks.callback(layer.register_forward_hook(self._note).remove)
            yield

    def _note(self, layer: nn.Module, inputs: tuple, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is None:
            return
        by_type, elementwise = channels_last_by_type(layer), type(layer).__module__ in _ELEMENTWISE
        same_shape = tensor.shape == self._last_run[0]
        keeps_layout = same_shape and (elementwise or tensor.shape[1] != tensor.shape[-1])
        if by_type is not None or not keeps_layout:
            self._last_run = tensor.shape, by_type

    def channels_last(self, layer: nn.Module, output: Tensor) -> bool | None:
        """Whether the channels of a layer's output (B, ...) are its last dimension; None if it cannot be known.

        The first of these decides: the layer's type, the user's statement, equal strides on the images, the type of the
        layer that ran last. If none does, maps have their channels first, as is usual, and sequences are not known.
        """
        if output.ndim < 3:
            return False
        known = channels_last_by_type(layer)
        if known is None:
            known = self.given
        if known is not None:
            return known
        known = channels_last_by_shape(output.shape, self.image_shape)
        if known is None and output.shape == self._last_run[0]:
            known = self._last_run[1]
        if output.ndim == 3:
            # After a transpose outside of all layers a square (B, n, n) looks like the layer before.
            return None if output.shape[1] == output.shape[2] else known
        return bool(known)
