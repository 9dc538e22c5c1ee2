"""Links and files that README and docs name exist, and their figures follow from the committed lines."""

import csv
import re

import numpy as np
import pytest

from alfk.experiment.trial import Trial
from alfk.plotting import results, tables
from alfk.plotting.curves import Curve, read_release
from mnist.config import MNIST
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_links_of_a_page_lead_somewhere(page):
    text = page.read_text()
    folders = "alfk|mnist|svhn|imagenet|vaal|tests|bench|reference|results|examples"
    for name in re.findall(rf"`((?:{folders})/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    for script in re.findall(r"python3 ((?:\.\./)?(?:\w+/)?\w+\.py)", text):
        assert any((ROOT / folder / script).exists() for folder in (".", "mnist", "svhn", "imagenet")), script
    for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    assert not re.findall(r"TODO|\b[A-Z]{4,}-[A-Z]{4,}\b|\bFIXME\b", text)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "results.md"], ids=lambda path: path.name)
def test_tables_of_results_follow_from_the_lines(page):
    """What `run_plot.py --into` makes of the committed lines stands in the page."""
    text, checked = page.read_text(), 0
    found = results.read_runs(ROOT / "results" / "MNIST", 0, None, pytest.fail)
    for figure in results.figures("MNIST", found.records, ROOT / "reference", True, MNIST.panels, MNIST.runs):
        block = re.search(rf"<!-- {figure.name} -->\n\n(.*?)\n\n<!-- end -->", text, re.S)
        if block:
            assert block.group(1) == f"{tables.digest(figure)}\n\n{tables.agreement(figure)}".rstrip(), figure.name
            checked += 1
    assert checked


def test_rotation_models_of_the_page_follow_from_the_files():
    text = (ROOT / "docs" / "results.md").read_text()
    with open(ROOT / "results" / "MNIST" / "rotation_models.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert f"{float(row['rotation_accuracy']):.1f} ({row['epoch']})" in text
    study = {"seeded": [], "module": []}
    for line in (ROOT / "results" / "rotation_study.txt").read_text().splitlines():
        kind, _, *epochs = line.split()
        study[kind].append(np.array(epochs, float))
    for kind, trainings in study.items():
        best = [training.max() for training in trainings]
        slow = sum(training[:2].min() < 80 for training in trainings)
        row = re.search(rf'\("{kind}"\) \| (.*) \|', text).group(1)
        mean = f"{np.mean(best):.1f} ± {np.std(best):.1f}"
        assert row == f"{len(best)} | {mean} | {np.median(best):.1f} | {min(best):.1f}, {max(best):.1f} | {slow}"


@pytest.mark.parametrize("length", [20, 80])
def test_figures_quoted_in_the_text_follow_from_the_lines(length):
    """The sentences on Rzg_pz beside the release in docs/results.md."""
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    found = results.read_runs(ROOT / "results" / "MNIST", 0, None, pytest.fail)
    trial = Trial(100.0, "Rzg_pz", length)
    ours = Curve.of([record for record in found.records if trial.describes(record)])
    release = read_release(ROOT / "reference" / "release_mnist_ir100.csv")[f"Rzg_pz_L{length}", "rotation"]
    first = [", ".join(f"{value:.1f}" for value in curve.mean[:4]) for curve in (ours, release)]
    fifth = [f"{curve.mean[4]:.1f}" for curve in (ours, release)]
    assert f"{first[0]} and {fifth[0]} % (10 runs) beside {first[1]} and {fifth[1]} % (3 runs)" in text
    later = release.mean[5:] - ours.mean[5:]
    quoted = f"it is {later.min():.1f} to {later.max():.1f}" if length == 80 else f"it is {later[-1]:.1f}"
    assert f"{quoted} points lower" in text


def test_what_choosing_the_epoch_by_the_validation_images_costs():
    """The sentences above the table of --select val in docs/results.md."""
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    records = results.read_runs(ROOT / "results" / "MNIST", 0, None, pytest.fail).records

    def values(select, method, length, field="accuracy"):
        trial = Trial(100.0, method, length, select=select)
        return {(r["run"], r["b"]): r[field] for r in records if trial.describes(r)}

    lower, above = [], []
    for method, length in (("random", 0), ("varR", 0), ("Rzg_pz", 80)):
        val, test = values("val", method, length), values("test", method, length)
        runs = np.array([np.mean([test[run, b] - val[run, b] for b in range(10)]) for run, b in val if b == 0])
        lower.append(f"{runs.mean():.1f} ± {runs.std(ddof=1) / np.sqrt(len(runs)):.1f}")
        last = values("test", method, length, "accuracy_last")
        above.append(f"{np.mean([test[key] - last[key] for key in test]):.1f}")
    assert "{} (random), {} (varR) and {} (Rzg_pz L80) points under those".format(*lower) in text
    assert above[1] == above[2]
    assert f"above the last by {above[1]} points on average for varR and Rzg_pz L80 and by {above[0]} for" in text
