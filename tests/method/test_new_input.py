"""An input of one's own: one object, which `alfk.query` computes, and which the scripts write, read and delete."""

import dataclasses

import numpy as np
import pytest
import torch

import alfk
from alfk.experiment.describe import databases, describe, read_databases
from alfk.experiment.loop import STAGES, active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import Round
from alfk.experiment.trial import Trial
from alfk.method.inputs import FILES, INPUTS, File, Input, Measurement, register_input
from alfk.method.registry import METHODS, Method, register, take_top
from alfk.support.files import open_array
from mnist.config import DIGITS
from tests.helpers import random_problem, workspace

SHORT = {name: dataclasses.replace(getattr(DIGITS, name), epochs=1) for name in ("retraining", "pretraining")}


def brightness(task):
    """Of pool images, and in a structured file the same of validation images with their positions."""
    pool, validation = (
        torch.cat([images.flatten(1).mean(1) for images, _ in split.batches(task.batch_size)])
        for split in (task.pool, task.validation)
    )
    fields = [("position", "<i8"), ("value", task.storage.floats if task.storage else "<f4")]
    array = task.storage.create("bright_validation", len(validation), fields) if task.storage else None
    array = np.zeros(len(validation), fields) if array is None else array
    array["position"], array["value"] = np.arange(len(validation)), validation.numpy()
    return {"brightness": pool, "bright_validation": load_table(array, None)}


def load_table(array, device):
    return {name: torch.from_numpy(np.array(array[name])) for name in array.dtype.names}


def brightest(situation):
    above = situation.measurement.brightness - situation.measurement.bright_validation["value"].float().mean()
    return take_top(above, situation)


@pytest.fixture
def method():
    """A registered method with a registered input, for as long as a test runs."""
    files = File("brightness", "mean of the pixels"), File("bright_validation", "the same", "table", load_table)
    register_input(Input("brightness", "the mean of an image's pixels", brightness, files, validation="images"))
    yield register(Method("brightest", "brightest", brightest, frozenset({"brightness"})))
    del METHODS["brightest"], INPUTS["brightness"], FILES["brightness"], FILES["bright_validation"]


def test_it_is_computed_in_a_query(method):
    model, pool, validation = random_problem()
    found = alfk.query("brightest", model, pool, validation, 7, labelled=[3])
    means = pool.images.float().mean((1, 2, 3))
    means[3] = -1
    assert found.indices.tolist() == means.argsort(descending=True)[:7].tolist()
    assert (method.needs_passes, method.needs_validation, method.needs_validation_labels) == (True, True, False)


def test_it_is_written_read_and_deleted_in_a_run(method, tmp_path):
    experiment = dataclasses.replace(DIGITS, iterations=2, descriptor_dtype="float16", **SHORT)
    work = workspace(experiment, tmp_path, *DIGITS.load(None))
    trial, read = Trial(20, "brightest", 0), []
    make_initial_models(work, trial.ir, trial.nr)

    def choose(current):
        describe(current)  # does nothing, since the files are there
        assert databases(current) == ("brightness", "bright_validation")
        array, header = open_array(current.database("bright_validation"), {"kind": "table", "fields": "the same"})
        assert (array.dtype["value"], header["b"]) == (np.float16, current.b)
        read.append(read_databases(current)[0])
        return STAGES.choose(current)

    active_learning(work, [trial], STAGES._replace(choose=choose))
    last = Round(work, trial, 1)
    pool, validation = last.pool, last.validation
    wanted = torch.cat([images.flatten(1).mean(1) for images, _ in pool.batches(1000)])
    for measurement in read:
        assert torch.equal(measurement.brightness, wanted)
        assert measurement.bright_validation["position"].tolist() == list(range(len(validation)))
    assert set(last.acquired().queried.tolist()) == set(wanted.argsort(descending=True, stable=True)[:30].tolist())
    assert not list((tmp_path / "run0" / "descr").iterdir())


def test_names_are_taken_once_and_known(method):
    with pytest.raises(ValueError, match="there is an input 'brightness' already"):
        register_input(INPUTS["brightness"])
    with pytest.raises(ValueError, match="or one with a file of the same name"):
        register_input(Input("other", "", brightness, (File("logits", "other logits"),)))
    with pytest.raises(ValueError, match="no input has a file logit"):
        Measurement(logit=torch.zeros(3))
    measurement = Measurement(brightness=torch.zeros(3))
    assert (measurement.logits, measurement.pool, measurement.forward) == (None, None, 0)
    with pytest.raises(AttributeError, match="a measurement has no 'logit'"):
        _ = measurement.logit
