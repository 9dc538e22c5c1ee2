"""alfk query: which rows of a table of embeddings to label next, for a linear classifier on them."""

import argparse
import csv
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from alfk.cli.options import positive, seed
from alfk.data.arrays import positions
from alfk.data.split import Split
from alfk.method.acquisition import get_method
from alfk.own.linear import linear
from alfk.own.queries import query
from alfk.support.errors import UserError
from alfk.support.files import open_file, read_file

ABOUT = """Which rows of a table of embeddings to label next, and why.

    alfk query pool.npy validation.npy labels.csv --head head.npz -n 40 -o query0.csv
    alfk query pool.npy validation.npy labels.csv --head head.npz -n 40 -o query1.csv --labelled query0.csv

Tables are .npy or .csv files. The classifier is linear, softmax(weights x + bias). LogisticRegression of scikit-learn:

    numpy.savez("head.npz", weights=model.coef_, bias=model.intercept_, classes=model.classes_.astype(str))
"""
ASKED = {"annotation", "labels", "rare_classes"}  # inputs of methods that files do not give


def query_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `alfk query`."""
    parser.description, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("pool", type=Path, metavar="POOL", help="embeddings to choose from: an array, or numbers alone with commas")
    add("validation", type=Path, metavar="VALIDATION", help="embeddings of the validation set, likewise")
    text = "their labels: an array, or the column label of a table; names or numbers of classes, from 0"
    add("labels", type=Path, metavar="LABELS", help=text)
    text = "the classifier: weights (classes, values), bias (classes,), and names of the classes"
    add("--head", type=Path, required=True, metavar="NPZ", help=text)
    add("-n", type=positive, required=True, help="rows to choose")
    add("--method", default="Rzg_pz", metavar="KEY", help="how they are chosen (Rzg_pz)")
    text = "rows of the pool that are labelled: an array of positions, or the column index of a table, as of a query"
    add("--labelled", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    add("--names", type=Path, metavar="TXT", help="a line for each row of the pool, which names it in the result")
    add("--validation-names", type=Path, metavar="TXT", help="likewise for the validation set")
    add("--seed", type=seed, default=0, help="seed of random draws (0)")
    add("-o", "--output", type=Path, default=Path("query.csv"), metavar="CSV", help="the result (query.csv)")


def run_query(options: argparse.Namespace) -> int:
    """Choose, and write the result; returns the exit status."""
    if get_method(options.method).inputs & ASKED:
        raise UserError(f"{options.method} asks for labels or rare classes: use alfk.query in a program")
    if options.output.exists():
        raise UserError(f"{options.output} is there already: name another file with -o")
    weights, bias, classes = _head(options.head)
    labels = _labels(options.labels, classes)
    pool = Split.of(_embeddings(options.pool), mean=0, std=1, classes=classes)
    validation = Split.of(_embeddings(options.validation), labels, like=pool)
    labelled = [positions(_column(path, "index"), len(pool), str(path)) for path in options.labelled]
    labelled = torch.cat(labelled).unique() if labelled else None
    found = query(
        options.method, linear(weights, bias), pool, validation, options.n, labelled=labelled, generator=options.seed
    )
    found.to_csv(options.output, *(_lines(path) for path in (options.names, options.validation_names)))
    unlabelled = len(pool) - (0 if labelled is None else len(labelled))
    print(f"{len(found)} of {unlabelled:,} unlabelled embeddings, chosen by {options.method}: {options.output}")
    if found.misclassified is not None:
        print(f"{found.misclassified:,} of {len(validation):,} validation embeddings are misclassified")
    if found.at_random:
        print(f"{found.at_random} of those chosen were drawn at random")
    return 0


def _head(path: Path) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """Weights, bias and names of the classes of a .npz file."""
    arrays = _loaded(path)
    if isinstance(arrays, np.ndarray) or "weights" not in arrays:
        raise UserError(f"{path} has no weights: numpy.savez(file, weights=..., bias=..., classes=...) writes them")
    weights, bias, classes = (arrays.get(name) for name in ("weights", "bias", "classes"))
    if len(weights) == 1 and (classes is None or len(classes) == 2):  # of scikit-learn, for the second of two classes
        weights = np.concatenate([0 * weights, weights])
        bias = None if bias is None else np.append(0 * bias, bias)
    if classes is not None and len(classes) != len(weights):
        raise UserError(f"{path} has {len(weights)} rows of weights and {len(classes)} classes: give as many")
    return weights, bias, None if classes is None else list(map(str, classes))


def _labels(path: Path, classes: list[str] | None) -> np.ndarray:
    """Labels (N,), as text if they are names of classes."""
    labels = _column(path, "label")
    if labels.dtype.kind == "U" and all(map(str.isdecimal, labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "U" and classes is None:
        raise UserError(f"{path} has names of classes: the classifier's file has to name its classes too")
    return labels.astype(str) if classes and all(map(str.isdecimal, classes)) else labels


def _embeddings(path: Path) -> np.ndarray:
    """(N, D) float."""
    found = _table(path) if path.suffix.lower() == ".csv" else _loaded(path)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "fiub":
        raise UserError(f"{path} is no table of numbers: save embeddings as one array (rows, values)")
    return found if found.dtype.kind == "f" else found.astype(np.float32)


def _table(path: Path) -> np.ndarray:
    """The numbers of a CSV file, with or without a line of heads."""
    text = _text(path)
    try:
        list(map(float, text.partition("\n")[0].split(",")))
        heads = 0
    except ValueError:
        heads = 1
    try:
        return np.loadtxt(io.StringIO(text), delimiter=",", skiprows=heads, ndmin=2)
    except ValueError as problem:
        raise UserError(f"{path}: {problem}: save numbers alone, with commas between them") from None


def _column(path: Path, name: str) -> np.ndarray:
    """(N,), the named column of a CSV file, as text, or an array."""
    if path.suffix.lower() != ".csv":
        found = _loaded(path)
        if not isinstance(found, np.ndarray) or found.ndim != 1:
            raise UserError(f"{path} is no array (rows,)")
        return found
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    if name not in (reader.fieldnames or ()):
        raise UserError(f"{path} has no column {name}: its first line has to name the columns")
    found = [row[name] or "" for row in reader]
    if name == "label":
        return np.array(found, dtype=str)
    try:
        return np.array(found, dtype=np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: not all values of the column {name} are whole numbers") from None


def _lines(path: Path | None) -> list[str] | None:
    """The lines of a text file; None without one."""
    return None if path is None else _text(path).removesuffix("\n").split("\n")


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise UserError(f"cannot read {path}: {problem}; save it in UTF-8") from None


def _loaded(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """A .npy file, or the arrays of a .npz file by name. Pickled objects are refused."""
    try:
        with open_file(path) as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(
            f"cannot read {path}: it is damaged, or no file of numpy.save, or holds objects, as text does that was not "
            "converted by astype(str)"
        ) from None
