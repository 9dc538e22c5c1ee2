"""What the flags mean: spellings of the methods, and which trials a configuration leaves."""

import argparse
import dataclasses

import pytest
import torch

from alfk.cli.options import device_of
from alfk.cli.trials import baselines_of, init_of, method_key, trials_of
from alfk.rivals import RIVALS
from alfk.support.errors import UserError
from imagenet.config import IMAGENET
from mnist.config import MNIST
from svhn.config import SVHN
from tests.helpers import refused

CFG = [(ir, m, n, 1) for ir in (1, 100) for m, n in (("random", 0), ("Rz", 20), ("Rzg_pz", 20), ("Rzg_pz", 80))]


def trials(ir=None, methods=None, lengths=None, sizes=None):
    options = argparse.Namespace(
        ir=ir,
        methods=methods,
        descr_length=lengths,
        ensemble=sizes,
        nr=0.0,
        unsupervised=1,
        conv_only=False,
        select="test",
        copies="degrees",
        first_batch=None,
        validation_size=None,
        add_validation=False,
    )
    return [(t.ir, t.method, t.length) for t in trials_of(CFG, MNIST, options)]


@pytest.mark.parametrize(
    ("sub", "aug", "key"),
    [
        ("none", "random", "random"),
        ("none", "topKandPcc", "Rz"),
        ("gradAbl", "topKandPccFprGrad", "Rzg_true"),
        ("grad", "topKandPccFprGrad", "Rzg_pred"),
        ("gradFmap", "topKandPccFprGrad", "Rzg_pz"),
        ("gradGmap", "topKandPccFprGrad", "Rzg_pzg"),
        ("gradFmap", None, "Rzg_pz"),
        ("Rzg_pz", None, "Rzg_pz"),
        ("random", None, "random"),
    ],
)
def test_the_releases_spellings(sub, aug, key):
    assert method_key(sub, aug) == key


@pytest.mark.parametrize(
    ("sub", "aug", "words"),
    [
        (None, None, "name a method"),
        ("none", "topKandPccFprGrad", "needs a -sub"),
        ("gradFmap", "topKandPcc", "does not go with"),
        ("gradFmap", "nonsense", "does not go with"),
        ("Rzg_px", None, "there is no method"),
    ],
)
def test_spellings_that_make_no_method(sub, aug, words):
    with pytest.raises(UserError, match=words):
        method_key(sub, aug)


def test_the_whole_configuration():
    assert trials() == [row[:3] for row in CFG]


def test_flags_narrow_it():
    assert trials(ir=[100]) == [row[:3] for row in CFG if row[0] == 100]
    assert trials(ir=[100], methods=["Rzg_pz"]) == [(100, "Rzg_pz", 20), (100, "Rzg_pz", 80)]
    assert trials(ir=[1], methods=["random", "Rzg_pz"], lengths=[80]) == [(1, "random", 0), (1, "Rzg_pz", 80)]
    assert trials(ir=[1], lengths=[20]) == [(1, "Rz", 20), (1, "Rzg_pz", 20)]


def test_flags_go_beyond_it():
    assert trials(ir=[50], methods=["Rz"]) == [(50, "Rz", 20)]
    assert trials(ir=[1], methods=["Rzg_pzg"]) == [(1, "Rzg_pzg", 80)]
    assert trials(ir=[1], methods=["Rz"], lengths=[20, 90]) == [(1, "Rz", 20), (1, "Rz", 90)]


def test_ensembles():
    cfg = [(1, "varR", 0, 1), (1, "Rz", 20, 1)]

    def rows(sizes=None, methods=None):
        options = argparse.Namespace(
            ir=None,
            methods=methods,
            descr_length=None,
            ensemble=sizes,
            nr=0.0,
            unsupervised=1,
            conv_only=False,
            select="test",
            copies="released",
            first_batch=None,
            validation_size=None,
            add_validation=False,
        )
        return [(t.method, t.ensemble) for t in trials_of(cfg, MNIST, options)]

    assert rows() == [("varR", 1), ("Rz", 1)]
    assert rows([1, 4]) == [("varR", 1), ("varR", 4), ("Rz", 1)]
    assert rows(methods=["varR"]) == [("varR", 1)]
    assert rows([4]) == [("varR", 4)]
    assert rows([4], ["varR"]) == [("varR", 4)]
    assert rows([2], ["varR"]) == [("varR", 2)]
    assert rows([1], ["BALD"]) == [("BALD", 1)]
    with pytest.raises(UserError, match="works with one model"):
        rows([2], ["Rz"])
    with pytest.raises(UserError, match="128 samples cannot be shared by 3"):
        rows([3], ["varR"])


