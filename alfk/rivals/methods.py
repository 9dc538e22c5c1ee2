"""Acquisition methods of other papers, under the keys of the command line (docs/rivals.md)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method import matching
from alfk.method.registry import Method, Situation, take_top
from alfk.method.selection import Selection
from alfk.method.uncertainty import are_equal, equal_samples
from alfk.networks.passes import require_finite
from alfk.rivals import scores
from alfk.rivals.badge import badge
from alfk.rivals.coreset import coreset
from alfk.rivals.epig import CLASSES, epig, shared_masks
from alfk.rivals.flqmi import Factors, flqmi
from alfk.rivals.galaxy import galaxy
from alfk.rivals.gradients import gradients
from alfk.rivals.typiclust import typiclust
from alfk.support import distributed
from alfk.support.errors import UserError

TARGETS = 1000  # validation images, at most, about which EPIG measures information
JOINT = 2**27  # joint probabilities of a pool image and the targets, at most, as on a CPU
CLUSTERS = 500  # of TypiClust, at most; twice the number of classes if that is more


def expected_information(
    model: nn.Module,
    pool: Split,
    validation: Split,
    samples: int,
    generator: torch.Generator,
    batch_size: int,
    name: str,
) -> Tensor:
    """EPIG of every pool image about at most TARGETS random validation images: (N,) float64 in nats.

    Fewer targets if their joint probabilities with a pool image need too much memory: with more than 366 classes on a
    CPU, or with 183 on a GPU of 8 GiB.

    Arguments and errors as of `uncertainty`; the same dropout masks are used for all images.
    """
    if samples == 1:
        raise UserError("epig measures what samples have in common, of which there is one: take more samples")
    drawn, found = torch.randperm(len(validation), generator=generator), []
    with shared_masks(model, samples, generator) as logits:
        classes = logits(next(validation.subset([0]).batches(1))[0]).shape[2]
        most = min(JOINT, matching.budget(pool.device) // 8) // classes**2
        rows = drawn[: max(1, min(TARGETS, most))].sort().values
        targets = torch.cat([logits(images) for images, _ in validation.subset(rows).batches(batch_size)])
        finite = targets.isfinite().flatten(1).all(1, keepdim=True)
        require_finite(finite, ("logits",), rows, [model], validation, "the validation set")
        if are_equal(targets, targets[:, :1]):
            raise equal_samples(samples)

        def score(images: Tensor, positions: Tensor) -> tuple[Tensor]:
            return (epig(logits(images), targets),)

        for positions, (values,) in distributed.map_batches(score, pool, batch_size):
            require_finite(values.isfinite().unsqueeze(1), ("logits",), positions, [model], pool, name)
            found.append(values)
    return torch.cat(found)


# Acquisition functions


def by_logits(score: Callable[[Tensor], Tensor]) -> Callable[[Situation], Selection]:
    """The acquisition function that takes the images whose logits have the highest score, equal ones at random."""

    def choose(situation: Situation) -> Selection:
        return take_top(score(situation.measurement.logits), situation)

    return choose


def choose_badge(situation: Situation) -> Selection:
    """k-means++ seeding in the space of gradients of the last layer."""
    pool = situation.measurement.pool_outputs
    a = gradients(pool.logits)
    return badge(a, pool.features, situation.available, situation.n, situation.generator)


def choose_coreset(situation: Situation) -> Selection:
    """Greedy k-centre on penultimate features; score: the distance from the nearest labelled or chosen image."""
    features = situation.measurement.pool_outputs.features
    chosen, radii = coreset(features, situation.available, situation.n, generator=situation.generator)
    return Selection(chosen, score=radii)


def choose_flqmi(situation: Situation) -> Selection:
    """Facility-location mutual information with the misclassified validation images; score: the gain."""
    return _flqmi(situation, _misclassified(situation), by_gradients=True)


def choose_flqmi_by_features(situation: Situation) -> Selection:
    """The same with similarities of features alone."""
    return _flqmi(situation, _misclassified(situation), by_gradients=False)


def choose_flqmi_of_rare_classes(situation: Situation) -> Selection:
    """The same with the validation images of the rare classes as queries, whether misclassified or not."""
    labels = situation.validation_labels.cpu()
    if not situation.rare_classes:
        raise UserError("flqmi_rare has to know which classes are rare, and of this pool none is known to be")
    rare = torch.tensor(list(situation.rare_classes), dtype=labels.dtype)
    queried = torch.isin(labels, rare)
    if not queried.any():
        raise UserError("flqmi_rare chooses by validation images of the rare classes, and there is none")
    return _flqmi(situation, queried, by_gradients=True)


def _misclassified(situation: Situation) -> Tensor:
    """(V,) bool."""
    labels = situation.validation_labels
    predictions = situation.measurement.validation_outputs.logits.argmax(1)
    return (predictions.to(labels.device) != labels).cpu()


def _flqmi(situation: Situation, queried: Tensor, by_gradients: bool) -> Selection:
    pool, validation = situation.measurement.pool_outputs, situation.measurement.validation_outputs
    device = pool.features.device
    rows = queried.nonzero().flatten().to(device)
    if not len(rows):
        images = matching.draw(situation.available, situation.n, situation.generator)
        return Selection(images, misclassified=int(_misclassified(situation).sum()), at_random=len(images))
    pool_a = validation_a = None
    if by_gradients:
        labels = situation.validation_labels.to(device)[rows]
        pool_a, validation_a = gradients(pool.logits), gradients(validation.logits[rows], labels)
    queries = Factors(validation.features[rows], validation_a)
    factors, generator = Factors(pool.features, pool_a), situation.generator
    chosen, gains = flqmi(factors, queries, situation.available, situation.n, generator=generator)
    return Selection(chosen, misclassified=int(_misclassified(situation).sum()), score=gains)


def choose_galaxy(situation: Situation) -> Selection:
    """Bisection of class boundaries; labels of images labelled earlier are asked for first, then one after another."""
    return _galaxy(situation, situation.measurement.logits)


def choose_galaxy_with_validation(situation: Situation) -> Selection:
    """The same, where the validation images are among those with known labels."""
    probabilities = situation.measurement.validation_outputs.logits.double().softmax(1)
    known = probabilities, situation.validation_labels
    return _galaxy(situation, situation.measurement.pool_outputs.logits, known)


def _galaxy(situation: Situation, logits: Tensor, known_elsewhere: tuple[Tensor, Tensor] | None = None) -> Selection:
    probabilities = logits.double().softmax(1)
    classes = probabilities.shape[1]

    def labels_of(positions: Tensor) -> Tensor:
        labels = situation.annotate(positions).cpu()
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise UserError(f"annotate gave the label {int(wrong[0])}, but the classes are 0 to {classes - 1}")
        return labels

    labelled = (~situation.available).nonzero().flatten()
    known = labels_of(labelled) if len(labelled) else labelled
    chosen, at_random = galaxy(
        probabilities,
        situation.available,
        known,
        situation.n,
        lambda position: int(labels_of(torch.tensor([position]))),
        situation.generator,
        known_elsewhere,
    )
    return Selection(chosen, at_random=int(at_random.sum()))


def choose_typiclust(situation: Situation) -> Selection:
    """The most typical images of the clusters with the fewest labels, on features that do not change."""
    outputs, available = situation.measurement.pool_outputs, situation.available
    classes = situation.classes or outputs.logits.shape[1]
    cap = max(CLUSTERS, 2 * classes)
    return Selection(typiclust(outputs.features, available, situation.n, situation.generator, cap))


def choose_epig(situation: Situation) -> Selection:
    """The images that tell most about the labels of validation images, one by one."""
    return take_top(situation.measurement.information, situation)


def _method(key: str, notation: str, choose: Callable[[Situation], Selection], *inputs: str, **facts: object) -> Method:
    return Method(key, notation, choose, frozenset(inputs), **facts)


LATER = {"random_first": True}  # those that need a trained last layer
OUTPUTS = ("outputs", "validation_outputs")

RIVALS = (
    _method("margin", "margin", by_logits(scores.margin), "logits", **LATER),
    _method("leastconf", "least confidence", by_logits(scores.least_confidence), "logits", **LATER),
    _method("entropy_det", "softmax entropy", by_logits(scores.entropy), "logits", **LATER),
    _method("badge", "BADGE", choose_badge, "outputs", **LATER),
    _method("coreset", "core-set", choose_coreset, "outputs"),
    _method("galaxy", "GALAXY", choose_galaxy, "logits", "annotation", **LATER),
    _method("galaxy_v", "GALAXY, validation", choose_galaxy_with_validation, *OUTPUTS, "annotation"),
    _method("typiclust", "TypiClust", choose_typiclust, "outputs", of_rotation_model=True),
    _method("epig", "EPIG", choose_epig, "information", max_classes=CLASSES, **LATER),
    _method("flqmi", "FLQMI", choose_flqmi, *OUTPUTS),
    _method("flqmi_z", "FLQMI, $z$", choose_flqmi_by_features, *OUTPUTS),
    _method("flqmi_rare", "FLQMI, rare classes", choose_flqmi_of_rare_classes, *OUTPUTS, "rare_classes"),
)
