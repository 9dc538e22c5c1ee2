"""run_plot.py on results made by hand: figures, tables, what is missing, what is damaged."""

import csv
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from alfk.experiment.records import RESTORED, line_of
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS
from alfk.plotting import maps, plots
from alfk.plotting.curves import Curve
from alfk.plotting.distortions import distortions_table
from alfk.plotting.names import STYLES
from alfk.support.files import write_json
from tests.helpers import ROOT, call, made_up_record, refused

ENDINGS = (".md", ".pdf", ".png", "_claims.csv", "_curves.csv", "_summary.csv")


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time: nothing is drawn."""
    for function in ("plot_curves", "plot_sizes"):
        monkeypatch.setattr(plots, function, lambda path, *_: path.parent.mkdir(exist_ok=True))


def line(run, b, method, accuracy, length=0, init="rotation", ir=100.0, **more):
    about = {"dataset": "MNIST", "run": run, "b": b, "method": method, "L": length, "ir": ir, "init": init}
    about |= {"labelled": 125 * (b + 1), "labelled_share": 0.25 * (b + 1)}
    about |= {"accuracy": accuracy, "accuracy_per_class": [accuracy] * 5 + [accuracy / 2] * 5}
    return made_up_record(**about, seconds={"describe": 1.0, "acquire": 0.5, "retrain": 9.0}, **more)


def write(folder, run, lines, settings=()):
    place = folder / "MNIST" / f"run{run}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.jsonl").write_text("".join(map(line_of, lines)))
    made = {"minority": [5, 6, 7, 8, 9], "retraining.epochs": 50} | dict(settings)
    write_json(place / "manifest.json", {"run": run, "settings": made, "sessions": []})
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


def plot(data, out, *arguments, status=0):
    return call("run_plot.py", "--datadir", data, "--out", out, *arguments, status=status)


def test_figures_tables_and_what_is_missing(two_runs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- MNIST_ir100 claims -->\nold\n<!-- end -->\nb\n<!-- other -->\n")
    done = plot(two_runs, tmp_path / "out", "--into", page)
    assert re.findall("not there.*", done.stdout) == ["not there: random: run 1, b=1-3"]
    assert "(b) MNIST, 100x class imbalance: run 0-1" in done.stdout
    out = tmp_path / "out" / "MNIST_ir100"
    assert sorted(path.name for path in out.parent.iterdir()) == [f"MNIST_ir100{ending}" for ending in ENDINGS]
    points = rows(f"{out}_curves.csv")
    columns = ("labeled_percent", "accuracy_mean", "accuracy_std", "runs")
    assert [[p[key] for key in columns] for p in points if p["series"] == "Rzg_pz_L80"] == [
        ["0.25", "50", "1", "2"],
        ["0.5", "60", "1", "2"],
        ["0.75", "70", "1", "2"],
        ["1", "80", "1", "2"],
    ]
    other = [[p[key] for key in columns[1:]] for p in points if p["series"] == "random"]
    assert other == [["40", "1", "2"], ["49", "", "1"], ["54", "", "1"], ["59", "", "1"]]
    (claim,) = rows(f"{out}_claims.csv")
    assert claim["series"] == "random"
    assert float(claim["accuracy"]) == 59  # ours reaches it at 0.475, random at 1
    assert float(claim["saved_percent"]) == pytest.approx(52.5)
    assert float(claim["gain_most"]) == 21
    summary = {row["series"]: row for row in rows(f"{out}_summary.csv")}["Rzg_pz_L80"]
    keys = ("area", "{5,8,9} early", "minority last", "chosen minority last", "acquisition_seconds")
    assert [float(summary[key]) for key in keys] == [65, 35, 40, 20, 1.5]
    text = " ".join(out.with_suffix(".md").read_text().split())
    assert "| Rzg_pz L80 | 0.25 | 50.00 ± 1.00 | 2 | 71.58 ± 6.96 | 10 | -21.58 | no |" in text
    assert "all train (paper): 92.54 %" in text
    claims = (
        r"a\n<!-- MNIST_ir100 claims -->\n\n\| against .*\n\|-.*\n\| random .* 52 .*\n\n<!-- end -->\nb\n<!-- other"
    )
    assert re.match(claims, page.read_text())


def test_beside_the_paper_and_its_release(two_runs, tmp_path, undrawn):
    done = plot(two_runs, tmp_path, "--reference", "--dataset", "MNIST", "-ir", 100, "--at", 55)
    assert re.search(r"Rzg_pz L80 +paper +10 +71.6 ± 7.0 .*\n +release .*\n +ours +2 +50.0 ± 1.0 pr ", done.stdout)
    (point, *_) = rows(tmp_path / "MNIST_ir100_curves.csv")
    assert (point["series"], point["select"], point["copies"]) == ("random", "test", "")
    assert (point["paper_runs"], point["paper_within_2_se"]) == ("10", "False")
    released = [r for r in rows(ROOT / "reference" / "release_mnist_ir100.csv") if r["series"] == "random"]
    released = [float(row["accuracy"]) for row in released if float(row["labeled_percent"]) == 0.25]
    assert (float(point["release_mean"]), point["release_runs"]) == (np.mean(released), str(len(released)))
    assert float(point["release_difference"]) == pytest.approx(40 - np.mean(released))
    (claim,) = rows(tmp_path / "MNIST_ir100_claims.csv")
    assert (float(claim["accuracy"]), float(claim["labels_ours"])) == (55, 0.375)


def test_a_plain_figure(two_runs, tmp_path):
    """One PNG file of known size; flags that leave several figures, or none, are refused."""
    plot(two_runs, tmp_path, "-ir", 100, "--methods", "Rzg_pz_L80", "random", "--plain", tmp_path / "new" / "x.png")
    assert plt.imread(tmp_path / "new" / "x.png").shape[:2] == (500, 900)
    for flags in (["-ir", 1], ["--methods", "BALD"]):
        refused("run_plot.py", "--datadir", two_runs, "--plain", tmp_path / "x.png", *flags, words="--plain draws one")


def test_flags_narrow(two_runs, tmp_path, undrawn):
    done = plot(two_runs, tmp_path, "--methods", "Rzg_pz", "--run-stop", 3)
    assert "not there: Rzg_pz L80: run 2, all\n" in done.stdout
    assert {p["series"] for p in rows(tmp_path / "MNIST_ir100_curves.csv")} == {"Rzg_pz_L80"}
    nothing = (["-ir", 1], ["--init", "random"], ["--dataset", "SVHN"], ["--run-start", 7], ["--methods", "BALD"])
    for flags in nothing:
        refused("run_plot.py", "--datadir", two_runs, "--out", tmp_path, *flags, words="bash demo.sh")
    refused("run_plot.py", "--datadir", tmp_path / "empty", "--out", tmp_path, words="bash demo.sh")
    refused("run_plot.py", "--datadir", two_runs, "--methods", "Rzg_xy", words="no method or series 'Rzg_xy'")


def test_what_is_damaged_or_differs_is_named(two_runs, tmp_path, undrawn):
    """A line that is cut short is left out and named, also on the page. The line "all train" is a measured one, if
    there is one, and no curve.
    """
    path = two_runs / "MNIST" / "run0" / "results.jsonl"
    whole = {**line(0, 0, "all_train", 91.5), "labelled": 25851, "labelled_share": 51.7}
    path.write_text(line_of(whole) + path.read_text()[:-30])
    done = plot(two_runs, tmp_path)
    wrong = f"{path}, line 9: cut short or not a results record; left out, {RESTORED}"
    assert done.stderr.splitlines() == [f"warning: {wrong}"]
    page = (tmp_path / "MNIST_ir100.md").read_text()
    assert f"- {wrong}" in page
    assert "all train (1 run): 91.50 %" in page
    assert "all_train" not in page + done.stdout
    (tmp_path / "file").touch()
    refused("run_plot.py", "--datadir", two_runs, "--out", tmp_path / "file", words="choose another --out")


def test_different_settings_are_not_drawn_together(two_runs, tmp_path, undrawn):
    """Those of two runs, and of two methods in a run; lines of VAAL have settings of their own."""
    of = {"random": "1", "Rzg_pz": "2", "vaal": "3"}
    write(two_runs, 0, [line(0, 0, method, 40, made_with=digest) for method, digest in of.items()])
    command = ["run_plot.py", "--datadir", two_runs, "--out", tmp_path]
    refused(*command, words="run0: lines of random ir=100 rotation and Rzg_pz ir=100 rotation were made with different")
    plot(two_runs, tmp_path, "--methods", "random", "vaal")
    write(two_runs, 1, [line(1, 0, "random", 40)], {"retraining.epochs": 4})
    refused(*command, words=f"{two_runs / 'MNIST' / 'run1'} was made with other settings than the first run (retrain")
    plot(two_runs, tmp_path, "--run-start", 1)
    write(two_runs, 0, [line(0, 0, "random", 40)], {"device": "cpu"})
    write(two_runs, 1, [line(1, 0, "random", 40)], {"device": "cuda"})  # a run's, but no other protocol
    plot(two_runs, tmp_path)


def test_each_curve_is_in_its_figures(tmp_path, undrawn):
    """Of the main figure, the ablation, other initial models, rivals, random first batches, added validation sets."""
    of_methods = {
        ("Rzg_pz", 80, "rotation"): {},
        ("Rzg_pz", 80, "random"): {},
        ("Rzg_trace", 20, "rotation"): {"copies": "degrees"},
        ("BALD", 0, "rotation"): {},
        ("random", 0, "rotation"): {},
        ("random", 0, "rotation_conv"): {},
        ("badge", 0, "rotation"): {},
        ("flqmi_z", 0, "rotation"): {},
        ("Rz", 20, "rotation"): {"first_batch": "random"},
        ("Rzg_pz", 20, "rotation"): {"adds_validation": True},
        ("validation", 0, "rotation"): {},
    }
    made = [line(0, b, *key[:1], 50 + b, *key[1:], **more) for key, more in of_methods.items() for b in (0, 1)]
    write(tmp_path / "data", 0, made)
    plot(tmp_path / "data", tmp_path / "out", "--dataset", "MNIST", "-ir", 100, "--reference")
    found = {}
    for path in (tmp_path / "out").glob("*_curves.csv"):
        name = path.name.removeprefix("MNIST_ir100").removesuffix("_curves.csv")
        found[name] = {p["series"] + ("" if p["init"] == "rotation" else f" {p['init']}") for p in rows(path)}
    beside = {"random", "Rzg_pz_L80"}
    assert found == {
        "": {"random", "BALD_E1", "Rzg_pz_L80"},
        "_ablation": {"Rzg_pz_L80", "Rzg_pz_L80 random", "Rzg_trace_L20"},
        "_rotation_conv": {"random rotation_conv"},
        "_rivals": beside | {"badge"},
        "_rivals_informed": beside | {"flqmi_z"},
        "_first_random": {"Rz_L20", "random", "BALD_E1", "badge"},
        "_and_validation": beside | {"Rzg_pz_L20"},
    }
    for name in ("", "_rotation_conv"):  # the paper's curves stand beside both
        assert round(float(rows(tmp_path / "out" / f"MNIST_ir100{name}_curves.csv")[0]["paper_mean"]), 2) == 50.47
    only = plot(tmp_path / "data", tmp_path / "only", "--init", "rotation_conv", "--dataset", "MNIST", "--reference")
    assert only.stdout.count("class imbalance") == 1  # no figure of the others' names without a curve


def test_accuracy_by_the_size_of_the_validation_set(tmp_path, monkeypatch):
    """A table of the runs that have all sizes, and a figure of a panel for each number of labels."""
    made = [line(run, b, "Rzg_pz", 60 + run + b, 80, validation_size=300) for run in range(2) for b in (0, 3)]
    made += [line(run, b, "Rzg_pz", 70 + run + b, 80) for run in range(3) for b in (0, 3)]
    made += [line(run, 3, "random", 50) for run in range(3)]
    for run in range(3):
        of_run = [record for record in made if record["run"] == run]
        write(tmp_path / "data", run, of_run, {"validation_per_class": [100] * 10})
    monkeypatch.setattr(plots, "save", lambda figure, path, dpi: path.touch())  # drawn, but not rendered
    plot(tmp_path / "data", tmp_path, "--dataset", "MNIST")
    page = (tmp_path / "MNIST_ir100_validation_size.md").read_text()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("|")]
    assert cells[0] == ["trained on", "runs", "V=300", "V=1,000"]
    assert cells[2:] == [
        ["random, 500 labels", "2", "50.0 ± 0.0", "50.0 ± 0.0"],
        ["Rzg_pz L80, 500 labels", "2", "63.5 ± 0.5", "73.5 ± 0.5"],
    ]
    assert (tmp_path / "MNIST_ir100_validation_size.png").exists()


def test_a_row_of_other_ratios_has_the_runs_of_all_methods():
    """And no number where a method was not run."""
    lines = [line(run, 2, "random", 50 + run, ir=ir) for run in range(3) for ir in (1.0, 10.0, 100.0)]
    lines += [line(run, 2, "margin", 60 + run, ir=ir) for run in (1, 2) for ir in (1.0, 10.0, 1000.0)]
    table = distortions_table(lines)
    assert table.heads == ["imbalance ratio", "noise ratio", "labels", "runs", "random", "margin"]
    assert table.rows == [
        ["1", "0", 375, 2, "51.5 ± 0.5", "61.5 ± 0.5"],
        ["10", "0", 375, 2, "51.5 ± 0.5", "61.5 ± 0.5"],
        ["100", "0", 375, 3, "51.0 ± 0.8", ""],
        ["1000", "0", 375, 2, "", "61.5 ± 0.5"],
    ]


def test_the_committed_results(tmp_path, monkeypatch, undrawn):
    """From anywhere, beside the paper's figures; results/figures holds some of them, and what pages show alone."""
    monkeypatch.chdir(tmp_path)
    plot(ROOT / "results", tmp_path / "x", "--reference")
    drawn = {path.stem for path in (tmp_path / "x").glob("*.md")}
    papers = {"MNIST_ir1", "MNIST_ir100", "MNIST_ir100_ablation", "SVHN_ir1", "SVHN_ir100"}
    assert papers | {"ImageNet_ir1", "ImageNet_ir100"} <= drawn
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    kept = list((ROOT / "results" / "figures").iterdir())
    assert {path.name for path in kept} == set(re.findall(r"results/figures/(\w[\w.]*\.png)\)", pages))
    assert {path.stem for path in kept} <= drawn | {"readme", "choices", "silhouettes", "rotation_accuracy"}


