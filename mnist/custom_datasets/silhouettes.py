"""SILHOUETTES: grey silhouettes of ten animals, 28x28 pixels, from one file of four arrays.

The file holds 9,716 of the 10,000 images of the Python package animal-mnist 0.4, without copies of others, divided into
training and test images. Classes 0 to 9: bear, bird, cat, cow, dog, elephant, giraffe, horse, sheep, zebra.
"""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from alfk.data.official import warn_or_refuse
from alfk.data.split import UNOFFICIAL, Split
from alfk.support.errors import UserError
from alfk.support.files import read_file

MEAN, STD = (0.2732,), (0.4055,)
CLASSES = 10
FILE = "silhouettes.npz"
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
SHA256 = "7eb1d37ac76857085de9005ac14b9cd64104821747fb4cea70e3e62242fc1df2"  # of the arrays' bytes


def load_silhouettes(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 7,716 training and 2,000 test images, 200 test images of each class.

    Args:
        folder: local_data/SILHOUETTES, with the file silhouettes.npz.
        strict: refuse other images than these; else warn, and name their content in `Split.source`.
    Raises:
        UserError: the file is missing, damaged, or does not fit; the message names it.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"there is no {path}: put it there; it is made of the package animal-mnist 0.4")
    arrays = _read(path)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    source = None
    if digest != SHA256:
        problem = f"{path}: not the known content (SHA-256), figures are not those of SILHOUETTES"
        warn_or_refuse(problem, strict, "replace it, or take another file of the same form by --allow-subset")
        source = f"{UNOFFICIAL} {digest}"
    images, labels = arrays[::2], [array.astype(np.int64) for array in arrays[1::2]]
    train, test = (
        Split(torch.from_numpy(images[i]).unsqueeze(1), torch.from_numpy(labels[i]), MEAN, STD, source=source)
        for i in (0, 1)
    )
    return train, test


def _read(path: Path) -> list[np.ndarray]:
    """The four arrays, in the order of ARRAYS. Raises UserError."""
    content = read_file(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = [file[name] for name in ARRAYS]
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} is damaged, or not an .npz file of {', '.join(ARRAYS)}: replace it") from None
    for images, labels in (arrays[:2], arrays[2:]):
        if images.dtype != np.uint8 or labels.dtype != np.uint8 or images.shape != (len(labels), 28, 28):
            shapes = f"{images.shape} {images.dtype} and {labels.shape} {labels.dtype}"
            raise UserError(f"{path} has images and labels {shapes}, not (N, 28, 28) and (N,) uint8: replace it")
        if not len(labels) or labels.max() >= CLASSES:
            raise UserError(f"{path} has no images, or labels that are not 0 to {CLASSES - 1}: replace it")
    return arrays
