"""Files that are written as a whole and checked when they are read: JSON objects, and arrays with a header.

Everything is written under a temporary name and renamed when complete. A JSON object holds the CRC-32 of its content in
its entry `crc32`, an array in the header beside it. Whatever is wrong with a file is a UserError of one line that names
the file and says how to fix it.

In a process group the main process writes files and checks which exist, while the others wait.
"""

import contextlib
import fcntl
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from alfk.support import distributed
from alfk.support.errors import DamagedFileError, UserError

FIX = "delete it and give the same command again"

# Any file


@contextlib.contextmanager
def open_file(path: Path, fix: str = "remove it") -> Iterator[IO[bytes]]:
    """A regular file, opened for reading. Raises UserError, with the system's reason, if that is not possible.

    Args:
        fix: what to do about a folder, a FIFO or a device in its place, for the message.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"cannot read {path}: it is not a regular file; {fix}")
        with open(path, "rb") as file:
            yield file
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None


def read_file(path: Path, fix: str = "remove it") -> bytes:
    """The content of a regular file. Argument and errors: see `open_file`."""
    with open_file(path, fix) as file:
        return file.read()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file written under a temporary name and renamed to `path` when complete. Raises UserError on failure."""
    _check_place(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        named = problem.filename if problem.filename == str(temporary) else path
        raise UserError(f"cannot write {named}: {problem.strerror or problem}") from None


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"cannot write {path}: there is a folder in its place; remove it")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file; remove it, or name another")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file; it is also released when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        UserError: it cannot be opened.
    """
    _check_place(path)
    try:
        file = open(path, "ab")  # noqa: SIM115
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def has_file(path: Path) -> bool:
    """Whether a file exists, with the same result in all processes."""
    return distributed.broadcast_from_main(lambda: os.path.exists(path))


@distributed.main_process_only
def delete_file(path: Path) -> None:
    """Delete a file that may be missing. Raises UserError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        raise UserError(f"cannot delete {path}: {problem.strerror}; remove it") from None


def check(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any], fix: str = FIX) -> None:
    """Raises UserError unless the description of a file has the expected entries."""
    for key, value in expected.items():
        if found.get(key) == value:
            continue
        differs = f"its {key} is {found.get(key)}, not {value}"
        if key == "made_with":
            differs = "it was made with other settings"
        raise UserError(f"{path} is not the file it should be: {differs}; {fix}")


def damaged(path: Path, how: str, fix: str = FIX) -> DamagedFileError:
    """The error for a file whose content is not what was written."""
    return DamagedFileError(f"{path} is damaged ({how}): {fix}")


# JSON


def with_crc32(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with an entry `crc32`, the checksum of all others."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "crc32"}))
    return {**plain, "crc32": _crc32_of_json(plain)}


def _crc32_of_json(plain: Mapping[str, Any]) -> str:
    return _crc32(json.dumps(plain, sort_keys=True).encode())


def without_crc32(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object without that entry. Raises ValueError if it is missing or wrong."""
    plain = {key: value for key, value in content.items() if key != "crc32"}
    if "crc32" not in content:
        raise ValueError("no crc32")
    if _crc32_of_json(plain) != content["crc32"]:
        raise ValueError("its content does not match its crc32")
    return plain


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, with its checksum."""
    with atomic(path) as file:
        file.write((json.dumps(with_crc32(content), indent=1) + "\n").encode())


def read_json(path: Path, fix: str = FIX) -> dict[str, Any]:
    """A JSON object that `write_json` has written.

    Args:
        fix: what to do about a damaged file, for the message.
    Raises:
        UserError: it cannot be read, or (DamagedFileError) is damaged or was edited.
    """
    try:
        content = json.loads(read_file(path, fix))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return without_crc32(content)
    except (ValueError, RecursionError) as problem:
        how = "no JSON" if isinstance(problem, json.JSONDecodeError | UnicodeDecodeError) else str(problem)
        raise damaged(path, how, fix) from None


# Arrays


@distributed.main_process_only
def save_array(path: Path, array: np.ndarray, header: Mapping[str, Any]) -> None:
    """Write an array as .npy and then its header as .json, whose presence marks the array complete."""
    delete_file(path.with_suffix(".json"))
    with atomic(path) as file:
        np.save(file, array, allow_pickle=False)
    _write_header(path, array, header)


@distributed.main_process_only
def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A memory-mapped array under a temporary name, for `complete_array` to rename. Raises UserError.

    The disk space is allocated at once: a full disk is an error here, not a crash while the array is being written.
    """
    _check_place(path)
    temporary = path.with_name(path.name + ".tmp")
    delete_file(path.with_suffix(".json"))
    try:
        temporary.unlink(missing_ok=True)
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
    _write_header(path, array, header)


def _write_header(path: Path, array: np.ndarray, header: Mapping[str, Any]) -> None:
    checked = {**_layout(array), "array_crc32": _crc32_of_file(path)}
    write_json(path.with_suffix(".json"), {**checked, **header})


def open_array(
    path: Path, expected: Mapping[str, Any], mode: str = "r", fix: str = FIX
) -> tuple[np.ndarray, dict[str, Any]]:
    """An array, memory-mapped, with its header.

    Args:
        expected: entries that the header must have.
        mode: of the mapping: "r", read-only, or "c", copy-on-write, which torch.from_numpy needs.
        fix: what to do about another or a damaged file, for the message.
    Raises:
        UserError: missing, damaged, foreign, or with other entries than expected.
    """
    if not has_array(path):
        raise UserError(f"there is no {path} with its .json header")
    header = read_header(path, expected, fix)
    if _crc32_of_file(path, fix) != header.get("array_crc32"):
        raise damaged(path, "its content does not match the array_crc32 of its header", fix)
    array = np.load(path, mmap_mode=mode, allow_pickle=False)
    check(path, header, _layout(array), fix)
    return array, header


def read_header(path: Path, expected: Mapping[str, Any], fix: str = FIX) -> dict[str, Any]:
    """The header of an array, which itself is not read. Arguments and errors: see `open_array`."""
    header = read_json(path.with_suffix(".json"), fix)
    check(path, header, expected, fix)
    return header


def _layout(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _crc32(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"


def _crc32_of_file(path: Path, fix: str = FIX) -> str:
    with open_file(path, fix) as file:
        if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            return _crc32(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            return _crc32(mapping)


def has_array(path: Path) -> bool:
    """Whether an array and its header exist, with the same result in all processes."""
    both = path, path.with_suffix(".json")
    return distributed.broadcast_from_main(lambda: all(map(os.path.exists, both)))


@distributed.main_process_only
def delete_array(path: Path) -> None:
    """Delete an array and its header, which may be missing. Raises UserError."""
    delete_file(path.with_suffix(".json"))
    delete_file(path)
