"""Several processes that work as one, each of them a rank, started by torchrun: a thin layer over torch.distributed.

All ranks run the same code on the same arguments and so meet in the same collectives in the same order. Files are
rank 0's: it writes them and looks whether they are there, `by_first` and `agreed`; the others read what it wrote, so
that all hosts need one file system. With one process, or inside `alone`, all this does nothing.
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
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alfk.data import Split
from alfk.errors import UserError

PATIENCE = datetime.timedelta(hours=6)  # of ranks for each other; torchrun ends those whose fellow has failed

P, T = ParamSpec("P"), TypeVar("T")

_alone = contextvars.ContextVar("alone", default=False)
_store: dist.Store | None = None  # torchrun's, where ranks leave word also when they no longer meet


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


def rank() -> int:
    """Which of them this process is."""
    return dist.get_rank() if world() > 1 else 0


def first() -> bool:
    """Whether this is rank 0, which writes and speaks for all."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works for itself: for what the ranks do not all do in the same order."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def agreed(ask: Callable[[], T]) -> T:
    """What `ask` returns to rank 0, which alone asks, or the UserError or OSError that it raises, on every rank."""
    if world() == 1:
        return ask()
    outcome = [None, None]
    if first():
        try:
            with alone():
                outcome[0] = ask()
        except (UserError, OSError) as problem:
            outcome[1] = problem
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def by_first(act: Callable[P, T]) -> Callable[P, T | None]:
    """`act` done by rank 0 alone while the others wait; to them it returns None. Its errors are all ranks'."""

    @functools.wraps(act)
    def done_by_first(*args: P.args, **kwargs: P.kwargs) -> T | None:
        kept = []
        agreed(lambda: kept.append(act(*args, **kwargs)))
        return kept[0] if kept else None

    return done_by_first


def in_turn(act: Callable[[], T]) -> T:
    """`act` done by every rank for itself, but by rank 0 first: the others find the files that it had to make."""
    found = by_first(act)()
    if not first():
        with alone():
            found = act()
    return found


def by_batches(
    work: Callable[[Tensor, Tensor], tuple[Tensor, ...]], data: Split, batch_size: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yields (positions (B,), `work(images, positions)`) for every batch of `data`, in order, on every rank.

    A batch is one rank's as a whole, so that its results are to the bit what one process finds.
    """
    if world() == 1:
        for images, positions in data.batches(batch_size):
            yield positions, work(images, positions)
        return
    batches = torch.arange(len(data)).split(batch_size)
    mine = batches[rank() :: world()]
    todo = iter(data.batches(batch_size, torch.cat(mine)) if mine else ())
    for start in range(0, len(batches), world()):
        batch, told = next(todo, None), [None] * world()
        dist.all_gather_object(told, batch and tuple(part.cpu() for part in work(*batch)))
        for positions, found in zip(batches[start : start + world()], told, strict=False):  # there are no more of them
            yield positions.to(data.device), tuple(part.to(data.device) for part in found)


def gathered(part: Tensor) -> list[Tensor]:
    """The parts of all ranks, which have one shape, in the order of ranks."""
    if world() == 1:
        return [part]
    parts = [torch.empty_like(part) for _ in range(world())]
    dist.all_gather(parts, part.contiguous())
    return parts


def follow_first(tensors: Iterable[Tensor]) -> None:
    """Put rank 0's values into every rank's tensors."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def own(device: torch.device) -> torch.device:
    """The device that this rank works on: of a host's GPUs the one of its own number there.

    Raises:
        UserError: a GPU is named, but several ranks share the host.
    """
    if world() == 1 or device.type != "cuda":
        return device
    if device.index is not None and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(f"under torchrun every process takes a GPU of its own, not {device}: leave the number out")
    return torch.device("cuda", dist.get_node_local_rank() if device.index is None else device.index)


def joined(body: Callable[[], int]) -> int:
    """Call `body`, which returns the exit status: as one of several where torchrun started this process.

    Such a process ends here and now. After a failure others may be waiting for it, so that it can take no leave of
    them; torchrun sees it end and ends them. After a success the interpreter's own end has been seen to abort, one time
    in a dozen, in some thread that is not Python's.
    """
    global _store
    if not dist.is_torchelastic_launched():
        return body()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    _store, number, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=number, world_size=count, timeout=PATIENCE)
    with contextlib.ExitStack() as stack:
        if not first():  # rank 0 says it all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            status = body()
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            complain(traceback.format_exc().rstrip())
            status = 1
    if not status:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def complain(text: str) -> None:
    """Print on stderr why this process fails; of several ranks that fail, the first that says so is heard."""
    if _store is None or _store.add("complaints", 1) == 1:
        print(text, file=sys.stderr)


def _end_with_launcher() -> None:
    """A killed torchrun must not leave work going on: the same command could not be started again beside it."""
    wait([os.pidfd_open(os.getppid())])
    os._exit(1)
