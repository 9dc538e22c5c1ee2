"""The scripts as a user runs them, on DIGITS, with two epochs: in this process, but where processes die."""

import dataclasses
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import sklearn.manifold
import torch

from alfk.cli import scripts
from alfk.method.acquisition import METHODS
from alfk.support.errors import UserError
from alfk.support.files import write_json
from mnist.config import EXPERIMENTS
from tests import helpers
from tests.helpers import ONE_THREAD, ROOT, call, children, command, draw, outcome, records, refused, wait_until

SMALL = [*helpers.SMALL, "-e", "2"]
TWO = ["--iterations", "2", "--methods", "random", "Rzg_pz", "--run-stop", "2"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two runs with their initial models, and nothing else."""
    folder = tmp_path_factory.mktemp("prepared")
    done = call("mnist/run.py", *SMALL, *TWO, "--initial", "--save-folder", folder)
    assert "initial models: 4, random and rotation, for ir=20 and 2 run(s)" in done.stdout
    assert "2 curve(s), 8 AL iterations in all; ensembles of E need --initial -ens E first" in done.stdout
    return folder


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """Two runs of two methods, made without interruption by one process."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    return folder, call("mnist/run.py", *SMALL, *TWO, "--save-folder", folder)


@pytest.fixture
def one(prepared, tmp_path):
    """The start of commands for one run whose initial models are made, in the folder `tmp_path`."""
    shutil.copytree(prepared / "run0", tmp_path / "run0")
    return ["mnist/run.py", *SMALL, "--run-stop", 1, "--save-folder", tmp_path]


def test_a_run_leaves_what_is_promised(finished):
    folder, done = finished
    assert re.search(r"Rzg_pz L80", done.stdout)
    assert re.search(r"30 +3\.34 +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ± \d+\.\d\d", done.stdout)
    lines = records(folder / "run1")
    expected = [(method, b, 15 * (b + 1)) for method in ("random", "Rzg_pz") for b in (0, 1)]
    assert [(r["method"], r["b"], r["labelled"]) for r in lines] == expected
    for r in lines:
        assert sum(r["selected_histogram"]) == 15
        assert len(r["accuracy_per_class"]) == 10
        assert r["accuracy"] >= r["accuracy_last"]
        assert r["select"] == "test"
        assert np.mean(r["accuracy_per_class"]) == pytest.approx(r["accuracy"])
        assert (r["pseudo_label_accuracy"] is None) == (r["misclassified"] is None) == (r["method"] == "random")
        assert r["labelled_share"] == pytest.approx(100 * r["labelled"] / 897)
        assert set(r["seconds"]) == {"describe", "acquire", "retrain"}
        assert r["peak_memory_mib"] > 50
        assert len(r["epochs"]) == 1
        assert 0 <= r["epochs"][0] <= 2
    for before, after in (lines[:2], lines[2:]):
        assert after["accuracy"] >= before["accuracy"]  # since the starting model counts
    manifest = json.loads((folder / "run1" / "manifest.json").read_text())
    assert manifest["settings"]["retraining.epochs"] == 2
    assert manifest["sessions"][0]["versions"]["torch"] == torch.__version__
    assert not list(folder.rglob("*.tmp"))
    assert not list((folder / "run1" / "descr").iterdir())


def written(folder):
    """When checkpoints were written, and the content of index lists and results, which may be written again."""
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    return times | {p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".npy", ".jsonl")}


def test_finished_work_is_not_done_again(finished):
    folder, done = finished
    before = written(folder)
    again = call("mnist/run.py", *SMALL, *TWO, "--save-folder", folder)
    assert written(folder) == before
    assert again.stdout.strip() == done.stdout[done.stdout.index("Test accuracy") :].strip()


@pytest.mark.slow
def test_killed_in_parallel_processes_and_started_again(finished, prepared, tmp_path):
    """SIGKILL amid the iterations: the children end too, else they would hold their runs' locks; then as one process.

    tests/experiment/test_loop.py dies at every file.
    """
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    line = ["mnist/run.py", *SMALL, *TWO, "--save-folder", tmp_path, "--jobs", 2]
    process = helpers.start(command(*line))
    helpers.wait_for(tmp_path, "best_*_sub_random_*", process)
    working = children(process)
    assert len(children(process, b"spawn_main")) == 2
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in working))
    done = call(*line)
    assert outcome(tmp_path) == outcome(finished[0])
    assert re.search(r"^ +[01]  R", done.stdout, re.M)
    assert not list(tmp_path.glob("run*/descr/*"))


