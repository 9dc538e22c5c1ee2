"""Command lines of run.py and the trials that they mean: a table, which is also the documentation of the rule."""

import dataclasses
import itertools

import pytest

from alfk.cli.options import experiment_of, run_parser
from alfk.cli.trials import baselines_of, method_key, trials_of
from alfk.experiment.trial import Trial
from alfk.rivals import RIVALS
from imagenet.config import IMAGENET
from imagenet.run import cfg as imagenet_rows
from mnist.config import DIGITS, MNIST
from mnist.run import cfg as mnist_rows
from mnist.run import cfg_small
from svhn.config import SVHN
from svhn.run import cfg as svhn_rows
from tests.helpers import refuses

FEW = [(ir, m, n, 1) for ir in (1, 100) for m, n in (("random", 0), ("varR", 0), ("Rz", 20), ("Rzg_pz", 20))]
FEW += [(100, "Rzg_pz", 80, 1)]  # at ir=100 alone
EXPERIMENTS = {
    "MNIST": MNIST,
    "SVHN": SVHN,
    "ImageNet": dataclasses.replace(IMAGENET, flags=None),  # without a folder of images
    "1,000 classes": dataclasses.replace(IMAGENET, flags=None, classes=1000),
    "photos": dataclasses.replace(IMAGENET, flags=None, name="photos", own_images=True, default_ir=1),
}


def rivals(length: int, without: str = "") -> str:
    """All rivals but one, as `shown` has them."""
    keys = [rival.key for rival in RIVALS if rival.key != without]
    return ", ".join(f"{key} L{length}" if key.startswith("R") else key for key in keys)


def trials(line: str, name: str = "MNIST", cfg=FEW) -> list[Trial]:
    """The trials of run.py with this command line."""
    options = run_parser({name: EXPERIMENTS[name]}, "").parse_args(line.split())
    found = trials_of(cfg, experiment_of(EXPERIMENTS, options), options)
    return baselines_of(found, options) if options.baseline else found


