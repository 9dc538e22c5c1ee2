"""The run folder: nothing half written, nothing foreign taken for one's own."""

import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alfk.experiment.folder import FORMAT, RunFolder
from alfk.experiment.records import BASELINES, INITS, key_of, line_of
from alfk.experiment.trial import Trial, number_name
from alfk.method.acquisition import METHODS
from alfk.support import checkpoints, files
from alfk.support.errors import UserError
from tests.helpers import made_up_record

TRIAL = Trial(100, "Rzg_pz", 80)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path, 3)
    folder.create()
    return folder


def record(b, **more):
    return made_up_record(**{"run": 3, "b": b, "accuracy": 50.0 + b, **more})


def test_names_are_those_of_the_release(folder):
    assert folder.path.name == "run3"
    names = [
        folder.checkpoint("best", TRIAL, 2, 375).name,
        folder.export("index_list", TRIAL, 2, 375, ".npy").name,
        folder.initial(TRIAL.distortion, True).name,
        folder.initial(TRIAL.distortion, False).name,
        folder.checkpoint("best", Trial(1, "random", 0, nr=0.1, init="random"), 0, 125).name,
        folder.checkpoint("best", Trial(1, "random", 0, init="rotation_conv"), 0, 125).name,  # (the release has none)
    ]
    assert names == [
        "best_unsup_batch_2_size_375_ir_100_nr_0_sub_Rzg_pz_L_80.pt",
        "index_list_unsup_batch_2_size_375_ir_100_nr_0_sub_Rzg_pz_L_80.npy",
        "init_unsup_batch_0_ir_100_nr_0.pt",
        "init_batch_0_ir_100_nr_0.pt",
        "best_batch_0_size_125_ir_1_nr_0.1_sub_random_L_0.pt",
        "best_unsup_conv_batch_0_size_125_ir_1_nr_0_sub_random_L_0.pt",
    ]


def test_results_survive_a_truncated_line(folder):
    folder.add_results([record(0)])
    folder.add_results([record(1)])
    path = folder.path / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    assert folder.results() == [record(0)]
    assert "line 2: cut short" in folder.read_results()[1][0]
    folder.add_results([record(1)])
    assert folder.results() == [record(0), record(1)]
    folder.add_results([record(1, accuracy=9)])
    assert folder.results() == [record(0), record(1, accuracy=9)]


def test_a_spoilt_line_in_the_middle_is_named(folder):
    path = folder.path / "results.jsonl"
    for b in (0, 1, 2):
        folder.add_results([record(b)])
    first, second, third = path.read_text().splitlines()
    elsewhere = line_of(record(5, run=4)).rstrip()
    for spoilt, words in (
        (second[:-9], "line 2: cut short or not a results record"),
        (second.replace('"labelled": 15', '"labelled": 16'), "line 2: its content does not match its crc32"),
        ("", "line 2: empty"),
        ("[]", "line 2: not a results record"),
        (elsewhere, "line 2: of run 4"),
        (json.dumps(record(1)), "line 2: no crc32"),
        (first, "line 2: a second line about the same iteration"),
    ):
        path.write_text(f"{first}\n{spoilt}\n{third}\n")
        found, problems = folder.read_results()
        assert found == [record(0), record(2)]
        assert len(problems) == 1
        assert f"{path}, {words}" in problems[0]
    assert folder.read_results(seed=7)[0] == []
    assert "line 1: of seed 0" in folder.read_results(seed=7)[1][0]
    folder.add_results([record(1)])
    assert folder.read_results() == ([record(0), record(2), record(1)], [])


def test_numbers_keep_their_names_apart():
    assert [number_name(value) for value in (100.0, 0.1, 0.0, 20.0)] == ["100", "0.1", "0", "20"]
    assert [number_name(value) for value in (20.0000001, 0.999999999)] == ["20.0000001", "0.999999999"]
    assert Trial(20.0000001, "random", 0).name != Trial(20, "random", 0).name


def test_results_tell_trials_apart(folder):
    assert TRIAL.describes(record(0))
    for key, other in (("method", "Rz"), ("L", 20), ("ir", 1), ("nr", 0.1), ("init", "random"), ("ensemble", 4)):
        assert not TRIAL.describes(record(0, **{key: other}))


def trial(method, length, ensemble, copies, **others):
    """With the attributes that the method has, as the scripts make them."""
    definition = METHODS.get(method)
    copies = copies if definition and definition.estimates_from_copies else None
    ensemble = ensemble if definition and definition.needs_uncertainty else 1
    length = length if definition and definition.needs_descriptors else 0
    return Trial(method=method, length=length, ensemble=ensemble, copies=copies, **others)


TRIALS = st.builds(
    trial,
    ir=st.sampled_from([1, 10, 100.0, 20.5]),
    method=st.sampled_from([*METHODS, *BASELINES]),
    length=st.sampled_from([20, 80]),
    ensemble=st.sampled_from([1, 4]),
    nr=st.sampled_from([0.0, 0.1]),
    init=st.sampled_from(list(INITS)),
    select=st.sampled_from(["test", "val", "last"]),
    copies=st.sampled_from(["degrees", "released"]),
    first_batch=st.sampled_from([None, "random"]),
    validation_size=st.sampled_from([None, 1, 10, 100]),
    adds_validation=st.booleans(),
)


