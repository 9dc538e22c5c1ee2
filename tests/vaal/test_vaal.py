"""VAAL: loss terms by hand, sampling, shapes, the alternation of steps, resume, and its scripts beside the others."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alfk.data.split import Split
from alfk.experiment.folder import FORMAT
from alfk.experiment.journal import Journal
from alfk.experiment.train import Selector
from alfk.experiment.trial import Trial
from alfk.networks.weights import snapshot
from alfk.support.errors import UserError
from alfk.support.files import write_json
from mnist.config import DIGITS
from mnist.custom_models.lenet import LeNet
from tests.helpers import SMALL, Killed, call, draw, outcome, records, refused, workspace
from vaal import config
from vaal.config import RECIPES, Recipe
from vaal.main import Vaal, VaalRun, in_vaals_range, in_vaals_range_of
from vaal.model import VAE, Discriminator, fit_to_vae, initialise_discriminator, initialise_vae, task_model
from vaal.sampler import labelled_scores, least_labelled
from vaal.solver import Solver, adversarial_loss, discriminator_loss, endless, transductive_loss

TRIAL = Trial(20, "vaal", 0)
TINY = Recipe(divisor=64, batch_size=8, train_iterations=10, lr=1e-3, training_threads=1)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# Loss terms


def test_losses_of_two_images():
    images = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(2, 1, 1, 2)
    reconstruction = torch.tensor([[0.0, 0.0], [0.5, 1.5]]).view(2, 1, 1, 2)
    mu, logvar = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])
    wanted = (1 + 0 + 0 + 1) / 4 + 1 / 2 + 0 + (4 - 1 - math.log(4)) / 2 + 4 / 2  # squares and divergences
    assert float(transductive_loss(images, reconstruction, mu, logvar)) == pytest.approx(wanted, rel=1e-6)
    labelled, unlabelled = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 3.0])
    yes = lambda x: math.log(1 + math.exp(-x))  # noqa: E731  # -log sigmoid(x)
    both_labelled = (yes(0) + yes(2)) / 2 + (yes(-1) + yes(3)) / 2
    told_apart = (yes(0) + yes(2)) / 2 + (yes(1) + yes(-3)) / 2
    assert float(adversarial_loss(labelled, unlabelled)) == pytest.approx(both_labelled, rel=1e-6)
    assert float(discriminator_loss(labelled, unlabelled)) == pytest.approx(told_apart, rel=1e-6)


def test_the_adversarial_term_has_its_weight(digits):
    def loss(weight):
        images = next(digits.batches(16))[0]
        solver = solver_for(digits, dataclasses.replace(TINY, adversary_param=weight))
        return solver._vae_loss(fit_to_vae(images[:8]), fit_to_vae(images[8:])).item()

    without = loss(0.0)
    assert loss(1.0) > without + 0.1  # the term is at least 2 log 2 where the discriminator is unsure
    assert loss(3.0) - without == pytest.approx(3 * (loss(1.0) - without), rel=1e-3)


# Networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224), (3, 60, 40)])
def test_shapes(shape):
    vae, discriminator = VAE(shape[0], divisor=32, latent_dim=5), Discriminator(32, 5)
    images = fit_to_vae(torch.rand(2, *shape))
    reconstruction, mu, logvar = vae(images, torch.zeros(2, 5))
    assert images.shape == reconstruction.shape == (2, shape[0], 32, 32)
    assert mu.shape == logvar.shape == (2, 5)
    assert discriminator(mu).shape == (2,)


@pytest.mark.parametrize("divisor", [1, 2])
def test_layers_are_the_papers(divisor):
    with torch.device("meta"):
        vae, discriminator = VAE(3, divisor, 32), Discriminator(divisor, 32)
    convolutions = [m for m in vae.modules() if isinstance(m, nn.Conv2d)]
    widths = [width // divisor for width in (128, 256, 512, 1024)]
    assert [c.out_channels for c in convolutions] == widths
    back = [m for m in vae.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [c.in_channels for c in back] == widths[::-1]
    assert [c.out_channels for c in back] == [*widths[-2::-1], 3]
    assert {(*c.kernel_size, *c.stride) for c in convolutions + back[:-1]} == {(4, 4, 2, 2)}
    assert (back[-1].kernel_size, back[-1].stride) == ((1, 1), (1, 1))
    assert (vae.widen.in_features, vae.widen.out_features) == (32, widths[-1] * 4 * 4)
    assert (vae.mu.in_features, vae.logvar.in_features) == (widths[-1] * 2 * 2,) * 2
    linear = [m for m in discriminator.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [512 // divisor] * 4 + [1]


def test_initial_weights():
    """Kaiming-normal convolutions and linear layers; torch's default for mean, log-variance and transposed ones."""
    vae, discriminator = VAE(1, 2, 32), Discriminator(2, 32)
    initialise_vae(vae, seeded())
    initialise_discriminator(discriminator, seeded())
    normal = [(vae.encoder[3], 64 * 16), (vae.widen, 32), *((discriminator.layers[i], 256) for i in (2, 4, 6))]
    for layer, fan_in in normal:
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert float(weight.abs().max()) > 3 * (2 / fan_in) ** 0.5  # not uniform
        assert layer.bias is None or not layer.bias.any()
    theirs = VAE(1, 2, 32)
    for ours, default in ((vae.mu, theirs.mu), (vae.logvar, theirs.logvar), (vae.decoder[0], theirs.decoder[0])):
        for mine, other in zip(ours.parameters(), default.parameters(), strict=True):
            assert float(mine.detach().abs().max()) == pytest.approx(float(other.detach().abs().max()), rel=0.15)
    bound = (256 * 16) ** -0.5  # a transposed convolution's fan-in counts its outputs
    assert 0.99 * bound < float(vae.decoder[0].weight.detach().abs().max()) <= bound


