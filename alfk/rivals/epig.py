"""Expected predictive information gain, EPIG (Bickford Smith et al. 2023), and MC-dropout with masks that images share.

With p_k(c|x) the probabilities of sample k of K, p their mean over k, and x* one of T target images:

    P(c, d) = 1/K sum_k p_k(c|x) p_k(d|x*)                              joint distribution of two predictions
    EPIG(x) = H[p(y|x)] + mean over x* of (H[p(y*|x*)] - H[P(y, y*)])   in nats

Sample k has to be the same network for x and x*. With dropout it is: K masks are drawn once, and the k-th is used for
every image of pool and validation set. (MC-dropout as in `alfk.method.uncertainty` draws masks for each image.)
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from alfk.method import matching
from alfk.method.uncertainty import sampler
from alfk.networks.dropout import MCDropout
from alfk.networks.modes import computing, evaluation_mode, prepare
from alfk.networks.passes import add_passes
from alfk.support.errors import UserError
from alfk.support.seeding import draw_seed, seeded_globally

TILE = 2**20  # joint probabilities in a tile on a CPU: 8 MiB, which is fastest
CLASSES = 500  # most classes: the joint distribution of two predictions has C^2 probabilities


@torch.no_grad()
def epig(pool: Tensor | Iterable[Tensor], targets: Tensor, budget: int | None = None) -> Tensor:
    """EPIG of every pool image; the larger, the earlier it is chosen.

    2 N T K C^2 floating-point operations and N T C^2 logarithms, in float64, since float32 errs by more than the
    scores of many images.

    Args:
        pool: (N, K, C) logits of K samples, or batches of them, on the targets' device.
        targets: (T, K, C) logits of the same K samples for the target images.
        budget: bytes that the joint probabilities of a tile may take; by default `matching.budget`.
    Returns:
        (N,) float64 in nats, from 0 to min(BALD, log C), with an error of about 1e-15.
    Raises:
        UserError: the joint probabilities of one image exceed `budget`, or there are more than 500 classes.
    """
    images, samples, classes = targets.shape
    device = targets.device
    budget = matching.budget(device) if budget is None else budget
    size = images * classes**2  # joint probabilities of one pool image
    if 8 * size > budget or classes > CLASSES:
        raise UserError(
            f"EPIG needs {images:,} x {classes:,} x {classes:,} joint probabilities for a pool image, which are too "
            f"many: use fewer target images, or with more than {CLASSES} classes another method"
        )
    other = targets.double().softmax(2).transpose(0, 1)  # (K, T, C)
    target_entropy = torch.special.entr(other.mean(0)).sum(1).mean()
    other = other.reshape(samples, images * classes) / samples
    height = max(1, (budget // 8 if device.type == "cuda" else min(TILE, budget // 8)) // size)
    # Made once: between small tensors that stay, an allocator would find new memory for each of thousands of tiles.
    joints, logs = (torch.empty(height * classes, images * classes, dtype=other.dtype, device=device) for _ in range(2))

    def score(p: Tensor) -> Tensor:
        rows = p.transpose(1, 2).reshape(-1, samples)
        joint = torch.mm(rows, other, out=joints[: len(rows)])  # (r C, T C)
        torch.clamp(joint, min=torch.finfo(joint.dtype).tiny, out=logs[: len(rows)])
        p_log_p = logs[: len(rows)].log_().mul_(joint)  # in a fifth of the time of `torch.special.entr`
        negative_entropy = p_log_p.view(len(p), -1).sum(1) / images
        return torch.special.entr(p.mean(1)).sum(1) + target_entropy + negative_entropy

    batches = [pool] if isinstance(pool, Tensor) else pool
    tiles = (tile for batch in batches for tile in batch.split(height))
    scores = [score(tile.double().softmax(2)).clamp_(min=0) for tile in tiles]
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64, device=device)


@contextlib.contextmanager
def shared_masks(model: nn.Module, samples: int, generator: torch.Generator) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function images (B, ...) -> logits (B, K, C) of K samples, whose sample k has the same mask in every call.

    The network is in evaluation mode but for its dropout layers: `MCDropout` and torch's, which zero single entries or
    whole channels. Layers before the first dropout are computed once a batch if the network separates them (see
    `alfk.method.uncertainty.sampler`). No gradients are recorded inside the block.

    Args:
        samples: K.
        generator: source of the masks; one draw.
    Raises:
        UserError: no dropout is active, or it is of a kind that cannot be shared. The function raises it as well if an
            image's shape at a dropout layer changes, or the model breaks the contract (see `alfk.networks.taps`).
    """
    model = prepare(model)
    kinds = MCDropout | nn.modules.dropout._DropoutNd
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    for name, layer in layers.items():
        if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
            raise UserError(f"{name} is {type(layer).__name__}, whose masks cannot be shared: use nn.Dropout")
    seed = draw_seed(generator)
    masks = _SharedMasks(samples, torch.Generator().manual_seed(seed))

    def logits(images: Tensor) -> Tensor:
        add_passes(forward=samples * len(images))
        with seeded_globally(seed, images.device):  # for what is random besides
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

    A layer is called several times if it is used in several places, as the ReLU of torchvision's residual blocks is.
    """

    def __init__(self, samples: int, generator: torch.Generator):
        self.samples, self.generator = samples, generator
        self.masks: dict[tuple[str, int], Tensor] = {}  # (layer, its number of earlier calls) -> (K, ...)
        self.sample: int | None = None
        self.calls: Counter[str] = Counter()

    def run(self, k: int, forward: Callable[[], Tensor]) -> Tensor:
        """What `forward` returns with mask k. Raises UserError if no dropout layer was called."""
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
        """Features (B, ...) times the mask of this call; as they are outside `run`."""
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
