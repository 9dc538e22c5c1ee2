"""The weights of a network: how they are drawn, copied, compared and named."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has batch-norm layers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def linear_layers(model: nn.Module) -> list[str]:
    """The names of its linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def is_in_layers(parameter: str, layers: Iterable[str]) -> bool:
    """Whether an entry of a state dict belongs to one of the named layers, or to a layer inside one."""
    return parameter.startswith(tuple(f"{layer}." for layer in layers))


Initialiser = Callable[[nn.Module, torch.Generator], None]


def uniform_fan_in(model: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default: weights and biases of linear layers and convolutions uniform in +-1/sqrt(fan-in)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            _uniform_fan_in(module, generator)


def kaiming_fan_out(model: nn.Module, generator: torch.Generator) -> None:
    """Kaiming-normal, fan-out, weights for convolutions (He et al. 2015) and biases of 0; linear layers have PyTorch's
    default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            _uniform_fan_in(module, generator)


def _uniform_fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, generator: torch.Generator) -> None:
    bound = layer.weight[0].numel() ** -0.5  # torch counts a transposed convolution's fan-in like this too
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A contiguous copy of the model's state on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def fits(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether a state has the names, shapes and types of the model's own."""
    own = model.state_dict()
    return state.keys() == own.keys() and all(
        isinstance(value, Tensor) and value.shape == own[name].shape and value.dtype == own[name].dtype
        for name, value in state.items()
    )


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of a hash of the weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
