"""The entry points of a data set's scripts: each parses its flags, runs, and returns the exit status."""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from alfk.cli import options as flags
from alfk.cli.guard import guard
from alfk.cli.jobs import RunTask, run_in_parallel, run_sequentially
from alfk.cli.opening import data, initial_command, open_workspace, root
from alfk.cli.options import Experiments
from alfk.cli.progress import Progress, cost_table, table
from alfk.cli.trials import Cfg, baselines_of, method_key, trial_of, trials_of
from alfk.experiment.choose import choose, label
from alfk.experiment.config import Experiment
from alfk.experiment.describe import databases, describe
from alfk.experiment.folder import RunFolder
from alfk.experiment.journal import Journal, opened
from alfk.experiment.loop import active_learning, baselines
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import Round, begin
from alfk.experiment.train import train
from alfk.experiment.trial import Trial
from alfk.experiment.workspace import Report, Workspace
from alfk.method.acquisition import METHODS, get_method
from alfk.support import distributed
from alfk.support.errors import UserError

Options = argparse.Namespace


# The scripts


def run(experiments: Experiments, cfgs: Mapping[str, Cfg], about: str) -> int:
    """run.py: the initial models, the baselines or all AL iterations of the configuration, for a range of runs."""

    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        known = experiment
        if experiment.classes is None and "rivals" in (options.methods or ()):  # some are not for many classes
            known = replace(experiment, classes=experiment.for_data(data(experiment, options).train).classes)
        trials = trials_of(cfgs[options.dataset], known, options)
        if options.initial:
            return _initial(experiment, trials, options)
        return _learn(experiment, trials, options)

    return guarded(flags.run_parser(experiments, about), body, distributable=True)


def unsup(experiments: Experiments, about: str) -> int:
    """unsup.py: the initial models of one run."""

    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        with Progress(total=2 * options.ensemble) as progress:
            work = open_workspace(experiment, options, options.run, progress, initial=True)
            ir = options.ir or experiment.default_ir
            make_initial_models(work, ir, options.nr, options.ensemble, options.select)
        return 0

    return guarded(flags.unsup_parser(experiments, about), body, distributable=True)


def gen_descr(experiments: Experiments, about: str) -> int:
    """gen_descr.py: the descriptor databases of one AL iteration."""

    def stage(journal: Journal, b: int) -> None:
        current = Round(journal.work, journal.trial, b, journal)
        if databases(current):
            describe(begin(journal, b))
        paths = [str(current.database(name)) for name in databases(current)]
        print("\n".join(paths) or f"{current.trial.method} needs no descriptors at b={b}")

    return _one_iteration(experiments, about, stage)


def main_descr(experiments: Experiments, about: str) -> int:
    """main_descr.py: matching, acquisition and retraining of one AL iteration."""

    def stage(journal: Journal, b: int) -> None:
        if journal.finished(b) is None:
            current = begin(journal, b)
            acquired = current.acquired() or current.keep(choose(current))
            current.finish(train(current, label(current, acquired)))
        journal.delete_temporary(b)
        journal.work.report("iteration", record=journal.finished(b))
        print(journal.checkpoint(b))

    return _one_iteration(experiments, about, stage)


def _one_iteration(experiments: Experiments, about: str, stage: Callable[[Journal, int], None]) -> int:
    def body(options: Options) -> int:
        experiment = flags.experiment_of(experiments, options)
        method = method_key(options.sub, options.aug)
        length = options.descr_length or experiment.default_length
        trial = trial_of(experiment, options.ir or experiment.default_ir, method, length, options.ensemble, options)
        check_initial_models(experiment, options, [options.run], [trial])
        labelled = experiment.for_data(data(experiment, options).train).query_size * options.b
        if options.train_size not in (None, labelled):
            raise UserError(f"before b={options.b} {labelled} images are labelled, not -ts {options.train_size}")
        with Progress(total=1) as progress:
            work = open_workspace(experiment, options, options.run, progress, [trial], options.b + 1)
            with opened(work, trial) as journal:
                stage(journal, options.b)
        return 0

    return guarded(flags.stage_parser(experiments, about), body, distributable=True)


# The runs of run.py


class ExperimentRun:
    """A RunTask: everything that is computed in one run, in this process or, pickled, in another."""

    def __init__(self, experiment: Experiment, options: Options, trials: Sequence[Trial]):
        self.experiment, self.options, self.trials = experiment, options, trials

    def __call__(self, number: int, report: Report) -> None:
        work = self.open(number, report)
        if self.options.initial:
            for (ir, nr), members in ensemble_sizes(self.trials).items():
                make_initial_models(work, ir, nr, members, self.options.select)
        elif self.options.baseline:
            baselines(work, self.trials)
        else:
            self.learn(work)

    def open(self, number: int, report: Report) -> Workspace:
        iterations = 0 if self.options.baseline else self.experiment.iterations
        arguments = (self.trials, iterations, self.options.initial)
        return open_workspace(self.experiment, self.options, number, report, *arguments)

    def learn(self, work: Workspace) -> None:
        """Active learning."""
        active_learning(work, self.trials, keep_descriptors=self.options.keep_descr)


