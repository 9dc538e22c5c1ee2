"""ImageNet's constants, network and scripts, on small trees of images."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.cli import scripts
from alfk.data.bias import thin_half_of_classes
from alfk.data.split import Split
from alfk.experiment.config import Recipe, WarmUpAndDecay
from alfk.experiment.train import Selector
from alfk.experiment.training import fit
from alfk.rivals.methods import RIVALS
from imagenet.config import ARCHITECTURES, IMAGENET, descriptors
from tests.helpers import (
    call,
    call_process,
    command,
    draw,
    outcome,
    records,
    refused,
    refuses,
    start,
    wait_for,
    wait_until,
    write_tree,
)


def test_learning_rates_are_the_protocols():
    """Every step of the 60 and the 15 epochs against METHOD's words."""
    for recipe, warm, falls in ((IMAGENET.retraining, 5, (30, 50, 57)), (IMAGENET.pretraining, 2, (6, 10, 14))):
        steps = 7
        for epoch in range(recipe.epochs):  # METHOD counts from 0
            for step in range(steps):
                if epoch < warm:
                    wanted = 0.1 * (1 + step + epoch * steps) / (5 * steps)
                else:
                    wanted = next((0.1 * 0.1**i for i, fall in enumerate(falls) if epoch < fall), 0.0001)
                rate = recipe.lr * recipe.schedule(epoch + 1, (step + 1) / steps)
                assert rate == pytest.approx(wanted), (epoch, step)


def test_a_rate_is_set_at_every_step():
    rates, recipe = [], Recipe(2, 4, 0.1, 0.0, 0.0, WarmUpAndDecay(rise=5, warm=1, falls=(30,)))
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    model = Flat()
    original = torch.optim.SGD.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        fit(model, Split(images, torch.arange(10) % 2, (0.5,), (0.5,)), recipe, torch.Generator().manual_seed(0))
    assert rates == pytest.approx([0.1 / 15, 0.2 / 15, 0.3 / 15, 0.1, 0.1, 0.1])


class Flat(torch.nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.layer = torch.nn.Linear(64, classes)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits, [logits]


BRIEF = Recipe(3, 16, 0.05, 0.9, 0.0, WarmUpAndDecay(5, 1, (2,)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compilation_without_a_compiler_ends_in_a_line():
    """torch's own search for one, among those of CXX."""
    from torch._inductor import config  # slow to import

    data = Split(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2, (0.5,), (0.5,))
    with config.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        refuses(
            lambda: fit(Flat(), data, dataclasses.replace(BRIEF, compiled=True), torch.Generator()),
            "/nonexistent/g++')): it needs a C++ compiler that works, e.g. g++, or the one named in CXX; without one",
        )


@pytest.mark.parametrize("options", [{"amp": True}, {"compiled": True}])
def test_mixed_precision_and_compilation_learn_the_same(options, monkeypatch):
    eager = functools.partial(torch.compile, backend="eager")  # the usual one takes a minute
    monkeypatch.setattr(torch, "compile", eager)
    images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0, 0, 0] > 127).long()
    data = Split(images, labels, (0.5,), (0.5,))
    weights = []
    for more in ({}, options):
        torch.manual_seed(0)
        model = Flat()
        fit(model, data, dataclasses.replace(BRIEF, **more), torch.Generator().manual_seed(1))
        weights.append(model.layer.weight.detach())
    assert (weights[0] - weights[1]).abs().max() < (0.01 if "amp" in options else 1e-5)
    if "amp" in options:
        assert not torch.equal(*weights)


@pytest.mark.parametrize("ratio", [1, 2, 10, 100])
def test_half_of_the_classes_lose_their_share(ratio):
    labels = torch.arange(9).repeat_interleave(torch.tensor([100, 37, 250, 4, 61, 99, 130, 8, 73]))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(4))]
    stays = thin_half_of_classes(labels, 9, ratio, torch.Generator().manual_seed(2))
    assert torch.equal(stays, stays.unique())
    before, after = torch.bincount(labels, minlength=9).tolist(), torch.bincount(labels[stays], minlength=9).tolist()
    thinned = [a - round(a * (ratio - 1) / ratio) for a in before]
    changed = [c for c in range(9) if after[c] != before[c]]
    assert len(changed) == (0 if ratio == 1 else 4)
    assert all(after[c] == thinned[c] for c in changed)
    other = thin_half_of_classes(labels, 9, ratio, torch.Generator().manual_seed(3))
    assert torch.equal(stays, other) == (ratio == 1)


