"""What several test files share: the scripts as a user runs them, what a run leaves, processes, small data sets."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import runpy
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from alfk.cli.opening import _load
from alfk.data.split import Split
from alfk.experiment.folder import RunFolder
from alfk.experiment.workspace import Workspace
from alfk.support.errors import UserError
from mnist.custom_datasets import mnist
from svhn.custom_datasets import svhn

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

SMALL = ["--dataset", "DIGITS", "--device", "cpu", "-e", "4", "--unsup-epochs", "1"]  # mnist/run.py in seconds
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # the images are small, and other tests run beside these


class Done(NamedTuple):
    """What a script printed, and its exit status."""

    stdout: str
    stderr: str
    returncode: int


class SmallNet(nn.Module):
    """Two taps, of 6 channels and of 4 classes, and dropout, for images (B, 1, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.drop = nn.Conv2d(1, 6, 3), nn.Linear(6 * 36, 4), nn.Dropout(0.5)

    def forward(self, images):
        x = torch.relu(self.conv(images))
        logits = self.fc(self.drop(x.flatten(1)))
        return logits, [x, logits]


def random_problem(**options: object) -> tuple[SmallNet, Split, Split]:
    """(model, pool of 60, validation set of 30) of random images in 4 classes.

    Args:
        options: of the splits.
    """
    torch.manual_seed(0)
    splits = []
    for count, seed in ((60, 1), (30, 2)):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
        splits.append(Split(images, torch.arange(count) * 7 % 4, (0.5,), (0.3,), **options))
    return SmallNet(), *splits


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def some(seed: int, count: int) -> torch.Tensor:
    """Available images (count,) bool, at least one."""
    return (torch.rand(count, generator=seeded(seed)) < 0.8).index_fill_(0, torch.tensor([seed % count]), True)


def command(script: str, *arguments: object, torchrun: int = 0) -> list[str]:
    """The command line of a script, e.g. "mnist/run.py", or of so many processes of it under torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", torchrun] if torchrun else []
    return [sys.executable, *map(str, [*launch, ROOT / script, *arguments])]


def call(script: str, *arguments: object, status: int = 0) -> Done:
    """Run a script in this process, as `python3 script arguments` would, and check its exit status.

    A process of its own would take seconds for its imports alone.
    """
    out, err, code = io.StringIO(), io.StringIO(), None
    argv, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv = [str(ROOT / script), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv, sys.path[:] = argv, path
        torch.set_num_threads(threads)
        _load.cache_clear()  # a script starts without images
    done = Done(out.getvalue(), err.getvalue(), code or 0)
    assert done.returncode == status, f"{script} {arguments}\n{done.stdout}\n{done.stderr}"
    return done


def call_process(line: Sequence[str], status: int = 0, **options: object) -> Done:
    """Run a command line as a process, and check its exit status."""
    found = subprocess.run(line, capture_output=True, text=True, timeout=600, env=ONE_THREAD, **options)
    assert found.returncode == status, f"{line}\n{found.stdout}\n{found.stderr}"
    return Done(found.stdout, found.stderr, found.returncode)


def start(line: Sequence[str], **options: object) -> subprocess.Popen:
    """A process whose output can be read, in one stream, when it has ended."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen(line, env=ONE_THREAD, **pipes)


def refused(script: str, *arguments: object, words: str) -> None:
    """One line on stderr, besides warnings, and exit status 2."""
    lines = call(script, *arguments, status=2).stderr.splitlines(keepends=True)
    errors = "".join(line for line in lines if not line.startswith("warning: "))
    assert words in errors, errors
    assert len(errors.strip().splitlines()) == 1, errors


def refuses(function: Callable[[], object], words: str) -> None:
    """The call raises UserError, with one line that has these words."""
    with pytest.raises(UserError) as caught:
        function()
    text = str(caught.value)
    assert "\n" not in text, text
    assert words in text, text


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    """Look again and again whether something has happened. AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait until a file is there. AssertionError, with what the process printed, if it ends before."""

    def happened() -> bool:
        ended, found = process.poll() is not None, any(folder.rglob(pattern))
        assert found or not ended, f"no {pattern}:\n{process.communicate()[0]}"
        return found

    wait_until(happened)


def children(process: subprocess.Popen, saying: bytes = b"") -> list[int]:
    """The ids of a process's children in whose command line `saying` is."""
    return sorted(int(p.name) for p in Path("/proc").glob("[0-9]*") if is_child(p, process.pid, saying))


def is_child(entry: Path, parent: int, saying: bytes = b"") -> bool:
    """Whether the process of a folder in /proc is a child of `parent` and `saying` is in its command line."""
    try:
        mine = f"PPid:\t{parent}\n" in (entry / "status").read_text()
        return mine and saying in (entry / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return False


def outcome(folder: Path) -> dict[str, object]:
    """What must be reproduced: selected indices, weights and accuracies of all runs; not times and places."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith("index_list") and path.suffix == ".npy":
            found[name] = np.load(path).tolist()
        elif path.suffix == ".pt":
            state = torch.load(path, weights_only=True)["state"]
            found[name] = {key: value.flatten().tolist() for key, value in state.items()}
        elif path.name == "results.jsonl":
            lines = records(path.parent)
            for line in lines:
                del line["seconds"], line["peak_memory_mib"]
            found[name] = sorted(lines, key=lambda r: (r["method"], r["b"]))
    return found


def records(folder: Path) -> list[dict]:
    """The results lines of a run's folder, in the order they were written, without their checksums."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "crc32"} for line in lines]


def made_up_record(**entries: object) -> dict:
    """A results record of a run of DIGITS that nobody made, with the entries given."""
    return {
        **{"dataset": "DIGITS", "run": 0, "seed": 0, "method": "Rzg_pz", "L": 80, "ir": 100, "nr": 0.0},
        **{"init": "rotation", "ensemble": 1, "select": "test", "b": 0, "labelled": 15, "labelled_share": 1.67},
        **{"accuracy": 50.0, "accuracy_members": [50.0], "epochs": [3], "accuracy_per_class": [50.0] * 10},
        **{"selected_histogram": [2] * 5 + [1] * 5, "pseudo_label_accuracy": 40.0, "misclassified": 9, "centres": 9},
        **{"pseudo_label_accuracy_per_class": [40.0] * 10, "at_random": 0, "passes": {"forward": 9, "backward": 9}},
        **{"seconds": {"describe": 1.0, "acquire": 1.0, "retrain": 1.0}, "peak_memory_mib": 300.0},
        **entries,
    }


def draw(datadir: Path, *arguments: object, status: int = 0) -> Done:
    """run_plot.py, into the folder figures of `datadir`."""
    return call("run_plot.py", "--datadir", datadir, "--out", datadir / "figures", *arguments, status=status)


def workspace(experiment, root: Path, train, test, number: int = 0, seed: int = 0, **more) -> Workspace:
    """A run of an experiment in the folder `root`, on the CPU."""
    folder = RunFolder(root, number)
    folder.create()
    return Workspace(experiment, folder, train, test, seed, train.device, **more)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """An HTTP server in this process that has the files of a folder, not proxied; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


# Data sets


def idx(array: np.ndarray) -> bytes:
    """The content of an IDX file of bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_files(seed: int = 0) -> dict[str, bytes]:
    """The content of four small files, not gzipped, by MNIST's names: 12 training and 5 test images."""
    rng, found = np.random.default_rng(seed), {}
    for name, count in zip(mnist.FILES, (12, 12, 5, 5), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        found[name] = idx(rng.integers(0, 10, shape, dtype=np.uint8))
    return found


@contextlib.contextmanager
def official_mnist(server: Path) -> Iterator[None]:
    """Inside the block the small files are MNIST's official ones. They are written, gzipped, into the folder `server`;
    no mirror responds.
    """
    server.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        resources = []
        for name, content in small_files().items():
            zipped = gzip.compress(content)
            (server / f"{name}.gz").write_bytes(zipped)
            patch.setitem(mnist.SHA256, name, hashlib.sha256(content).hexdigest())
            resources.append((f"{name}.gz", hashlib.md5(zipped).hexdigest()))
        patch.setattr(torchvision.datasets.MNIST, "resources", resources)
        patch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
        yield


@contextlib.contextmanager
def mnist_mirror(server: Path) -> Iterator[None]:
    """Inside the block the second mirror of MNIST has the files of a folder; the first one does not respond."""
    with served(server) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", f"{place}/"])
        yield


def write_mat(path: Path, counts: Sequence[int], seed: int, compressed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A .mat file in SVHN's form, of random pixels: its images (N, 3, 32, 32) and labels, 0 to 9."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(10), counts))
    images = generator.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": digits}, do_compression=compressed)
    return images, labels


@contextlib.contextmanager
def official_svhn(raw: Path) -> Iterator[None]:
    """Inside the block the three .mat files of a folder are SVHN's official ones, also on a server."""
    right = {part: hashlib.md5((raw / name).read_bytes()).hexdigest() for part, name in svhn.NAMES.items()}
    with served(raw) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(svhn, "MD5", right)
        patch.setattr(svhn, "URLS", {part: f"{place}/{name}" for part, name in svhn.NAMES.items()})
        yield


def picture(seed: int, height: int = 80, width: int = 100) -> Image.Image:
    """A smooth colourful image, as photos are smooth."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_tree(root: Path, classes: int = 4, train: int = 5, val: int = 3, suffix: str = "JPEG") -> Path:
    """train/<class>/*.JPEG and val/<class>/*.JPEG, or files of another type."""
    for part, count in (("train", train), ("val", val)):
        for c in range(classes):
            (root / part / f"n{c:02}").mkdir(parents=True)
            for i in range(count):
                seed = 1000 * (part == "val") + 100 * c + i
                path = root / part / f"n{c:02}" / f"{i}.{suffix}"
                picture(seed, 50 + seed % 37, 50 + seed % 53).save(path, quality=95)
    return root


def coloured_digits(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits in random pairs of colours: (N, size, size, 3) uint8 and (N,) labels."""
    bunch = load_digits()
    ink = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    ink = F.interpolate(ink, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()
    front, back = np.random.default_rng(seed).uniform(0, 255, (2, len(ink), 1, 1, 3))
    return (ink * front + (1 - ink) * back).astype(np.uint8), bunch.target


def write_digit_mats(folder: Path) -> Path:
    """The three .mat files of SVHN with 240 images; the label of digit 0 is 10."""
    images, labels = coloured_digits(32)
    start = 0
    for part, count in (("train", 160), ("test", 40), ("extra", 40)):
        rows = slice(start, start + count)
        digits = np.where(labels[rows] == 0, 10, labels[rows]).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{part}_32x32.mat", {"X": images[rows].transpose(1, 2, 3, 0), "y": digits})
        start += count
    return folder


def write_digit_tree(folder: Path) -> Path:
    """train/<digit>/*.JPEG and val/<digit>/*.JPEG, 12 and 6 images of 96 pixels in each class."""
    images, labels = coloured_digits(96)
    for digit in range(10):
        for i, row in enumerate(np.flatnonzero(labels == digit)[:18]):
            place = folder / ("train" if i < 12 else "val") / f"n{digit:02}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(place / f"{i}.JPEG", quality=95)
    return folder
