"""Acquisition: pseudo-labels against examples/paper.py, `alfk.select` in a loop, a method of one's own, examples."""

import ast
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from alfk import select
from alfk.data.split import Split
from alfk.experiment.loop import STAGES, active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS, Sampling, acquire, measure
from alfk.method.descriptors import descriptors_of
from alfk.method.registry import Method, Situation, register
from alfk.method.selection import Selection, top_scoring
from alfk.support.errors import UserError
from examples import own_loop, paper
from mnist.config import DIGITS
from tests.helpers import ROOT, call, workspace

CLASSES = 4


class Own(nn.Module):
    """A user's own network: two taps, dropout and batch norm included."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6 * 36, CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        x = torch.relu(self.norm(self.conv(images)))
        logits = self.fc(self.dropout(x.flatten(1)))
        return logits, [x, logits]


@pytest.fixture
def problem():
    """(model, pool, validation) of random images."""
    torch.manual_seed(0)
    model = Own()
    splits = []
    for count in (90, 40):
        images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        splits.append(Split(images, torch.randint(0, CLASSES, (count,)), (0.5,), (0.3,)))
    return model, *splits


def measured(key, model, pool, validation, **options):
    return measure(METHODS[key], [model], pool, validation, Sampling(torch.Generator(), samples=4), **options)


def images_of(split):
    return next(split.batches(len(split)))[0]


# The labels of Fisher scores


def test_pz_is_the_label_of_the_nearest_validation_image(problem):
    model, pool, validation = problem
    found = measured("Rzg_pz", *problem, batch_size=32)
    model.eval()
    z_pool, z_validation = (paper.z(model, images_of(split)) for split in (pool, validation))
    labels = paper.nearest_labels(paper.similarity(z_pool, z_validation), validation.labels)
    assert torch.equal(found.pool.pseudo_labels, labels)
    assert torch.equal(found.validation.pseudo_labels, validation.labels)
    scales = [*z_pool, *paper.g(model, images_of(pool), labels)]
    assert torch.allclose(found.pool.vectors, torch.cat([paper.standardise(s) for s in scales], 1), atol=1e-4)


def test_pzg_compares_gradients_of_the_predictions(problem):
    model, pool, validation = problem
    found = measured("Rzg_pzg", *problem, batch_size=32)
    z_and_g = []
    for split in (pool, validation):
        images = images_of(split)
        z_and_g.append(paper.z(model.eval(), images) + paper.g(model, images, model(images)[0].argmax(1)))
    labels = paper.nearest_labels(paper.similarity(*z_and_g), validation.labels)
    assert torch.equal(found.pool.pseudo_labels, labels)
    assert torch.equal(found.validation.pseudo_labels, validation.labels)


def test_pred_and_true_take_their_labels_on_both_sides(problem):
    predicted, true = measured("Rzg_pred", *problem), measured("Rzg_true", *problem)
    for side, split in (("pool", problem[1]), ("validation", problem[2])):
        assert torch.equal(getattr(predicted, side).pseudo_labels, getattr(predicted, side).predictions)
        assert torch.equal(getattr(true, side).pseudo_labels, split.labels)


def test_one_tap_alone(problem):
    model, pool, _ = problem
    found = measured("Rz", *problem, taps=(1,))
    assert torch.allclose(found.pool.vectors, paper.standardise(paper.z(model.eval(), images_of(pool))[1]), atol=1e-5)


# A query


def more(pool):
    """The further arguments of methods that know more."""
    return {"annotate": lambda positions: pool.labels[positions], "rare_classes": (0, 3)}


@pytest.mark.parametrize("key", METHODS)
def test_select_in_a_loop_of_ones_own(problem, key):
    options = {"samples": 8, **more(problem[1])}
    first = select(key, *problem, n=12, labelled=[], **options)
    second = select(key, *problem, n=12, labelled=first, **options)
    assert torch.equal(second, select(key, *problem, n=12, labelled=first, generator=0, **options))
    labelled = torch.cat([first, second])
    rest = select(key, *problem, n=66, labelled=labelled, **options)
    assert len(torch.cat([labelled, rest]).unique()) == 90
    assert problem[0].training


def test_uncertainty_methods_begin_at_random(problem):
    assert select("varR", *problem, n=5).tolist() == select("random", *problem, n=5).tolist()


def test_a_pool_without_labels(problem):
    model, pool, validation = problem
    unlabelled = Split(pool.images, None, pool.mean, pool.std)
    assert select("Rzg_pz", model, unlabelled, validation, n=7).tolist() == select("Rzg_pz", *problem, n=7).tolist()
    with pytest.raises(UserError, match="oracle"):
        select("Rzg_true", model, unlabelled, validation, n=7)


def test_bad_requests(problem):
    with pytest.raises(UserError, match="no method 'Rzg_px'"):
        select("Rzg_px", *problem, n=3)
    for n in (0, 91):
        with pytest.raises(UserError, match=f"query size is {n}"):
            select("Rz", *problem, n=n)
    with pytest.raises(UserError, match="4 pool images are unlabelled"):
        acquire(METHODS["random"], Situation(torch.arange(90) >= 86, 5, torch.Generator()))


def test_a_perfect_model_leads_to_random_choices(problem):
    model, pool, validation = problem
    sure = Split(validation.images, descriptors_of(model, validation).predictions, validation.mean, validation.std)
    found = measured("Rz", model, pool, sure)
    chosen = acquire(
        METHODS["Rz"], Situation(torch.ones(90, dtype=torch.bool), 6, torch.Generator(), found, sure.labels)
    )
    assert (chosen.misclassified, chosen.at_random) == (0, 6)


def test_every_method_has_a_notation_of_its_own():
    assert len({method.notation for method in METHODS.values()}) == len(METHODS)


def test_the_highest_scores_are_taken_and_ties_at_random():
    scores = torch.tensor([0.5, 0.9, 0.1, 0.5, 0.7, 0.5])
    available = torch.tensor([True, True, True, True, False, True])
    seen = set()
    for seed in range(20):
        first, second = top_scoring(scores, available, 2, torch.Generator().manual_seed(seed)).tolist()
        assert first == 1
        seen.add(second)
    assert seen == {0, 3, 5}
    assert set(top_scoring(scores, available, 5, torch.Generator()).tolist()) == {0, 1, 2, 3, 5}


def test_an_ensemble_is_for_uncertainty_alone(problem):
    model, pool, validation = problem
    assert select("BALD", [model, Own()], pool, validation, 3, labelled=torch.tensor([0]), samples=8).shape == (3,)
    with pytest.raises(UserError, match="not an ensemble of 2"):
        select("Rz", [model, Own()], pool, validation, 3)


P, V, K = 90, 40, 4  # images of pool and validation set, and samples
BOTH = P + V
PASSES = {  # method -> images forward, images backward
    "random": (0, 0),
    **dict.fromkeys(("varR", "entropy", "BALD", "std"), (K * P, 0)),
    **dict.fromkeys(("Rz", "Rz_fl", "Rz_rc"), (BOTH, 0)),
    **dict.fromkeys(("Rzg_true", "Rzg_pred", "Rzg_pz", "Rzg_fl", "Rzg_flw", "Rzg_rc"), (BOTH, BOTH)),
    # two for every copy: J^T v, and the derivative of its product with z
    "Rzg_trace": (BOTH + K * BOTH, BOTH + 2 * K * BOTH),
    # one for every copy and class
    **dict.fromkeys(("Rzg_mi", "Rzg_mi_diag"), (BOTH + K * BOTH, BOTH + CLASSES * K * BOTH)),
    # the validation set once more, g for its predictions; the pool's g for the predictions and for the labels
    "Rzg_pzg": (BOTH + V, BOTH + V + P),
    **dict.fromkeys(("margin", "leastconf", "entropy_det", "galaxy", "badge", "coreset", "typiclust"), (P, 0)),
    "direct": (P, 0),
    **dict.fromkeys(("galaxy_v", "glister", "flqmi", "flqmi_z", "flqmi_rare"), (BOTH, 0)),
    "epig": (K * (BOTH + 1), 0),  # one image more, for the number of classes
}


@pytest.mark.parametrize("key", METHODS)
def test_passes_are_counted(problem, key):
    """Exact numbers, for forward passes those that the network itself sees."""
    seen = []
    problem[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = measured(key, *problem, batch_size=32)
    assert (found.forward, found.backward) == PASSES[key]
    assert sum(seen) == found.forward


# A method of one's own, from one declaration


def smallest_margin(situation):
    top = situation.measurement.logits.softmax(1).topk(2).values
    return Selection(top_scoring(top[:, 1] - top[:, 0], situation.available, situation.n, situation.generator))


@pytest.fixture
def margin():
    """A registered method, for as long as a test runs."""
    method = register(Method("margin_test", "margin", choose=smallest_margin, inputs=frozenset({"logits"})))
    yield method
    METHODS.pop(method.key, None)


def test_a_method_of_ones_own_in_the_whole_loop(margin, tmp_path):
    """Its database has the current model's logits and is deleted; its images are those of the smallest margin. A
    finished run stays as it is, and run_plot.py reads it without the module that registers the method.
    """
    short = {name: dataclasses.replace(getattr(DIGITS, name), epochs=2) for name in ("retraining", "pretraining")}
    work = workspace(dataclasses.replace(DIGITS, iterations=2, **short), tmp_path, *DIGITS.load(None))
    trial, before = Trial(20, margin.key, 0), []
    make_initial_models(work, trial.ir, trial.nr)

    def checked_choose(current):
        (model,), _ = current.starting_models()
        with torch.no_grad():
            logits = model.eval()(images_of(current.pool))[0]
        assert np.allclose(np.load(current.database("logits")), logits, atol=1e-4)
        first, second = logits.softmax(1).topk(2).values.T
        order = [i for i in (first - second).argsort(stable=True).tolist() if i not in before]
        acquired = STAGES.choose(current)
        assert set(acquired.selection.indices.tolist()) == set(order[:15])
        before.extend(order[:15])
        return acquired

    for _ in range(2):
        active_learning(work, [trial], STAGES._replace(choose=checked_choose))
        assert len(before) == 30
    assert not list((tmp_path / "run0" / "descr").iterdir())
    for record in work.folder.results():
        assert (record["method"], record["misclassified"]) == (margin.key, None)
        assert record["passes"]["backward"] == 0 < record["passes"]["forward"]
    del METHODS[margin.key]
    drawn = call("run_plot.py", "--save-folder", tmp_path, "--out", tmp_path, "--methods", margin.key)
    assert drawn.stderr == ""
    assert margin.key in drawn.stdout


def test_a_key_is_taken_once(margin):
    with pytest.raises(ValueError, match="margin_test"):
        register(margin)
    with pytest.raises(ValueError, match="unknown inputs: logit"):
        Method("other", "other", smallest_margin, frozenset({"logit"}))


def test_labels_inside_the_query(problem):
    """A method that asks the annotator for one label before it chooses the others."""
    asked = []

    def first_ones(situation):
        chosen = situation.available.nonzero().flatten()[: situation.n]
        asked.append(situation.annotate(chosen[:1]).tolist())
        return Selection(chosen)

    method = register(Method("asking_test", "asking", first_ones, frozenset({"annotation"})))
    try:
        found = select(method.key, *problem, 4, labelled=torch.arange(3), **more(problem[1]))
    finally:
        del METHODS[method.key]
    assert found.tolist() == [3, 4, 5, 6]
    assert asked == [[int(problem[1].labels[3])]]
    assert not method.needs_passes


# The examples


def test_the_example_of_a_loop_of_ones_own(capsys, monkeypatch):
    monkeypatch.setattr(own_loop, "QUERIES", 2)
    own_loop.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[m, str(n)] for m in ("random", "Rzg_pz") for n in (15, 30)]
    assert all(float(line.split("%")[0].split()[-1]) > 15 for line in lines)


def test_the_example_of_the_paper(capsys, monkeypatch):
    """It imports nothing of alfk and prints its table (here of one short run)."""
    tree = ast.parse((ROOT / "examples" / "paper.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"copy", "sklearn", "torch"}
    for name, value in (("RUNS", 1), ("ITERATIONS", 2), ("EPOCHS", 20)):
        monkeypatch.setattr(paper, name, value)
    paper.main()
    labels, *rows, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert labels == ["labels", "15", "30"]
    assert [row[0] for row in rows] == ["random", "R_{z,g}"]
    assert all(10 < float(value) < 100 for row in rows for value in row[1:])
