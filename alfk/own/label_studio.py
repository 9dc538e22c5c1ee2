"""Requests for Label Studio, and labels from its exports.

A project takes `labelling_config` as its labelling interface and imports what `write_tasks` writes. It shows images of
its local storage if LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED is true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the
folder that their names start from. Formats: https://labelstud.io/guide/ with tasks, predictions or export.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from alfk.own.queries import Query
from alfk.support.errors import UserError
from alfk.support.files import atomic, read_file

SKIP = "skip"  # in place of a label: the image is taken out
UNSURE = "unsure"  # the image is left for later

LOCAL_FILES = "/data/local-files/?d="


def labelling_config(classes: Sequence[object]) -> str:
    """The labelling interface (XML) of a project: an image, and one choice of a class or `unsure`.

    Raises:
        UserError: a class has characters that XML does not allow.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    choices = ElementTree.SubElement(view, "Choices", name="label", toName="image", choice="single", required="true")
    for name in (*map(str, classes), UNSURE):
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    try:
        text = ElementTree.tostring(view, encoding="unicode")
        ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeError) as problem:
        raise UserError(f"a name of a class has a character that XML does not allow ({problem}): rename it") from None
    return text + "\n"


def write_tasks(
    path: str | Path,
    query: Query,
    files: Sequence[object],
    validation_files: Sequence[object],
    prefix: str = LOCAL_FILES,
) -> None:
    """Write the images of a query as import tasks (JSON), in order; the method's guess is the prediction.

    The data of a task: image, its URL; number, from 1; and the reasons, as in `Query.rows`.

    Args:
        files, validation_files: names of all pool images and of all validation images.
        prefix: of the URLs, before a quoted name; by default names are paths below the root of the local storage.
    Raises:
        UserError: the file cannot be written.
    """
    tasks = []
    for number, row in enumerate(query.rows(files, validation_files), 1):
        del row["index"]
        url = prefix + quote(row["file"], errors="surrogateescape")
        data = {"image": url, "number": number, **{name: _finite(value) for name, value in row.items()}}
        tasks.append({"data": data, "predictions": _predictions(query.method, row)})
    with atomic(Path(path)) as file:
        file.write((json.dumps(tasks, indent=1, allow_nan=False) + "\n").encode())


def _finite(value: object) -> object:
    """The value, as a text if it is a number that JSON does not have."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _predictions(method: str, row: dict[str, object]) -> list[dict[str, object]]:
    """The guess for an image: its pseudo-label, or else the model's prediction; its score is the similarity."""
    guess = row.get("pseudo_label", row.get("prediction"))
    if guess is None:
        return []
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [str(guess)]}}
    return [{"model_version": method, "score": row["similarity"], "result": [choice]}]


def read(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, file, entry) of every choice in an export as JSON or JSON-MIN; a skipped task has the entry `skip`.

    Raises:
        UserError: it cannot be read, or is no such export.
    """
    try:
        tasks = json.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"cannot read {path}: {problem}; export it again as JSON") from None
    for i, task in enumerate(tasks if isinstance(tasks, list) else [tasks]):
        try:
            place = f"{path}, task {task.get('id', i + 1)}"
            yield from _annotations(place, task) if "data" in task else _annotation(place, task)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise UserError(f"{path}: entry {i + 1} is no task of an image classification; export it as JSON") from None


def _annotations(place: str, task: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of a task in an export as JSON."""
    for annotation in task.get("annotations", ()):  # none in a file of tasks
        who = annotation.get("completed_by")
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        where, file = place + (f", annotator {who}" if who is not None else ""), _file(task["data"])
        if annotation.get("was_cancelled"):
            yield where, file, SKIP
            continue
        for result in annotation["result"]:
            if result["type"] == "choices":
                yield from ((where, file, choice) for choice in result["value"]["choices"])


def _annotation(place: str, task: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of an annotation in an export as JSON-MIN: its data, and what was chosen."""
    who = f", annotator {task['annotator']}" if "annotator" in task else ""
    chosen = task.get("label", task.get("choice", ""))
    for choice in chosen["choices"] if isinstance(chosen, dict) else [chosen]:
        yield place + who, _file(task), str(choice)


def _file(data: dict[str, Any]) -> str:
    """The name of an image: that of the task, or what its URL says."""
    if "file" in data:
        return str(data["file"])
    return unquote(data["image"].rpartition("?d=")[2], errors="surrogateescape")
