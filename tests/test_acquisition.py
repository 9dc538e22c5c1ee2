"""Pseudo-labels and acquisition: against loops, and as a library in somebody else's loop; a method of one's own."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from alfk.data.split import Split
from alfk.experiment.loop import STAGES, active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import Round
from alfk.experiment.trial import Trial
from alfk.method import acquisition
from alfk.method.acquisition import METHODS, Sampling, choose, measure, select
from alfk.method.descriptors import ForwardPass, describe, standardise
from alfk.method.registry import Method, Situation, register
from alfk.method.selection import Selection, top_scoring
from alfk.support.errors import UserError
from mnist.config import DIGITS
from tests.helpers import ROOT, SMALL, call, workspace

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


def rows(model, split, labels=None):
    """[z] or [z, g] of every image, one image at a time."""
    out = []
    for i in range(len(split)):
        images, positions = next(split.batches(1, torch.tensor([i])))
        probe = ForwardPass(model.eval(), images, positions, None, grad=True)
        out.append(torch.cat([probe.z] + ([probe.g(labels[i : i + 1])] if labels is not None else []), 1)[0])
    return torch.stack(out)


def test_pz_is_the_label_of_the_nearest_validation_image(problem):
    model, pool, validation = problem
    z_pool, z_validation = rows(model, pool), rows(model, validation)
    nearest = [max(range(40), key=lambda v, z=z: float(z @ z_validation[v])) for z in z_pool]
    found = measured("Rzg_pz", model, pool, validation, batch_size=32)
    assert torch.equal(found.pool.pseudo_labels, validation.labels[nearest])
    assert torch.equal(found.validation.pseudo_labels, validation.labels)
    assert torch.allclose(found.pool.vectors, rows(model, pool, validation.labels[nearest]), atol=1e-4)


def test_pzg_compares_gradients_of_the_predictions(problem):
    model, pool, validation = problem
    said_pool, said = (describe(model, split).predictions for split in (pool, validation))
    both_pool, both = rows(model, pool, said_pool), rows(model, validation, said)
    nearest = [max(range(40), key=lambda v, r=r: float(r @ both[v])) for r in both_pool]
    found = measured("Rzg_pzg", model, pool, validation, batch_size=32)
    assert torch.equal(found.pool.pseudo_labels, validation.labels[nearest])
    assert torch.equal(found.validation.pseudo_labels, validation.labels)


def test_pred_takes_the_arg_max_on_both_sides(problem):
    found = measured("Rzg_pred", *problem)
    for side in (found.pool, found.validation):
        assert torch.equal(side.pseudo_labels, side.predictions)


def test_true_takes_the_labels_on_both_sides(problem):
    model, pool, validation = problem
    found = measured("Rzg_true", model, pool, validation)
    assert torch.equal(found.pool.pseudo_labels, pool.labels)
    assert torch.equal(found.validation.pseudo_labels, validation.labels)


def test_the_pool_goes_through_the_network_once(problem):
    model, pool, validation = problem
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    measured("Rzg_pz", model, pool, validation, batch_size=30)
    assert sum(seen) == len(pool) + len(validation)


def told(pool):
    """What `query` needs besides for the methods that know more."""
    return {"annotate": lambda positions: pool.labels[positions], "rare_classes": (0, 3)}


@pytest.mark.parametrize("key", METHODS)
def test_select_in_a_loop_of_ones_own(problem, key):
    model, pool, validation = problem
    labelled = torch.empty(0, dtype=torch.int64)
    options = {"samples": 8, **told(pool)}
    for _ in range(3):
        chosen = select(key, model, pool, validation, n=12, labelled=labelled, **options)
        assert chosen.shape == (12,)
        labelled = torch.cat([labelled, chosen])
    assert len(labelled.unique()) == 36
    assert model.training
    assert select(key, model, pool, validation, n=54, labelled=labelled, **options).unique().numel() == 54


@pytest.mark.parametrize("key", METHODS)
def test_equal_generators_give_equal_choices(problem, key):
    def chosen(seed):
        generator, labelled = torch.Generator().manual_seed(seed), torch.tensor([4, 2])
        options = {"generator": generator, "samples": 8, **told(problem[1])}
        return select(key, *problem, n=5, labelled=labelled, **options).tolist()

    assert chosen(1) == chosen(1)


def test_one_tap_alone(problem):
    model, pool, validation = problem
    assert select("Rzg_pz", model, pool, validation, n=3, taps=(1,)).shape == (3,)
    found = measured("Rz", model, pool, validation, taps=(1,))
    logits = torch.cat([model.eval()(images)[0].detach() for images, _ in pool.batches(90)])
    assert torch.allclose(found.pool.vectors, standardise([logits]), atol=1e-5)


def test_a_pool_without_labels(problem):
    model, pool, validation = problem
    unlabelled = Split(pool.images, None, pool.mean, pool.std)
    assert select("Rzg_pz", model, unlabelled, validation, n=7).tolist() == select("Rzg_pz", *problem, n=7).tolist()
    with pytest.raises(UserError, match="oracle"):
        select("Rzg_true", model, unlabelled, validation, n=7)


def test_bad_requests(problem):
    model, pool, validation = problem
    with pytest.raises(UserError, match="no method 'Rzg_px'"):
        select("Rzg_px", model, pool, validation, n=3)
    for n in (0, 91):
        with pytest.raises(UserError, match=f"query size is {n}"):
            select("Rz", model, pool, validation, n=n)
    with pytest.raises(UserError, match="4 pool images are unlabelled"):
        choose(METHODS["random"], Situation(torch.arange(90) >= 86, 5, torch.Generator()))


def test_a_perfect_model_leads_to_random_choices(problem):
    model, pool, validation = problem
    sure = Split(validation.images, describe(model, validation).predictions, validation.mean, validation.std)
    available = torch.ones(len(pool), dtype=torch.bool)
    found = measured("Rz", model, pool, sure)
    chosen = choose(METHODS["Rz"], Situation(available, 6, torch.Generator(), found, sure.labels))
    assert (chosen.misclassified, chosen.at_random) == (0, 6)


def test_every_method_has_a_notation_of_its_own():
    assert len({method.notation for method in acquisition.METHODS.values()}) == len(METHODS)


def test_the_most_uncertain_are_taken_and_equals_at_random():
    scores = torch.tensor([0.5, 0.9, 0.1, 0.5, 0.7, 0.5])
    available = torch.tensor([True, True, True, True, False, True])
    seen = set()
    for seed in range(20):
        chosen = top_scoring(scores, available, 2, torch.Generator().manual_seed(seed)).tolist()
        assert chosen[0] == 1
        seen.add(chosen[1])
    assert seen == {0, 3, 5}
    assert set(top_scoring(scores, available, 5, torch.Generator()).tolist()) == {0, 1, 2, 3, 5}


def test_methods_that_doubt_begin_at_random(problem):
    first = select("varR", *problem, n=5)
    assert first.tolist() == select("random", *problem, n=5).tolist()


P, V, K = 90, 40, 4  # images of pool and validation set, and samples
BOTH = P + V
PASSES = {  # method -> images forward, images backward
    "random": (0, 0),
    **dict.fromkeys(("varR", "entropy", "BALD", "std"), (K * P, 0)),
    "Rz": (BOTH, 0),
    **dict.fromkeys(("Rzg_true", "Rzg_pred", "Rzg_pz"), (BOTH, BOTH)),
    # of every copy two: J^T v, and the derivative of its product with z
    "Rzg_trace": (BOTH + K * BOTH, BOTH + 2 * K * BOTH),
    # of every copy one for each class
    **dict.fromkeys(("Rzg_mi", "Rzg_mi_diag"), (BOTH + K * BOTH, BOTH + CLASSES * K * BOTH)),
    # the validation set once more, g for its predictions; the pool's g for the predictions and for the labels
    "Rzg_pzg": (BOTH + V, BOTH + V + P),
    **dict.fromkeys(("margin", "leastconf", "entropy_det", "galaxy", "badge", "coreset", "typiclust"), (P, 0)),
    **dict.fromkeys(("galaxy_v", "flqmi", "flqmi_z", "flqmi_rare"), (BOTH, 0)),
    "epig": (K * (BOTH + 1), 0),  # one image more, which tells the number of classes
}


@pytest.mark.parametrize("key", METHODS)
def test_passes_are_counted(problem, key):
    """Exact numbers, those of the forward passes as the network itself sees them."""
    model, pool, validation = problem
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = measured(key, model, pool, validation, batch_size=32)
    assert (found.forward, found.backward) == PASSES[key]
    assert sum(seen) == found.forward


def test_an_ensemble_belongs_to_uncertainty(problem):
    model, pool, validation = problem
    assert select("BALD", [model, Own()], pool, validation, 3, labelled=torch.tensor([0]), samples=8).shape == (3,)
    with pytest.raises(UserError, match="not an ensemble of 2"):
        select("Rz", [model, Own()], pool, validation, 3)


# A method of one's own, from one declaration


def smallest_margin(situation):
    top = situation.measurement.logits.softmax(1).topk(2).values
    return Selection(top_scoring(top[:, 1] - top[:, 0], situation.available, situation.n, situation.generator))


@pytest.fixture
def margin():
    """A registered method, for as long as a test runs."""
    method = register(Method("margin_test", "margin", choose=smallest_margin, inputs=frozenset({"logits"})))
    yield method
    del METHODS[method.key]


def test_a_method_of_ones_own_is_resumed_and_drawn(margin, tmp_path):
    """Its records are read again, also by run_plot.py, which does not know the module that registers it."""
    arguments = [*SMALL, "--run-stop", 1, "--iterations", 2, "--methods", "margin_test"]
    arguments += ["--save-folder", tmp_path / "mine"]
    call("mnist/run.py", *arguments, "--initial")
    call("mnist/run.py", *arguments)
    again = call("mnist/run.py", *arguments)
    assert again.stderr == ""
    assert "margin_test" in again.stdout
    del METHODS[margin.key]
    try:
        drawn = call("run_plot.py", "--save-folder", tmp_path / "mine", "--out", tmp_path, "--methods", "margin_test")
    finally:
        METHODS[margin.key] = margin
    assert drawn.stderr == ""
    assert (tmp_path / "DIGITS_ir20.png").exists()


def test_a_method_of_ones_own_in_the_whole_loop(margin, tmp_path):
    """Two AL iterations on DIGITS: its database is written and removed, and its images are those of the margin."""
    short = {name: dataclasses.replace(getattr(DIGITS, name), epochs=2) for name in ("retraining", "pretraining")}
    work = workspace(dataclasses.replace(DIGITS, iterations=2, **short), tmp_path, *DIGITS.load(None))
    trial, stored = Trial(20, margin.key, 0), []
    make_initial_models(work, trial.ir, trial.nr)

    def acquire(current):
        stored.append(np.load(current.database("logits")))
        (path,) = (tmp_path / "run0" / "descr").glob("*.npy")
        assert path.name.startswith("logits_unsup_batch")
        STAGES.acquire(current)

    active_learning(work, [trial], STAGES._replace(acquire=acquire))
    assert not list((tmp_path / "run0" / "descr").iterdir())
    before = set()
    for b, logits in enumerate(stored):
        current = Round(work, trial, b)
        (model,), _ = current.starting_models()
        images = next(current.pool.batches(len(current.pool)))[0]
        with torch.no_grad():
            wanted = model.eval()(images)[0].numpy()
        assert np.allclose(logits, wanted, atol=1e-4)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        second, first = np.sort(p, 1)[:, -2:].T
        order = [i for i in np.argsort(first - second, kind="stable").tolist() if i not in before]
        chosen = np.load(current.index_list)[15 * b :].tolist()
        assert set(chosen) == set(order[:15])
        before |= set(chosen)
    for record in work.folder.results():
        assert record["method"] == "margin_test"
        assert record["passes"] == {"forward": len(current.pool), "backward": 0}
        assert record["misclassified"] is None


def test_a_key_is_taken_once(margin):
    with pytest.raises(ValueError, match="margin_test"):
        register(margin)
    with pytest.raises(ValueError, match="unknown inputs: logit"):
        Method("other", "other", smallest_margin, frozenset({"logit"}))


def test_labels_inside_the_query(problem):
    """A method that asks the annotator for one label before it chooses the rest."""
    model, pool, validation = problem
    asked = []

    def one_then_its_class(situation):
        first = draw_first(situation)
        asked.append(situation.annotate(first).tolist())
        rest = situation.available.clone()
        rest[first] = False
        return Selection(torch.cat([first, rest.nonzero().flatten()[: situation.n - 1]]))

    def draw_first(situation):
        return situation.available.nonzero().flatten()[:1]

    method = register(Method("asking_test", "asking", one_then_its_class, frozenset({"annotation"})))
    try:
        labelled = torch.arange(3)
        options = {"labelled": labelled, "annotate": lambda positions: pool.labels[positions]}
        assert select(method.key, model, pool, validation, 4, **options).tolist() == [3, 4, 5, 6]
        assert asked == [[int(pool.labels[3])]]
        assert not method.needs_passes
    finally:
        del METHODS[method.key]


def test_the_example_of_a_loop_of_ones_own(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", ROOT / "examples" / "own_loop.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.QUERIES = 2
    example.main()
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told[1:]] == [[m, str(n)] for m in ("random", "Rzg_pz") for n in (15, 30)]
    assert all(float(line.split("%")[0].split()[-1]) > 15 for line in told[1:])
