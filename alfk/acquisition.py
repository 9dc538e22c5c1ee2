"""The acquisition methods, a registry (paper, Section 4; the keys are those of the command line).

An acquisition has two steps: `measure` runs the network over validation set and pool, `choose` decides from what it
found. The scripts keep the first step's result in files; `select` does both in memory, for your own loop.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alfk import matching, pseudo_labels
from alfk.data import Split
from alfk.descriptors import Descriptors, LabelRule, describe
from alfk.errors import UserError
from alfk.matching import Selection
from alfk.perturbation import RotationAndNoise, Strategy
from alfk.uncertainty import uncertainty


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the paper's list.

    Attributes:
        key: its name on the command line and in files.
        notation: its name in the paper's figures.
        kind: "random", "matching" (of descriptors to those of misclassified validation images) or "uncertainty".
        pool_label, validation_label: of a matching method, the label for g on either side; None: no g.
    """

    key: str
    notation: str
    kind: str = "matching"
    pool_label: str | None = None
    validation_label: str | None = None

    @property
    def matches(self) -> bool:
        return self.kind == "matching"

    @property
    def doubts(self) -> bool:
        """Whether it takes the most uncertain images; its networks then have MC-dropout."""
        return self.kind == "uncertainty"

    @property
    def estimates_from_copies(self) -> bool:
        """Whether its pseudo-labels come from perturbed copies of the images."""
        return self.pool_label in pseudo_labels.ESTIMATORS

    @property
    def estimates_labels(self) -> bool:
        """Whether it gives the pool pseudo-labels, whose accuracy can be reported."""
        return self.pool_label not in (None, "true")


METHODS = {
    method.key: method
    for method in (
        Method("random", "random", kind="random"),
        Method("varR", "varR", kind="uncertainty"),
        Method("entropy", "entropy", kind="uncertainty"),
        Method("BALD", "BALD", kind="uncertainty"),
        Method("std", "mean std", kind="uncertainty"),
        Method("Rz", "$R_z$"),
        Method("Rzg_true", "$R_{z,g}$, $S=y$", pool_label="true", validation_label="true"),
        Method("Rzg_pred", r"$R_{z,g}$, $S=\hat{y}$", pool_label="pred", validation_label="pred"),
        Method("Rzg_trace", "$R_{z,g}$, $S=tr(C_{z,g})$", pool_label="trace", validation_label="trace"),
        Method("Rzg_mi", "$R_{z,g}$, $S=I(z;g)$", pool_label="mi", validation_label="mi"),
        Method("Rzg_mi_diag", "$R_{z,g}$, $S=I_{diag}(z;g)$", pool_label="mi_diag", validation_label="mi_diag"),
        Method("Rzg_pz", r"$R_{z,g}$, $S=\hat{p}(y,z)$", pool_label="pz", validation_label="true"),
        Method("Rzg_pzg", r"$R_{z,g}$, $S=\hat{p}_{z,g}(y,z)$", pool_label="pzg", validation_label="true"),
    )
}


def get_method(key: str) -> Method:
    """The method of that key. Raises UserError."""
    if key not in METHODS:
        raise UserError(f"there is no method {key!r}; there are {', '.join(METHODS)}")
    return METHODS[key]


@dataclasses.dataclass
class Measurement:
    """What a method looks at, in memory or mapped from files.

    Attributes:
        validation, pool: descriptors of both sides, of a matching method.
        uncertainty: (N,) of the pool, of a method that doubts.
        forward, backward: how many images went through the network either way: the cost of measuring.
    """

    validation: Descriptors | None = None
    pool: Descriptors | None = None
    uncertainty: Tensor | None = None
    forward: int = 0
    backward: int = 0


