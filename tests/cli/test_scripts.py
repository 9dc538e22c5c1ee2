"""The real scripts as a user runs them, on DIGITS, with few epochs: in this process, but for those that are killed."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from alfk.cli.jobs import Failure, run_in_parallel
from alfk.cli.progress import Progress
from alfk.experiment import describe
from alfk.method.acquisition import METHODS
from alfk.networks.weights import fingerprint
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.files import write_json
from tests.helpers import (
    ONE_THREAD,
    ROOT,
    SMALL,
    call,
    call_process,
    children,
    command,
    draw,
    outcome,
    records,
    refused,
    start,
    wait_for,
    wait_until,
)

TWO = ["--iterations", "2", "--methods", "random", "Rzg_pz", "--run-stop", "2"]


def test_rows_of_the_scripts_have_single_models():
    """So that a bare --initial makes one model of each kind a run."""
    for folder, datasets in {"mnist": ("cfg", "cfg_digits"), "svhn": ("cfg",), "imagenet": ("cfg",)}.items():
        script = runpy.run_path(str(ROOT / folder / "run.py"))
        assert {members for name in datasets for *_, members in script[name]} == {1}
    rows = runpy.run_path(str(ROOT / "mnist" / "run.py"))["cfg"]
    assert (100, "Rzg_true", 80, 1) in rows  # visualize_tsne.py needs it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of two methods, made without interruption by one process."""
    folder = tmp_path_factory.mktemp("finished")
    call("mnist/run.py", *SMALL, *TWO, "--initial", "--save-folder", folder)
    done = call("mnist/run.py", *SMALL, *TWO, "--save-folder", folder)
    return folder, done


def test_a_run_leaves_what_is_promised(finished):
    folder, done = finished
    assert re.search(r"Rzg_pz L80", done.stdout)
    assert re.search(r"30 +3\.34 +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ± \d+\.\d\d", done.stdout)
    lines = records(folder / "run1")
    assert [(r["method"], r["b"], r["labelled"]) for r in lines] == [
        ("random", 0, 15),
        ("random", 1, 30),
        ("Rzg_pz", 0, 15),
        ("Rzg_pz", 1, 30),
    ]
    for r in lines:
        assert sum(r["selected_histogram"]) == 15
        assert len(r["accuracy_per_class"]) == 10
        assert r["accuracy"] >= r["accuracy_last"]
        assert r["select"] == "test"
        assert np.mean(r["accuracy_per_class"]) == pytest.approx(r["accuracy"])
        assert (r["pseudo_label_accuracy"] is None) == (r["method"] == "random")
        assert (r["misclassified"] is None) == (r["method"] == "random")
        assert r["labelled_share"] == pytest.approx(100 * r["labelled"] / 897)
        assert set(r["seconds"]) == {"describe", "acquire", "retrain"}
        assert r["peak_memory_mib"] > 50
        assert len(r["epochs"]) == 1
        assert 0 <= r["epochs"][0] <= 4
    for before, after in (lines[:2], lines[2:]):
        assert after["accuracy"] >= before["accuracy"]  # since the starting model counts
    manifest = json.loads((folder / "run1" / "manifest.json").read_text())
    assert manifest["settings"]["retraining.epochs"] == 4
    assert manifest["sessions"][0]["versions"]["torch"] == torch.__version__
    assert not list(folder.rglob("*.tmp"))
    assert not list((folder / "run1" / "descr").iterdir())


@pytest.mark.slow
def test_the_same_command_in_processes_side_by_side_gives_the_same(finished, tmp_path):
    folder, _ = finished
    call("mnist/run.py", *SMALL, *TWO, "--initial", "--save-folder", tmp_path, "--jobs", 2)
    done = call("mnist/run.py", *SMALL, *TWO, "--save-folder", tmp_path, "--jobs", 2)
    assert outcome(tmp_path) == outcome(folder)
    assert len(re.findall(r"^ +[01]  R", done.stdout, re.M)) == 4


def test_another_seed_gives_something_else(finished, tmp_path):
    folder, _ = finished
    one = [*SMALL, "--iterations", "1", "--methods", "random", "--run-stop", "1", "--seed", "7"]
    call("mnist/run.py", *one, "--initial", "--save-folder", tmp_path)
    call("mnist/run.py", *one, "--save-folder", tmp_path)
    name = "run0/index_list_unsup_batch_0_size_15_ir_20_nr_0_sub_random_L_0.npy"
    assert outcome(tmp_path)[name] != outcome(folder)[name]


