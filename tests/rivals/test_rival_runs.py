"""Methods of other papers in the scripts, and the flags that came with them: on DIGITS, with one epoch.

In this process, as in test_scripts.py; killed at every file they are here, on SVHN in test_svhn.py.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from alfk.experiment.loop import active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import Round
from alfk.experiment.trial import Trial
from alfk.own.queries import query
from alfk.rivals import RIVALS
from alfk.support.files import open_array
from mnist.config import DIGITS
from tests.helpers import SMALL, Killed, call, outcome, records, refused, workspace
from tests.test_faults import DAMAGES, TINY, Scene, al, digits, end_of, ends, gen

KEYS = [method.key for method in RIVALS]
ACT = ["coreset", "galaxy_v", "typiclust", "flqmi", "flqmi_z", "flqmi_rare"]  # at b=0 too
P, V, K = 473, 500, 4  # images of pool and validation set, and samples
SHORT = {name: dataclasses.replace(getattr(DIGITS, name), epochs=1) for name in ("retraining", "pretraining")}
EXPERIMENT = dataclasses.replace(DIGITS, iterations=2, samples=K, **SHORT)  # what ONE makes of it
ONE = [*SMALL, "-e", 1, "-smp", K, "--run-stop", 1]


def forward(key, validation=V):
    """Images in forward passes of a query."""
    return {"epig": K * (P + validation + 1)}.get(key, P + (validation if key.startswith(("flqmi", "galaxy_v")) else 0))


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


def lines_of(folder, of=lambda line: True):
    return {(line["method"], line["b"]): line for line in records(folder / "run0") if of(line)}


def queried(folder, key, b, suffix=""):
    """The images of an iteration, in the order they were chosen."""
    stem = f"unsup_batch_{b}_size_{15 * (b + 1)}_ir_20_nr_0_sub_{key}_L_{20 if key[0] == 'R' else 0}{suffix}"
    return np.load(folder / "run0" / f"query_{stem}.npy")


def test_rivals_are_all_of_them(finished):
    folder, done = finished
    lines = lines_of(folder)
    assert list(lines) == [(key, b) for key in ("random", *KEYS) for b in (0, 1)]
    drawn = queried(folder, "random", 0)["index"].tolist()
    for (key, b), line in lines.items():
        acts = key in KEYS and (b > 0 or key in ACT)
        assert line["passes"] == {"forward": forward(key) if acts else 0, "backward": 0}
        assert line["labelled"] == 15 * (b + 1)
        assert sum(line["selected_histogram"]) == 15
        assert (line["misclassified"] is not None) == (key.startswith("flqmi"))
        assert (line["L"], line["ensemble"], line["minority"]) == (0, 1, [5, 6, 7, 8, 9])
        assert not {"first_batch", "validation_size", "adds_validation", "copies"} & set(line)
        table = queried(folder, key, b)
        assert len(set(table["index"].tolist())) == 15
        assert b or (table["index"].tolist() == drawn) == (not acts)
        scored = acts and key not in ("badge", "galaxy", "galaxy_v", "typiclust")
        assert table.dtype.names == (("index", "score") if scored else ("index",))
        assert np.isfinite(table["score"][1:]).all() if scored else True
        assert f" {key} " in done.stdout
    assert not list((folder / "run0" / "descr").iterdir())
    again = call("mnist/run.py", *ONE, "--iterations", 2, "--methods", "rivals", "--save-folder", folder)
    assert "galaxy" in again.stdout
    assert list(lines_of(folder)) == list(lines)


def test_the_pools_labels_answer_galaxy_and_its_minority_is_what_is_rare(finished):
    """A run's query is that of `query` from the same models, with the run's own random draws."""
    work = workspace(EXPERIMENT, finished[0], *DIGITS.load(None))
    for key, b in (("galaxy", 1), ("flqmi_rare", 0), ("badge", 1)):
        current = Round(work, Trial(20, key, 0), b)
        (model,), _ = current.starting_models()
        found = query(
            key,
            model,
            current.pool,
            current.validation,
            15,
            labelled=Round(work, Trial(20, key, 0), 0).labelled()[0] if b else None,
            batch_size=DIGITS.descriptor_batch,
            generator=current.generator("acquire"),
            annotate=lambda positions, labels=current.pool.labels: labels[positions],
            rare_classes=(5, 6, 7, 8, 9),
        )
        assert queried(finished[0], key, b)["index"].tolist() == found.indices.tolist(), key


def test_typiclust_stays_with_the_features_of_the_rotation_model(finished, copy):
    """At b=1 too, and if learning starts from random weights."""
    work = workspace(EXPERIMENT, finished[0], *DIGITS.load(None))
    (model,), before = Round(work, Trial(20, "typiclust", 0), 0).described_models()
    assert Round(work, Trial(20, "typiclust", 0), 1).described_models()[1] == before
    assert model.fc2.out_features == 4
    random = ["--unsupervised", 0, "--iterations", 1, "--methods", "typiclust", "coreset"]
    call("mnist/run.py", *ONE, *random, "--save-folder", copy)
    same = np.load(copy / "run0" / "query_batch_0_size_15_ir_20_nr_0_sub_typiclust_L_0.npy")
    assert same["index"].tolist() == queried(copy, "typiclust", 0)["index"].tolist()
    other = np.load(copy / "run0" / "query_batch_0_size_15_ir_20_nr_0_sub_coreset_L_0.npy")
    assert other["index"].tolist() != queried(copy, "coreset", 0)["index"].tolist()


@pytest.mark.parametrize("key", ["margin", "typiclust", "epig", "flqmi"])
def test_the_scripts_one_by_one_give_the_same(finished, initial, tmp_path, key):
    """With the databases that the method's inputs name."""
    folder = tmp_path / "runs"
    shutil.copytree(initial, folder)
    here = [*ONE[:-2], "--save-folder", folder, "-r", 0, "-ir", 20, "-sub", key]
    names = {"margin": ["logits"], "epig": ["information"], "flqmi": ["pool_outputs", "validation_outputs"]}
    for b in (0, 1):
        told = call("mnist/gen_descr.py", *here, "-b", b).stdout.splitlines()
        if b or key in ACT:
            paths = [Path(line) for line in told]
            assert [path.name.partition("_unsup")[0] for path in paths] == names.get(key, ["pool_outputs"])
            for path in paths:
                array, header = open_array(path, {"method": key, "b": b})
                assert len(array) == (V if "validation" in path.name else P)
                assert header["forward"] == forward(key)
        else:
            assert told == [f"{key} needs no descriptors at b=0"]
        call("mnist/main_descr.py", *here, "-b", b)
    mine, wanted = outcome(folder), outcome(finished[0])
    results = "run0/results.jsonl"
    assert mine[results] == [line for line in wanted[results] if line["method"] == key]
    assert all(value == wanted[name] for name, value in mine.items() if name != results)


