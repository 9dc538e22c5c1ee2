"""Pictures of a query's reasons: each chosen image beside the misclassified validation image that it matches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alfk.data.split import Split
from alfk.own.queries import query
from alfk.plotting import matches
from tests.helpers import ROOT, Killed, random_problem, refuses

NAMES, N = ("ant", "bee", "cat", "dog"), 9


@pytest.fixture(scope="module")
def problem():
    """(model, pool, validation) of random images."""
    return random_problem(classes=NAMES)


def captions(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def drawn(figure):
    return [np.asarray(picture.get_array()) for axes in figure.axes for picture in axes.images]


def test_each_image_is_drawn_beside_its_error(problem, tmp_path):
    _, pool, validation = problem
    found = query("Rzg_pz", *problem, N)
    figure = matches(found, pool, validation, tmp_path / "new" / "matches.png", title="A title")
    assert (tmp_path / "new" / "matches.png").read_bytes()[:4] == b"\x89PNG"
    texts, pictures = captions(figure), drawn(figure)
    assert texts[0] == "A title"
    assert len(pictures) == 2 * N
    for k, row in enumerate(found.rows()):
        chosen, error = pictures[2 * k], pictures[2 * k + 1]
        assert np.allclose(chosen, pool.images[row["index"], 0].numpy() / 255, atol=1e-3)
        assert np.allclose(error, validation.images[row["matches"], 0].numpy() / 255, atol=1e-3)
        assert texts[1 + 2 * k] == f"{k + 1}. {row['pseudo_label']}?\nsimilarity {row['similarity']:.2f}"
        assert texts[2 + 2 * k] == f"error: {row['error_label']},\ntaken for {row['error_prediction']}"
        assert row["pseudo_label"] in NAMES


@pytest.mark.parametrize("key", ["random", "BALD"])
def test_images_of_methods_without_matching_are_drawn_alone(problem, key):
    pool = problem[1]
    found = query(key, *problem, N, labelled=[0], samples=4)
    figure = matches(found, pool, None, most=4)
    assert len(drawn(figure)) == 4
    texts = captions(figure)
    assert texts[0] == f"{key}: 9 images to label, the first 4"
    wanted = ["1.", "2.", "3.", "4."]
    if key != "random":
        wanted = [f"{number}\nscore {s:.3g}" for number, s in zip(wanted, found.score.tolist(), strict=False)]
    assert texts[1:] == wanted


@pytest.mark.parametrize("scale", [255, 1, "normalised"])
def test_colour_images_of_every_scale(scale, tmp_path):
    pixels = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if scale == 255:
        pool = Split.of((pixels * 255).to(torch.uint8))
    elif scale == 1:
        pool = Split.of(pixels)
    else:
        pool = Split.of((pixels - 0.5) / 0.25, mean=0, std=1)
    found = query("random", nn.Identity(), pool, None, 5)
    figure = matches(found, pool, pool, tmp_path / "matches.pdf")
    assert (tmp_path / "matches.pdf").read_bytes()[:4] == b"%PDF"
    for picture, i in zip(drawn(figure), found.indices.tolist(), strict=True):
        assert picture.shape == (8, 8, 3)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert np.corrcoef(picture.ravel(), pixels[i].permute(1, 2, 0).numpy().ravel())[0, 1] > 0.99


def test_what_has_no_picture_is_refused(problem, tmp_path):
    _, pool, validation = problem
    features = Split.of(torch.randn(20, 5))
    found = query("random", nn.Identity(), features, None, 3)
    refuses(lambda: matches(found, features, features), "features have no picture")
    many = Split.of(torch.rand(20, 5, 8, 8))
    refuses(lambda: matches(found, many, many), "images of 5 channels cannot be drawn")
    refuses(lambda: matches(query("Rz", *problem, 3), pool, None), "give the validation set")
    found = query("random", *problem, 3)
    (tmp_path / "file").touch()
    refuses(lambda: matches(found, pool, validation, tmp_path / "file" / "a.png"), "cannot write")
    refuses(lambda: matches(found, pool, validation, tmp_path / "a.docx"), "cannot write")
    refuses(lambda: matches(found, pool, validation, most=0), "most is 0")


@pytest.mark.parametrize("suffix", [".svg", ""])
def test_a_picture_is_there_as_a_whole_or_not_at_all(problem, tmp_path, monkeypatch, suffix):
    """A kill leaves the picture before, or none."""
    _, pool, validation = problem
    found, path = query("Rz", *problem, N), tmp_path / f"matches{suffix}"

    def dying(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            matches(found, pool, validation, path)
    assert not path.exists()
    matches(found, pool, validation, path)
    content = path.read_bytes()
    assert len(content) > 1000
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            matches(found, pool, validation, path, most=1)
    assert path.read_bytes() == content


BACKEND = """
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plt.figure()
import alfk
from alfk.plotting import matches
import alfk.cli.annotate, alfk.plotting.reasons
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert plt.get_fignums() == [1]
"""


def test_matplotlib_is_left_as_it_is():
    subprocess.run([sys.executable, "-c", BACKEND], check=True, cwd=ROOT)
