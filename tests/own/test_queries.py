"""A query and its reasons: against plain references, in CSV files, in a run, and what `alfk.query` refuses."""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import alfk
from alfk.data.split import Split
from alfk.experiment.journal import Journal
from alfk.experiment.loop import active_learning
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import begin
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS, acquire
from alfk.method.descriptors import Descriptors
from alfk.method.registry import Measurement, Situation
from alfk.own import queries
from alfk.own.queries import Query, query, select
from mnist.config import DIGITS
from tests.helpers import SmallNet, random_problem, refuses, workspace

CLASSES, NAMES = 4, ("ant", "bee", "cat", "dog")
COVERING = ("flqmi", "flqmi_z", "Rz_fl", "Rzg_fl", "Rzg_flw")
MATCHING = [key for key, method in METHODS.items() if method.needs_descriptors and key not in COVERING]
UNCERTAIN = [key for key, method in METHODS.items() if method.needs_uncertainty]
SCORED = ("margin", "leastconf", "entropy_det", "coreset", "epig", "glister", "flqmi_rare", *COVERING)
LABELLED = [3, 17, 40]
N = 9


@pytest.fixture(scope="module")
def problem():
    """(model, pool, validation) of random images."""
    return random_problem(classes=NAMES)


def everything(query):
    """What a query says of every chosen image."""
    return {name: values.tolist() for name, values in {"index": query.indices, **query.reasons}.items()}


# The reasons


def plain(model, split, labels_of=None):
    """(standardised features, scores or None, predictions) of all images, each alone, in float64."""
    model, features, scores, predictions = model.double().eval(), [], [], []
    try:
        for i, pixels in enumerate(split.images.double()):
            logits, taps = model(((pixels / 255 - 0.5) / 0.3)[None])
            predictions.append(int(logits.argmax()))
            features.append(np.concatenate([standard(tap.detach()) for tap in taps]))
            if labels_of is not None:
                label = labels_of(i, features[-1], predictions[-1])
                gradients = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([label])), taps)
                scores.append(np.concatenate([standard(gradient) for gradient in gradients]))
    finally:
        model.float()
    return np.array(features), np.array(scores) if scores else None, predictions


def standard(tap):
    values = tap[0].flatten(1).mean(1).numpy() if tap.ndim == 4 else tap[0].numpy()
    return (values - values.mean()) / values.std(ddof=1)


def plain_measurement(key, model, pool, validation):
    """Descriptors and predictions of both sides and the pool's labels of g, by the words of docs/method.md."""
    truth, validation_truth = pool.labels.tolist(), validation.labels.tolist()
    z, _, predictions = plain(model, validation)
    labels = []

    def nearest(i, feature, prediction):
        labels.append(validation_truth[int(np.argmax(z @ feature))])
        return labels[-1]

    rules = {
        "Rz": (None, None),
        "Rzg_true": (lambda i, f, p: truth[i], lambda i, f, p: validation_truth[i]),
        "Rzg_pred": (lambda i, f, p: p, lambda i, f, p: p),
        "Rzg_pz": (nearest, lambda i, f, p: validation_truth[i]),
    }
    pool_rule, rule = rules[key]
    x, gx, pool_predictions = plain(model, pool, pool_rule)
    if pool_rule is None:
        return x, z, pool_predictions, predictions, None
    _, gz, _ = plain(model, validation, rule)
    labels = {"Rzg_true": truth, "Rzg_pred": pool_predictions, "Rzg_pz": labels}[key]
    return np.hstack([x, gx]), np.hstack([z, gz]), pool_predictions, predictions, labels


