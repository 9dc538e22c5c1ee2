"""Every code block of README.md and docs/own_data.md is run, on small made-up data.

Python blocks of a page run one after the other, with the names that the page calls the user's. Of shell blocks every
command runs with the flags of SMALLER added, or is listed in ELSEWHERE. A command that is neither fails.
"""

import inspect
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import alfk
from alfk.own.queries import Query, query
from tests.helpers import ROOT, call, picture

PAGES = ("README.md", "docs/own_data.md")
CLASSES = ("cat", "dog", "emu")

ELSEWHERE = {  # commands that are not run here: the file that runs them, or has their commands
    "pip3 install .": ".ci/install.sh",
    "pip3 install -U -r requirements.txt": ".ci/venv.sh",
    "python3 examples/own_loop.py": ".ci/install.sh",
    "bash demo.sh": "tests/test_scripts.py",
    "bash test.sh": ".ci/run",
}

SMALLER = {  # flags that are added to a script's command: a small network, few images and epochs, folders of the test
    "mnist/run.py": "--dataset DIGITS -ir 20 --run-stop 1 --iterations 1 -e 1 --unsup-epochs 1 --methods random Rzg_pz"
    " -dl 80 --device cpu --datadir local_data",
    "imagenet/run.py": "--image-size 32 -e 2 --unsup-epochs 1 --batch-size 4 -a resnet10 -as 6 --iterations 2"
    " --device cpu --loader torchvision --datadir local_data",
    "run_plot.py": "--datadir local_data --out local_data/figures",
}

