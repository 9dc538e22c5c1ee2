"""alfk ask: active learning on a folder of images whose labels people enter into a table."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from alfk.cli.guard import check_writable
from alfk.cli.options import positive, rate, seed, up_to
from alfk.data.image_files import ImageFiles
from alfk.data.split import Split
from alfk.method.acquisition import METHODS, get_method
from alfk.own.annotations import SKIP, UNSURE, Annotations, write_request
from alfk.own.folders import class_of, named
from alfk.own.label_studio import labelling_config, write_tasks
from alfk.own.progress import progress_report, wilson
from alfk.own.project import Project, Request, Settings
from alfk.own.transfer import ARCHITECTURES
from alfk.plotting import matches, progress
from alfk.support.errors import UserError
from alfk.support.files import atomic, locked

ABOUT = """Which images of a folder to label next, and why: each call trains on the labels so far and asks for more.

    alfk ask my_photos      # trains on the clean images, and writes my_photos/asked/ask_b0.csv and ask_b0.png
    alfk ask my_photos      # with the labels entered into ask_b0.csv: trains, reports, writes ask_b1.csv

my_photos holds pool/, the images to choose from, at any depth, and val/<class>/, clean ones. Flags are remembered; a
later call names only what is to change.
"""
PICTURE = 160  # pixels of an image in a sheet
MOST = 200  # images drawn in a sheet


def ask_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `alfk ask`; those that are not given are None."""
    parser.description, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    add, default = parser.add_argument, Settings()
    add("folder", type=Path, metavar="FOLDER", help="with pool/ and val/<class>/")
    add("--work", type=Path, metavar="DIR", help="where requests, labels and models are kept (FOLDER/asked)")
    add(
        "--labels",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="more tables with labels, or Label Studio's JSON",
    )
    add("--method", choices=METHODS, help=f"how images are chosen ({default.method})", metavar="KEY")
    add("-as", "--query-size", type=positive, metavar="N", help=f"images in a request ({default.query_size})")
    text = f"a network of torchvision, such as mobilenet_v2 ({default.arch})"
    add("-a", "--arch", choices=ARCHITECTURES, metavar="NAME", help=text)
    text = "a file with its pretrained weights, or none; by default torchvision's are downloaded; without weights the "
    text += "network is pretrained by rotation"
    add("--weights", metavar="FILE|none", help=text)
    text = "what is not trained: the backbone (all but the last layer), the first N blocks, or none (backbone; with "
    text += "--weights none: none)"
    add("--freeze", type=freeze, metavar="N|backbone|none", help=text)
    add("-e", "--epochs", type=positive, metavar="E", help=f"epochs of fine-tuning ({default.epochs})")
    add("--lr", type=rate, help=f"learning rate of the body ({default.lr:g})")
    add("--head-lr", type=rate, metavar="LR", help=f"learning rate of the last layer ({default.head_lr:g})")
    text = f"epochs of pretraining by rotation ({default.rotation_epochs})"
    add("--rotation-epochs", type=positive, metavar="E", help=text)
    add("--image-size", type=up_to(4096), metavar="PIXELS", help=f"side of the crops ({default.image_size})")
    text = "train on every second clean image that is not held out, in every round; the others guide the choice"
    add("--add-validation", action=argparse.BooleanOptionalAction, help=text)
    text = "also write each request as tasks for Label Studio"
    add("--label-studio", action=argparse.BooleanOptionalAction, help=text)
    add("--seed", type=seed, help=f"seed of all random draws ({default.seed})")
    add("--device", help="torch device, e.g. cpu or cuda:1 (a GPU if there is one, else the CPU)")


def freeze(text: str) -> str | int:
    """The value of --freeze. Raises ArgumentTypeError."""
    if text in ("backbone", "none"):
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of blocks, and not backbone or none")


def run_ask(options: argparse.Namespace) -> int:
    """One step of a project: returns the exit status."""
    given = {key: getattr(options, key) for key in Settings.__dataclass_fields__ if getattr(options, key) is not None}
    if "method" in given:
        check_method(given["method"])
    if given.get("weights") not in (None, "none"):
        given["weights"] = os.path.abspath(given["weights"])
    if "labels" in given:
        given["labels"] = list(map(os.path.abspath, given["labels"]))
    work = options.work or options.folder / "asked"
    if not options.folder.is_dir():
        raise UserError(f"there is no folder {options.folder}")
    check_writable(work, "--work")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        with locked(work / ".lock", wait=False):
            step(Project(options.folder, work, given, device, print, watch), options)
    except BlockingIOError:
        raise UserError(f"another command works in {work}: wait until it has ended") from None
    return 0


def check_method(method: str) -> None:
    """Raises UserError for a method whose inputs people's labels do not give."""
    inputs = get_method(method).inputs
    if method == "Rzg_true":
        raise UserError("Rzg_true needs the labels of the whole pool: it is for pools whose labels are known")
    if "annotation" in inputs or "rare_classes" in inputs:
        raise UserError(f"{method} asks while it chooses, or has to know the rare classes: use alfk.query in a program")