@pytest.mark.parametrize("key", ["Rz", "Rzg_true", "Rzg_pred", "Rzg_pz"])
def test_every_field_against_a_plain_reference(problem, key):
    model, pool, validation = problem
    found = query(key, model, pool, validation, N, labelled=LABELLED, batch_size=16)
    x, v, pool_predictions, predictions, labels = plain_measurement(key, *problem)
    truth = validation.labels.tolist()
    wrong = [i for i in range(30) if predictions[i] != truth[i]]
    assert found.misclassified == len(wrong) > N
    assert (found.centres, found.at_random, found.score) == (N, 0, None)
    # A standardised vector of c values has the squared length c - 1.
    largest = (6 - 1 + CLASSES - 1) * (1 if labels is None else 2)
    available = [i for i in range(60) if i not in LABELLED]
    for k, i in enumerate(found.indices.tolist()):
        error = int(found.matches[k])
        assert error in wrong
        similarities = x @ v[error]
        assert float(found.similarity[k]) == pytest.approx(similarities[i] / largest, abs=1e-5)
        assert int(found.rank[k]) == 1 + sum(similarities[j] > similarities[i] for j in available)
        assert int(found.error_label[k]) == truth[error]
        assert int(found.error_prediction[k]) == predictions[error]
        assert int(found.prediction[k]) == pool_predictions[i]
        if labels is not None:
            assert int(found.pseudo_label[k]) == labels[i]
    assert (found.pseudo_label is None) == (labels is None)


@pytest.mark.parametrize("key", METHODS)
def test_the_indices_are_those_of_select(problem, key):
    labels = problem[1].labels
    options = {"labelled": LABELLED, "samples": 8, "batch_size": 16, "rare_classes": [1]}
    options["annotate"] = lambda positions: labels[positions]
    found = query(key, *problem, N, **options)
    assert found.method == key
    assert len(found) == N
    assert found.indices.tolist() == select(key, *problem, N, **options).tolist()
    assert not set(found.indices.tolist()) & set(LABELLED)
    matches = {"similarity", "percentile", "matches", "error_label", "error_prediction", "prediction"}
    scored = METHODS[key].pool_label is not None
    wanted = matches | {"rank"} if key in MATCHING else {"score"} if key in (*UNCERTAIN, *SCORED) else set()
    if key in COVERING:
        wanted |= matches | {"stands_for", "stands_for_label", "stands_for_prediction"}
    assert set(found.reasons) == wanted | ({"pseudo_label"} if scored else set())
    assert all(len(values) == N for values in found.reasons.values())
    assert [list(row) for row in found.rows()] == [["index", *found.reasons]] * N


@pytest.mark.parametrize("key", UNCERTAIN)
def test_the_largest_scores_are_taken(problem, key):
    model, pool, _ = problem
    found = query(key, model, pool, None, N, labelled=LABELLED, samples=8)
    every = query(key, model, pool, None, 57, labelled=LABELLED, samples=8)
    assert found.score.tolist() == sorted(every.score.tolist(), reverse=True)[:N]
    assert len(every.score.unique()) > N / 2
    assert every.score.tolist() == sorted(every.score.tolist(), reverse=True)
    measured = dict(zip(every.indices.tolist(), every.score.tolist(), strict=True))
    assert [measured[i] for i in found.indices.tolist()] == found.score.tolist()


def test_the_first_query_of_an_uncertainty_method_has_no_reasons(problem):
    found = query("BALD", *problem, N)
    assert (found.reasons, found.at_random, found.misclassified) == ({}, N, None)


@pytest.mark.parametrize("key", ["Rz", "Rzg_pz", "Rz_fl", "Rzg_flw", "Rzg_rc"])
def test_without_errors_images_are_drawn_at_random(problem, key):
    model, pool, validation = problem
    _, _, predictions = plain(model, validation)
    sure = Split(validation.images, predictions, validation.mean, validation.std)
    found = query(key, model, pool, sure, N, labelled=LABELLED)
    assert (found.misclassified, found.centres, found.at_random) == (0, None if key in COVERING else 0, N)
    assert found.reasons == {}
    assert [list(row) for row in found.rows()] == [["index"]] * N
    assert len({*found.indices.tolist(), *LABELLED}) == N + len(LABELLED)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_each_image_is_the_ranked_match_of_its_error(count, errors, seed, data):
    """Small whole numbers: inner products are exact, with many equal ones."""
    rng = np.random.default_rng(seed)
    x, v = rng.integers(-3, 4, (count, 3)), rng.integers(-3, 4, (errors, 3))
    truth, predictions = rng.integers(0, 3, (2, errors))
    available = rng.random(count) < 0.8
    available[rng.integers(count)] = True
    n = data.draw(st.integers(1, int(available.sum())))
    sides = {
        side: Descriptors(torch.tensor(vectors).float(), torch.full((len(vectors),), -1), torch.tensor(said))
        for side, vectors, said in (("validation", v, predictions), ("pool", x, np.arange(count)))
    }
    measurement = Measurement(**sides)
    labels, generator = torch.tensor(truth), torch.Generator().manual_seed(seed)
    found = acquire(METHODS["Rz"], Situation(torch.tensor(available), n, generator, measurement, labels))
    assert len(found.indices.unique()) == n
    assert available[found.indices.numpy()].all()
    wrong = np.flatnonzero(truth != predictions)
    assert found.misclassified == len(wrong)
    if not len(wrong):
        assert found.at_random == n
        return
    assert set(found.matches.tolist()) <= set(wrong.tolist())
    assert len(set(found.matches.tolist())) <= found.centres == min(n, len(wrong))
    assert found.prediction.tolist() == found.indices.tolist()
    assert found.error_prediction.tolist() == predictions[found.matches.numpy()].tolist()
    for i, error, rank in zip(*(t.tolist() for t in (found.indices, found.matches, found.rank)), strict=True):
        similarities = (x @ v[error])[available]
        mine = x[i] @ v[error]
        assert (similarities > mine).sum() < rank <= (similarities >= mine).sum()
    ranks = found.rank.tolist()
    assert ranks == sorted(ranks)


