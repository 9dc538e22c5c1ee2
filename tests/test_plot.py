"""run_plot.py on results made by hand: figures, tables, what is missing, what is damaged."""

import csv
import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from alfk.experiment.records import RESTORED
from alfk.experiment.trial import Trial
from alfk.plotting import plots
from alfk.plotting.curves import Curve
from alfk.plotting.distortions import distortions_table
from tests.helpers import ONE_THREAD, ROOT, call, made_up_record


def plot(*arguments, status=0):
    return call("run_plot.py", *arguments, status=status)


def line(run, b, method, accuracy, length=0, init="rotation", ir=100.0, ensemble=1):
    about = {"dataset": "MNIST", "run": run, "b": b, "method": method, "L": length, "ir": ir, "init": init}
    about |= {"ensemble": ensemble, "labelled": 125 * (b + 1), "labelled_share": 0.25 * (b + 1)}
    about |= {"accuracy": accuracy, "accuracy_per_class": [accuracy] * 5 + [accuracy / 2] * 5}
    return made_up_record(**about, seconds={"describe": 1.0, "acquire": 0.5, "retrain": 9.0})


def write(folder, run, lines, settings=()):
    place = folder / "MNIST" / f"run{run}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    made = {"minority": [5, 6, 7, 8, 9], "retraining.epochs": 50} | dict(settings)
    (place / "manifest.json").write_text(json.dumps({"settings": made, "sessions": []}))
    return place / "results.jsonl"


@pytest.fixture
def two_runs(tmp_path):
    """Two runs of two methods; the second run of `random` ends after its first iteration."""
    for run, shift in ((0, -1), (1, 1)):
        ours = [line(run, b, "Rzg_pz", value + shift, 80) for b, value in enumerate((50, 60, 70, 80))]
        other = [line(run, b, "random", value + shift) for b, value in enumerate((40, 50, 55, 60))]
        write(tmp_path / "data", run, ours + (other if run == 0 else other[:1]))
    return tmp_path / "data"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_of_other_ratios_has_the_runs_of_all_methods():
    """And no number where a method was not run."""
    lines = [line(run, 2, "random", 50 + run, ir=ir) for run in range(3) for ir in (1.0, 10.0, 100.0)]
    lines += [line(run, 2, "margin", 60 + run, ir=ir) for run in (1, 2) for ir in (1.0, 10.0, 1000.0)]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in distortions_table(lines).splitlines()]
    assert cells[0] == ["imbalance ratio", "noise ratio", "labels", "runs", "random", "margin"]
    assert cells[2:] == [
        ["1", "0", "375", "2", "51.5 ± 0.5", "61.5 ± 0.5"],
        ["10", "0", "375", "2", "51.5 ± 0.5", "61.5 ± 0.5"],
        ["100", "0", "375", "3", "51.0 ± 0.8", ""],
        ["1000", "0", "375", "2", "", "61.5 ± 0.5"],
    ]


def test_figures_tables_and_what_is_missing(two_runs, tmp_path):
    done = plot("--datadir", two_runs, "--out", tmp_path / "out")
    assert "not there: random: run 1, b=1-3\n" in done.stdout
    assert done.stdout.count("not there") == 1
    assert "(b) MNIST, 100x class imbalance: run 0-1" in done.stdout
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    endings = (".md", ".pdf", ".png", "_claims.csv", "_curves.csv", "_summary.csv")
    assert names == [f"MNIST_ir100{ending}" for ending in endings]
    points = rows(tmp_path / "out" / "MNIST_ir100_curves.csv")
    ours = [p for p in points if p["series"] == "Rzg_pz_L80"]
    assert [(p["labeled_percent"], p["accuracy_mean"], p["accuracy_std"], p["runs"]) for p in ours] == [
        ("0.25", "50", "1", "2"),
        ("0.5", "60", "1", "2"),
        ("0.75", "70", "1", "2"),
        ("1", "80", "1", "2"),
    ]
    other = [p for p in points if p["series"] == "random"]
    assert [(p["accuracy_mean"], p["accuracy_std"], p["runs"]) for p in other] == [
        ("40", "1", "2"),
        ("49", "", "1"),
        ("54", "", "1"),
        ("59", "", "1"),
    ]
    (claim,) = rows(tmp_path / "out" / "MNIST_ir100_claims.csv")
    assert claim["series"] == "random"
    assert float(claim["accuracy"]) == 59  # ours gets there at 0.475, random at 1
    assert float(claim["saved_percent"]) == pytest.approx(52.5)
    assert float(claim["gain_most"]) == 21
    summary = {row["series"]: row for row in rows(tmp_path / "out" / "MNIST_ir100_summary.csv")}
    assert float(summary["Rzg_pz_L80"]["area"]) == 65
    assert float(summary["Rzg_pz_L80"]["{5,8,9} early"]) == 35
    assert float(summary["Rzg_pz_L80"]["minority last"]) == 40
    assert float(summary["Rzg_pz_L80"]["acquisition_seconds"]) == 1.5
    page = " ".join((tmp_path / "out" / "MNIST_ir100.md").read_text().split())
    assert "| Rzg_pz L80 | 0.25 | 50.00 ± 1.00 | 2 | 71.58 ± 6.96 | 10 | -21.58 | no |" in page
    assert "all train (paper): 92.54 %" in page