def test_the_task_model_keeps_the_rotation_models_convolutions():
    torch.manual_seed(1)
    rotation = LeNet(4)
    state = snapshot(rotation)
    model = task_model(DIGITS, RECIPES["DIGITS"], state, seeded())
    assert torch.equal(model.conv2.weight, state["conv2.weight"])
    assert model.fc1.weight.shape == (50, 500)
    assert model(torch.rand(2, 1, 32, 32))[0].shape == (2, 10)
    own = task_model(DIGITS, TINY, state, seeded())  # at 28x28, as the other methods have it
    assert own.fc1.weight.shape == state["fc1.weight"].shape
    assert not torch.equal(own.fc1.weight, state["fc1.weight"])
    missing = {name: value for name, value in state.items() if name != "conv1.bias"}
    for strange in (missing, *({**state, name: torch.zeros(1)} for name in ("conv9.weight", "conv1.weight"))):
        with pytest.raises(UserError, match="another network"):
            task_model(DIGITS, TINY, strange, seeded())


# Constants


def test_schedules_of_few_steps():
    """tests/data_sets/test_constants.py has the others."""
    few = dataclasses.replace(RECIPES["MNIST"], train_iterations=3)
    assert few.check_steps() == [1, 2, 3]
    assert [few.rate(step) for step in range(3)] == pytest.approx([5e-4, 5e-4 * 0.9**8, 5e-4 * 0.9**16])


def test_every_data_set_that_is_there_has_a_recipe():
    found = config.experiments()
    assert next(iter(found)) == "MNIST"  # the default
    assert {"MNIST", "DIGITS"} <= set(found) <= set(RECIPES)


def test_images_in_vaals_range():
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.arange(4), (0.1307,), (0.3081,))
    (seen, _) = next(in_vaals_range(split, RECIPES["MNIST"]).batches(4))
    assert seen.shape == (4, 1, 32, 32)
    assert torch.allclose(seen[:, :, 2:30, 2:30], images / 255)
    assert float(seen.sum()) == pytest.approx(float((images / 255).sum()), rel=1e-5)
    part = in_vaals_range(split.subset(torch.tensor([2, 0])), TINY)
    assert torch.allclose(next(part.batches(2))[0], images[[2, 0]] / 255)


# Sampling


def test_the_least_labelled_are_chosen():
    scores = torch.tensor([3.0, -2.0, 0.5, -9.0, -1.0, 7.0])
    available = torch.tensor([True, True, True, False, True, True])
    assert least_labelled(scores, available, 3, seeded()).tolist() == [1, 4, 2]


def test_scores_are_the_discriminators_whatever_the_batch(digits):
    solver = solver_for(digits)
    train(solver)
    whole = labelled_scores(solver.vae, solver.discriminator, digits, 120)
    assert solver.vae.training
    assert torch.allclose(whole, labelled_scores(solver.vae, solver.discriminator, digits, 50), atol=1e-4)
    solver.vae.eval()
    with torch.no_grad():
        mu, _ = solver.vae.encode(fit_to_vae(next(digits.batches(5))[0]))
        assert torch.allclose(whole[:5], solver.discriminator(mu), atol=1e-4)