def test_one_run_has_no_error_bar():
    shares, mean = np.array([1.0, 2.0]), np.array([50.0, 60.0])
    figure, axes = plt.subplots()
    for std, runs in ((np.full(2, np.nan), 1), (np.array([1.0, 2.0]), 2)):
        each = plots.PlottedCurve(Curve(shares, mean, std, np.full(2, runs)), Trial(100, "random", 0))
        assert plots._draw_ours(axes, each).has_yerr == (runs > 1)
    plt.close(figure)


def test_no_two_methods_look_the_same():
    assert len(set(STYLES.values())) == len(STYLES)
    assert len({marker for _, marker in STYLES.values()}) == len(STYLES)  # in greyscale
    assert set(STYLES) >= set(METHODS)


def test_confusion_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    found = maps.confusion(labels, predictions, 5)
    assert np.allclose(found[:4, :4], 100 * confusion_matrix(labels, predictions, normalize="true"))
    assert not found[4].any()


def test_tiles_in_reading_order():
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 1, 28, 28), np.float32) / 5
    sheet = plots.tiled(images, 3)
    assert sheet.shape == (64, 96)
    assert np.allclose(sheet[16::32, 16::32], [[0, 0.2, 0.4], [0.6, 0.8, 1]])
    assert plots.tiled(np.zeros((2, 3, 28, 28)), 2).shape == (32, 64, 3)
