"""MC-dropout with masks that all images share, so that sample k is the same network for every image.

(MC-dropout as in `alfk.method.uncertainty` draws masks for each image.)
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from alfk.method.uncertainty import sampler
from alfk.networks.dropout import MCDropout
from alfk.networks.modes import computing, evaluation_mode
from alfk.networks.passes import add_passes
from alfk.support.errors import UserError
from alfk.support.seeding import draw_seed, seeded_globally


@contextlib.contextmanager
def shared_masks(model: nn.Module, samples: int, generator: torch.Generator) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function images (B, ...) -> logits (B, K, C) of K samples, whose sample k has the same mask in every call.

    The network is in evaluation mode except for its dropout layers: `MCDropout` and torch's, which zero single entries
    or whole channels. Layers before the first dropout are computed once a batch if the network separates them (see
    `alfk.method.uncertainty.sampler`). No gradients are recorded inside the block.

    Args:
        samples: K.
        generator: source of the masks; one draw.
    Raises:
        UserError: a dropout layer is of a kind that cannot be shared. The function raises it if no dropout layer is
            called, or if an image's shape at one changes.
    """
    kinds = MCDropout | nn.modules.dropout._DropoutNd
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    for name, layer in layers.items():
        if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
            raise UserError(f"{name} is {type(layer).__name__}, whose masks cannot be shared: use nn.Dropout")
    seed = draw_seed(generator)
    masks = _SharedMasks(samples, torch.Generator().manual_seed(seed))

    def logits(images: Tensor) -> Tensor:
        add_passes(forward=samples * len(images))
        with seeded_globally(seed, images.device):  # for other random layers
            sample = sampler(model, images)
            return torch.stack([masks.run(k, sample) for k in range(samples)], 1)

    with contextlib.ExitStack() as stack:
        for context in (computing(), torch.inference_mode(), evaluation_mode(model)):
            stack.enter_context(context)
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda layer, _, output, name=name: masks.apply(name, layer, output))
            stack.callback(handle.remove)
        yield logits


class _SharedMasks:
    """K masks for every call of a dropout layer in a forward pass, drawn when the first batch reaches the call.

    A layer that is used in several places is called several times.
    """

    def __init__(self, samples: int, generator: torch.Generator):
        self.samples, self.generator = samples, generator
        self.masks: dict[tuple[str, int], Tensor] = {}  # (layer, its number of earlier calls) -> (K, ...)
        self.sample: int | None = None
        self.calls: Counter[str] = Counter()

    def run(self, k: int, forward: Callable[[], Tensor]) -> Tensor:
        """The result of `forward` with mask k. Raises UserError if no dropout layer was called."""
        self.sample, self.calls = k, Counter()
        try:
            output = forward()
        finally:
            self.sample = None
        if not self.calls:
            raise UserError(
                "the network calls no dropout layer, so that its samples are equal: use layers nn.Dropout or "
                "alfk.networks.dropout.MCDropout, not F.dropout"
            )
        return output

    def apply(self, name: str, layer: nn.Module, features: Tensor) -> Tensor:
        """Features (B, ...) times the mask of this call; unchanged outside `run`."""
        if self.sample is None:
            return features
        call = name, self.calls[name]
        self.calls[name] += 1
        if call not in self.masks:
            self.masks[call] = draw_masks(layer, features, self.samples, self.generator)
        mask, one = self.masks[call][self.sample], features[:1]
        if mask.ndim != one.ndim - 1 or any(m not in (1, f) for m, f in zip(mask.shape, one.shape[1:], strict=True)):
            raise UserError(
                f"an image is {tuple(one.shape[1:])} at the dropout layer {name}, but the mask that all batches share "
                f"is {tuple(mask.shape)}: images must be the first dimension, and of one size"
            )
        return features * mask


def draw_masks(layer: nn.Module, features: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """(K, ...) factors, 0 with the layer's probability p, else 1 / (1 - p), for images with features (B, ...).

    They have the shape of one image, or one entry for a channel if the layer zeroes channels.
    """
    shape = features.shape[1:]
    if isinstance(layer, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        shape = [*shape[:1], *(1 for _ in shape[1:])]
    kept = torch.rand(samples, *shape, generator=generator) >= layer.p
    return kept.to(features) / max(1 - layer.p, torch.finfo(features.dtype).tiny)
