"""The table of accuracy under several imbalance and noise ratios."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from alfk.experiment.records import BASELINES, Record
from alfk.experiment.trial import Trial
from alfk.plotting.curves import EARLY
from alfk.plotting.figures import Setting
from alfk.plotting.names import name_of
from alfk.plotting.text import Table, plus_minus


def distortions_table(records: Iterable[Record]) -> Table:
    """Accuracy of the methods that were run under more than two distortions of the pool; without a row if none was.

    A row has the runs that all of its methods have.
    """
    found: dict[Trial, dict[tuple[float, float], list[Record]]] = {}
    for record in records:
        trial = Trial.of(record)
        setting = Setting.of(trial)
        if trial == trial.plain and trial.method not in BASELINES and setting[2:] == Setting(1)[2:]:
            key = dataclasses.replace(trial, ir=1.0, nr=0.0)
            found.setdefault(key, {}).setdefault((trial.ir, trial.nr), []).append(record)
    found = {trial: distortions for trial, distortions in found.items() if len(distortions) > 2}
    last = max((r["b"] for of_trial in found.values() for rs in of_trial.values() for r in rs), default=0)
    rows = []
    for distortion in sorted({each for of_trial in found.values() for each in of_trial}):
        for b in dict.fromkeys((min(EARLY, last), last)):
            by_run = [{r["run"]: r for r in of.get(distortion, ()) if r["b"] == b} for of in found.values()]
            present = [set(of) for of in by_run if of]
            runs = sorted(set.intersection(*present)) if present else []
            labels, cells = "", []
            for of in by_run:
                values = np.array([of[run]["accuracy"] for run in runs if of])
                labels = of[runs[0]]["labelled"] if of and runs else labels
                std = float(values.std()) if len(values) > 1 else math.nan
                cells.append(plus_minus(float(values.mean()), std, 1) if len(values) else "")
            rows.append([*(f"{ratio:g}" for ratio in distortion), labels, len(runs), *cells])
    return Table(["imbalance ratio", "noise ratio", "labels", "runs", *map(name_of, found)], rows)
