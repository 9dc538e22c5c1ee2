"""Two processes that work as one: against one process in parts, and the real scripts under torchrun."""

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from alfk.cli.scripts import guarded
from alfk.data.split import Split
from alfk.experiment.config import Recipe, StepDecay
from alfk.experiment.folder import RunFolder
from alfk.experiment.training import Evaluation, Evaluator, classify, fit, rotate
from alfk.method import matching
from alfk.method.descriptors import Descriptors, descriptors_of
from alfk.method.matching import match, top_matches
from alfk.method.pseudo_labels import nearest_by_feature
from alfk.method.uncertainty import MEASURES, uncertainty
from alfk.networks.dropout import MCDropout
from alfk.own.queries import query, select
from alfk.rivals import RIVALS
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import complete_array, create_array, open_array, save_array
from tests.helpers import SMALL, call_process, children, command, outcome, records, start, wait_for, wait_until

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """Two taps, and on request batch norm or dropout."""

    def __init__(self, batch_norm=False, dropout=False):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6 * 36, 4)
        self.norm = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.drop = MCDropout(0.25) if dropout else nn.Identity()

    def forward(self, images):
        features = self.drop(torch.relu(self.norm(self.conv(images))))
        logits = self.fc(features.flatten(1))
        return logits, [features, logits]


def net(**kinds):
    torch.manual_seed(1)
    return Net(**kinds)


