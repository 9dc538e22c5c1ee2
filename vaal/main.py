"""VAAL (Sinha, Ebrahimi, Darrell, ICCV 2019) on one run: all AL iterations; what is complete is skipped.

    python3 main.py -r 0 -ir 100
    python3 main.py --dataset DIGITS -r 0

Needs the run's rotation model: run.py --initial of the data set's folder. Writes where the other methods do, into
local_data/<DATASET>/run0, under their names for files, with method vaal and L=0. Hours on a CPU, see README.md.
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

from alfk.acquisition import choose, get_method
from alfk.config import Experiment
from alfk.data import Split
from alfk.errors import UserError
from alfk.matching import Selection
from alfk.runs import Record, Trial, has_array, load_checkpoint, open_array, save_array, save_checkpoint
from alfk.stages import cli
from alfk.stages import options as flags
from alfk.stages.drive import every_iteration
from alfk.stages.report import Progress
from alfk.stages.retrain import (
    Selector,
    conclude,
    finished,
    labelled_before,
    make_record,
    read_labelled,
    write_labelled,
)
from alfk.stages.workspace import Report, Workspace
from alfk.training import BestEpoch, Evaluation, cpu_threads
from vaal.config import RECIPES, Recipe, experiments
from vaal.model import task_model
from vaal.sampler import labelled_scores, least_labelled
from vaal.solver import Solver


class Vaal:
    """VAAL on one run: what happens in an AL iteration, and the files it leaves."""

    def __init__(self, work: Workspace, recipe: Recipe):
        train, test = (in_vaals_range(split, recipe) for split in (work.train, work.test))
        apart = work.apart
        if apart is not None:
            apart = test if apart is work.test else in_vaals_range(apart, recipe)
        self.work, self.recipe = dataclasses.replace(work, train=train, test=test, apart=apart), recipe

    def all_iterations(self, trial: Trial) -> None:
        """Every AL iteration of a trial; the complete ones are skipped."""
        every_iteration(self.work, trial, self.iteration, self.tidy)

    def iteration(self, trial: Trial, b: int, pool: Split, validation: Split) -> Record:
        """Label n more images, train fresh networks, score the pool for the next time. Returns the record."""
        work = self.work
        found = finished(work, trial, b, work.size(b))
        if found is not None:
            return found
        labelled, header = self.acquire(trial, b, pool)
        start = time.perf_counter()
        selector = Selector(trial.select, work.test, validation, work.experiment.descriptor_batch)
        solver = self.train(trial, b, pool, labelled, selector)
        if trial.select == "last":
            selector(solver.step, solver.task)
        trained = selector.conclude(solver.task)
        seconds = time.perf_counter() - start
        self.write_scores(trial, b, pool, solver)
        newest = labelled[-work.experiment.query_size :]
        record = make_record(work, trial, b, pool, labelled, newest, header, [trained], seconds)
        conclude(work, trial, b, record, [trained.weights], settings(work, self.recipe))
        return record

    def acquire(self, trial: Trial, b: int, pool: Split) -> tuple[Tensor, dict[str, Any]]:
        """The labelled set of AL iteration b and its header: the first n images at random, as every method's."""
        work = self.work
        if has_array(work.folder.index_list(trial, b, work.size(b))):
            return read_labelled(work, trial, b)
        before, n = labelled_before(work, trial, b), work.experiment.query_size
        available = torch.ones(len(pool), dtype=torch.bool)
        available[before] = False
        draws = work.generator("acquire", b)
        start = time.perf_counter()
        if b == 0:
            chosen, facts = choose(get_method("random"), None, None, available, n, draws), {}
        else:
            scores, facts = self.read_scores(trial, b - 1)
            chosen = Selection(least_labelled(scores, available, n, draws))
        facts["seconds_acquire"] = time.perf_counter() - start
        return write_labelled(work, trial, b, before, chosen, facts)

    def train(self, trial: Trial, b: int, pool: Split, labelled: Tensor, selector: Selector) -> Solver:
        """The networks of AL iteration b, trained, the task model evaluated at every check. Resumes at the last check.

        The starting model does not count here (METHOD, section 10).
        """
        work = self.work
        draws = {name: work.generator(f"vaal {name}", b) for name in ("task", "init", "noise", "batches")}
        task = task_model(work.experiment, self.recipe, work.initial_state(trial), draws["task"])
        solver = Solver(self.recipe, task, pool, draws["init"], draws["noise"])
        self.load_part(trial, b, solver, selector.best)
        unlabelled = torch.ones(len(pool), dtype=torch.bool)
        unlabelled[labelled] = False
        if not unlabelled.any():
            raise UserError("VAAL compares labelled with unlabelled images, and none is unlabelled: lower -as")

        def after_check() -> None:
            selector(solver.step, solver.task)
            self.save_part(trial, b, solver, selector.best)

        def after_step() -> None:
            if solver.step % 10 == 0:
                told = {"step": solver.step, "of": self.recipe.train_iterations}
                work.report("step", run=work.folder.number, doing=f"{trial.label()} b={b}", **told)

        solver.train(labelled, unlabelled.nonzero().flatten(), draws["batches"], after_check, after_step)
        return solver

    def write_scores(self, trial: Trial, b: int, pool: Split, solver: Solver) -> None:
        """What the discriminator of iteration b says of every pool image, from which iteration b+1 chooses."""
        start = time.perf_counter()
        with cpu_threads(self.recipe.training_threads):
            batch_size = self.work.experiment.descriptor_batch
            scores = labelled_scores(solver.vae, solver.discriminator, pool, batch_size)
        header = {
            "kind": "labelled scores",
            **self.work.identity(trial, b),
            "meaning": "logit of every pool image's being labelled, after iteration b",
            "forward": len(pool),
            "seconds": time.perf_counter() - start,
        }
        save_array(self._scores(trial, b), scores.numpy(), header)

    def read_scores(self, trial: Trial, b: int) -> tuple[Tensor, dict[str, Any]]:
        """(N,) the scores after iteration b, and what they cost. Raises UserError if they are not there."""
        path = self._scores(trial, b)
        if not has_array(path):
            best = self.work.folder.checkpoint(trial, b, self.work.size(b))
            raise UserError(f"there is no {path} with its .json header: delete {best}, then both are made anew")
        array, header = open_array(path, {"kind": "labelled scores", **self.work.identity(trial, b)})
        return torch.tensor(array), {"forward": header["forward"], "seconds_describe": header["seconds"]}

    def save_part(self, trial: Trial, b: int, solver: Solver, best: BestEpoch) -> None:
        """The training so far."""
        evaluation = dataclasses.asdict(best.evaluation) if best.evaluation else None
        state = {"solver": solver.state(), "epoch": best.epoch, "weights": best.weights, "evaluation": evaluation}
        if best.evaluator:
            state["difficulty"] = best.evaluator.difficulty
        save_checkpoint(self._part(trial, b), state, self._about_part(trial, b))

    def load_part(self, trial: Trial, b: int, solver: Solver, best: BestEpoch) -> None:
        """Put solver and best step where an interrupted training of the same settings left them, if there was one."""
        if not self._part(trial, b).exists():
            return
        wanted = self._about_part(trial, b)
        settings_now = wanted.pop("settings")
        state, about = load_checkpoint(self._part(trial, b), wanted)
        if about["settings"] != settings_now:
            return
        solver.load_state(state["solver"])
        best.epoch, best.weights = state["epoch"], state["weights"]
        if best.evaluator:
            best.evaluator.difficulty = state["difficulty"].to(self.work.device)
            best.evaluation = Evaluation(**state["evaluation"])
            best.evaluation.predictions = best.evaluation.predictions.to(self.work.device)

    def tidy(self, trial: Trial, b: int) -> None:
        self._part(trial, b).unlink(missing_ok=True)

    def _scores(self, trial: Trial, b: int) -> Path:
        return self.work.folder.descriptors("scores", trial, b, self.work.size(b))

    def _part(self, trial: Trial, b: int) -> Path:
        whole = self.work.folder.checkpoint(trial, b, self.work.size(b))
        return whole.with_name(whole.name.replace("best_", "part_"))

    def _about_part(self, trial: Trial, b: int) -> dict[str, Any]:
        return {"kind": "part", **self.work.identity(trial, b), "settings": settings(self.work, self.recipe)}


