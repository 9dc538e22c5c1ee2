"""VAAL (Sinha, Ebrahimi, Darrell, ICCV 2019) on one run: all AL iterations; finished ones are skipped.

    python3 main.py -r 0 -ir 100
    python3 main.py --dataset DIGITS -r 0

Needs the run's rotation model: run.py --initial of the data set's folder. Writes the same files as the other methods,
into local_data/<DATASET>/run0, with method vaal and L=0. Takes hours on a CPU, see docs/data_sets.md.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from alfk.cli import options as flags
from alfk.cli import scripts
from alfk.cli.opening import open_workspace
from alfk.cli.progress import Progress
from alfk.data.split import Split
from alfk.experiment.choose import Labelled, acquired_of, situation_of
from alfk.experiment.config import Experiment
from alfk.experiment.journal import Acquired, Outcome
from alfk.experiment.loop import Stages, active_learning
from alfk.experiment.round import Round
from alfk.experiment.train import Selector, record_of
from alfk.experiment.training import BestEpoch, Evaluation, cpu_threads
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Report, Workspace, join_states
from alfk.method.acquisition import draw_at_random
from alfk.method.selection import Selection
from alfk.networks.weights import fits
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import FIX, has_file
from vaal.config import RECIPES, Recipe, experiments
from vaal.model import task_model
from vaal.sampler import labelled_scores, least_labelled
from vaal.solver import Solver


class Vaal:
    """The stages of a VAAL iteration, which ends with the scores of the pool: VAE and discriminator are not kept."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def learn(self, work: Workspace, trials: Sequence[Trial]) -> None:
        """All AL iterations of the trials."""
        stages = Stages(self.describe, self.choose, self.train)
        active_learning(in_vaals_range_of(work, self.recipe), trials, stages)

    def describe(self, current: Round) -> None:
        """Nothing: the previous iteration has scored the pool."""

    def choose(self, current: Round) -> Acquired:
        """Random images in iteration 0, like the other methods; later those with the lowest scores."""
        situation, facts = situation_of(current), {}
        start = time.perf_counter()
        if current.b == 0:
            selection = draw_at_random(situation)
        else:
            left = current.journal.left_before(current.b)
            scores, facts = left["scores"], {"forward": left["forward"], "seconds_describe": left["seconds"]}
            chosen = least_labelled(scores, situation.available, situation.n, situation.generator)
            selection = Selection(chosen, score=-scores[chosen].double())
        return acquired_of(current, selection, {**facts, "seconds_acquire": time.perf_counter() - start})

    def train(self, current: Round, labelled: Labelled) -> Outcome:
        """Train new networks, and score the pool for the next iteration."""
        start = time.perf_counter()
        work, trial = current.work, current.trial
        selector = Selector(trial.select, work.test, current.validation, current.experiment.descriptor_batch)
        solver = self.solve(current, labelled.acquired.queried, selector)
        if trial.select == "last":
            selector(solver.step, solver.task, last=True)
        trained = selector.result(solver.task)
        seconds = time.perf_counter() - start
        scores = self.score(current, solver)
        record = record_of(current, labelled, [trained], seconds)
        return Outcome(record, join_states([trained.weights]), labelled.acquired, leaves=scores)

    def solve(self, current: Round, labelled: Tensor, selector: Selector) -> Solver:
        """Train the networks and evaluate the task model at every check. Resumes at the last check.

        The starting model does not count (docs/method.md, section 10).
        """
        work, trial, pool = current.work, current.trial, current.pool
        generators = {name: current.generator(f"vaal {name}") for name in ("task", "init", "noise", "batches")}
        task = task_model(work.experiment, self.recipe, work.initial_state(trial), generators["task"])
        solver = Solver(self.recipe, task, pool, generators["init"], generators["noise"])
        self.load_partial(current, solver, selector.best)
        unlabelled = torch.ones(len(pool), dtype=torch.bool)
        unlabelled[labelled] = False
        if not unlabelled.any():
            raise UserError("VAAL compares labelled with unlabelled images, and none is unlabelled: lower -as")

        def after_check() -> None:
            selector(solver.step, solver.task)
            self.save_partial(current, solver, selector.best)

        def after_step() -> None:
            if solver.step % 10 == 0:
                doing = f"{trial.label()} b={current.b}"
                current.report("step", doing=doing, step=solver.step, of=self.recipe.train_iterations)

        solver.train(labelled, unlabelled.nonzero().flatten(), generators["batches"], after_check, after_step)
        return solver

    def score(self, current: Round, solver: Solver) -> dict[str, Any]:
        """The logit of every pool image's being labelled, from which the next iteration chooses, and its cost."""
        start = time.perf_counter()
        with cpu_threads(self.recipe.training_threads):
            batch_size = current.experiment.descriptor_batch
            scores = labelled_scores(solver.vae, solver.discriminator, current.pool, batch_size)
        return {"scores": scores, "forward": len(current.pool), "seconds": time.perf_counter() - start}

    def save_partial(self, current: Round, solver: Solver, best: BestEpoch) -> None:
        """Write the state of an unfinished training."""
        partial = current.journal.partial(current.b)
        evaluation = dataclasses.asdict(best.evaluation) if best.evaluation else None
        state = {"solver": solver.state(), "epoch": best.epoch, "weights": best.weights, "evaluation": evaluation}
        if best.evaluator:
            state["difficulty"] = best.evaluator.difficulty
        save_checkpoint(partial, state, self._about_partial(current))

    def load_partial(self, current: Round, solver: Solver, best: BestEpoch) -> None:
        """Restore solver and best step of an interrupted training, if there is one. Raises UserError."""
        partial = current.journal.partial(current.b)
        if not has_file(partial):
            return
        state, _ = load_checkpoint(partial, self._about_partial(current))
        saved = state["solver"]
        known = all(map(fits, saved["networks"], solver.networks))
        if not known or not 0 < saved["step"] <= self.recipe.train_iterations:
            raise UserError(f"{partial} is of another training: {FIX}")
        device = current.work.device
        solver.load_state(saved)
        best.epoch, best.weights = state["epoch"], state["weights"]
        if best.evaluator:
            best.evaluator.difficulty = state["difficulty"].to(device)
        if state["evaluation"]:
            best.evaluation = Evaluation(**state["evaluation"])
            best.evaluation.predictions = best.evaluation.predictions.to(device)

    def _about_partial(self, current: Round) -> dict[str, Any]:
        return {"kind": "part", **current.identity(), "settings": current.work.settings()}