def split(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return Split(images, torch.randint(4, (count,), generator=draw), (0.5,), (0.25,))


def half(images, width):
    """Room for descriptors as on disk with --descr-dtype float16."""
    dtype = np.dtype([("descriptor", "<f2", (width,)), ("pseudo_label", "<i8"), ("prediction", "<i8")])
    array = np.zeros(images, dtype)
    return Descriptors(array["descriptor"], array["pseudo_label"], array["prediction"])


def as_tensors(found):
    return [torch.as_tensor(part) for part in (found.vectors, found.pseudo_labels, found.predictions)]


def measured():
    """What has to be the same to the bit: 103 pool images in batches of 10, 37 and 3 validation images."""
    pool, validation, few, model = split(103), split(37, 1), split(3, 2), net()
    found = {"z": as_tensors(descriptors_of(model, pool, [0], None, 10))}
    reference = descriptors_of(model, validation, None, lambda batch: validation.labels[batch.positions], 10, half)
    found["validation"] = as_tensors(reference)
    found["few"] = as_tensors(descriptors_of(model, few, None, None, 10))
    pz = descriptors_of(model, pool, None, nearest_by_feature(reference, validation.labels), 10, half)
    found["pool"] = as_tensors(pz)
    for measure in MEASURES:
        draws = torch.Generator().manual_seed(3)
        scores = uncertainty(measure, [net(dropout=True), net(dropout=True)], pool, 6, draws, 10)
        found[measure] = [scores, torch.randint(1000, (1,), generator=draws)]
    wrong = torch.from_numpy(reference.vectors).float()[:20]
    available = torch.arange(103) % 3 > 0
    with tiles_of(7, wrong.shape[1]):
        found["top"] = list(top_matches(wrong, pz.vectors, 5, available, shared=True))
        found["top of equal rows"] = list(top_matches(wrong, np.tile(pz.vectors, (3, 1)), 5, shared=True))
    for n in (9, 40):  # fewer and more than there are errors
        with tiles_of(16, wrong.shape[1]):
            chosen = match(wrong, pz.vectors, available, n, torch.Generator().manual_seed(4))
        found[f"match {n}"] = [chosen.indices]
    for method in ("Rzg_pzg", "Rzg_mi", "varR"):
        known = torch.arange(5)
        model = net(dropout=method == "varR")
        found[method] = [select(method, model, pool, validation, 12, labelled=known, batch_size=10, samples=4)]
    given = {"annotate": lambda positions: pool.labels[positions], "rare_classes": [1]}
    for method in (rival.key for rival in RIVALS):
        options = {"labelled": known, "batch_size": 10, "samples": 4, **given}
        found[method] = [query(method, net(dropout=True), pool, validation, 12, **options).indices]
    found["predict"] = [Evaluator(images, 10)(net()).predictions for images in (pool, few)]
    rotations = Evaluator(pool, 10, rotate)
    whole = rotations(net())
    stopped = rotations(net(), Evaluation(whole.errors // 2, whole.count))
    found["rotation"] = [torch.tensor([whole.errors, stopped is None]), rotations.difficulty]
    return found


@contextlib.contextmanager
def tiles_of(rows, width):
    """Small tiles of the database, so that there are several to share."""
    before = matching.BUDGET
    matching.BUDGET = 4 * width * rows
    try:
        yield
    finally:
        matching.BUDGET = before


def trained():
    """Weights after training on so many images by so many: uneven batches, and even ones."""
    return {(count, size): weights(count, size, task) for count, size, task in ((103, 7, classify), (32, 8, rotate))}


def weights(count, size, task=classify, **kinds):
    recipe = Recipe(epochs=3, batch_size=size, lr=0.05, momentum=0.5, weight_decay=1e-3, schedule=StepDecay(2))
    model = net(**kinds)
    fit(model, split(count), recipe, torch.Generator().manual_seed(5), task, threads=1)
    return list(model.state_dict().values())


def in_a_group(number, folder):
    """What one of two processes finds, written to a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    found = {"measured": measured(), "trained": trained(), "left over": weights(33, 8)}
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, momentum=0.5, weight_decay=0, schedule=StepDecay(2))
    model, seen = net(batch_norm=True), []
    fit(model, split(27), recipe, torch.Generator(), after_epoch=lambda _: seen.append(model.norm.running_mean.clone()))
    found["batch norm"] = [*model.state_dict().values(), *seen]
    found["names"] = list(model.state_dict())
    found["refused"] = [refusal(split(20), 1), refusal(split(1), 8)]
    spoil = lambda images, labels: (images * (math.nan if number else 1), labels)  # noqa: E731
    found["diverged"] = refusal(split(8), 8, spoil, epochs=2)

    found["agreed"] = distributed.broadcast_from_main(lambda: number + 10)
    found["everyone's error"] = said(lambda: distributed.broadcast_from_main(lambda: fail("there is no file")))
    with distributed.single_process():
        found["alone"] = (distributed.world_size(), distributed.broadcast_from_main(lambda: number))
    order = folder / "order"
    distributed.main_process_first(lambda: note(order, number, folder))
    found["in turn"] = order.read_text()

    path = folder / "array.npy"
    array = create_array(path, (3,), np.dtype("<f4"))
    found["writes"] = array is not None
    if array is not None:
        array[:] = 7
    complete_array(path, array, {"kind": "x"})
    found["array"] = open_array(path, {"kind": "x"})[0].tolist()
    own = RunFolder(folder, 0)
    own.create()
    with own.lock("x"):
        (folder / f"working{number}").touch()
    distributed.broadcast_from_main(lambda: None)
    if number == 0:
        with distributed.single_process(), own.lock("y"):
            dist.barrier()
            dist.barrier()
    else:
        dist.barrier()
        with distributed.single_process():
            found["locked"] = said(lambda: own.lock("y").__enter__())
        dist.barrier()

    sys.argv, errors = ["vaal"], io.StringIO()
    with contextlib.redirect_stderr(errors):
        found["vaal"] = (guarded(argparse.ArgumentParser(), lambda _: 0), errors.getvalue())
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


def note(order, number, folder):
    """Files are written as by a loader of data: by whoever comes, without the others."""
    with open(order, "a") as file:
        file.write(str(number))
    if number == 0:
        save_array(folder / "loaded.npy", np.arange(3), {"kind": "loaded"})
    return open_array(folder / "loaded.npy", {"kind": "loaded"})


def refusal(data, batch_size, task=classify, epochs=1):
    recipe = Recipe(epochs, batch_size=batch_size, lr=0.05, momentum=0, weight_decay=0, schedule=StepDecay(2))
    return said(lambda: fit(net(), data, recipe, torch.Generator(), task))


def fail(text):
    raise UserError(text)


def said(act):
    try:
        act()
    except UserError as problem:
        return str(problem)
    return None


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What either of two processes found."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(in_a_group, (folder,), nprocs=2)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in (0, 1)]


def test_outside_training_two_find_to_the_bit_what_one_finds(both):
    wanted = measured()
    for found in both:
        for name, tensors in wanted.items():
            for a, b in zip(found["measured"][name], tensors, strict=True):
                assert a.dtype == b.dtype, name
                assert torch.equal(a, b), name


def test_training_is_that_of_the_whole_batch(both):
    for name, wanted in trained().items():
        for a, b, c in zip(both[0]["trained"][name], both[1]["trained"][name], wanted, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(a, c, atol=1e-5), name


def test_an_image_that_is_left_over_is_left_out(both):
    """The last batch of 33 by 8 has an image for one of two processes: neither takes a step."""
    recipe = Recipe(epochs=3, batch_size=8, lr=0.05, momentum=0.5, weight_decay=1e-3, schedule=StepDecay(2))
    model, data, draws = net(), split(33), torch.Generator().manual_seed(5)
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in (1, 2, 3):
        optimiser.param_groups[0]["lr"] = recipe.lr * recipe.schedule(epoch)
        for images, rows in data.batches(8, torch.randperm(33, generator=draws)[:32]):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images)[0], data.labels[rows]).backward()
            optimiser.step()
    for a, b, c in zip(*(found["left over"] for found in both), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)


def test_batch_norm_is_the_same_on_all(both):
    """27 by 8: the last batch of three is not enough for two variances."""
    assert both[0]["names"] == list(Net(batch_norm=True).state_dict())
    for a, b in zip(both[0]["batch norm"], both[1]["batch norm"], strict=True):
        assert torch.equal(a, b)
    steps = dict(zip(both[0]["names"], both[0]["batch norm"], strict=False))["norm.num_batches_tracked"]
    assert int(steps) == 2 * 3


def test_what_is_agreed(both):
    for number, found in enumerate(both):
        assert found["agreed"] == 10
        assert found["everyone's error"] == "there is no file"
        assert found["alone"] == (1, number)
        assert found["in turn"][0] == "0"
        assert found["writes"] == (number == 0)
        assert found["array"] == [7, 7, 7]
        assert "batch of 1 images is too small for 2" in found["refused"][0]
        assert "1 images are too few for 2 processes" in found["refused"][1]
        assert "diverged in epoch 1" in found["diverged"]  # also where the loss of that epoch was finite
        assert found["vaal"][0] == 2
        assert "start it without torchrun" in found["vaal"][1]
    assert "another process is working on y" in both[1]["locked"]


SCRIPT = [*SMALL, "-e", "8", "-smp", "4", "--run-stop", "1", "--iterations", "2"]
SCRIPT += ["--methods", "random", "Rzg_pz", "Rzg_fl", "varR"]


def started(*arguments):
    return start(command("mnist/run.py", *SCRIPT, *arguments, torchrun=2))


def run(*arguments, processes=2, status=0):
    return call_process(command("mnist/run.py", *SCRIPT, *arguments, torchrun=processes), status)


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """Initial models, made by two processes."""
    folder = tmp_path_factory.mktemp("initial") / "runs"
    done = run("--initial", "--save-folder", folder)
    assert done.stdout.count("rotation initial model made") == 1
    return folder


@pytest.fixture(scope="module")
def two(initial, tmp_path_factory):
    """Two iterations of three methods by two processes, uninterrupted."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    shutil.copytree(initial, folder)
    done = run("--save-folder", folder)
    assert done.stdout.count("Test accuracy in %") == 1
    return folder


def results(folder):
    return {(r["method"], r["b"]): r for r in records(folder / "run0")}


@pytest.fixture(scope="module")
def killed(initial, tmp_path_factory):
    """A rank died in the second training of random choice, and torchrun ended."""
    folder = tmp_path_factory.mktemp("killed") / "runs"
    shutil.copytree(initial, folder)
    process = started("--save-folder", folder)
    wait_for(folder, "query_*batch_1*random*.pt", process)
    os.kill(max(children(process)), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode
    assert list(folder.rglob("best*batch_0*random*"))
    assert not list(folder.rglob("best*batch_1*random*"))
    return folder


def test_one_goes_on_with_what_two_began_and_chooses_what_they_choose(killed, two, tmp_path):
    """From the same models to the image, uncertainty apart, whose networks are trained under other masks."""
    folder = tmp_path / "runs"
    shutil.copytree(killed, folder)
    run("--save-folder", folder, processes=0)
    ours, theirs = outcome(folder), outcome(two)
    assert ours.keys() == theirs.keys()
    lists = [name for name in ours if name.endswith(".npy") and ("batch_0" in name or "varR" not in name)]
    assert len(lists) == 7
    for name in lists:
        assert ours[name] == theirs[name], name
    ours, theirs = results(folder), results(two)
    for key in theirs:
        if key[0] != "varR":
            assert ours[key]["accuracy"] == pytest.approx(theirs[key]["accuracy"], abs=0.5), key
    sessions = json.loads((folder / "run0" / "manifest.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [2, 2, 1]


def test_killed_and_started_again(killed, two, tmp_path):
    """After a rank, torchrun itself dies in a training, and the ranks end. Then all is as if nothing had happened."""
    folder = tmp_path / "runs"
    shutil.copytree(killed, folder)
    process = started("--save-folder", folder)
    wait_for(folder, "query_*batch_0*varR*.pt", process)
    working = children(process)
    assert len(working) == 2
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in working), 20)
    run("--save-folder", folder)
    assert outcome(folder) == outcome(two)
    assert not list(folder.rglob("*.tmp"))
    assert not list((folder / "run0" / "descr").iterdir())


def test_a_bad_request_takes_one_line(two):
    done = run("--save-folder", two, "--jobs", 2, status=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("run.py:")]
    assert "leave it out" in line
