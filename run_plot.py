"""The paper's figures and claims, from the results of finished runs.

    python3 run_plot.py                                   # all data sets with results
    python3 run_plot.py --reference                       # with the curves of the paper and of its release
    python3 run_plot.py --dataset MNIST -ir 100 --methods Rzg_pz varR_E1
    python3 run_plot.py --dataset MNIST --show-selected --methods Rzg_pz_L80 --run-stop 1
    python3 run_plot.py --dataset MNIST -ir 100 --methods random varR_E1 Rzg_pz_L80 --plain results/figures/readme.png

Draws accuracy against the labelled share of the pool, mean and one standard deviation over runs, and writes for every
figure <name>.png, .pdf, .md (tables), _curves.csv, _summary.csv and _claims.csv into local_data/figures. A data set's
results are those under local_data/, or, if it has none there, those in the repository's results/. Only results lines
are read; missing runs and iterations are listed, never drawn.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from alfk.cli.datasets import all_experiments, get_experiment
from alfk.cli.guard import check_writable
from alfk.cli.options import Parser, accuracy, count, imbalance_ratio, positive
from alfk.cli.scripts import guarded
from alfk.experiment.records import BASELINES, INITS
from alfk.method.acquisition import METHODS
from alfk.plotting import contact_sheets, plots, results
from alfk.plotting.curves import ranges
from alfk.plotting.distortions import distortions_table
from alfk.plotting.figures import FigureData, Setting, by_setting, figures, not_drawn, print_missing, select
from alfk.plotting.names import parse_series
from alfk.plotting.pages import Page, page_of, page_of_sizes
from alfk.plotting.results import Results
from alfk.plotting.sizes import size_figures
from alfk.plotting.tables import claim_trial
from alfk.plotting.text import csv_text
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
    add("--plain", type=Path, metavar="PNG", help="draw one figure, with few curves and direct labels, into this file")
    add("--show-selected", action="store_true", help="draw the images that each method chose, instead of the curves")
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw the figures that the flags name; returns the exit status. Raises UserError."""
    check_writable(options.out, "--out")
    if options.into and not options.into.is_file():
        raise UserError(f"--into {options.into} is not there, or not a file")
    if options.save_folder and not options.save_folder.is_dir():
        raise UserError(f"there is no folder {options.save_folder}")
    runs = options.run_start, options.run_stop
    data_sets = [results.read_runs(folder, *runs, warn) for folder in results_folders(options)]
    rivals = [rival.key for rival in RIVALS]
    options.methods = [key for name in options.methods for key in (rivals if name == "rivals" else [name])]
    check_methods(options.methods, data_sets)
    for found in data_sets:
        found.records = select(found.records, options.ir, options.methods, options.init)
        found.check_settings()
    if options.plain:
        draw_plain(data_sets, options)
        return 0
    draw = draw_selected if options.show_selected else draw_figures
    if not sum([draw(found, options) for found in data_sets]):
        place = options.save_folder or options.datadir or "local_data/ or results/"
        left_out = any(found.left_out for found in data_sets)
        fix = "the commands named above make them again" if left_out else "bash demo.sh makes some, or a run.py"
        raise UserError(f"there are no such results under {place}: {fix}")
    return 0


def results_folders(options: argparse.Namespace) -> list[Path]:
    """The folders of the data sets' runs."""
    if options.save_folder:
        return [options.save_folder.absolute()]
    roots = [options.datadir] if options.datadir else [ROOT / "local_data", ROOT / "results"]
    with_results = {path.parents[1] for root in roots for path in root.glob("*/run*/results.jsonl")}
    names = {options.dataset} if options.dataset else {folder.name for folder in with_results}
    if options.reference and not options.dataset:
        names |= {name for name in all_experiments() if any(REFERENCE.glob(f"{name.lower()}_ir*.csv"))}
    candidates = [[root / name for root in roots] for name in sorted(names)]
    return [next((folder for folder in each if folder in with_results), each[-1]) for each in candidates]


def check_methods(names: Sequence[str], data_sets: Sequence[Results]) -> None:
    """Raises UserError for a name of --methods that is neither a method nor one of a user's own in the results."""
    known = {*METHODS, "vaal", *BASELINES, *(record["method"] for found in data_sets for record in found.records)}
    unknown = [name for name in names if parse_series(name)[0] not in known]
    if unknown:
        raise UserError(f"there is no method or series {unknown[0]!r}: name {', '.join(METHODS)}, or e.g. Rzg_pz_L80")


