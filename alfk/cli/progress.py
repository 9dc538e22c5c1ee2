"""Progress of a long run, on a terminal or in a log, and the tables printed at its end."""

import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from alfk.experiment.records import Record
from alfk.experiment.trial import Trial
from alfk.support import distributed

COLUMNS = "run  method            ir  init            b  labelled      %   test %  epoch  val.err   s"
SILENCE = 60  # seconds without a line in a log, after which one says what is being done


class Progress:
    """One progress display for all runs: a bar on a terminal, and a line for each initial model and AL iteration.

    In a log, which has no bar, a line says what is being done after a minute of silence. It is a `Report`: it is called
    with an event, for which there is a method below, and its information.
    """

    def __init__(self, total: int):
        disable = None if distributed.is_main_process() else True  # None: unless it is written on a terminal
        self.bar = tqdm(total=total, disable=disable, unit="iteration", dynamic_ncols=True, smoothing=0.05)
        self.doing: dict[int, str] = {}
        self.header_shown = False
        self.warnings: set[str] = set()
        self.in_log = self.bar.disable and distributed.is_main_process()
        self.last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line)
        self.last_line = time.monotonic()

    def __call__(self, event: str, **info: Any) -> None:
        getattr(self, f"_on_{event}")(**info)

    def _on_stage(self, run: int, trial: Trial, b: int, doing: str) -> None:
        self._show(run, f"{trial.label()} b={b} {doing}")

    def _on_epoch(self, run: int, doing: str, epoch: int, of: int) -> None:
        self._show(run, f"{doing} epoch {epoch}/{of}")

    def _on_step(self, run: int, doing: str, step: int, of: int) -> None:
        self._show(run, f"{doing} step {step}/{of}")

    def _on_initial(self, run: int, ir: float, init: str, member: int, skipped: bool = False, **facts: Any) -> None:
        outcome = "exists already" if skipped else f"made in {facts['seconds']:.1f} s"
        if "rotation_accuracy" in facts:
            outcome += f", rotation accuracy {facts['rotation_accuracy']:.1f} %, epoch {facts['epoch']}"
        which = f" of member {member}" if member else ""
        self.print_line(f"run {run}  ir={ir:g}  {init} initial model{which} {outcome}")
        self._advance(run)

    def _on_iteration(self, record: Record, skipped: bool = False) -> None:
        if not skipped:
            if not self.header_shown:
                self.print_line(COLUMNS)
                self.header_shown = True
            self.print_line(line(record))
            if record["at_random"]:
                why = ": no validation image is misclassified" if record["misclassified"] == 0 else ""
                self.print_line(f"     {record['at_random']} images drawn at random{why}")
        self._advance(record["run"])

    def _on_warning(self, text: str, run: int | None = None) -> None:
        """Printed once, whatever the number of runs."""
        if text not in self.warnings:
            self.warnings.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def _advance(self, run: int) -> None:
        self.doing.pop(run, None)
        self._refresh()
        self.bar.update()

    def _show(self, run: int, text: str) -> None:
        self.doing[run] = text
        self._refresh()
        if self.in_log and time.monotonic() - self.last_line >= SILENCE:
            self.print_line(f"{time.strftime('%H:%M')}  run {run}  {text}")

    def _refresh(self) -> None:
        self.bar.set_postfix_str("; ".join(f"run {run}: {what}" for run, what in sorted(self.doing.items())))


def line(record: Record) -> str:
    """A finished iteration as a line under COLUMNS. Its epoch is the one kept, for each member of an ensemble; 0 means
    the starting model.
    """
    trial = Trial.of(record)
    epochs = "/".join(map(str, record["epochs"]))
    errors = "" if record["misclassified"] is None else record["misclassified"]
    return (
        f"{record['run']:>3}  {trial.short():<15} {trial.ir:>4g}  {trial.init:<13} {record['b']:>3}  "
        f"{record['labelled']:>8} {record['labelled_share']:>6.2f}  {record['accuracy']:>7.2f}  {epochs:>5} "
        f"{errors:>8} {sum(record['seconds'].values()):>5.1f}"
    )


def table(records: Sequence[Record], trials: Iterable[Trial]) -> str:
    """Accuracy of every trial (columns) after every AL iteration (rows): mean ± standard deviation over runs.

    The standard deviation has the number of runs as divisor, like the paper's error bars; a single run has none. A cell
    with fewer runs than others of its column ends with their number. There is one table for each (ir, nr, init).
    """
    groups: dict[tuple[float, float, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.ir, trial.nr, trial.init), []).append(trial)
    parts = []
    for (ir, nr, init), members in groups.items():
        columns = {trial: column for trial in members if (column := _accuracies(records, trial))}
        if not columns:
            continue
        runs = {trial: max(map(len, column.values())) for trial, column in columns.items()}
        names = [f"{trial.short()}\n{count} run{'s' if count > 1 else ''}" for trial, count in runs.items()]
        rows = [
            [size, f"{share:.2f}", *(_cell(column.get(size, []), runs[trial]) for trial, column in columns.items())]
            for size, share in sorted({(r["labelled"], r["labelled_share"]) for r in records if Trial.of(r) in members})
        ]
        noise = f", nr={nr:g}" if nr else ""
        title = f"Test accuracy in %, imbalance ratio {ir:g}{noise}, {init} initial model, mean ± std over runs"
        parts.append(_titled(title, ["labelled", "% of pool", *names], rows))
    return "\n\n".join(parts)


def _accuracies(records: Iterable[Record], trial: Trial) -> dict[int, list[float]]:
    """Number of labelled images -> the trial's test accuracies, one for each run."""
    column: dict[int, list[float]] = {}
    for record in filter(trial.describes, records):
        column.setdefault(record["labelled"], []).append(record["accuracy"])
    return column


def _cell(values: Sequence[float], runs: int) -> str:
    """Mean and standard deviation, and the number of values unless there are as many as runs."""
    if not values:
        return ""
    spread = f" ± {statistics.pstdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}" + ("" if len(values) == runs else f" ({len(values)})")


def cost_table(records: Sequence[Record], trials: Iterable[Trial]) -> str:
    """Mean cost of an acquisition over all iterations after the first, and the accuracy of its pseudo-labels.

    Costs are millions of images that passed through the network, and seconds of measurement and choice.
    """
    rows = []
    for trial in trials:
        later = [r for r in records if trial.describes(r) and r["b"] > 0]
        if not later:
            continue
        passes = [f"{statistics.fmean(r['passes'][way] for r in later) / 1e6:.3f}" for way in ("forward", "backward")]
        seconds = statistics.fmean(r["seconds"]["describe"] + r["seconds"]["acquire"] for r in later)
        estimated = [r for r in later if r["pseudo_label_accuracy"] is not None]
        overall = [r["pseudo_label_accuracy"] for r in estimated]
        worst = [min(v for v in r["pseudo_label_accuracy_per_class"] if v is not None) for r in estimated]
        correct = [f"{statistics.fmean(values):.1f}" if values else "" for values in (overall, worst)]
        rows.append([trial.short(), f"{trial.ir:g}", trial.init, *passes, f"{seconds:.2f}", *correct])
    if not rows:
        return ""
    headers = ["method", "ir", "init", "forward\n10^6", "backward\n10^6", "seconds", "correct\n%", "worst\nclass %"]
    return _titled("One acquisition after the first (mean), and the pool's pseudo-labels", headers, rows)


def _titled(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return f"{title}\n\n{tabulate(rows, headers=headers, disable_numparse=True, stralign='right')}"
