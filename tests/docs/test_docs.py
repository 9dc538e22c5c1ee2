"""The pages: Python blocks run, commands are parsed by their scripts, links and names of files lead somewhere."""

import argparse
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

import alfk
from alfk.method.inputs import FILES, INPUTS
from alfk.method.registry import METHODS
from alfk.own.queries import Query, query
from tests.helpers import ROOT, call, picture, records

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "reference" / "README.md"]
CLASSES = ("cat", "dog", "emu")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def outside_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)


# Links


@each_page
def test_links_and_names_of_files_lead_somewhere(page):
    text = page.read_text()
    for place, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if place.startswith("https://"):
            continue
        target = (page.parent / place) if place else page
        assert target.exists(), place
        assert not anchor or anchor in anchors(target), f"{place}#{anchor}"
    folders = "alfk|mnist|svhn|imagenet|vaal|tests|bench|reference|results|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(alfk(?:\.\w+)+)", text):
        find(name)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", outside_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def find(name: str) -> object:
    """The object of a dotted name, e.g. alfk.networks.dropout.MCDropout. AttributeError if there is none."""
    found = alfk
    for part in name.split(".")[1:]:
        if not hasattr(found, part):
            __import__(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


# Commands

ELSEWHERE = {  # commands without a parser of their own -> the file that runs them
    "python3 examples/own_loop.py": ".ci/install.sh",
    "python3 examples/paper.py": "tests",
    "python3 -m tests.docs.test_readme": "nothing, but test_blocks compares what it writes",
}


class ParsedError(Exception):
    """The command line was accepted."""


def commands(page: Path) -> Iterator[str]:
    """The lines of shell blocks, and code in the text."""
    for block in blocks(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", outside_blocks(page)))


@each_page
def test_commands_are_accepted_by_their_scripts(page, monkeypatch, tmp_path):
    """From the repository's root. Only parsed: other tests run the scripts."""
    parse, known = argparse.ArgumentParser.parse_args, sys.path.copy()

    def parsed(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for line in commands(page):
        line = re.sub(r"^alfk (?=\w+ )", "python3 alfk/cli/main.py ", line)
        words = shlex.split(line, comments=True) if re.match(r"(python3|torchrun) ", line) else []
        if not words or shlex.join(words) in ELSEWHERE:
            continue
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        monkeypatch.setattr(sys, "argv", [str(ROOT / words[at]), *words[at + 1 :]])
        with pytest.raises(ParsedError):
            runpy.run_path(sys.argv[0], run_name="__main__")
        sys.path[:] = known


def test_commands_without_a_parser_run_elsewhere():
    assert "pip install --quiet --disable-pip-version-check ." in (ROOT / ".ci/install.sh").read_text()
    assert "own_loop.py" in (ROOT / ".ci/install.sh").read_text()
    assert "bash test.sh" in (ROOT / ".ci/run").read_text()
    for script in ("demo.sh", "test.sh"):
        requirements = re.search(r"source .ci/venv.sh (\S+)", (ROOT / script).read_text()).group(1)
        assert (ROOT / requirements).exists()


@pytest.mark.slow
def test_commands_of_the_demo_run(tmp_path, monkeypatch):
    """Those of demo.sh, on the same digits, with fewer epochs, iterations and methods."""
    text = (ROOT / "demo.sh").read_text()
    lines = [line for line in text.splitlines() if line.startswith((".venv/bin/python", '"${run[@]}"'))]
    assert len(lines) == 6
    run = re.search(r"run=\(\.venv/bin/python (.*?) --jobs 2\)", text).group(1)
    monkeypatch.chdir(tmp_path)
    smaller = {  # flags that are added to a script's command
        "mnist/run.py": "--run-stop 1 --iterations 1 -e 1 --unsup-epochs 1 --methods random Rzg_pz -dl 80 --device cpu",
        "run_plot.py": "--out local_data/figures",
        "mnist/visualize_tsne.py": "--out local_data/figures -b 1 --methods Rzg_pz",
    }
    for line in lines:
        script, *arguments = shlex.split(line.replace('"${run[@]}"', run).replace(".venv/bin/python ", ""))
        call(script, *arguments, *shlex.split(smaller[script]), "--datadir", "local_data")
    figures = {path.name.split("_")[1] for path in (tmp_path / "local_data" / "figures").iterdir()}
    assert figures >= {"ir20", "selected", "matches"}, figures


# Python blocks


class Network(nn.Module):
    """A user's own, for images of any size."""

    def __init__(self, classes: int):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.layer4 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, classes)

    def forward(self, images):
        return self.fc(self.layer4(self.layer3(images)).mean((2, 3)))


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, object]:
    """The names that the pages call the user's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rng, truth, trained = np.random.default_rng(0), np.arange(240) % 3, []
    paths = {"pool": [], "validation": []}
    for part, count in (("pool", 30), ("validation", 9)):
        (tmp_path / part).mkdir()
        for i in range(count):
            paths[part].append(tmp_path / part / f"{i:02}.jpg")
            picture(i, 50, 60).save(paths[part][-1])
    network = torchvision.models.get_model("resnet18", num_classes=2)
    (tmp_path / "my_photos" / "asked").mkdir(parents=True)
    about = {"arch": "resnet18", "classes": ["cat", "dog"]}
    torch.save({"state": network.state_dict(), "about": about}, tmp_path / "my_photos" / "asked" / "model.pt")
    (tmp_path / "labels.csv").write_text(f"file,label\n{paths['pool'][3]},dog\n{paths['pool'][5]},skip\n")

    def train(model, data):
        model.train()
        images, positions = next(data.batches(len(data)))
        model(images)
        trained.append(data.labels[positions].tolist())

    return {
        "pool_images": rng.integers(0, 256, (240, 16, 16, 3), dtype=np.uint8),
        "validation_images": rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        "validation_labels": np.arange(60) % 3,
        "pool_files": [f"shoot/{i}.jpg" for i in range(240)],
        "validation_files": [f"val/{i}.jpg" for i in range(60)],
        "model": Network(3),
        "labels_from_your_annotators": lambda positions: truth[positions.numpy()].tolist(),
        "train_your_way": train,
        "pool_rows": rng.normal(size=(80, 12)),
        "validation_rows": rng.normal(size=(30, 12)),
        "row_labels": np.arange(30) % 3,
        "perceptron": nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)),
        "your_dataset": TensorDataset(torch.rand(40, 3, 16, 16), torch.arange(40) % 3),
        "your_validation_set": TensorDataset(torch.rand(30, 3, 16, 16), torch.arange(30) % 3),
        "pool_paths": paths["pool"],
        "validation_paths": paths["validation"],
        "names_of_validation": [CLASSES[i % 3] for i in range(9)],
        "embeddings": rng.normal(size=(60, 8)),
        "other_embeddings": rng.normal(size=(30, 8)),
        "labels_of_others": np.arange(30) % 3,
        "classifier": LogisticRegression().fit(rng.normal(size=(30, 8)), np.arange(30) % 3),
        "predictions_after_each_round": [np.arange(30) % 2, np.arange(30) % 3],
        "held_out_labels": np.arange(30) % 3,
        "predictions_of_clean": np.zeros(30, int),
        "truth": truth,
        "trained": trained,
    }


@pytest.fixture
def registries() -> Iterator[None]:
    """Registries of the test's own."""
    known = [(registry, registry.copy()) for registry in (METHODS, INPUTS, FILES)]
    yield
    for registry, before in known:
        registry.clear()
        registry.update(before)


@each_page
def test_python_blocks_run(page, names, registries):
    """One after the other, in one namespace."""
    for i, text in enumerate(blocks(page, "python")):
        exec(compile(text, f"{page.name}, Python block {i + 1}", "exec"), names)
    if page.name == "method.md":
        pool, network = alfk.Split.of(names["pool_images"]), alfk.tapped(names["model"], ["layer3", "layer4"])
        margin, norm = (alfk.query(key, network, pool, None, n=5, labelled=[0, 1]) for key in ("margin2", "norm"))
        known = alfk.query("margin", network, pool, None, n=5, labelled=[0, 1])
        assert margin.indices.tolist() == known.indices.tolist()
        assert len(norm) == 5
    if page == ROOT / "README.md":
        labelled, truth = names["labelled"], names["truth"]
        assert len(set(labelled)) == 200
        assert names["trained"] == [truth[labelled[: 40 * b]].tolist() for b in range(1, 6)]
        assert len(Path("query_b4.csv").read_text().splitlines()) == 41
        assert {"matches", "error_prediction", "similarity", "pseudo_label"} <= set(names["query"].rows()[0])
    if page.name == "own_data.md":
        assert Path("query.csv").read_text().startswith("index,file,similarity,percentile,matches,matches_file,")
        assert Image.open("query.png").width > 1000
        assert names["taps"] == ["layer3", "layer4"]  # as in the README
        assert names["trained"] == [[CLASSES.index("dog")]]
        asked = {line.split(",")[1] for line in Path("ask_next.csv").read_text("utf-8-sig").splitlines()[1:]}
        assert len(asked) == 10
        assert not {str(names["pool_paths"][i]) for i in (3, 5)} & asked
        assert Path("ask_next.pdf").exists()


# Lists that a page and the code share


@pytest.mark.parametrize(
    ("page", "head", "known"),
    [
        ("own_data.md", "| argument of", inspect.signature(query).parameters),
        ("own_data.md", "| field |", Query.__dataclass_fields__),
        (
            "files.md",
            "| field |",
            {key for run in (ROOT / "results").rglob("run*") for line in records(run) for key in line},
        ),
    ],
)
def test_a_table_lists_what_the_code_has(page, head, known):
    table = (ROOT / "docs" / page).read_text().split(head)[1].split("\n\n")[0]
    first = " ".join(row.split(" | ")[0] for row in table.splitlines())
    assert set(known) <= set(re.findall(r"`(\w+)`", first))
