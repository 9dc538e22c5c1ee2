"""Accuracy curves from the results of finished runs: mean and standard deviation over runs.

    python3 run_plot.py                     # every data set with results under local_data/
    python3 run_plot.py --dataset DIGITS    # one of them

Writes <DATASET>_ir<IR>_<init>.png and .pdf into local_data/figures and prints their names. Only results.jsonl is read.
"""

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from alfk.acquisition import METHODS
from alfk.errors import UserError
from alfk.runs import Record, Trial, read_results
from alfk.uncertainty import MEASURES

ROOT = Path(__file__).resolve().parent

# One colour and marker a method in all figures (Okabe and Ito's palette, safe for colour-blind readers).
STYLES = {
    "random": ("#000000", "o"),
    "varR": ("#0072B2", "X"),
    "entropy": ("#0072B2", "<"),
    "BALD": ("#0072B2", ">"),
    "std": ("#0072B2", "1"),
    "Rz": ("#56B4E9", "s"),
    "Rzg_trace": ("#F0E442", "p"),
    "Rzg_mi": ("#999999", "h"),
    "Rzg_mi_diag": ("#999999", "H"),
    "Rzg_pred": ("#E69F00", "v"),
    "Rzg_pz": ("#D55E00", "D"),
    "Rzg_pzg": ("#CC79A7", "^"),
    "Rzg_true": ("#009E73", "P"),
}
DASHES = {10: (1, 1), 20: (4, 2), 30: (5, 1, 1, 1), 80: (), 90: (8, 2)}


def curves(records: list[Record]) -> dict[Trial, dict[float, list[float]]]:
    """Accuracies of every trial by labelled share in percent, one value a run."""
    found: dict[Trial, dict[float, list[float]]] = {}
    for r in records:
        found.setdefault(Trial.of(r), {}).setdefault(r["labelled_share"], []).append(r["accuracy"])
    return found


def draw(title: str, found: dict[Trial, dict[float, list[float]]], path: Path) -> None:
    """One figure: a curve with error bars (one standard deviation) for every trial; saved as PNG and PDF."""
    figure, axes = plt.subplots(figsize=(8.6, 4.6), constrained_layout=True)
    order = list(STYLES)
    for trial in sorted(found, key=lambda t: (order.index(t.method), t.length, t.ensemble)):
        points = sorted(found[trial].items())
        shares, values = [share for share, _ in points], [v for _, v in points]
        colour, marker = STYLES[trial.method]
        runs = max(map(len, values))
        length = f", $L_{{{trial.length}}}$" if trial.length else ""
        length += f", $E={trial.ensemble}$" if trial.method in MEASURES else ""
        axes.errorbar(
            shares,
            [statistics.fmean(v) for v in values],
            yerr=[statistics.pstdev(v) for v in values] if runs > 1 else None,
            label=f"{METHODS[trial.method].notation}{length} ({runs} run{'s' if runs > 1 else ''})",
            color=colour,
            marker=marker,
            dashes=(4, 2) if trial.method in MEASURES and trial.ensemble == 1 else DASHES.get(trial.length, ()),
            markersize=5,
            linewidth=1.5,
            capsize=2.5,
            elinewidth=0.9,
        )
    axes.set(title=title, xlabel="labelled share of the pool, %", ylabel="test accuracy, %")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    plt.close(figure)


def figures(dataset: str, folder: Path, out: Path) -> list[Path]:
    """Draw every (ir, noise, initial model) of one data set for which there are results."""
    records = [r for path in sorted(folder.glob("run*/results.jsonl")) for r in read_results(path)]
    groups: dict[tuple[float, float, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["ir"], record["nr"], record["init"]), []).append(record)
    paths = []
    for (ir, nr, init), members in sorted(groups.items()):
        noise = f"_nr{nr:g}" if nr else ""
        path = out / f"{dataset}_ir{ir:g}{noise}_{init}.png"
        out.mkdir(parents=True, exist_ok=True)
        balance = "no class imbalance" if ir == 1 else f"{ir:g}x class imbalance"
        draw(f"{dataset}, {balance}, {init} initial model", curves(members), path)
        paths.append(path)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="one data set (all with results)")
    parser.add_argument("--datadir", type=Path, default=ROOT / "local_data", help="folder of the data sets' results")
    parser.add_argument("--out", type=Path, help="folder for the figures (<datadir>/figures)")
    options = parser.parse_args()
    names = [options.dataset] if options.dataset else sorted({p.parent.name for p in options.datadir.glob("*/run*")})
    out = options.out or options.datadir / "figures"
    try:
        paths = [path for name in names for path in figures(name, options.datadir / name, out)]
    except (UserError, OSError) as problem:
        print(f"run_plot.py: {problem}", file=sys.stderr)
        return 2
    if not paths:
        print(f"run_plot.py: no results under {options.datadir}: bash demo.sh makes some", file=sys.stderr)
        return 2
    for path in paths:
        print(f"{path} and {path.with_suffix('.pdf').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
