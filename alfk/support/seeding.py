"""Random generators, derived from a seed and passed as explicit arguments everywhere."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose of one run, e.g. ``generator(seed, run, "train", b)``.

    Equal arguments give equal streams, different ones independent streams, regardless of earlier draws, so that a
    resumed run continues exactly. Methods of the same run share the draws for the same purpose (common random numbers),
    which makes their curves comparable with few runs.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def draw_seed(generator: torch.Generator) -> int:
    """A seed for `seeded_globally`."""
    return int(torch.randint(2**31, (1,), generator=generator))


@contextlib.contextmanager
def seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators are seeded with `seed`; after it their state is restored.

    For dropout layers, which take no generator as an argument.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def global_randomness(generator: torch.Generator, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """`seeded_globally` with a seed drawn from `generator`."""
    return seeded_globally(draw_seed(generator), device)
