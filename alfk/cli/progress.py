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
SILENCE = 60  # seconds without a line, in a log, after which one says what is being done


class Progress:
    """One progress display for all runs: a bar on a terminal, and a line for each initial model and AL iteration.

    In a log, where there is no bar, a line a minute says what is being done.

    It is a Report: to be called with an event and its information.
    """

    def __init__(self, total: int):
        self.bar = tqdm(
            total=total,
            disable=None if distributed.is_main_process() else True,
            unit="iteration",
            dynamic_ncols=True,
            smoothing=0.05,
        )
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
        score = ""
        if "rotation_accuracy" in facts:
            score = f", rotation accuracy {facts['rotation_accuracy']:.1f} %, epoch {facts['epoch']}"
        outcome = "exists already" if skipped else f"made in {facts['seconds']:.1f} s{score}"
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
    """One finished iteration as a line under COLUMNS. Its epochs: those kept, one a member; 0 if none was better."""
    trial = Trial.of(record)
    epochs = "/".join(map(str, record["epochs"]))
    errors = "" if record["misclassified"] is None else record["misclassified"]
    return (
        f"{record['run']:>3}  {trial.short():<15} {trial.ir:>4g}  {trial.init:<13} {record['b']:>3}  "
        f"{record['labelled']:>8} {record['labelled_share']:>6.2f}  {record['accuracy']:>7.2f}  {epochs:>5} "
        f"{errors:>8} {sum(record['seconds'].values()):>5.1f}"
    )


def table(records: Iterable[Record], trials: Iterable[Trial]) -> str:
    """Accuracy of every trial (columns) after every AL iteration (rows): mean +- standard deviation over runs.

    The standard deviation has the number of runs as divisor, as the paper's error bars; for a single run it is left
    out. A cell with fewer runs than the maximum of its column ends with their number. There is one table for each
    (ir, nr, init).
    """
    records = list(records)
    groups: dict[tuple[float, float, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.ir, trial.nr, trial.init), []).append(trial)
    parts = []
    for (ir, nr, init), members in groups.items():
        columns = [_column([r for r in records if trial.describes(r)]) for trial in members]
        present = [(trial, column) for trial, column in zip(members, columns, strict=True) if column]
        if not present:
            continue
        names = [f"{trial.short()}\n{_runs(column)}" for trial, column in present]
        rows = []
        for size, share in sorted({(r["labelled"], r["labelled_share"]) for r in records if _in(r, members)}):
            cells = [_cell(column.get(size), max(map(len, column.values()))) for _, column in present]
            rows.append([size, f"{share:.2f}", *cells])
        noise = f", nr={nr:g}" if nr else ""
        title = f"Test accuracy in %, imbalance ratio {ir:g}{noise}, {init} initial model, mean ± std over runs"
        body = tabulate(rows, headers=["labelled", "% of pool", *names], disable_numparse=True, stralign="right")
        parts.append(f"{title}\n\n{body}")
    return "\n\n".join(parts)


def cost_table(records: Sequence[Record], trials: Iterable[Trial]) -> str:
    """Mean cost of an acquisition over all iterations after the first, and the accuracy of its pseudo-labels.

    Passes are millions of images through the network; seconds are those of measurement and choice.
    """
    rows = []
    for trial in trials:
        later = [r for r in records if trial.describes(r) and r["b"] > 0]
        if not later:
            continue
        seconds = statistics.fmean(r["seconds"]["describe"] + r["seconds"]["acquire"] for r in later)
        passes = [f"{statistics.fmean(r['passes'][way] for r in later) / 1e6:.3f}" for way in ("forward", "backward")]
        correct = [r["pseudo_label_accuracy"] for r in later if r["pseudo_label_accuracy"] is not None]
        by_class = [r["pseudo_label_accuracy_per_class"] for r in later if r["pseudo_label_accuracy"] is not None]
        worst = [min(value for value in values if value is not None) for values in by_class]
        quality = [f"{statistics.fmean(values):.1f}" if values else "" for values in (correct, worst)]
        rows.append([trial.short(), f"{trial.ir:g}", trial.init, *passes, f"{seconds:.2f}", *quality])
    headers = ["method", "ir", "init", "forward\n10^6", "backward\n10^6", "seconds", "correct\n%", "worst\nclass %"]
    title = "One acquisition after the first (mean), and the pool's pseudo-labels"
    return f"{title}\n\n{tabulate(rows, headers=headers, disable_numparse=True, stralign='right')}" if rows else ""


def _in(record: Record, trials: Iterable[Trial]) -> bool:
    return any(trial.describes(record) for trial in trials)


def _column(records: Iterable[Record]) -> dict[int, list[float]]:
    column: dict[int, list[float]] = {}
    for record in records:
        column.setdefault(record["labelled"], []).append(record["accuracy"])
    return column


def _runs(column: dict[int, list[float]]) -> str:
    count = max(map(len, column.values()))
    return f"{count} run{'s' if count > 1 else ''}"


def _cell(values: list[float] | None, full: int) -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):.2f}"
    if len(values) > 1:
        text += f" ± {statistics.pstdev(values):.2f}"
    return text if len(values) == full else f"{text} ({len(values)})"
