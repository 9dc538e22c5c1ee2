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


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the paper's list.

    Attributes:
        key: its name on the command line and in files.
        notation: its name in the paper's figures.
        matches: whether it matches descriptors to the misclassified validation images (else it draws at random).
        pool_label, validation_label: the label for g on either side, keys of the rules below; None: no g.
    """

    key: str
    notation: str
    matches: bool = True
    pool_label: str | None = None
    validation_label: str | None = None

    @property
    def estimates_labels(self) -> bool:
        """Whether it gives the pool pseudo-labels, whose accuracy can be reported."""
        return self.pool_label not in (None, "true")


METHODS = {
    method.key: method
    for method in (
        Method("random", "random", matches=False),
        Method("Rz", "$R_z$"),
        Method("Rzg_true", "$R_{z,g}$, $S=y$", pool_label="true", validation_label="true"),
        Method("Rzg_pred", r"$R_{z,g}$, $S=\hat{y}$", pool_label="pred", validation_label="pred"),
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
    """Descriptors of both sides; (validation, pool) of a method that matches."""

    validation: Descriptors
    pool: Descriptors


Allocate = Callable[[str, int, int], Descriptors]  # "validation" or "pool", images, width -> where to write


def measure(
    method: Method,
    model: nn.Module,
    pool: Split,
    validation: Split,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    allocate: Allocate | None = None,
) -> Measurement:
    """Descriptors of the validation set and the pool as `method` wants them. The pool goes through the network once.

    Args: see `select`; allocate gives the arrays to write into, by default new tensors.
    """
    if validation.labels is None:
        raise ValueError("the validation set has no labels")

    def described(split: Split, rule: LabelRule | None, side: str | None = None) -> Descriptors:
        target = None if allocate is None or side is None else lambda images, width: allocate(side, images, width)
        return describe(model, split, taps, rule, batch_size, target)

    if method.pool_label is None:
        return Measurement(described(validation, None, "validation"), described(pool, None, "pool"))
    known = pseudo_labels.given(validation.labels)
    rule = {"true": known, "pred": pseudo_labels.predicted}[method.validation_label]
    reference = described(validation, rule, "validation")
    if method.pool_label == "true":
        if pool.labels is None:
            raise ValueError(f"{method.key} is the oracle ablation: it needs the pool's labels")
        pool_rule = pseudo_labels.given(pool.labels)
    elif method.pool_label == "pred":
        pool_rule = pseudo_labels.predicted
    elif method.pool_label == "pz":
        pool_rule = pseudo_labels.nearest_by_feature(reference, validation.labels)
    else:
        by_prediction = described(validation, pseudo_labels.predicted)
        pool_rule = pseudo_labels.nearest_by_feature_and_score(by_prediction, validation.labels)
    return Measurement(reference, described(pool, pool_rule, "pool"))


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
        measurement: what `measure` found; None for a method that draws at random.
        labels: (V,) the validation set's true labels.
        available: (N,) bool, pool images that are not labelled yet.
    Raises:
        UserError: fewer than n images are available.
    """
    left = int(available.sum())
    if n > left:
        raise UserError(f"the query size is {n} but only {left} pool images are unlabelled")
    if not method.matches:
        return Selection(matching.draw(available, n, generator))
    found = measurement.validation
    predictions = found.predictions if isinstance(found.predictions, Tensor) else torch.tensor(found.predictions)
    wrong = (predictions.to(labels.device) != labels).nonzero().flatten()
    errors = matching.load_rows(found.vectors, wrong, labels.device)
    return matching.match(errors, measurement.pool.vectors, available, n, generator)


def select(
    method: str,
    model: nn.Module,
    pool: Split,
    validation: Split,
    n: int,
    *,
    labelled: Tensor | None = None,
    taps: Sequence[int] | None = None,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which n pool images to label next: one acquisition step for your own active-learning loop.

    Args:
        method: a key of METHODS; "Rzg_pz" is the paper's.
        model: any module that returns (logits (B, C), list of taps), each tap (B, c, h, w) or (B, c), c at least 2.
        pool: its labels may be None (but for the oracle Rzg_true).
        validation: labelled, distributed as the test data are.
        labelled: (k,) int64 positions of pool images that are labelled already.
        taps: indices into the list of taps that make the descriptor; all where it is None.
        batch_size: images a forward pass; no effect on the result but rounding.
        generator: source of the random draws (start of k-centre, fill-up); seed 0 where it is None.
    Returns:
        (n,) int64 on the CPU, positions in the pool, in the order they were chosen.
    Raises:
        UserError: unknown method, or fewer than n unlabelled images.
    """
    chosen = get_method(method)
    available = torch.ones(len(pool), dtype=torch.bool)
    if labelled is not None:
        available[labelled.cpu()] = False
    if n < 1 or n > int(available.sum()):
        raise UserError(f"the query size is {n} but {int(available.sum())} pool images are unlabelled")
    generator = generator or torch.Generator().manual_seed(0)
    measurement = measure(chosen, model, pool, validation, taps, batch_size) if chosen.matches else None
    return choose(chosen, measurement, validation.labels, available, n, generator).indices
