"""The paper's figures and claims, from the results of finished runs.

    python3 run_plot.py                                   # all data sets with results
    python3 run_plot.py --reference                       # with the curves of the paper and of its release
    python3 run_plot.py --dataset MNIST -ir 100 --methods Rzg_pz varR_E1
    python3 run_plot.py --dataset MNIST --show-selected --methods Rzg_pz_L80 --run-stop 1

Draws accuracy against the labelled share of the pool, mean and one standard deviation over runs, and writes for every
figure <name>.png, .pdf, .md (tables), _curves.csv, _summary.csv and _claims.csv into local_data/figures. A data set's
results are those under local_data/, or, if it has none there, those in the repository's results/. Only results lines
are read; missing runs and iterations are listed, never drawn.
"""

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from alfk.cli.datasets import all_experiments, get_experiment
from alfk.cli.guard import check_writable
from alfk.cli.options import Parser, accuracy, count, imbalance_ratio, positive
from alfk.cli.scripts import guarded
from alfk.experiment.records import BASELINES, INITS, Record
from alfk.method.acquisition import METHODS
from alfk.plotting import contact_sheets, plots, results, sizes, tables
from alfk.plotting.curves import parse_series, ranges
from alfk.plotting.distortions import distortions_table
from alfk.rivals import RIVALS
from alfk.support.errors import UserError
from alfk.support.files import atomic

ROOT = Path(__file__).resolve().parent
REFERENCE = ROOT / "reference"


def main() -> int:
    return guarded(make_parser(), run)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", help="one data set (all with results)")
    add("-ir", type=imbalance_ratio, nargs="+", default=[], metavar="IR", help="imbalance ratios (all)")
    add("--methods", nargs="+", default=[], metavar="KEY", help="methods, e.g. Rzg_pz, Rzg_pz_L80, varR_E4 (all)")
    add("--init", choices=tuple(INITS), help="one initial model (all)")
    add("--run-start", type=count, default=0, metavar="R", help="first run (0)")
    add("--run-stop", type=positive, metavar="R", help="the run before which to stop (all)")
    add("--datadir", type=Path, help="folder of the data sets' results (local_data, else results)")
    add("--save-folder", type=Path, metavar="DIR", help="folder with runN folders, as it was given to run.py")
    add("--out", type=Path, default=ROOT / "local_data" / "figures", help="folder for figures (local_data/figures)")
    add("--reference", action="store_true", help="also draw the curves of the paper and its release, and compare")
    add("--claim", metavar="SERIES", help="series whose claims are computed (Rzg_pz at its largest L)")
    add("--at", type=accuracy, metavar="ACC", help="accuracy at which labels are compared (the highest both reach)")
    add("--into", type=Path, metavar="FILE", help="Markdown file whose <!-- NAME --> tables are replaced")
    add("--show-selected", action="store_true", help="draw the images that each method chose, instead of the curves")
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw the figures that the flags name; returns the exit status. Raises UserError."""
    check_writable(options.out, "--out")
    rivals = [rival.key for rival in RIVALS]
    options.methods = [key for name in options.methods for key in (rivals if name == "rivals" else [name])]
    if options.into and not options.into.is_file():
        raise UserError(f"--into {options.into} is not there, or not a file")
    if options.save_folder and not options.save_folder.is_dir():
        raise UserError(f"there is no folder {options.save_folder}")
    drawn, methods, left_out = 0, {*METHODS, "vaal", *BASELINES}, 0
    for name in datasets(options):
        folder = results_folder(name, options)
        found = results.read_runs(folder, options.run_start, options.run_stop, warn)
        dataset = found.dataset if found.records else name
        methods |= {record["method"] for record in found.records}  # the user's own too
        left_out += len(found.left_out)
        found.records = results.select(found.records, options.ir, options.methods, options.init)
        if options.show_selected:
            if found.records:
                images = options.datadir or ROOT / "local_data"
                experiment = get_experiment(dataset, images)
                for path in contact_sheets.contact_sheets(experiment, found, images, options.out):
                    print(f"{relative(path)}.png, .pdf")
                    drawn += 1
            continue
        for figure in figures(dataset, found.records, options):
            if not options.ir or figure.ir in options.ir:
                figure = dataclasses.replace(figure, title=figure.title + found.remark)
                figure = results.narrow(figure, options.methods, options.init)
                if figure.has_curves:
                    show(figure, found, options)
                    drawn += 1
        drawn += show_sizes(dataset, found, options)
        table = distortions_table(found.records)
        if table:
            print(f"\nImbalance and noise ratios, test accuracy in %, mean ± std (runs)\n\n{table}")
            into(options, f"{dataset}_distortions", table)
        for name in results.not_drawn(found.records):
            warn(f"not drawn, but in results.jsonl: {name}")
    unknown = [name for name in options.methods if parse_series(name)[0] not in methods]
    if unknown:
        raise UserError(f"there is no method or series {unknown[0]!r}: name {', '.join(METHODS)}, or e.g. Rzg_pz_L80")
    if not drawn:
        place = options.save_folder or options.datadir or "local_data/ or results/"
        fix = "the commands named above make them again" if left_out else "bash demo.sh makes some, or a run.py"
        raise UserError(f"there are no such results under {place}: {fix}")
    return 0


def figures(dataset: str, records: Sequence[Record], options: argparse.Namespace) -> list[results.FigureData]:
    """The figures of a data set; without a folder in the repository it has neither letters nor reference curves."""
    known = all_experiments().get(dataset)
    panels, runs = (known.panels, known.runs) if known else ({}, 1)
    return results.figures(dataset, records, REFERENCE, options.reference, panels, runs, own_images=known is None)


def datasets(options: argparse.Namespace) -> list[str]:
    """The names of the data sets' folders."""
    if options.save_folder:
        return [options.save_folder.absolute().name]
    if options.dataset:
        return [options.dataset]
    roots = [options.datadir] if options.datadir else [ROOT / "local_data", ROOT / "results"]
    found = {path.parents[1].name for root in roots for path in root.glob("*/run*/results.jsonl")}
    with_curves = {name for name in all_experiments() if any(REFERENCE.glob(f"{name.lower()}_ir*.csv"))}
    return sorted(found | (with_curves if options.reference else set()))


