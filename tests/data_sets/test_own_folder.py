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
from torch import nn

from alfk.cli.opening import doubts, emptied
from alfk.data.split import Split
from alfk.experiment.trial import Trial
from alfk.plotting import plots, reasons
from imagenet.config import IMAGENET
from imagenet.custom_models.resnet import ARCHITECTURES
from imagenet.flags import of_folder
from mnist.config import EXPERIMENTS as MNISTS
from svhn.config import EXPERIMENTS as SVHNS
from tests.helpers import call, draw, records, refused, workspace, write_tree

NAME, SIZE = "garden", 6
COUNTS = {"anemone": 20, "bluebell": 19, "iris": 4, "rose": 18}  # iris alone has under half of the mean, 15.25
CLASSES, POOL, VAL = list(COUNTS), np.repeat(np.arange(4), list(COUNTS.values())), 6
SMALL = ["--device", "cpu", "--image-size", 32, "-a", "resnet10", "-as", SIZE, "-e", 1, "--unsup-epochs", 1]
SMALL += ["--batch-size", 6, "--workers", 1, "--iterations", 2]


class Tiny(nn.Module):
    """In place of resnet10, with as many channels in its last two taps: the network does not matter here."""

    head = "fc"

    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 256, 8, 8), nn.BatchNorm2d(256), nn.Linear(512, classes)

    def forward(self, images):
        x = torch.relu(self.norm(self.conv(images)))
        pooled = x.mean((2, 3)).repeat(1, 2)
        return self.fc(pooled), [x, x, x, pooled]


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "resnet10", Tiny)
        yield


@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    root = write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=4, train=20, val=VAL)
    for c, (name, count) in enumerate(COUNTS.items()):
        for part in ("train", "val"):
            (root / part / f"n{c:02}").rename(root / part / name)
        for i in range(count, 20):
            (root / "train" / name / f"{i}.JPEG").unlink()
    return root


def run(root, datadir, *more):
    return call("imagenet/run.py", root, "--datadir", datadir, *SMALL, *more)


@pytest.fixture(scope="module")
def finished(garden, tmp_path_factory):
    """The folder of two methods' runs, with initial models of the pool thinned 20 to 1 too, and what was printed."""
    datadir = tmp_path_factory.mktemp("finished")
    run(garden, datadir, "--initial", "--methods", "Rzg_pz", "-ir", 1, 20)
    return datadir, run(garden, datadir, "--methods", "random", "Rzg_pz", "-dl", 768)


def is_count(accuracy, images):
    """An accuracy in % is that of so many images."""
    return accuracy * images / 100 == pytest.approx(round(accuracy * images / 100))