def _initial(experiment: Experiment, trials: Sequence[Trial], options: Options) -> int:
    """The initial models of the trials in all runs."""
    runs = runs_of(options, experiment.runs)
    models = 2 * sum(ensemble_sizes(trials).values())
    if distributed.is_main_process():
        ratios = " and ".join(f"{ir:g}" for ir in dict.fromkeys(trial.ir for trial in trials))
        iterations = len(runs) * len(trials) * experiment.iterations
        alone = all(trial.ensemble == 1 for trial in trials)
        print(
            f"initial models: {len(runs) * models}, random and rotation, for ir={ratios} and {len(runs)} run(s), "
            "less those that exist\n"
            f"next, without --initial: {len(trials)} curve(s), {iterations} AL iterations in all"
            + ("; ensembles of E need --initial -ens E first" if alone else "")
        )
    return over_runs(experiment, options, runs, ExperimentRun(experiment, options, trials), models, [])


def _learn(experiment: Experiment, trials: Sequence[Trial], options: Options) -> int:
    """All AL iterations of the trials, or the baselines, in all runs."""
    iterations, default_stop = experiment.iterations, experiment.runs
    if options.baseline:
        trials, iterations, default_stop = baselines_of(trials, options), 1, options.run_start + 1
    runs = runs_of(options, default_stop)
    check_initial_models(experiment, options, runs, trials)
    task = ExperimentRun(experiment, options, trials)
    return over_runs(experiment, options, runs, task, len(trials) * iterations, trials)


def ensemble_sizes(trials: Sequence[Trial]) -> dict[tuple[float, float], int]:
    """The size of the largest ensemble for every distortion (ir, nr) of the trials."""
    sizes: dict[tuple[float, float], int] = {}
    for trial in trials:
        sizes[trial.ir, trial.nr] = max(trial.ensemble, sizes.get((trial.ir, trial.nr), 1))
    return sizes


def runs_of(options: Options, default_stop: int) -> range:
    """The runs from --run-start to before --run-stop (`default_stop`). Raises UserError if there is none."""
    stop = default_stop if options.run_stop is None else options.run_stop
    if options.run_start >= stop:
        raise UserError(f"there is no run from --run-start {options.run_start} up to before {stop}")
    return range(options.run_start, stop)


def over_runs(
    experiment: Experiment, options: Options, runs: Sequence[int], task: RunTask, each: int, trials: Sequence[Trial]
) -> int:
    """Every run's task, one after the other or in parallel (--jobs), then the tables; returns the exit status.

    Args:
        each: units of progress per run.
        trials: the trials in the tables.
    """
    if options.jobs > 1 and distributed.world_size() > 1:
        raise UserError("--jobs is for parallel runs; under torchrun all processes work on one run: leave it out")
    jobs = min(options.jobs, len(runs))
    data(experiment, options)  # before the runs, so that a download or an error happens once
    with Progress(total=len(runs) * each) as progress:
        failures = run_sequentially(runs, task, progress) if jobs == 1 else run_in_parallel(runs, task, progress, jobs)
    if trials and len(failures) < len(runs):
        folders = [RunFolder(root(experiment, options), number) for number in runs]
        records = [record for folder in folders for record in folder.results()]
        print("\n" + "\n\n".join(filter(None, (table(records, trials), cost_table(records, trials)))))
    for failure in failures:
        distributed.print_error(f"{failure.details}{Path(sys.argv[0]).name}: run {failure.run}: {failure.cause}")
    return 0 if not failures else 2 if all(failure.user for failure in failures) else 1


def check_initial_models(
    experiment: Experiment, options: Options, runs: Sequence[int], trials: Sequence[Trial]
) -> None:
    """Raises UserError unless the images are there and, with the command that makes it, each initial model."""
    data(experiment, options)
    distributed.broadcast_from_main(lambda: _check_initial_models(experiment, options, runs, trials))


def _check_initial_models(
    experiment: Experiment, options: Options, runs: Sequence[int], trials: Sequence[Trial]
) -> None:
    for folder in (RunFolder(root(experiment, options), number) for number in runs):
        for trial in trials:
            needed = [(trial.unsupervised, member) for member in range(trial.ensemble)]
            if trial.method in METHODS and get_method(trial.method).of_rotation_model:
                needed.append((True, 0))
            for unsupervised, member in needed:
                path = folder.initial(trial.distortion, unsupervised, member, trial.select)
                if not path.exists():
                    raise UserError(f"there is no initial model {path}: {initial_command(options, trial)} makes it")


# Start and end of a script


def guarded(parser: argparse.ArgumentParser, body: Callable[[Options], int], distributable: bool = False) -> int:
    """Parse the flags and call `body`; returns the exit status (see `guard`).

    Args:
        distributable: whether torchrun may start several processes.
    """

    def attempt() -> int:
        options = parser.parse_args()
        if distributed.world_size() == 1:  # torchrun's SIGTERM has to end a process that waits in a collective
            signal.signal(signal.SIGTERM, _interrupt)
        elif not distributable:
            raise UserError("this script runs as one process: start it without torchrun")
        return body(options)

    return distributed.run_distributed(lambda: guard(parser.prog, attempt))


def _interrupt(number: int, _: object) -> None:
    """Ends the script as Ctrl-C does: processes of --jobs are ended, and a line is printed."""
    raise KeyboardInterrupt(number)