def in_vaals_range(split: Split, recipe: Recipe) -> Split:
    """The split as VAAL sees it: in [0, 1], without normalisation, and padded."""
    unchanged = [0.0] * len(split.mean), [1.0] * len(split.std)
    if not recipe.padding:
        return Split(split.store, split.labels, *unchanged, split.rows, split.source)
    return Split(F.pad(split.images, [recipe.padding] * 4), split.labels, *unchanged, source=split.source)


def settings(work: Workspace, recipe: Recipe) -> dict[str, Any]:
    """What VAAL's results depend on: of the run's settings those of its data and initial models, and the recipe."""
    return work.settings(initial=True) | {"query_size": work.experiment.query_size} | recipe.settings()


def add_recipe(parser: flags.Parser) -> None:
    """The flags that change the recipe."""
    parser.set_defaults(epochs=None, samples=None, descr_batch=None, descr_dtype=None)  # the other methods' alone
    add = parser.add_argument
    add("--batch-size", type=flags.positive, metavar="N", help="images a batch, labelled and unlabelled each")
    add("--train-iterations", type=flags.positive, metavar="N", help="steps of the task model in an AL iteration")
    add("--latent-dim", type=flags.positive, metavar="N", help="length of the VAE's codes")
    add("--adversary-param", type=weight, metavar="X", help="weight of the adversarial term in the VAE's loss")


