"""What the README shows works."""

import re
from pathlib import Path

import torch
from torch import nn

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


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
    root = Path(__file__).resolve().parents[1]
    for name in re.findall(r"`((?:alfk|mnist|vaal|tests|bench|reference|results)/[\w./]*)`", README):
        assert (root / name).exists(), name
    for script in re.findall(r"python3 ((?:\w+/)?\w+\.py)", README):
        assert (root / script).exists() or (root / "mnist" / script).exists(), script


def test_nothing_was_left_to_fill_in():
    assert not re.findall(r"\b[A-Z]{4,}(?:TABLE|TIME|INSTALL)\b|TODO", README)
