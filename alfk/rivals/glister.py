"""GLISTER: images whose gradient steps of the last layer reduce the loss of the validation set most.

The gradient of an image's cross-entropy by weights and bias of the last layer is g = a [1; z]', with a = p - e_y and z
the layer's input; y is the label of labelled and validation images, the predicted class of all others. W is the last
layer:

    1. W <- W - rate sum_{i labelled} g_i
    2. G = mean of g over the validation images, with p from W
    3. choose the available image j with the largest <g_j, G>, to first order the decrease of the validation loss by a
       step along g_j, divided by rate
    4. W <- W - rate g_j; continue with 2

W is changed for validation images only: g of pool images is from the network as it is.

References: Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, GLISTER: generalization based data subset selection for
efficient and robust learning, AAAI 2021.
"""

import torch
from torch import Tensor

from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.networks.outputs import Outputs
from alfk.rivals.annotator import known_labels
from alfk.rivals.gradients import gradients, row_slices

RATE = 0.05  # one for all data sets; the authors take the learning rate of the training


def glister(
    pool: Outputs,
    validation: Outputs,
    validation_labels: Tensor,
    available: Tensor,
    labels: Tensor,
    n: int,
    rate: float = RATE,
) -> tuple[Tensor, Tensor]:
    """The n images in the order of choice, and <g_j, G> of each. Of equal ones the lowest is taken.

    O(n (N + V) C D) operations; O((N + V) C) memory in addition to the inputs.

    Args:
        pool, validation: features (N, D) and (V, D), and logits, as tensors on one device.
        validation_labels: (V,) int64.
        available: (N,) bool, images that are not labelled; all others are.
        labels: (k,) int64, of the labelled images in the order of their positions.
        n: query size.
        rate: length of the steps.
    Returns:
        (n,) int64 and (n,) float32, on the CPU.
    Raises:
        ValueError: fewer than n images are available, or there is not one label for each of the others.
    """
    z, left = pool.features, available.to(pool.features.device, copy=True)
    labelled = (~left).nonzero().flatten()
    if not 1 <= n <= int(left.sum()) or len(labels) != len(labelled):
        raise ValueError(f"cannot choose {n} of {int(left.sum())} images, of {len(left)} with {len(labels)} labels")
    a, logits = gradients(pool.logits), validation.logits.double()
    step = summed(gradients(pool.logits[labelled], labels), z[labelled])
    chosen, gains = [], []
    for _ in range(n):
        logits -= rate * times(validation.features, step)
        mean = summed(gradients(logits, validation_labels), validation.features) / len(logits)
        gain = torch.cat([(a[rows] * times(z[rows], mean)).sum(1) for rows in row_slices(*a.shape)])
        best = gain.masked_fill_(~left, -torch.inf).argmax()
        step = summed(a[best, None], z[best, None])
        left[best] = False
        chosen.append(best)
        gains.append(gain[best])
    return torch.stack(chosen).cpu(), torch.stack(gains).cpu()


def summed(a: Tensor, z: Tensor) -> Tensor:
    """sum_i a_i [1; z_i]' of gradients (N, C) and features (N, D): (C, 1 + D)."""
    return torch.cat([a.sum(0)[:, None], a.T @ z], 1)


def times(z: Tensor, matrix: Tensor) -> Tensor:
    """The products of [1; z_i] and a matrix (C, 1 + D): (N, C)."""
    return torch.addmm(matrix[:, 0], z, matrix[:, 1:].T)


def choose_glister(situation: Situation) -> Selection:
    """The images that `glister` chooses. The annotator is asked for labels of labelled images alone."""
    pool, validation = situation.measurement.pool_outputs, situation.measurement.validation_outputs
    labels = known_labels(situation, pool.logits.shape[1])
    chosen, gains = glister(pool, validation, situation.validation_labels, situation.available, labels, situation.n)
    return Selection(chosen, score=gains)


METHODS = (
    Method(
        "glister",
        "GLISTER",
        choose_glister,
        frozenset({"outputs", "validation_outputs", "labels"}),
        random_first=True,
    ),
)
