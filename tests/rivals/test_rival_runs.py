"""The rivals in the scripts, and the flags that came with them: on DIGITS, with one epoch, in this process."""

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from alfk.experiment.journal import Journal
from alfk.experiment.round import Round, begin
from alfk.experiment.trial import Trial
from alfk.own.queries import query
from alfk.rivals import RIVALS
from alfk.support.files import open_array
from mnist.config import DIGITS
from tests.helpers import SMALL, Killed, call, outcome, records, refused, workspace

KEYS = [method.key for method in RIVALS]
BY_DESCRIPTORS = [key for key in KEYS if key.startswith("R")]
ACT = ["coreset", "galaxy_v", "typiclust", "flqmi", "flqmi_z", "flqmi_rare", *BY_DESCRIPTORS]  # at b=0 too
P, V, K = 473, 500, 4  # images of pool and validation set, and samples
SHORT = {name: dataclasses.replace(getattr(DIGITS, name), epochs=1) for name in ("retraining", "pretraining")}
EXPERIMENT = dataclasses.replace(DIGITS, iterations=2, samples=K, **SHORT)  # what ONE makes of it
ONE = [*SMALL, "-e", 1, "-smp", K, "--run-stop", 1]
STAGE = [*ONE[:-2], "-r", 0, "-ir", 20]  # for gen_descr.py and main_descr.py


def forward(key, validation=V):
    """Images in forward passes of a query."""
    return {"epig": K * (P + validation + 1)}.get(
        key, P + (validation if key.startswith(("flqmi", "galaxy_v", "glister", "R")) else 0)
    )


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """Initial models of a run."""
    folder = tmp_path_factory.mktemp("initial")
    call("mnist/run.py", *ONE, "--initial", "--methods", "random", "--save-folder", folder)
    return folder


@pytest.fixture(scope="module")
def finished(initial, tmp_path_factory):
    """Two iterations of random choice and of all rivals, and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    shutil.copytree(initial, folder)
    more = ["--iterations", 2, "--methods", "random", "rivals", "--save-folder", folder]
    return folder, call("mnist/run.py", *ONE, *more)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def new(initial, tmp_path):
    """A run with initial models alone."""
    shutil.copytree(initial, tmp_path / "new")
    return tmp_path / "new"


def lines_of(folder, of=lambda line: True):
    return {(line["method"], line["b"]): line for line in records(folder / "run0") if of(line)}


def queried(folder, key, b, suffix="", start="unsup_"):
    """The columns of an iteration's query, in the order its images were chosen."""
    length = 80 if key[0] == "R" else 0
    stem = f"{start}batch_{b}_size_{15 * (b + 1)}_ir_20_nr_0_sub_{key}_L_{length}{suffix}"
    with open(folder / "run0" / f"query_{stem}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def test_rivals_are_all_of_them(finished):
    folder, done = finished
    lines = lines_of(folder)
    assert list(lines) == [(key, b) for key in ("random", *KEYS) for b in (0, 1)]
    drawn = queried(folder, "random", 0)["index"]
    for (key, b), line in lines.items():
        acts = key in KEYS and (b > 0 or key in ACT)
        backward = P + V if key.startswith("Rzg") else 0
        assert line["passes"] == {"forward": forward(key) if acts else 0, "backward": backward}
        assert line["labelled"] == 15 * (b + 1)
        assert (line["misclassified"] is not None) == key.startswith(("flqmi", "R"))
        length = 80 if key in BY_DESCRIPTORS else 0
        assert (line["L"], line["ensemble"], line["minority"]) == (length, 1, [5, 6, 7, 8, 9])
        assert not {"first_batch", "validation_size", "adds_validation", "copies"} & set(line)
        table = queried(folder, key, b)
        assert len(set(table["index"])) == 15
        assert b or (table["index"] == drawn) == (not acts)
        scored = acts and key not in ("badge", "galaxy", "galaxy_v", "direct", "typiclust", "Rz_rc", "Rzg_rc")
        assert ("score" in table) == scored
        assert ("stands_for" in table) == (key in ("flqmi", "flqmi_z", "Rz_fl", "Rzg_fl", "Rzg_flw"))
        assert ("rank" in table) == key.endswith("_rc")
        assert f" {key} " in done.stdout
    assert not list((folder / "run0" / "descr").iterdir())


def test_the_query_of_a_run_is_that_of_the_library(finished):
    """From the same models and draws. The pool's labels simulate galaxy's annotator; its minority classes are rare."""
    work = workspace(EXPERIMENT, finished[0], *DIGITS.load(None))
    for key, b in (("galaxy", 1), ("flqmi_rare", 0), ("badge", 1)):
        current = begin(Journal(work, Trial(20, key, 0)), b)
        (model,), _ = current.starting_models()
        found = query(
            key,
            model,
            current.pool,
            current.validation,
            15,
            labelled=current.queried_before(),
            batch_size=DIGITS.descriptor_batch,
            generator=current.generator("acquire"),
            annotate=lambda positions, labels=current.pool.labels: labels[positions],
            rare_classes=(5, 6, 7, 8, 9),
        )
        assert queried(finished[0], key, b)["index"] == found.indices.tolist(), key


def test_typiclust_stays_with_the_features_of_the_rotation_model(finished, new):
    """At b=1 too, and if learning starts from random weights."""
    work = workspace(EXPERIMENT, finished[0], *DIGITS.load(None))
    (model,), before = Round(work, Trial(20, "typiclust", 0), 0).described_models()
    assert Round(work, Trial(20, "typiclust", 0), 1).described_models()[1] == before
    assert model.fc2.out_features == 4
    random = ["--unsupervised", 0, "--iterations", 1, "--methods", "typiclust", "coreset"]
    call("mnist/run.py", *ONE, *random, "--save-folder", new)
    for key, same in (("typiclust", True), ("coreset", False)):
        assert (queried(new, key, 0, start="")["index"] == queried(finished[0], key, 0)["index"]) == same


@pytest.mark.parametrize(
    ("key", "names"), [("epig", ["information"]), ("flqmi", ["pool_outputs", "validation_outputs"])]
)
def test_the_scripts_one_by_one_give_the_same(finished, new, key, names):
    """With the databases that the method's inputs name."""
    here = [*STAGE, "--save-folder", new, "-sub", key]
    for b in (0, 1):
        printed = call("mnist/gen_descr.py", *here, "-b", b).stdout.splitlines()
        if b or key in ACT:
            paths = [Path(line) for line in printed]
            assert [path.name.partition("_unsup")[0] for path in paths] == names
            for path in paths:
                array, header = open_array(path, {"method": key, "b": b})
                assert len(array) == (V if "validation" in path.name else P)
                assert header["forward"] == forward(key)
        else:
            assert printed == [f"{key} needs no descriptors at b=0"]
        call("mnist/main_descr.py", *here, "-b", b)
    mine, wanted = outcome(new), outcome(finished[0])
    results = "run0/results.jsonl"
    assert mine[results] == [line for line in wanted[results] if line["method"] == key]
    assert all(value == wanted[name] for name, value in mine.items() if name != results)


def test_outputs_in_float16_and_a_damaged_file_of_them(new):
    here = [*STAGE, "--save-folder", new, "-sub", "flqmi", "--descr-dtype", "float16"]
    paths = [Path(line) for line in call("mnist/gen_descr.py", *here).stdout.splitlines()]
    for path in paths:
        dtype = np.load(path, mmap_mode="r").dtype
        assert (dtype["features"].base, dtype["features"].shape) == (np.float16, (50,))
        assert (dtype["logits"].base, dtype["logits"].shape) == (np.float32, (10,))
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"?")
    refused("mnist/main_descr.py", *here, words=f"{paths[1]} is damaged")
    paths[1].unlink()
    call("mnist/gen_descr.py", *here)
    call("mnist/main_descr.py", *here)
    assert lines_of(new)["flqmi", 0]["passes"]["forward"] == P + V


