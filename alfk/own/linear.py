"""Queries without a network: embeddings, and a linear classifier on them.

The features z are the embeddings x, and with logits W x + b the Fisher score of a label s is

    g = d cross-entropy(logits, s) / d x = W' (softmax(W x + b) - e_s)

which is what the network path computes for `LinearClassifier`, whose only tap is x.
"""

import warnings

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from alfk.data.arrays import numbers
from alfk.data.split import Split, check_columns
from alfk.support.errors import UserError

COMPARED = 100  # embeddings on which probabilities of a classifier are compared with the softmax of its logits
TOLERANCE = 0.001  # relative difference of these probabilities
SMALLEST, LARGEST = 1e-8, 1e8  # sizes of embeddings: beyond, float32 or the 1e-10 of a descriptor changes the choice


class LinearClassifier(nn.Module):
    """Embeddings x (B, D) -> (logits W x + b (B, C), [x]).

    Args:
        weights: W, (C, D) float32.
        bias: b, (C,) float32.
    """

    def __init__(self, weights: Tensor, bias: Tensor):
        super().__init__()
        self.layer = nn.Linear(weights.shape[1], weights.shape[0])
        self.layer.weight.data, self.layer.bias.data = weights, bias

    def forward(self, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.layer(embeddings), [embeddings]


def linear(weights: Tensor | np.ndarray, bias: Tensor | np.ndarray | None = None) -> LinearClassifier:
    """A linear classifier of embeddings as a model for `query`.

    Its splits hold embeddings (N, D) as the weights expect them: `Split.of(embeddings, labels, mean=0, std=1)`.

    Args:
        weights: (C, D) array or tensor, row c for class c; any float type.
        bias: (C,); zeros if None.
    Raises:
        UserError: shapes that do not fit, masked values, or values that are not finite in float32.
    """
    weights = _float32(weights, "weights")
    if weights.ndim != 2 or len(weights) < 2:
        raise UserError(f"weights have the shape {tuple(weights.shape)}: give (C, D), a row for each of C >= 2 classes")
    bias = torch.zeros(len(weights)) if bias is None else _float32(bias, "bias")
    if bias.shape != weights.shape[:1]:
        raise UserError(f"bias has the shape {tuple(bias.shape)}: give ({len(weights)},), one value for each class")
    return LinearClassifier(weights, bias.to(weights.device))


def _float32(given: Tensor | np.ndarray, name: str) -> Tensor:
    """A copy, so that later training of the classifier does not change the model; C-contiguous, as logits of weights
    in another order differ in their last bits.
    """
    values = numbers(given, name, "an array or tensor of numbers")
    values = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not values.isfinite().all():
        raise UserError(f"{name} have values that are NaN or infinite in float32")
    return values


def classifier_of(model: object, pool: Split, validation: Split | None) -> object:
    """A fitted linear classifier of scikit-learn as a `LinearClassifier`; any other model as it is.

    Raises:
        UserError: the classifier is not fitted, has no softmax probabilities, or does not fit the splits: it has other
            classes, or they normalise embeddings that it takes as they are.
    """
    if isinstance(model, LinearClassifier):
        _check_embeddings(model, pool, validation)
        return model
    if isinstance(model, nn.Module) or not hasattr(model, "predict"):
        return model
    name = type(model).__name__
    if not all(hasattr(model, part) for part in ("coef_", "intercept_", "classes_")):
        raise UserError(
            f"{name} has no coef_ and intercept_: give a fitted linear classifier; of a pipeline "
            "its last step, with embeddings from the steps before"
        )
    weights, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if len(model.classes_) == 2 and len(weights) == 1:  # the one logit is that of the second class
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    bias = np.broadcast_to(bias, len(weights))
    classifier = linear(weights, bias).to(pool.device)
    _check_embeddings(classifier, pool, validation)
    check_columns(pool, getattr(model, "feature_names_in_", None), "the classifier")
    _check_probabilities(model, weights, bias)
    rows = _rows_of_classes(model.classes_, pool, validation)
    return LinearClassifier(classifier.layer.weight.data[rows], classifier.layer.bias.data[rows])


def _check_embeddings(classifier: LinearClassifier, pool: Split, validation: Split | None) -> None:
    """Raises UserError unless the pool has embeddings as the classifier takes them, and those of both splits are of a
    size that can be computed with.
    """
    if pool.computed:
        raise UserError(
            "the splits normalise the columns of the embeddings, but a linear classifier takes them as they are: make "
            "both splits with mean=0, std=1, or with the mean and std that it was trained with"
        )
    wanted, shape = classifier.layer.in_features, tuple(pool.store.shape)
    if shape[1:] != (wanted,):
        raise UserError(f"the classifier takes embeddings (N, {wanted}), but the pool is {shape}")
    for split, name in ((pool, "the pool"), (validation, "the validation set")):
        size = (
            0.0
            if split is None or split.in_files
            else max(abs(float(x)) for x in split.store.aminmax()) / max(split.std)
        )
        if size and not SMALLEST <= size <= LARGEST:
            raise UserError(
                f"embeddings of {name} are as large as {size:.2g}: multiply all of them by one number, so that they "
                "are about 1, and divide the weights by it"
            )


def _check_probabilities(model: object, weights: np.ndarray, bias: np.ndarray) -> None:
    """Raises UserError unless the probabilities of scikit-learn's classifier are the softmax of the logits.

    Compared on embeddings whose logits are about 1: where a class has the probability 1, every rule gives the same.

    Args:
        weights: (C, D).
        bias: (C,).
    """
    name = type(model).__name__
    if not hasattr(model, "predict_proba"):
        raise UserError(f"{name} has no probabilities: use LogisticRegression")
    logits = np.random.default_rng(0).normal(size=(len(weights), COMPARED))
    embeddings = np.linalg.lstsq(weights, logits - bias[:, None])[0].T
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")  # it was fitted on a pandas table
        wanted = model.predict_proba(embeddings)
    found = softmax(embeddings @ weights.T + bias, axis=1)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=TOLERANCE):
        raise UserError(
            f"the probabilities of {name} are not the softmax of its logits, as if it were fitted one class against "
            "the rest: use LogisticRegression with its default solver"
        )


def _rows_of_classes(known: np.ndarray, pool: Split, validation: Split | None) -> list[int]:
    """The row of a classifier's weights for each class of the splits.

    Args:
        known: (C,) names or numbers, `classes_` of the classifier.
    """
    classes, names = (validation and validation.classes) or pool.classes, [str(each) for each in known]
    are_numbers = np.array_equal(known, np.arange(len(known)))
    if classes is None and (are_numbers or validation is None):
        return list(range(len(known)))
    if classes is not None and sorted(names) == sorted(classes):
        if are_numbers and names != list(classes):
            raise UserError(
                "the classifier was fitted on numbers, which are also names of classes in another order: fit it on "
                "names, that is on text"
            )
        return [names.index(name) for name in classes]
    if are_numbers and len(classes) == len(names):  # fitted on Split.labels
        return list(range(len(known)))
    theirs = "numbers from 0" if classes is None else ", ".join(classes[:10])
    raise UserError(
        f"the classifier knows the classes {', '.join(names[:10])}, but those of the splits are {theirs}: fit it on "
        "embeddings of every class, and give labels of the splits as the same names"
    )
