"""Checkpoints: weights with a description, in one file (see `alfk.support.files`)."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import FIX, _crc32, _damaged, _mapped, atomic, check, has_file

TRAILER = b"\nalfk-crc32:"  # in a checkpoint, before the eight digits of the CRC-32 of everything in front of it


@distributed.main_process_only
def save_checkpoint(path: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write weights and their description, for `load_checkpoint`."""
    buffer = io.BytesIO()  # on a full disk torch.save would not raise an OSError
    torch.save({"state": dict(state), "about": dict(about)}, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
        file.write(TRAILER + _crc32(buffer.getbuffer()).encode())  # torch.load passes over it


def load_checkpoint(
    path: Path, expected: Mapping[str, Any], fix: str = FIX, weights: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the description of a checkpoint, memory-mapped. No code in the file is run (weights_only).

    Args:
        expected: entries that the description must have.
        fix: what to do about another or a damaged file, for the message.
        weights: whether these are wanted; if not, it is not looked at whether they are finite.
    Raises:
        UserError: missing, damaged, foreign, or of other settings than expected.
    """
    if not has_file(path):
        raise UserError(f"there is no checkpoint {path}")
    with _mapped(path, fix) as content:
        end = max(0, len(content) - len(TRAILER) - 8)
        if bytes(content[end:]) != TRAILER + _crc32(content[:end]).encode():
            raise _damaged(path, "it does not end with the crc32 of its content", fix)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, about = loaded["state"], loaded["about"]
    except Exception:  # torch.load raises exceptions of many types for files of another kind
        raise _damaged(path, "it is not a checkpoint of this project", fix) from None
    check(path, about, expected, fix)
    if weights and not _is_finite(state):
        raise _damaged(path, "a weight is not finite", fix)
    return state, about


def _is_finite(values: Any) -> bool:
    """Whether no number in nested dictionaries and lists of tensors is infinite or NaN."""
    if isinstance(values, dict | list):
        return all(map(_is_finite, values.values() if isinstance(values, dict) else values))
    return not isinstance(values, torch.Tensor) or not values.is_floating_point() or bool(values.isfinite().all())
