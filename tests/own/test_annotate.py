"""People as the oracle: the loop of imagenet/run.py --annotate by the real script."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alfk.experiment import train
from imagenet.custom_models.resnet import ARCHITECTURES
from tests.helpers import ONE_THREAD, ROOT, Killed, call, draw, outcome, records, refused, write_tree

NAME, CLASSES, SIZE = "flowers", 3, 4
SMALL = ["--device", "cpu", "--image-size", 32, "-a", "resnet10", "-as", SIZE, "-e", 1, "--unsup-epochs", 1]
SMALL += ["--batch-size", 4, "--workers", 1, "--iterations", 3]
RANDOM = ["--methods", "random"]


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


class Annotators:
    """A folder with pool/ and val/, people who know the labels of the pool's files (`truth`), and the command."""

    def __init__(self, root, truth, datadir):
        self.root, self.truth, self.datadir = root, truth, datadir
        self.labels, self.folder = datadir / "labels.csv", datadir / NAME / "run0"
        self.arguments = [root, "--annotate", self.labels, "--datadir", datadir, *SMALL]

    def run(self, *more):
        return call("imagenet/run.py", *self.arguments, *more)

    def refused(self, *more, words):
        refused("imagenet/run.py", *self.arguments, *more, words=words)

    def asked(self, b):
        with open(self.datadir / f"ask_b{b}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def files(self, b):
        return [row["file"] for row in self.asked(b)]

    def other(self, name):
        """A wrong label."""
        return next(label for label in self.truth.values() if label != self.truth[name])

    def enter(self, files, changes=None, mode="a"):
        """Add the labels of files, true but for `changes`, or with mode "w" replace all labels."""
        with open(self.labels, mode, newline="", encoding="utf-8") as file:
            known = {**self.truth, **(changes or {})}
            csv.writer(file).writerows([["file", "label"]] * (file.tell() == 0) + [[f, known[f]] for f in files])

    def histogram(self, files, changes=None):
        labels = [{**self.truth, **(changes or {})}[f] for f in files]
        return [labels.count(name) for name in sorted(set(self.truth.values()))]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The initial models; 24 images in pool/, nested, under names that say nothing, and 6 in each class of val/."""
    root = write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=CLASSES, train=8, val=6)
    truth, places = {}, itertools.cycle(["", "a", "a/b, c", "ü 1"])
    for i, path in enumerate(sorted((root / "train").rglob("*.JPEG"))):
        name = f"{next(places)}/{i:02}.jpg".lstrip("/")
        (root / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(root / "pool" / name)
        truth[name] = path.parent.name
    shutil.rmtree(root / "train")
    people = Annotators(root, truth, tmp_path_factory.mktemp("started"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "resnet10", Tiny)
        people.run("--initial")
        yield people


def copied(people, folder):
    shutil.copytree(people.datadir, folder)
    return Annotators(people.root, people.truth, folder)


@pytest.fixture
def people(started, tmp_path):
    """With initial models, before the first query."""
    return copied(started, tmp_path / "data")


def loop(people, before=lambda stage: None):
    """Three rounds; returns what was printed.

    A label of the first round comes late, and another one is wrong until it is corrected in the second, in which an
    image is skipped.

    Args:
        before: called before the command that chooses round b, and before the one that trains it.
    """
    done = []
    for b in range(3):
        before(f"choose {b}")
        done.append(people.run())
        files = people.files(b)
        if b == 0:
            people.enter(files[:2] + files[3:], {files[0]: people.other(files[0])})
            done.append(people.run())
            people.enter(files[2:3])
        elif b == 1:
            people.enter(people.files(0) + files, {files[1]: "skip"}, mode="w")
        else:
            people.enter(files)
        before(f"train {b}")
    return [*done, people.run()]


def last_lines(printed):
    return [done.stdout.strip().splitlines()[-1] for done in printed]


@pytest.fixture(scope="module")
def finished(started, tmp_path_factory):
    """(people, what was printed) of the loop without interruption."""
    people = copied(started, tmp_path_factory.mktemp("finished") / "data")
    return people, loop(people)


def test_three_rounds_with_a_late_a_wrong_and_a_skipped_label(finished):
    people, printed = finished
    last, asks, where = last_lines(printed), [people.files(b) for b in range(3)], f"{people.datadir}/ask_b"
    assert last[0].startswith(f"b=0: 4 images to label are in {where}0.csv, with pictures in ask_b0.png; enter ")
    assert f"{people.labels} (skip takes a file out)" in last[0]
    assert last[1].startswith(f"b=0: 1 label is missing, that of {asks[0][2]} (see {where}0.csv)")
    assert last[2].startswith(f"b=1: 4 images to label are in {where}1.csv")
    assert last[3].startswith(f"b=2: 4 images to label are in {where}2.csv")
    assert last[4].startswith("all 3 AL iterations are finished; --iterations adds more; the last model is ")
    assert Path(last[4].split()[-1]).exists()
    assert "changed since b=0 was trained: 1; they count from b=1 on" in printed[3].stderr
    assert [i for i, done in enumerate(printed) if "changed since" in done.stderr] == [3]
    lines = records(people.folder)
    found = [(r["method"], r["b"], r["labelled"], r.get("queried")) for r in lines]
    assert found == [("Rzg_pz", 0, 4, None), ("Rzg_pz", 1, 7, 8), ("Rzg_pz", 2, 11, 12)]
    for b, line in enumerate(lines):
        files = asks[b] if b != 1 else asks[b][:1] + asks[b][2:]
        wrong = {} if b else {files[0]: people.other(files[0])}
        assert line["selected_histogram"] == people.histogram(files, wrong)
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / len(people.truth))
        assert [line[k] for k in ("select", "minority", "pseudo_label_accuracy")] == ["val", None, None]  # unknown
    listed = np.load(next(people.folder.glob("index_list*batch_2_*.npy"))).tolist()
    assert len(set(listed)) == 12
    paths = np.load(people.datadir / NAME / "processed" / "pool_paths.npy")
    assert [*asks[0], *asks[1], *asks[2]] == [os.fsdecode(paths[i]).removeprefix("pool/") for i in listed]


def test_what_people_are_asked(finished):
    people, _ = finished
    val = sorted(str(p.relative_to(people.root / "val")) for p in people.root.glob("val/*/*"))
    held_out = [val[i] for i in np.load(people.folder / "data" / "test_0.5.npy")]
    for b in range(3):
        exported = next(people.folder.glob(f"query_*batch_{b}_*.csv")).read_text().splitlines()
        assert len(exported) == 1 + SIZE
        for row, reason in zip(people.asked(b), csv.DictReader(exported), strict=True):
            assert list(row) == ["file", "guess", "nearest_error", "error_class", "mistaken_for", "similarity"]
            assert (people.root / "pool" / row["file"]).exists()
            assert row["guess"] == f"n{int(reason['pseudo_label']):02}"
            assert row["nearest_error"] in set(val) - set(held_out)
            assert row["nearest_error"].split("/")[0] == row["error_class"] != row["mistaken_for"]
            assert float(row["similarity"]) == pytest.approx(float(reason["similarity"]), abs=5.1e-5)
        assert (people.datadir / f"ask_b{b}.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_and_sheets_of_the_loop(finished):
    people, _ = finished
    assert f"{NAME}, the pool as it is, --select val" in draw(people.datadir).stdout
    done = draw(people.datadir, "--show-selected")
    for what in ("selected", "matches"):
        assert f"{people.datadir}/figures/{NAME}_{what}_run0_" in done.stdout


def test_a_finished_loop_is_left_alone_and_prolonged_with_the_same_pool(finished, tmp_path):
    """With other files positions would be those of other images."""
    people = copied(finished[0], tmp_path / "data")
    root = people.arguments[0] = tmp_path / NAME
    shutil.copytree(people.root, root)
    assert people.run().stdout.strip().splitlines()[-1].startswith("all 3 AL iterations")
    assert outcome(people.datadir) == outcome(finished[0].datadir)
    shutil.copy(root / "pool" / "a" / "01.jpg", root / "pool" / "a" / "new.jpg")
    people.refused(words="some of which were added, removed or changed since then")
    (root / "pool" / "a" / "new.jpg").unlink()
    assert "b=3: 4 images to label" in people.run("--iterations", 4).stdout
    assert not {*people.files(0), *people.files(1), *people.files(2)} & set(people.files(3))


DIE = """
import os, signal, sys
from pathlib import Path
from tests.own.test_annotate import ARCHITECTURES, Tiny, call

def replace(path, target, rename=Path.replace):
    return os.kill(os.getpid(), signal.SIGKILL) if Path(target).name == "ask_b1.csv" else rename(path, target)

Path.replace, ARCHITECTURES["resnet10"] = replace, Tiny
call("imagenet/run.py", *sys.argv[1:])
"""


def test_killed_it_ends_as_an_uninterrupted_loop(finished, tmp_path, monkeypatch):
    """After a query and before its ask file, and in a training, which is repeated with the labels that it had."""
    people, stages = Annotators(finished[0].root, finished[0].truth, tmp_path), []

    def die(stage):
        stages.append(stage)
        if stage == "choose 1":
            line = [sys.executable, "-c", DIE, *map(str, people.arguments)]
            done = subprocess.run(line, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr
            assert list(people.folder.glob("index_list*batch_1_*.npy"))
            assert not (tmp_path / "ask_b1.csv").exists()
        elif stage == "train 2":
            monkeypatch.setattr(train.Selector, "__call__", die_after_an_epoch)
            with pytest.raises(Killed):
                people.run()
            monkeypatch.undo()
            people.enter(people.truth, {name: people.other(name) for name in people.files(2)}, mode="w")

    mine, wanted = last_lines(loop(people, die)), last_lines(finished[1])
    assert stages == [f"{stage} {b}" for b in range(3) for stage in ("choose", "train")]
    assert mine == [line.replace(str(finished[0].datadir), str(tmp_path)) for line in wanted]
    assert outcome(tmp_path) == outcome(finished[0].datadir)
    for b in range(3):
        assert (tmp_path / f"ask_b{b}.csv").read_bytes() == (finished[0].datadir / f"ask_b{b}.csv").read_bytes()


def die_after_an_epoch(selector, epoch, *rest, evaluate=train.Selector.__call__, **more):
    if epoch:
        raise Killed
    return evaluate(selector, epoch, *rest, **more)


def test_labels_from_before_and_of_a_lost_query_are_trained_on_and_not_asked_for(people):
    once = [*RANDOM, "--iterations", 1]
    before = list(people.truth)[:5]
    people.enter(before, {before[4]: "skip"})
    assert "b=0: 4 images to label" in people.run(*once).stdout
    lost = people.files(0)[:2]
    people.enter(lost)
    next(people.folder.glob("checkpoint/query_*")).unlink()
    assert "b=0: 4 images to label" in people.run(*once).stdout
    files = people.files(0)
    assert len({*before, *lost, *files}) == 11
    people.enter(files)
    assert "--iterations adds more" in people.run(*once).stdout
    (line,) = records(people.folder)
    assert (line["labelled"], line["queried"]) == (10, 4)
    assert line["selected_histogram"] == people.histogram(files)
    draw(people.datadir, "--show-selected")


def test_an_iteration_is_repeated_with_the_labels_that_it_had(finished, tmp_path):
    """After its checkpoint was lost, though more labels are known by now; its query is kept with them."""
    people = copied(finished[0], tmp_path / "data")
    next(people.folder.glob("checkpoint/best_*batch_0_*")).unlink()
    assert "is lost: the iteration is trained again" in people.run().stderr
    assert outcome(people.datadir) == outcome(finished[0].datadir)


def test_an_old_request_is_replaced_notes_are_kept_all_is_skipped_and_labels_vanish(people):
    """A label of any other image is enough to go on. Labels of an earlier query that vanish are asked for again."""
    request, picture = people.datadir / "ask_b0.csv", people.datadir / "ask_b0.png"
    request.write_text("file,guess\nother.jpg,n00\n")
    picture.write_text("old")
    people.run(*RANDOM)
    first = people.files(0)
    assert len(set(first) & set(people.truth)) == SIZE
    assert picture.stat().st_size > 1000
    with open(request, "a") as file:
        file.write("a note\n")
    people.run(*RANDOM)
    assert people.files(0) == [*first, "a note"]
    people.enter(first, dict.fromkeys(first, "skip"))
    people.refused(*RANDOM, words="every image so far was skipped")
    people.enter([f for f in people.truth if f not in first][:5])
    assert "b=1: 4 images to label" in people.run(*RANDOM).stdout
    people.enter(people.files(1), mode="w")
    assert f"4 labels are missing, the first that of {first[0]}" in people.run(*RANDOM).stdout
    (line,) = records(people.folder)
    assert (line["b"], line["labelled"], line["selected_histogram"]) == (0, 5, [0, 0, 0])


def test_methods_without_similarities(people):
    for method, more in (("random", []), ("coreset", ["score"])):  # coreset's first distance is infinite
        assert "b=0: 4 images to label" in people.run("--methods", method).stdout
        assert [list(row) for row in people.asked(0)] == [["file", "guess", *more]] * SIZE
        assert (people.datadir / "ask_b0.png").read_bytes()[:4] == b"\x89PNG"
    assert "b=0: 4 images to label" in people.run("--methods", "Rz").stdout  # whose own length is another one
    assert list(people.folder.glob("index_list*_Rz_L_768_*.npy"))
    assert all(row["guess"] and row["similarity"] for row in people.asked(0))


def test_test_images_of_their_own(started, tmp_path):
    """test/ is used, and all of val/ is for validation."""
    root = tmp_path / NAME
    shutil.copytree(started.root, root)
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "n00" / "0.JPEG").unlink()
    people = Annotators(root, started.truth, tmp_path)
    people.run(*RANDOM)
    people.enter(people.files(0))
    people.run(*RANDOM)
    (line,) = records(people.folder)
    for accuracy, count in ((line["accuracy"], 17), (line["accuracy_validation"], 18)):
        assert accuracy * count / 100 == pytest.approx(round(accuracy * count / 100))
    assert not list((people.folder / "data").glob("test_*"))
    people.refused("--holdout-val", 0.5, words="has test images of its own")


def test_what_people_cannot_be_asked(finished, people, tmp_path, monkeypatch):
    for more, words in (
        (["-ir", 20], "-ir and -nr distort a pool whose labels are known"),
        (["-nr", 0.1, "--initial"], "-ir and -nr distort"),
        (["--methods", "Rz", "random"], "one method at a time, not for random, Rz L768"),
        (["--methods", "Rzg_true"], "Rzg_true needs the labels of the whole pool"),
        (["--methods", "galaxy"], "galaxy asks for labels while it chooses: use alfk.query in a program of your own"),
        (["--methods", "glister"], "glister asks for the known labels, which it needs of all images that are not"),
        (["--methods", "flqmi_rare"], "flqmi_rare has to know which classes are rare: use alfk.query"),
        (["--methods", "rivals"], "one method at a time, not for margin, leastconf"),
        (["--add-validation"], "--add-validation trains on the images by which --select val chooses the epoch"),
        (["--add-validation", "--select", "last"], "those of flowers are a set of their own"),
        (["--validation-size", 300], "is more than the "),
        (["--baseline"], "--baseline trains on the labels of the whole pool"),
        (["--run-stop", 2], "one run at a time"),
        (["-as", 5], "was made with query_size = 4, this command says 5"),
        ([*RANDOM, "-as", 30, "--save-folder", tmp_path / "new"], "1 AL iterations of 30 images need 30 pool images"),
    ):
        finished[0].refused(*more, words=words)
    where = [*finished[0].arguments[:5], "--device", "cpu"]
    for script in ("gen_descr.py", "main_descr.py"):
        refused(f"imagenet/{script}", *where, "-sub", "Rzg_pz", words="--annotate is for run.py")
    refused("imagenet/unsup.py", *where, "-ir", 20, words="-ir and -nr distort")
    people.enter(list(people.truth)[:21])
    people.refused(*RANDOM, words="the query size is 4 but 3 pool images are unlabelled")
    monkeypatch.setattr("alfk.support.distributed.world_size", lambda: 2)
    people.refused(words="start it without torchrun")


def test_folders_that_lack_something(started, tmp_path):
    root = tmp_path / NAME
    flags = ["--annotate", tmp_path / "labels.csv", "--datadir", tmp_path / "data", *SMALL]
    refused("imagenet/run.py", *flags, words="--annotate needs the folder that holds pool/ and val/")
    shutil.copytree(started.root / "val", root / "val")
    refused("imagenet/run.py", root, *flags, words=f"there is no folder {root}/pool: put the images")
    assert not (tmp_path / "labels.csv").exists()
    (root / "pool" / "a").mkdir(parents=True)
    refused("imagenet/run.py", root, *flags, words=f"{root}/pool has no image (.jpeg, .jpg, .png)")
    refused("imagenet/run.py", root, *flags[2:], words=f"{root} has pool/ and no train/: give --annotate labels.csv")
    shutil.copytree(started.root / "pool", root / "pool", dirs_exist_ok=True)
    for table, words in ((root / "pool" / "l.csv", "lies among the images"), (root / "no" / "l.csv", "cannot write")):
        refused("imagenet/run.py", root, "--annotate", table, *flags[2:], words=words)
    shutil.rmtree(root / "val")
    refused("imagenet/run.py", root, *flags, words="val/<class>/*.JPEG")
    assert not list(tmp_path.rglob("*.pt"))


def test_wrong_labels_end_before_anything_is_computed(people):
    people.enter(["07.jpg"], {"07.jpg": "n00"})
    people.refused(words="line 2: 07.jpg is not among the pool's files")
    assert not list(people.folder.glob("checkpoint/query_*"))
