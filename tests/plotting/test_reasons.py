"""Pictures of a query's reasons: each chosen image beside the misclassified validation image that it matches."""

import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox
from torch import nn

from alfk.data.split import Split
from alfk.own.queries import query
from alfk.plotting import fonts, matches, reasons, sheets
from alfk.plotting.fonts import missing_letters_ignored
from alfk.plotting.saving import save
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


def boxes(figure):
    return [patch for axes in figure.axes for patch in axes.patches if patch.get_edgecolor() == (0, 0, 0, 1)]


def changed(query, **columns):
    return dataclasses.replace(query, **{name: torch.tensor(values) for name, values in columns.items()})


def test_each_image_is_drawn_beside_its_error(problem, tmp_path):
    _, pool, validation = problem
    found = query("Rzg_pz", *problem, N)
    found = dataclasses.replace(found, pseudo_label=(found.error_label + torch.arange(N) % 2) % 4)
    figure = matches(found, pool, validation, tmp_path / "new" / "matches.png", title="A title")
    assert (tmp_path / "new" / "matches.png").read_bytes()[:4] == b"\x89PNG"
    texts, pictures = captions(figure), drawn(figure)
    assert texts[:3] == ["A title", *(meaning for _, meaning in reasons.LEGEND)]
    assert len(pictures) == 2 * N
    wanted = []
    for k, row in enumerate(found.rows()):
        chosen, error = pictures[2 * k], pictures[2 * k + 1]
        assert np.allclose(chosen, pool.images[row["index"], 0].numpy() / 255, atol=1e-3)
        assert np.allclose(error, validation.images[row["matches"], 0].numpy() / 255, atol=1e-3)
        similarity = f"similarity {row['similarity']:.2f}"
        if row["percentile"] < 95:
            of_match = [f"weak match: {similarity},", f"more similar than {int(row['percentile'])} % of pairs"]
        else:
            of_match = [f"{similarity}, top {max(1, math.ceil(100 - row['percentile']))} % of pairs"]
        guess = [] if row["pseudo_label"] == row["error_label"] else [f"guess: {row['pseudo_label']}"]
        of_error = [f"class: {row['error_label']}", f"predicted: {row['error_prediction']}"]
        wanted += [str(k + 1), *of_error, *of_match, *guess]
    assert texts[3:] == wanted
    assert {"weak" in text for text in wanted if "similarity" in text} == {True, False}
    assert sum(text.startswith("guess") for text in wanted) == N // 2
    assert not boxes(figure)


def test_the_words_of_matches_and_of_facility_location(problem):
    _, pool, validation = problem
    found = query("Rzg_fl", *problem, 4)
    found = changed(
        found,
        similarity=[0.971, 0.5, 0.5, 0.5],
        percentile=[88.96, 94.9, 95.0, 100.0],
        stands_for=[1212, 1, 0, 2],
        stands_for_label=[0, 1, -1, 2],
        stands_for_prediction=[1, 2, -1, 3],
    )
    found_reasons = [pair.reason.split("\n") for pair in reasons.pairs(found, pool, validation, 4)]
    assert found_reasons == [
        ["weak match: similarity 0.97,", "more similar than 89 % of pairs", "for 1,212 errors, mostly ant as bee"],
        ["weak match: similarity 0.50,", "more similar than 94 % of pairs", "for 1 error, bee as cat"],
        ["similarity 0.50, top 5 % of pairs", "stands for no error of its own"],
        ["similarity 0.50, top 1 % of pairs", "for 2 errors, mostly cat as dog"],
    ]
    unknown = dataclasses.replace(found, percentile=None)  # as of a run's files
    assert reasons.pairs(unknown, pool, validation, 1)[0].reason.startswith("similarity 0.97\n")


@pytest.mark.parametrize("key", ["random", "BALD"])
def test_images_of_methods_without_matching_are_drawn_alone(problem, key):
    pool = problem[1]
    found = query(key, *problem, N, labelled=[0], samples=4)
    figure = matches(found, pool, None, most=4)
    assert len(drawn(figure)) == 4
    texts = captions(figure)
    assert texts[:2] == [f"{key}: 9 images to label, the first 4", reasons.LEGEND[0][1]]
    wanted = [[str(k + 1), *([f"score {found.score[k]:.3g}"] if key == "BALD" else [])] for k in range(4)]
    assert texts[2:] == [text for texts_of_one in wanted for text in texts_of_one]