# Training


class Normed(nn.Module):
    """A task model with batch norm, whose mode matters."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(1), nn.Linear(28 * 28, 10)

    def forward(self, images):
        return self.fc(self.norm(images).flatten(1)), []


@pytest.fixture(scope="module")
def data():
    return DIGITS.load(None)


@pytest.fixture(scope="module")
def digits(data):
    """120 digits in [0, 1], 28x28."""
    return in_vaals_range(data[1].subset(torch.arange(120)), TINY)


def solver_for(split, recipe=TINY):
    torch.manual_seed(0)
    return Solver(recipe, Normed(), split, seeded(1), seeded(2))


def train(solver, *callbacks):
    """All steps, with the first 20 of 120 images labelled."""
    solver.train(torch.arange(20), torch.arange(20, 120), seeded(), *callbacks or [lambda: None])


def test_one_step_of_the_task_model_two_of_the_others(digits):
    """The task model trains on after a check; the released experiments left it in evaluation mode."""
    solver = solver_for(digits)
    selector = Selector("test", digits, digits.subset(torch.arange(50)), 100)
    taken, averages = [0, 0, 0], []
    for i, optimiser in enumerate(solver.optimisers):
        optimiser.register_step_post_hook(lambda *_, i=i: taken.__setitem__(i, taken[i] + 1))

    def after_check():
        selector(solver.step, solver.task)
        assert all(module.training for module in solver.task.modules())
        averages.append(solver.task.norm.running_mean.clone())

    train(solver, after_check)
    assert taken == [10, 20, 20]
    assert solver.step == 10
    assert solver.optimisers[1].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.9 ** (9 * 25 // 10))
    assert len(averages) == 5
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(averages))
    assert selector.result(solver.task).epoch in TINY.check_steps() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(("spoilt", "step"), [(0, 1), (2, 3), (10, 10)])
def test_a_training_that_diverges_is_stopped_at_the_next_check_or_the_end(digits, spoilt, step):
    checked = []
    solver = solver_for(digits, TINY if spoilt else dataclasses.replace(TINY, adversary_param=math.inf))

    def after_step():
        if solver.step == spoilt:
            solver.vae.mu.bias.data[0] = math.nan

    def check():
        checked.append(solver.step)

    with pytest.raises(UserError, match=rf"diverged by step {step}: .* the learning rate \d") as caught:
        train(solver, check, after_step)
    assert "\n" not in str(caught.value)
    assert checked == [1, 3, 5, 7, 9][: step // 2]  # a state that is no use is not saved


def test_each_loss_moves_its_own_network(digits):
    weights = lambda network: torch.cat([p.detach().flatten() for p in network.parameters()])  # noqa: E731
    for only in ("vae_steps", "adversary_steps"):
        solver = solver_for(digits, dataclasses.replace(TINY, **{"vae_steps": 0, "adversary_steps": 0, only: 1}))
        before = list(map(weights, solver.networks))
        train(solver)
        after = list(map(weights, solver.networks))
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert moved == [True, only == "vae_steps", only == "adversary_steps"]


def test_which_batches_a_step_takes(digits, monkeypatch):
    """The first VAE step is on the task step's batch, the first discriminator step on the last VAE step's."""
    solver, seen = solver_for(digits, dataclasses.replace(TINY, train_iterations=2)), []

    def note(name, *images):
        seen.append((name, *(float(batch.sum()) for batch in images)))

    task, vae, discriminator = solver.task.forward, solver._vae_loss, solver._discriminator_loss
    monkeypatch.setattr(solver.task, "forward", lambda x: (note("task", fit_to_vae(x)), task(x))[1])
    monkeypatch.setattr(solver, "_vae_loss", lambda *pair: (note("vae", *pair), vae(*pair))[1])
    monkeypatch.setattr(solver, "_discriminator_loss", lambda *pair: (note("d", *pair), discriminator(*pair))[1])
    solver.train(torch.arange(50), torch.arange(50, 120), seeded(), lambda: None)
    for step in (seen[:5], seen[5:]):
        names, labelled, unlabelled = [s[0] for s in step], [s[1] for s in step], [s[2:] for s in step]
        assert names == ["task", "vae", "vae", "d", "d"]
        assert labelled[0] == labelled[1] != labelled[2] == labelled[3] != labelled[4]
        assert unlabelled[1] != unlabelled[2] == unlabelled[3] != unlabelled[4]
    assert len({s[1] for s in seen}) == 6  # three labelled batches a step


def test_batches_go_through_everything_before_anything_twice():
    rows = torch.tensor([3, 5, 8, 9])
    order = endless(rows, 10, seeded())
    assert order.shape == (10,)
    assert sorted(order[:4].tolist()) == sorted(order[4:8].tolist()) == rows.tolist()
    assert order[:4].tolist() != order[4:8].tolist()


def test_learning_to_tell_digits_from_their_negatives(digits):
    """The discriminator alone, on a VAE's codes as they are: scores tell digits from white images with black digits."""
    images = next(digits.batches(80))[0]
    images[20:] = 1 - images[20:]
    pool = Split(images, digits.labels[:80], (0.0,), (1.0,))
    recipe = dataclasses.replace(TINY, divisor=32, train_iterations=60, lr=3e-3, vae_steps=0)
    solver = solver_for(pool, recipe)
    solver.train(torch.arange(20), torch.arange(20, 80), seeded(), lambda: None)
    scores = labelled_scores(solver.vae, solver.discriminator, pool, 80)
    assert float((scores[:20, None] > scores[20:]).float().mean()) > 0.95  # of all pairs