def test_the_scripts_one_by_one_give_the_same(finished, tmp_path, monkeypatch):
    """unsup, gen_descr, main_descr by hand, from another folder, with the release's name of the method."""
    monkeypatch.chdir(tmp_path)
    here = [*SMALL, "--save-folder", tmp_path / "x", "-r", 1, "-ir", 20]
    method = ["-sub", "gradFmap", "-aug", "topKandPccFprGrad", "-dl", 80, "-unsup", 1]
    call("mnist/unsup.py", *here)
    for b in (0, 1):
        paths = call("mnist/gen_descr.py", *here, *method, "-b", b, "-ts", 15 * b).stdout.splitlines()
        assert paths
        for path in paths:
            assert np.load(path, mmap_mode="r")["descriptor"].shape[1] == 160
            assert json.loads(Path(path).with_suffix(".json").read_text())["b"] == b
        call("mnist/main_descr.py", *here, *method, "-b", b)
    mine, wanted = outcome(tmp_path / "x"), outcome(finished[0])
    results = "run1/results.jsonl"
    assert mine[results] == [r for r in wanted[results] if r["method"] == "Rzg_pz"]
    assert all(value == wanted[name] for name, value in mine.items() if name != results)


def test_another_seed_gives_something_else(prepared, tmp_path):
    call("mnist/unsup.py", *SMALL, "--seed", 7, "--save-folder", tmp_path)
    before, after = outcome(prepared), outcome(tmp_path)
    for init in ("init_", "init_unsup_"):
        name = f"run0/checkpoint/{init}batch_0_ir_20_nr_0.pt"
        assert after[name] != before[name]
    validation = [np.load(folder / "run0" / "data" / "validation.npy") for folder in (prepared, tmp_path)]
    assert not np.array_equal(*validation)


def test_copies_are_those_of_the_flag(one, tmp_path):
    """--copies decides on the copies; it stands in the records and, if not the default, in the names of files."""
    line = [*one, "--methods", "Rzg_trace", "-dl", 20, "--iterations", 1, "-smp", 2]
    call(*line)
    call(*line, "--copies", "degrees")
    assert [record["copies"] for record in records(tmp_path / "run0")] == ["released", "degrees"]
    lists = {"degrees" in path.name: np.load(path).tolist() for path in tmp_path.glob("run0/index_list_*Rzg_trace*")}
    assert len(lists) == len(list(tmp_path.glob("run0/checkpoint/best_*"))) == 2
    assert lists[False] != lists[True]


@pytest.mark.parametrize(("problem", "status"), [(UserError("so"), 2), (KeyError("so"), 1)])
def test_a_run_that_fails_gives_the_status(tmp_path, monkeypatch, problem, status):
    def fails(*_):
        raise problem

    monkeypatch.setattr(scripts.ExperimentRun, "__call__", fails)
    done = call("mnist/run.py", *SMALL, "--initial", "--run-start", 3, "--save-folder", tmp_path, status=status)
    assert "run.py: run 3: " in done.stderr
    assert ("Traceback" in done.stderr) == (status == 1)


def test_a_rotation_model_of_another_pretraining_is_named_and_made_again(one, tmp_path):
    """Half-way, and the results that were made with the right one are kept."""
    name = "run0/checkpoint/init_unsup_batch_0_ir_20_nr_0.pt"
    call("mnist/unsup.py", *SMALL, "--unsup-epochs", 2, "--save-folder", tmp_path / "other")
    random = [*one, "--methods", "random", "--iterations"]
    call(*random, 1)
    right = (tmp_path / name).read_bytes()
    shutil.copy(tmp_path / "other" / name, tmp_path / name)
    refused(*random, 2, words=f"{name} was made with pretraining.epochs = 2, the run with 1: delete it")
    (tmp_path / name).write_bytes(right)
    call(*random, 2)
    assert len(records(tmp_path / "run0")) == 2


def test_initial_models_do_not_bind_what_comes_later(one):
    line = [*one, "--iterations", 1, "--methods", "random"]
    call(*line, "-as", 20)
    refused(*line, words="query_size = 20, this command says 15")
    refused(*line, "--initial", "--unsup-epochs", 2, words="pretraining.epochs = 1")