def test_killed_at_every_file_it_ends_the_same(finished, new, monkeypatch):
    """Once just before the file is there, once just after it."""
    command = [*ONE, "--iterations", 2, "--methods", "galaxy_v", "--save-folder", new]
    rename, deaths = Path.replace, set()

    def dying(path, target):
        for when in ("before", "after"):
            if (target.name, when) not in deaths:
                deaths.add((target.name, when))
                if when == "after":
                    rename(path, target)
                raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        while True:
            try:
                call("mnist/run.py", *command)
                break
            except Killed:
                pass
    assert len(deaths) >= 2 * 2 * 6  # of either iteration two databases with headers, the query, the checkpoint
    wanted, found = outcome(finished[0]), outcome(new)
    results = "run0/results.jsonl"
    assert found.pop(results) == [line for line in wanted.pop(results) if line["method"] == "galaxy_v"]
    assert found == {name: wanted[name] for name in found}
    assert not list((new / "run0" / "descr").iterdir())


# The first batch, and the validation set


def test_a_random_first_batch_is_that_of_all_methods(finished, copy):
    """Only methods that would choose it are run again; from b=1 on they choose."""
    before = {path.name for path in copy.rglob("*.pt")}
    methods = ["random", "margin", "coreset", "flqmi", "Rzg_pz"]
    more = ["--iterations", 2, "--first-batch", "random", "-dl", 80, "--methods", *methods]
    done = call("mnist/run.py", *ONE, *more, "--save-folder", copy)
    lines = lines_of(copy, lambda line: "first_batch" in line)
    assert sorted(lines) == sorted((key, b) for key in ("coreset", "flqmi", "Rzg_pz") for b in (0, 1))
    new = {path.name for path in copy.rglob("*.pt")} - before
    assert len(new) == len(lines)
    assert all(name.endswith("_first_random.pt") for name in new)
    drawn, random = queried(copy, "random", 0)["index"], lines_of(finished[0])["random", 0]
    for (key, b), line in lines.items():
        table = queried(copy, key, b, "_first_random")
        assert line["first_batch"] == "random"
        if not b:
            assert table == {"index": drawn}
            assert line["passes"] == {"forward": 0, "backward": 0}
            assert line["accuracy"] == random["accuracy"]
        else:
            assert line["passes"]["forward"] > 0
            assert not set(table["index"]) & set(drawn)
    assert "coreset first random" in done.stdout
    here = [*STAGE, "--save-folder", copy, "-sub", "coreset", "--first-batch", "random"]
    assert call("mnist/gen_descr.py", *here).stdout == "coreset needs no descriptors at b=0\n"
    assert records(copy / "run0")[: 2 * (1 + len(KEYS))] == records(finished[0] / "run0")


