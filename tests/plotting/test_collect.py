"""results/collect.py: lines are copied once, compared when they were made again, and never changed."""

import pytest

from alfk.experiment.folder import RunFolder
from alfk.experiment.records import line_of
from alfk.support.files import write_json
from tests.helpers import call, made_up_record, records, refused

SETTINGS = {"dataset": "DIGITS", "seed": 0, "query_size": 15}


def run_of(root, *lines, settings=SETTINGS):
    """A run folder of DIGITS with these lines and one session."""
    folder = RunFolder(root / "DIGITS", 0)
    folder.path.mkdir(parents=True)
    session = {"command": ["run.py", root.name]}
    write_json(folder.path / "manifest.json", {"run": 0, "settings": settings, "sessions": [session]})
    (folder.path / "results.jsonl").write_text("".join(map(line_of, lines)))
    return folder


def collected(tmp_path, source, status=0):
    return call("results/collect.py", source.path.parent, "--into", tmp_path / "results", status=status).stdout


def test_new_lines_are_added_and_old_ones_are_left(tmp_path):
    old, new = (made_up_record(b=b, labelled=15 * (b + 1)) for b in (0, 1))
    target = run_of(tmp_path / "results", old)
    source = run_of(tmp_path / "source", {**old, "seconds": {"describe": 2.0, "acquire": 0.5, "retrain": 9.0}}, new)
    for printed in ("1 new lines, 1 made again with the same outcome", "0 new lines, 2 made again"):
        assert printed in collected(tmp_path, source)
        assert records(target.path) == [old, new]
    manifest = target.manifest()[0]
    assert [session["command"][1] for session in manifest["sessions"]] == ["results", "source"]
    assert manifest["settings"] == SETTINGS


def test_a_run_that_is_not_there_yet_is_copied(tmp_path):
    source = run_of(tmp_path / "source", made_up_record())
    collected(tmp_path, source)
    copy = RunFolder(tmp_path / "results" / "DIGITS", 0)
    assert (copy.read_results(), copy.manifest()) == (source.read_results(), source.manifest())


@pytest.mark.parametrize("other", [{"accuracy": 51.0}, {"selected_histogram": [1] * 5 + [2] * 5}, {"epochs": [4]}])
def test_another_outcome_is_named_and_left_out_with_what_follows(tmp_path, other):
    lines = [made_up_record(b=b, labelled=15 * (b + 1)) for b in range(4)]
    target = run_of(tmp_path / "results", *lines[:2])
    random = made_up_record(method="random", L=0)
    source = run_of(tmp_path / "source", lines[0], {**lines[1], **other}, *lines[2:], random)
    printed = collected(tmp_path, source, status=1)
    assert "b=1 made again with another outcome; left out" in printed
    assert "1 new lines, 1 made again with the same outcome" in printed
    assert records(target.path) == [*lines[:2], random]


def damaged_line(source, target):
    path = source.path / "results.jsonl"
    path.write_text(path.read_text().replace("50.0", "99.0"))


def damaged_manifest(folder):
    path = folder.path / "manifest.json"
    path.write_text(path.read_text().replace("run.py", "run.pi"))


def other_settings(source, target):
    write_json(target.path / "manifest.json", {"run": 0, "settings": SETTINGS | {"query_size": 20}, "sessions": []})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda source, target: (target.path / "manifest.json").unlink(), "manifest.json is lost"),
        (damaged_line, "line 1"),
        (other_settings, "query_size = 20"),
        (lambda source, target: damaged_manifest(source), "manifest.json is damaged"),
        (lambda source, target: damaged_manifest(target), "manifest.json is damaged"),
    ],
)
def test_damaged_files_and_other_settings_are_refused_and_stay(tmp_path, change, words):
    """What is read in place of a lost or damaged manifest has no sessions, and would replace those that are there."""
    target = run_of(tmp_path / "results", made_up_record())
    source = run_of(tmp_path / "source", made_up_record(b=1))
    change(source, target)
    before = [path.read_bytes() for path in sorted(target.path.iterdir())]
    refused("results/collect.py", source.path.parent, "--into", tmp_path / "results", words=words)
    assert [path.read_bytes() for path in sorted(target.path.iterdir())] == before


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "DIGITS").mkdir()
    refused("results/collect.py", tmp_path / "DIGITS", words="there is no runN folder in")
    refused("results/collect.py", tmp_path / "none", words="there is no folder")
