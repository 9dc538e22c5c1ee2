"""results/collect.py: lines are copied once, compared when they were made again, and never changed."""

import json

from alfk.experiment.folder import RunFolder
from alfk.experiment.records import line_of
from tests.helpers import call, made_up_record, records, refused

SETTINGS = {"dataset": "DIGITS", "seed": 0, "query_size": 15}


def run_of(root, *lines, settings=SETTINGS):
    """A run folder of DIGITS with these lines."""
    folder = RunFolder(root / "DIGITS", 0)
    folder.create()
    folder.record_session(settings, {"command": ["run.py", root.name]})
    for line in lines:
        folder.add_result(line)
    return folder


def collected(tmp_path, source, status=0):
    return call("results/collect.py", source.path.parent, "--into", tmp_path / "results", status=status)


def test_new_lines_are_added_and_old_ones_are_left(tmp_path):
    old, new = (made_up_record(b=b, labelled=15 * (b + 1)) for b in (0, 1))
    target = run_of(tmp_path / "results", old)
    source = run_of(tmp_path / "source", {**old, "seconds": {"describe": 2.0, "acquire": 0.5, "retrain": 9.0}}, new)
    for said in ("1 new lines, 1 made again with the same outcome", "0 new lines, 2 made again"):
        assert said in collected(tmp_path, source).stdout
        assert records(target.path) == [old, new]
    manifest = target.manifest()[0]
    assert [session["command"][1] for session in manifest["sessions"]] == ["results", "source"]
    assert manifest["settings"] == SETTINGS


def test_a_run_that_is_not_there_yet_is_copied(tmp_path):
    source = run_of(tmp_path / "source", made_up_record())
    collected(tmp_path, source)
    copy = RunFolder(tmp_path / "results" / "DIGITS", 0)
    assert copy.read_results() == source.read_results()
    assert copy.manifest() == source.manifest()


def test_another_outcome_is_named_and_left_out(tmp_path):
    old = made_up_record()
    target = run_of(tmp_path / "results", old)
    for other in ({"accuracy": 50.1}, {"selected_histogram": [1] * 5 + [2] * 5}, {"epochs": [4]}):
        source = run_of(tmp_path / "source", {**old, **other})
        assert "b=0 made again with another outcome; left out" in collected(tmp_path, source, status=1).stdout
        assert records(target.path) == [old]


def test_what_follows_another_outcome_is_left_out_too(tmp_path):
    lines = [made_up_record(b=b, labelled=15 * (b + 1)) for b in range(4)]
    target = run_of(tmp_path / "results", *lines[:2])
    other = made_up_record(method="random", L=0)
    source = run_of(tmp_path / "source", lines[0], {**lines[1], "accuracy": 51.0}, *lines[2:], other)
    said = collected(tmp_path, source, status=1).stdout
    assert "b=1 made again with another outcome" in said
    assert "1 new lines, 1 made again with the same outcome" in said
    assert records(target.path) == [*lines[:2], other]


def test_damaged_lines_and_other_settings_are_refused(tmp_path):
    line = made_up_record(b=1)
    target = run_of(tmp_path / "results", made_up_record())
    other = run_of(tmp_path / "other", line, settings={**SETTINGS, "query_size": 20})
    refused("results/collect.py", other.path.parent, "--into", tmp_path / "results", words="query_size = 15")
    damaged = run_of(tmp_path / "damaged", line)
    (damaged.path / "results.jsonl").write_text(json.dumps({**json.loads(line_of(line)), "accuracy": 99.0}) + "\n")
    refused("results/collect.py", damaged.path.parent, "--into", tmp_path / "results", words="line 1")
    assert records(target.path) == [made_up_record()]


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "DIGITS").mkdir()
    refused("results/collect.py", tmp_path / "DIGITS", words="there is no runN folder in")
    refused("results/collect.py", tmp_path / "none", words="there is no folder")


def test_a_damaged_manifest_is_refused_and_stays(tmp_path):
    """What is read in its stead has no sessions, and would replace those that are there."""
    target = run_of(tmp_path / "results", made_up_record())
    source = run_of(tmp_path / "source", made_up_record(b=1))
    for folder in (target, source):
        manifest = folder.path / "manifest.json"
        intact = manifest.read_bytes()
        manifest.write_bytes(intact.replace(b"run.py", b"run.pi"))
        refused(
            "results/collect.py", source.path.parent, "--into", tmp_path / "results", words=f"{manifest} is damaged"
        )
        manifest.write_bytes(intact)
        assert records(target.path) == [made_up_record()]
    assert len(target.manifest()[0]["sessions"]) == 1