def test_a_part_of_the_validation_set(finished, copy):
    """Only methods that use it are run again, on its images alone."""
    methods = ["random", "badge", "flqmi", "epig", "Rz"]
    more = ["--iterations", 2, "-dl", 80, "--methods", *methods, "--validation-size", 50]
    call("mnist/run.py", *ONE, *more, "--save-folder", copy)
    lines = lines_of(copy, lambda line: line.get("validation_size") == 50)
    assert sorted(lines) == sorted((key, b) for key in ("flqmi", "epig", "Rz") for b in (0, 1))
    for (key, b), line in lines.items():
        if b or key != "epig":
            assert line["passes"]["forward"] == forward("flqmi" if key == "Rz" else key, validation=50)
            assert key == "epig" or 0 < line["misclassified"] <= 50
    assert queried(copy, "epig", 0, "_V_50") == queried(copy, "epig", 0)
    assert max(queried(copy, "Rz", 1, "_V_50")["matches"]) < 50
    rows = np.load(copy / "run0" / "data" / "validation_50.npy")
    work = workspace(EXPERIMENT, copy, *DIGITS.load(None))
    assert np.bincount(work.validation().labels[rows]).tolist() == [5] * 10


def test_validation_images_are_added_or_trained_on_alone(finished, copy):
    """Each has files and lines of its own; nothing is done twice."""
    here = ["--save-folder", copy, "--methods", "random"]
    added = ["--add-validation", "--iterations", 1]
    commands = ([*added, "--validation-size", 50], added, ["--baseline-validation"], ["--baseline"])
    commands += (["--baseline-validation", "--validation-size", 50],)
    printed = [call("mnist/run.py", *ONE, *each, *here).stdout for each in commands]
    lines = records(copy / "run0")[2 * (1 + len(KEYS)) :]
    wanted = [("random", 15, 50, True), ("random", 15, None, True), ("validation", 500, None, None)]
    wanted += [("all_train", P, None, None), ("validation", 50, 50, None)]
    keys = ("method", "labelled", "validation_size", "adds_validation")
    assert [tuple(line.get(key) for key in keys) for line in lines] == wanted
    for line in lines:
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / 897)
        assert sum(line["selected_histogram"]) == line["labelled"]
    assert lines[1]["accuracy"] > lines_of(finished[0])["random", 0]["accuracy"]  # 500 more images
    names = ("random V50 + validation", "random + validation", "validation", "all_train", "validation V50")
    assert all(name in out for name, out in zip(names, printed, strict=True))
    stems = ["random_L_0_V_50_and_validation", "random_L_0_and_validation", "validation_L_0", "all_train_L_0"]
    for line, stem in zip(lines, [*stems, "validation_L_0_V_50"], strict=True):
        name = f"best_unsup_batch_0_size_{line['labelled']}_ir_20_nr_0_sub_{stem}.pt"
        assert (copy / "run0" / "checkpoint" / name).exists()
    before = (copy / "run0" / "results.jsonl").read_bytes()
    for each in commands:
        call("mnist/run.py", *ONE, *each, *here)
    assert (copy / "run0" / "results.jsonl").read_bytes() == before


SELECT = ["--select", "val"]
REFUSED = {
    "trained on and chosen by": (
        [*SELECT, "--add-validation"],
        "--add-validation trains on the images by which --select",
    ),
    "more than there are": (["--validation-size", 501, "--methods", "flqmi"], "is more than the 500 validation images"),
    "alone and added": (["--baseline-validation", "--add-validation"], "--baseline-validation is trained on the"),
    "alone and chosen by": (["--baseline-validation", *SELECT], "--select test or last"),
    "a part of a size": (["--validation-size", 0], "0 is not a positive number"),
    "another first batch": (["--first-batch", "all"], "invalid choice: 'all'"),
    "an ensemble": (["--methods", "margin", "-ens", 2], "margin works with one model, not with an ensemble of 2"),
    "an ensemble of rivals": (["--methods", "rivals", "-ens", 2], "works with one model, not with an ensemble of 2"),
    "a rival": (["--methods", "rival"], "there is no method 'rival'"),
    "other samples": (["--methods", "epig", "-smp", 1], "samples = 4, this command says 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_use_takes_a_line_and_changes_nothing(finished, case):
    arguments, words = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*.*")}
    refused("mnist/run.py", *ONE, "--iterations", 2, *arguments, "--save-folder", finished[0], words=words)
    assert {path: path.stat().st_mtime_ns for path in finished[0].rglob("*.*")} == before