def test_beside_the_paper(two_runs, tmp_path):
    done = plot("--datadir", two_runs, "--out", tmp_path, "--reference", "--dataset", "MNIST", "-ir", 100, "--at", 55)
    ours = next(row for row in done.stdout.splitlines() if row.startswith("Rzg_pz L80 "))
    paper = ["71.58", "±", "6.96", "10", "-21.58", "no"]
    assert ours.split()[:13] == ["Rzg_pz", "L80", "0.25", "50.00", "±", "1.00", "2", *paper]
    (point, *_) = rows(tmp_path / "MNIST_ir100_curves.csv")
    assert (point["series"], point["select"], point["copies"]) == ("random", "test", "")
    assert (point["paper_runs"], point["paper_within_2_se"]) == ("10", "False")
    with open(ROOT / "reference" / "release_mnist_ir100.csv", newline="") as file:
        released = [row for row in csv.DictReader(file) if row["series"] == "random"]
    released = [float(row["accuracy"]) for row in released if float(row["labeled_percent"]) == 0.25]
    assert (float(point["release_mean"]), int(point["release_runs"])) == (
        pytest.approx(np.mean(released)),
        len(released),
    )
    assert float(point["release_difference"]) == pytest.approx(40 - np.mean(released))
    (claim,) = rows(tmp_path / "MNIST_ir100_claims.csv")
    assert (float(claim["accuracy"]), float(claim["labels_ours"])) == (55, 0.375)


def test_a_measured_line_replaces_the_published_one(two_runs, tmp_path):
    path = two_runs / "MNIST" / "run0" / "results.jsonl"
    whole = {**line(0, 0, "all_train", 91.5), "labelled": 25851, "labelled_share": 51.7}
    path.write_text(path.read_text() + json.dumps(whole) + "\n")
    done = plot("--datadir", two_runs, "--out", tmp_path)
    assert "all train (1 run): 91.50 %" in (tmp_path / "MNIST_ir100.md").read_text()
    assert "all_train" not in done.stdout


def test_flags_narrow(two_runs, tmp_path):
    done = plot("--datadir", two_runs, "--out", tmp_path, "--methods", "Rzg_pz", "--run-stop", 3)
    assert "not there: Rzg_pz L80: run 2, all\n" in done.stdout
    assert {p["series"] for p in rows(tmp_path / "MNIST_ir100_curves.csv")} == {"Rzg_pz_L80"}
    for nothing in (["-ir", 1], ["--init", "random"], ["--dataset", "SVHN"], ["--run-start", 7], ["--methods", "BALD"]):
        done = plot("--datadir", two_runs, "--out", tmp_path, *nothing, status=2)
        assert len(done.stderr.splitlines()) == 1
        assert "bash demo.sh" in done.stderr


def test_the_ablation(tmp_path):
    lines = [line(0, b, "Rzg_pz", 70 + b, 80, init) for b in (0, 1) for init in ("rotation", "random")]
    lines += [line(0, b, "Rzg_trace", 60 + b, 20) for b in (0, 1)]
    lines += [line(0, b, "BALD", 60 + b) for b in (0, 1)]
    write(tmp_path / "data", 0, lines)
    plot("--datadir", tmp_path / "data", "--out", tmp_path / "out")
    main, third = (rows(tmp_path / "out" / f"MNIST_ir100{which}_curves.csv") for which in ("", "_ablation"))
    assert {(p["series"], p["init"]) for p in main} == {("Rzg_pz_L80", "rotation"), ("BALD_E1", "rotation")}
    assert {(p["series"], p["init"]) for p in third} == {
        ("Rzg_pz_L80", "rotation"),
        ("Rzg_pz_L80", "random"),
        ("Rzg_trace_L20", "rotation"),
    }


def test_a_line_cut_short_is_passed_over_and_said(two_runs, tmp_path):
    path = two_runs / "MNIST" / "run0" / "results.jsonl"
    path.write_text(path.read_text()[:-30])
    done = plot("--datadir", two_runs, "--out", tmp_path)
    wrong = f"{path}, line 8: cut short or not a results record; left out, {RESTORED}"
    assert done.stderr.strip() == f"warning: {wrong}"
    assert f"- {wrong}" in (tmp_path / "MNIST_ir100.md").read_text()
    assert "not there: random: run 0, b=3\n" in done.stdout or "run 1, b=1-2" in done.stdout