def test_outputs_in_float16(initial, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(initial, folder)
    here = [*ONE[:-2], "--save-folder", folder, "-r", 0, "-ir", 20, "-sub", "flqmi", "--descr-dtype", "float16"]
    for path in call("mnist/gen_descr.py", *here).stdout.splitlines():
        dtype = np.load(path, mmap_mode="r").dtype
        assert (dtype["features"].base, dtype["features"].shape) == (np.float16, (50,))
        assert (dtype["logits"].base, dtype["logits"].shape) == (np.float32, (10,))
    call("mnist/main_descr.py", *here)
    assert lines_of(folder)["flqmi", 0]["passes"]["forward"] == P + V


# The first batch, and the validation set


def test_a_random_first_batch_is_that_of_all_methods(finished, copy):
    """Only methods that would choose it are run anew; from b=1 on they choose."""
    before = {path.name for path in copy.rglob("*.pt")}
    methods = ["random", "margin", "galaxy", *ACT, "Rzg_pz"]
    more = ["--iterations", 2, "--first-batch", "random", "-dl", 20, "--methods", *methods]
    done = call("mnist/run.py", *ONE, *more, "--save-folder", copy)
    lines = lines_of(copy, lambda line: "first_batch" in line)
    assert sorted(lines) == sorted((key, b) for key in (*ACT, "Rzg_pz") for b in (0, 1))
    new = {path.name for path in copy.rglob("*.pt")} - before
    assert len(new) == len(lines)
    assert all(name.endswith("_first_random.pt") for name in new)
    drawn, random = queried(copy, "random", 0)["index"].tolist(), lines_of(finished[0])["random", 0]
    for (key, b), line in lines.items():
        chosen = queried(copy, key, b, "_first_random")
        assert line["first_batch"] == "random"
        if not b:
            assert chosen["index"].tolist() == drawn
            assert chosen.dtype.names == ("index",)
            assert line["passes"] == {"forward": 0, "backward": 0}
            assert line["accuracy"] == random["accuracy"]
        else:
            assert line["passes"]["forward"] > 0
            assert not set(chosen["index"].tolist()) & set(drawn)
    assert "coreset first random" in done.stdout
    here = [*ONE[:-2], "--save-folder", copy, "-ir", 20, "-sub", "coreset", "--first-batch", "random"]
    assert call("mnist/gen_descr.py", *here).stdout == "coreset needs no descriptors at b=0\n"
    assert records(copy / "run0")[: 2 * (1 + len(KEYS))] == records(finished[0] / "run0")


def test_a_part_of_the_validation_set(finished, copy):
    """Only methods that use it are run anew, on its images alone."""
    methods = ["random", "badge", "flqmi", "epig", "Rz"]
    more = ["--iterations", 2, "-dl", 20, "--methods", *methods, "--validation-size", 50]
    call("mnist/run.py", *ONE, *more, "--save-folder", copy)
    lines = lines_of(copy, lambda line: line.get("validation_size") == 50)
    assert sorted(lines) == sorted((key, b) for key in ("flqmi", "epig", "Rz") for b in (0, 1))
    for (key, b), line in lines.items():
        if b or key != "epig":
            assert line["passes"]["forward"] == forward("flqmi" if key == "Rz" else key, validation=50)
            assert key == "epig" or 0 < line["misclassified"] <= 50
    assert queried(copy, "epig", 0, "_V_50").tolist() == queried(copy, "epig", 0).tolist()
    assert (queried(copy, "Rz", 1, "_V_50")["matches"] < 50).all()
    rows = np.load(copy / "run0" / "data" / "validation_50.npy")
    work = workspace(EXPERIMENT, copy, *DIGITS.load(None))
    assert np.bincount(work.validation().labels[rows]).tolist() == [5] * 10
    assert records(copy / "run0")[: 2 * (1 + len(KEYS))] == records(finished[0] / "run0")


def test_validation_images_are_added_or_trained_on_alone(finished, copy):
    """Each has files and lines of its own; nothing is done twice."""
    here = ["--save-folder", copy, "--methods", "random"]
    added = ["--add-validation", "--iterations", 1]
    commands = ([*added, "--validation-size", 50], added, ["--baseline-validation"], ["--baseline"])
    commands += (["--baseline-validation", "--validation-size", 50],)
    printed = [call("mnist/run.py", *ONE, *each, *here).stdout for each in commands]
    names = [records(copy / "run0")[2 * (1 + len(KEYS)) :][i] for i in range(5)]
    wanted = [("random", 15, 50, True), ("random", 15, None, True), ("validation", 500, None, None)]
    wanted += [("all_train", P, None, None), ("validation", 50, 50, None)]
    keys = ("method", "labelled", "validation_size", "adds_validation")
    assert [tuple(line.get(key) for key in keys) for line in names] == wanted
    for line in names:
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / 897)
        assert sum(line["selected_histogram"]) == line["labelled"]
        assert line["b"] == 0
    random = lines_of(finished[0])["random", 0]["accuracy"]
    assert names[1]["accuracy"] > random  # 500 more images
    stems = ["random_L_0_V_50_and_validation", "random_L_0_and_validation", "validation_L_0", "all_train_L_0"]
    files = [f"best_unsup_batch_0_size_{line['labelled']}_ir_20_nr_0_sub_" for line in names]
    for start, stem in zip(files, [*stems, "validation_L_0_V_50"], strict=True):
        assert (copy / "run0" / "checkpoint" / f"{start}{stem}.pt").exists()
    assert all(
        text in out for text, out in zip(("random V50 + validation", "random + validation"), printed, strict=False)
    )
    assert "validation V50" in printed[-1]
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


