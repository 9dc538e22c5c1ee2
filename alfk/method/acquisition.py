"""The paper's acquisition methods (Section 4; the keys are those of the command line), and how a method is run.

`alfk.method.registry` states what a method declares and is given. An acquisition has two steps:
`measure` runs the network over validation set and pool, `choose` calls the method's function. The scripts keep the
measurement in files between the two; `select` does both in memory, for a training loop of your own. How to add a
method: docs/method.md, section 11.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method import matching, pseudo_labels
from alfk.method.descriptors import Descriptors, LabelRule, describe
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES, Strategy
from alfk.method.registry import METHODS, Measurement, Method, Situation, register, take_top
from alfk.method.selection import Selection
from alfk.method.uncertainty import uncertainty
from alfk.networks.outputs import Outputs, logits_of, outputs_of
from alfk.networks.passes import count_passes
from alfk.support import distributed
from alfk.support.errors import UserError

# Acquisition functions


def draw_at_random(situation: Situation) -> Selection:
    """n available images, uniformly."""
    return Selection(matching.draw(situation.available, situation.n, situation.generator))


def match_errors(situation: Situation) -> Selection:
    """The pool images most similar to the misclassified validation images (docs/method.md, section 7)."""
    measurement, labels = situation.measurement, situation.validation_labels
    validation, pool = measurement.validation, measurement.pool
    predictions = as_tensor(validation.predictions)
    wrong = (predictions.to(labels.device) != labels).nonzero().flatten()
    errors = matching.load_rows(validation.vectors, wrong, labels.device)
    found = matching.match(errors, pool.vectors, situation.available, situation.n, situation.generator)
    if found.matches is None:
        return found
    matches = wrong.cpu()[found.matches]
    pseudo_label = as_tensor(pool.pseudo_labels, found.indices)
    return dataclasses.replace(
        found,
        matches=matches,
        error_prediction=predictions[matches],
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


# The paper's methods, and then the rivals


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

POOL, VALIDATION = "the pool", "the validation set"  # in messages

Allocate = Callable[[str, int, int], Descriptors]  # ("validation" or "pool", images, width) -> arrays to write into
AllocateOutputs = Callable[[str, int, int, int], Outputs]  # (the same, images, D, C) -> arrays to write into


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a method takes K samples of an image: dropout masks, or copies perturbed by a strategy.

    Attributes:
        samples: K, the total over the members of an ensemble.
        generator: source of masks or perturbations.
    """

    generator: torch.Generator
    samples: int = 128
    strategy: Strategy = dataclasses.field(default_factory=lambda: STRATEGIES[DEFAULT_COPIES])


def measure(
    method: Method,
    models: Sequence[nn.Module],
    pool: Split,
    validation: Split,
    sampling: Sampling,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    allocate: Allocate | None = None,
    allocate_outputs: AllocateOutputs | None = None,
) -> Measurement:
    """Compute the inputs that `method` declares.

    Args:
        models: the ensemble of an uncertainty method; one network for all other methods.
        taps: indices of the taps that make the descriptor, or the features in place of the last layer's input.
        allocate, allocate_outputs: return the arrays to write descriptors and outputs into, by default new tensors.
    Raises:
        UserError: several models for a method that uses one, no validation set or labels where the method needs them,
            or values of the network that are not finite.
    """
    if len(models) != 1 and not method.needs_uncertainty:
        raise UserError(f"{method.key} uses one network, not an ensemble of {len(models)}")
    measurement = Measurement()
    with count_passes() as passes:
        if method.needs_uncertainty:
            samples, generator = sampling.samples, sampling.generator
            measurement.uncertainty = uncertainty(method.key, models, pool, samples, generator, batch_size, POOL)
        if "information" in method.inputs:
            samples, generator = sampling.samples, sampling.generator
            arguments = models[0], pool, validation, samples, generator, batch_size, POOL
            from alfk.rivals.methods import expected_information

            measurement.information = expected_information(*arguments)
        if "logits" in method.inputs:
            measurement.logits = logits_of(models[0], pool, batch_size, POOL)
        for needed, side, split in (("outputs", "pool", pool), ("validation_outputs", "validation", validation)):
            if needed in method.inputs:
                target = allocate_outputs and functools.partial(allocate_outputs, side)
                name = POOL if split is pool else VALIDATION
                found = outputs_of(models[0], split, taps, batch_size, name, target)
                setattr(measurement, f"{side}_outputs", found)
        if method.needs_descriptors:
            describer = _Describer(models[0], pool, validation, sampling, taps, batch_size, allocate)
            measurement.validation, measurement.pool = describer.validation_and_pool(method)
    measurement.forward, measurement.backward = map(distributed.all_sum, (passes.forward, passes.backward))
    return measurement


class _Describer:
    """Computes descriptors of validation set and pool, with the label rules of Section 4.4."""

    def __init__(
        self,
        model: nn.Module,
        pool: Split,
        validation: Split,
        sampling: Sampling,
        taps: Sequence[int] | None,
        batch_size: int,
        allocate: Allocate | None,
    ):
        if validation.labels is None:
            raise UserError("the validation set has no labels: they are needed to find what the model gets wrong")
        self.model, self.pool, self.validation, self.sampling = model, pool, validation, sampling
        self.taps, self.batch_size, self.allocate = taps, batch_size, allocate

    def validation_and_pool(self, method: Method) -> tuple[Descriptors, Descriptors]:
        """Descriptors of the validation set and of the pool."""
        copies = pool_copies = None
        if method.estimates_from_copies:
            shape = next(self.validation.batches(1))[0].shape[1:]
            strategy, samples, generator = self.sampling.strategy, self.sampling.samples, self.sampling.generator
            copies = pool_copies = strategy.draw(samples, shape, generator)
            if not getattr(strategy, "shared", True):
                pool_copies = strategy.draw(samples, shape, generator)
        validation_rule = self._rule(method.validation_label, self.validation, None, copies)
        reference = self._describe(self.validation, validation_rule, "validation")
        pool_rule = self._rule(method.pool_label, self.pool, reference, pool_copies)
        return reference, self._describe(self.pool, pool_rule, "pool")

    def _rule(
        self, label: str | None, split: Split, reference: Descriptors | None, copies: list | None
    ) -> LabelRule | None:
        validation_labels = self.validation.labels
        if label is None:
            return None
        if label == "true":
            if split.labels is None:
                raise UserError("the oracle Rzg_true needs the labels of the whole pool")
            return pseudo_labels.true_labels(split.labels)
        if label == "pred":
            return pseudo_labels.predicted
        if label == "pz":
            return pseudo_labels.nearest_by_feature(reference, validation_labels)
        if label == "pzg":
            by_prediction = self._describe(self.validation, pseudo_labels.predicted)
            return pseudo_labels.nearest_by_feature_and_score(by_prediction, validation_labels)
        return pseudo_labels.from_copies(pseudo_labels.ESTIMATORS[label], self.model, self.taps, copies)

    def _describe(self, split: Split, rule: LabelRule | None, side: str | None = None) -> Descriptors:
        target = None
        if self.allocate is not None and side is not None:
            target = lambda images, width: self.allocate(side, images, width)  # noqa: E731
        name = POOL if split is self.pool else VALIDATION
        return describe(self.model, split, self.taps, rule, self.batch_size, target, name)


# Choosing


def choose(method: Method, situation: Situation) -> Selection:
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


def select(*arguments: object, **options: object) -> Tensor:
    """`alfk.select`, which was in this module before."""
    from alfk.own import queries  # builds on this module

    return queries.select(*arguments, **options)
