"""ImageNet's constants, network and scripts, on small trees of images."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.cli import options as flags
from alfk.data.bias import thin_half_of_classes
from alfk.data.split import Split
from alfk.experiment.config import Recipe, WarmUpAndDecay
from alfk.experiment.train import Selector
from alfk.experiment.training import fit
from imagenet.config import IMAGENET
from imagenet.custom_models.resnet import ARCHITECTURES
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
    options = flags.common_parser({IMAGENET.name: IMAGENET}, "").parse_args(["-a", arch])
    experiment = IMAGENET.flags.apply(IMAGENET, options)
    _, taps = experiment.network(7).eval()(torch.randn(2, 3, 64, 64))
    lengths = {length: sum(taps[i].shape[1] for i in which) for length, which in experiment.descriptors.items()}
    assert all(length == found for length, found in lengths.items())
    assert sorted(lengths) == [(4 if arch == "resnet50" else 1) * length for length in (448, 512, 768)]


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


# The scripts


NAME = "photos"  # of the folder, and so of its results
SMALL = ["--device", "cpu", "-a", "resnet10", "--image-size", 32, "-as", 5, "-e", 1, "--unsup-epochs", 1, "-smp", 2]
SMALL += ["-ir", 2, "--batch-size", 8, "--workers", 1]
HERE = ["-dl", 512, "--holdout-val", 0.4]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree") / NAME, classes=6, train=6, val=5)


def script(name, tree, datadir, *arguments, status=0):
    return call(f"imagenet/{name}", tree, "--datadir", datadir, *SMALL, *arguments, status=status)


@pytest.fixture(scope="module")
def started(tree, tmp_path_factory):
    """A folder with initial models, with the loader that is used where none is named."""
    datadir = tmp_path_factory.mktemp("started")
    script("run.py", tree, datadir, *HERE, "--iterations", 2, "--initial", "--methods", "varR")
    return datadir


@pytest.mark.slow
def test_the_scripts_end_to_end(tree, started, tmp_path):
    """By run.py a method of every kind, then the same by the other scripts, and one iteration in two processes."""
    whole, by_hand, two = (shutil.copytree(started, tmp_path / name) for name in ("whole", "by_hand", "two"))
    methods = ["Rzg_pz", "random", "varR"]
    script("run.py", tree, whole, *HERE, "--iterations", 2, "--methods", *methods)
    lines = records(whole / NAME / "run0")
    assert sorted((line["method"], line["b"]) for line in lines) == [(m, b) for m in methods for b in (0, 1)]
    for line in lines:
        assert sum(line["selected_histogram"]) == 5
        assert len(line["accuracy_per_class"]) == 6
        assert line["accuracy_top5"] >= line["accuracy"]
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / (18 + 9))  # of the thinned pool
        assert line["misclassified"] is None or line["misclassified"] <= 18  # 3 of each class
        assert 100 * round(line["accuracy"] * 12 / 100) == pytest.approx(12 * line["accuracy"])  # 2 are held out
    assert len(set(np.load(whole / NAME / "run0" / "data" / "test_0.4.npy").tolist())) == 12
    settings = json.loads((whole / NAME / "run0" / "manifest.json").read_text())["settings"]
    assert (settings["image_size"], settings["classes"], settings["holdout"]) == (32, 6, 0.4)
    for b in (0, 1):
        here = ["-r", 0, "-sub", "gradFmap", *HERE, "-b", b]
        printed = script("gen_descr.py", tree, by_hand, *here).stdout.splitlines()
        assert [np.load(path, mmap_mode="r")["descriptor"].dtype for path in printed] == [np.float16] * 2
        script("main_descr.py", tree, by_hand, *here)
    arguments = ["--datadir", two, *SMALL, *HERE, "--methods", "Rzg_pz", "--iterations", 1]
    call_process(command("imagenet/run.py", tree, *arguments, torchrun=2))
    wanted, mine, theirs = (outcome(folder / NAME) for folder in (whole, by_hand, two))
    assert mine["run0/results.jsonl"] == [r for r in wanted["run0/results.jsonl"] if r["method"] == "Rzg_pz"]
    assert all(value == wanted[name] for name, value in mine.items() if name != "run0/results.jsonl")
    assert all(value == wanted[name] for name, value in theirs.items() if "index_list" in name)
    assert [(r["method"], r["b"]) for r in theirs["run0/results.jsonl"]] == [("Rzg_pz", 0)]
    assert f"{NAME}, 2x class imbalance, --select val" in draw(whole).stdout
    draw(whole, "--show-selected", "--methods", "Rzg_pz")
    assert list((whole / "figures").glob(f"{NAME}_selected_run0_*Rzg_pz*.png"))


def test_wrong_use_takes_one_line(tree, started, tmp_path):
    cases = {
        ("--holdout-val", "1"): "--holdout-val is a share",
        ("--image-size", "8"): "--image-size is at least 32",
        ("-a", "vgg"): "invalid choice",
        ("--methods", "Rz", "-dl", "20"): "there are 448, 512, 768",
        ("-a", "resnet34", "--methods", "random", *HERE[2:]): "was made with network = resnet10",
        ("--methods", "flqmi_rare", *HERE[2:]): "none is known to be rare in the pool at ir=2",
        ("--methods", "Rz", "--holdout-val", "0.2"): "holdout = 0.4",
        ("--initial", "--save-folder", tmp_path, "--holdout-val", "0.01"): "leaves none for one side",
    }
    for arguments, text in cases.items():
        refused = script("run.py", tree, started, "--iterations", 1, *arguments, status=2).stderr
        assert text in refused
        assert refused.count("\n") == 1
    refused = script("run.py", tmp_path / "nowhere", tmp_path, "--initial", "--methods", "Rz", status=2).stderr
    assert "val/<class>/*.JPEG" in refused
    assert refused.count("\n") == 1


def test_a_validation_set_of_its_own_is_not_added(tree, tmp_path):
    """Found before a model is read."""
    model = tmp_path / NAME / "run0" / "checkpoint" / "init_unsup_batch_0_ir_2_nr_0_select_last.pt"
    model.parent.mkdir(parents=True)
    model.touch()
    for more, words in (
        (["--add-validation"], "those of photos are a set of their own"),
        (["--baseline-validation", "--holdout-val", 0], "photos's validation images are its test images"),
    ):
        arguments = [tree, "--datadir", tmp_path, *SMALL, "--iterations", 1, "--methods", "random", "--select", "last"]
        arguments += more
        refused("imagenet/run.py", *arguments, words=words)


def test_a_damaged_image_stops_the_run_with_its_name(tree, tmp_path):
    copy = tmp_path / NAME
    shutil.copytree(tree, copy)
    (copy / "train" / "n03" / "2.JPEG").write_bytes(b"no image")
    refused = script("run.py", copy, tmp_path / "data", "--initial", "--iterations", 1, "--methods", "random", status=2)
    assert "n03/2.JPEG cannot be decoded" in refused.stderr


@pytest.mark.slow
def test_nothing_outlives_a_run_that_is_killed(tree, tmp_path):
    """Neither the processes of --jobs nor multiprocessing's own; and nothing is in shared memory."""
    endless = [
        *SMALL,
        "--unsup-epochs",
        100_000,
        "--loader",
        "torchvision",
        "--run-stop",
        2,
        "--jobs",
        2,
        "--iterations",
        1,
    ]
    line = command("imagenet/run.py", tree, "--datadir", tmp_path, *endless, "--initial", "--methods", "random")
    process = start(line, start_new_session=True)
    for run in ("run0", "run1"):
        wait_for(tmp_path, f"{run}/checkpoint/init_batch_0*", process)  # the endless training is next
    session = in_session(process.pid)
    assert len(session) >= 3
    shared = [row for pid in session for row in text(pid, "maps").splitlines() if "/dev/shm/" in row]
    assert all(row.endswith("(deleted)") for row in shared)  # tqdm's semaphore, which has no name
    process.kill()
    process.communicate(timeout=60)  # all that had the pipe of its output have ended
    wait_until(lambda: not in_session(process.pid), 20)


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