def step(project: Project, options: argparse.Namespace) -> None:
    """Train and report if a request is labelled, and make the next one; or say what is missing."""
    for line in project.news:
        print(line)
    if project.listed.left_out:
        print(f"left out: {project.listed.left_out} files that are not .jpg or .png")
    if project.listed.copies:
        print(f"left out of pool/, since they are in val/ too: {named(project.listed.copies)}")
    annotations = project.annotations()
    project.save()  # flags are remembered also of a command that is stopped
    if project.train_on_clean():
        print(about_clean(project))
    if project.waiting:
        missing = project.unlabelled()
        if missing:
            request = project.request(len(project.state["rounds"]) - 1)
            write(project, request, project.settings.label_studio)
            what = "1 label is missing," if len(missing) == 1 else f"{len(missing)} labels are missing, the first"
            print(f"b={request.b}: {what} that of {missing[0]}; {how(project, request.b)}")
            return
    if project.is_behind(annotations):
        print(
            f"{len(annotations.positions)} labels, {len(annotations.skipped)} skipped, {len(annotations.unsure)} unsure"
        )
        project.learn(annotations)
    if project.state["rounds"]:  # also if the last command was stopped before it
        request = project.request(len(project.state["rounds"]) - 1)
        draw(project, request, labels_of(project, request, annotations))
        labelled, predictions, truth, alone = project.history()
        report = progress_report(labelled, predictions, truth, project.classes, alone)
        progress(report, project.work / "progress.png")
        print(report)
        others = len(project.state["rounds"]) - len(labelled)
        if others:
            why = "trained otherwise, checked on fewer images, or on labels that are gone"
            print(f"not compared: {others} earlier rounds, {why}")
        if report.ahead_of_clean.value < 0 and not project.settings.add_validation:
            print("--add-validation trains on clean images too; the network of these alone is clean.pt")
    if not project.ask(annotations):
        unsure = f", but for {len(annotations.unsure)} that people are unsure of" if len(annotations.unsure) else ""
        print(f"every image of pool/ has a label or was skipped{unsure}; the last model is {project.work / 'model.pt'}")
        return
    request = project.request(len(project.state["rounds"]) - 1)
    write(project, request, project.settings.label_studio)
    print(f"b={request.b}: {len(request.asked)} images to label; {how(project, request.b)}")


def about_clean(project: Project) -> str:
    """What training on the clean images alone gives, in a line."""
    alone = project.state["alone"]
    right = sum(class_of(name) == label for name, label in alone["predictions"].items())
    images, clean = len(alone["predictions"]), alone["how"]["clean"]
    text = (
        f"trained on the {clean} clean images alone: {wilson(right, images)} % of the {images} held-out ones are right"
    )
    if project.settings.add_validation:
        return text
    return (
        f"{text}; the {clean} are kept apart for choosing from now on (--add-validation trains on them in every round)"
    )


def how(project: Project, b: int) -> str:
    """What people do next, in a line."""
    table = project.work / f"ask_b{b}.csv"
    files = f"{table} (pictures in ask_b{b}.png, to print in ask_b{b}.pdf)"
    return (
        f"enter labels into {files} and give the same command again; skip leaves an image out, unsure asks again later"
    )


def write(project: Project, request: Request, label_studio: bool) -> None:
    """Write the table and the sheet of a request, unless they are there."""
    table, sheet = (project.work / f"ask_b{request.b}.{suffix}" for suffix in ("csv", "png"))
    if not table.exists():
        write_request(table, request.query, request.asked, request.matched)
    if not sheet.exists():
        draw(project, request)
    if label_studio:
        write_tasks(project.work / f"label_studio_b{request.b}.json", request.query, request.asked, request.matched)
        with atomic(project.work / "label_studio.xml") as file:
            file.write(labelling_config(project.classes).encode())


def draw(project: Project, request: Request, labels: list[str | None] | None = None) -> None:
    """Draw the sheet of a request, also on pages to print, or the sheet with the labels that people gave.

    Nothing is drawn if one of its images is gone.
    """
    if not ({*request.asked} <= {*project.listed.pool} and {*(request.matched or ())} <= {*project.listed.clean}):
        return
    title = f"{project.root.absolute().name}, b={request.b}: {len(request.asked)} images to label"
    splits = [sharper(project.split(request.asked)), None]
    if request.matched is not None:
        splits[1] = sharper(project.split(clean=request.matched))
    path = project.work / f"ask_b{request.b}.png"
    matches(request.query, *splits, path, title=title, most=MOST, labels=labels)
    if labels is None:
        matches(request.query, *splits, path.with_suffix(".pdf"), title=title, most=MOST, boxes=True)


def labels_of(project: Project, request: Request, annotations: Annotations) -> list[str | None]:
    """What people entered for the images of a request; None for images without a label."""
    names = list(project.state["pool"])
    labelled = zip(annotations.positions.tolist(), annotations.labels.tolist(), strict=True)
    entered = {names[i]: project.classes[c] for i, c in labelled}
    for positions, word in ((annotations.skipped, SKIP), (annotations.unsure, UNSURE)):
        entered |= {names[i]: word for i in positions.tolist()}
    return [entered.get(name) for name in request.asked]


def sharper(split: Split) -> Split:
    """The same images in at least PICTURE pixels, for people."""
    store = split.store
    if store.size >= PICTURE:
        return split
    larger = ImageFiles(store.root, store.paths, PICTURE, store.loader, store.workers)
    return Split(larger, None, split.mean, split.std, split.rows)


def watch(steps: Iterable, what: str, number: int) -> Iterable:
    """The steps of a training, with a bar and the time left on a terminal."""
    return tqdm(steps, what, number, unit="step", disable=None, leave=False)
