"""The stages in one process: a death between any two files, and what a run's pieces refuse."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.errors import UserError
from alfk.network import snapshot
from alfk.runs import RunFolder, Trial, save_checkpoint
from alfk.stages.drive import active_learning, make_initial_models
from alfk.stages.workspace import Workspace
from alfk.training import Evaluator
from mnist.config import DIGITS

TRIALS = [Trial(20, "Rzg_pz", 20)]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@pytest.fixture(scope="module")
def data():
    return DIGITS.load(None)


def workspace(data, root, **changes):
    short = dataclasses.replace(
        DIGITS,
        iterations=2,
        retraining=dataclasses.replace(DIGITS.retraining, epochs=1),
        pretraining=dataclasses.replace(DIGITS.pretraining, epochs=1),
        **changes,
    )
    folder = RunFolder(root, 0)
    folder.create()
    return Workspace(short, folder, *data, seed=0, device=torch.device("cpu"))


def everything(data, root, trial=TRIALS[0]):
    """All the work of a run; returns what must be reproduced."""
    work = workspace(data, root, samples=4)
    make_initial_models(work, [trial])
    active_learning(work, [trial])
    lists = [np.load(work.folder.index_list(trial, b, work.size(b))).tolist() for b in (0, 1)]
    scores = [(r["b"], r["accuracy"], r["accuracy_per_class"], r["misclassified"]) for r in work.folder.results()]
    _, fingerprint = work.models_before(trial, 2)
    return lists, scores, fingerprint


def test_death_between_any_two_files(data, tmp_path, monkeypatch):
    """Die just before and just after each renaming of a finished file; a second start must end the same way."""
    rename = Path.replace
    wanted = everything(data, tmp_path / "whole")
    deaths = 0
    for when in itertools.count():
        for after in (False, True):
            calls = itertools.count()

            def dying(path, target, calls=calls, when=when, after=after):
                number = next(calls)
                if number == when and not after:
                    raise Killed
                rename(path, target)
                if number == when:
                    raise Killed
                return target

            root = tmp_path / f"{when}{after}"
            monkeypatch.setattr(Path, "replace", dying)
            try:
                everything(data, root)
            except Killed:
                deaths += 1
            else:
                assert deaths >= 40
                return
            finally:
                monkeypatch.setattr(Path, "replace", rename)
            assert everything(data, root) == wanted


def test_an_ensemble_with_dropout_is_reproduced(data, tmp_path):
    """Also when it is resumed between the two iterations, whatever the global generator was at before."""
    trial = Trial(20, "varR", 0, ensemble=2)
    wanted = everything(data, tmp_path / "whole", trial)
    torch.manual_seed(123)
    again = workspace(data, tmp_path / "parts", samples=4)
    make_initial_models(again, [trial])
    again.experiment = dataclasses.replace(again.experiment, iterations=1)
    active_learning(again, [trial])
    assert everything(data, tmp_path / "parts", trial) == wanted
    models, _ = again.models_before(trial, 1)
    assert not torch.equal(models[0].fc1.weight, models[1].fc1.weight)
    record = again.folder.results()[0]  # after which `models` are
    evaluations = [Evaluator(again.test, 100)(model) for model in models]
    assert record["accuracy_members"] == [found.accuracy for found in evaluations]
    assert record["accuracy"] == pytest.approx(sum(record["accuracy_members"]) / 2)
    lone = everything(data, tmp_path / "lone", Trial(20, "varR", 0))
    assert lone[0] != wanted[0]
    assert lone[0][0] == wanted[0][0]  # the first query is the run's, drawn at random


def test_a_checkpoint_without_its_results_line(data, tmp_path):
    wanted = everything(data, tmp_path)
    (tmp_path / "run0" / "results.jsonl").unlink()
    assert everything(data, tmp_path) == wanted


def test_a_checkpoint_of_another_network(data, tmp_path):
    work = workspace(data, tmp_path)
    path = work.folder.initial(TRIALS[0].distortion, unsupervised=True)
    about = {"kind": "initial", "init": "rotation", "ir": 20, "nr": 0.0, "member": 0, **work.identity()}
    save_checkpoint(path, {"w": torch.zeros(2)}, about)
    with pytest.raises(UserError, match="of another network"):
        work.models_before(TRIALS[0], 0)


def test_a_rotation_model_gets_a_new_last_layer(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial_models(work, TRIALS)
    (model,), _ = work.models_before(TRIALS[0], 0)
    state = snapshot(model)
    saved = torch.load(work.folder.initial("ir_20_nr_0", True), weights_only=True)
    assert state["fc2.weight"].shape == (10, 50)
    assert saved["state"]["fc2.weight"].shape == (4, 50)
    assert torch.equal(state["fc1.weight"], saved["state"]["fc1.weight"])
    assert 0 < saved["about"]["rotation_accuracy"] <= 100
    (again,), _ = work.models_before(TRIALS[0], 0)
    assert torch.equal(snapshot(again)["fc2.weight"], state["fc2.weight"])
    (bare,), _ = work.models_before(dataclasses.replace(TRIALS[0], init="rotation_conv"), 0)
    kept = {name for name, value in snapshot(bare).items() if torch.equal(value, state[name])}
    assert kept == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc2.weight", "fc2.bias"}
    assert abs(float(bare.fc1.weight.detach().abs().max()) - 320**-0.5) < 1e-3  # fresh: uniform in +-1/sqrt(fan-in)


def test_initial_models_that_are_there_are_kept(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial_models(work, TRIALS)
    told = []
    work.report = lambda event, **info: told.append((event, info["init"], info["skipped"]))
    make_initial_models(work, TRIALS)
    assert told == [("initial", "random", True), ("initial", "rotation", True)]


def test_descriptor_files_are_kept_on_request(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial_models(work, TRIALS)
    active_learning(work, TRIALS, keep_descriptors=True)
    names = sorted(path.name for path in (tmp_path / "run0" / "descr").glob("*.npy"))
    assert [name.split("_")[0] for name in names] == ["pool", "pool", "validation", "validation"]
