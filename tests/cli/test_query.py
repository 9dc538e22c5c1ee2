"""alfk query: embeddings and a linear classifier from files, as a user runs it."""

import csv
import sys

import numpy as np
import pytest

import alfk
from tests.helpers import call, call_process, refused

MAIN = "alfk/cli/main.py"
RNG = np.random.default_rng(0)
NAMES = ["owl", "ant", "bee"]
LABELS = RNG.integers(0, 3, 90)
EMBEDDINGS = RNG.normal(5, 2, (3, 8))[LABELS] + RNG.normal(0, 3, (90, 8))
WEIGHTS, BIAS = RNG.normal(size=(3, 8)), RNG.normal(size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same tables in several forms."""
    folder = tmp_path_factory.mktemp("tables")
    np.save(folder / "pool.npy", EMBEDDINGS[:60])
    np.save(folder / "validation.npy", EMBEDDINGS[60:])
    np.savetxt(folder / "pool.csv", EMBEDDINGS[:60], delimiter=",")
    np.savetxt(folder / "validation.csv", EMBEDDINGS[60:], delimiter=",", header="a,b,c,d,e,f,g,h", comments="")
    np.save(folder / "labels.npy", LABELS[60:])
    rows = "".join(f"{i}.png,{NAMES[label]}\r\n" for i, label in enumerate(LABELS[60:]))
    (folder / "labels.csv").write_text(f"\ufefffile,label\r\n{rows}", newline="")
    (folder / "names.txt").write_text("".join(f"image {i}\n" for i in range(60)))
    np.savez(folder / "head.npz", weights=WEIGHTS, bias=BIAS)
    np.savez(folder / "named.npz", weights=WEIGHTS, bias=BIAS, classes=NAMES)
    np.savez(folder / "objects.npz", weights=WEIGHTS, classes=np.array(NAMES, dtype=object))
    np.savez(folder / "other.npz", values=WEIGHTS)
    (folder / "text.csv").write_text("file,a\nx.png,1\n")
    (folder / "broken.npy").write_bytes((folder / "pool.npy").read_bytes()[:200])
    (folder / "there.csv").write_text("")
    return folder


def command(folder, pool="pool.npy", validation="validation.npy", labels="labels.npy", **flags):
    flags = {"head": "head.npz", "n": 5, "output": "query.csv", **flags}
    files = ("head", "output", "labelled", "names")
    line = [str(folder / name) for name in (pool, validation, labels)]
    for name, value in flags.items():
        line += [f"-{name}" if name == "n" else f"--{name}", str(folder / value if name in files else value)]
    return ["query", *line]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wanted(labels, labelled, **options):
    pool = alfk.Split.of(EMBEDDINGS[:60], mean=0, std=1, **options)
    validation = alfk.Split.of(EMBEDDINGS[60:], labels[60:], like=pool)
    query = alfk.query("Rzg_pz", alfk.linear(WEIGHTS, BIAS), pool, validation, 5, labelled=labelled)
    names = [f"image {i}" for i in range(60)]
    return [{key: str(value) for key, value in row.items()} for row in query.rows(names)]


def test_two_queries_from_files(folder):
    """Arrays, then CSV files and names of classes; the second leaves out what the first has chosen."""
    flags = {"names": "names.txt", "output": "first.csv"}
    done = call_process([sys.executable, "-m", "alfk.cli.main", *command(folder, **flags)])
    assert "5 of 60 unlabelled embeddings, chosen by Rzg_pz" in done.stdout
    assert " of 30 validation embeddings are misclassified" in done.stdout
    first = read(folder / "first.csv")
    assert first == wanted(LABELS, None)
    more = {"head": "named.npz", "labelled": "first.csv", "names": "names.txt", "output": "second.csv"}
    done = call(MAIN, *command(folder, "pool.csv", "validation.csv", "labels.csv", **more))
    assert "5 of 55 unlabelled" in done.stdout
    labelled = [int(row["index"]) for row in first]
    assert read(folder / "second.csv") == wanted(np.array(NAMES)[LABELS], labelled, classes=NAMES)


REFUSED = {
    "no such file": ({"pool": "none.npy"}, "cannot read"),
    "a damaged file": ({"pool": "broken.npy"}, "broken.npy: it is damaged"),
    "text among numbers": ({"pool": "text.csv"}, "could not convert string 'x.png'"),
    "an array of another kind": ({"validation": "labels.npy"}, "labels.npy is no table of numbers"),
    "objects": ({"head": "objects.npz"}, "converted by astype(str)"),
    "no weights": ({"head": "other.npz"}, "other.npz has no weights"),
    "names that the classifier does not have": ({"labels": "labels.csv"}, "has to name its classes too"),
    "no column": ({"labels": "text.csv"}, "has no column label"),
    "no positions": ({"labelled": "labels.csv"}, "has no column index"),
    "too many names": ({"names": "labels.csv"}, "31 names for 60 pool images"),
    "a result that is there": ({"output": "there.csv"}, "is there already"),
    "a method that asks": ({"method": "galaxy"}, "use alfk.query in a program"),
    "a method for dropout": ({"method": "varR", "labelled": "zero.npy"}, "dropout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_takes_one_line(folder, case):
    flags, words = REFUSED[case]
    np.save(folder / "zero.npy", [0])
    refused(MAIN, *command(folder, **flags), words=words)
    assert not (folder / "query.csv").exists()


def test_a_classifier_as_scikit_learn_has_it(folder):
    """One row of weights, for the second of two classes, and numbers as their names."""
    labels = LABELS[60:][LABELS[60:] < 2]
    np.save(folder / "two.npy", EMBEDDINGS[60:][LABELS[60:] < 2])
    np.save(folder / "both_labels.npy", labels)
    np.save(folder / "one_labels.npy", labels * 2 + 3)
    np.savez(folder / "both.npz", weights=[0 * WEIGHTS[0], WEIGHTS[0]], bias=[0, BIAS[0]])
    np.savez(folder / "one.npz", weights=WEIGHTS[:1], bias=BIAS[:1], classes=[3, 5])
    for name in ("both", "one"):
        flags = {"head": f"{name}.npz", "output": f"{name}.csv"}
        call(MAIN, *command(folder, "pool.npy", "two.npy", f"{name}_labels.npy", **flags))
    both, one = (read(folder / f"{name}.csv") for name in ("both", "one"))
    assert [row["index"] for row in one] == [row["index"] for row in both]
    assert [row["error_label"] for row in one] == [["3", "5"][int(row["error_label"])] for row in both]