def test_runs_of_other_settings_are_pointed_out(two_runs, tmp_path):
    write(two_runs, 2, [line(2, 0, "random", 40)], {"retraining.epochs": 4})
    done = plot("--datadir", two_runs, "--out", tmp_path)
    assert "run2 was made with other settings than the first run: retraining.epochs" in done.stderr


def test_nothing_yet(tmp_path):
    done = plot("--datadir", tmp_path, status=2)
    assert len(done.stderr.splitlines()) == 1
    assert "bash demo.sh" in done.stderr


def test_what_comes_with_the_repository(tmp_path, monkeypatch):
    """The committed results and the paper's figures, drawn from anywhere; the committed tables come out again."""
    monkeypatch.chdir(tmp_path)
    plot("--datadir", ROOT / "results", "--out", tmp_path / "x", "--reference")
    drawn = {path.stem for path in (tmp_path / "x").glob("*.png")}
    paper = {
        "MNIST_ir1",
        "MNIST_ir100",
        "MNIST_ir100_ablation",
        "SVHN_ir1",
        "SVHN_ir100",
        "ImageNet_ir1",
        "ImageNet_ir100",
    }
    assert paper <= drawn
    tables = [path for path in (ROOT / "results" / "figures").iterdir() if path.suffix in (".csv", ".md")]
    assert len(tables) > 5
    for path in tables:
        assert (tmp_path / "x" / path.name).read_text() == path.read_text(), path.name


def test_a_folder_that_cannot_be_written(two_runs, tmp_path):
    (tmp_path / "file").touch()
    done = plot("--datadir", two_runs, "--out", tmp_path / "file", status=2)
    assert "choose another --out" in done.stderr


def test_its_reader_ends(two_runs, tmp_path):
    """As `run_plot.py | head -1` does: without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, ROOT / "run_plot.py", "--datadir", two_runs, "--out", tmp_path]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_one_run_has_no_error_bar():
    shares, mean = np.array([1.0, 2.0]), np.array([50.0, 60.0])
    one = plots.PlottedCurve(Curve(shares, mean, np.full(2, np.nan), np.ones(2, int)), Trial(100, "random", 0))
    two = plots.PlottedCurve(Curve(shares, mean, np.array([1.0, 2.0]), np.full(2, 2)), Trial(100, "random", 0))
    figure, axes = plt.subplots()
    assert not plots._draw_ours(axes, one).has_yerr
    assert plots._draw_ours(axes, two).has_yerr
    plt.close(figure)


def test_no_two_methods_look_the_same():
    assert len(set(plots.STYLES.values())) == len(plots.STYLES)
    assert len({marker for _, marker in plots.STYLES.values()}) == len(plots.STYLES)  # in greyscale
    assert set(plots.STYLES) >= set(plots.METHODS)


def test_confusion_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    found = plots.confusion(labels, predictions, 5)
    assert np.allclose(found[:4, :4], 100 * confusion_matrix(labels, predictions, normalize="true"))
    assert not found[4].any()


def test_tiles_in_reading_order():
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 1, 28, 28), np.float32) / 5
    sheet = plots.tiled(images, 3)
    assert sheet.shape == (64, 96)
    centres = sheet[16::32, 16::32]
    assert np.allclose(centres, [[0, 0.2, 0.4], [0.6, 0.8, 1]])
    assert plots.tiled(np.zeros((2, 3, 28, 28)), 2).shape == (32, 64, 3)


def test_results_from_convolutions_alone_have_a_figure_of_their_own_beside_the_papers_curves(tmp_path):
    lines = [line(0, b, "random", 40.0 + b, init="rotation_conv") for b in range(3)]
    write(tmp_path / "data", 0, [*lines, *(line(0, b, "random", 50.0 + b) for b in range(3))])
    done = plot(
        "--datadir", tmp_path / "data", "--out", tmp_path / "out", "--dataset", "MNIST", "-ir", 100, "--reference"
    )
    assert "(b) MNIST, 100x class imbalance, only convolutions kept: run 0" in done.stdout
    for name, ours in (("MNIST_ir100", "50"), ("MNIST_ir100_rotation_conv", "40")):
        first = rows(tmp_path / "out" / f"{name}_curves.csv")[0]
        assert (first["accuracy_mean"], round(float(first["paper_mean"]), 2)) == (ours, 50.47)
    only = plot(
        "--datadir",
        tmp_path / "data",
        "--out",
        tmp_path / "only",
        "--init",
        "rotation_conv",
        "--dataset",
        "MNIST",
        "--reference",
    )
    assert only.stdout.count("class imbalance") == 1  # and no figure of the others' names, with nothing in it
    assert {path.name.partition("_rotation_conv")[0] for path in (tmp_path / "only").iterdir()} == {"MNIST_ir100"}