def in_vaals_range_of(work: Workspace, recipe: Recipe) -> Workspace:
    """The workspace with `in_vaals_range` applied to all splits, and with the recipe among its settings."""
    train, test = (in_vaals_range(split, recipe) for split in (work.train, work.test))
    validation = work.separate_validation
    if validation is not None:
        validation = test if validation is work.test else in_vaals_range(validation, recipe)
    splits = {"train": train, "test": test, "separate_validation": validation}
    return dataclasses.replace(work, **splits, recipe=recipe.settings())


def in_vaals_range(split: Split, recipe: Recipe) -> Split:
    """The split with VAAL's preprocessing: scaled to [0, 1], without normalisation, and padded."""
    identity = [0.0] * len(split.mean), [1.0] * len(split.std)
    if not recipe.padding:
        return Split(split.store, split.labels, *identity, split.rows, split.source)
    return Split(F.pad(split.images, [recipe.padding] * 4), split.labels, *identity, source=split.source)


def add_recipe(parser: flags.Parser) -> None:
    """The flags that change the recipe."""
    parser.set_defaults(where_run_is=" in the data set's folder")
    add = parser.add_argument
    add("--batch-size", type=flags.positive, metavar="N", help="images per batch, labelled and unlabelled each")
    add("--train-iterations", type=flags.up_to(1_000_000), metavar="N", help="steps of the task model per AL iteration")
    add("--latent-dim", type=flags.positive, metavar="N", help="length of the VAE's codes")
    add("--adversary-param", type=weight, metavar="X", help="weight of the adversarial term in the VAE's loss")


def weight(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a weight is a number from 0 up, not {text}")
    return value


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The data set's recipe, changed by the flags."""
    names = ("batch_size", "train_iterations", "latent_dim", "adversary_param")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(RECIPES[options.dataset], **overrides)


def trials_of(experiment: Experiment, options: argparse.Namespace, irs: Sequence[float] | None) -> tuple[Trial, ...]:
    """VAAL's trials, one per imbalance ratio, starting from the rotation model."""
    ratios = dict.fromkeys(irs or (experiment.default_ir,))
    return tuple(Trial(ir, "vaal", 0, nr=options.nr, select=options.select) for ir in ratios)


class VaalRun(scripts.ExperimentRun):
    """A RunTask: VAAL in one run, in this process or, pickled, in another."""

    def open(self, number: int, report: Report) -> Workspace:
        arguments = (self.experiment, self.options, number, report, self.trials, self.experiment.iterations)
        return open_workspace(*arguments, recipe=recipe_of(self.options).settings())

    def learn(self, work: Workspace) -> None:
        Vaal(recipe_of(self.options)).learn(work, self.trials)


def main(registry: dict[str, Experiment], about: str) -> int:
    """main.py: all AL iterations of one run."""
    parser = flags.protocol_parser(registry, about)
    add_recipe(parser)
    parser.add_argument("-r", "--run", type=flags.count, default=0, metavar="R", help="number of the run (0)")
    parser.add_argument("-ir", type=flags.imbalance_ratio, metavar="IR", help="imbalance ratio (the data set's)")
    parser.add_argument("--iterations", type=flags.positive, metavar="B", help="AL iterations (the data set's)")

    def body(options: argparse.Namespace) -> int:
        experiment = flags.experiment_of(registry, options)
        trials = trials_of(experiment, options, options.ir and [options.ir])
        scripts.check_initial_models(experiment, options, [options.run], trials)
        with Progress(total=experiment.iterations) as progress:
            VaalRun(experiment, options, trials)(options.run, progress)
        return 0

    return scripts.guarded(parser, body)


if __name__ == "__main__":
    sys.exit(main(experiments(), __doc__))