@given(TRIALS, st.integers(0, 9))
def test_a_trial_is_found_again_in_its_records(trial, b):
    """By way of JSON; entries that most records do not have are left out."""
    line = json.loads(json.dumps(made_up_record(**trial.facts(), b=b)))
    assert Trial.of(line) == trial
    assert trial.describes(line)
    assert ("first_batch" in line, "validation_size" in line) == (bool(trial.first_batch), bool(trial.validation_size))
    assert ("adds_validation" in line) == trial.adds_validation
    plain = trial.plain
    assert (plain == trial) == (not (trial.first_batch or trial.validation_size or trial.adds_validation))
    assert plain.describes(line) == (plain == trial)


@given(st.lists(st.tuples(TRIALS, st.integers(0, 2)), min_size=2, max_size=20, unique=True))
def test_different_iterations_have_different_files_and_records(each):
    assert len({trial.stem(b, 15 * (b + 1)) for trial, b in each}) == len(each)
    assert len({key_of({**trial.facts(), "b": b}) for trial, b in each}) == len(each)
    trials = {trial for trial, _ in each}
    assert len({trial.name for trial in trials}) == len(trials)
    assert len({(trial.label(), trial.nr, trial.select) for trial in trials}) == len(trials)


def test_names_say_what_is_different():
    trial = Trial(100, "flqmi", 0, first_batch="random", validation_size=50, adds_validation=True, select="last")
    assert trial.stem(1, 30) == (
        "unsup_batch_1_size_30_ir_100_nr_0_sub_flqmi_L_0_first_random_V_50_and_validation_select_last"
    )
    assert trial.short() == "flqmi first random V50 + validation"
    # Tables have rows of the release's own figures beside ours.
    assert Trial(100, "Rzg_trace", 20, copies="degrees").short() == "Rzg_trace L20 copies by degrees"
    assert Trial(100, "Rzg_trace", 20, copies="released").short() == "Rzg_trace L20"


def test_the_manifest_names_the_setting_that_differs(folder):
    folder.record_session({"seed": 0}, {"by": "a"})
    folder.record_session({"seed": 0, "epochs": 50}, {"by": "b"})
    checkpoints.save_checkpoint(folder.checkpoint("best", TRIAL, 0, 125), {}, {"settings": {"seed": 0, "epochs": 50}})
    with pytest.raises(UserError, match=r"epochs = 50, this command says 5"):
        folder.record_session({"seed": 0, "epochs": 5}, {"by": "c"})
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["settings"] == {"seed": 0, "epochs": 50}
    assert [session["by"] for session in manifest["sessions"]] == ["a", "b"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "edited", None])
def test_a_lost_manifest_is_made_again_from_the_checkpoints(folder, damage):
    folder.record_session({"seed": 0, "epochs": 50}, {"by": "a"})
    path = folder.path / "manifest.json"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage if damage != "edited" else path.read_text().replace("50", "51"))
    assert folder.check_manifest({"seed": 1})[0]["settings"] == {}  # nothing was made yet
    about = {"kind": "best", "settings": {"seed": 0, "epochs": 50}}
    checkpoints.save_checkpoint(folder.checkpoint("best", TRIAL, 0, 125), {}, about)
    with pytest.raises(UserError, match=r"epochs = 50, this command says 5"):
        folder.check_manifest({"seed": 0, "epochs": 5})
    manifest, (warning,) = folder.check_manifest({"seed": 0, "epochs": 50})
    assert manifest["settings"] == {"seed": 0, "epochs": 50}
    assert str(path) in warning
    folder.record_session({"seed": 0, "epochs": 50}, {"by": "b"})
    assert folder.check_manifest({}) == (
        {"run": 3, "format": FORMAT, "settings": about["settings"], "sessions": [{"by": "b"}]},
        [],
    )


def test_a_manifest_of_another_run_is_replaced(folder):
    about = {"kind": "best", "settings": {"seed": 0, "epochs": 50}}
    checkpoints.save_checkpoint(folder.checkpoint("best", TRIAL, 0, 125), {}, about)
    other = {"run": 3, "format": FORMAT, "settings": {"seed": 0, "epochs": 5}, "sessions": []}
    files.write_json(folder.path / "manifest.json", other)
    manifest, (warning,) = folder.check_manifest(about["settings"])
    assert manifest["settings"] == about["settings"]
    assert "epochs = 5, but no model of the run was made so" in warning
    with pytest.raises(UserError, match=r"epochs = 5, this command says 7"):
        folder.check_manifest({"seed": 0, "epochs": 7})
    files.write_json(folder.path / "manifest.json", {**other, "run": 2})
    manifest, (warning,) = folder.check_manifest(about["settings"])
    assert manifest["settings"] == about["settings"]
    assert "is of another run" in warning


def test_a_run_of_another_version_is_refused(folder):
    files.write_json(folder.path / "manifest.json", {"run": 3, "settings": {"seed": 0}, "sessions": []})
    with pytest.raises(UserError, match="was made by another version, whose files differ: delete it, or give another"):
        folder.check_manifest({"seed": 0})


def test_iterations_without_a_results_line_are_named(folder):
    for b in (0, 1):
        checkpoints.save_checkpoint(folder.checkpoint("best", TRIAL, b, 15 * (b + 1)), {}, {})
    lines = [record(0), record(1, labelled=30)]
    assert folder.without_line(lines) == []
    (warning,) = folder.without_line(lines[:1])
    assert (
        f"has no line of {folder.checkpoint('best', TRIAL, 1, 30).name}; the run's own command restores it" in warning
    )
    (warning,) = folder.without_line([])
    assert "has no line of 2 iterations, the first best_" in warning


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
