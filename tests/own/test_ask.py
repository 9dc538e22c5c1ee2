"""alfk ask: rounds of requests and labels on a folder of images, by the real command."""

import csv
import itertools
import json
import shutil
import signal
import sys
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from alfk.own import project as projects
from alfk.own import transfer
from alfk.support.files import locked
from tests.helpers import ROOT, Killed, call, call_process, normal, start

ARCH, SIZE = "shufflenet_v2_x0_5", 4
NAMES = {0: "zero", 1: "one", 2: "two", 3: "Three"}


class People:
    """A folder with pool/ and val/, people who know the labels of the pool's files (`truth`), and the command."""

    def __init__(self, root, truth, weights):
        self.root, self.truth, self.work = root, truth, root / "asked"
        self.flags = ["--weights", weights, "-a", ARCH, "--image-size", 32, "-as", SIZE, "--device", "cpu"]

    def run(self, *more, status=0):
        return call(
            "alfk/cli/main.py",
            "ask",
            self.root,
            *(self.flags if not self.state.get("settings") else []),
            *more,
            status=status,
        )

    @property
    def state(self):
        path = self.work / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def table(self, b):
        with open(self.work / f"ask_b{b}.csv", newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))

    def files(self, b):
        return [row["file"] for row in self.table(b)]

    def enter(self, b, **changes):
        """Fill in the column label, truly but for changes by number, as n3="unsure"."""
        rows = self.table(b)
        for row in rows:
            row["label"] = changes.get(f"n{row['number']}", self.truth[row["file"]])
        with open(self.work / f"ask_b{b}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)


def tree(root, classes=(0, 1, 2), pool=8, clean=6):
    """A folder of digits; names in pool/ say nothing about classes. Returns the truth."""
    data, truth, places = load_digits(), {}, itertools.cycle(["", "a/", "a/b, c/", "ü =1/"])
    for c in classes:
        members = data.images[data.target == c]
        for i in range(clean):
            picture(root / "val" / NAMES[c] / f"{i}.png", members[i])
        for i in range(clean, clean + pool):
            name = f"{next(places)}{len(truth):02}.png"
            picture(root / "pool" / name, members[i])
            truth[name] = NAMES[c]
    return truth


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder before the first command."""
    base = tmp_path_factory.mktemp("made")
    network = transfer.untrained(ARCH, 7, seed=5).train()
    with torch.no_grad():
        for i in range(30):  # the statistics of batch norm
            network(normal(i, 16, 3, 32, 32))
    torch.save(network.state_dict(), base / "weights.pth")
    return People(base / "photos", tree(base / "photos"), base / "weights.pth")


@pytest.fixture
def people(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "photos")
    return People(tmp_path / "photos", dict(made.truth), made.flags[1])


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """Three requests, two of them labelled; what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "photos"
    shutil.copytree(made.root, folder)
    people = People(folder, dict(made.truth), made.flags[1])
    return people, [done.stdout for done in rounds(people)]


def rounds(people):
    """The commands of two rounds, with a late label."""
    yield people.run()
    people.enter(0, n3="")
    yield people.run()
    people.enter(0)
    yield people.run()
    people.enter(1, n1="skip", n2="unsure")
    yield people.run()


def test_two_rounds(finished):
    people, printed = finished
    first, waiting, second, third = printed
    assert "trained on the 9 clean images alone: " in first
    assert "of the 9 held-out ones are right" in first
    assert f"b=0: 4 images to label; enter labels into {people.work}/ask_b0.csv" in first
    assert waiting.startswith(f"b=0: 1 label is missing, that of {people.files(0)[2]}; enter ")
    assert "Accuracy with 4 labels is " in second
    assert "b=1: 4 images to label" in second
    assert "The last 2 labels " in third
    assert "Training on the clean images alone gives " in third
    asked = [people.files(b) for b in range(3)]
    assert len({*asked[0], *asked[1], *asked[2]}) == 12  # an unsure image is not in the next request
    assert [each["labelled"] for each in people.state["rounds"]] == [4, 6, None]
    for b in range(3):
        assert (people.work / f"ask_b{b}.png").read_bytes()[:4] == b"\x89PNG"
    assert (people.work / "progress.png").exists()


def test_clean_images_are_not_trained_on_or_held_out_twice(finished):
    people, _ = finished
    project = opened(people)
    apart, guides = set(project.held_out), set(project.clean(False))
    assert len(apart) == len(guides) == 9
    assert not apart & guides
    assert project.clean(True) == []
    for row in people.table(0):
        assert row["matches_file"] in guides
    project = opened(people, add_validation=True)
    guides, trained = set(project.clean(False)), set(project.clean(True))
    assert len(guides | trained) == 9
    assert not guides & trained
    assert not (guides | trained) & apart
    assert {name.split("/")[0] for name in trained} == set(NAMES.values()) - {"Three"}


def opened(people, **settings):
    return projects.Project(people.root, people.work, settings, torch.device("cpu"), print, transfer.unwatched)


def test_last_model_is_a_network_of_torchvision(finished):
    people, _ = finished
    saved = torch.load(people.work / "model.pt", weights_only=True)
    network = transfer.untrained(saved["about"]["arch"], len(saved["about"]["classes"]), 0)
    network.load_state_dict(saved["state"])
    project = opened(people)
    assert project.predictions(network) == people.state["rounds"][1]["predictions"]


def test_same_labels_give_the_same_project_wherever_the_command_dies(finished, people, monkeypatch):
    """Each command dies before and after each of its writes, and is given again."""
    expected, _ = finished
    deaths, write, save = 0, projects.write_json, projects.save_checkpoint

    def dying(function, before, target):
        done = []

        def call_once(*arguments):
            if not before:
                function(*arguments)
            if len(done) == target:
                raise Killed
            done.append(1)
            if before:
                function(*arguments)

        return call_once

    commands = iter(rounds_by_hand(people))
    for enter in commands:
        enter()
        for before, target in ((True, 0), (False, 0), (True, 1), (False, 1)):
            monkeypatch.setattr(projects, "write_json", dying(write, before, target))
            monkeypatch.setattr(projects, "save_checkpoint", dying(save, before, target))
            try:
                people.run(*(people.flags if not people.state.get("settings") else []))
            except Killed:
                deaths += 1
        monkeypatch.undo()
        people.run(*(people.flags if not people.state.get("settings") else []))
    assert deaths > 6
    assert people.state["rounds"] == expected.state["rounds"]
    assert people.files(2) == expected.files(2)


def rounds_by_hand(people):
    return (lambda: None, lambda: people.enter(0), lambda: people.enter(1, n1="skip", n2="unsure"))


def test_sigkill_while_a_request_is_made(finished, people):
    line = [sys.executable, "-m", "alfk.cli.main", "ask", str(people.root), *map(str, people.flags)]
    process = start(line, cwd=ROOT)
    while not (people.work / "state.json").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    call_process(line, cwd=ROOT)
    assert people.files(0) == finished[0].files(0)


def test_mistakes_are_listed_at_once(people):
    people.run()
    people.enter(0, n1="zerro", n2="TWO", n3=" one ", n4="unsure")
    (people.work / "labels.csv").write_text("file,label\nnone.png,zero\n")
    done = people.run(status=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "line 2: 'zerro' is none of the classes" in done.stderr
    assert "zero?" in done.stderr
    assert "none.png is not among the pool's files" in done.stderr


def test_images_and_a_class_join_and_an_image_leaves(people):
    people.run()
    people.enter(0)
    more = tree(people.root / "more", classes=(3,), pool=5)
    shutil.copytree(people.root / "more" / "val" / "Three", people.root / "val" / "Three")
    for name in more:
        shutil.copy(people.root / "more" / "pool" / name, people.root / "pool" / f"new{name.replace('/', '_')}")
        people.truth[f"new{name.replace('/', '_')}"] = "Three"
    shutil.rmtree(people.root / "more")
    gone = people.files(0)[0]
    (people.root / "pool" / gone).unlink()
    picture(people.root / "val" / "zero" / "0.png", load_digits().images[0][:4])
    done = people.run()
    for line in (
        "5 images added to pool/",
        f"removed from pool/: {gone}; their labels are not used",
        "6 images added to val/",
        "changed in val/: zero/0.png",
        "new class: Three",
    ):
        assert line in done.stdout.splitlines()
    assert people.state["classes"] == ["one", "two", "zero", "Three"]  # numbers of known classes stay
    assert people.state["rounds"][0]["labelled"] == 3
    people.enter(1)
    people.run()
    assert people.state["rounds"][1]["labelled"] == 7
    assert sum(name.startswith("Three/") for name in people.state["held_out"]) == 3


def test_class_that_joins_when_all_images_are_labelled(people):
    people.run("-as", 24)
    people.enter(0)
    assert "every image of pool/ has a label" in people.run().stdout
    more = tree(people.root / "more", classes=(3,), pool=2)
    shutil.move(people.root / "more" / "val" / "Three", people.root / "val" / "Three")
    for i, name in enumerate(more):
        shutil.move(people.root / "more" / "pool" / name, people.root / "pool" / f"new{i}.png")
    shutil.rmtree(people.root / "more")
    assert "b=1: 2 images to label" in people.run().stdout
    assert {row["error_label"] for row in people.table(1)} <= {*people.state["classes"]}


def test_methods_without_clean_images_leave_these_to_the_training(people):
    flags = ["--add-validation", "--method", "entropy_det"]
    assert "trained on the 9 clean images alone" in people.run(*flags).stdout
    people.enter(0)
    assert "training the head on 13 images" in people.run().stdout
    assert "matches_file" not in people.table(1)[0]
    people.enter(1)
    people.run("--method", "Rzg_fl", "--no-add-validation")
    assert "matches_file" in people.table(2)[0]


def test_unsure_image_is_asked_again_and_waited_for(people):
    people.run()
    people.enter(0, n1="unsure")
    people.run("-as", 20)
    people.enter(1)
    people.run()
    last = people.files(2)
    assert last == people.files(0)[:1]  # nothing else is left
    assert "1 label is missing" in people.run().stdout
    people.enter(2)
    assert "every image of pool/ has a label or was skipped" in people.run().stdout


def test_flags_are_remembered_and_changes_named(people):
    people.run()
    people.enter(0)
    done = people.run("-as", 3, "--method", "random")
    assert "changed: method Rzg_fl -> random, query_size 4 -> 3; this counts from now on" in done.stdout
    assert len(people.files(1)) == 3
    assert "changed" not in people.run().stdout


def test_flags_count_that_are_given_while_labels_are_missing(people):
    people.run()
    people.run("-as", 3)
    people.enter(0)
    people.run()
    assert len(people.files(1)) == 3


def test_files_of_flags_are_remembered_wherever_the_command_is_given(people, tmp_path, monkeypatch):
    shutil.copy(people.flags[1], tmp_path / "weights.pth")
    people.flags[1] = "weights.pth"
    monkeypatch.chdir(tmp_path)
    people.run()
    with open("more.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *((name, people.truth[name]) for name in people.files(0))])
    assert f"labels none -> {tmp_path}/more.csv" in people.run("--labels", "more.csv").stdout
    monkeypatch.chdir(ROOT)
    people.enter(1)
    assert "training the head on 8 images" in people.run().stdout
    assert not {*people.files(2)} & {*people.files(0)}


def test_method_that_asks_for_the_known_labels(people):
    people.run("--method", "glister")
    people.enter(0, n1="skip", n2="unsure")
    people.run()
    assert not {*people.files(1)} & {*people.files(0)}


def test_labels_that_are_entered_or_corrected_after_the_last_request_are_trained_on(people):
    people.run("-as", 24)
    people.enter(0, n1="unsure")
    assert "but for 1 that people are unsure of" in people.run().stdout
    people.enter(0, n2="skip")
    assert "training the head on 23 images" in people.run().stdout
    people.enter(0)
    assert "training the head on 24 images" in people.run().stdout
    assert "training" not in people.run().stdout


def test_report_of_a_command_that_died_after_the_training(people, monkeypatch):
    people.run()
    people.enter(0)
    monkeypatch.setattr(projects.Project, "history", Mock(side_effect=Killed))
    with pytest.raises(Killed):
        people.run()
    monkeypatch.undo()
    assert "Accuracy with 4 labels is " in people.run().stdout


def test_report_after_labelled_images_left(people):
    for b in range(2):
        people.run()
        people.enter(b)
    for name in [*people.files(0), people.files(1)[0]]:
        (people.root / "pool" / name).unlink()
    assert "Accuracy with 3 labels is " in people.run().stdout


def test_with_clean_images_trained_on(people):
    done = people.run("--add-validation", "--freeze", "none", "-e", 1, "--lr", 1e-9, "--head-lr", 1e-9)
    assert "trained on the 9 clean images alone" in done.stdout
    assert "training the network, 1 epochs, on 3 images" in done.stdout
    people.enter(0)
    assert "training the network, 1 epochs, on 7 images" in people.run().stdout


def test_rounds_that_were_trained_otherwise_are_not_compared(finished, tmp_path):
    """What else differs would be taken for an effect of the labels."""
    shutil.copytree(finished[0].root, tmp_path / "photos")
    people = People(tmp_path / "photos", finished[0].truth, None)
    people.enter(2)
    done = people.run("--add-validation").stdout
    assert "not compared: 2 earlier rounds" in done
    assert "The last" not in done
    assert "trained on the 9 clean images alone" not in done  # the same network as before
    people.enter(3)
    picture(people.root / "val" / "one" / "new.png", load_digits().images[1])
    picture(people.root / "val" / "one" / "newer.png", load_digits().images[1])
    done = people.run().stdout
    assert "not compared: 3 earlier rounds" in done  # they did not see the new held-out image
    assert "of the 10 held-out ones are right" in done


def test_flags_of_a_command_that_was_stopped_are_remembered(people, monkeypatch):
    def stop(*arguments):
        raise Killed

    monkeypatch.setattr(transfer, "train", stop)
    with pytest.raises(Killed):
        people.run("--add-validation", "--label-studio")
    monkeypatch.undo()
    people.run()
    settings = people.state["settings"]
    assert settings["add_validation"]
    assert settings["label_studio"]
    assert settings["query_size"] == SIZE
    assert (people.work / "label_studio_b0.json").exists()


def test_without_weights_the_network_is_pretrained_by_rotation(people, monkeypatch):
    people.flags[1] = "none"
    done = people.run("--rotation-epochs", 1, "-e", 1, "--lr", 1e-9, "--head-lr", 1e-9)
    assert "pretraining by rotation" in done.stdout
    people.enter(0)
    assert "pretraining by rotation" not in people.run().stdout  # its weights are kept


def test_weights_that_cannot_be_downloaded_are_said_aloud(people, monkeypatch):
    def offline(arch, weights=None, **options):
        if weights:
            raise OSError("no route to host")
        return original(arch, weights=weights, **options)

    original = transfer.torchvision.models.get_model
    monkeypatch.setattr(transfer.torchvision.models, "get_model", offline)
    people.flags = people.flags[2:]
    done = people.run("--rotation-epochs", 1, "-e", 1, "--lr", 1e-9, "--head-lr", 1e-9)
    assert "could not be downloaded (no route to host): pretraining by rotation instead" in done.stdout
    assert people.state["settings"]["weights"] == "none"


def test_label_studio_files_and_labels(people):
    people.run("--label-studio")
    tasks = json.loads((people.work / "label_studio_b0.json").read_text())
    assert [task["data"]["file"] for task in tasks] == people.files(0)
    assert "<Choice" in (people.work / "label_studio.xml").read_text()
    export = [{"file": name, "label": people.truth[name]} for name in people.files(0)]
    (people.work / "labels_export.json").write_text(json.dumps(export))
    assert "b=1: 4 images to label" in people.run().stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "pool"), "/pool has no image (.jpeg, .jpg, .png)"),
        (lambda root: shutil.rmtree(root / "val"), "/val has no image"),
        (lambda root: shutil.move(root / "val" / "one" / "0.png", root / "val"), "/val/0.png is in no class"),
        (lambda root: [shutil.rmtree(root / "val" / name) for name in ("one", "two")], "/val has the class zero alone"),
        (lambda root: (root / "pool" / "00.png").write_bytes(b"text"), "pool/00.png"),
        (lambda root: (root / "asked").mkdir() or (root / "asked" / "ask_b0.csv").touch(), "has requests but no state"),
    ],
)
def test_folders_that_are_refused(people, change, words):
    change(people.root)
    lines = people.run(status=2).stderr.strip().splitlines()
    assert words in lines[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "Rzg_true"], "needs the labels of the whole pool"),
        (["--method", "epig"], "epig needs a network with dropout"),
        (["--method", "galaxy"], "asks while it chooses"),
        (["--freeze", "all"], "'all' is no number of blocks"),
        (["--freeze", "99"], "blocks before its head; give fewer"),
        (["--weights", "nothing.pth"], "nothing.pth: give --weights a file, or none"),
        (["--labels", "nothing.csv"], "nothing.csv: put it there, or name others with --labels"),
    ],
)
def test_flags_that_are_refused(people, flags, words):
    done = people.run(*flags, status=2)
    assert words in done.stderr.strip().splitlines()[-1]


def test_image_of_the_pool_that_is_a_clean_one_too_is_left_out(people):
    shutil.copy(people.root / "val" / "one" / "0.png", people.root / "pool" / "copy.png")
    assert "left out of pool/, since they are in val/ too: copy.png" in people.run().stdout
    assert "copy.png" not in people.state["pool"]


@pytest.mark.parametrize("method", ["coreset", "glister"])
def test_methods_with_an_infinite_score_or_known_labels(people, method):
    people.run("--method", method)
    people.enter(0)
    assert "b=1: 4 images to label" in people.run().stdout


def test_labels_count_though_the_reasons_are_lost(people):
    people.run()
    people.enter(0)
    (people.work / "query_b0.pt").unlink()
    assert "b=1: 4 images to label" in people.run().stdout


def test_two_commands_at_once(people):
    people.run()
    with locked(people.work / ".lock"):
        assert "another command works in" in people.run(status=2).stderr