def test_the_values_that_labelled_takes(problem):
    mask = torch.zeros(60, dtype=torch.bool)
    mask[LABELLED] = True
    forms = [LABELLED, np.array(LABELLED), torch.tensor(LABELLED), mask, mask.numpy(), mask.tolist(), tuple(LABELLED)]
    wanted = everything(query("Rzg_pz", *problem, N, labelled=LABELLED))
    for form in forms:
        assert everything(query("Rzg_pz", *problem, N, labelled=form)) == wanted, form
    nothing = everything(query("Rz", *problem, N))
    for form in ([], np.array([]), torch.zeros(60, dtype=torch.bool)):
        assert everything(query("Rz", *problem, N, labelled=form)) == nothing, form


def test_a_frozen_backbone_chooses_the_same_for_the_same_reasons(problem):
    model, pool, validation = problem
    wanted = everything(query("Rzg_pz", model, pool, validation, N))
    for part in (model.conv, model):
        part.requires_grad_(False)
        assert everything(query("Rzg_pz", model, pool, validation, N)) == wanted
    model.requires_grad_(True)
    tapped = alfk.tapped(model, ["conv"])
    wanted = everything(query("Rzg_pz", tapped, pool, validation, N))
    model.conv.requires_grad_(False)
    assert everything(query("Rzg_pz", tapped, pool, validation, N)) == wanted
    model.requires_grad_(True)


def test_a_validation_set_takes_the_pools_mean_and_std(problem):
    model, pool, validation = problem
    x, xv = pool.images.numpy(), validation.images.numpy() // 3  # darker: its own mean and std are others
    mine, like = Split.of(x), Split.of(xv, validation.labels, like=Split.of(x))
    own = Split.of(xv, validation.labels)
    assert own.computed
    assert own.mean != mine.mean
    wanted = everything(query("Rz", model, mine, like, N))
    assert everything(query("Rz", model, mine, own, N)) == wanted
    assert own.mean != mine.mean  # it is not changed


# Rows and CSV


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_the_reasons_with_names(problem, tmp_path):
    names = [Path(f"pool/é, {i}.png") for i in range(60)]
    others = [f'val/"{i}".png' for i in range(30)]
    found = query("Rzg_pz", *problem, N)
    found.to_csv(tmp_path / "query.csv", names=names, validation_names=others)
    rows = read(tmp_path / "query.csv")
    head = ["index", "file", "similarity", "percentile", "matches", "matches_file", "error_label", "error_prediction"]
    assert list(rows[0]) == [*head, "rank", "prediction", "pseudo_label"]
    for k, row in enumerate(rows):
        i, error = int(found.indices[k]), int(found.matches[k])
        assert (row["index"], row["file"]) == (str(i), str(names[i]))
        assert (row["matches"], row["matches_file"]) == (str(error), others[error])
        assert float(row["similarity"]) == pytest.approx(float(found.similarity[k]), abs=5.1e-5)
        assert float(row["percentile"]) == pytest.approx(float(found.percentile[k]), abs=0.051)
        for column in ("error_label", "error_prediction", "prediction", "pseudo_label"):
            assert row[column] == NAMES[getattr(found, column)[k]], column
    assert [{key: str(value) for key, value in row.items()} for row in found.rows(names, others)] == rows


