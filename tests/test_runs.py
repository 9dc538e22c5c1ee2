"""The run folder: nothing half written, nothing foreign taken for one's own."""

import contextlib
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch

from alfk import files
from alfk.errors import UserError
from alfk.runs import RunFolder, Trial

TRIAL = Trial(100, "Rzg_pz", 80)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path, 3)
    folder.create()
    return folder


def record(b, **more):
    about = {"method": "Rzg_pz", "L": 80, "ir": 100, "nr": 0.0, "init": "rotation", "ensemble": 1, "select": "test"}
    return {**about, "b": b, "accuracy": 50.0 + b, **more}


def test_names_are_those_of_the_release(folder):
    assert folder.path.name == "run3"
    names = [
        folder.checkpoint(TRIAL, 2, 375).name,
        folder.index_list(TRIAL, 2, 375).name,
        folder.initial(TRIAL.distortion, True).name,
        folder.initial(TRIAL.distortion, False).name,
        folder.checkpoint(Trial(1, "random", 0, nr=0.1, init="random"), 0, 125).name,
        folder.checkpoint(Trial(1, "random", 0, init="rotation_conv"), 0, 125).name,  # (the release has none)
    ]
    assert names == [
        "best_unsup_batch_2_size_375_ir_100_nr_0_sub_Rzg_pz_L_80.pt",
        "index_list_unsup_batch_2_size_375_ir_100_nr_0_sub_Rzg_pz_L_80.npy",
        "init_unsup_batch_0_ir_100_nr_0.pt",
        "init_batch_0_ir_100_nr_0.pt",
        "best_batch_0_size_125_ir_1_nr_0.1_sub_random_L_0.pt",
        "best_unsup_conv_batch_0_size_125_ir_1_nr_0_sub_random_L_0.pt",
    ]


def test_a_failed_write_leaves_the_old_file(folder):
    path = folder.path / "x"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), files.atomic(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"


def test_results_survive_a_truncated_line(folder):
    folder.add_result(record(0))
    folder.add_result(record(1))
    path = folder.path / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    assert folder.results() == [record(0)]
    folder.add_result(record(1))
    assert folder.results() == [record(0), record(1)]
    folder.add_result(record(1, accuracy=9))
    assert folder.results() == [record(0), record(1, accuracy=9)]


def test_a_spoilt_line_in_the_middle_is_named(folder):
    path = folder.path / "results.jsonl"
    path.write_text('{"b": 0}\n{"b": \n{"b": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        folder.results()


def test_results_tell_trials_apart(folder):
    assert TRIAL.describes(record(0))
    for key, other in (("method", "Rz"), ("L", 20), ("ir", 1), ("nr", 0.1), ("init", "random"), ("ensemble", 4)):
        assert not TRIAL.describes(record(0, **{key: other}))


def test_the_manifest_names_the_setting_that_differs(folder):
    folder.record_session({"seed": 0}, {"by": "a"})
    folder.record_session({"seed": 0, "epochs": 50}, {"by": "b"})
    with pytest.raises(UserError, match=r"epochs = 50, this command says 5"):
        folder.record_session({"seed": 0, "epochs": 5}, {"by": "c"})
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["settings"] == {"seed": 0, "epochs": 50}
    assert [session["by"] for session in manifest["sessions"]] == ["a", "b"]
    for damage in ("{", "[]", "{}", '{"settings": 3, "sessions": []}'):
        (folder.path / "manifest.json").write_text(damage)
        with pytest.raises(UserError, match="damaged"):
            folder.check_manifest({})


def test_checkpoints_round_trip(folder):
    path = folder.checkpoint(TRIAL, 0, 125)
    state = {"w": torch.arange(6.0).view(2, 3)}
    files.save_checkpoint(path, state, {"kind": "best", "record": record(0)})
    loaded, about = files.load_checkpoint(path, {"kind": "best"})
    assert torch.equal(loaded["w"], state["w"])
    assert about["record"] == record(0)
    with pytest.raises(UserError, match="its kind is best, not initial"):
        files.load_checkpoint(path, {"kind": "initial"})


@pytest.mark.parametrize(
    "spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"#!/bin/sh\n", lambda b: b[:-1]]
)
def test_damaged_checkpoints_are_named(folder, spoil):
    path = folder.checkpoint(TRIAL, 0, 125)
    files.save_checkpoint(path, {"w": torch.zeros(100)}, {"kind": "best"})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match="truncated or not a checkpoint"):
        files.load_checkpoint(path, {})


def test_a_checkpoint_cannot_run_code(folder):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder.path}/ran",)

    path = folder.checkpoint(TRIAL, 0, 125)
    torch.save({"state": {}, "about": Evil()}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        files.load_checkpoint(path, {})
    assert not (folder.path / "ran").exists()


def test_a_foreign_checkpoint_of_another_layout(folder):
    path = folder.checkpoint(TRIAL, 0, 125)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint"):
        files.load_checkpoint(path, {})


def test_arrays_round_trip_mapped(folder):
    path = folder.index_list(TRIAL, 0, 125)
    files.save_array(path, np.arange(5), {"kind": "labelled set"})
    array, header = files.open_array(path, {"kind": "labelled set"})
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(array, np.memmap)
    assert header == {"kind": "labelled set", "shape": [5], "dtype": "int64"}
    with pytest.raises(UserError, match="its kind is labelled set, not pool"):
        files.open_array(path, {"kind": "pool"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(UserError, match="truncated"):
        files.open_array(path, {})
    np.save(path, np.arange(4.0))
    with pytest.raises(UserError, match=r"its shape is \[5\], not \[4\]"):
        files.open_array(path, {})
    path.with_suffix(".json").write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        files.open_array(path, {})
    files.delete_array(path)
    assert not files.has_array(path)


def test_an_array_is_there_only_when_complete(folder):
    path = folder.descriptors("pool", TRIAL, 0, 0)
    array = files.create_array(path, (3,), np.dtype([("descriptor", "<f4", (2,)), ("prediction", "<i8")]))
    assert not files.has_array(path)
    array["descriptor"][1] = 7
    array["prediction"] = 4
    files.complete_array(path, array, {"kind": "pool descriptors"})
    back, _ = files.open_array(path, {})
    assert back["descriptor"].tolist() == [[0, 0], [7, 7], [0, 0]]
    assert back["prediction"].tolist() == [4, 4, 4]


def test_no_room_is_an_error_before_anything_is_lost(folder):
    with pytest.raises(UserError, match="cannot write"):
        files.create_array(folder.descriptors("pool", TRIAL, 0, 0), (2**55,), np.dtype("<f4"))
    assert not list((folder.path / "descr").glob("*.json"))


def test_a_full_disk_leaves_the_old_checkpoint(folder, monkeypatch):
    path = folder.checkpoint(TRIAL, 0, 125)
    files.save_checkpoint(path, {"w": torch.zeros(3)}, {"kind": "old"})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        files.save_checkpoint(path, {"w": torch.ones(3)}, {"kind": "new"})
    assert files.load_checkpoint(path, {})[1] == {"kind": "old"}
    assert not list(path.parent.glob("*.tmp"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --save-folder"):
        RunFolder(tmp_path / "file", 0).create()


def hold(folder, started, stop):
    with folder.lock("x"):
        started.set()
        stop.wait(30)


def test_two_processes_do_not_work_on_the_same_thing(folder):
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, started, stop))
    process.start()
    assert started.wait(60)
    with pytest.raises(UserError, match="another process is working on x"), folder.lock("x"):
        pass
    with folder.lock("y"):
        pass
    process.kill()  # not even asked to let go
    process.join()
    with folder.lock("x"):
        pass
