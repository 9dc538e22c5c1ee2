"""DIGITS: the 1,797 handwritten digits that scikit-learn ships (UCI optical recognition, 8x8 pixels)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alfk.data.bias import split_validation
from alfk.data.split import Split
from alfk.support.seeding import generator

MEAN, STD = (0.1554,), (0.2769,)  # of the training images, enlarged
TEST_PER_CLASS = 40


def load_digits(folder: Path | None = None, strict: bool = True) -> tuple[Split, Split]:
    """1,397 training and 400 test images, 40 of each class, the same in all runs.

    Args:
        folder, strict: without effect; for data sets in files.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # slow to import

    bunch = sklearn_digits()
    images = enlarge(torch.from_numpy(bunch.images))
    labels = torch.from_numpy(bunch.target).long()
    test, train = split_validation(labels, (TEST_PER_CLASS,) * 10, generator(0, "DIGITS", "test"))
    return Split(images[train], labels[train], MEAN, STD), Split(images[test], labels[test], MEAN, STD)


def enlarge(images: Tensor) -> Tensor:
    """(N, 8, 8), values 0 to 16 -> (N, 1, 28, 28) uint8: enlarged to 20x20, in a margin of 4 as in MNIST."""
    large = F.interpolate(images.float().unsqueeze(1), size=20, mode="bilinear", align_corners=False)
    return F.pad((large * (255 / 16)).round().to(torch.uint8), (4, 4, 4, 4))
