"""How a network is computed: which copy of it, in which mode, independent of what is set around a query."""

import contextlib
import copy
import sys
import threading
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from alfk.networks.dropout import MCDropout
from alfk.support.errors import UserError, one_line

_one_thread = threading.RLock()


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Gradients on, autocast off, float32 as default, compiled networks run eagerly, whatever is set around the block.

    A query so gives the same result inside the caller's `torch.no_grad()`, `torch.inference_mode()` or `torch.autocast`
    and after `torch.set_default_dtype` as without. A compiled network has no second derivatives, and may not call the
    hooks of its layers.

    One thread is inside at a time, others wait: networks' modes and hooks, torch's default type and its global
    generators are the same for all threads.
    """
    with _one_thread, contextlib.ExitStack() as stack:
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
        UserError: `model` is no module, cannot be copied, has layers without weights, or batch norm without running
            statistics.
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
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise UserError("the model has lazy layers, whose weights do not exist yet: run it once, model(images)")
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
