"""Where the shared recordings and data are, if they are here: tests that need them are skipped elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tensors of tests are small

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def parity() -> dict[str, np.ndarray]:
    """Outputs recorded from the paper's released experiments."""
    path = SHARED / "parity" / "mnist_lenet.npz"
    if not path.exists():
        pytest.skip("no parity recordings here")
    with np.load(path, allow_pickle=False) as recorded:
        return dict(recorded)


@pytest.fixture(scope="session")
def mnist_raw() -> Path:
    """A folder with the four original MNIST files."""
    for path in (SHARED / "data" / "MNIST" / "raw", ROOT / "local_data" / "MNIST" / "raw"):
        if (path / "train-images-idx3-ubyte.gz").exists():
            return path
    pytest.skip("no MNIST files here")
