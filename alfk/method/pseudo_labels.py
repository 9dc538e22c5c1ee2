"""Labels S for the Fisher scores of images whose label is unknown (paper, Section 4.4; docs/method.md, section 6).

For a pool image i, y the true labels, V the validation set, z_k and g_{k,c} the features of its K perturbed copies and
their Fisher scores for class c, with Z (L, K) and G_c (L, K) the matrices of all copies:

    true    S_i = y_i                                               oracle, the upper bound
    pred    S_i = argmax_c logits_i                                 the model's prediction
    pz      S_i = y_j, j = argmax over V of R_z(i, j)               the paper's method
    pzg     S_i = y_j, j = argmax over V of R_{z,g}(i, j)           g of both sides for predicted labels
    trace   S_i = argmax_c sum_k <z_k, g_{k,c}>
    mi      S_i = argmax_c logdet(Z Z' + eps I) + logdet(G_c G_c' + eps I) - logdet([Z; G_c] [Z; G_c]' + eps I)
    mi_diag mi with only the diagonals of Z Z', G_c G_c' and Z G_c'

A rule maps a ForwardPass of one batch to a label (B,) int64 for each image. RULES, at the end, makes the rule of a key.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alfk.method.descriptors import Descriptors, ForwardPass, LabelRule
from alfk.method.matching import Rows, budget, load_rows, top_matches
from alfk.method.perturbation import Transformation
from alfk.networks.passes import add_passes

STATISTICS = 2**24  # float64 values of the copies' statistics in memory: 128 MiB
EPSILON = 1e-8  # added to the diagonals of the matrices whose determinants are computed


def true_labels(labels: Tensor) -> LabelRule:
    """S = y: the true labels (N,), on the pool the oracle of the ablation."""
    return lambda batch: labels[batch.positions]


def predicted(batch: ForwardPass) -> Tensor:
    """S = y^: the model's arg max."""
    return batch.predictions


def nearest_by_feature(validation: Descriptors, labels: Tensor) -> LabelRule:
    """S = p^(y, z): the true label of the validation image most similar by R_z.

    Args:
        validation: descriptors of the whole validation set, z first in every row.
        labels: (V,) its true labels.
    """
    nearest = _Nearest(validation, labels)
    return lambda batch: nearest.labels_of(batch.z)


def nearest_by_feature_and_score(validation: Descriptors, labels: Tensor) -> LabelRule:
    """S = p^_{z,g}(y, z): the true label of the validation image most similar by R_{z,g}, g for arg max labels.

    Args:
        validation: [z, g] descriptors of the whole validation set, with g for the predicted labels.
        labels: (V,) its true labels.
    """
    nearest = _Nearest(validation, labels)
    return lambda batch: nearest.labels_of(torch.cat([batch.z, batch.g(batch.predictions, last=False)], dim=1))


class _Nearest:
    """The labels of the validation images that are most similar to given rows.

    A row's D entries are compared with the first D of each validation descriptor. The validation descriptors are loaded
    once, or read again for every batch if they exceed the device's budget.
    """

    def __init__(self, validation: Descriptors, labels: Tensor):
        self.validation, self.labels = validation, labels
        self.database: Rows | None = None

    def labels_of(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B,) int64."""
        if self.database is None:
            self.database = self.validation.vectors[:, : rows.shape[1]]
            if 4 * len(self.database) * rows.shape[1] <= budget(rows.device):
                self.database = load_rows(self.database, slice(None), rows.device).contiguous()
            self.labels = self.labels.to(rows.device)
        _, index = top_matches(rows, self.database, 1)
        return self.labels[index[:, 0]]


# (model, taps, images (B, C, H, W), copies) -> a value for every image and class (B, classes)
Estimator = Callable[[nn.Module, Sequence[int] | None, Tensor, Sequence[Transformation]], Tensor]


def from_copies(
    estimator: Estimator, model: nn.Module, taps: Sequence[int] | None, copies: Sequence[Transformation]
) -> LabelRule:
    """S = arg max over classes of `estimator` on an image's perturbed copies.

    Images are processed in chunks, so that the statistics of their copies have at most `STATISTICS` values.
    """

    def rule(batch: ForwardPass) -> Tensor:
        length, classes = batch.z.shape[1], batch.logits.shape[1]
        samples = len(copies)
        chunk = max(1, STATISTICS // (classes * (length * samples + 4 * min(length, samples) ** 2)))
        if estimator is trace:  # stores no statistics of single copies
            chunk = len(batch.images)
        return torch.cat([estimator(model, taps, images, copies).argmax(1) for images in batch.images.split(chunk)])

    return rule


def trace(model: nn.Module, taps: Sequence[int] | None, images: Tensor, copies: Sequence[Transformation]) -> Tensor:
    """tr(C_{z,g}) for every class c: T_c, the sum over copies k of <z_k, g_{k,c}>. (B, C).

    The gradient at the logits is p - e_c, so <z, g_c> = <z, J^T p> - <z, J^T e_c> = (J z) . p - (J z)_c, with J the
    Jacobian of the logits with respect to the pooled taps. J z takes two backward passes: J^T v for a variable v, then
    the derivative of <z, J^T v>, which is linear in v, with respect to v.
    """
    total = 0
    for copy in copies:
        batch = ForwardPass(model, copy(images), None, taps, grad=True, twice=True)
        v = torch.zeros_like(batch.logits, requires_grad=True)
        inner = sum((g * z).sum() for g, z in zip(batch.pullback(v), batch.features, strict=True))
        add_passes(backward=len(images))
        (jz,) = torch.autograd.grad(inner, v)
        total = total + (jz * batch.logits.softmax(1)).sum(1, keepdim=True) - jz
    return total


def mutual_information(
    model: nn.Module, taps: Sequence[int] | None, images: Tensor, copies: Sequence[Transformation]
) -> Tensor:
    """I(z; g) for every class c, of Gaussians with the copies' second moments. (B, C) float64."""
    z, g = _statistics(model, taps, images, copies)
    length, samples = z.shape[1:]
    if samples < length:
        # det(X X^T + eps I_L) = eps^(L - K) det(X^T X + eps I_K): K x K matrices suffice, with less rounding error.
        zz, gg = (z.mT @ z).unsqueeze(1), g.mT @ g
        return log_det(zz) + log_det(gg) - log_det(zz + gg) - samples * math.log(EPSILON)
    both = torch.cat([z.unsqueeze(1).expand_as(g), g], dim=2)
    return log_det(z @ z.mT).unsqueeze(1) + log_det(g @ g.mT) - log_det(both @ both.mT)


