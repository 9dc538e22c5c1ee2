"""The table of accuracy under several imbalance and noise ratios."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from alfk.experiment.records import BASELINES, Record
from alfk.experiment.trial import Trial
from alfk.plotting.curves import EARLY
from alfk.plotting.results import name_of
from alfk.plotting.tables import plus_minus, text_table


def distortions_table(records: Iterable[Record]) -> str:
    """Accuracy of the methods that were run under several imbalance or noise ratios, as Markdown; empty if none was.

    A row has the runs that all of its methods have.
    """
    found: dict[Trial, dict[tuple[float, float], list[Record]]] = {}
    for record in records:
        trial = Trial.of(record)
        if trial == trial.plain and trial.init == "rotation" and trial.select == "test":
            key = dataclasses.replace(trial, ir=1.0, nr=0.0)
            found.setdefault(key, {}).setdefault((trial.ir, trial.nr), []).append(record)
    found = {trial: cases for trial, cases in found.items() if len(cases) > 2 and trial.method not in BASELINES}
    last = max((r["b"] for cases in found.values() for rs in cases.values() for r in rs), default=0)
    cases = sorted({case for of_trial in found.values() for case in of_trial})
    body = []
    for ir, nr in cases:
        for b in dict.fromkeys((min(EARLY, last), last)):
            by_run = [{r["run"]: r for r in of_trial.get((ir, nr), ()) if r["b"] == b} for of_trial in found.values()]
            common = [set(of) for of in by_run if of]
            runs = sorted(set.intersection(*common)) if common else []
            row, labels = [], ""
            for of in by_run:
                values = np.array([of[run]["accuracy"] for run in runs if of])
                labels = of[runs[0]]["labelled"] if of and runs else labels
                spread = float(values.std()) if len(values) > 1 else math.nan
                row.append(plus_minus(float(values.mean()), spread, 1) if len(values) else "")
            body.append([f"{ir:g}", f"{nr:g}", labels, str(len(runs)), *row])
    return text_table(body, ["imbalance ratio", "noise ratio", "labels", "runs", *map(name_of, found)], "github")
