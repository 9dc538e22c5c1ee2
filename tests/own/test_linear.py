"""Queries on embeddings with a linear classifier: equal to the network path and to the closed form."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import alfk
from alfk.method.acquisition import METHODS
from alfk.method.descriptors import ForwardPass
from alfk.own.linear import LinearClassifier
from tests.helpers import refuses

RNG = np.random.default_rng(0)
CLASSES, WIDTH, N = 4, 12, 6
CENTRES = RNG.normal(5, 2, (CLASSES, WIDTH))  # far from 0, so that normalised columns would be seen
LABELS = RNG.integers(0, CLASSES, 100)
EMBEDDINGS = CENTRES[LABELS] + RNG.normal(0, 2.5, (100, WIDTH))
LABELLED = range(20)
NAMES = np.array(["dog", "ant", "cat", "bee"])  # not sorted


def splits(labels=LABELS, **options):
    """Pool of 60 and validation set of 40."""
    pool = alfk.Split.of(EMBEDDINGS[:60], mean=0, std=1, **options)
    return pool, alfk.Split.of(EMBEDDINGS[60:], labels[60:], like=pool)


def fitted(labels=LABELS, rows=LABELLED):
    return LogisticRegression(max_iter=1000, tol=1e-6).fit(EMBEDDINGS[rows], labels[rows])


def everything(query):
    """What a query says of every chosen embedding."""
    return {name: values.tolist() for name, values in {"index": query.indices, **query.reasons}.items()}


def asked(key, model, pool, validation, **options):
    truth = torch.from_numpy(LABELS)
    options = {"labelled": LABELLED, "annotate": lambda rows: truth[rows], "rare_classes": [1], **options}
    return everything(alfk.query(key, model, pool, validation, N, **options))


def test_fisher_scores_are_the_closed_form():
    """g = W'(p - e_s)."""
    model = fitted()
    weights, bias, labels = model.coef_, model.intercept_, LABELS[:60]
    p = np.exp(EMBEDDINGS[:60] @ weights.T + bias)
    wanted = (p / p.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) @ weights
    classifier, x = alfk.linear(weights, bias), torch.from_numpy(EMBEDDINGS[:60]).float()
    (found,) = ForwardPass(classifier, x, None, None, grad=True).scores(torch.from_numpy(labels))
    assert np.allclose(found, wanted, atol=1e-5)


USABLE = [
    key
    for key, method in METHODS.items()
    if not (method.needs_uncertainty or key in ("epig", "Rzg_true") or method.pool_label in ("trace", "mi", "mi_diag"))
]


@pytest.mark.parametrize("key", USABLE)
def test_every_method_chooses_as_with_a_network(key):
    model, (pool, validation) = fitted(), splits()
    network = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, CLASSES))
    network.load_state_dict({"1.weight": torch.from_numpy(model.coef_), "1.bias": torch.from_numpy(model.intercept_)})
    wanted = asked(key, alfk.tapped(network, ["0"]), pool, validation)
    assert asked(key, alfk.linear(model.coef_, model.intercept_), pool, validation) == wanted
    assert asked(key, model, pool, validation) == wanted
    assert not set(wanted["index"]) & set(LABELLED)


@pytest.mark.parametrize("key", ["varR", "entropy", "BALD", "std", "epig"])
def test_methods_that_need_dropout_are_refused(key):
    refuses(lambda: asked(key, fitted(), *splits(), samples=8), "dropout")


@pytest.mark.parametrize("count", [2, CLASSES])
def test_classes_of_scikit_learn_are_found_by_name(count):
    """It sorts them, the splits need not: then rows of the weights change places."""
    rows = np.flatnonzero(count > LABELS)
    rows, others = rows[:25], rows[25:]
    pool = alfk.Split.of(EMBEDDINGS[rows], mean=0, std=1, classes=NAMES[:count])
    validation = alfk.Split.of(EMBEDDINGS[others], LABELS[others], like=pool)
    by_number, by_name = (fitted(labels, rows=rows[:14]) for labels in (LABELS, NAMES[LABELS]))
    wanted, found = (alfk.query("Rzg_pz", model, pool, validation, 4) for model in (by_number, by_name))
    assert 0 < found.misclassified < len(others)
    assert found.classes == tuple(NAMES[:count])
    assert found.indices.tolist() == wanted.indices.tolist()
    assert torch.allclose(found.similarity, wanted.similarity, atol=1e-3)
    predicted = by_name.predict(EMBEDDINGS[rows][found.indices])
    assert [row["prediction"] for row in found.rows()] == predicted.tolist()


def test_numbers_of_classes_that_skip_are_names():
    numbers = np.array([1, 2, 5, 10])[LABELS]
    words = "the classifier knows the classes 1, 2, 5, 10, but those of the splits are numbers from 0"
    refuses(lambda: asked("Rz", fitted(numbers), *splits()), words)
    pool = alfk.Split.of(EMBEDDINGS[:60], mean=0, std=1, classes=["10", "1", "2", "5"])
    validation = alfk.Split.of(EMBEDDINGS[60:], numbers[60:].astype(str), like=pool)
    assert asked("Rz", fitted(numbers), pool, validation)["index"] == asked("Rz", fitted(), *splits())["index"]
    assert asked("margin", fitted(numbers), splits()[0], None) == asked("margin", fitted(), *splits())