def test_a_csv_file_without_names_has_class_numbers_of_a_split_without_names(problem, tmp_path):
    model, pool, validation = problem
    pool, validation = (Split(s.images, s.labels, s.mean, s.std) for s in (pool, validation))
    found = query("Rz", model, pool, validation, N)
    found.to_csv(tmp_path / "query.csv")
    rows = read(tmp_path / "query.csv")
    assert [int(row["error_label"]) for row in rows] == found.error_label.tolist()
    assert "file" not in rows[0]
    assert "matches_file" not in rows[0]
    scored = query("entropy", model, pool, None, N, labelled=[0], samples=4)
    scored.to_csv(tmp_path / "scores.csv", names=range(60))
    assert [float(row["score"]) for row in read(tmp_path / "scores.csv")] == scored.score.tolist()
    refuses(lambda: found.to_csv(tmp_path / "no" / "folder.csv"), "cannot write")


def test_a_query_without_images_has_a_heading(tmp_path):
    Query(torch.empty(0, dtype=torch.int64)).to_csv(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "index\n"


@pytest.mark.parametrize("key", ["Rzg_pz", "random"])
def test_names_have_to_be_those_of_all_images(problem, key):
    """And not of the chosen ones alone, nor of a larger table."""
    found, names = query(key, *problem, N), [f"{i}.png" for i in range(70)]
    for count in (N, 59, 70):
        refuses(lambda count=count: found.rows(names[:count]), f"{count} names for 60 pool images: give the names of")
    for wrong in (set(names[:60]), dict(enumerate(names[:60])), "x" * 60):
        refuses(lambda wrong=wrong: found.rows(wrong), f"are a {type(wrong).__name__}: give a list")
    if found.matches is not None:
        refuses(lambda: found.rows(names[:60], names[:31]), "31 names for 30 validation images")


class Shuffled(list):
    """Like a pandas Series of a shuffled table: it is iterated by position, and indexed by labels."""

    def __getitem__(self, label):
        return super().__getitem__(len(self) - 1 - label)


def test_names_are_taken_by_position(problem):
    found, names = query("Rzg_pz", *problem, N), [f"{i}.png" for i in range(60)]
    assert found.rows(Shuffled(names), Shuffled(names[:30])) == found.rows(names, names[:30])


def test_a_query_is_a_pandas_table(problem, monkeypatch):
    found, names = query("Rzg_pz", *problem, N), [f"{i}.png" for i in range(60)]
    monkeypatch.setitem(sys.modules, "pandas", None)
    refuses(found.to_frame, "to_frame needs pandas: pip install pandas")
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(names, index=range(60, 0, -1))
    assert found.to_frame(series).to_dict("records") == found.rows(names)


# What is refused


class Changed(SmallNet):
    """The network with another forward pass."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(*super().forward(images))


def aside(logits, taps):
    return logits, [taps[0] * 2]


def wide(logits, taps):
    return torch.cat([logits, logits], 1), taps


def tokens(logits, taps):
    return logits, [taps[0].flatten(2).transpose(1, 2)]


def no_dropout():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


class Pictures(torch.utils.data.Dataset):
    """Labelled images (3, side, side), each read on its own."""

    def __init__(self, count, side):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        return torch.rand(3, self.side, self.side), i % 2


FIVE, OTHERS = list(range(5)), ["ant", "bat", "cow", "dog"]
REFUSED = {
    "0/1 mask of integers": (lambda m, p, v: query("Rz", m, p, v, 3, labelled=[0, 1] * 30), "convert it to bool"),
    "duplicates": (lambda m, p, v: query("Rz", m, p, v, 3, labelled=[4, 7, 4]), "the position 4 twice"),
    "outside": (lambda m, p, v: query("Rz", m, p, v, 3, labelled=[60]), "the position 60"),
    "a mask of another length": (lambda m, p, v: query("random", m, p, v, 3, labelled=[True] * 59), "length 59"),
    "floats to 255": (lambda m, p, v: query("Rz", m, Split.of(p.images.float()), v, 3), "divide them by 255"),
    "normalised floats": (
        lambda m, p, v: query("Rz", m, p, Split(v.images / 127.5 - 1, v.labels, (0.5,), (0.3,)), 3),
        "mean=0, std=1",
    ),
    "no dropout": (
        lambda m, p, v: query("varR", alfk.tapped(no_dropout(), ["0"]), p, None, 3, labelled=[0]),
        "no dropout is active",
    ),
    "validation labels": (
        lambda m, p, v: query("Rz", m, p, v.subset(FIVE, [0, 1, 2, 3, 4]), 3),
        "labels of the validation set go from 0 to 4, but the model has 4 outputs",
    ),
    "labels from 1": (lambda m, p, v: query("Rzg_pz", m, p, v.subset(FIVE, [1, 2, 3, 4, 1]), 3), "labels are 0 to 3"),
    "pool labels": (
        lambda m, p, v: query("Rzg_true", m, p.subset(FIVE, [0, 1, 2, 3, 4]), v, 3),
        "labels of the pool go from 0 to 4, but the model has 4 outputs",
    ),
    "unknown pool labels": (
        lambda m, p, v: query("Rzg_true", m, Split.of(p.images, [0, -1] * 30, like=p, unknown_labels=True), v, 3),
        "labels of the pool go from -1 to 0",
    ),
    "a tap aside": (
        lambda m, p, v: query("Rzg_pz", Changed(aside), p, v, 3),
        "logits must be computed from the tap",
    ),
    "tokens": (
        lambda m, p, v: query("Rz", Changed(tokens), p, v, 3),
        "which may be tokens or channels first",
    ),
    "no validation": (lambda m, p, v: query("Rz", m, p, None, 3), "the validation set has to be an alfk.Split"),
    "no labels": (lambda m, p, v: query("Rz", m, p, Split.of(v.images, like=p), 3), "has no labels"),
    "an array": (lambda m, p, v: query("Rz", m, p.images.numpy(), v, 3), "alfk.Split.of(images, labels) makes one"),
    "a data set": (
        lambda m, p, v: query("Rz", m, TensorDataset(p.images), v, 3),
        "the pool has to be an alfk.Split, not TensorDataset: alfk.Split.of(images, labels) makes one",
    ),
    "no samples": (lambda m, p, v: query("Rzg_mi", m, p, v, 3, samples=0), "samples is at least 1, not 0"),
    "half a sample": (lambda m, p, v: query("varR", m, p, v, 3, samples=1.5), "samples is a whole number, not 1.5"),
    "one sample": (
        lambda m, p, v: query("BALD", m, p, v, 3, samples=1, labelled=[0]),
        "BALD measures how samples differ, of which there is one",
    ),
    "too many": (lambda m, p, v: query("Rz", m, p, v, 58, labelled=LABELLED), "57 pool images are unlabelled"),
    "a method": (lambda m, p, v: query("Rzg", m, p, v, 3), "there is no method 'Rzg'"),
    "other classes": (
        lambda m, p, v: query("Rz", m, Split.of(p.images, classes=OTHERS), Split.of(v.images, ["bat", "emu"] * 15), 3),
        "number their classes differently",
    ),
    "another size": (
        lambda m, p, v: query("Rz", m, Split.of(p.images), Split.of(v.images[:, :, 2:], v.labels), 3),
        "give both the same size",
    ),
    "a data set of another size": (
        lambda m, p, v: query("Rz", m, Split.of(Pictures(4, 8)), Split.of(Pictures(4, 9)), 2),
        "pool images are (3, 8, 8), validation images (3, 9, 9): give both the same size",
    ),
    "another mean": (
        lambda m, p, v: query("Rz", m, p, Split(v.images, v.labels, 0.4, 0.3), 3),
        "different mean and std",
    ),
    "more outputs than classes": (
        lambda m, p, v: query("Rzg_pz", Changed(wide), p, Split.of(v.images, v.labels, like=p, classes=NAMES), 3),
        "the model has 8 outputs, but there are 4 classes: change its last layer",
    ),
    "no pool labels": (
        lambda m, p, v: query("Rzg_true", m, Split.of(p.images, like=p), v, 3),
        "the oracle Rzg_true needs the labels of the whole pool",
    ),
    "an empty validation set": (lambda m, p, v: query("Rz", m, p, v.subset([]), 3), "the validation set is empty"),
    "taps by name": (lambda m, p, v: query("Rz", m, p, v, 3, taps=["conv"]), "taps are positions"),
    "another tap": (lambda m, p, v: query("Rz", m, p, v, 3, taps=(0, 5)), "there is no tap 5: the model returned 2"),
    "samples to share": (
        lambda m, p, v: query("varR", [m, m, m], p, v, 3, samples=4, labelled=[0]),
        "4 samples cannot be shared equally by 3 models",
    ),
    "no annotator": (lambda m, p, v: query("galaxy", m, p, v, 3), "give annotate, positions (k,) -> labels (k,)"),
    "labels of another number": (
        lambda m, p, v: query("galaxy", m, p, v, 3, labelled=[0], annotate=lambda positions: [1, 2, 3]),
        "annotate: 1 images but 3 labels",
    ),
    "no rare classes": (lambda m, p, v: query("flqmi_rare", m, p, v, 3), "give rare_classes=[...]"),
    "an unknown rare class": (
        lambda m, p, v: query("flqmi_rare", m, p, v, 3, rare_classes=[7]),
        "no validation image is of the rare class 7",
    ),
    "two models": (lambda m, p, v: query("Rz", [m, m], p, v, 3), "not an ensemble of 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_silently_wrong_is_refused_in_a_line(problem, case):
    model, pool, validation = problem
    plain_pool, plain_validation = (Split(s.images, s.labels, s.mean, s.std) for s in (pool, validation))
    call, words = REFUSED[case]
    refuses(lambda: call(model, plain_pool, plain_validation), words)


def test_methods_that_do_not_match_need_no_validation_set(problem):
    model, pool, validation = problem
    for key in ("random", *UNCERTAIN):
        options = {"labelled": LABELLED, "samples": 4}
        alone = query(key, model, pool, None, N, **options)
        assert alone.indices.tolist() == query(key, model, pool, validation, N, **options).indices.tolist()
        assert alone.classes == NAMES


# A run's queries


def test_a_runs_query_is_that_of_alfk_query(tmp_path):
    """From the same weights, with the run's own random draws; its record and its exports state it."""
    short = {name: dataclasses.replace(getattr(DIGITS, name), epochs=1) for name in ("retraining", "pretraining")}
    work = workspace(dataclasses.replace(DIGITS, iterations=2, **short), tmp_path, *DIGITS.load(None)[:2])
    trial = Trial(20, "Rzg_pz", 20)
    make_initial_models(work, trial.ir, trial.nr)
    active_learning(work, [trial])
    current = begin(Journal(work, trial), 1)
    (model,), _ = current.starting_models()
    found = query(
        "Rzg_pz",
        model,
        current.pool,
        current.validation,
        15,
        labelled=current.queried_before(),
        taps=work.experiment.taps(20),
        batch_size=work.experiment.descriptor_batch,
        generator=current.generator("acquire"),
    )
    acquired = current.acquired()
    assert acquired.queried[15:].tolist() == acquired.selection.indices.tolist() == found.indices.tolist()
    for name, values in acquired.selection.reasons.items():
        assert torch.allclose(values, getattr(found, name), atol=1e-5), name
    line = work.folder.results()[-1]
    assert line["matched"] == len(found.matches.unique())
    assert line["similarity"] == pytest.approx(float(found.similarity.mean()), abs=5.1e-5)


# Batches


def test_batches_of_larger_images_are_smaller():
    sizes = {side: queries.default_batch(Split.of(torch.zeros(2, 3, side, side))) for side in (8, 32, 64, 224, 512)}
    assert sizes == {8: 1000, 32: 1000, 64: 250, 224: 20, 512: 16}
    assert queries.default_batch(Split.of(torch.rand(5, 7))) == 1000
    sizes = {side: queries.default_batch(Split.of(Pictures(2, side))) for side in (8, 64, 224)}
    assert sizes == {8: 1000, 64: 250, 224: 20}
