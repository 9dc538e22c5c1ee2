"""Inputs and outputs of the last linear layer: penultimate features and logits of every image of a split."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.networks.modes import computing, evaluation_mode
from alfk.networks.passes import add_passes, pool_spatially, put, require_finite, run
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.seeding import seeded_globally


@dataclasses.dataclass
class Outputs:
    """Penultimate features and logits of every image of a split, in memory or mapped from a file.

    Attributes:
        features: (N, D) float32 z, neither standardised nor scaled; None in a process that need not keep them.
        logits: (N, C) float32.
    """

    features: Tensor | np.ndarray | None
    logits: Tensor | np.ndarray | None

    def to(self, device: torch.device | str) -> "Outputs":
        """The same as float32 tensors on a device."""
        return Outputs(*(_tensor(values).to(device, torch.float32) for values in (self.features, self.logits)))


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def outputs_of(
    model: nn.Module,
    split: Split,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    name: str = "the split",
    allocate: Callable[[int, int, int], Outputs] | None = None,
) -> Outputs:
    """Penultimate features and logits of every image, from one forward pass. Processes share the batches.

    Args:
        model: keeps the contract (`alfk.networks.contract`).
        taps: indices of the taps that are averaged over space and concatenated to the features; if None, the features
            are the input of the network's last linear layer.
        name: of the split, for messages.
        allocate: (images, D, C) -> arrays to write into, by default new tensors on the split's device.
    Raises:
        UserError: no linear layer gives the logits, or a value is not finite.
    """
    out = None

    def forward(images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        add_passes(forward=len(images))
        with seeded_globally(int(positions[0]), split.device):
            features, logits = penultimate(model, images) if taps is None else pooled_taps(model, images, taps)
        finite = torch.stack([values.isfinite().all(1) for values in (features, logits)], dim=1)
        return features.float(), logits.float(), finite

    with computing(), torch.inference_mode(), evaluation_mode(model):
        for positions, (features, logits, finite) in distributed.map_batches(forward, split, batch_size):
            require_finite(finite, ("features", "logits"), positions, [model], split, name)
            if out is None:
                sizes = len(split), features.shape[1], logits.shape[1]
                out = allocate(*sizes) if allocate else _empty(*sizes, split.device)
            _require_range(out.features, features, name)
            put(out.features, positions, features)
            put(out.logits, positions, logits)
    return out


def _empty(images: int, width: int, classes: int, device: torch.device) -> Outputs:
    return Outputs(torch.empty(images, width, device=device), torch.empty(images, classes, device=device))


def _require_range(target: Tensor | np.ndarray | None, features: Tensor, name: str) -> None:
    """Raises UserError if features (B, D) are too large for the type of a file's array."""
    if not isinstance(target, np.ndarray):
        return
    largest = float(features.abs().max())
    if largest > float(np.finfo(target.dtype).max):
        raise UserError(
            f"features of {name} are as large as {largest:.2g}, which is more than {target.dtype} holds: use "
            "--descr-dtype float32"
        )


def pooled_taps(model: nn.Module, images: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The taps, averaged over space and concatenated (B, D), and logits (B, C) of a batch."""
    logits, chosen = run(model, images, taps)
    return torch.cat([pool_spatially(tap.float()) for tap in chosen], 1), logits


def penultimate(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the last linear layer (B, D) and logits (B, C) of a batch.

    Raises:
        UserError: no linear layer gives the logits, or it is not clear which does.
    """
    with _linear_calls(model) as calls:
        logits, _ = run(model, images, ())
    calls = [(inputs, output) for inputs, output in calls if output.shape == logits.shape]
    exact = [inputs for inputs, output in calls if torch.equal(output, logits)]
    if not exact and len(calls) == 1:  # a log-softmax may follow
        exact = [calls[0][0]]
    if exact:
        return exact[-1], logits
    raise UserError(
        f"{'several linear layers' if calls else 'no linear layer'} (nn.Linear) of the model may give its logits, and "
        "the method needs the input of the last one: name taps to use instead, as taps=(0,)"
    )


@contextlib.contextmanager
def _linear_calls(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The (input, output) of each call of a linear layer inside the block."""
    calls: list[tuple[Tensor, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                handle = layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
                stack.callback(handle.remove)
        yield calls


def logits_of(model: nn.Module, split: Split, batch_size: int = 1000, name: str = "the split") -> Tensor:
    """(N, C) float32 logits of every image, on the split's device. Processes share the batches.

    Args:
        model: keeps the contract (`alfk.networks.contract`).
        name: of the split, for messages.
    Raises:
        UserError: a logit is not finite.
    """

    def forward(images: Tensor, positions: Tensor) -> tuple[Tensor]:
        add_passes(forward=len(images))
        with seeded_globally(int(positions[0]), split.device):
            return (run(model, images, ())[0].float(),)

    parts = []
    with computing(), torch.inference_mode(), evaluation_mode(model):
        for positions, (logits,) in distributed.map_batches(forward, split, batch_size):
            require_finite(logits.isfinite().all(1, keepdim=True), ("logits",), positions, [model], split, name)
            parts.append(logits)
    return torch.cat(parts)
