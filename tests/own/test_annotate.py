"""People as the oracle: the loop of imagenet/run.py --annotate by the real script, and labels.csv as people edit it."""

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

from alfk.own.annotations import read_annotations
from alfk.own.queries import write_csv
from tests.helpers import ONE_THREAD, ROOT, Killed, call, draw, outcome, records, refused, refuses, write_tree

NAME, CLASSES, SIZE = "flowers", 3, 4
SMALL = ["--device", "cpu", "--image-size", 32, "-a", "resnet10", "-as", SIZE, "-e", 1, "--unsup-epochs", 1]
SMALL += ["--batch-size", 4, "--workers", 1, "--iterations", 3]


def move_to_pool(root):
    """train/<class>/<i>.JPEG -> pool/, nested, under names that say nothing; returns {file below pool/: class}."""
    truth, places = {}, itertools.cycle(["", "a", "a/b, c", "ü 1"])
    for i, path in enumerate(sorted((root / "train").rglob("*.JPEG"))):
        name = f"{next(places)}/{i:02}.jpg".lstrip("/")
        (root / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(root / "pool" / name)
        truth[name] = path.parent.name
    shutil.rmtree(root / "train")
    return truth


class Annotators:
    """A folder with pool/ and val/, people who know the labels, and the command."""

    def __init__(self, root, datadir):
        self.root, self.datadir, self.labels = root, datadir, datadir / "labels.csv"
        datadir.mkdir(exist_ok=True)

    @property
    def arguments(self):
        return [self.root, "--annotate", self.labels, "--datadir", self.datadir, *SMALL]

    def run(self, *more, status=0):
        return call("imagenet/run.py", *self.arguments, *more, status=status)

    def asked(self, b):
        with open(self.datadir / f"ask_b{b}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def files(self, b):
        return [row["file"] for row in self.asked(b)]

    def enter(self, truth, files):
        """Append labels, as people do; `truth` maps files to what they enter."""
        new = not self.labels.exists() or not self.labels.stat().st_size
        with open(self.labels, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([["file", "label"]] * new + [[name, truth[name]] for name in files])

    @property
    def folder(self):
        return self.datadir / NAME / "run0"


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """(root, truth): 24 images in pool/, 6 in each class of val/."""
    root = write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=CLASSES, train=8, val=6)
    return root, move_to_pool(root)


def loop(people, truth, before=lambda b: None):
    """Three rounds: a label of the first comes late, an image of the second is skipped; returns what was printed.

    Args:
        before: called before the command that chooses round b, and before the one that trains it.
    """
    lines = []
    for b in range(3):
        before(f"choose {b}")
        lines.append(people.run().stdout)
        files = people.files(b)
        if b == 0:
            people.enter(truth, files[:2] + files[3:])
            lines.append(people.run().stdout)
            people.enter(truth, files[2:3])
        elif b == 1:
            people.enter({**truth, files[1]: "skip"}, files)
        else:
            people.enter(truth, files)
        before(f"train {b}")
    lines.append(people.run().stdout)
    return lines


@pytest.fixture(scope="module")
def finished(flowers, tmp_path_factory):
    """(people, what was printed) of the loop without interruption."""
    people = Annotators(flowers[0], tmp_path_factory.mktemp("finished"))
    return people, loop(people, flowers[1])


def test_three_rounds_with_a_late_and_a_skipped_label(flowers, finished):
    (people, printed), truth = finished, flowers[1]
    last = [text.strip().splitlines()[-1] for text in printed]
    asks = [people.files(b) for b in range(3)]
    where = f"{people.datadir}/ask_b"
    assert last[0].startswith(f"b=0: 4 images to label are in {where}0.csv, with pictures in ask_b0.png; enter ")
    assert last[1].startswith(f"b=0: 1 label is missing, that of {asks[0][2]} (see {where}0.csv)")
    assert last[2].startswith(f"b=1: 4 images to label are in {where}1.csv")
    assert last[3].startswith(f"b=2: 4 images to label are in {where}2.csv")
    assert last[4].startswith("all 3 AL iterations are finished; --iterations adds more; the last model is ")
    assert Path(last[4].split()[-1]).exists()
    assert str(people.labels) in last[0]
    assert "skip" in last[0]
    lines = records(people.folder)
    assert [(r["method"], r["b"], r["labelled"], r.get("queried")) for r in lines] == [
        ("Rzg_pz", 0, 4, None),
        ("Rzg_pz", 1, 7, 8),
        ("Rzg_pz", 2, 11, 12),
    ]
    classes = sorted(set(truth.values()))
    listed = np.load(next(people.folder.glob("index_list*batch_2_*.npy"))).tolist()
    for b, line in enumerate(lines):
        files = asks[b] if b != 1 else asks[b][:1] + asks[b][2:]
        assert line["selected_histogram"] == [sum(truth[f] == c for f in files) for c in classes]
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / len(truth))
        assert line["select"] == "val"
        assert line["minority"] is None  # the labels of the pool are not known
        assert line["pseudo_label_accuracy"] is None
    assert len(set(listed)) == 12
    assert [f for files in asks for f in files] == [file_of(people, i) for i in listed]


def file_of(people, position):
    paths = np.load(people.datadir / NAME / "processed" / "pool_paths.npy")
    return os.fsdecode(paths[position]).removeprefix("pool/")


def test_what_people_are_asked(flowers, finished):
    people, root = finished[0], flowers[0]
    for b in range(3):
        rows = people.asked(b)
        head = ["file", "guess", "nearest_error", "error_class", "mistaken_for", "similarity"]
        assert list(rows[0]) == head
        assert len(rows) == SIZE
        exported = next(people.folder.glob(f"query_*batch_{b}_*.csv")).read_text().splitlines()
        for row, reason in zip(rows, csv.DictReader(exported), strict=True):
            assert (root / "pool" / row["file"]).exists()
            assert row["guess"] == f"n{int(reason['pseudo_label']):02}"
            assert (root / "val" / row["nearest_error"]).exists()
            assert row["nearest_error"].split("/")[0] == row["error_class"] != row["mistaken_for"]
            assert float(row["similarity"]) == pytest.approx(float(reason["similarity"]), abs=5.1e-5)
            held_out = np.load(people.folder / "data" / "test_0.5.npy").tolist()
            position = sorted(str(p.relative_to(root / "val")) for p in (root / "val").rglob("*.JPEG"))
            assert position.index(row["nearest_error"]) not in held_out
        assert (people.datadir / f"ask_b{b}.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_and_sheets_of_the_loop(finished):
    people, _ = finished
    assert f"{NAME}, the pool as it is, --select val" in draw(people.datadir).stdout
    done = draw(people.datadir, "--show-selected")
    for what in ("selected", "matches"):
        (sheet,) = (people.datadir / "figures").glob(f"{NAME}_{what}_run0_*.png")
        assert str(sheet.with_suffix("")) in done.stdout


def test_a_finished_loop_is_left_alone_and_prolonged(finished, tmp_path):
    people, _ = finished
    before = outcome(people.datadir)
    assert people.run().stdout.strip().splitlines()[-1].startswith("all 3 AL iterations")
    assert outcome(people.datadir) == before
    shutil.copytree(people.datadir, tmp_path, dirs_exist_ok=True)
    again = Annotators(people.root, tmp_path)
    assert "b=3: 4 images to label" in again.run("--iterations", 4).stdout
    skipped = [row["file"] for row in again.asked(1)][1]
    assert not {skipped, *again.files(0), *again.files(2)} & set(again.files(3))


DIE = """
import os, runpy, signal, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from alfk.experiment import train

def die(*_, **more):
    os.kill(os.getpid(), signal.SIGKILL)

where, sys.argv = sys.argv[1], sys.argv[2:]
rename, evaluate = Path.replace, train.Selector.__call__
if where == "training":
    train.Selector.__call__ = lambda me, epoch, *rest, **more: (die if epoch else evaluate)(me, epoch, *rest, **more)
else:
    Path.replace = lambda path, target: die() if Path(target).name == where else rename(path, target)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_killed_twice_it_ends_as_an_uninterrupted_loop(flowers, finished, tmp_path):
    """SIGKILL after a query and before its ask file, and during a training."""
    people, deaths = Annotators(flowers[0], tmp_path), []

    def die(stage):
        where = {"choose 1": "ask_b1.csv", "train 2": "training"}.get(stage)
        if where:
            line = [sys.executable, "-c", DIE, where, ROOT / "imagenet" / "run.py", *people.arguments]
            done = subprocess.run(list(map(str, line)), cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr
            deaths.append(where)
            assert list(people.folder.glob("index_list*batch_1_*.npy"))
            assert not (people.datadir / f"ask_b{len(deaths) if where != 'training' else 3}.csv").exists()

    printed = loop(people, flowers[1], die)
    assert len(deaths) == 2
    mine, wanted = ([text.strip().splitlines()[-1] for text in texts] for texts in (printed, finished[1]))
    assert mine == [line.replace(str(finished[0].datadir), str(tmp_path)) for line in wanted]
    assert outcome(tmp_path) == outcome(finished[0].datadir)
    for b in range(3):
        name = f"ask_b{b}.csv"
        assert (tmp_path / name).read_bytes() == (finished[0].datadir / name).read_bytes()


def anew(finished, folder):
    """The same folder with initial models alone."""
    shutil.copytree(finished[0].datadir, folder, dirs_exist_ok=True)
    people = Annotators(finished[0].root, folder)
    made = [*people.folder.glob("*.npy"), *people.folder.glob("*_batch_*.csv"), *people.folder.glob("*/best_*")]
    for path in [*made, people.folder / "results.jsonl", people.labels, *folder.glob("ask_*")]:
        path.unlink()
    return people


def test_an_interrupted_training_is_repeated_with_the_labels_that_it_had(flowers, finished, tmp_path, monkeypatch):
    """Though one of them is another one by now."""
    people, truth = anew(finished, tmp_path), flowers[1]
    people.run()
    people.enter(truth, people.files(0))
    monkeypatch.setattr("alfk.own.labelling.train", die_in_training)
    with pytest.raises(Killed):
        people.run()
    monkeypatch.undo()
    people.labels.unlink()
    first, *rest = people.files(0)
    other = next(label for label in truth.values() if label != truth[first])
    people.enter({**truth, first: other}, [first, *rest])
    assert "b=1: 4 images to label" in people.run().stdout
    wanted = records(finished[0].folder)[0]
    assert records(people.folder)[0]["selected_histogram"] == wanted["selected_histogram"]


def die_in_training(*_: object) -> None:
    raise Killed


def test_a_lost_query_is_replaced_and_no_label_is_lost(flowers, finished, tmp_path):
    """Other images are asked for; those labelled before are trained on too."""
    people, truth = anew(finished, tmp_path), flowers[1]
    people.run()
    before = people.files(0)[:2]
    people.enter(truth, before)
    next(people.folder.glob("checkpoint/query_*")).unlink()
    assert "b=0: 4 images to label" in people.run().stdout
    assert not set(before) & set(people.files(0))
    people.enter(truth, people.files(0))
    people.run()
    assert records(people.folder)[0]["labelled"] == 6


def test_labels_that_were_corrected_count_from_the_next_round(flowers, finished, tmp_path):
    people, truth = anew(finished, tmp_path), flowers[1]
    people.run()
    first = people.files(0)
    people.enter(truth, first)
    people.run()
    other = next(label for label in truth.values() if label != truth[first[0]])
    people.labels.unlink()
    people.enter({**truth, first[0]: other}, [*first, *people.files(1)])
    assert "changed since b=0 was trained: 1; they count from b=1 on" in people.run().stderr


def test_labels_from_before_are_trained_on_and_not_asked_for(flowers, finished, tmp_path):
    people, truth = anew(finished, tmp_path), flowers[1]
    first = finished[0].files(0)
    before = [*first[:2], *[f for f in truth if f not in first][:3]]
    people.enter({**truth, before[4]: "skip"}, before)
    assert "b=0: 4 images to label" in people.run("--iterations", 1).stdout
    assert not set(people.files(0)) & set(before)
    people.enter(truth, people.files(0))
    people.run("--iterations", 1)
    (line,) = records(people.folder)
    assert (line["labelled"], line["queried"]) == (8, 4)
    classes = sorted(set(truth.values()))
    assert line["selected_histogram"] == [sum(truth[f] == c for f in people.files(0)) for c in classes]
    assert people.run("--iterations", 1).stdout.count("--iterations adds more")
    draw(tmp_path, "--show-selected")


def test_a_query_of_skipped_images_alone(flowers, finished, tmp_path):
    """One line; a label of any other image is enough to go on."""
    people, truth = anew(finished, tmp_path), flowers[1]
    people.run()
    people.enter(dict.fromkeys(people.files(0), "skip"), people.files(0))
    refused("imagenet/run.py", *people.arguments, words="every image so far was skipped")
    people.enter(truth, [f for f in truth if f not in people.files(0)][:5])
    assert "b=1: 4 images to label" in people.run().stdout
    assert records(people.folder)[0]["selected_histogram"] == [0, 0, 0]
    assert records(people.folder)[0]["labelled"] == 5


def test_the_request_of_another_run_is_replaced_and_peoples_notes_are_kept(finished, tmp_path):
    people = anew(finished, tmp_path)
    stale = b"file,guess\nother.jpg,n00\n"
    (tmp_path / "ask_b0.csv").write_bytes(stale)
    (tmp_path / "ask_b0.png").write_bytes(b"old")
    people.run()
    files = people.files(0)
    assert files == finished[0].files(0)
    assert (tmp_path / "ask_b0.png").stat().st_size > 1000
    with open(tmp_path / "ask_b0.csv", "a") as file:
        file.write("a note\n")
    people.run()
    assert people.files(0) == [*files, "a note"]


def test_methods_without_similarities(finished, tmp_path):
    people = anew(finished, tmp_path)
    done = people.run("--methods", "random")
    assert "b=0: 4 images to label" in done.stdout
    assert [list(row) for row in people.asked(0)] == [["file", "guess"]] * SIZE
    assert "b=0: 4 images to label" in people.run("--methods", "coreset").stdout  # whose first distance is infinite
    assert [list(row) for row in people.asked(0)] == [["file", "guess", "score"]] * SIZE
    assert "b=0: 4 images to label" in people.run("--methods", "Rz").stdout  # whose own length is another one
    assert list(people.folder.glob("index_list*_Rz_L_768_*.npy"))
    assert all(row["guess"] and row["similarity"] for row in people.asked(0))
    assert (tmp_path / "ask_b0.png").read_bytes()[:4] == b"\x89PNG"


def test_test_images_of_their_own(flowers, tmp_path):
    """test/ is used, and all of val/ is for validation."""
    root = tmp_path / "tree" / NAME
    shutil.copytree(flowers[0], root)
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "n00" / "0.JPEG").unlink()
    people = Annotators(root, tmp_path / "data")
    people.run("--methods", "random", "--iterations", 1)
    people.enter(flowers[1], people.files(0))
    people.run("--methods", "random", "--iterations", 1)
    (line,) = records(people.folder)
    assert line["accuracy"] * 17 / 100 == pytest.approx(round(line["accuracy"] * 17 / 100))
    assert line["accuracy_validation"] * 18 / 100 == pytest.approx(round(line["accuracy_validation"] * 18 / 100))
    assert not list((people.folder / "data").glob("test_*"))
    refused("imagenet/run.py", *people.arguments, "--holdout-val", 0.5, words="has test images of its own")


def test_a_pool_that_changes_between_rounds_is_refused(flowers, finished, tmp_path):
    """Positions would be those of other images."""
    root = tmp_path / "tree" / NAME
    shutil.copytree(flowers[0], root)
    shutil.copytree(finished[0].datadir, tmp_path / "data")
    people = Annotators(root, tmp_path / "data")
    assert "all 3 AL iterations" in people.run().stdout
    shutil.copy(root / "pool" / "a" / "01.jpg", root / "pool" / "a" / "new.jpg")
    refused("imagenet/run.py", *people.arguments, words="some of which were added, removed or changed since then")
    (root / "pool" / "a" / "new.jpg").unlink()
    assert "all 3 AL iterations" in people.run().stdout


WRONG = {
    "no header": ("a/1.jpg,n00\n", "its first line has to be file,label"),
    "another header": ("name,class\n", "its first line has to be file,label"),
    "nothing": ("", "its first line has to be file,label"),
    "unknown label": ("file,label\n{0},rose\n", "line 2: 'rose' is not a class of the validation set (n00, n01, n02)"),
    "case": ("file,label\n{0},Skip\n", "line 2: 'Skip' is not a class"),
    "unknown file": ("file,label\n{0},n00\nz.jpg,n01\n", "line 3: z.jpg is not among the pool's files"),
    "contradiction": ("file,label\n{0},n00\n{1},n00\n{0},n01\n", "line 4: {0} has the label n00 above, here n01"),
    "skipped and labelled": ("file,label\n{0},skip\n{0},n01\n", "line 3: {0} has the label skip above, here n01"),
    "not text": (b"\xff\xfe\x00,\x80", "save it as CSV in UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_take_one_line(flowers, finished, case, tmp_path):
    files = sorted(flowers[1])
    content, words = WRONG[case]
    labels = tmp_path / "labels.csv"
    labels.write_bytes(content if isinstance(content, bytes) else content.format(*files).encode())
    people = finished[0]
    arguments = [people.root, "--annotate", labels, "--datadir", people.datadir, *SMALL]
    refused("imagenet/run.py", *arguments, words=words.format(*files))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-ir", 20], "-ir and -nr distort a pool whose labels are known"),
        (["-ir", 20, "--initial"], "-ir and -nr distort"),
        (["-nr", 0.1], "-ir and -nr distort"),
        (["--methods", "Rz", "random"], "one method at a time, not for random, Rz L768"),
        (["--methods", "Rzg_true"], "Rzg_true needs the labels of the whole pool"),
        (["--methods", "galaxy"], "galaxy asks for one label after another: use alfk.query in a program of your own"),
        (["--methods", "flqmi_rare"], "flqmi_rare has to know which classes are rare: use alfk.query"),
        (["--methods", "rivals"], "one method at a time, not for margin, leastconf"),
        (["--add-validation"], "--add-validation trains on the images by which --select val chooses the epoch"),
        (["--add-validation", "--select", "last"], "those of flowers are a set of their own"),
        (["--validation-size", 300], "is more than the "),
        (["--baseline"], "--baseline trains on the labels of the whole pool"),
        (["--run-stop", 2], "one run at a time"),
        (["-as", 5], "was made with query_size = 4, this command says 5"),
    ],
)
def test_flags_that_need_known_labels(finished, more, words):
    refused("imagenet/run.py", *finished[0].arguments, *more, words=words)


def test_more_than_the_pool_holds(flowers, finished, tmp_path):
    people, truth = anew(finished, tmp_path), flowers[1]
    where = [*people.arguments, "--methods", "random"]
    new = ["-as", 30, "--save-folder", tmp_path / "new"]
    refused("imagenet/run.py", *where, *new, words="1 AL iterations of 30 images need 30 pool images")
    people.enter(truth, list(truth)[:21])
    refused("imagenet/run.py", *where, words="the query size is 4 but 3 pool images are unlabelled")


def test_other_scripts_need_known_labels_too(finished, tmp_path):
    where = [finished[0].root, "--annotate", finished[0].labels, "--datadir", finished[0].datadir, "--device", "cpu"]
    refused("imagenet/unsup.py", *where, "-ir", 20, words="-ir and -nr distort")
    for script in ("gen_descr.py", "main_descr.py"):
        refused(f"imagenet/{script}", *where, "-sub", "Rzg_pz", words="--annotate is for run.py")


def test_one_process_asks(finished, monkeypatch):
    monkeypatch.setattr("alfk.support.distributed.world_size", lambda: 2)
    refused("imagenet/run.py", *finished[0].arguments, words="start it without torchrun")


def test_folders_that_lack_something(flowers, finished, tmp_path):
    root = tmp_path / NAME
    arguments = ["--annotate", tmp_path / "labels.csv", "--datadir", tmp_path / "data", *SMALL]
    refused("imagenet/run.py", *arguments, words="--annotate needs the folder that holds pool/ and val/")
    shutil.copytree(flowers[0] / "val", root / "val")
    refused("imagenet/run.py", root, *arguments, words=f"there is no folder {root}/pool: put the images")
    assert not (tmp_path / "labels.csv").exists()
    (root / "pool" / "a").mkdir(parents=True)
    refused("imagenet/run.py", root, *arguments, words=f"{root}/pool has no image (.jpeg, .jpg, .png)")
    words = f"{root} has pool/ and no train/: give --annotate labels.csv"
    refused("imagenet/run.py", root, *arguments[2:], words=words)
    shutil.rmtree(root / "val")
    shutil.copy(flowers[0] / "pool" / "a" / "01.jpg", root / "pool" / "a")
    refused("imagenet/run.py", root, *arguments, words="val/<class>/*.JPEG")


# labels.csv as people edit it

FILES, KINDS = ["a.jpg", "b/c d.jpg", "e, f.jpg", "ü.jpg", "g.jpg"], ["ant", "bee or wasp", "çat"]
PLAIN = """file,label
b/c d.jpg,bee or wasp
"e, f.jpg",skip
ü.jpg,çat
g.jpg,
"""
FORMS = {
    "as it is": PLAIN,
    "a byte order mark": "\ufeff" + PLAIN,
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "semicolons": PLAIN.replace('"e, f.jpg"', "e# f.jpg").replace(",", ";").replace("#", ","),
    "blank lines": PLAIN.replace("\n", "\n\n") + "\n,\n ,\n",
    "spaces": PLAIN.replace("file,label", "File , Label ").replace(",bee", " , bee").replace("skip", " skip "),
    "no end of line": PLAIN.rstrip(",\n"),
    "more columns": PLAIN.replace("file,label", "file,label,who").replace("wasp", "wasp,me"),
    "the other way round": 'label,file\nbee or wasp,b/c d.jpg\nskip,"e, f.jpg"\nçat,ü.jpg\n,g.jpg\n',
    "labels twice": PLAIN + "g.jpg,\nb/c d.jpg,bee or wasp\nü.jpg,\n",
    "all of it": "\ufeff File;Label \r\n\r\nb/c d.jpg; bee or wasp\r\ne, f.jpg;skip ;\r\n;\r\n ü.jpg;çat\r\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_as_spreadsheets_write_them(form, tmp_path):
    (tmp_path / "labels.csv").write_bytes(FORMS[form].encode())
    found = read_annotations(tmp_path / "labels.csv", FILES, KINDS)
    assert found.positions.tolist() == [1, 3]
    assert found.labels.tolist() == [1, 2]
    assert found.skipped.tolist() == [2]
    assert found.settled.tolist() == [1, 2, 3]
    assert found.missing(torch.tensor([4, 2, 0, 1])).tolist() == [4, 0]


ODD = [" a.jpg", "a.jpg", "a.jpg ", "line\nbreak.jpg", "b\u2028c.jpg", "d\re.jpg", "f\r\ng.jpg", 'h"i', '"', "\x0cj"]


def test_file_names_that_only_quotes_can_hold(tmp_path):
    """A name that is not one of the pool's is taken without the spaces around it."""
    kinds = ["ant", "ant "]
    rows = [{"file": name, "label": kinds[i % 2]} for i, name in enumerate(ODD)]
    write_csv(tmp_path / "labels.csv", rows)
    found = read_annotations(tmp_path / "labels.csv", ODD, kinds)
    assert found.positions.tolist() == list(range(len(ODD)))
    assert found.labels.tolist() == [i % 2 for i in range(len(ODD))]
    write_csv(tmp_path / "labels.csv", [{"file": " h.jpg ", "label": "ant "}])
    assert read_annotations(tmp_path / "labels.csv", ["h.jpg"], ["ant"]).labels.tolist() == [0]
    write_csv(tmp_path / "labels.csv", [{"file": "no\nname\u2028.jpg", "label": "ant"}])
    refuses(lambda: read_annotations(tmp_path / "labels.csv", ODD, kinds), r"line 3: 'no\nname\u2028.jpg' is not among")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_system(end, tmp_path):
    (tmp_path / "labels.csv").write_bytes(PLAIN.replace("\n", end).encode())
    assert read_annotations(tmp_path / "labels.csv", FILES, KINDS).positions.tolist() == [1, 3]


def test_no_labels_yet(tmp_path):
    for content in (None, b"file,label\n", b"\xef\xbb\xbffile;label\r\n"):
        if content is not None:
            (tmp_path / "labels.csv").write_bytes(content)
        found = read_annotations(tmp_path / "labels.csv", FILES, KINDS)
        assert len(found.positions) == len(found.settled) == 0
        assert found.missing(torch.tensor([2, 0])).tolist() == [2, 0]


def test_labels_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    for path in (tmp_path, tmp_path / "labels.csv"):
        refuses(lambda path=path: read_annotations(path, FILES, KINDS), f"cannot read {path}: ")


def test_labels_of_an_earlier_query_that_vanish_are_asked_for_again(finished, flowers, tmp_path):
    """People answer b=1 in a new file, in place of their labels of b=0."""
    people, truth = Annotators(flowers[0], tmp_path), flowers[1]
    people.run()
    people.enter(truth, people.files(0))
    people.run()
    people.labels.unlink()
    people.enter(truth, people.files(1))
    printed = people.run().stdout.strip().splitlines()[-1]
    assert f"4 labels are missing, the first that of {people.files(0)[0]}" in printed
    assert [r["b"] for r in records(people.folder)] == [0]


def test_the_table_may_not_lie_among_the_images(flowers, tmp_path):
    where = [flowers[0], "--annotate", flowers[0] / "pool" / "labels.csv", "--datadir", tmp_path, *SMALL]
    refused("imagenet/run.py", *where, words="lies among the images")
    where[2] = tmp_path / "no_folder" / "labels.csv"
    refused("imagenet/run.py", *where, words="cannot write")
    assert not list(tmp_path.rglob("*.pt"))
