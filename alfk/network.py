"""What the method asks of a network: a module whose forward returns (logits (B, C), list of taps)."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule gets its own mode back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def dropout_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside the block, but for dropout layers, which stay random; modes are given back after it."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_mode(model))
            for module in model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.train()
        yield


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network looks at a training batch as a whole."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def linear_layers(model: nn.Module) -> list[str]:
    """The names of its linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def belongs(parameter: str, layers: Iterable[str]) -> bool:
    """Whether an entry of a state is of one of the named layers, or of a layer inside one."""
    return parameter.startswith(tuple(f"{layer}." for layer in layers))


Initialiser = Callable[[nn.Module, torch.Generator], None]


def kaiming_fan_out(model: nn.Module, generator: torch.Generator) -> None:
    """Kaiming-normal, fan-out, weights for convolutions (He et al. 2015) and biases of 0; linear layers uniform in
    +-1/sqrt(fan-in), PyTorch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state on the CPU, plainly strided."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that tell two sets of weights apart."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