def test_a_stalled_rotation_training_is_started_again(tmp_path, monkeypatch):
    line = ["mnist/run.py", *SMALL, "--iterations", 1, "--methods", "random", "--run-stop", 1]
    line += ["--save-folder", tmp_path]
    refused(*line, "--initial", "--restart-stalled", words="for DIGITS it is not known what tells a stalled training")
    stalling = dataclasses.replace(EXPERIMENTS["DIGITS"], stalled_below=101.0)
    monkeypatch.setitem(EXPERIMENTS, "DIGITS", stalling)
    done = call(*line, "--initial", "--restart-stalled", 1)
    assert done.stderr.count("has stalled") == 2
    assert done.stderr.count("it is started again") == 1
    refused(*line, "--initial", words="pretraining.restarts = 1, this command says 0")
    refused(*line, "--restart-stalled", words="pretraining.restarts = 1, this command says 3")
    call(*line)
    call(*line, "--restart-stalled", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "Rzg_px"], "no method 'Rzg_px'"),
        (["--run-start", "5", "--run-stop", "5"], "there is no run"),
        (["--run-start", "4", "--run-stop", "5"], "the same command with --initial makes it"),
        (["-e", "5"], "retraining.epochs = 2, this command says 5"),
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


def test_requests_that_leave_no_folder(tmp_path):
    big = [*SMALL, "--run-stop", 1, "-as", 100, "--iterations", 6, "--save-folder", tmp_path]
    refused("mnist/run.py", *big, "--initial", words="need 600 pool images, the pool at ir=20 has 473")
    assert not (tmp_path / "run0").exists()
    (tmp_path / "file").touch()
    refused("mnist/unsup.py", *SMALL, "--save-folder", tmp_path / "file", words="choose another --save-folder")


def test_stages_out_of_order(prepared, tmp_path):
    here = [*SMALL, "--save-folder", tmp_path, "-ir", 20, "-sub", "Rzg_pz"]
    made_by = f"run.py --initial -ir 20 --dataset DIGITS --save-folder {tmp_path} makes it"
    refused("mnist/gen_descr.py", *here, words=made_by)
    assert not (tmp_path / "run0").exists()
    shutil.copytree(prepared / "run0", tmp_path / "run0")
    refused("mnist/main_descr.py", *here, "-as", 9000, words="need 9000 pool images")
    refused("mnist/main_descr.py", *here, words="run gen_descr.py first")
    refused("mnist/main_descr.py", *here, "-b", 1, words="AL iteration b=0 has to be run first")
    refused("mnist/gen_descr.py", *here, "-b", 1, words="there is no checkpoint")
    refused("mnist/gen_descr.py", *here, "-b", 1, "-ts", 25, words="15 images are labelled, not -ts 25")
    call("mnist/gen_descr.py", *here)
    header = next((tmp_path / "run0" / "descr").glob("pool*.json"))
    write_json(header, {**json.loads(header.read_text()), "model": "0" * 16})
    refused("mnist/main_descr.py", *here, words="its model is 0000000000000000")
    call("mnist/gen_descr.py", *here)  # written again for the model that is there
    call("mnist/main_descr.py", *here)


@pytest.mark.parametrize("select", ["val", "last"])
def test_epochs_selected_without_the_test_set(tmp_path, select):
    one = [*SMALL, "--iterations", 1, "--methods", "random", "--run-stop", 1, "--save-folder", tmp_path]
    call("mnist/run.py", *one, "--select", select, "--initial")
    call("mnist/run.py", *one, "--select", select)
    (line,) = records(tmp_path / "run0")
    assert line["select"] == select
    assert ("accuracy_validation" in line) == (select == "val")
    assert "accuracy_last" not in line
    assert select == "val" or line["epochs"] == [2]
    names = [path.name for path in (tmp_path / "run0" / "checkpoint").glob("*.pt")]
    assert sum(name.endswith(f"_select_{select}.pt") for name in names) == len(names) - 1 == 2  # but the random model


def test_two_initial_models_side_by_side_in_a_run(one, tmp_path):
    """--conv-only has files and lines of its own, from the same rotation model; the others' stay as they are."""
    line = [*one, "--iterations", 1, "--methods", "random"]
    call(*line)
    before = {path: path.read_bytes() for path in tmp_path.glob("run0/*/*.pt")}
    assert "rotation_conv initial model" in call(*line, "--conv-only").stdout
    assert all(path.read_bytes() == content for path, content in before.items())
    (new,) = set(tmp_path.glob("run0/*/*.pt")) - set(before)
    assert new.name.startswith("best_unsup_conv_batch_0_")
    rotation, convolutions = records(tmp_path / "run0")
    assert (rotation["init"], convolutions["init"]) == ("rotation", "rotation_conv")
    assert rotation["accuracy"] != convolutions["accuracy"]