def test_the_official_pool_at_100_is_about_as_large_as_the_papers():
    """1,000 classes of 732 to 1,300 images, 1,281,167 in all: 895 of them with 1,300, as in ILSVRC-2012."""
    counts = torch.full((1000,), 1300)
    rest = 1_281_167 - 895 * 1300
    counts[895:] = rest // 105
    counts[-1] += 1_281_167 - int(counts.sum())
    labels = torch.arange(1000).repeat_interleave(counts)
    stays = thin_half_of_classes(labels, 1000, 100, torch.Generator().manual_seed(0))
    assert len(stays) == pytest.approx(645_770, rel=0.01)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_descriptors_have_their_lengths(arch):
    model = ARCHITECTURES[arch](7).eval()
    _, taps = model(torch.randn(2, 3, 64, 64))
    widths = [tap.shape[1] for tap in taps]
    for length, which in descriptors(4 if arch == "resnet50" else 1).items():
        assert sum(widths[i] for i in which) == length
    assert set(descriptors(1)) == {448, 512, 768}


def test_top5_counts_images_whose_class_is_among_the_five_likeliest():
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    model = Flat(classes=8)
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.copy_(torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1]))
    test = Split(images, torch.tensor([0, 0, 4, 5, 7, 1]), (0.5,), (0.5,))
    for select in ("test", "val", "last"):
        selector = Selector(select, test, test, 4, top5=True)
        selector(1, model, last=True)
        trained = selector.result(model)
        assert trained.test.accuracy == pytest.approx(100 * 2 / 6)
        assert trained.accuracy_top5 == pytest.approx(100 * 4 / 6)
        assert trained.test.predictions.tolist() == [0] * 6


NAME = "photos"  # of the folder, and so of its results


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=6, train=12, val=5)


SMALL = ["--device", "cpu", "--image-size", 32, "-as", 5, "-e", 1, "--unsup-epochs", 1, "-smp", 2, "-ir", 2]
SMALL += ["--batch-size", 16, "--workers", 1]


def script(name, tree, datadir, *arguments, status=0):
    return call(f"imagenet/{name}", tree, "--datadir", datadir, *SMALL, *arguments, status=status)


@pytest.fixture(scope="module")
def started(tree, tmp_path_factory):
    """A folder with initial models, with the loader that is used where none is named."""
    datadir = tmp_path_factory.mktemp("started")
    script("run.py", tree, datadir, "--initial", "--methods", "varR", "-ens", 1)
    return datadir


