"""Accuracy of Rzg_pz on MNIST, ir=100, against the rotation accuracy of the run's initial model: figure, correlations.

    python3 bench/rotation_accuracy.py        # results/figures/rotation_accuracy.png

The runs are those in results/MNIST and, drawn only, those from rotation models that the release's script trained
(reference/release_rotation_models.csv): continued by its loop, or by ours. Prints Pearson's correlation over the runs
in results/MNIST with its 95 % interval (Fisher's z).
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
from scipy.stats import pearsonr

from alfk.experiment.trial import Trial
from alfk.plotting.axes import tidy
from alfk.plotting.results import read_runs
from alfk.plotting.saving import save
from bench.common import guarded

LABELLED = {375: "0.75", 1250: "2.5"}  # images -> % of the undistorted pool
LENGTHS = {20: ("#D55E00", "D"), 80: ("#0072B2", "o")}
RELEASE = {"release": ("none", "release, L = 20"), "ours": ("#999999", "our loop from the release's model, L = 20")}
Points = list[tuple[float, float]]  # rotation accuracy and accuracy of each run, in %


def main() -> int:
    figure, panels = plt.subplots(1, len(LABELLED), figsize=(9, 3.8), layout="constrained")
    for axes, (labelled, percent) in zip(panels, LABELLED.items(), strict=True):
        for length, (colour, marker) in LENGTHS.items():
            points = our_points(length, labelled)
            axes.scatter(*zip(*points, strict=True), c=colour, marker=marker, label=f"our runs, L = {length}")
            found, runs = pearsonr(*zip(*points, strict=True)), len(points)
            low, high = found.confidence_interval()
            print(f"L={length}, {labelled} labels: r = {found.statistic:.2f} ({low:.2f} to {high:.2f}), {runs} runs")
        for loop, (colour, label) in RELEASE.items():
            points = release_points(loop, percent)
            axes.scatter(*zip(*points, strict=True), c=colour, edgecolors="#D55E00", marker="^", label=label)
        axes.set(xlabel="rotation accuracy of the initial model, %", title=f"{labelled:,} labels")
        tidy(axes)
    panels[0].set_ylabel("test accuracy, %")
    panels[0].legend(frameon=False, fontsize=8.5)
    save(figure, ROOT / "results" / "figures" / "rotation_accuracy.png", dpi=150)
    return 0


def rows(*path: str) -> Iterator[dict[str, str]]:
    with open(ROOT.joinpath(*path), newline="") as file:
        yield from csv.DictReader(file)


def our_points(length: int, labelled: int) -> Points:
    """Of the runs in results/MNIST."""
    models = {
        int(row["run"]): float(row["rotation_accuracy"])
        for row in rows("results", "MNIST", "rotation_models.csv")
        if (row["ir"], row["select"], row["member"]) == ("100", "test", "0")
    }
    records = read_runs(ROOT / "results" / "MNIST", 0, None, print).records
    chosen = [r for r in records if Trial.of(r) == Trial(100, "Rzg_pz", length) and r["labelled"] == labelled]
    return [(models[r["run"]], r["accuracy"]) for r in chosen]


def release_points(loop: str, percent: str) -> Points:
    """From the release's rotation models whose accuracy is known to a tenth."""
    return [
        (float(row["rotation_accuracy"]), float(row["accuracy"]))
        for row in rows("reference", "release_rotation_models.csv")
        if (row["loop"], row["labeled_percent"]) == (loop, percent) and row["rotation_accuracy"]
    ]


if __name__ == "__main__":
    sys.exit(guarded(main))
