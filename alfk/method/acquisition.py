"""The paper's acquisition methods (Section 4; the keys are those of the command line), and how a method is run.

An acquisition has two steps: `measure` computes the inputs that a method declares, `acquire` calls the method's
function. The scripts keep the measurement in files between the two; `alfk.query` does both in memory. How to add a
method: docs/method.md, section 11.
"""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method import matching
from alfk.method.descriptors import Descriptors
from alfk.method.inputs import Measurement, Sampling, Storage, Task
from alfk.method.registry import METHODS, Method, Situation, register, take_top
from alfk.method.selection import Selection
from alfk.networks.contract import derivative_errors
from alfk.networks.modes import prepare
from alfk.networks.passes import count_passes
from alfk.support import distributed
from alfk.support.errors import UserError

# Acquisition functions


def draw_at_random(situation: Situation) -> Selection:
    """n available images, uniformly."""
    return Selection(matching.draw(situation.available, situation.n, situation.generator))


def match_errors(situation: Situation, random_centres: bool = False) -> Selection:
    """The pool images most similar to the misclassified validation images (docs/method.md, section 7).

    Args:
        random_centres: see `matching.match`.
    """
    measurement, labels = situation.measurement, situation.validation_labels
    validation, pool = measurement.validation, measurement.pool
    predictions = as_tensor(validation.predictions)
    wrong = (predictions != labels.cpu()).nonzero().flatten()
    errors = matching.load_rows(validation.vectors, wrong, labels.device)
    available, source = situation.available, situation.generator
    found = matching.match(errors, pool.vectors, available, situation.n, source, random_centres=random_centres)
    if found.matches is None:
        return found
    matches = wrong[found.matches]
    found = dataclasses.replace(found, matches=matches, error_prediction=predictions[matches])
    return with_classes(found, pool)


def with_classes(found: Selection, pool: Descriptors) -> Selection:
    """A selection with the predictions and pseudo-labels of the chosen images."""
    pseudo_label = as_tensor(pool.pseudo_labels, found.indices)
    return dataclasses.replace(
        found,
        prediction=as_tensor(pool.predictions, found.indices),
        pseudo_label=None if (pseudo_label < 0).any() else pseudo_label,  # -1 without Fisher scores
    )


def as_tensor(values: Tensor | np.ndarray, rows: Tensor | None = None) -> Tensor:
    """Labels in memory or mapped from a file, all or some, as a tensor on the CPU."""
    if isinstance(values, Tensor):
        return (values if rows is None else values[rows.to(values.device)]).cpu()
    return torch.from_numpy(np.array(values if rows is None else values[rows.numpy()]))


def take_most_uncertain(situation: Situation) -> Selection:
    """The n available images with the highest uncertainty."""
    return take_top(situation.measurement.uncertainty, situation)


# The paper's methods


def _uncertainty_method(key: str, notation: str) -> Method:
    return Method(key, notation, take_most_uncertain, frozenset({"uncertainty"}), random_first=True)


def _matching_method(key: str, notation: str, pool_label: str | None = None, validation: str | None = None) -> Method:
    inputs = {"features", "scores"} if pool_label else {"features"}
    return Method(key, notation, match_errors, frozenset(inputs), False, pool_label, validation or pool_label)


for _method in (
    Method("random", "random", draw_at_random),
    _uncertainty_method("varR", "varR"),
    _uncertainty_method("entropy", "entropy"),
    _uncertainty_method("BALD", "BALD"),
    _uncertainty_method("std", "mean std"),
    _matching_method("Rz", "$R_z$"),
    _matching_method("Rzg_true", "$R_{z,g}$, $S=y$", "true"),
    _matching_method("Rzg_pred", r"$R_{z,g}$, $S=\hat{y}$", "pred"),
    _matching_method("Rzg_trace", "$R_{z,g}$, $S=tr(C_{z,g})$", "trace"),
    _matching_method("Rzg_mi", "$R_{z,g}$, $S=I(z;g)$", "mi"),
    _matching_method("Rzg_mi_diag", "$R_{z,g}$, $S=I_{diag}(z;g)$", "mi_diag"),
    _matching_method("Rzg_pz", r"$R_{z,g}$, $S=\hat{p}(y,z)$", "pz", validation="true"),
    _matching_method("Rzg_pzg", r"$R_{z,g}$, $S=\hat{p}_{z,g}(y,z)$", "pzg", validation="true"),
):
    register(_method)


def get_method(key: str) -> Method:
    """The method with that key. Raises UserError."""
    if not isinstance(key, str) or key not in METHODS:
        known = {known.lower(): known for known in METHODS}
        close = difflib.get_close_matches(str(key).lower(), known, 1)
        hint = f" (did you mean {known[close[0]]}?)" if close else ""
        raise UserError(f"there is no method {key!r}{hint}; there are {', '.join(METHODS)}")
    return METHODS[key]


# Measuring


def measure(
    method: Method,
    models: Sequence[nn.Module],
    pool: Split,
    validation: Split | None,
    sampling: Sampling,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    storage: Storage | None = None,
) -> Measurement:
    """Compute the inputs that `method` declares.

    Args:
        models: the ensemble of an uncertainty method; one network for all other methods.
        taps: indices of the taps that make the descriptor, or the features in place of the last layer's input.
        storage: where large inputs are written; memory if None.
    Raises:
        UserError: several models for a method that uses one, no validation labels where the method needs them, a layer
            without the derivatives that the method takes, or values of the network that are not finite.
    """
    if len(models) != 1 and not method.needs_uncertainty:
        raise UserError(f"{method.key} uses one network, not an ensemble of {len(models)}")
    if method.needs_validation_labels and validation.labels is None:
        raise UserError("the validation set has no labels: they are needed to find what the model gets wrong")
    networks, labels = [prepare(model) for model in models], (method.pool_label, method.validation_label)
    task = Task(method.key, *labels, networks, pool, validation, sampling, taps, batch_size, storage)
    measurement = Measurement()
    with count_passes() as passes, derivative_errors():
        for each in method.declared:
            if any(getattr(measurement, file.name) is None for file in each.files):
                measurement.update(each.compute(task))
    measurement.forward, measurement.backward = map(distributed.all_sum, (passes.forward, passes.backward))
    return measurement


# Choosing


def acquire(method: Method, situation: Situation) -> Selection:
    """The n available pool images to label next: the method's query, or a random one if a measurement is missing.

    Raises:
        UserError: fewer than n images are available.
    """
    check_query_size(situation)
    if method.needs_passes and situation.measurement is None:
        return draw_at_random(situation)
    return method.choose(situation)


def check_query_size(situation: Situation) -> None:
    """Raises UserError unless n images are available."""
    unlabelled = int(situation.available.sum())
    if not 1 <= situation.n <= unlabelled:
        raise UserError(f"the query size is {situation.n} but {unlabelled} pool images are unlabelled")
