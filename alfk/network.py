"""Helpers for networks: modules whose forward returns (logits (B, C), list of taps)."""

import contextlib
import contextvars
import copy
import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.errors import UserError


class MCDropout(nn.Module):
    """Dropout that is active inside `dropout_mode` alone, while uncertainty is sampled (Gal and Ghahramani 2016).

    Otherwise, in training too, it returns its input.

    Args:
        p: probability that an entry is zeroed.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.active = p, False

    def forward(self, features: Tensor) -> Tensor:
        return dropout(features, self.p) if self.active else features


def dropout(features: Tensor, p: float) -> Tensor:
    """Features (B, ...) with every entry zeroed with probability p, the others divided by 1 - p.

    Seeded by torch's global generator. On a CPU, if p is a power of 1/2 not below 2^-8, each entry uses one random
    byte, which takes a tenth of the time of a Bernoulli draw and is fastest in channels-last memory.
    """
    halvings = -math.log2(p) if p else 0.0
    if features.device.type != "cpu" or halvings not in range(1, 9):
        return F.dropout(features, p, training=True)
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-features.numel() // 8), dtype=np.uint64)
    noise = torch.from_numpy(words.view(np.uint8))[: features.numel()]
    keep = (noise >> (8 - int(halvings))).clamp_(max=1)  # 0 where its first bits are all 0
    if features.ndim == 4:
        images, channels, height, width = features.shape
        keep = keep.view(images, height, width, channels).permute(0, 3, 1, 2)
    return (features * keep.view_as(features)).mul_(1 / (1 - p))


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


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Gradients on, autocast off, float32 as default, compiled networks run eagerly, whatever is set around the block.

    A query so gives the same result inside the caller's `torch.no_grad()`, `torch.inference_mode()` or `torch.autocast`
    and after `torch.set_default_dtype` as without. A compiled network has no second derivatives, and may not call the
    hooks of its layers.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and the result of torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def prepare(model: nn.Module) -> nn.Module:
    """The network that is computed: `model` unwrapped, or a float32 copy of it.

    It is a copy if parameters are float16, bfloat16 or float64, because in reduced precision small gradients become 0,
    and large features infinite; and if they were made under `torch.inference_mode()`, which allows no gradients.

    Raises:
        UserError: `model` is no module, cannot be copied, or has batch norm without running statistics.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    model = unwrap(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name or 'the model'} normalises by the batch in evaluation mode too (track_running_stats=False), so "
                "the choice would depend on the batch size: train the model with track_running_stats=True"
            )
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if all(p.dtype == torch.float32 and not p.is_inference() for p in parameters):
        return model
    try:
        with torch.inference_mode(False):
            copied = copy.deepcopy(model).float()
    except (RuntimeError, TypeError) as problem:
        raise UserError(f"the model cannot be copied to float32 ({one_line(problem)}): pass model.float()") from problem
    copied.zero_grad(set_to_none=True)
    return copied


def one_line(problem: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; the mode of every submodule is restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def dropout_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode with active dropout inside the block, in MCDropout and torch's dropout layers.

    After the block the mode of every submodule is restored and MCDropout is inactive.
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_mode(model))
            for module in model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd) or _is_scripted_dropout(module):
                    module.train()
                elif isinstance(module, MCDropout):
                    module.active = True
                    stack.callback(setattr, module, "active", False)
        yield


def _is_scripted_dropout(module: nn.Module) -> bool:
    """Whether it was one of torch's dropout layers before torch.jit.script."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    kind = getattr(nn, module.original_name, None)
    return isinstance(kind, type) and issubclass(kind, nn.modules.dropout._DropoutNd)


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