def results_folder(dataset: str, options: argparse.Namespace) -> Path:
    """The folder of a data set's runs."""
    if options.save_folder:
        return options.save_folder
    if options.datadir:
        return options.datadir / dataset
    local = ROOT / "local_data" / dataset
    return local if any(local.glob("run*/results.jsonl")) else ROOT / "results" / dataset


def warn(text: str) -> None:
    print(text, file=sys.stderr)


def show(figure: results.FigureData, found: results.Results, options: argparse.Namespace) -> None:
    """Draw one figure, print its tables and write its files."""
    runs = range(options.run_start, options.run_stop) if options.run_stop else found.runs
    source = f"run {ranges(found.runs)} in {relative(found.folder)}" if figure.trials else "the paper's curves"
    print(f"\n{figure.title}: {source}")
    results.print_missing(figure, runs, print)
    if figure.lines:
        print(f"  {figure.lines_text}")
    path = results.plot_figure(figure, options.out, options.reference)
    printed = {}
    if options.reference:
        compared = tables.comparison_table(figure)
        printed["Ours, the paper's and the release's"] = compared and f"{compared}\n\n{tables.agreement(figure)}"
    hardest = getattr(all_experiments().get(found.dataset), "hardest", ())
    summary, claims = tables.summary_rows(figure, found.minority, hardest), []
    printed["Curves as numbers"] = tables.summary_table(summary)
    ours = tables.claim_trial(figure, options.claim)
    if options.claim and ours is None:
        warn(f"warning: {figure.name} has no {options.claim} to make claims for")
    if ours is not None:
        claims = tables.claim_rows(figure, ours, options.at)
        printed[f"{results.name_of(ours)} against the others"] = tables.claim_table(claims)
    for title, table in printed.items():
        if table:
            print(f"\n{title}\n\n{table}")
    minority = tables.minority_text(figure, found.minority, found.classes)
    if minority:
        print(f"\n{minority}")
    rows = {"_curves.csv": tables.curve_rows(figure), "_summary.csv": summary, "_claims.csv": claims}
    for ending, body in rows.items():
        write_csv(path.with_name(f"{path.name}{ending}"), body)
    with atomic(path.with_name(f"{path.name}.md")) as file:
        file.write(tables.markdown(figure, summary, claims, ours, minority, found.left_out).encode())
    into(options, figure.name, f"{tables.digest(figure)}\n\n{tables.agreement(figure)}".rstrip())
    into(options, f"{figure.name} knowledge", tables.knowledge_table(figure))
    into(options, f"{figure.name} classes", tables.classes_table(figure))
    into(options, f"{figure.name} claims", tables.claim_table(claims, "github"))
    into(options, f"{figure.name} numbers", tables.summary_table(summary, "github"))
    print(
        "\n" + ", ".join([f"{relative(path)}.png", ".pdf", ".md", *(ending for ending, body in rows.items() if body)])
    )


def show_sizes(dataset: str, found: results.Results, options: argparse.Namespace) -> int:
    """Draw and print the figures of sizes of the validation set; returns their number."""
    figures = sizes.size_figures(dataset, found.records, found.validation, dataset not in all_experiments())
    for figure in figures:
        table = sizes.sizes_table(figure)
        print(f"\n{figure.title}\n\n{table}\n")
        path = options.out / figure.name
        plots.plot_sizes(path, figure.title, figure.panels)
        with atomic(path.with_name(f"{path.name}.md")) as file:
            file.write(f"# {figure.title}\n\n![{figure.title}]({figure.name}.png)\n\n{table}\n".encode())
        into(options, figure.name, table)
        print(f"{relative(path)}.png, .pdf, .md")
    return len(figures)


def into(options: argparse.Namespace, name: str, text: str) -> None:
    """`fill` the file of --into, if there is one."""
    if options.into:
        fill(options.into, name, text)


def relative(path: Path) -> str:
    """The path relative to the current folder, if it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def fill(path: Path, name: str, text: str) -> None:
    """Replace the text between <!-- name --> and <!-- end --> in a Markdown file, if it has that mark."""
    content, start = path.read_text(encoding="utf-8"), f"<!-- {name} -->\n"
    before, found, rest = content.partition(start)
    if found:
        _, end, after = rest.partition("<!-- end -->")
        with atomic(path) as file:
            file.write(f"{before}{start}\n{text}\n\n{end}{after}".encode())


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `rows` as a table; without rows, delete the file."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: tables.csv_cell(value) for k, value in row.items()} for row in rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
