"""run.py --annotate: active learning on a pool without labels; people enter them into a CSV file."""

import argparse
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from alfk.cli import scripts
from alfk.cli.opening import open_workspace
from alfk.cli.progress import Progress
from alfk.data.image_files import ImageFiles
from alfk.data.split import Split
from alfk.experiment.config import Experiment
from alfk.experiment.journal import Journal
from alfk.experiment.loop import active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.trial import Trial
from alfk.method.acquisition import get_method
from alfk.own.annotations import Annotations, read_annotations, shown, write_request
from alfk.own.labelling import LabelsMissing, annotated
from alfk.own.queries import Query, write_csv
from alfk.plotting import matches
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.files import read_file

UNKNOWN = {  # inputs that people's labels in a CSV file do not give
    "annotation": "asks for labels while it chooses",
    "labels": "asks for the known labels, which it needs of all images that are not to be chosen",
    "rare_classes": "has to know which classes are rare",
}
MOST, PICTURE = 200, 160  # images drawn in the picture of a request, and their pixels


def annotate(experiment: Experiment, options: argparse.Namespace, trials: Sequence[Trial]) -> int:
    """Initial models, and AL iterations until labels are missing; returns the exit status."""
    if len(trials) != 1:
        names = ", ".join(trial.short() for trial in trials)
        raise UserError(f"people label for one method at a time, not for {names}: name one with --methods")
    (trial,), table = trials, options.annotate
    if trial.method == "Rzg_true":
        raise UserError("Rzg_true needs the labels of the whole pool: it is for pools whose labels are known")
    inputs = get_method(trial.method).inputs
    for key, what in UNKNOWN.items():
        if key in inputs:
            raise UserError(f"{trial.method} {what}: use alfk.query in a program of your own")
    if options.baseline:
        raise UserError("--baseline trains on the labels of the whole pool: it does not go with --annotate")
    if len(scripts.runs_of(options, options.run_start + 1)) > 1:
        raise UserError("people label for one run at a time: leave out --run-stop, --run-start names the run")
    if distributed.world_size() > 1:
        raise UserError("--annotate works in one process: start it without torchrun")
    with Progress(total=2 * trial.ensemble + experiment.iterations) as progress:
        work = open_workspace(experiment, options, options.run_start, progress, [trial], 1)
        files = file_names(work.train, "pool")
        check_table(table, options.images)

        def read() -> Annotations:
            return read_annotations(table, files, work.train.classes)

        read()  # before anything is computed
        make_initial_models(work, trial.ir, trial.nr, trial.ensemble, trial.select)
        try:
            active_learning(work, [trial], annotated(read), options.keep_descr)
        except LabelsMissing as waiting:
            progress.print_line(request(waiting, table, files))
            return 0
        last = Journal(work, trial).checkpoint(experiment.iterations - 1)
        done = f"all {experiment.iterations} AL iterations are finished; --iterations adds more"
        progress.print_line(f"{done}; the last model is {last}")
    return 0


def check_table(table: Path, images: Path) -> None:
    """Make the CSV file if there is none yet.

    Raises:
        UserError: it cannot be written, or lies among the images, where the pictures of a request would be new ones.
    """
    for part in ("pool", "val", "test"):
        if table.absolute().is_relative_to((images / part).absolute()):
            raise UserError(f"{table} lies among the images, and pictures are written beside it: name a file elsewhere")
    if not table.exists():
        write_csv(table, [], ("file", "label"))


def file_names(split: Split, part: str) -> list[str]:
    """The names of a split's files below the folder `part` of its root, as they are written in CSV files."""
    paths = split.store.paths if split.rows is None else split.store.paths[split.rows.numpy()]
    return [os.fsdecode(path).removeprefix(f"{part}/") for path in paths]


def request(waiting: LabelsMissing, table: Path, files: Sequence[str]) -> str:
    """Write what people need to label a query, beside their CSV file; returns a line about it."""
    current = waiting.current
    validation = current.validation
    query = Query.of(waiting.acquired.selection, current.trial.method, validation.labels, current.pool.classes)
    request, sheet = table.with_name(f"ask_b{current.b}.csv"), table.with_name(f"ask_b{current.b}.png")
    same = asks_for(request, [files[i] for i in query.indices.tolist()])
    if not same:
        write_request(request, query, files, file_names(validation, "val"))
    if not (same and sheet.exists()):
        title = f"{current.experiment.name}, b={current.b}: {len(query)} images to label, chosen by {query.method}"
        matches(query, sharper(current.pool), sharper(validation), sheet, title=title, most=MOST)
    missing, first = len(waiting.missing), files[int(waiting.missing[0])]
    how = f"enter file,label into {table} (skip takes a file out) and give the same command again"
    if torch.equal(waiting.missing, query.indices):
        return f"b={current.b}: {len(query)} images to label are in {request}, with pictures in {sheet.name}; {how}"
    what = "1 label is missing," if missing == 1 else f"{missing} labels are missing, the first"
    return f"b={current.b}: {what} that of {shown(first)} (see {request}); {how}"


def sharper(split: Split) -> Split:
    """The same images in at least PICTURE pixels, for people."""
    store = split.store
    if store.size >= PICTURE:
        return split
    larger = ImageFiles(store.root, store.paths, PICTURE, store.loader, store.workers)
    return Split(larger, None, split.mean, split.std, split.rows)


def asks_for(request: Path, files: Sequence[str]) -> bool:
    """Whether a request is there and names these files: one with notes by people is kept, one of another run is not."""
    try:
        text = read_file(request).decode("utf-8-sig")
        named = [row.get("file") for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (UserError, UnicodeDecodeError, csv.Error):
        return False
    return set(files) <= set(named)
