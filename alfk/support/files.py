"""Writing files as a whole and reading them with checks: JSON, arrays with a header, checkpoints.

Everything is written under a temporary name and renamed when complete, and carries a CRC-32 of its content that is
compared when it is read: a JSON object in its entry `crc32`, an array in the header beside it, a checkpoint at its end.
Whatever is wrong with a file is a UserError of one line that names it and says what fixes it.

In a process group the main process writes files and checks which exist, while the others wait.
"""

import contextlib
import fcntl
import io
import json
import mmap
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from alfk.support import distributed
from alfk.support.errors import DamagedFileError, UserError

OTHER_CONTENT = "its content does not match the array_crc32 of its header"
FIX = "delete it and give the same command again"

# Any file


@contextlib.contextmanager
def open_file(path: Path, fix: str = "remove it") -> Iterator[IO[bytes]]:
    """A regular file, opened for reading. Raises UserError, with the system's reason, if that is not possible.

    Args:
        fix: what to do about a folder, a FIFO or a device in its place, for the message.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"cannot read {path}: it is not a regular file; {fix}")
        with open(descriptor, "rb") as file:
            yield file
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None


def read_file(path: Path, fix: str = "remove it") -> bytes:
    """The content of a regular file. Argument and errors as of `open_file`."""
    with open_file(path, fix) as file:
        return file.read()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file written under a temporary name and renamed to `path` when complete. Raises UserError on failure."""
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


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file; it is also released when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        UserError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror}") from None
    with open(descriptor, "rb+", buffering=0):
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
            differs = "it was made with other settings (repeat those, or give another --save-folder)"
        raise UserError(f"{path} is not the file it should be: {differs}; {fix}")


def _damaged(path: Path, how: str, fix: str = FIX) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({how}): {fix}")


# JSON


def with_crc32(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with an entry `crc32`, the checksum of all others."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "crc32"}))
    return {**plain, "crc32": _crc32_of_json(plain)}


def _crc32_of_json(plain: Mapping[str, Any]) -> str:
    return _crc32(json.dumps(plain, sort_keys=True).encode())


def without_crc32(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object without that entry. Raises ValueError if it is there and wrong."""
    plain = {key: value for key, value in content.items() if key != "crc32"}
    if "crc32" in content and _crc32_of_json(plain) != content["crc32"]:
        raise ValueError("its content does not match its crc32")
    return plain


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, with its checksum."""
    with atomic(path) as file:
        file.write((json.dumps(with_crc32(content), indent=1) + "\n").encode())


def read_json(path: Path, checksum: bool = True, fix: str = FIX) -> dict[str, Any]:
    """A JSON object that `write_json` has written.

    Args:
        checksum: whether it must have one; a wrong one is refused in any case.
        fix: what to do about a damaged file, for the message.
    Raises:
        UserError: it cannot be read, or (DamagedFileError) is damaged or was edited.
    """
    try:
        content = json.loads(read_file(path, fix))
        if not isinstance(content, dict) or (checksum and "crc32" not in content):
            raise ValueError("no JSON object with a crc32")
        return without_crc32(content)
    except (ValueError, RecursionError) as problem:
        how = "no JSON" if isinstance(problem, json.JSONDecodeError | UnicodeDecodeError) else str(problem)
        raise _damaged(path, how, fix) from None


# Arrays


@distributed.main_process_only
def save_array(path: Path, array: np.ndarray, header: Mapping[str, Any]) -> None:
    """Write an array as .npy and then its header as .json, whose presence marks the array complete."""
    restore_array(path, pack_array(array, header))


def pack_files(path: Path) -> dict[str, Any]:
    """The files of an array as values that a checkpoint can hold, for `restore_array`. Raises UserError."""
    header, content = read_json(path.with_suffix(".json")), read_file(path)
    if _crc32(content) != header.get("array_crc32"):
        raise _damaged(path, OTHER_CONTENT)
    return {"npy": torch.frombuffer(bytearray(content), dtype=torch.uint8), "header": header}


def pack_array(array: np.ndarray, header: Mapping[str, Any]) -> dict[str, Any]:
    """An array and its header in the same form."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)
    return {"npy": content, "header": {**_layout(array), "array_crc32": _crc32(buffer.getbuffer()), **header}}


def is_array(path: Path, packed: Mapping[str, Any]) -> bool:
    """Whether the files of an array are those that `pack_files` has packed."""
    try:
        found = pack_files(path) if has_array(path) else None
        return bool(found) and found["header"] == packed["header"] and torch.equal(found["npy"], packed["npy"])
    except UserError:
        return False


@distributed.main_process_only
def restore_array(path: Path, packed: Mapping[str, Any]) -> None:
    """Write the files of an array that `pack_array` has packed."""
    delete_file(path.with_suffix(".json"))
    with atomic(path) as file:
        file.write(packed["npy"].numpy().data)
    write_json(path.with_suffix(".json"), packed["header"])


@distributed.main_process_only
def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A memory-mapped array under a temporary name, for `complete_array` to rename. Raises UserError.

    The disk space is allocated at once: a full disk is an error here, not a crash while the array is being written.
    """
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
    temporary = path.with_name(path.name + ".tmp")
    checksum = _crc32_of_file(temporary)
    temporary.replace(path)
    write_json(path.with_suffix(".json"), {**_layout(array), "array_crc32": checksum, **header})


def open_array(
    path: Path, expected: Mapping[str, Any], mode: str = "r", fix: str = FIX
) -> tuple[np.ndarray, dict[str, Any]]:
    """An array, memory-mapped, with its header.

    Args:
        expected: entries that the header must have.
        mode: of the mapping: "r", read-only, or "c", copy-on-write, as torch.from_numpy needs.
        fix: what to do about another or a damaged file, for the message.
    Raises:
        UserError: missing, damaged, foreign, or of other settings than expected.
    """
    if not has_array(path):
        raise UserError(f"there is no {path} with its .json header")
    header = read_header(path, expected, fix)
    if _crc32_of_file(path, fix) != header.get("array_crc32"):
        raise _damaged(path, OTHER_CONTENT, fix)
    array = np.load(path, mmap_mode=mode, allow_pickle=False)
    check(path, header, _layout(array), fix)
    return array, header


def read_header(path: Path, expected: Mapping[str, Any], fix: str = FIX) -> dict[str, Any]:
    """The header of an array, which is not looked at. Arguments and errors as of `open_array`."""
    header = read_json(path.with_suffix(".json"), fix=fix)
    check(path, header, expected, fix)
    return header


def _layout(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _crc32(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"


def _crc32_of_file(path: Path, fix: str = FIX) -> str:
    with _mapped(path, fix) as content:
        return _crc32(content)


@contextlib.contextmanager
def _mapped(path: Path, fix: str) -> Iterator[memoryview]:
    """The content of a file, memory-mapped. Argument and errors as of `open_file`."""
    with open_file(path, fix) as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as content:
            yield content


def has_array(path: Path) -> bool:
    """Whether an array and its header exist, with the same result in all processes."""
    both = path, path.with_suffix(".json")
    return distributed.broadcast_from_main(lambda: all(map(os.path.exists, both)))


@distributed.main_process_only
def delete_array(path: Path) -> None:
    """Delete an array and its header, which may be missing. Raises UserError."""
    delete_file(path.with_suffix(".json"))
    delete_file(path)


# Checkpoints