def test_the_scripts_one_by_one_give_the_same(finished, tmp_path, monkeypatch):
    """unsup, gen_descr, main_descr by hand, from another folder, in the release's spelling of the method."""
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    here = [*SMALL, "--save-folder", tmp_path / "x", "-r", 1, "-ir", 20]
    method = ["-sub", "gradFmap", "-aug", "topKandPccFprGrad", "-dl", 80, "-unsup", 1]
    call("mnist/unsup.py", *here)
    for b in (0, 1):
        told = call("mnist/gen_descr.py", *here, *method, "-b", b, "-ts", 15 * b).stdout
        for line in told.splitlines():
            assert np.load(line, mmap_mode="r")["descriptor"].shape[1] == 160
            assert json.loads(Path(line).with_suffix(".json").read_text())["b"] == b
        call("mnist/main_descr.py", *here, *method, "-b", b)
    mine, wanted = outcome(tmp_path / "x"), outcome(folder)
    results = "run1/results.jsonl"
    assert mine[results] == [r for r in wanted[results] if r["method"] == "Rzg_pz"]
    assert all(value == wanted[name] for name, value in mine.items() if name != results)


@pytest.mark.slow
def test_killed_and_started_again(finished, tmp_path):
    """SIGKILL while initial models are made and while a second query is described; then all is as if nothing had been.

    tests/test_stages.py dies at every file.
    """
    folder, _ = finished
    arguments = [*SMALL, *TWO, "--save-folder", tmp_path]
    for stage, sign in ((["--initial"], "run0/checkpoint/init_batch_0_*"), ([], "run0/descr/pool_*batch_1_*")):
        process = start(command("mnist/run.py", *arguments, *stage))
        wait_for(tmp_path, sign, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        call("mnist/run.py", *arguments, *stage)
    assert outcome(tmp_path) == outcome(folder)
    assert not list(tmp_path.glob("run*/descr/*"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Initial models of two runs."""
    folder = tmp_path_factory.mktemp("pair")
    few = ["--initial", "--methods", "random", "--run-stop", 2, "-smp", 8, "--save-folder", folder]
    done = call("mnist/run.py", *SMALL, *few)
    assert "initial models: 4, random and rotation, for ir=20 and 2 run(s)" in done.stdout
    assert "1 curve(s), 12 AL iterations in all; ensembles of E need --initial -ens E first" in done.stdout
    return folder


@pytest.mark.parametrize(("copies", "used"), [(None, "released"), ("degrees", "degrees"), ("released", "released")])
def test_copies_are_those_of_the_flag(pair, tmp_path, monkeypatch, copies, used):
    """--copies decides on the strategy, and stands in the records and, if not the default, in the names of files."""
    drawn = []

    class Noted:
        def __init__(self, name, strategy):
            self.name, self.strategy, self.shared = name, strategy, strategy.shared

        def draw(self, *arguments):
            drawn.append(self.name)
            return self.strategy.draw(*arguments)

    noted = {name: Noted(name, strategy) for name, strategy in describe.STRATEGIES.items()}
    monkeypatch.setattr(describe, "STRATEGIES", noted)
    shutil.copytree(pair / "run0", tmp_path / "run0")
    few = [
        "--methods",
        "Rzg_trace",
        "-dl",
        20,
        "--iterations",
        2,
        "--run-stop",
        1,
        "-smp",
        2,
        "--save-folder",
        tmp_path,
    ]
    call("mnist/run.py", *SMALL, *few, *([] if copies is None else ["--copies", copies]))
    assert set(drawn) == {used}
    assert [record["copies"] for record in records(tmp_path / "run0")] == [used, used]
    assert bool(list(tmp_path.rglob("best_*_copies_degrees.pt"))) == (used == "degrees")


@pytest.mark.slow
def test_side_by_side_killed_and_started_again(pair, tmp_path):
    """The processes of a killed parent end with it, in the midst of long work, and do not stand in the way."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    endless = [*SMALL, "--methods", "varR", "--run-stop", 2, "--save-folder", tmp_path, "-smp", 200000]
    parent = start(command("mnist/run.py", *endless, "--iterations", 2, "--jobs", 2))
    wait_until(lambda: len(list(tmp_path.glob("run*/checkpoint/best*batch_0*"))) == 2)
    working = children(parent)  # both sample now, for hours
    assert len(working) >= 2
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in working), 20)
    call("mnist/run.py", *endless, "--iterations", 1)


@pytest.mark.slow
def test_a_killed_child_is_reported(pair, tmp_path):
    """One of two processes dies; the other run finishes, and the exit status is not 0."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    one = [*SMALL, "--iterations", 2, "--methods", "random", "--run-stop", 2, "--save-folder", tmp_path, "--jobs", 2]
    process = start(command("mnist/run.py", *one))
    wait_until(lambda: children(process, b"spawn_main"))
    os.kill(children(process, b"spawn_main")[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "its process died" in said
    assert [len(records(path.parent)) for path in tmp_path.glob("run*/results.jsonl")] == [2]


def dies(number, report):
    """A RunTask: run 0 is killed, as when memory runs out, and run 1 ends."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_death_of_a_process_is_a_line_and_stops_no_other(capsys):
    (failure,) = run_in_parallel([0, 1], dies, Progress(total=2), 2)
    cause = "its process died (exit status -9); if the memory did not suffice, fewer --jobs need less"
    assert failure == Failure(0, cause, user=False)
    printed = "".join(capsys.readouterr())
    assert f"run 0 failed: {cause}" in printed
    assert "Traceback" not in printed


def test_deleting_a_damaged_file_mends_the_run(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    last = "unsup_batch_1_size_30_ir_20_nr_0_sub_Rzg_pz_L_80"
    for victim in (copy / "run0" / f"index_list_{last}.npy", copy / "run0" / "data" / "validation.npy"):
        (copy / "run0" / "checkpoint" / f"best_{last}.pt").unlink()
        victim.write_bytes(victim.read_bytes()[:90])
        refused("mnist/run.py", *SMALL, *TWO, "--save-folder", copy, words=f"{victim} is damaged")
        victim.unlink()
        call("mnist/run.py", *SMALL, *TWO, "--save-folder", copy)
        assert outcome(copy) == outcome(folder)


def test_a_rotation_model_of_another_pretraining_is_named_and_made_again(finished, tmp_path):
    """Before learning, and half-way, where the results that were made with the right one are kept."""
    one = ["--dataset", "DIGITS", "--device", "cpu", "-e", 4, "--methods", "random", "--run-stop", 1]
    for epochs, folder in ((1, tmp_path / "a"), (2, tmp_path / "b")):
        call("mnist/run.py", *one, "--unsup-epochs", epochs, "--initial", "--save-folder", folder)
    name = "run0/checkpoint/init_unsup_batch_0_ir_20_nr_0.pt"
    own = tmp_path / "own.pt"
    shutil.copy(tmp_path / "a" / name, own)
    for iterations in (1, 2):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
        same = [*one, "--save-folder", tmp_path / "a", "--iterations", iterations]
        refused("mnist/run.py", *same, words=f"{name} was made with pretraining.epochs = 2, the run with 1: delete it")
        shutil.copy(own, tmp_path / "a" / name)
        call("mnist/run.py", *same)
    assert len(records(tmp_path / "a" / "run0")) == 2


def test_an_iteration_that_was_not_trained_from_the_one_before_is_named(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "x")
    path = next((tmp_path / "x" / "run0" / "checkpoint").glob("best_*batch_0_*random*"))
    state, about = load_checkpoint(path, {})
    state = {name: value + 1 for name, value in state.items()}
    save_checkpoint(path, state, {**about, "weights": fingerprint(state)})
    refused("mnist/run.py", *SMALL, *TWO, "--save-folder", tmp_path / "x", words="was trained from another model than")


def test_initial_models_do_not_bind_what_comes_later(tmp_path):
    one = [*SMALL, "--iterations", "1", "--methods", "random", "--run-stop", "1", "--save-folder", tmp_path]
    call("mnist/run.py", *one, "--select", "val", "--initial")
    call("mnist/run.py", *one, "--select", "val", "-as", 20)
    refused("mnist/run.py", *one, "--select", "val", words="query_size = 20, this command says 15")
    refused("mnist/run.py", *one, "--initial", "--unsup-epochs", 2, words="pretraining.epochs = 1")


def written(folder):
    """When weights, index lists and results were written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".pt", ".npy", ".jsonl")}


def test_finished_work_is_not_done_again(finished):
    folder, done = finished
    before = written(folder)
    again = call("mnist/run.py", *SMALL, *TWO, "--save-folder", folder)
    assert written(folder) == before
    assert again.stdout.strip() == done.stdout[done.stdout.index("Test accuracy") :].strip()


def test_a_failing_run_does_not_stop_the_others(finished, tmp_path):
    one = [*SMALL, "--iterations", "1", "--methods", "random", "--run-stop", "2", "--save-folder", tmp_path]
    call("mnist/run.py", *one, "--initial")
    spoilt = tmp_path / "run0" / "checkpoint" / "init_unsup_batch_0_ir_20_nr_0.pt"
    spoilt.write_bytes(spoilt.read_bytes()[:1000])
    done = call("mnist/run.py", *one, "--jobs", 2, status=2)
    assert "run 0" in done.stderr
    assert f"{spoilt} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run1" / "results.jsonl").exists()
    assert "1 run\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "Rzg_px"], "no method 'Rzg_px'"),
        (["--methods", "Rz", "-dl", "81"], "no descriptor of length L=81"),
        (["--nonsense"], "unrecognized arguments"),
        (["-ir", "0.5"], "at least 1"),
        (["-nr", "1"], "noise ratio"),
        (["--gpu", "0"], "not allowed with argument --device"),
        (["--run-start", "5", "--run-stop", "5"], "there is no run"),
        (["--run-start", "4", "--run-stop", "5"], "the same command with --initial makes it"),
        (["-e", "5"], "retraining.epochs = 4, this command says 5"),
        (["--seed", "1"], "seed = 0, this command says 1"),
        (["--select", "last"], "the same command with --initial makes it"),
        (["-as", "10"], "query_size = 15"),
        (["-gbs", "100"], "descriptor_batch = 500"),
    ],
)
def test_bad_requests_take_one_line(finished, arguments, words):
    folder, _ = finished
    before = written(folder)
    refused("mnist/run.py", *SMALL, *TWO, *arguments, "--save-folder", folder, words=words)
    assert written(folder) == before


def test_more_than_the_pool_holds(finished, tmp_path):
    refused("mnist/unsup.py", *SMALL, "-as", 0, "--save-folder", tmp_path, words="not a positive number")
    big = [*SMALL, "--run-stop", 1, "-as", 100, "--iterations", 6, "--save-folder", tmp_path]
    refused("mnist/run.py", *big, "--initial", words="need 600 pool images, the pool at ir=20 has 473")
    assert not (tmp_path / "run0").exists()
    call("mnist/unsup.py", *SMALL, "--save-folder", tmp_path)
    huge = [*SMALL, "-as", 9000, "-sub", "random", "--save-folder", tmp_path]
    refused("mnist/main_descr.py", *huge, words="need 9000 pool images")


def test_stages_out_of_order(finished, tmp_path):
    here = [*SMALL, "--save-folder", tmp_path, "-ir", 20, "-sub", "Rzg_pz"]
    refused(
        "mnist/gen_descr.py", *here, words=f"run.py --initial -ir 20 --dataset DIGITS --save-folder {tmp_path} makes it"
    )
    assert not (tmp_path / "run0").exists()
    call("mnist/unsup.py", *SMALL, "--save-folder", tmp_path)
    refused("mnist/main_descr.py", *here, words="run gen_descr.py first")
    refused("mnist/main_descr.py", *here, "-b", 1, words="AL iteration b=0 has to be run first")
    refused("mnist/gen_descr.py", *here, "-b", 1, words="there is no checkpoint")
    refused("mnist/gen_descr.py", *here, "-b", 1, "-ts", 25, words="15 images are labelled, not -ts 25")
    call("mnist/gen_descr.py", *here)
    database = next((tmp_path / "run0" / "descr").glob("pool*.npy"))
    whole = database.read_bytes()
    database.write_bytes(whole[:5000])
    refused("mnist/main_descr.py", *here, words=f"{database} is damaged")
    database.write_bytes(whole)
    header = json.loads(database.with_suffix(".json").read_text())
    write_json(database.with_suffix(".json"), {**header, "model": "0" * 16})
    refused("mnist/main_descr.py", *here, words="its model is 0000000000000000")
    call("mnist/gen_descr.py", *here)  # made anew for the model that is there
    call("mnist/main_descr.py", *here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    refused("mnist/unsup.py", *SMALL, "--save-folder", tmp_path / "x", words="choose another --save-folder")


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    refused("mnist/unsup.py", *SMALL, "--save-folder", tmp_path / "file", words="choose another --save-folder")


@pytest.mark.parametrize("select", ["val", "last"])
def test_epochs_selected_without_the_test_set(tmp_path, select):
    one = [*SMALL, "--iterations", "1", "--methods", "Rz", "-dl", "20", "--run-stop", "1", "--select", select]
    call("mnist/run.py", *one, "--initial", "--save-folder", tmp_path)
    call("mnist/run.py", *one, "--save-folder", tmp_path)
    call("mnist/run.py", *one, "--save-folder", tmp_path, "--methods", "random")
    lines = records(tmp_path / "run0")
    assert [(line["method"], line["select"]) for line in lines] == [("Rz", select), ("random", select)]
    for line in lines:
        assert ("accuracy_validation" in line) == (select == "val")
        assert "accuracy_last" not in line
        assert select == "val" or line["epochs"] == [4]
    names = [path.name for path in (tmp_path / "run0" / "checkpoint").glob("*.pt")]
    assert sum(name.endswith(f"_select_{select}.pt") for name in names) == len(names) - 1 == 3  # but the random model


def test_two_initial_models_side_by_side_in_a_run(tmp_path):
    """--conv-only has files and lines of its own, from the same rotation model; the other ones' stay as they are."""
    one = [*SMALL, "--iterations", 2, "--methods", "Rzg_pz", "-dl", 20, "--run-stop", 1, "--save-folder", tmp_path]
    call("mnist/run.py", *one, "--initial")
    call("mnist/run.py", *one)
    before = {path: path.read_bytes() for path in tmp_path.glob("run0/*/*.pt")}
    done = call("mnist/run.py", *one, "--conv-only")
    assert "rotation_conv initial model" in done.stdout
    assert all(path.read_bytes() == content for path, content in before.items())
    new = sorted(path.name[:24] for path in set(tmp_path.glob("run0/*/*.pt")) - set(before))
    assert new == ["best_unsup_conv_batch_0_", "best_unsup_conv_batch_1_"]
    lines = records(tmp_path / "run0")
    assert [(r["init"], r["b"]) for r in lines] == [(i, b) for i in ("rotation", "rotation_conv") for b in (0, 1)]
    assert lines[0]["accuracy"] != lines[2]["accuracy"]


@pytest.mark.slow
def test_every_method_and_length_runs(tmp_path):
    few = [*SMALL, "-e", 1, "--run-stop", 1, "-smp", 4, "--save-folder", tmp_path]
    done = call("mnist/run.py", *few, "--initial", "-ens", 2, "--methods", "varR")
    assert "initial models: 4, random and rotation" in done.stdout
    assert "need --initial -ens" not in done.stdout
    matching = [key for key, method in METHODS.items() if method.needs_descriptors]
    lengths = ["-dl", 10, 20, 30, 80, 90]
    call("mnist/run.py", *few, "--iterations", 1, "--unsupervised", 0, "--methods", "random", *matching, *lengths)
    uncertain = [key for key, method in METHODS.items() if method.needs_uncertainty]
    done = call("mnist/run.py", *few, "--iterations", 2, "--methods", *uncertain, "-ens", 1, 2)
    lines = records(tmp_path / "run0")
    assert len(lines) == 1 + len(matching) * 5 + len(uncertain) * 2 * 2
    for line in lines:
        method = METHODS[line["method"]]
        assert len(line["accuracy_members"]) == line["ensemble"]
        assert line["accuracy"] == pytest.approx(np.mean(line["accuracy_members"]))
        assert (line["pseudo_label_accuracy"] is not None) == method.estimates_labels
        assert (line["passes"]["forward"] > 0) == (
            method.needs_descriptors or (method.needs_uncertainty and line["b"] > 0)
        )
        if method.needs_uncertainty and line["b"] > 0:
            assert line["passes"] == {"forward": 4 * 473, "backward": 0}
    assert "varR E2" in done.stdout
    assert "forward" in done.stdout


HELP = """
import os, runpy, sys
path, scripts = list(sys.path), sys.argv[1:]
for script in scripts:
    for name in [n for n in sys.modules if n.partition(".")[0] in ("alfk", "mnist", "svhn", "imagenet", "vaal")]:
        del sys.modules[name]
    sys.path[:], sys.argv = [os.path.dirname(script), *path], [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_every_script_finds_the_package_from_any_folder(tmp_path):
    """As fresh interpreters would, but with torch imported once for all."""
    folders = ("mnist", "svhn", "imagenet", "vaal", ".")
    scripts = [p for folder in folders for p in (ROOT / folder).glob("*.py") if "__main__" in p.read_text()]
    assert len(scripts) == 4 * 3 + 1 + 2 + 1
    done = call_process([sys.executable, "-c", HELP, *map(str, scripts)], cwd=tmp_path)
    assert done.stdout.count("usage: ") == len(scripts)


def test_no_mnist_and_no_network(tmp_path, monkeypatch):
    """The download is pointed at a closed port."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    refused("mnist/run.py", "--initial", "--datadir", tmp_path, words="--dataset DIGITS")


@pytest.fixture
def drawable(finished, tmp_path):
    """The finished runs as run_plot.py looks for them."""
    (tmp_path / "DIGITS").symlink_to(finished[0])
    return tmp_path


def test_the_curves_are_drawn(drawable):
    done = draw(drawable)
    image = drawable / "figures" / "DIGITS_ir20.png"
    assert str(image) in done.stdout
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert image.with_suffix(".pdf").read_bytes()[:4] == b"%PDF"
    assert "not there" not in done.stdout


def test_the_selected_images_are_drawn(drawable):
    done = draw(drawable, "--show-selected", "--run-stop", "1", "--methods", "Rzg_pz")
    (sheet,) = drawable.glob("figures/*selected*.png")
    assert str(sheet) in done.stdout
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def test_selected_images_need_the_index_lists(finished, tmp_path):
    """A folder with nothing but results lines has curves, but no images to show."""
    (tmp_path / "DIGITS" / "run0").mkdir(parents=True)
    shutil.copy(finished[0] / "run0" / "results.jsonl", tmp_path / "DIGITS" / "run0")
    where = ["--datadir", tmp_path, "--out", tmp_path / "figures"]
    refused("run_plot.py", *where, "--show-selected", words="--show-selected needs")


def test_confusion_and_maps(drawable):
    arguments = ["--dataset", "DIGITS", "--datadir", drawable, "--out", drawable / "figures"]
    arguments += ["-b", 1, "--methods", "random", "Rzg_pz_L80"]
    first = call("mnist/visualize_tsne.py", *arguments)
    image = drawable / "figures" / "DIGITS_tsne_ir20_b1_run0.png"
    assert str(image.with_suffix("")) in first.stdout
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert first.stdout.count("t-SNE of 400 test images") == 2
    taught = {(r["method"], r["b"]): r["accuracy"] for r in records(drawable / "DIGITS" / "run0")}
    for method, name in (("random", "random"), ("Rzg_pz", "Rzg_pz L80")):
        said = re.search(rf"^{name}: ([\d.]+) %", first.stdout, re.M)
        assert float(said[1]) == pytest.approx(taught[method, 0], abs=0.051)
    again = call("mnist/visualize_tsne.py", *arguments)
    assert "t-SNE of" not in again.stdout  # kept from the first time
    missing = [*arguments[:-5], "-b", 2, "--methods", "varR_E1"]
    refused("mnist/visualize_tsne.py", *missing, words="--methods varR makes it")


def test_the_whole_pool_is_the_line_all_train(finished, tmp_path):
    """Trained once, on every image that the bias left; drawn as the line; not trained again."""
    shutil.copytree(finished[0], tmp_path / "DIGITS")
    run = tmp_path / "DIGITS" / "run0"
    arguments = [*SMALL, "--save-folder", tmp_path / "DIGITS", "--baseline"]
    call("mnist/run.py", *arguments)
    line = records(run)[-1]
    assert line["method"] == "all_train"
    assert line["labelled"] == len(np.load(next(run.rglob("pool*.npy"))))
    assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / 897)
    before = (run / "results.jsonl").read_bytes()
    call("mnist/run.py", *arguments)
    assert (run / "results.jsonl").read_bytes() == before
    assert f"all train (1 run): {line['accuracy']:.2f} %" in draw(tmp_path).stdout


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_reader_that_ends_early(tmp_path, jobs):
    """As `run.py ... | head -1` does: without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    line = command("mnist/run.py", *SMALL, "--initial", "--run-stop", 2, "--save-folder", tmp_path, "--jobs", jobs)
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