def figures_of(found: Results, options: argparse.Namespace) -> list[FigureData]:
    """The figures of a data set; without a folder in the repository it has neither letters nor reference curves."""
    known = all_experiments().get(found.dataset)
    panels, runs = (known.panels, known.runs) if known else ({}, 1)
    panels = {} if options.plain else panels  # a figure that stands alone has no letter
    drawn = figures(found.dataset, found.records, REFERENCE, options.reference, panels, runs, own_images=known is None)
    drawn = [f.narrowed(options.methods, options.init) for f in drawn if not options.ir or f.ir in options.ir]
    return [dataclasses.replace(f, title=f.title + found.remark) for f in drawn if f.has_curves]


def draw_figures(found: Results, options: argparse.Namespace) -> int:
    """Draw all figures of a data set, print and write their tables; returns the number of figures."""
    own_images = found.dataset not in all_experiments()
    hardest = () if own_images else all_experiments()[found.dataset].hardest
    drawn = figures_of(found, options)
    runs = range(options.run_start, options.run_stop) if options.run_stop else found.runs
    for figure in drawn:
        source = f"run {ranges(found.runs)} in {relative(found.folder)}" if figure.trials else "the paper's curves"
        print(f"\n{figure.title}: {source}")
        print_missing(figure, runs, print)
        plots.plot_curves(options.out / figure.name, figure, options.reference)
        if options.claim and claim_trial(figure, options.claim) is None:
            warn(f"warning: {figure.name} has no {options.claim} to make claims for")
        shown = ["lines", *([""] if options.reference else []), "numbers", "differences", "claims", "minority"]
        publish(page_of(figure, found, hardest, options.claim, options.at), shown, options)
    sizes = size_figures(found.dataset, found.records, found.validation, own_images)
    for figure in sizes:
        print(f"\n{figure.title}")
        plots.plot_sizes(options.out / figure.name, figure)
        publish(page_of_sizes(figure), [""], options)
    table = distortions_table(found.records)
    if table:
        print(f"\nImbalance and noise ratios, test accuracy in %, mean ± std (runs)\n\n{table}")
        fill(options.into, f"{found.dataset}_distortions", str(table))
    for name in not_drawn(found.records):
        warn(f"not drawn, but in results.jsonl: {name}")
    return len(drawn) + len(sizes)


def draw_selected(found: Results, options: argparse.Namespace) -> int:
    """Draw the images that each method chose; returns the number of sheets."""
    if not found.records:
        return 0
    images = options.datadir or ROOT / "local_data"
    experiment = get_experiment(found.dataset, images)
    drawn = 0
    for path in contact_sheets.contact_sheets(experiment, found, images, options.out):
        print(f"{relative(path)}.png, .pdf")
        drawn += 1
    return drawn


def draw_plain(data_sets: Sequence[Results], options: argparse.Namespace) -> None:
    """Draw the figure of --plain, with the paper's curve of --claim. Raises UserError if the flags do not name one."""
    wanted = []
    for found in data_sets:
        settings = by_setting(record for record in found.records if record["method"] not in BASELINES)
        for figure in figures_of(found, options):
            setting = Setting(figure.ir)
            trials = {t: r for t, r in settings.get(setting, {}).items() if t == t.plain}  # rivals too
            if trials and figure.name == setting.name(found.dataset):
                wanted.append(dataclasses.replace(figure, trials=trials))
    if len(wanted) != 1:
        raise UserError(f"--plain draws one figure, not {len(wanted)}: name a --dataset with results and one -ir of it")
    plots.plot_plain(options.plain, wanted[0], claim_trial(wanted[0], options.claim))
    print(relative(options.plain))


def publish(page: Page, shown: Sequence[str], options: argparse.Namespace) -> None:
    """Print the sections of a page named in `shown`, write its files, and fill the marks of --into."""
    for key in shown:
        if key in page.sections:
            print(f"\n{page.sections[key].for_terminal()}")
    path = options.out / page.name
    write(path.with_name(f"{path.name}.md"), page.markdown())
    for ending, rows in page.files.items():
        write(path.with_name(f"{path.name}{ending}"), csv_text(rows) if rows else None)
    for key, section in page.sections.items():
        fill(options.into, f"{page.name} {key}".strip(), str(section))
    print(
        "\n" + ", ".join([f"{relative(path)}.png", ".pdf", ".md", *(end for end, rows in page.files.items() if rows)])
    )


def write(path: Path, text: str | None) -> None:
    """Write a text file; delete it if `text` is None."""
    if text is None:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as file:
        file.write(text.encode())


def fill(path: Path | None, name: str, text: str) -> None:
    """Replace the text between <!-- name --> and <!-- end --> in a Markdown file, if there is one with that mark."""
    if path is None:
        return
    before, mark, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    if mark:
        _, end, after = rest.partition("<!-- end -->")
        write(path, f"{before}{mark}\n{text}\n\n{end}{after}")


def relative(path: Path) -> str:
    """The path relative to the current folder, if it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def warn(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
