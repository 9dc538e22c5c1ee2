"""A folder of a user's own images with known labels, in imagenet/'s scripts; warnings about trainings that learn
nothing.
"""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from alfk.cli.opening import doubts, emptied
from alfk.data.split import Split
from alfk.experiment.trial import Trial
from alfk.plotting import plots, reasons
from imagenet.config import IMAGENET
from imagenet.flags import of_folder
from mnist.config import EXPERIMENTS as MNISTS
from svhn.config import EXPERIMENTS as SVHNS
from tests.helpers import call, draw, records, refused, workspace, write_tree

NAME, SIZE = "garden", 6
COUNTS = {"anemone": 20, "bluebell": 19, "iris": 4, "rose": 18}  # iris alone has under half of the mean, 15.25
CLASSES, POOL, VAL = list(COUNTS), sum(COUNTS.values()), 6
SMALL = ["--device", "cpu", "--image-size", 32, "-a", "resnet10", "-as", SIZE, "-e", 1, "--unsup-epochs", 1]
SMALL += ["--batch-size", 6, "--workers", 1, "--iterations", 2]
PAIR = ["--methods", "random", "Rzg_pz", "-dl", 768]


@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    root = write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=4, train=20, val=VAL)
    for part in ("train", "val"):
        for i, name in enumerate(CLASSES):
            (root / part / f"n{i:02}").rename(root / part / name)
    for name, count in COUNTS.items():
        for i in range(count, 20):
            (root / "train" / name / f"{i}.JPEG").unlink()
    return root


def run(root, datadir, *more, status=0):
    return call("imagenet/run.py", root, "--datadir", datadir, *SMALL, *more, status=status)


@pytest.fixture(scope="module")
def started(garden, tmp_path_factory):
    """A folder with initial models of the pool as it is and of the one thinned 20 to 1."""
    datadir = tmp_path_factory.mktemp("started")
    run(garden, datadir, "--initial", "--methods", "Rzg_pz", "-ir", 1, 20)
    return datadir


@pytest.fixture(scope="module")
def finished(garden, started, tmp_path_factory):
    datadir = tmp_path_factory.mktemp("finished")
    shutil.copytree(started, datadir, dirs_exist_ok=True)
    return datadir, run(garden, datadir, *PAIR)


def labels_of(datadir, name):
    """The class numbers of an index list of the pool, in a run's data/."""
    found = np.load(datadir / NAME / "run0" / "data" / f"{name}.npy")
    return np.repeat(np.arange(4), list(COUNTS.values()))[found]


def test_the_pool_is_taken_as_it_is(finished):
    datadir, done = finished
    assert np.bincount(labels_of(datadir, "pool_ir_1_nr_0")).tolist() == list(COUNTS.values())
    lines = records(datadir / NAME / "run0")
    assert [(r["method"], r["b"], r["ir"], r["select"]) for r in lines] == [
        (method, b, 1, "val") for method in ("random", "Rzg_pz") for b in (0, 1)
    ]
    for line in lines:
        assert line["minority"] == [CLASSES.index("iris")]
        assert line["labelled_share"] == pytest.approx(100 * SIZE * (line["b"] + 1) / POOL)
    assert "imbalance ratio 1, " in done.stdout


def test_a_pool_is_thinned_where_that_is_asked_for(garden, started, tmp_path):
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    run(garden, tmp_path, "--methods", "random", "-ir", 20, "--iterations", 1)
    counts = np.bincount(labels_of(tmp_path, "pool_ir_20_nr_0"), minlength=4)
    changed = [c for c in range(4) if counts[c] != COUNTS[CLASSES[c]]]
    assert len(changed) == 2
    assert all(counts[c] == COUNTS[CLASSES[c]] - round(COUNTS[CLASSES[c]] * 19 / 20) for c in changed)
    (line,) = records(tmp_path / NAME / "run0")
    assert line["minority"] == [c for c in range(4) if counts[c] < counts.mean() / 2]
    assert set(changed) <= set(line["minority"])
    assert line["labelled_share"] == pytest.approx(100 * SIZE / counts.sum())
    assert f"{NAME}, 20x class imbalance, --select val" in draw(tmp_path).stdout


