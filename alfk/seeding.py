"""Randomness is an explicit argument everywhere; this is where it comes from."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose of one run, e.g. ``generator(seed, run, "train", b)``.

    Equal arguments give equal streams, different ones independent streams, whatever was drawn before: that is what
    lets a resumed run continue exactly. Two methods of the same run share the draws that have the same purpose
    (common random numbers), which makes their curves comparable at few runs.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def draw_seed(generator: torch.Generator) -> int:
    """A seed for `seeded_globally`."""
    return int(torch.randint(2**31, (1,), generator=generator))


@contextlib.contextmanager
def seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators are seeded with `seed`; after it they are as before.

    For what draws from them and cannot be told otherwise: dropout layers.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def global_randomness(generator: torch.Generator, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The same with a seed drawn from `generator`."""
    return seeded_globally(draw_seed(generator), device)