def test_what_cannot_be():
    with pytest.raises(UserError, match="L=70; there are 10, 20, 30, 80, 90"):
        trials(methods=["Rz"], lengths=[70])
    with pytest.raises(UserError, match="L=70; there are"):
        trials(lengths=[70])
    with pytest.raises(UserError, match="name a method"):
        trials(lengths=[30])
    with pytest.raises(UserError, match="no method 'what'"):
        trials(methods=["what"])


def special(experiment=MNIST, cfg=CFG, methods=None, **flags):
    """Trials of one imbalance ratio: method, first batch, size of the validation set, whether it is trained on."""
    values = {
        **{"ir": [100], "methods": methods, "descr_length": [20] if methods is None else None, "ensemble": None},
        **{"nr": 0.0, "unsupervised": 1, "conv_only": False, "select": "test", "copies": "degrees"},
        **{"first_batch": None, "validation_size": None, "add_validation": False, "baseline": None, **flags},
    }
    options = argparse.Namespace(**values)
    found = trials_of(cfg, experiment, options)
    if options.baseline:
        found = baselines_of(found, options)
    return [(t.method, t.first_batch, t.validation_size, t.adds_validation) for t in found]


PLAIN, RIVAL_KEYS = (None, None, False), [rival.key for rival in RIVALS]


def test_rivals_are_named_together():
    assert special(methods=["rivals"]) == [(key, *PLAIN) for key in RIVAL_KEYS]
    assert special(methods=["random", "rivals", "badge"]) == [(key, *PLAIN) for key in ("random", *RIVAL_KEYS)]
    assert special(methods=["badge", "random"], ir=[1]) == [("random", *PLAIN), ("badge", *PLAIN)]


def test_epig_is_left_out_or_refused_where_there_are_many_classes():
    many = dataclasses.replace(IMAGENET, classes=1000)
    assert special(many, methods=["rivals"]) == [(key, *PLAIN) for key in RIVAL_KEYS if key != "epig"]
    with pytest.raises(UserError, match="epig cannot be computed for 1,000 classes, only for up to 500"):
        special(many, methods=["epig"])
    assert special(IMAGENET, methods=["epig"]) == [("epig", *PLAIN)]  # whose classes are counted later


def test_a_flag_counts_where_it_makes_a_difference():
    """A trial that it leaves as it is is the same one."""
    methods = ["random", "margin", "epig", "galaxy", "coreset", "flqmi", "Rz"]
    first = {key: first for key, first, _, _ in special(methods=methods, first_batch="random")}
    assert {key for key, value in first.items() if value} == {"coreset", "flqmi", "Rz"}
    sizes = {key: size for key, _, size, _ in special(methods=methods, validation_size=50)}
    assert {key for key, value in sizes.items() if value} == {"epig", "flqmi", "Rz"}
    for more in ({"select": "val"}, {"add_validation": True}):
        assert {size for _, _, size, _ in special(methods=methods, validation_size=50, **more)} == {50}
    assert {added for _, _, _, added in special(methods=methods, add_validation=True)} == {True}
    assert special() == [("Rz", *PLAIN), ("Rzg_pz", *PLAIN)]


def test_baselines():
    """Those of all trials of a figure are one."""
    assert special(baseline="pool") == special(baseline="pool", validation_size=50) == [("all_train", *PLAIN)]
    assert special(baseline="pool", first_batch="random") == [("all_train", *PLAIN)]
    added = special(baseline="pool", validation_size=50, add_validation=True)
    assert added == [("all_train", None, 50, True)]
    assert special(baseline="validation") == [("validation", *PLAIN)]
    assert special(baseline="validation", validation_size=50) == [("validation", None, 50, False)]
    for more in ({"add_validation": True}, {"select": "val"}):
        with pytest.raises(UserError, match="--baseline-validation is trained on the validation set alone"):
            special(baseline="validation", **more)


def test_validation_images_are_not_trained_on_and_chosen_by():
    with pytest.raises(
        UserError, match="--add-validation trains on the images by which --select val chooses the epoch"
    ):
        special(add_validation=True, select="val")


def test_initial_models():
    def init(unsupervised, conv_only, experiment=MNIST):
        return init_of(experiment, argparse.Namespace(unsupervised=unsupervised, conv_only=conv_only))

    assert [init(0, False), init(1, False), init(1, True)] == ["random", "rotation", "rotation_conv"]
    with pytest.raises(UserError, match="does not go with --unsupervised 0"):
        init(0, True)
    with pytest.raises(UserError, match="changes nothing on SVHN"):
        init(1, True, SVHN)
    with pytest.raises(UserError, match="changes nothing on ImageNet"):
        init(1, True, IMAGENET)  # whose classes are counted later