def test_half_of_val_is_held_out_for_test(garden, finished):
    """Of every class half; the epoch is chosen on the others."""
    datadir, _ = finished
    run0 = datadir / NAME / "run0"
    held = np.load(run0 / "data" / "test_0.5.npy")
    assert np.bincount(np.arange(4).repeat(VAL)[held]).tolist() == [VAL // 2] * 4
    for line in records(run0):
        for accuracy in (line["accuracy"], line["accuracy_validation"]):
            assert accuracy * 2 * VAL / 100 == pytest.approx(round(accuracy * 2 * VAL / 100))
        assert line["misclassified"] is None or line["misclassified"] <= 2 * VAL
        assert "accuracy_last" not in line
    for path in run0.glob("query_*Rzg_pz*.npy"):
        assert np.load(path)["matches"].max() < 2 * VAL


def test_the_papers_way(garden, tmp_path):
    """All of val is both validation and test images, and the epoch is chosen on them."""
    way = ["--holdout-val", 0, "--select", "test", "--iterations", 1, "--methods", "Rz", "-dl", 512]
    run(garden, tmp_path, *way, "--initial")
    run(garden, tmp_path, *way)
    (line,) = records(tmp_path / NAME / "run0")
    assert line["select"] == "test"
    assert line["accuracy"] * 4 * VAL / 100 == pytest.approx(round(line["accuracy"] * 4 * VAL / 100))
    assert "accuracy_validation" not in line
    assert "accuracy_last" in line
    assert not list((tmp_path / NAME / "run0" / "data").glob("test*"))
    half = [garden, "--datadir", tmp_path, *SMALL, "--select", "test", "--methods", "Rz"]
    refused("imagenet/run.py", *half, words="holdout = 0.0, this command says 0.5")
    drawn = draw(tmp_path).stdout
    assert f"{NAME}, the pool as it is:" in drawn
    assert "--select" not in drawn


def test_curves_and_summaries_name_the_folder_and_its_classes(finished):
    datadir, _ = finished
    done = draw(datadir)
    assert f"{NAME}, the pool as it is, --select val: run 0" in done.stdout
    assert "ImageNet" not in done.stdout
    assert re.search(r"^minority classes: iris$", done.stdout, re.M)
    (page,) = (datadir / "figures").glob("*.md")
    assert page.stem == f"{NAME}_ir1_select_val"
    text = page.read_text()
    assert text.startswith(f"# {NAME}, the pool as it is, --select val")
    assert "\nminority classes: iris\n" in text


def test_sheets_count_minority_images_and_name_classes(finished, monkeypatch):
    datadir, _ = finished
    sheets, figures = {}, []
    sheet, figure = plots.plot_contact_sheet, reasons.draw
    monkeypatch.setattr(plots, "plot_contact_sheet", lambda p, t, r: (sheets.update({t: r}), sheet(p, t, r)))
    monkeypatch.setattr(reasons, "draw", lambda t, b: figures.append((t, b)) or figure(t, b))
    done = draw(datadir, "--show-selected")
    assert len(done.stdout.strip().splitlines()) == 3
    assert "ImageNet" not in "".join(sheets)
    pool = np.repeat(np.arange(4), list(COUNTS.values()))
    counted = 0
    for method, name in (("random", "random"), ("Rzg_pz", "Rzg_pz L768")):
        rows = sheets[f"{NAME}, run 0: what {name} chose"]
        for b, row in enumerate(rows):
            (path,) = (datadir / NAME / "run0").glob(f"index_list*_batch_{b}_*sub_{method}_*.npy")
            chosen = pool[np.load(path)[SIZE * b :]]
            rare = int((chosen == CLASSES.index("iris")).sum())
            counted += rare
            assert row.heading.endswith(f": {rare} of {SIZE} from minority classes")
            assert [row.label(i) for i in range(SIZE)] == [CLASSES[c] for c in chosen]
    assert counted > 0  # or the test has tested nothing
    ((title, blocks),) = figures
    assert title.startswith(f"{NAME}, run 0: what Rzg_pz L768")
    lines = {r["b"]: r for r in records(datadir / NAME / "run0") if r["method"] == "Rzg_pz"}
    for b, block in enumerate(blocks):
        misclassified, matched = lines[b]["misclassified"], lines[b]["matched"]
        text = f"b={b}: {misclassified} validation images misclassified, {matched} of them matched by {SIZE} images"
        assert block.heading.startswith(text)
        for pair in block.pairs:
            guess, error = re.match(r"\d+\. (\w+)\?", pair.caption), re.match(r"error: (\w+),", pair.error_caption)
            assert {guess[1], error[1], pair.error_caption.split()[-1]} <= set(CLASSES)


@pytest.mark.parametrize("name", ["SVHN", "DIGITS"])
def test_a_name_of_another_data_set_is_refused(name, tmp_path):
    """Its results would be kept among that data set's."""
    words = f"results are kept under the folder's name, but {name} is a data set: rename it"
    refused("imagenet/run.py", tmp_path / name, "--datadir", tmp_path, *SMALL, "--initial", words=words)
    assert not list(tmp_path.iterdir())


# Warnings

WARNINGS = {"warm-up", "fewer than a batch", "rotation accuracy", "test accuracy", "without images", "left out"}


def warned(done):
    """Which of the warnings are on stderr; AssertionError if one is there twice."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(set(lines)) == len(lines)
    found = [next(words for words in WARNINGS if words in line) for line in lines]
    assert len(set(found)) == len(found), lines
    return set(found)


@pytest.fixture
def noise(tmp_path):
    """A folder of images that no network can tell apart."""
    image = Image.fromarray(np.full((40, 40, 3), 120, np.uint8))
    for part, count in (("train", 6), ("val", 4)):
        for c in range(4):
            (tmp_path / "grey" / part / f"c{c}").mkdir(parents=True)
            for i in range(count):
                image.save(tmp_path / "grey" / part / f"c{c}" / f"{i}.png")
    return tmp_path / "grey"


def test_what_learns_nothing_says_why_once(noise, tmp_path):
    """Two runs of one method."""
    more = ["--run-stop", 2, "--methods", "random", "--batch-size", 8]
    first = run(noise, tmp_path / "data", *more, "--initial")
    assert warned(first) == {"rotation accuracy"}
    assert "more --unsup-epochs, another --lr, or a smaller --batch-size" in first.stderr
    then = run(noise, tmp_path / "data", *more)
    assert warned(then) == {"fewer than a batch", "test accuracy"}
    assert "6 labels are fewer than a batch of 8" in then.stderr
    assert "--batch-size 2 makes more of them" in then.stderr
    assert "more epochs (-e), another --lr, a smaller --batch-size, or more labels (-as)" in then.stderr
    assert warned(run(noise, tmp_path / "data", *more)) == {"fewer than a batch"}  # nothing is trained any more


def test_the_batch_that_a_warning_names_can_be_trained(noise, tmp_path):
    """Batch norm needs two images."""
    own = dataclasses.replace(of_folder(noise, IMAGENET), query_size=3)
    (text,) = doubts(own, initial=False, sized=True)
    assert "3 labels are fewer than a batch of 128" in text
    (named,) = re.findall(r"--batch-size (\d+)", text)
    few = ["-as", 3, "--methods", "random", "--iterations", 1]
    run(noise, tmp_path / "data", *few, "--initial")
    run(noise, tmp_path / "data", *few, "--batch-size", named)


@pytest.mark.parametrize(("ratio", "lost"), [(1, 0), (10, 0), (19, 0), (20, 2), (100, 2)])
def test_a_ratio_that_empties_classes_says_so(ratio, lost, tmp_path):
    """Half of four classes of ten images; from 20 on none of ten is left."""
    labels = torch.arange(40) % 4
    split = Split(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), labels, 0.5, 0.5)
    own = dataclasses.replace(of_folder(tmp_path / NAME, IMAGENET), classes=4)
    work = workspace(own, tmp_path, split, split, separate_validation=split)
    trials = [Trial(ratio, method, 768, nr=noise) for method in ("random", "Rz") for noise in (0, 0.1)]
    words = [f"-ir {ratio} leaves {lost} of 4 classes of the pool without images"] if lost else []
    assert emptied(work, trials) == words
    assert emptied(work, []) == []


def test_what_is_left_out_and_emptied_is_said_once_at_the_start(noise, tmp_path):
    """Also by the command that makes the initial models."""
    (noise / "train" / "c0" / "more").mkdir()
    (noise / "train" / "c0" / "a.webp").touch()
    (noise / "val" / "c1" / "b.heic").touch()
    (noise / "val" / "c1" / "._0.png").touch()  # macOS's, of its folder's settings; hidden, as folders may be
    (noise / "val" / "c1" / ".folder").mkdir()
    more = ["--run-stop", 2, "--methods", "random", "-ir", 100]
    for done in (run(noise, tmp_path / "data", *more, "--initial"), run(noise, tmp_path / "data", *more)):
        assert {"left out", "without images"} < warned(done)
        first = done.stderr.splitlines()
        assert "warning: 3 files that are no .jpeg, .jpg or .png, or folders inside a class, were left out" in first
        assert "warning: -ir 100 leaves 2 of 4 classes of the pool without images" in first


def test_epochs_within_the_warm_up():
    for stage, initial, epochs, share, flag in (
        ("retraining", False, 4, "80%", "-e 20"),
        ("pretraining", True, 2, "40%", "--unsup-epochs 8"),
    ):
        short = dataclasses.replace(getattr(IMAGENET, stage), epochs=epochs)
        (text,) = doubts(dataclasses.replace(IMAGENET, **{stage: short}), initial, True)
        assert f"{epochs} epochs lie within the warm-up" in text
        assert f"the learning rate ends at {share} of --lr" in text
        assert f"{flag} is beyond it" in text
        enough = dataclasses.replace(short, epochs=int(flag.split()[1]))
        assert doubts(dataclasses.replace(IMAGENET, **{stage: enough}), initial, True) == []


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 12, 30, 59, 60])
def test_schedules_of_own_folders_end_after_their_warm_up(epochs, tmp_path):
    own = of_folder(tmp_path / NAME, IMAGENET)
    for recipe in (own.retraining, own.pretraining):
        schedule = recipe.schedule.scaled(epochs / recipe.epochs)
        changed = dataclasses.replace(recipe, epochs=epochs, schedule=schedule)
        assert max(changed.schedule(e, 1.0) for e in range(1, epochs + 1)) == 1
        stage = "retraining" if recipe is own.retraining else "pretraining"
        both = dataclasses.replace(own, query_size=500, **{stage: changed})
        assert doubts(both, False, True) == doubts(both, True, True) == []


@pytest.mark.parametrize("experiment", [*MNISTS.values(), *SVHNS.values(), IMAGENET], ids=lambda e: e.name)
def test_the_papers_settings_are_not_doubted(experiment):
    assert doubts(experiment, True, False) == doubts(experiment, False, False) == []
