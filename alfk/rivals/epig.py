"""EPIG, expected predictive information gain: what an image's label tells about those of random validation images.

With p_k(c|x) the probabilities of sample k of K, p their mean over k, and x* one of T target images:

    P(c, d) = 1/K sum_k p_k(c|x) p_k(d|x*)                              joint distribution of two predictions
    EPIG(x) = H[p(y|x)] + mean over x* of (H[p(y*|x*)] - H[P(y, y*)])   in nats

Sample k has to be the same network for x and x*: K dropout masks are drawn once, and the k-th is used for every image
of pool and validation set (`shared_masks`).

References: Bickford Smith, Kirsch, Farquhar, Gal, Foster and Rainforth, Prediction-oriented Bayesian active learning,
AISTATS 2023.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from alfk.method import matching
from alfk.method.inputs import POOL, VALIDATION, File, Input, Task, register_input
from alfk.method.registry import Method, Situation, take_top
from alfk.method.selection import Selection
from alfk.method.uncertainty import are_equal, equal_samples
from alfk.networks.passes import require_finite
from alfk.rivals.shared_masks import shared_masks
from alfk.support import distributed
from alfk.support.errors import UserError

TARGETS = 1000  # validation images, at most, about which EPIG measures information
JOINT = 2**27  # joint probabilities of a pool image and the targets, at most, as on a CPU
TILE = 2**20  # joint probabilities in a tile on a CPU: 8 MiB, which is fastest
CLASSES = 500  # most classes: the joint distribution of two predictions has C^2 probabilities


@torch.no_grad()
def epig(pool: Tensor | Iterable[Tensor], targets: Tensor, budget: int | None = None) -> Tensor:
    """EPIG of every pool image; the larger, the earlier it is chosen.

    2 N T K C^2 floating-point operations and N T C^2 logarithms, in float64, since float32 errs by more than the
    scores of many images.

    Args:
        pool: (N, K, C) logits of K samples, or batches of them, on the targets' device.
        targets: (T, K, C) logits of the same K samples for the target images.
        budget: bytes that the joint probabilities of a tile may take; by default `matching.budget`.
    Returns:
        (N,) float64 in nats, from 0 to min(BALD, log C), with an error of about 1e-15.
    Raises:
        ValueError: the joint probabilities of one image exceed `budget`.
    """
    images, samples, classes = targets.shape
    device = targets.device
    budget = matching.budget(device) if budget is None else budget
    size = images * classes**2  # joint probabilities of one pool image
    if 8 * size > budget:
        raise ValueError(f"{images:,} x {classes:,} x {classes:,} joint probabilities exceed {budget:,} bytes")
    other = targets.double().softmax(2).transpose(0, 1)  # (K, T, C)
    target_entropy = torch.special.entr(other.mean(0)).sum(1).mean()
    other = other.reshape(samples, images * classes) / samples
    height = max(1, (budget // 8 if device.type == "cuda" else min(TILE, budget // 8)) // size)
    # Made once: between small tensors that stay, an allocator would find new memory for each of thousands of tiles.
    joints, logs = (torch.empty(height * classes, images * classes, dtype=other.dtype, device=device) for _ in range(2))

    def score(p: Tensor) -> Tensor:
        rows = p.transpose(1, 2).reshape(-1, samples)
        joint = torch.mm(rows, other, out=joints[: len(rows)])  # (r C, T C)
        torch.clamp(joint, min=torch.finfo(joint.dtype).tiny, out=logs[: len(rows)])
        p_log_p = logs[: len(rows)].log_().mul_(joint)  # in a fifth of the time of `torch.special.entr`
        negative_entropy = p_log_p.view(len(p), -1).sum(1) / images
        return torch.special.entr(p.mean(1)).sum(1) + target_entropy + negative_entropy

    batches = [pool] if isinstance(pool, Tensor) else pool
    tiles = (tile for batch in batches for tile in batch.split(height))
    scores = [score(tile.double().softmax(2)).clamp_(min=0) for tile in tiles]
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64, device=device)


def expected_information(task: Task) -> dict[str, Tensor]:
    """EPIG of every pool image about at most TARGETS random validation images: (N,) float64 in nats.

    Fewer targets if their joint probabilities with a pool image need too much memory: with more than 366 classes on a
    CPU, or with 183 on a GPU of 8 GiB. The same dropout masks are used for all images.

    Raises:
        UserError: there is one sample, samples are equal, or a logit is not finite; errors of `shared_masks`.
    """
    (model,), pool, validation, generator = task.models, task.pool, task.validation, task.sampling.generator
    samples = task.sampling.samples
    if samples == 1:
        raise UserError("epig measures what samples have in common, of which there is one: take more samples")
    drawn, found = torch.randperm(len(validation), generator=generator), []
    with shared_masks(model, samples, generator) as logits:
        classes = logits(next(validation.subset([0]).batches(1))[0]).shape[2]
        most = min(JOINT, matching.budget(pool.device) // 8) // classes**2
        rows = drawn[: max(1, min(TARGETS, most))].sort().values
        targets = torch.cat([logits(images) for images, _ in validation.subset(rows).batches(task.batch_size)])
        finite = targets.isfinite().flatten(1).all(1, keepdim=True)
        require_finite(finite, ("logits",), rows, [model], validation, VALIDATION)
        if are_equal(targets, targets[:, :1]):
            raise equal_samples(samples)

        def score(images: Tensor, positions: Tensor) -> tuple[Tensor]:
            return (epig(logits(images), targets),)

        for positions, (values,) in distributed.map_batches(score, pool, task.batch_size):
            require_finite(values.isfinite().unsqueeze(1), ("logits",), positions, [model], pool, POOL)
            found.append(values)
    return {"information": torch.cat(found)}


def choose_epig(situation: Situation) -> Selection:
    """The images of the largest EPIG, each independently of the others."""
    return take_top(situation.measurement.information, situation)


INFORMATION = register_input(
    Input(
        "information",
        "expected information gain of every pool image about the labels of random validation images (EPIG)",
        expected_information,
        (File("information", "expected information gain of every pool image about validation images, in nats"),),
        validation="images",
    )
)

METHODS = (Method("epig", "EPIG", choose_epig, frozenset({INFORMATION.key}), random_first=True, max_classes=CLASSES),)