def test_columns_of_tables_are_in_one_order():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(EMBEDDINGS, columns=[f"x{i}" for i in range(WIDTH)])
    turned, labels = table[table.columns[::-1]], pandas.Series(LABELS, index=range(100, 0, -1))
    pool = alfk.Split.of(table[:60], mean=0, std=1)
    validation, others = (alfk.Split.of(each[60:], labels[60:], like=pool) for each in (table, turned))
    on_table, on_turned = (LogisticRegression(max_iter=1000).fit(each[:20], LABELS[:20]) for each in (table, turned))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of scikit-learn, about names of features
        assert asked("Rz", on_table, pool, validation)["index"] == asked("Rz", fitted(), *splits())["index"]
    words = "the columns of the pool are x0, x1, x2, x3, x4, those of the {} x11, x10"
    refuses(lambda: asked("Rz", on_turned, pool, validation), words.format("classifier"))
    refuses(lambda: asked("Rz", on_table, pool, others), words.format("validation set"))


def one_against_the_rest(size):
    """Weights multiplied by the size."""
    model = SGDClassifier(loss="log_loss", random_state=0).fit(EMBEDDINGS, LABELS)
    model.coef_, model.intercept_ = size * model.coef_, size * model.intercept_
    return model


NORMALISED = alfk.Split.of(EMBEDDINGS[:60])
WIDE = alfk.Split.of(EMBEDDINGS[:60, 1:], mean=0, std=1)
REFUSED = {
    "one against the rest": (lambda: one_against_the_rest(1), None, "not the softmax"),
    "one against the rest, all probabilities 0 or 1": (lambda: one_against_the_rest(1e3), None, "not the softmax"),
    "without probabilities": (lambda: RidgeClassifier().fit(EMBEDDINGS, LABELS), None, "has no probabilities"),
    "not fitted": (LogisticRegression, None, "LogisticRegression has no coef_"),
    "a pipeline": (lambda: make_pipeline(StandardScaler(), fitted()), None, "of a pipeline its last step"),
    "a class not seen": (lambda: fitted(rows=np.flatnonzero(LABELS > 0)), None, "fit it on embeddings of every class"),
    "normalised columns": (fitted, NORMALISED, "make both splits with mean=0, std=1"),
    "the same of alfk.linear": (lambda: alfk.linear(fitted().coef_), NORMALISED, "make both splits with mean=0"),
    "another width": (fitted, WIDE, "takes embeddings (N, 12), but the pool is (60, 11)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_classifiers_that_do_not_fit_are_refused(case):
    model, pool, words = REFUSED[case]
    refuses(lambda: alfk.query("entropy_det", model(), pool or splits()[0], splits()[1], N, labelled=[0]), words)


@pytest.mark.parametrize("size", [1e-30, 1e19])
@pytest.mark.parametrize("part", [0, 1])
def test_embeddings_whose_squares_float32_does_not_hold_are_refused(size, part):
    """Distances would be 0 or infinite: coreset chose the first images, also labelled ones."""
    given = [EMBEDDINGS[:60], EMBEDDINGS[60:90]]
    given[part] = size / abs(given[part]).max() * given[part]
    pool, validation = (alfk.Split.of(x, y, mean=0, std=1) for x, y in zip(given, (None, LABELS[60:90]), strict=True))
    name = ("the pool", "the validation set")[part]
    words = f"embeddings of {name} are as large as {size:.2g}: multiply all of them by one number"
    refuses(lambda: alfk.query("coreset", alfk.linear(fitted().coef_), pool, validation, N, labelled=[0]), words)


def test_digits_of_another_order_are_refused():
    pool, validation = splits(torch.from_numpy(LABELS), classes=["1", "0", "2", "3"])
    refuses(lambda: asked("Rz", fitted(), pool, validation), "also names of classes in another order")


def test_weights_that_are_none_are_refused():
    weights = np.ones((3, 5))
    refuses(lambda: alfk.linear(weights[0]), "shape (5,)")
    refuses(lambda: alfk.linear(weights[:1]), "for each of C >= 2 classes")
    refuses(lambda: alfk.linear(weights, np.ones(5)), "bias has the shape (5,): give (3,)")
    refuses(lambda: alfk.linear(weights * np.nan), "NaN or infinite")
    refuses(lambda: alfk.linear("weights"), "give an array")
    refuses(lambda: alfk.linear(np.ma.masked_less(np.eye(3), 1)), "weights: some values are masked")
    refuses(lambda: alfk.linear(weights, np.ma.array(np.ones(3), mask=[0, 1, 0])), "bias: some values are masked")
    refuses(lambda: alfk.linear(torch.masked.masked_tensor(torch.eye(3), torch.eye(3) > 0)), "a masked tensor is not")
    refuses(lambda: alfk.linear(torch.eye(3).to_sparse()), "weights: a sparse tensor is not taken")
    refuses(lambda: alfk.linear(torch.eye(3, dtype=torch.complex64)), "weights are complex")
    given = torch.ones(3, 5, dtype=torch.float64)
    model = alfk.linear(given)
    given.zero_()
    assert isinstance(model, LinearClassifier)
    assert model(torch.ones(1, 5))[0].tolist() == [[5.0] * 3]
