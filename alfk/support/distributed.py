"""Several processes that share one computation, started by torchrun: a thin layer over torch.distributed.

All processes run the same code on the same arguments and call the same collectives in the same order. Only the main
process (rank 0) writes files and checks which exist; the others read them, so that all hosts need a shared file system.
With one process, or inside `single_process`, every function here works locally.
"""

import contextlib
import contextvars
import datetime
import functools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import ParamSpec, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alfk.support.errors import UserError

TIMEOUT = datetime.timedelta(hours=6)  # of a collective; torchrun ends processes whose peer has failed

P, T = ParamSpec("P"), TypeVar("T")

_single = contextvars.ContextVar("single", default=False)
_store: dist.Store | None = None  # torchrun's key-value store, which also works when collectives no longer do


class Batched(Protocol):
    """Images that are read in batches, as `alfk.Split`."""

    device: torch.device

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]: ...


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _single.get() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Inside the block the world size is 1: for code that not all processes run, or not in the same order."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


def broadcast_from_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process alone; return its result, or raise its UserError or OSError, in all."""
    if world_size() == 1:
        return function()
    outcome = [None, None]
    if is_main_process():
        try:
            with single_process():
                outcome[0] = function()
        except (UserError, OSError) as problem:
            outcome[1] = problem
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def main_process_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """Decorator: the main process calls `function`, the others wait and get None. Its errors are raised in all."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | None:
        results = []
        broadcast_from_main(lambda: results.append(function(*args, **kwargs)))
        return results[0] if results else None

    return wrapper


def main_process_first(function: Callable[[], T]) -> T:
    """Call `function` in every process, in the main process first, so that the others find the files it wrote."""
    result = main_process_only(function)()
    if not is_main_process():
        with single_process():
            result = function()
    return result


def map_batches(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], data: Batched, batch_size: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yields (positions (B,), `function(images, positions)`) for every batch of `data`, in order, in every process.

    Each batch is computed as a whole by one process, so that results equal those of a single process to the bit.
    """
    if world_size() == 1:
        for images, positions in data.batches(batch_size):
            yield positions, function(images, positions)
        return
    batches = torch.arange(len(data)).split(batch_size)
    local = batches[rank() :: world_size()]
    remaining = iter(data.batches(batch_size, torch.cat(local)) if local else ())
    for start in range(0, len(batches), world_size()):
        batch, results = next(remaining, None), [None] * world_size()
        dist.all_gather_object(results, batch and tuple(part.cpu() for part in function(*batch)))
        for positions, result in zip(batches[start : start + world_size()], results, strict=False):  # the last are None
            yield positions.to(data.device), tuple(part.to(data.device) for part in result)


def all_gather(part: Tensor) -> list[Tensor]:
    """The tensors of all processes, which have the same shape, in the order of ranks."""
    if world_size() == 1:
        return [part]
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return parts


def all_sum(value: int) -> int:
    """The sum of an integer over processes."""
    if world_size() == 1:
        return value
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return sum(values)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's values into every process's tensors, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def local_device(device: torch.device) -> torch.device:
    """The device of this process: among the GPUs of its host, the one with its local rank.

    Raises:
        UserError: a GPU is named, but several processes share the host.
    """
    if world_size() == 1 or device.type != "cuda":
        return device
    if device.index is not None and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(f"under torchrun every process takes a GPU of its own, not {device}: leave the number out")
    return torch.device("cuda", dist.get_node_local_rank() if device.index is None else device.index)


def run_distributed(body: Callable[[], int]) -> int:
    """Call `body`, which returns the exit status, in a process group if torchrun started this process.

    A process of a group exits inside this function. After a failure other processes may be waiting in a collective, so
    that no orderly shutdown is possible; torchrun notices the exit and ends them. After a success the interpreter's
    shutdown was seen to abort, about once in a dozen runs, in a native thread.
    """
    global _store
    if not dist.is_torchelastic_launched():
        return body()
    threading.Thread(target=_exit_with_launcher, daemon=True).start()
    _store, this_rank, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=this_rank, world_size=size, timeout=TIMEOUT)
    with contextlib.ExitStack() as stack:
        if not is_main_process():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            status = body()
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            print_error(traceback.format_exc().rstrip())
            status = 1
    if not status:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def print_error(text: str) -> None:
    """Print an error message on stderr; if several processes fail, only the first one prints."""
    if _store is None or _store.add("errors", 1) == 1:
        print(text, file=sys.stderr)


def _exit_with_launcher() -> None:
    """Exit when torchrun is killed, so that the same command can be started again."""
    wait([os.pidfd_open(os.getppid())])
    os._exit(1)