LEFT = {  # what the commands of a page leave, among other files
    "README.md": ("ask_b0.csv", "ask_b0.png", "labels.csv", "local_data/figures/DIGITS_ir20.png"),
    "docs/own_data.md": (
        "ask_b1.csv",
        "ask_b1.png",
        "local_data/figures/my_images_ir1_select_val.png",
        "local_data/figures/my_photos_ir1_select_val.png",
        "local_data/figures/my_photos_matches_run0_unsup_ir_1_nr_0_sub_Rzg_pz_L_768_select_val.png",
    ),
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    assert {language for language, _ in found} <= {"python", "sh", "bibtex"}, f"{page} has a block of another language"
    assert (ROOT / page).read_text().count("```") == 2 * len(found)
    return found


# Shell blocks


def commands(page: str) -> list[tuple[str, str]]:
    """(folder below the repository's root, command) of all lines in the page's shell blocks."""
    found = []
    for text in (text for language, text in blocks(page) if language == "sh"):
        folder = ""
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words[:1] == ["cd"]:
                    folder = str((ROOT / folder / words[1]).resolve().relative_to(ROOT))
                elif words:
                    found.append((folder, shlex.join(words)))
    return found


def people(folder: Path) -> None:
    """Enter a label for every file of the newest request: the guess."""
    requests = sorted(folder.glob("ask_b*.csv"))
    if requests:
        rows = [line.split(",")[:2] for line in requests[-1].read_text().splitlines()[1:]]
        with open(folder / "labels.csv", "a") as file:
            file.writelines(f"{name},{label}\n" for name, label in rows)


def write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        picture(seed + i, 50, 60).save(folder / f"{i}.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "my_photos" / "pool" / "day1", 15, 0)
    write_images(tmp_path / "my_photos" / "pool" / "day2" / "noon", 5, 100)
    for i, name in enumerate(CLASSES):
        write_images(tmp_path / "my_photos" / "val" / name, 6, 1000 * i)
        write_images(tmp_path / "my_images" / "train" / name, 6, 1000 * i + 500)
    shutil.copytree(tmp_path / "my_photos" / "val", tmp_path / "my_images" / "val")
    for folder, text in commands(page):
        if text in ELSEWHERE:
            continue
        python, script, *arguments = shlex.split(text)
        script = str(Path(folder) / script)
        assert python == "python3", f"{page}: {text} is neither run nor in ELSEWHERE"
        assert script in SMALLER, f"{page}: {text} is neither run nor in ELSEWHERE"
        if "--annotate" in arguments:
            people(tmp_path)
        call(script, *arguments, *shlex.split(SMALLER[script]))
    assert [name for name in LEFT[page] if not (tmp_path / name).exists()] == []


def test_commands_that_do_not_run_here_run_elsewhere():
    found = {text for page in PAGES for _, text in commands(page)}
    assert set(ELSEWHERE) <= found
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
    run = re.search(r"run=\(\.venv/bin/python (.*?) --jobs 2\)", text).group(1)  # --jobs: tests/test_scripts.py
    monkeypatch.chdir(tmp_path)
    small = shlex.split(SMALLER["mnist/run.py"])
    for line in lines:
        script, *arguments = shlex.split(line.replace('"${run[@]}"', run).replace(".venv/bin/python ", ""))
        if script == "mnist/run.py":
            arguments += small
        elif script == "run_plot.py":
            arguments += shlex.split(SMALLER[script])
        else:
            arguments += ["--datadir", "local_data", "--out", "local_data/figures", "-b", "1", "--methods", "Rzg_pz"]
        call(script, *arguments)
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


def some_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names that the pages call the user's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rng, truth, trained = np.random.default_rng(0), np.arange(240) % 3, []
    for part, count in (("pool", 30), ("validation", 9)):
        write_images(tmp_path / part, count, 0 if part == "pool" else 1000)
    paths = {part: sorted((tmp_path / part).glob("*.jpg")) for part in ("pool", "validation")}
    (tmp_path / "labels.csv").write_text(f"file,label\n{paths['pool'][3]},dog\n{paths['pool'][5]},skip\n")

    def train(model, data):
        model.train()
        images, positions = next(data.batches(len(data)))
        model(images)
        trained.append(data.labels[positions].tolist())

    return {
        "pool_images": some_images(240, 1),
        "validation_images": some_images(60, 2),
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
        "truth": truth,
        "trained": trained,
    }


def execute(page: str, names: dict[str, object]) -> list[dict[str, object]]:
    """Run the page's Python blocks in one namespace; returns the queries that are there after each block."""
    found = []
    for i, text in enumerate(text for language, text in blocks(page) if language == "python"):
        exec(compile(text, f"{page}, Python block {i + 1}", "exec"), names)
        found.append(dict(names))
    return found


def test_python_blocks_of_the_readme_run(names, tmp_path):
    execute("README.md", names)
    labelled, truth = names["labelled"], names["truth"]
    assert len(set(labelled)) == 200
    assert names["trained"] == [truth[labelled[: 40 * b]].tolist() for b in range(1, 6)]
    for b in range(5):
        lines = (tmp_path / f"query_b{b}.csv").read_text().splitlines()
        assert len(lines) == 41
        assert lines[1].startswith(f"{labelled[40 * b]},shoot/{labelled[40 * b]}.jpg,")
        assert Image.open(tmp_path / f"query_b{b}.png").width > 1000
    assert {"matches", "error_prediction", "similarity", "pseudo_label"} <= set(names["query"].rows()[0])


def test_the_readmes_rule_for_taps(names):
    assert alfk.suggest_taps(names["model"], alfk.Split.of(names["pool_images"])).last_two == ["layer3", "layer4"]


def test_python_blocks_of_own_data_run(names, tmp_path, capsys):
    states = execute("docs/own_data.md", names)
    sizes = [len(state["query"]) for state in states]
    assert sizes == [40, 40, 40, 40, 10, 10, 10, 10, 10]
    assert "layer4" in capsys.readouterr().out
    assert len(states[0]["data"]) == 40
    head = (tmp_path / "query.csv").read_text().splitlines()[0]
    assert head.startswith("index,file,similarity,matches,matches_file,")
    assert states[-1]["trained"] == [[CLASSES.index("dog")]]
    asked = [line.split(",")[0] for line in (tmp_path / "ask.csv").read_text().splitlines()[1:]]
    assert len(asked) == 10
    assert not {str(states[-1]["pool_paths"][i]) for i in (3, 5)} & set(asked)
    assert (tmp_path / "ask.png").exists()


def test_fields_of_a_query_are_in_the_page():
    text = (ROOT / "docs" / "own_data.md").read_text()
    table = text[text.index("| field | meaning |") : text.index("`alfk.select(")]
    for name in Query.__dataclass_fields__:
        assert f"`{name}`" in table, name
    arguments = text[text.index("| argument of") : text.index("The result is a `Query`")]
    for name in inspect.signature(query).parameters:
        assert f"| `{name}` |" in arguments, name