@pytest.mark.slow
def test_methods_of_every_kind_run(tree, started, tmp_path):
    """One of each way to choose and to label; SVHN's tests run all of them on the same kind of network."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    matching = ["Rz", "Rzg_true", "Rzg_pred", "Rzg_pz", "Rzg_mi"]
    script("run.py", tree, tmp_path, "--iterations", 1, "--methods", "random", *matching, "-dl", 768)
    script("run.py", tree, tmp_path, "--iterations", 2, "--methods", "varR", "-ens", 1)
    done = script("run.py", tree, tmp_path, "--methods", "flqmi_rare", status=2)
    assert "flqmi_rare has to know which classes are rare, and of the pool at ir=2 none is known" in done.stderr
    lines = records(tmp_path / NAME / "run0")
    assert [(line["method"], line["b"]) for line in lines[-2:]] == [("varR", 0), ("varR", 1)]
    assert {line["method"] for line in lines} == {"random", *matching, "varR"}
    for line in lines:
        assert sum(line["selected_histogram"]) == 5
        assert len(line["accuracy_per_class"]) == 6
        assert line["accuracy_top5"] >= line["accuracy"]
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / (36 + 18))  # of the thinned pool
    manifest = json.loads((tmp_path / NAME / "run0" / "manifest.json").read_text())
    assert manifest["settings"]["image_size"] == 32
    assert manifest["settings"]["classes"] == 6
    assert f"{NAME}, 2x class imbalance, --select val" in draw(tmp_path).stdout
    draw(tmp_path, "--show-selected", "--methods", "Rz")
    assert list((tmp_path / "figures").glob(f"{NAME}_selected_run0_*Rz_*.png"))


@pytest.mark.slow
def test_by_hand_and_by_one_command(tree, started, tmp_path):
    whole, by_hand = tmp_path / "whole", tmp_path / "by_hand"
    for folder in (whole, by_hand):
        shutil.copytree(started, folder)
    script("run.py", tree, whole, "--methods", "Rzg_pz", "-dl", 512, "--iterations", 2)
    for b in (0, 1):
        here = ["-r", 0, "-sub", "gradFmap", "-dl", 512, "-b", b]
        told = script("gen_descr.py", tree, by_hand, *here).stdout.splitlines()
        assert [np.load(path, mmap_mode="r")["descriptor"].dtype for path in told] == [np.float16] * 2
        script("main_descr.py", tree, by_hand, *here)
    assert outcome(whole) == outcome(by_hand)


@pytest.mark.slow
def test_held_out_images_are_for_test_alone(tree, tmp_path):
    more = ["--loader", "torchvision", "--holdout-val", 0.4]
    script("run.py", tree, tmp_path, *more, "--initial", "--methods", "Rz")
    script("run.py", tree, tmp_path, *more, "--iterations", 1, "--methods", "Rz", "-dl", 512)
    run = tmp_path / NAME / "run0"
    held = np.load(run / "data" / "test_0.4.npy")
    assert len(set(held.tolist())) == 12
    (line,) = records(tmp_path / NAME / "run0")
    assert line["misclassified"] <= 18
    assert 100 * round(line["accuracy"] * 12 / 100) == pytest.approx(12 * line["accuracy"])
    again = ["--loader", "torchvision", "--iterations", 1, "--methods", "Rz"]
    assert "holdout = 0.4" in script("run.py", tree, tmp_path, *again, status=2).stderr
    empty = script("run.py", tree, tmp_path / "new", *again, "--initial", "--holdout-val", 0.01, status=2)
    assert "leaves none for one side" in empty.stderr
    two = ["--loader", "torchvision", "--run-start", 1, "--run-stop", 3, "--jobs", 2]
    script("run.py", tree, tmp_path, *two, "--initial", "--methods", "Rz")


def test_wrong_use_takes_one_line(tree, started, tmp_path):
    cases = {
        ("--holdout-val", "1"): "--holdout-val is a share",
        ("--image-size", "8"): "--image-size is at least 32",
        ("-a", "vgg"): "invalid choice",
        ("--methods", "Rz", "-dl", "20"): "there are 448, 512, 768",
        ("-a", "resnet34", "--methods", "random"): "was made with network = resnet18",
    }
    for arguments, text in cases.items():
        refused = script("run.py", tree, started, *arguments, status=2).stderr
        assert text in refused
        assert refused.count("\n") == 1
    refused = script("run.py", tmp_path / "nowhere", tmp_path, "--initial", "--methods", "Rz", status=2).stderr
    assert "val/<class>/*.JPEG" in refused
    assert refused.count("\n") == 1


def test_rivals_of_many_classes_are_those_that_can_be_computed(tree, tmp_path, monkeypatch):
    """The classes are counted before the methods are."""
    many, (image, *_) = tmp_path / "many", sorted(tree.rglob("*.JPEG"))
    for part, c in itertools.product(("train", "val"), range(501)):
        (many / part / f"n{c:03}").mkdir(parents=True)
        os.link(image, many / part / f"n{c:03}" / "0.JPEG")
    new = [many, "--datadir", tmp_path / "data", *SMALL, "--initial", "--methods"]
    refused("imagenet/run.py", *new, "epig", words="epig cannot be computed for 501 classes, only for up to 500")
    assert not list(tmp_path.rglob("run0"))
    asked = []
    monkeypatch.setattr(scripts, "_run", lambda experiment, trials, options: asked.extend(trials) or 0)
    call("imagenet/run.py", *new, "rivals")
    assert [trial.method for trial in asked] == [rival.key for rival in RIVALS if rival.key != "epig"]


def test_a_validation_set_of_its_own_is_not_added(tree, tmp_path):
    """Found before a model is read."""
    model = tmp_path / NAME / "run0" / "checkpoint" / "init_unsup_batch_0_ir_2_nr_0_select_last.pt"
    model.parent.mkdir(parents=True)
    model.touch()
    for flags, words in (
        (["--add-validation"], "those of photos are a set of their own"),
        (["--baseline-validation", "--holdout-val", 0], "photos's validation images are its test images"),
    ):
        arguments = [tree, "--datadir", tmp_path, *SMALL, "--methods", "random", "--select", "last", *flags]
        refused("imagenet/run.py", *arguments, words=words)


def test_a_damaged_image_stops_the_run_with_its_name(tree, tmp_path):
    copy = tmp_path / NAME
    shutil.copytree(tree, copy)
    (copy / "train" / "n03" / "2.JPEG").write_bytes(b"no image")
    refused = script("run.py", copy, tmp_path / "data", "--initial", "--methods", "random", status=2)
    assert "n03/2.JPEG cannot be decoded" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_ended(tree, tmp_path, number):
    """Neither the processes of --jobs nor multiprocessing's own; and nothing is in shared memory."""
    endless = [*SMALL, "--unsup-epochs", 100_000, "--loader", "torchvision", "--run-stop", 2, "--jobs", 2]
    line = command("imagenet/run.py", tree, "--datadir", tmp_path, *endless, "--initial", "--methods", "random")
    process = start(line, start_new_session=True)
    for run in ("run0", "run1"):
        wait_for(tmp_path, f"{run}/checkpoint/init_batch_0*", process)  # the endless training is next
    session = in_session(process.pid)
    assert len(session) >= 3
    shared = [row for pid in session for row in text(pid, "maps").splitlines() if "/dev/shm/" in row]
    assert all(row.endswith("(deleted)") for row in shared)  # tqdm's semaphore, which has no name
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)  # all that had the pipe of its output have ended
    wait_until(lambda: not in_session(process.pid), 20)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert said.strip().splitlines()[-1] == "run.py: interrupted; the same command continues from here"
        assert "Traceback" not in said


def in_session(leader):
    """The ids of the processes of a session that have not ended."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = text(entry.name, "stat").rpartition(")")[2].split()  # state, parent, group, session, ...
        if fields and fields[0] not in "ZX" and int(fields[3]) == leader:
            found[int(entry.name)] = fields[0]
    return list(found)


def text(pid, file):
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:  # it ended meanwhile
        return ""


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(tree, started, tmp_path):
    """From the same initial models."""
    methods = ["--methods", "Rz", "Rzg_pz", "flqmi", "-dl", 768, "--iterations", 1]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        shutil.copytree(started, folder)
    script("run.py", tree, one, *methods)
    call_process(command("imagenet/run.py", tree, "--datadir", two, *SMALL, *methods, torchrun=2))
    ran = [(r["method"], r["b"]) for r in records(two / NAME / "run0")]
    assert ran == [("Rzg_pz", 0), ("Rz", 0), ("flqmi", 0)]
    for method in ("Rz_L_768", "Rzg_pz_L_768", "flqmi_L_0"):
        name = f"{NAME}/run0/index_list_unsup_batch_0_size_5_ir_2_nr_0_sub_{method}_select_val.npy"
        assert np.array_equal(np.load(one / name), np.load(two / name)), method