# Killed and started again


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Initial models of a smaller data set."""
    root = tmp_path_factory.mktemp("tiny") / "runs"
    make_initial_models(workspace(TINY, root, *digits()), 20, 0.1)
    return root


def learn(root, trial):
    active_learning(workspace(TINY, root, *digits()), [trial])


@pytest.mark.parametrize("key", KEYS)
def test_killed_at_every_file_it_ends_the_same(tiny, tmp_path, monkeypatch, key):
    """Once just before the file is there, once just after it."""
    trial, rename, deaths = Trial(20, key, 0, nr=0.1), Path.replace, set()
    for name in ("whole", "parts"):
        shutil.copytree(tiny, tmp_path / name)
    before = {path.name for path in tmp_path.rglob("*.*")}
    learn(tmp_path / "whole", trial)

    def die_once(*place):
        if place not in deaths:
            deaths.add(place)
            raise Killed

    def dying(path, target):
        die_once(target.name, "before")
        rename(path, target)
        die_once(target.name, "after")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        while True:
            with contextlib.suppress(Killed):
                learn(tmp_path / "parts", trial)
                break
    left = {path.name for path in (tmp_path / "whole").rglob("*.*")} - before
    assert len({name for name in left if not name.startswith(".")}) == 11
    assert {(name, when) for name in left if not name.startswith(".") for when in ("before", "after")} < deaths
    wanted, found = (ends(tmp_path / name) for name in ("whole", "parts"))
    assert found == wanted
    assert len([name for name in found if name.startswith("query_")]) == 2
    assert not list((tmp_path / "parts" / "run0" / "descr").iterdir())
    for path in (tmp_path / "whole" / "run0").glob("*_unsup*.json"):
        one, other = (content(root / "run0" / path.name) for root in (tmp_path / "whole", tmp_path / "parts"))
        assert one == other


STEM = "unsup_batch_1_size_12_ir_20_nr_0.1_sub_flqmi_L_0"
KINDS = {  # those of EPIG and of the softmax are written as those of uncertainty are
    "pool outputs": (f"descr/pool_outputs_{STEM}.npy", "descr/validation_outputs_*.npy"),
    "validation outputs' header": (f"descr/validation_outputs_{STEM}.json", "descr/pool_outputs_*.json"),
}


def flqmi(folder, *flags):
    return al(folder, "--methods", "flqmi", *flags)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two runs: one iteration is finished, and the second one is described."""
    root, two = tmp_path_factory.mktemp("scene") / "runs", ["--run-stop", 2]
    for flags in (["--initial", *two], ["--iterations", 1, *two]):
        assert flqmi(root, *flags).returncode == 0
    for number in (0, 1):
        assert gen(root, "-r", number, "-sub", "flqmi").returncode == 0
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    assert flqmi(whole).returncode == 0
    return Scene(root, flqmi, {}, KINDS, ends(whole))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_database(scene, kind, damage, tmp_path):
    """As in test_faults.py, for the databases that it does not have."""
    assert end_of(scene, kind, damage, tmp_path / "copy") in ("equal", "fixed")


def content(path):
    """A header but for times and the checksum of them all."""
    header = json.loads(path.read_text())
    return {key: value for key, value in header.items() if not key.startswith("seconds") and key != "crc32"}
