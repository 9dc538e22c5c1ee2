"""Checkpoints: tensors with a description in one file, which is a zip archive with a CRC-32 of each of its parts."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import FIX, atomic, check, damaged, has_file, open_file


@distributed.main_process_only
def save_checkpoint(path: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write weights and their description, nested dictionaries and lists of tensors and plain values."""
    buffer = io.BytesIO()  # torch.save would turn a full disk or an interrupt into an error of its own
    torch.save({"state": dict(state), "about": dict(about)}, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(
    path: Path, expected: Mapping[str, Any], fix: str = FIX, weights: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the description of a checkpoint, memory-mapped. No code in the file is run (weights_only).

    Args:
        expected: entries that the description must have.
        fix: what to do about another or a damaged file, for the message.
        weights: whether the weights are wanted; if not, they are not checked for infinite values.
    Raises:
        UserError: missing, damaged, foreign, or with other entries than expected.
    """
    if not has_file(path):
        raise UserError(f"there is no checkpoint {path}")
    with open_file(path, fix) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                wrong = archive.testzip()
        except Exception:  # zipfile raises exceptions of many types for damaged archives
            raise damaged(path, "it is no zip archive", fix) from None
        if wrong is not None:
            raise damaged(path, f"the CRC-32 of its part {wrong} does not match", fix)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, about = loaded["state"], loaded["about"]
    except Exception:  # torch.load raises exceptions of many types for files of another kind
        raise damaged(path, "it is not a checkpoint of this project", fix) from None
    check(path, about, expected, fix)
    if weights and not _is_finite(state):
        raise damaged(path, "a weight is not finite", fix)
    return state, about


def _is_finite(values: Any) -> bool:
    """Whether no number in nested dictionaries and lists of tensors is infinite or NaN."""
    if isinstance(values, dict | list):
        return all(map(_is_finite, values.values() if isinstance(values, dict) else values))
    return not isinstance(values, torch.Tensor) or not values.is_floating_point() or bool(values.isfinite().all())