@pytest.mark.slow
def test_every_method_and_length_runs(tmp_path):
    few = [*SMALL, "-e", 1, "--run-stop", 1, "-smp", 2, "--save-folder", tmp_path]
    done = call("mnist/run.py", *few, "--initial", "-ens", 2, "--methods", "varR")
    assert "initial models: 4, random and rotation" in done.stdout
    assert "need --initial -ens" not in done.stdout
    first = ["--iterations", 1, "--unsupervised", 0]
    matching = [key for key, method in METHODS.items() if method.needs_descriptors]
    call("mnist/run.py", *few, *first, "--methods", *matching, "-dl", 20)
    call("mnist/run.py", *few, *first, "--methods", "Rzg_pz", "-dl", 10, 30, 80, 90)
    uncertain = [key for key, method in METHODS.items() if method.needs_uncertainty]
    done = call("mnist/run.py", *few, "--iterations", 2, "--methods", *uncertain, "-ens", 2)
    lines = records(tmp_path / "run0")
    assert len(lines) == len(matching) + 4 + len(uncertain) * 2
    for line in lines:
        method = METHODS[line["method"]]
        assert len(line["accuracy_members"]) == line["ensemble"]
        assert line["accuracy"] == pytest.approx(np.mean(line["accuracy_members"]))
        assert (line["pseudo_label_accuracy"] is not None) == method.estimates_labels
        measured = method.needs_descriptors or line["b"] > 0
        assert (line["passes"]["forward"] > 0) == measured
        if method.needs_uncertainty and measured:
            assert line["passes"] == {"forward": 2 * 473, "backward": 0}
    assert "varR E2" in done.stdout


def test_every_script_finds_the_package_from_any_folder(tmp_path, monkeypatch, capsys):
    """As fresh interpreters would, but with torch imported once for all."""
    folders = ("mnist", "svhn", "imagenet", "vaal", ".")
    found = [p for folder in folders for p in (ROOT / folder).glob("*.py") if "__main__" in p.read_text()]
    assert len(found) == 4 * 3 + 1 + 2 + 1
    monkeypatch.chdir(tmp_path)
    elsewhere = [p for p in sys.path if Path(p).resolve() != ROOT]
    for script in found:
        monkeypatch.setattr(sys, "path", [str(script.parent), *elsewhere])
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        with mock.patch.dict(sys.modules):
            for name in [n for n in sys.modules if n.partition(".")[0] in ("alfk", *folders)]:
                del sys.modules[name]
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(script), run_name="__main__")
        assert not end.value.code, script
    assert capsys.readouterr().out.count("usage: ") == len(found)


def test_selected_images_need_the_index_lists(finished, tmp_path):
    """A folder with nothing but results lines has curves, but no images to show."""
    (tmp_path / "DIGITS" / "run0").mkdir(parents=True)
    shutil.copy(finished[0] / "run0" / "results.jsonl", tmp_path / "DIGITS" / "run0")
    where = ["--datadir", tmp_path, "--out", tmp_path / "figures"]
    refused("run_plot.py", *where, "--show-selected", words="--show-selected needs")


def test_confusion_and_maps(finished, tmp_path, monkeypatch):
    (tmp_path / "DIGITS").symlink_to(finished[0])
    short = functools.partial(sklearn.manifold.TSNE, max_iter=250)
    monkeypatch.setattr(sklearn.manifold, "TSNE", short)
    here = ["--dataset", "DIGITS", "--datadir", tmp_path, "--out", tmp_path / "figures"]
    arguments = [*here, "-b", 1, "--methods", "random", "Rzg_pz_L80"]
    first = call("mnist/visualize_tsne.py", *arguments)
    image = tmp_path / "figures" / "DIGITS_tsne_ir20_b1_run0.png"
    assert str(image.with_suffix("")) in first.stdout
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert first.stdout.count("t-SNE of 400 test images") == 2
    trained = {(r["method"], r["b"]): r["accuracy"] for r in records(tmp_path / "DIGITS" / "run0")}
    for method, name in (("random", "random"), ("Rzg_pz", "Rzg_pz L80")):
        said = re.search(rf"^{name}: ([\d.]+) %", first.stdout, re.M)
        assert float(said[1]) == pytest.approx(trained[method, 0], abs=0.051)
    again = call("mnist/visualize_tsne.py", *arguments)
    assert "t-SNE of" not in again.stdout  # kept from the first time
    missing = [*here, "-b", 2, "--methods", "Rzg_mi_L20", "--copies", "degrees"]
    line = "--copies degrees -ir 20 --run-start 0 --run-stop 1 --methods Rzg_mi -dl 20 makes it"
    refused("mnist/visualize_tsne.py", *missing, words=line)


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


def test_a_reader_that_ends_early(tmp_path):
    """As `run.py ... | head -1` does: without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    line = command("mnist/run.py", *SMALL, "--initial", "--run-stop", 2, "--save-folder", tmp_path)
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