def device(gpu=None, name=None):
    return device_of(argparse.Namespace(gpu=gpu, device=name))


def test_devices():
    assert device(name="cpu") == torch.device("cpu")
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="no cuda:97"):
        device(gpu=97)
    for number in (128, 256):  # in the eight bits that torch has for it, -128 and 0
        with pytest.raises(UserError, match=f"no cuda:{number}"):
            device(gpu=number)


@pytest.mark.parametrize(
    "name",
    [
        *("toaster", "", "cuda:-1", "cuda:x", "cpu:-1", "cpu:256", "meta"),
        *(
            "mps",
            "xla",
            "hpu",
            "mtia",
            "vulkan",
            "lazy",
            "privateuseone",
            "opengl",
            "ideep",
        ),  # not a part of this torch
    ],
)
def test_a_device_holds_a_value_and_gives_it_back(name):
    with pytest.raises(UserError, match=f"no device '{name}'") as caught:
        device(name=name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


HUGE = "1" + "0" * 300


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("mnist/run.py", ["--run-start", HUGE], "(301 characters) is above the limit of 2147483647"),
        ("mnist/run.py", ["--run-stop", "2147483648"], "2147483648 is above the limit of 2147483647"),
        ("mnist/run.py", ["--batch-size", "1" + "0" * 30], "above the limit"),
        ("mnist/run.py", ["--seed", HUGE], "above the limit"),
        ("mnist/run.py", ["--seed", f"-{HUGE}"], "below the limit"),
        ("mnist/run.py", ["--jobs", "1001"], "above the limit of 1000"),
        ("mnist/run.py", ["-e", "9" * 5000], "(5000 characters) is not a whole number"),
        ("mnist/run.py", ["-e", "1.5"], "1.5 is not a whole number"),
        ("mnist/run.py", ["-e", "0"], "0 is not a positive number"),
        ("mnist/unsup.py", ["-r", "-1"], "-1 is negative"),
        ("mnist/unsup.py", ["--gpu", "-1"], "-1 is negative"),
        ("mnist/unsup.py", ["--gpu", HUGE], "above the limit"),
        ("mnist/unsup.py", ["-ir", "nan"], "at least 1, not nan"),
        ("mnist/unsup.py", ["-ir", "inf"], "at least 1, not inf"),
        ("mnist/unsup.py", ["-nr", "nan"], "in [0, 1), not nan"),
        ("mnist/unsup.py", ["--lr", "nan"], "above 0, not nan"),
        ("run_plot.py", ["--at", "nan"], "from 0 to 100 percent, not nan"),
        ("vaal/main.py", ["--train-iterations", "1" + "0" * 15], "above the limit of 1000000"),
        ("vaal/main.py", ["--adversary-param", "nan"], "not nan"),
        ("imagenet/run.py", ["--image-size", "4097"], "above the limit of 4096"),
        ("imagenet/run.py", [".", "--holdout-val", "nan"], "under 1, not nan"),
        ("imagenet/run.py", [".", "--conv-only"], "--conv-only changes nothing on"),
    ],
)
def test_absurd_numbers_end_at_once_in_one_line(script, arguments, words):
    refused(script, *arguments, words=words)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("mnist/unsup.py", ["--dataset", "DIGITS", "--device", "cpu", "--save-folder", "x" * 300]),
        ("mnist/run.py", ["--dataset", "DIGITS", "--device", "cpu", "--save-folder", "x" * 300]),
        ("mnist/unsup.py", ["--device", "cpu", "--datadir", "x" * 300]),
        ("svhn/unsup.py", ["--device", "cpu", "--datadir", "x" * 300]),
        ("run_plot.py", ["--datadir", "x" * 300, "--out", "figures"]),
        ("run_plot.py", ["--out", "x" * 300]),
        ("run_plot.py", ["--dataset", "x" * 300, "--out", "figures"]),
        ("run_plot.py", ["--into", "x" * 300, "--out", "figures"]),
        ("imagenet/unsup.py", ["x" * 300, "--device", "cpu", "--datadir", "."]),
        ("mnist/visualize_tsne.py", ["--out", "x" * 300]),
    ],
)
def test_names_that_are_too_long_end_in_one_line(tmp_path, monkeypatch, script, arguments):
    monkeypatch.chdir(tmp_path)
    refused(script, *arguments, words="x" * 300)