def weight(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a weight is a number from 0 up, not {text}")
    return value


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The data set's recipe with what the flags change."""
    names = ("batch_size", "train_iterations", "latent_dim", "adversary_param")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(RECIPES[options.dataset], **given)


def trials_of(experiment: Experiment, options: argparse.Namespace, irs: Sequence[float] | None) -> tuple[Trial, ...]:
    """VAAL's trials, from the rotation model, on pools of those imbalance ratios."""
    wanted = dict.fromkeys(irs or (experiment.default_ir,))
    return tuple(Trial(ir, "vaal", 0, nr=options.nr, select=options.select) for ir in wanted)


class WholeRun:
    """All of one run's work, in this process or, pickled, in another."""

    def __init__(self, experiment: Experiment, options: argparse.Namespace, trials: tuple[Trial, ...]):
        self.experiment, self.options, self.trials = experiment, options, trials

    def __call__(self, number: int, report: Report) -> None:
        recipe = recipe_of(self.options)
        arguments = (self.experiment, self.options, number, report, self.trials, self.experiment.iterations)
        work = cli.open_workspace(*arguments, settings_of=lambda work: settings(work, recipe))
        for trial in self.trials:
            Vaal(work, recipe).all_iterations(trial)


def check_initial_models(
    experiment: Experiment, options: argparse.Namespace, runs: Sequence[int], trials: Sequence[Trial]
) -> None:
    """Raises UserError if a rotation model is missing."""
    cli.check_initial_models(experiment, options, runs, trials, "make it with run.py --initial of the data set")


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
        check_initial_models(experiment, options, [options.run], trials)
        with Progress(total=experiment.iterations) as progress:
            WholeRun(experiment, options, trials)(options.run, progress)
        return 0

    return cli.guarded(parser, body)


if __name__ == "__main__":
    sys.exit(main(experiments(), __doc__))
