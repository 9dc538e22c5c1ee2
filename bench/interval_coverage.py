"""How often 95 % intervals of the mean of a few paired differences cover it: Student's t and the BCa bootstrap.

    python3 bench/interval_coverage.py

Prints a line per number of runs and distribution; a share of 1,500 samples is within 2 points of what it estimates.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import stats

from alfk.plotting.statistics import interval

SAMPLES, RESAMPLES = 1500, 2000
DISTRIBUTIONS = {  # of the differences -> (drawing, mean)
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "t, 3 degrees of freedom": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
}


def main() -> None:
    print("runs\tdistribution\tStudent's t\tBCa")
    for runs in (6, 10):
        for name, (draw, mean) in DISTRIBUTIONS.items():
            values = draw(np.random.default_rng(0), (SAMPLES, runs))
            student = np.array([interval(each) for each in values])
            options = {"n_resamples": RESAMPLES, "batch": 200, "rng": np.random.default_rng(1)}
            bca = np.stack(stats.bootstrap((values,), np.mean, axis=1, method="BCa", **options).confidence_interval, 1)
            covered = [100 * np.mean((low <= mean) & (mean <= high)) for low, high in (student.T, bca.T)]
            print(runs, name, *(f"{share:.1f}" for share in covered), sep="\t", flush=True)


if __name__ == "__main__":
    main()
