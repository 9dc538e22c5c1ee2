"""Writing files as a whole and reading them with checks: JSON, arrays with a header, checkpoints.

In a process group the main process writes files and checks which exist, while the others wait.
"""

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from alfk import distributed
from alfk.errors import UserError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file, waiting for it; also released when the process ends, however it ends."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file written under a temporary name and renamed to `path` when complete. Raises UserError on failure."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {problem.strerror or problem}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError if it is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: delete it, or the run's folder, and start again")
    return content


@distributed.main_process_only
def save_checkpoint(path: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write weights and their description, for `load_checkpoint`."""
    buffer = io.BytesIO()  # on a full disk torch.save would not raise an OSError
    torch.save({"state": dict(state), "about": dict(about)}, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, expected: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the description of a checkpoint. No code in the file is run (weights_only).

    Args:
        expected: entries that the description must have.
    Raises:
        UserError: missing, truncated, foreign, or of other settings than expected.
    """
    if not has_file(path):
        raise UserError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, about = content["state"], content["about"]
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None
    except Exception:  # torch.load raises exceptions of many types for damaged files
        raise UserError(f"{path} is truncated or not a checkpoint of this project: delete it and run again") from None
    _check(path, about, expected)
    return state, about


@distributed.main_process_only
def save_array(path: Path, array: np.ndarray, header: Mapping[str, Any]) -> None:
    """Write an array as .npy and then its header as .json, whose presence marks the array complete."""
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic(path) as file:
        np.save(file, array, allow_pickle=False)
    write_json(path.with_suffix(".json"), {**_layout(array), **header})


@distributed.main_process_only
def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A memory-mapped array under a temporary name, for `complete_array` to rename. Raises UserError.

    The disk space is allocated at once: a full disk is an error here, not a crash while the array is being written.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        return array
    except OSError as problem:
        raise UserError(f"cannot write {temporary}: {problem.strerror or problem}") from None


@distributed.main_process_only
def complete_array(path: Path, array: np.memmap, header: Mapping[str, Any]) -> None:
    """Rename the array from its temporary name to `path` and write its header."""
    array.flush()
    path.with_name(path.name + ".tmp").replace(path)
    write_json(path.with_suffix(".json"), {**_layout(array), **header})


def open_array(path: Path, expected: Mapping[str, Any], mode: str = "r") -> tuple[np.ndarray, dict[str, Any]]:
    """An array, memory-mapped, with its header.

    Args:
        expected: entries that the header must have.
        mode: of the mapping: "r", read-only, or "c", copy-on-write, as torch.from_numpy needs.
    Raises:
        UserError: missing, truncated, foreign, or of other settings than expected.
    """
    if not has_array(path):
        raise UserError(f"there is no {path} with its .json header")
    header = read_json(path.with_suffix(".json"))
    _check(path, header, expected)
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{path} is truncated or not an array: delete it and run again") from None
    _check(path, header, _layout(array))
    return array, header


def _layout(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def has_file(path: Path) -> bool:
    """Whether a file exists, with the same result in all processes."""
    return distributed.broadcast_from_main(path.exists)


def has_array(path: Path) -> bool:
    """Whether an array and its header exist, with the same result in all processes."""
    return distributed.broadcast_from_main(lambda: path.exists() and path.with_suffix(".json").exists())


@distributed.main_process_only
def delete_array(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@distributed.main_process_only
def delete_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _check(path: Path, header: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if header.get(key) != value:
            found = header.get(key)
            raise UserError(f"{path} is not the file it should be: its {key} is {found}, not {value}; delete it")
