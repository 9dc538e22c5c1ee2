"""Tasks for Label Studio, by its documented format, and labels from its exports."""

import json
from xml.etree import ElementTree

import pytest
import torch

from alfk.own.annotations import read_annotations
from alfk.own.label_studio import labelling_config, write_tasks
from tests.helpers import refuses
from tests.own.test_annotations import FILES, KINDS, VALIDATION, a_query

# A task, as https://labelstud.io/guide/tasks and /guide/predictions describe it: type, or (dictionary of parts)
RESULT = {"from_name": str, "to_name": str, "type": str, "value": {"choices": [str]}}
TASKS = [{"data": dict, "predictions": [{"model_version": str, "score": float, "result": [RESULT]}]}]


def fits(content, schema):
    """Whether JSON has the form of a schema: a type, a list of elements of one form, or an object with given keys."""
    if isinstance(schema, list):
        return isinstance(content, list) and all(fits(element, schema[0]) for element in content)
    if isinstance(schema, dict):
        same = isinstance(content, dict) and content.keys() == schema.keys()
        return same and all(fits(content[key], schema[key]) for key in schema)
    return isinstance(content, schema)


def test_tasks_and_interface_fit_the_documented_format_and_each_other(tmp_path):
    reasons = {"matches": [4, 0], "error_label": [2, 0], "similarity": [0.75, -0.25], "pseudo_label": [2, 1]}
    query, path = a_query([3, 2], **reasons), tmp_path / "tasks.json"
    write_tasks(path, query, FILES, VALIDATION)
    tasks = json.loads(path.read_text())
    assert fits(tasks, TASKS)
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=%C3%BC.jpg",
        "/data/local-files/?d=e%2C%20f.jpg",
    ]
    for number, (task, row) in enumerate(zip(tasks, query.rows(FILES, VALIDATION), strict=True), 1):
        del row["index"], task["data"]["image"]
        assert task["data"] == {"number": number, **row}
        (prediction,) = task["predictions"]
        assert (prediction["model_version"], prediction["score"]) == ("Rzg_pz", row["similarity"])
        assert prediction["result"][0]["value"] == {"choices": [row["pseudo_label"]]}
    view = ElementTree.fromstring(labelling_config([*KINDS, '"<&\n>']))
    image, choices = view
    assert (image.tag, image.attrib) == ("Image", {"name": "image", "value": "$image"})
    assert (choices.tag, choices.attrib["choice"]) == ("Choices", "single")
    assert [choice.attrib["value"] for choice in choices] == [*KINDS, '"<&\n>', "unsure"]
    (result,) = tasks[0]["predictions"][0]["result"]
    assert [result["from_name"], result["to_name"]] == [choices.attrib["name"], choices.attrib["toName"]]
    assert (result["to_name"], result["type"]) == (image.attrib["name"], choices.tag.lower())
    refuses(lambda: labelling_config(["a\x00"]), "a character that XML does not allow")


def test_tasks_without_a_guess_and_with_other_urls(tmp_path):
    write_tasks(tmp_path / "tasks.json", a_query([0], score=[torch.inf]), FILES, VALIDATION, prefix="https://host/")
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task == {
        "data": {"image": "https://host/a.jpg", "number": 1, "file": "a.jpg", "score": "inf"},
        "predictions": [],
    }
    assert not len(read_annotations(tmp_path / "tasks.json", FILES, KINDS).settled)


def annotation(*choices, who=1, cancelled=False):
    value = {
        "value": {"choices": list(choices)},
        "id": "x",
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
    }
    result = [{**value, "origin": "manual"}] if choices else []
    return {"id": 7, "completed_by": who, "result": result, "was_cancelled": cancelled, "lead_time": 1.5}


def task(file, *annotations):
    return {
        "id": 3,
        "data": {"image": "/data/x.jpg", "file": file},
        "annotations": list(annotations),
        "predictions": [],
    }


def url(path):
    return {"image": f"/data/local-files/?d={path}"}


@pytest.fixture
def read(tmp_path):
    """Reads a value as an export, beside a CSV file in which g.jpg is an ant."""

    def written(content):
        (tmp_path / "labels.csv").write_text("file,label\ng.jpg,ant\n")
        (tmp_path / "labels.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_annotations([tmp_path / "labels.csv", tmp_path / "labels.json"], FILES, KINDS)

    return written


@pytest.mark.parametrize(
    "content",
    [
        [
            task("a.jpg", annotation("çat"), annotation("unsure", who={"id": 2, "email": "a@b.c"}), annotation()),
            {**task("", annotation("bee or wasp")), "data": url("b/c%20d.jpg")},
            task("e, f.jpg", annotation(cancelled=True)),
            task("ü.jpg", annotation("unsure")),
            task("H.jpg"),
        ],
        [
            {"id": 1, "annotator": 1, "file": "a.jpg", "label": "çat", "similarity": 0.5, **url("x")},
            {"id": 2, "choice": {"choices": ["Bee or wasp"]}, **url("b/c%20d.jpg")},
            {"id": 3, "label": "skip", **url("e%2C%20f.jpg")},
            {"id": 4, "label": "unsure", "file": "ü.jpg"},
            {"id": 5, "file": "H.jpg"},
        ],
    ],
    ids=["JSON", "JSON-MIN"],
)
def test_an_export_is_read_as_a_csv_file_is(read, content):
    found = read(content)
    assert (found.positions.tolist(), found.labels.tolist()) == ([0, 1, 4], [2, 1, 0])
    assert (found.skipped.tolist(), found.unsure.tolist()) == ([2], [3])


def test_annotators_who_disagree_and_files_that_are_no_exports(read, tmp_path):
    place = f"{tmp_path}/labels.json, task 3, annotator"
    both = [annotation("ant"), annotation("çat", who={"id": 2, "email": "a@b.c"})]
    refuses(lambda: read([task("a.jpg", *both)]), f"{place} a@b.c: a.jpg has the label çat here, ant in {place} 1")
    refuses(lambda: read([task("a.jpg", annotation("ant", "çat"))]), f"{place} 1: a.jpg has the label çat here, ant in")
    refuses(
        lambda: read([task("g.jpg", annotation(cancelled=True))]), f"g.jpg has the label skip here, ant in {tmp_path}"
    )
    refuses(lambda: read([task("k.jpg", annotation("ant"))]), "1: k.jpg is not among the pool's files")
    for content in ({"a": 1}, [1], [{"data": {}, "annotations": [{}]}], [{"data": {"file": "a"}, "annotations": 1}]):
        refuses(lambda content=content: read(content), "labels.json: entry 1 is no task of an image classification")
    refuses(lambda: read("[{"), "cannot read ")