def shown(found: list[Trial]) -> str:
    """Trials as a line of text, e.g. "1: random, Rz L20; 100: random"."""
    groups = itertools.groupby(found, lambda trial: trial.ir)
    return "; ".join(f"{ir:g}: {', '.join(trial.short() for trial in group)}" for ir, group in groups)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "1: random, varR, Rz L20, Rzg_pz L20; 100: random, varR, Rz L20, Rzg_pz L20, Rzg_pz L80"),
        # -ir: the rows of a ratio, or of all ratios if it has none
        ("-ir 1", "1: random, varR, Rz L20, Rzg_pz L20"),
        ("-ir 100 1 --methods random", "100: random; 1: random"),
        ("-ir 50", "50: random, varR, Rz L20, Rzg_pz L20, Rzg_pz L80"),
        # --methods: the rows of these methods, and one with the default length for a method without a row
        ("-ir 100 --methods Rzg_pz", "100: Rzg_pz L20, Rzg_pz L80"),
        ("-ir 1 --methods Rzg_pzg", "1: Rzg_pzg L80"),
        ("-ir 1 --methods badge random", "1: random, badge"),
        ("-ir 1 --methods gradFmap random random", "1: random, Rzg_pz L20"),
        # -dl: the rows with these lengths; with --methods a row for each of them
        ("-dl 20", "1: Rz L20, Rzg_pz L20; 100: Rz L20, Rzg_pz L20"),
        ("-dl 80", "100: Rzg_pz L80"),
        ("-ir 1 --methods Rz -dl 20 90", "1: Rz L20, Rz L90"),
        ("-ir 1 --methods random Rzg_pz -dl 80", "1: random, Rzg_pz L80"),
        # -ens: the sizes of uncertainty methods; other methods if 1 is among them
        ("-ir 1 -ens 1 4", "1: random, varR, varR E4, Rz L20, Rzg_pz L20"),
        ("-ir 1 -ens 4", "1: varR E4"),
        ("-ir 1 -ens 1 4 --methods varR random BALD", "1: random, varR, varR E4, BALD, BALD E4"),
        ("-ir 1 -ens 1 --methods Rz", "1: Rz L20"),
        ("-ir 1 -ens 2 --methods varR", "1: varR E2"),
        ("-ir 1 -ens 4 -dl 20 --methods varR", "1: varR E4"),
        # rivals: all that the ratio allows
        ("-ir 100 --methods random rivals badge", f"100: random, {rivals(80)}"),
        ("-ir 1 --methods rivals", f"1: {rivals(80, 'flqmi_rare')}"),
        # variants, of the methods to which they make a difference
        ("-ir 1 --methods Rz Rzg_mi -dl 20 --copies degrees", "1: Rz L20, Rzg_mi L20 copies by degrees"),
        ("-ir 1 --methods random margin Rz --first-batch random", "1: random, Rz L20 first random, margin"),
        ("-ir 1 --methods coreset flqmi --first-batch random", "1: coreset first random, flqmi first random"),
        ("-ir 1 --methods random epig galaxy Rz --validation-size 50", "1: random, Rz L20 V50, epig V50, galaxy"),
        ("-ir 1 --methods random --validation-size 50 --select val", "1: random V50"),
        ("-ir 1 --methods random --validation-size 50 --add-validation", "1: random V50 + validation"),
        # baselines: one for each figure
        ("--baseline", "1: all_train; 100: all_train"),
        ("-ir 1 --baseline --validation-size 50 --first-batch random", "1: all_train"),
        ("-ir 1 --baseline --validation-size 50 --add-validation", "1: all_train V50 + validation"),
        ("-ir 1 --baseline-validation --validation-size 50", "1: validation V50"),
    ],
)
def test_trials_of_a_command_line(line, expected):
    assert shown(trials(line)) == expected


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("photos", "", "1: random, varR, Rz L768, Rzg_true L768, Rzg_pred L768, Rzg_pz L768"),
        ("photos", "-ir 10 --methods random Rzg_pz", "10: random, Rzg_pz L768"),
        ("photos", "--methods random Rzg_pz -dl 512 768", "1: random, Rzg_pz L512, Rzg_pz L768"),
        ("photos", "-dl 512", "1: Rz L512, Rzg_true L512, Rzg_pred L512, Rzg_pz L512"),
        ("photos", "--methods flqmi_rare", "1: flqmi_rare"),  # a user's own images may be unbalanced as they are
        ("ImageNet", "-ir 1 --methods epig", "1: epig"),  # the number of classes is not known yet
        ("1,000 classes", "-ir 9 --methods rivals", f"9: {rivals(768, 'epig')}"),
    ],
)
def test_trials_of_other_data_sets(name, line, expected):
    assert shown(trials(line, name, imagenet_rows)) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--methods what", "no method 'what'"),
        ("--methods Rz -dl 70", "L=70; there are 10, 20, 30, 80, 90"),
        ("-dl 70", "L=70; there are"),
        ("-dl 30", "name a method"),
        ("-ens 2 --methods Rz varR", "Rz works with one model, not with an ensemble of 2"),
        ("-ens 3 --methods varR", "128 samples cannot be shared by 3"),
        ("-ir 1 --methods flqmi_rare", "which classes are rare, and at -ir 1 none is"),
        ("--add-validation --select val", "--add-validation trains on the images by which --select val chooses"),
        ("--baseline-validation --add-validation", "--baseline-validation is trained on the validation set alone"),
        ("--baseline-validation --select val", "--baseline-validation is trained on the validation set alone"),
        ("--conv-only --unsupervised 0", "does not go with --unsupervised 0"),
    ],
)
def test_command_lines_without_trials(line, words):
    refuses(lambda: trials(line), words)


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("1,000 classes", "--methods epig", "epig cannot be computed for 1,000 classes, only for up to 500"),
        ("SVHN", "--conv-only --methods random", "changes nothing on SVHN"),
        ("ImageNet", "--conv-only --methods random", "changes nothing on ImageNet"),
    ],
)
def test_what_a_data_set_does_not_allow(name, line, words):
    refuses(lambda: trials(line, name), words)


def test_initial_models():
    for line, init in (("--unsupervised 0", "random"), ("", "rotation"), ("--conv-only", "rotation_conv")):
        assert {trial.init for trial in trials(line)} == {init}


def test_rows_of_the_scripts_are_possible_trials():
    """With single models, so that a bare --initial makes all that are needed."""
    parser = run_parser({"MNIST": MNIST}, "")
    pairs = [(MNIST, mnist_rows), (DIGITS, cfg_small), (SVHN, svhn_rows), (EXPERIMENTS["ImageNet"], imagenet_rows)]
    for experiment, rows in pairs:
        found = trials_of(rows, experiment, parser.parse_args(["--select", "test"]))
        assert [(t.ir, t.method, t.length, t.ensemble) for t in found] == rows
        assert {trial.ensemble for trial in found} == {1}
    assert (100, "Rzg_true", 80, 1) in mnist_rows  # visualize_tsne.py shows it


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
def test_the_releases_names_of_methods(sub, aug, key):
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
def test_names_that_are_no_method(sub, aug, words):
    refuses(lambda: method_key(sub, aug), words)