def mutual_information_of_diagonals(
    model: nn.Module, taps: Sequence[int] | None, images: Tensor, copies: Sequence[Transformation]
) -> Tensor:
    """I(z; g) from the diagonals of Z Z^T, G_c G_c^T and Z G_c^T: each entry of z with the same entry of g. (B, C)."""
    z, g = _statistics(model, taps, images, copies)
    z = z.unsqueeze(1)
    zz, gg, zg = z.square().sum(-1) + EPSILON, g.square().sum(-1) + EPSILON, (z * g).sum(-1)
    return -torch.log1p(-zg.square() / (zz * gg)).sum(-1)


def _statistics(
    model: nn.Module, taps: Sequence[int] | None, images: Tensor, copies: Sequence[Transformation]
) -> tuple[Tensor, Tensor]:
    """Z (B, L, K) and G (B, C, L, K), float64: features and, for every class, scores of the copies.

    One backward pass for all classes: g_c = J^T p - J^T e_c is linear in the rows J^T e_c of the Jacobian.
    """
    features, scores = [], []
    for copy in copies:
        batch = ForwardPass(model, copy(images), None, taps, grad=True, twice=True)
        rows = batch.jacobian()
        mean = torch.einsum("bc,bcl->bl", batch.logits.softmax(1), rows)
        features.append(torch.cat(batch.features, dim=1))
        scores.append(mean.unsqueeze(1) - rows)
    return torch.stack(features, dim=-1).double(), torch.stack(scores, dim=-1).double()


def log_det(matrices: Tensor) -> Tensor:
    """log det(A + eps I) of symmetric A (..., n, n) float64 by Cholesky.

    If A + eps I is not positive definite in floating point, its eigenvalues are used, clamped to at least eps. Zero
    replaces a matrix with entries that are not finite.
    """
    finite = matrices.isfinite().all(-1).all(-1)
    matrices = torch.where(finite[..., None, None], matrices, 0)
    shifted = matrices + EPSILON * torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    result = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    bad = failed > 0
    if bad.any():
        values = torch.linalg.eigvalsh(shifted[bad])
        result[bad] = values.clamp(min=EPSILON).log().sum(-1)
    return result


ESTIMATORS: dict[str, Estimator] = {
    "trace": trace,
    "mi": mutual_information,
    "mi_diag": mutual_information_of_diagonals,
}


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known when the labels of a split are chosen.

    Attributes:
        model, taps: the network, and the taps that make the descriptor.
        labels: (N,) the split's true labels; None if they are unknown.
        validation: descriptors of the validation set; None while it is the validation set that is described.
        validation_labels: (V,) true labels.
        validation_of_predictions: computes descriptors of the validation set with g for the predicted labels.
        copies: perturbations, for the ESTIMATORS.
    """

    model: nn.Module
    taps: Sequence[int] | None
    labels: Tensor | None
    validation: Descriptors | None
    validation_labels: Tensor
    validation_of_predictions: Callable[[], Descriptors]
    copies: Sequence[Transformation]


def _estimated(key: str, known: Known) -> LabelRule:
    return from_copies(ESTIMATORS[key], known.model, known.taps, known.copies)


RULES: dict[str, Callable[[Known], LabelRule]] = {
    "true": lambda known: true_labels(known.labels),
    "pred": lambda known: predicted,
    "pz": lambda known: nearest_by_feature(known.validation, known.validation_labels),
    "pzg": lambda known: nearest_by_feature_and_score(known.validation_of_predictions(), known.validation_labels),
    **{key: functools.partial(_estimated, key) for key in ESTIMATORS},
}