def test_the_pool_is_taken_as_it_is_and_half_of_val_is_held_out_for_test(finished):
    """Of every class half; the epoch is chosen on the others."""
    datadir, done = finished
    run0, lines = datadir / NAME / "run0", records(datadir / NAME / "run0")
    assert np.load(run0 / "data" / "pool_ir_1_nr_0.npy").tolist() == list(range(len(POOL)))
    held = np.load(run0 / "data" / "test_0.5.npy")
    assert np.bincount(np.arange(4).repeat(VAL)[held]).tolist() == [VAL // 2] * 4
    assert [(r["method"], r["b"]) for r in lines] == [(name, b) for name in ("random", "Rzg_pz") for b in (0, 1)]
    for line in lines:
        assert (line["ir"], line["select"], line["minority"]) == (1, "val", [CLASSES.index("iris")])
        assert line["labelled_share"] == pytest.approx(100 * SIZE * (line["b"] + 1) / len(POOL))
        assert is_count(line["accuracy"], 2 * VAL)
        assert is_count(line["accuracy_validation"], 2 * VAL)
        assert line["misclassified"] is None or line["misclassified"] <= 2 * VAL
        assert "accuracy_last" not in line
    for path in run0.glob("query_*Rzg_pz*.npy"):
        assert np.load(path)["matches"].max() < 2 * VAL
    assert "imbalance ratio 1, " in done.stdout


def test_a_pool_is_thinned_where_that_is_asked_for(garden, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run(garden, tmp_path, "--methods", "random", "-ir", 20, "--iterations", 1)
    kept = np.load(tmp_path / NAME / "run0" / "data" / "pool_ir_20_nr_0.npy")
    counts, before = np.bincount(POOL[kept], minlength=4), np.bincount(POOL)
    changed = np.flatnonzero(counts != before)
    assert len(changed) == 2
    assert all(counts[c] == before[c] - round(before[c] * 19 / 20) for c in changed)
    line = records(tmp_path / NAME / "run0")[-1]
    assert line["ir"] == 20
    assert line["minority"] == [c for c in range(4) if counts[c] < counts.mean() / 2]
    assert set(changed) <= set(line["minority"])
    assert line["labelled_share"] == pytest.approx(100 * SIZE / counts.sum())
    assert f"{NAME}, 20x class imbalance, --select val" in draw(tmp_path).stdout


def test_the_papers_way(garden, tmp_path):
    """All of val is both validation and test images, and the epoch is chosen on them."""
    way = ["--holdout-val", 0, "--select", "test", "--iterations", 1, "--methods", "Rz", "-dl", 512]
    run(garden, tmp_path, *way, "--initial")
    run(garden, tmp_path, *way)
    (line,) = records(tmp_path / NAME / "run0")
    assert is_count(line["accuracy"], 4 * VAL)
    assert line["select"] == "test"
    assert {"accuracy_validation", "accuracy_last"} & set(line) == {"accuracy_last"}
    assert not list((tmp_path / NAME / "run0" / "data").glob("test*"))
    half = [garden, "--datadir", tmp_path, *SMALL, "--select", "test", "--methods", "Rz"]
    refused("imagenet/run.py", *half, words="holdout = 0.0, this command says 0.5")
    assert f"{NAME}, the pool as it is: run 0" in draw(tmp_path).stdout  # and no --select


def test_test_images_of_their_own(garden, tmp_path):
    """test/ is used, and all of val/ is for validation. The test images of a run stay the same."""
    root, more = tmp_path / NAME, ["--methods", "random", "--iterations", 1]
    shutil.copytree(garden, root)
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "rose" / "0.JPEG").unlink()
    run(root, tmp_path / "data", *more, "--initial")
    run(root, tmp_path / "data", *more)
    (line,) = records(tmp_path / "data" / NAME / "run0")
    assert is_count(line["accuracy"], 4 * VAL - 1)
    assert is_count(line["accuracy_validation"], 4 * VAL)
    assert not list((tmp_path / "data" / NAME / "run0" / "data").glob("test_*"))
    again = [root, "--datadir", tmp_path / "data", *SMALL, *more]
    refused("imagenet/run.py", *again, "--holdout-val", 0.5, words="has test images of its own")
    (root / "test" / "rose" / "1.JPEG").unlink()
    refused("imagenet/run.py", *again, words="some of which were added, removed or changed since then")


def test_curves_and_summaries_name_the_folder_and_its_classes(finished):
    done = draw(finished[0])
    assert f"{NAME}, the pool as it is, --select val: run 0" in done.stdout
    assert "ImageNet" not in done.stdout
    assert re.search(r"^minority classes: iris$", done.stdout, re.M)
    text = (finished[0] / "figures" / f"{NAME}_ir1_select_val.md").read_text()
    assert text.startswith(f"# {NAME}, the pool as it is, --select val")
    assert "\nminority classes: iris\n" in text


def test_sheets_count_minority_images_and_name_classes(finished, monkeypatch):
    run0, sheets, figures = finished[0] / NAME / "run0", {}, []
    sheet, figure = plots.plot_contact_sheet, reasons.draw
    monkeypatch.setattr(plots, "plot_contact_sheet", lambda p, t, r: (sheets.update({t: r}), sheet(p, t, r)))
    monkeypatch.setattr(reasons, "draw", lambda t, b: figures.append((t, b)) or figure(t, b))
    assert len(draw(finished[0], "--show-selected").stdout.strip().splitlines()) == 3
    assert "ImageNet" not in "".join(sheets)
    counted = 0
    for method, name in (("random", "random"), ("Rzg_pz", "Rzg_pz L768")):
        for b, row in enumerate(sheets[f"{NAME}, run 0: what {name} chose"]):
            (path,) = run0.glob(f"index_list*_batch_{b}_*sub_{method}_*.npy")
            chosen = [CLASSES[c] for c in POOL[np.load(path)[SIZE * b :]]]
            counted += chosen.count("iris")
            assert row.heading.endswith(f": {chosen.count('iris')} of {SIZE} from minority classes")
            assert [row.label(i) for i in range(SIZE)] == chosen
    assert counted > 0  # or the test has tested nothing
    ((title, blocks),) = figures
    assert title.startswith(f"{NAME}, run 0: what Rzg_pz L768")
    lines = [r for r in records(run0) if r["method"] == "Rzg_pz"]
    for b, (line, block) in enumerate(zip(lines, blocks, strict=True)):
        text = f"b={b}: {line['misclassified']} validation images misclassified, {line['matched']} of them matched by"
        assert block.heading.startswith(f"{text} {SIZE} images")
        for pair in block.pairs:
            error = re.fullmatch(r"class: (\w+)\npredicted: (\w+)", pair.error_caption)
            assert {*error.groups(), (pair.caption or error[1]).removeprefix("guess: ")} <= set(CLASSES)


def test_a_name_of_another_data_set_is_refused(tmp_path):
    """Its results would be kept among that data set's."""
    for name in ("SVHN", "DIGITS"):
        words = f"results are kept under the folder's name, but {name} is a data set: rename it"
        refused("imagenet/run.py", tmp_path / name, "--datadir", tmp_path, *SMALL, "--initial", words=words)
    assert not list(tmp_path.iterdir())


# Warnings

WARNINGS = {"warm-up", "fewer than a batch", "rotation accuracy", "test accuracy", "without images", "left out"}


def warned(done):
    """Which of the warnings are on stderr; AssertionError if one is there twice."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    found = [next(words for words in WARNINGS if words in line) for line in lines]
    assert len(set(found)) == len(found), lines
    return set(found)


def test_what_learns_nothing_is_emptied_or_left_out_is_said_once(tmp_path):
    """Two runs of one method, also by --initial, of images that no network can tell apart."""
    noise = write_tree(tmp_path / "grey", classes=4, train=6, val=4)
    for path in noise.rglob("*.JPEG"):
        Image.new("RGB", (40, 40), "grey").save(path)
    for folder in ("train/n00/more", "val/n01/.folder"):
        (noise / folder).mkdir()
    for file in ("train/n00/a.webp", "val/n01/b.heic", "val/n01/._0.png"):  # macOS hides ._0.png, as folders may be
        (noise / file).touch()
    more = ["-as", 3, "--run-stop", 2, "--methods", "random", "--batch-size", 8, "-ir", 100]
    first, then, again = (run(noise, tmp_path / "data", *more, *flag) for flag in (["--initial"], [], []))
    always = {"left out", "without images"}
    assert warned(first) == {"rotation accuracy", *always}
    assert warned(then) == {"fewer than a batch", "test accuracy", *always}
    assert warned(again) == {"fewer than a batch", *always}  # nothing is trained any more
    files = "warning: 3 files that are no .jpeg, .jpg or .png, or folders inside a class, were left out\n"
    classes = "warning: -ir 100 leaves 2 of 4 classes of the pool without images\n"
    for text, words in (
        (first.stderr, [files, classes, "more --unsup-epochs, another --lr, or a smaller --batch-size"]),
        (then.stderr, [files, classes, "3 labels are fewer than a batch of 8", "--batch-size 2 makes more of them"]),
        (then.stderr, ["more epochs (-e), another --lr, a smaller --batch-size, or more labels (-as)"]),
    ):
        assert [each for each in words if each not in text] == []
    for flag in (["--initial"], []):  # the named batch can be trained: batch norm needs two images
        run(noise, tmp_path / "named", *more, "--run-stop", 1, "--batch-size", 2, *flag)


def test_a_ratio_that_empties_classes_says_so(tmp_path):
    """Half of four classes of ten images; from 20 on none of ten is left."""
    split = Split(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 4, 0.5, 0.5)
    own = dataclasses.replace(of_folder(tmp_path / NAME, IMAGENET), classes=4)
    work = workspace(own, tmp_path, split, split, separate_validation=split)
    assert emptied(work, []) == []
    for ratio in (1, 10, 19, 20, 100):
        trials = [Trial(ratio, method, 768, nr=noise) for method in ("random", "Rz") for noise in (0, 0.1)]
        words = [f"-ir {ratio} leaves 2 of 4 classes of the pool without images"] if ratio >= 20 else []
        assert emptied(work, trials) == words


def test_epochs_within_the_warm_up():
    for stage, initial, epochs, warm, share, flag in (
        ("retraining", False, 4, 5, "80%", "-e 20"),
        ("pretraining", True, 2, 2, "40%", "--unsup-epochs 8"),
    ):
        rate = f"the learning rate ends at {share} of --lr; {flag} is beyond it"
        wanted = [f"{epochs} epochs lie within the warm-up of {warm}: {rate}"]
        for count, words in ((epochs, wanted), (4 * warm, [])):
            recipe = dataclasses.replace(getattr(IMAGENET, stage), epochs=count)
            assert doubts(dataclasses.replace(IMAGENET, **{stage: recipe}), initial, True) == words


def test_schedules_of_own_folders_end_after_their_warm_up(tmp_path):
    own = dataclasses.replace(of_folder(tmp_path / NAME, IMAGENET), query_size=500)
    for epochs in (1, 2, 3, 4, 5, 7, 12, 30, 59, 60):
        for stage in ("retraining", "pretraining"):
            recipe = getattr(own, stage)
            schedule = recipe.schedule.scaled(epochs / recipe.epochs)
            assert max(schedule(e, 1.0) for e in range(1, epochs + 1)) == 1
            both = dataclasses.replace(own, **{stage: dataclasses.replace(recipe, epochs=epochs, schedule=schedule)})
            assert doubts(both, False, True) == doubts(both, True, True) == []


def test_the_papers_settings_are_not_doubted():
    for experiment in (*MNISTS.values(), *SVHNS.values(), IMAGENET):
        assert doubts(experiment, True, False) == doubts(experiment, False, False) == []
