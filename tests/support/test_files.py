"""Files that are written as a whole: nothing half written, nothing damaged or foreign read."""

import contextlib
import io
import os
import zlib

import numpy as np
import pytest
import torch

from alfk.support import checkpoints, files
from alfk.support.errors import DamagedFileError, UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), files.atomic(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_json(path, {}),
        lambda path: files.create_array(path, (2, 2), np.dtype("<f4")),
        lambda path: checkpoints.save_checkpoint(path, {}, {}),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, write):
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: there is a folder in its place; remove it"):
        write(tmp_path)


def test_checkpoints_round_trip(tmp_path):
    path, state = tmp_path / "x.pt", {"w": torch.arange(6.0).view(2, 3)}
    about = {"kind": "best", "record": {"accuracy": 50.0, "epochs": [3], "none": None}, "rows": torch.arange(3)}
    checkpoints.save_checkpoint(path, state, about)
    loaded, found = checkpoints.load_checkpoint(path, {"kind": "best"})
    assert torch.equal(loaded["w"], state["w"])
    assert found["record"] == about["record"]
    assert torch.equal(found["rows"], about["rows"])
    with pytest.raises(UserError, match="its kind is best, not initial"):
        checkpoints.load_checkpoint(path, {"kind": "initial"})


def test_every_changed_byte_of_a_checkpoint_is_noticed_or_harmless(tmp_path):
    """The CRC-32 of a zip archive cover all that is read; between its parts there is padding."""
    path, state = tmp_path / "x.pt", {"w": torch.randn(20, 20)}
    checkpoints.save_checkpoint(path, state, {"kind": "best"})
    content, noticed = path.read_bytes(), 0
    places = range(0, len(content), 37)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x40
        path.write_bytes(changed)
        try:
            loaded, about = checkpoints.load_checkpoint(path, {})
        except DamagedFileError:
            noticed += 1
        else:
            assert torch.equal(loaded["w"], state["w"])
            assert about == {"kind": "best"}
    assert noticed > len(places) / 2


def other_layout() -> bytes:
    """A checkpoint that this project has not written."""
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b[: len(b) // 2], "no zip archive"),
        (lambda b: b"", "no zip archive"),
        (lambda b: b"#!/bin/sh\n", "no zip archive"),
        (lambda b: b[:-1], "no zip archive"),
        (lambda b: other_layout(), "not a checkpoint of this project"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path, spoil, words):
    path = tmp_path / "x.pt"
    checkpoints.save_checkpoint(path, {"w": torch.zeros(100)}, {"kind": "best"})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=words):
        checkpoints.load_checkpoint(path, {})


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "x.pt"
    checkpoints.save_checkpoint(path, {}, {"kind": Evil()})
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoints.load_checkpoint(path, {})
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoints.save_checkpoint(path, {"w": torch.zeros(3)}, {"kind": "old"})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save_checkpoint(path, {"w": torch.ones(3)}, {"kind": "new"})
    assert checkpoints.load_checkpoint(path, {})[1] == {"kind": "old"}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_checkpoint_that_cannot_be_written_to_its_end(tmp_path, monkeypatch, problem):
    class Stops(io.FileIO):
        def write(self, content):
            raise problem

    monkeypatch.setattr("builtins.open", lambda path, mode, **_: Stops(path, mode.replace("b", "")))
    with pytest.raises(UserError if isinstance(problem, OSError) else KeyboardInterrupt):
        checkpoints.save_checkpoint(tmp_path / "x.pt", {"w": torch.ones(3)}, {})


def test_arrays_round_trip_mapped(tmp_path):
    path = tmp_path / "x.npy"
    files.save_array(path, np.arange(5), {"kind": "pool"})
    array, header = files.open_array(path, {"kind": "pool"})
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(array, np.memmap)
    checksum = f"{zlib.crc32(path.read_bytes()):08x}"
    assert header == {"kind": "pool", "shape": [5], "dtype": "int64", "array_crc32": checksum}
    with pytest.raises(UserError, match="its kind is pool, not validation"):
        files.open_array(path, {"kind": "validation"})
    whole = path.read_bytes()
    for content in (whole[:-8], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="does not match the array_crc32"):
            files.open_array(path, {})
    for header in ("[1]", "{}", "{", '{"kind": "pool"}'):
        path.with_suffix(".json").write_text(header)
        with pytest.raises(UserError, match="damaged"):
            files.open_array(path, {})
    files.delete_array(path)
    assert not files.has_array(path)


def test_an_array_is_there_only_when_complete(tmp_path):
    path = tmp_path / "x.npy"
    array = files.create_array(path, (3,), np.dtype([("descriptor", "<f4", (2,)), ("prediction", "<i8")]))
    assert not files.has_array(path)
    array["descriptor"][1] = 7
    array["prediction"] = 4
    files.complete_array(path, array, {"kind": "pool descriptors"})
    back, _ = files.open_array(path, {})
    assert back["descriptor"].tolist() == [[0, 0], [7, 7], [0, 0]]
    assert back["prediction"].tolist() == [4, 4, 4]


def test_no_room_is_an_error_before_anything_is_lost(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        files.create_array(tmp_path / "x.npy", (2**55,), np.dtype("<f4"))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UserError, match="not a regular file"):
        files.read_file(tmp_path / "x")


@pytest.mark.parametrize("use", [files.locked, files.atomic])
def test_a_pipe_in_the_place_of_a_file(tmp_path, use):
    """Opening it would wait for its reader; and what is no regular file is not replaced by one."""
    os.mkfifo(tmp_path / "x")
    reader = os.open(tmp_path / "x", os.O_RDONLY | os.O_NONBLOCK)  # so that a test that fails does not wait
    with pytest.raises(UserError, match="x: it is not a regular file; remove it"):
        use(tmp_path / "x").__enter__()
    os.close(reader)


def test_a_lock_is_held_by_one(tmp_path):
    with files.locked(tmp_path / "x"), pytest.raises(BlockingIOError), files.locked(tmp_path / "x", wait=False):
        pass
    with files.locked(tmp_path / "x", wait=False):
        pass
