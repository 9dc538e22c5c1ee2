"""Recordings and data sets, and at the end of a run what was skipped or replaced where the shared data are not here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import ROOT, SHARED, write_digit_tree

torch.set_num_threads(1)  # the tensors of tests are small

LABELS = "true", "pred"
X2 = slice(10, 30)  # where the 20 values of L=20 stand among the 80 of L=80


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def parity() -> dict[str, np.ndarray]:
    """Inputs and outputs of the paper's released experiments, recorded on a small real MNIST problem.

    pool_images (1700, 28, 28) uint8, pool_labels, val_images (600, 28, 28), val_labels; weights/* of a LeNet; and for
    the release's methods none (Rz), gradAbl (Rzg_true), grad (Rzg_pred) and gradFmap (Rzg_pz), L = 20 and 80:

        <method>_L<L>/pool, val    (N, L, 2): z and, but for `none`, g; of gradFmap's pool z is standardised, and its
                                   val has a third column, g for the predicted label
        <method>_L<L>/selected_n   (n,) sorted positions that were chosen, n = 400 and 60
        <method>_L<L>/first_center_n    the misclassified validation image that k-centre starts from

    The file holds every value once: z and g for the true and the predicted label are the same in all methods, and
    those of L=20 are a part of those of L=80 (but for the labels of gradFmap's pool).
    """
    with np.load(Path(__file__).parent / "parity" / "mnist_lenet.npz", allow_pickle=False) as file:
        stored = dict(file)
    found = {name: value for name, value in stored.items() if name.split("/")[0] not in ("z", "g", "gradFmap")}
    for length, part in ((20, X2), (80, slice(None))):
        pool, val = stored["z/pool"][:, part], stored["z/val"][:, part]
        true, pred = ({side: stored[f"g/{label}/{side}"][:, part] for side in ("pool", "val")} for label in LABELS)
        found[f"none_L{length}/pool"], found[f"none_L{length}/val"] = pool[..., None], val[..., None]
        for name, g in (("gradAbl", true), ("grad", pred)):
            found[f"{name}_L{length}/pool"] = np.stack([pool, g["pool"]], 2)
            found[f"{name}_L{length}/val"] = np.stack([val, g["val"]], 2)
        standardised = stored["gradFmap/z/pool"][:, part]
        found[f"gradFmap_L{length}/pool"] = np.stack([standardised, stored[f"gradFmap/g/pool_L{length}"]], 2)
        found[f"gradFmap_L{length}/val"] = np.stack([val, true["val"], pred["val"]], 2)
    return found


@pytest.fixture(scope="session")
def mnist_raw() -> Path:
    """A folder with the four original MNIST files."""
    for path in (SHARED / "data" / "MNIST" / "raw", ROOT / "local_data" / "MNIST" / "raw"):
        if (path / "train-images-idx3-ubyte.gz").exists():
            return path
    pytest.skip("needs MNIST's four files")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of JPEG files: ten ImageNet classes, or scikit-learn's digits enlarged and in colour."""
    real = SHARED / "data" / "ImageNet-mini"
    return real if real.exists() else write_digit_tree(tmp_path_factory.mktemp("photos"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Without ../shared/data one line: what ran on other images, what was skipped and why."""
    if (SHARED / "data").exists():
        return
    skipped = [f"{r.nodeid.split('::')[-1]} ({reason(r)})" for r in terminalreporter.stats.get("skipped", ())]
    terminalreporter.write_line(
        f"no {SHARED / 'data'}: the photo loaders were tested on scikit-learn's digits; "
        f"skipped: {', '.join(skipped) or 'nothing'}"
    )


def reason(report: pytest.TestReport) -> str:
    return report.longrepr[2].removeprefix("Skipped: ")