Allocate = Callable[[str, int, int], Descriptors]  # "validation" or "pool", images, width -> where to write


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a method takes K samples of an image: dropout masks, or copies perturbed by a strategy.

    Attributes:
        samples: K, over all of an ensemble.
        generator: source of masks or perturbations.
    """

    generator: torch.Generator
    samples: int = 128
    strategy: Strategy = dataclasses.field(default_factory=RotationAndNoise)


def measure(
    method: Method,
    models: Sequence[nn.Module],
    pool: Split,
    validation: Split,
    sampling: Sampling,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    allocate: Allocate | None = None,
) -> Measurement:
    """What `method` wants to know of the pool.

    Args:
        models: the ensemble; a matching method describes images by its only member.
        allocate: gives the arrays to write descriptors into, by default new tensors.
    """
    if method.doubts:
        scores = uncertainty(method.key, models, pool, sampling.samples, sampling.generator, batch_size)
        return Measurement(uncertainty=scores, forward=sampling.samples * len(pool))
    if len(models) != 1:
        raise UserError(f"{method.key} describes images by one network, not by an ensemble of {len(models)}")
    return _Describer(models[0], pool, validation, sampling, taps, batch_size, allocate).measure(method)


class _Describer:
    """Descriptors of both sides, and the label rules of Section 4.4 by their keys. Each image is described once."""

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
            raise ValueError("the validation set has no labels")
        self.model, self.pool, self.validation, self.sampling = model, pool, validation, sampling
        self.taps, self.batch_size, self.allocate = taps, batch_size, allocate
        self.forward = self.backward = 0

    def measure(self, method: Method) -> Measurement:
        copies = pool_copies = None
        if method.estimates_from_copies:
            shape = next(self.validation.batches(1))[0].shape[1:]
            strategy = self.sampling.strategy
            copies = pool_copies = strategy.draw(self.sampling.samples, shape, self.sampling.generator)
            if not getattr(strategy, "shared", True):
                pool_copies = strategy.draw(self.sampling.samples, shape, self.sampling.generator)
        validation_rule = self._rule(method.validation_label, self.validation, None, copies)
        reference = self._describe(self.validation, validation_rule, "validation")
        pool_rule = self._rule(method.pool_label, self.pool, reference, pool_copies)
        described = self._describe(self.pool, pool_rule, "pool")
        self._count_extra(method)
        return Measurement(reference, described, forward=self.forward, backward=self.backward)

    def _rule(self, label: str | None, split: Split, reference: Descriptors | None, copies: list | None):
        known = self.validation.labels
        if label is None:
            return None
        if label == "true":
            if split.labels is None:
                raise ValueError("the oracle ablation S=y needs the pool's labels")
            return pseudo_labels.given(split.labels)
        if label == "pred":
            return pseudo_labels.predicted
        if label == "pz":
            return pseudo_labels.nearest_by_feature(reference, known)
        if label == "pzg":
            by_prediction = self._describe(self.validation, pseudo_labels.predicted)
            return pseudo_labels.nearest_by_feature_and_score(by_prediction, known)
        return pseudo_labels.from_copies(pseudo_labels.ESTIMATORS[label], self.model, self.taps, copies)

    def _describe(self, split: Split, rule: LabelRule | None, side: str | None = None) -> Descriptors:
        self.forward += len(split)
        self.backward += len(split) if rule is not None else 0
        target = None
        if self.allocate is not None and side is not None:
            target = lambda images, width: self.allocate(side, images, width)  # noqa: E731
        return describe(self.model, split, self.taps, rule, self.batch_size, target)

    def _count_extra(self, method: Method) -> None:
        """What the label rules themselves cost: the second gradient of pzg, the copies' passes of an estimator."""
        both = self.sampling.samples * (len(self.pool) + len(self.validation))
        if method.pool_label == "pzg":
            self.backward += len(self.pool)
        elif method.pool_label == "trace":
            self.forward, self.backward = self.forward + both, self.backward + 2 * both
        elif method.pool_label in ("mi", "mi_diag"):
            classes = 1 + int(self.validation.labels.max())
            self.forward, self.backward = self.forward + both, self.backward + classes * both


def choose(
    method: Method,
    measurement: Measurement | None,
    labels: Tensor | None,
    available: Tensor,
    n: int,
    generator: torch.Generator,
) -> Selection:
    """Which n of the available pool images to label.

    Args:
        measurement: what `measure` found; without it (random choice, or the first iteration of a method that doubts)
            the images are drawn at random.
        labels: (V,) the validation set's true labels.
        available: (N,) bool, pool images that are not labelled yet.
    Raises:
        UserError: fewer than n images are available.
    """
    _check_query(n, available)
    if measurement is None:
        return Selection(matching.draw(available, n, generator))
    if method.doubts:
        return Selection(most(measurement.uncertainty.cpu(), available, n, generator))
    found = measurement.validation
    predictions = found.predictions if isinstance(found.predictions, Tensor) else torch.tensor(found.predictions)
    wrong = (predictions.to(labels.device) != labels).nonzero().flatten()
    errors = matching.load_rows(found.vectors, wrong, labels.device)
    return matching.match(errors, measurement.pool.vectors, available, n, generator)


def _check_query(n: int, available: Tensor) -> None:
    left = int(available.sum())
    if not 1 <= n <= left:
        raise UserError(f"the query size is {n} but {left} pool images are unlabelled")


def most(scores: Tensor, available: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The n available images of the highest score (N,), best first, equals in random order: (n,) int64."""
    candidates = available.cpu().nonzero().flatten()
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:n]]


def select(
    method: str,
    model: nn.Module | Sequence[nn.Module],
    pool: Split,
    validation: Split,
    n: int,
    *,
    labelled: Tensor | None = None,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    samples: int = 128,
    strategy: Strategy | None = None,
) -> Tensor:
    """Which n pool images to label next: one acquisition step for your own active-learning loop.

    In a process group of torch.distributed every rank has to call it, with equal arguments: they share the work. One
    that shall choose for itself calls it inside `alfk.ranks.alone()`.

    Args:
        method: a key of METHODS; "Rzg_pz" is the paper's.
        model: any module that returns (logits (B, C), list of taps), each tap (B, c, h, w) or (B, c), c at least 2;
            for the uncertainty methods one with dropout layers, or a list of such.
        pool: its labels may be None (but for the oracle Rzg_true).
        validation: labelled, distributed as the test data are.
        labelled: (k,) int64 positions of pool images that are labelled already. Uncertainty methods draw at random
            while there are none.
        taps: indices into the list of taps that make the descriptor; all where it is None.
        batch_size: images a forward pass; changes rounding, and which dropout masks an image meets.
        generator: source of the random draws (start of k-centre, dropout masks, ...); seed 0 where it is None.
        samples: K of the uncertainty methods and of the estimators from perturbed copies.
        strategy: how copies are perturbed, rotation and noise where it is None.
    Returns:
        (n,) int64 on the CPU, positions in the pool, in the order they were chosen.
    Raises:
        UserError: unknown method, or fewer than n unlabelled images.
    """
    chosen = get_method(method)
    available = torch.ones(len(pool), dtype=torch.bool)
    if labelled is not None:
        available[labelled.cpu()] = False
    _check_query(n, available)
    generator = generator or torch.Generator().manual_seed(0)
    models = [model] if isinstance(model, nn.Module) else list(model)
    measurement = None
    if chosen.matches or (chosen.doubts and not available.all()):
        sampling = Sampling(generator, samples, strategy or RotationAndNoise())
        measurement = measure(chosen, models, pool, validation, sampling, taps, batch_size)
    return choose(chosen, measurement, validation.labels, available, n, generator).indices