@pytest.mark.parametrize("form", ["mapping", "sequence"])
def test_labels_stand_in_place_of_boxes_and_guesses(problem, form):
    _, pool, validation = problem
    found = changed(query("Rzg_pz", *problem, 3), error_label=[0, 0, 0], pseudo_label=[1, 1, 1])
    first, _, third = found.indices.tolist()
    labels = {first: "dog", third: "", 59 - first: "cat"} if form == "mapping" else ["dog", None, ""]
    pairs = reasons.pairs(found, pool, validation, 3, boxes=True, labels=labels)
    assert [pair.label for pair in pairs] == ["labelled: dog", "", ""]
    assert [pair.caption for pair in pairs] == ["", "guess: bee", "guess: bee"]
    figure = matches(found, pool, validation, boxes=True, labels=labels)
    assert len(boxes(figure)) == 2
    assert "labelled: dog" in captions(figure)
    refuses(lambda: matches(found, pool, validation, labels=["dog"]), "there are 1 labels for 3 images")


def test_pages_to_print(problem, tmp_path):
    _, pool, validation = problem
    found = query("Rzg_pz", *problem, 40)
    first = matches(found, pool, validation, tmp_path / "ask.pdf", most=40, boxes=True)
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "ask.pdf").read_bytes())) == 3
    pages = sheets.draw_pages("A title", reasons.pairs(found, pool, validation, 40, boxes=True))
    assert [captions(page)[0] for page in pages] == [f"A title, page {i} of 3" for i in (1, 2, 3)]
    assert captions(first)[0] == "Rzg_pz: 40 images to label, page 1 of 3"
    numbers = [text for page in pages for text in captions(page) if text.isdigit()]
    assert numbers == [str(k + 1) for k in range(40)]
    assert sum(len(boxes(page)) for page in pages) == 40
    assert {tuple(page.get_size_inches()) for page in pages} == {sheets.A4}


LONG = "English springer spaniel (hunting line)", "garbage_truck_municipal_waste_collection", "W" * 60, "猫の写真" * 9


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("on_pages", [False, True])
def test_long_names_are_not_cut_and_nothing_overlaps(on_pages, alone):
    tall, wide = np.zeros((1, 8, 5)), np.zeros((3, 5, 8))
    words = {"label": "labelled: {}", "caption": "guess: {}", "error_caption": "class: {}\nfor", "reason": "as {}, {}"}
    pairs = [
        sheets.Pair(i, wide, None if alone else tall, box=i % 2 > 0, **{k: v.format(a, b) for k, v in words.items()})
        for i, (a, b) in enumerate(itertools.product(LONG, LONG))
    ]
    title, legend = "A long title " * 20, [("#D55E00", "long " * 60), ("#555555", "short")]
    blocks = [sheets.Block("A heading " * 30, pairs), sheets.Block("", pairs[:3])]
    figures = sheets.draw_pages(title, pairs, legend) if on_pages else [sheets.draw(title, blocks, legend)]
    for figure in figures:
        figure.set_dpi(sheets.DPI)
        with missing_letters_ignored():
            figure.draw_without_rendering()
            (axes,) = figure.axes
            texts = [text.get_window_extent().padded(-1) for text in axes.texts if not text.get_text().isdigit()]
        others = [artist.get_window_extent() for artist in (*axes.images, *axes.patches)]
        for i, text in enumerate(texts):
            assert not text.count_overlaps([*texts[:i], *others])
        union = Bbox.union([*texts, *others])
        assert 0 < union.x0 < union.x1 < figure.bbox.x1
        assert 0 < union.y0 < union.y1 < figure.bbox.y1
    written = "".join(text for figure in figures for text in captions(figure)).replace(" ", "")
    assert all(name.replace(" ", "") in written for name in LONG)


def test_letters_that_fonts_lack(tmp_path):
    """An installed font that has them is taken; without one they are frames, without a warning."""
    letter = "\u1d81"  # in STIX, which comes with matplotlib, and not in its default font
    figure = sheets.draw(f"{letter} \U000f0000 \udce9", [])
    assert fonts.families("é") == ["sans-serif"]
    assert figure.axes[0].texts[0].get_fontfamily() == fonts.families(letter)
    assert fonts.families(letter)[1].startswith("STIX")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "a.pdf"):
            save(figure, tmp_path / name, 50)


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
import alfk.plotting.reasons
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert plt.get_fignums() == [1]
"""


def test_matplotlib_is_left_as_it_is():
    subprocess.run([sys.executable, "-c", BACKEND], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("module://matplotlib_inline.backend_inline", ""),  # a notebook's, for its subprocesses too
        ("nothing", "warning: MPLBACKEND=nothing is no backend of matplotlib, and is not used\n"),
    ],
)
def test_a_backend_that_is_not_there_is_not_used(backend, said):
    line = [sys.executable, "-c", "from alfk import plotting"]
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(line, check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == said
