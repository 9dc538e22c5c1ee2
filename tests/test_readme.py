"""What the README shows works."""

import json
import re

import numpy as np
import torch
from torch import nn

from alfk.plotting.curves import parse_series
from alfk.runs import Trial
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()


class TwoTaps(nn.Module):
    """A user's own network."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5)

    def forward(self, images):
        features = torch.relu(self.conv(images))
        return self.fc(features.flatten(1)), [features]


def test_the_loop_of_ones_own():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert len(code.strip().splitlines()) < 15
    torch.manual_seed(0)
    truth = torch.randint(0, 5, (1300,))
    taught = []
    names = {
        "pool_images": torch.randint(0, 256, (1300, 3, 8, 8), dtype=torch.uint8),
        "validation_images": torch.randint(0, 256, (90, 3, 8, 8), dtype=torch.uint8),
        "validation_labels": torch.randint(0, 5, (90,)),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "model": TwoTaps(),
        "labels_from_your_annotators": lambda positions: truth[positions],
        "train_your_way": lambda model, images, labels: taught.append((len(images), len(labels))),
    }
    exec(code, names)
    assert taught == [(125 * b, 125 * b) for b in range(1, 11)]
    assert names["labelled"].unique().numel() == 1250


def test_every_file_it_names_is_there():
    for name in re.findall(r"`((?:alfk|mnist|vaal|tests|bench|reference|results)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name
    for script in re.findall(r"python3 ((?:\w+/)?\w+\.py)", README):
        assert (ROOT / script).exists() or (ROOT / "mnist" / script).exists(), script


def test_every_link_inside_it_leads_somewhere():
    headings = re.findall(r"^#+ (.*)$", README, re.M)
    places = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    places |= set(re.findall(r'<a id="([^"]+)">', README))
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= places


def test_nothing_was_left_to_fill_in():
    assert not re.findall(r"\b[A-Z]{4,}(?:TABLE|TIME|INSTALL)\b|TODO", README)


def test_its_tables_of_accuracy_say_what_the_results_say():
    """Every row "ours" of the tables ir=100 and ir=1: mean ± standard deviation over runs of lines in results/."""
    records = [
        json.loads(line)
        for path in ROOT.glob("results/MNIST/run*/results.jsonl")
        for line in path.read_text().splitlines()
    ]
    checked = 0
    for ir, shares, body in re.findall(r"^\| ir=(\d+) \|  \| runs \| (.*?) \|\n\|[ -|]+\n((?:\|.*\n)+)", README, re.M):
        shares, name = [float(share.rstrip(" %")) for share in shares.split(" | ")], None
        for row in body.splitlines():
            linked, whose, runs, *cells = (cell.strip() for cell in row.strip("|").split(" | "))
            name = linked[1:].partition("]")[0] or name
            if not whose.startswith("ours"):
                continue
            init = (
                "random" if "--unsupervised 0" in whose else "rotation_conv" if "--conv-only" in whose else "rotation"
            )
            figure = "accuracy_without_dropout" if "dropout off" in whose else "accuracy"
            method, length, ensemble = parse_series(name.replace(" ", "_"))
            trial = Trial(float(ir), method, length, ensemble, init=init)
            for share, cell in zip(shares, cells, strict=True):
                found = [r[figure] for r in records if trial.describes(r) and abs(r["labelled_share"] - share) < 1e-9]
                assert len(found) == int(runs), row
                said = f"{np.mean(found):.1f}" + (f" ± {np.std(found):.1f}" if len(found) > 1 else "")
                assert cell == said, row
                checked += 1
    assert checked > 70