# Runs: in this process, with networks that are smaller still

SHORT = dataclasses.replace(RECIPES["DIGITS"], divisor=64, batch_size=3, train_iterations=15)
CHECKS = [1, 4, 7, 10, 13]
FEW = ["--dataset", "DIGITS", "--device", "cpu", "--unsup-epochs", 1, "--iterations", 2]
EXPERIMENT = dataclasses.replace(DIGITS, iterations=2, pretraining=dataclasses.replace(DIGITS.pretraining, epochs=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Random choice and VAAL in the same folder, what VAAL printed and the steps after which its models were evaluated;
    another method's flags do not bind VAAL's. SHORT is DIGITS's recipe from here on.
    """
    datadir = tmp_path_factory.mktemp("vaal")
    for stage in (["--initial"], []):
        both = ["--iterations", 2, "--methods", "random", "--run-stop", 1, *stage]
        call("mnist/run.py", *SMALL, *both, "--datadir", datadir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "DIGITS", SHORT)
        with evaluations() as steps:
            done = call("vaal/run.py", *FEW, "--datadir", datadir, "--run-stop", 1)
        yield datadir, done, steps


@contextlib.contextmanager
def evaluations(most=math.inf):
    """The steps of all evaluations inside the block; Killed takes the place of the one after `most`."""
    steps, evaluate = [], Selector.__call__

    def note(self, step, *arguments, **options):
        if len(steps) == most:
            raise Killed
        steps.append(step)
        return evaluate(self, step, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selector, "__call__", note)
        yield steps


@pytest.fixture
def begun(finished, tmp_path):
    """A folder with the initial model alone."""
    name = Path("DIGITS", "run0", "checkpoint", "init_unsup_batch_0_ir_20_nr_0.pt")
    (tmp_path / name).parent.mkdir(parents=True)
    shutil.copy(finished[0] / name, tmp_path / name)
    return tmp_path


def same_as(finished, folder):
    """Whether VAAL's results, queries and models in a folder are those of the uninterrupted run."""
    mine, whole = (outcome(place / "DIGITS" / "run0") for place in (folder, finished[0]))
    whole["results.jsonl"] = [line for line in whole["results.jsonl"] if line["method"] == "vaal"]
    wanted = {name: value for name, value in whole.items() if name in mine}
    return mine == wanted and len([name for name in mine if "vaal" in name]) == 4 and not [*folder.rglob("part_*")]


def test_its_records_are_as_the_others(finished):
    datadir, done, steps = finished
    assert "vaal" in done.stdout
    assert steps == CHECKS * 2  # there is no epoch 0: the starting model is not evaluated
    found = {(r["method"], r["b"]): r for r in records(datadir / "DIGITS" / "run0")}
    for b in (0, 1):
        random, vaal = found["random", b], found["vaal", b]
        assert set(random) - set(vaal) == {"accuracy_last"}  # VAAL is not checked at its end
        assert set(vaal) < set(random)
        assert vaal["labelled"] == random["labelled"] == 15 * (b + 1)
        assert (vaal["L"], vaal["init"], vaal["ensemble"]) == (0, "rotation", 1)
        assert vaal["epochs"][0] in CHECKS
        assert vaal["passes"]["forward"] == (473 if b else 0)
    assert found["vaal", 0]["selected_histogram"] == found["random", 0]["selected_histogram"]
    settings = json.loads((datadir / "DIGITS" / "run0" / "manifest.json").read_text())["settings"]
    assert settings["vaal.train_iterations"] == 15
    assert settings["retraining.epochs"] == 4


def test_killed_within_an_iteration_and_started_again(finished, begun):
    """main.py, between the second and the third check of its second iteration, ends as run.py does uninterrupted."""
    with pytest.raises(Killed), evaluations(most=7):
        call("vaal/main.py", *FEW, "--datadir", begun)
    (part,) = begun.rglob("part_*")
    saved = torch.load(part, weights_only=True)["state"]
    assert saved["solver"]["step"] == 4
    assert saved["epoch"] in (1, 4)
    with evaluations() as steps:
        call("vaal/main.py", *FEW, "--datadir", begun)
    assert steps == CHECKS[2:]
    assert same_as(finished, begun)


def test_a_part_of_other_settings_is_not_gone_on_with(data, finished, begun):
    """Nor anything else that was made with them: each file is refused by name, and deleting them is enough."""

    def learn(recipe):
        Vaal(recipe).learn(workspace(EXPERIMENT, begun / "DIGITS", *data), [TRIAL])

    with pytest.raises(Killed), evaluations(most=7):
        learn(dataclasses.replace(SHORT, adversary_param=9.0))
    work = in_vaals_range_of(workspace(EXPERIMENT, begun / "DIGITS", *data), SHORT)
    manifest = {"run": 0, "format": FORMAT, "settings": work.settings(), "sessions": []}
    write_json(work.folder.path / "manifest.json", manifest)
    pattern = r"(\S+/(\w+?)_\S+) (?:is not the file it should be: it )?was made with"
    for kind in ("best", "query", "part"):
        with pytest.raises(UserError) as caught:
            learn(SHORT)
        path, found = re.match(pattern, str(caught.value)).groups()
        assert found == kind
        Path(path).unlink()
    learn(SHORT)
    assert same_as(finished, begun)


def test_iterations_choose_by_the_scores_of_the_one_before(data, finished):
    work = workspace(EXPERIMENT, finished[0] / "DIGITS", *data)
    journal = Journal(in_vaals_range_of(work, SHORT), TRIAL)
    first, second = (journal.acquired(b).queried.numpy() for b in (0, 1))
    scores = journal.left_before(1)["scores"].numpy()
    assert second[:15].tolist() == first.tolist()
    free = np.setdiff1d(np.arange(len(scores)), first)
    assert second[15:].tolist() == free[scores[free].argsort()[:15]].tolist()


def test_its_runs_can_go_to_other_processes():
    """For --jobs, which tests/cli/test_scripts.py tries with other methods."""
    task = pickle.loads(pickle.dumps(VaalRun(DIGITS, argparse.Namespace(seed=3), [TRIAL])))
    assert (task.experiment, task.options.seed, task.trials) == (DIGITS, 3, [TRIAL])


def test_the_figures_have_it(finished):
    """Curves and sheets of selected images, as PNG and PDF."""
    datadir = finished[0]
    done = draw(datadir)
    assert "vaal" in done.stdout
    assert "not there" not in done.stdout
    image = datadir / "figures" / "DIGITS_ir20.png"
    assert str(image) in done.stdout
    assert image.with_suffix(".pdf").read_bytes()[:4] == b"%PDF"
    done = draw(datadir, "--show-selected", "--methods", "vaal", "--run-stop", 1)
    (sheet,) = datadir.glob("figures/*selected*vaal*.png")
    assert str(sheet) in done.stdout
    assert image.read_bytes()[:4] == sheet.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train-iterations", 21], "vaal.train_iterations = 15, this command says 21"),
        (["--run-start", 3, "--run-stop", 4], " in the data set's folder makes it"),
    ],
)
def test_bad_requests_take_one_line(finished, arguments, words):
    refused("vaal/run.py", *FEW, "--datadir", finished[0], "--run-stop", 1, *arguments, words=words)
