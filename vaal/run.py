"""VAAL on all runs of a data set, one after the other or in parallel (--jobs); finished iterations are skipped.

    python3 ../mnist/run.py --initial -ir 100      # rotation models, from which VAAL starts
    python3 run.py -ir 100                         # MNIST, ten runs
    python3 run.py --dataset DIGITS --run-stop 1   # small: minutes

python3 ../run_plot.py draws its curve beside those of the other methods.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import options as flags
from alfk.cli import scripts
from alfk.experiment.config import Experiment
from vaal import main
from vaal.config import experiments


def run(registry: dict[str, Experiment], about: str) -> int:
    """run.py: all AL iterations of all runs."""
    parser = flags.protocol_parser(registry, about)
    main.add_recipe(parser)
    flags.add_runs(parser, "the data set's")

    def body(options: argparse.Namespace) -> int:
        experiment = flags.experiment_of(registry, options)
        runs, trials = scripts.runs_of(options, experiment.runs), main.trials_of(experiment, options, options.ir)
        scripts.check_initial_models(experiment, options, runs, trials)
        task = main.VaalRun(experiment, options, trials)
        return scripts.over_runs(experiment, options, runs, task, len(trials) * experiment.iterations, trials)

    return scripts.guarded(parser, body)


if __name__ == "__main__":
    sys.exit(run(experiments(), __doc__))
