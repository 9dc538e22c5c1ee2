"""The table of damages of test_faults.py, over the files that data sets' loaders and the visualisation read.

Each case ends with what is read from the undamaged files, to the bit, or with one line (in scripts: exit status 2) that
names the file, or the other one of .npy and .json, and a fix; what the line says is done, and after it the result is
that of the undamaged files. Where other files are allowed a case may also end with a split whose `source` differs: a
run is bound to its source and refuses another one.

One fault is not seen, and is stated as such: another image that is put over one of a list, under its name
(docs/data_sets.md).
"""

import contextlib
import dataclasses
import functools
import gzip
import itertools
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from alfk.data.split import Dataset, Split
from alfk.support.errors import UserError
from imagenet.config import find
from imagenet.custom_datasets.image_folder import load_folder
from mnist.custom_datasets import mnist
from svhn.custom_datasets import svhn
from tests.experiment.test_faults import DAMAGES, Case, Hangs, delete, in_time, without_roots_rights
from tests.helpers import idx, mnist_mirror, official_mnist, official_svhn, small_files, write_mat, write_tree

PARTS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Scene:
    """Files and what reads them.

    Attributes:
        root: the folder of which every case takes a copy.
        other: the same folder with other images, or of another run.
        read: what is read from a copy. It raises UserError.
        command: the command that makes files again, for lines that say so.
    """

    root: Path
    other: Path
    read: Callable[[Path], Any]
    command: Callable[[Path], None] = lambda copy: None

    @functools.cached_property
    def wanted(self) -> Any:
        """What is read from the undamaged folder."""
        return self.read(self.root)


def end_of(scene: Scene, name: str, partner: str, damage: str, copy: Path) -> str:
    """How reading a copy ends after one of its files was damaged.

    Args:
        name, partner: the file and another one of its type, below the root.
    Returns:
        "equal", "fixed" or "other source", which may be right; "silent" or a description, which are not.
    """
    path, wanted = copy / name, scene.wanted
    spoil(damage)(Case(path, scene.other / name, scene.root / partner))
    try:
        with without_roots_rights() if damage == "unreadable" else contextlib.nullcontext():
            found, line = attempt(scene, copy)
        if line and not follow(scene, line, path, copy):
            return f"no fix: {line}"
        if line:
            found, after = attempt(scene, copy)
            if after:
                return f"dead end: {line} -> {after}"
        if found != wanted:
            return f"silent {line}".strip() if found[0] == wanted[0] else "other source"
        return "fixed" if line else "equal"
    except Hangs:
        return "hang"
    except Exception as problem:
        return f"traceback: {type(problem).__name__}: {problem}"


def attempt(scene: Scene, copy: Path) -> tuple[Any, str]:
    """What is read from a copy, and the line if it is refused."""
    try:
        return scene.read(copy), ""
    except UserError as problem:
        return None, str(problem)


def follow(scene: Scene, line: str, path: Path, copy: Path) -> bool:
    """Do what a line says; False if it is not one line, does not name the file, or says nothing."""
    named = [each for each in (path, path.with_suffix(".npy"), path.with_suffix(".json")) if str(each) in line]
    if not named or "\n" in line:
        return False
    if "Permission denied" in line:
        path.chmod(0o600)
    elif "replace" in line:
        delete(path)
        shutil.copy(scene.root / path.relative_to(copy), path)
    elif "delete it" in line or "remove it" in line:
        delete(named[0])
    elif "own command" not in line:
        return False
    if "own command" in line or "run.py the folder" in line:
        scene.command(copy)
    return True


def spoil(damage: str) -> Callable[[Case], object]:
    """A damage; for "nan", "wrong shape" and "wrong type" what corresponds to it in files of data sets."""

    def change(case: Case) -> None:
        kind = "idx" if "ubyte" in case.path.name else case.path.suffix
        FORMS.get(kind, lambda path, _: DAMAGES[damage](case))(case.path, damage)

    return change if damage in ("nan", "wrong shape", "wrong type") else DAMAGES[damage]


def spoil_idx(path: Path, damage: str) -> None:
    """A label or pixel of 255, one image less, or the type of floats; gzipped if the file is."""
    zipped = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    array = np.frombuffer(content, np.uint8, offset=16 if "images" in path.name else 8).copy()
    array = array.reshape(-1, 28, 28) if "images" in path.name else array
    if damage == "nan":
        array.flat[-1] = 255
    content = idx(array[:-1] if damage == "wrong shape" else array)
    content = content[:2] + b"\x0d" + content[3:] if damage == "wrong type" else content
    path.write_bytes(gzip.compress(content) if zipped else content)


def spoil_mat(path: Path, damage: str) -> None:
    """A label that is no number, images of another size, or of floats."""
    content = scipy.io.loadmat(path)
    pixels, digits = content["X"], content["y"].astype(np.float64)
    if damage == "nan":
        digits[-1] = np.nan
    pixels = pixels[:-1] if damage == "wrong shape" else pixels.astype(np.float64) if damage == "wrong type" else pixels
    scipy.io.savemat(path, {"X": pixels, "y": digits})


def spoil_png(path: Path, damage: str) -> None:
    """Values without a range, more lines than there are, or another type of file."""
    if damage == "nan":
        Image.fromarray(np.full((60, 60), np.nan, np.float32)).save(path, format="TIFF")
    elif damage == "wrong type":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    else:
        content = bytearray(path.read_bytes())
        content[16:20] = (2 * int.from_bytes(content[16:20])).to_bytes(4)
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
        path.write_bytes(content)


FORMS = {"idx": spoil_idx, ".mat": spoil_mat, ".png": spoil_png}


def partner_of(name: str, part: str) -> str:
    """The file of the other split, "train" or `part`."""
    return name.replace("train", part) if "train" in name else name.replace(part, "train")


def content_of(*splits: Split) -> tuple[list[str | None], list[bytes]]:
    """The sources of splits, and their images and labels."""
    tensors = [tensor for split in splits for tensor in (split.images, split.labels)]
    return [split.source for split in splits], [tensor.numpy().tobytes() for tensor in tensors]


def sample(names: Sequence[str]) -> list[tuple[str, str]]:
    """(file, damage) for every damage, the files in turn."""
    return list(zip(itertools.cycle(names), DAMAGES))


# MNIST


MNIST_FILES = [f"raw/{name}{suffix}" for suffix in ("", ".gz") for name in mnist.FILES]


@pytest.fixture(scope="module")
def mnist_scenes(tmp_path_factory):
    """The four files, plain and gzipped, official and online, by suffix."""
    folder, found = tmp_path_factory.mktemp("mnist"), {}
    for suffix in ("", ".gz"):
        for seed in (0, 1):
            raw = folder / f"{seed}{suffix}" / "raw"
            raw.mkdir(parents=True)
            for name, content in small_files(seed).items():
                (raw / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
        found[suffix] = Scene(folder / f"0{suffix}", folder / f"1{suffix}", read_mnist)
    with official_mnist(folder / "server"), mnist_mirror(folder / "server"):
        yield found


def read_mnist(folder: Path) -> Any:
    with in_time():
        return content_of(*mnist.load_mnist(folder))


@pytest.mark.parametrize(("name", "damage"), sample(MNIST_FILES))
def test_a_damaged_file_of_mnist(mnist_scenes, name, damage, tmp_path):
    scene = mnist_scenes[Path(name).suffix]
    copy = shutil.copytree(scene.root, tmp_path / "copy")
    assert end_of(scene, name, partner_of(name, "t10k"), damage, copy) in ("equal", "fixed")


# SVHN


MATS = {"raw/train_32x32.mat": "raw/test_32x32.mat", "raw/test_32x32.mat": "raw/train_32x32.mat"}
MATS["raw/extra_32x32.mat"] = "raw/train_32x32.mat"
OF_THE_SAME_FORM = ("a bit in the data", "a bit in the header", "another run's", "another method's")
KINDS = ("images", "labels")
CONVERTED = [f"processed/{part}_{kind}{end}" for part in PARTS for kind in KINDS for end in (".npy", ".json")]


@pytest.fixture(scope="module")
def svhn_scene(tmp_path_factory):
    """Three small .mat files, official and online, one of them compressed as the real ones are; and their arrays."""
    folder = tmp_path_factory.mktemp("svhn")
    for seed in (0, 1):
        (folder / str(seed) / "raw").mkdir(parents=True)
        for count, (part, name) in enumerate(svhn.NAMES.items(), 3):
            counts = [1] * count + [0] * (10 - count)
            write_mat(folder / str(seed) / "raw" / name, counts, 10 * seed + count, compressed=part == "extra")
    svhn.load_svhn(folder / "1", strict=False)
    with official_svhn(folder / "0" / "raw"):
        read_svhn(folder / "0")
        yield Scene(folder / "0", folder / "1", read_svhn)


def read_svhn(folder: Path, strict: bool = True) -> Any:
    with in_time():
        return content_of(*svhn.load_svhn(folder, strict))


@pytest.mark.parametrize(("name", "damage"), sample(CONVERTED))
def test_a_damaged_array_of_svhn(svhn_scene, name, damage, tmp_path):
    copy = shutil.copytree(svhn_scene.root, tmp_path / "copy")
    assert end_of(svhn_scene, name, partner_of(name, "test"), damage, copy) in ("equal", "fixed")


@pytest.mark.parametrize(("name", "damage"), sample(list(MATS)))
def test_a_damaged_mat_file(svhn_scene, name, damage, tmp_path):
    """Before it was converted, and after."""
    for converted in (False, True):
        copy = shutil.copytree(svhn_scene.root, tmp_path / f"copy {converted}")
        converted or shutil.rmtree(copy / "processed")
        assert end_of(svhn_scene, name, MATS[name], damage, copy) in ("equal", "fixed")


@pytest.mark.parametrize(("name", "damage"), sample(list(reversed(MATS))))
def test_a_damaged_mat_file_that_need_not_be_official(svhn_scene, name, damage, tmp_path):
    """A changed bit or another file may give a split whose source, with the md5 of the file, differs."""
    copy = shutil.copytree(svhn_scene.root, tmp_path / "copy")
    shutil.rmtree(copy / "processed")
    scene = dataclasses.replace(svhn_scene, read=lambda folder: read_svhn(folder, strict=False))
    found = end_of(scene, name, MATS[name], damage, copy)
    assert found in ("equal", "fixed") or (damage in OF_THE_SAME_FORM and found == "other source")


# Folders of images


LISTS = [
    f"processed/{part}_{what}{end}"
    for part in ("train", "val")
    for what in ("paths", "labels")
    for end in (".npy", ".json")
]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """The lists of the files of a tree of PNG files, and those of another tree."""
    folder = tmp_path_factory.mktemp("lists")
    for name, train in (("tree", 3), ("other", 4)):
        tree = write_tree(folder / name, classes=2, train=train, val=2, suffix="png")
        read_lists(folder / f"{name}'s", tree)
    return Scene(folder / "tree's", folder / "other's", lambda copy: read_lists(copy, folder / "tree"))


def read_lists(folder: Path, tree: Path | None) -> Any:
    with in_time():
        return facts(load_folder(folder, tree, 32, "torchvision", 1))


def facts(found: Dataset) -> Any:
    """The sources of the splits, and their lists."""
    splits = found.train, found.validation
    lists = [(s.store.paths.tolist(), s.labels.tolist(), s.classes, s.left_out) for s in splits]
    return [s.source for s in splits], lists


@pytest.mark.parametrize(("name", "damage"), sample(LISTS))
def test_a_damaged_list_of_image_files(lists, name, damage, tmp_path):
    copy = shutil.copytree(lists.root, tmp_path / "copy")
    assert end_of(lists, name, partner_of(name, "val"), damage, copy) in ("equal", "fixed")


ROOTS = {
    "processed/val_labels.json": lambda folder: read_lists(folder, None),
    "processed/train_labels.json": lambda folder: facts(find(folder).load(folder)),
}


@pytest.mark.parametrize(("name", "damage"), sample(list(ROOTS)))
def test_a_damaged_list_that_names_the_folder(lists, name, damage, tmp_path):
    """Where no folder is given: for the scripts by val's list, for pictures by train's. The list of other images names
    these.
    """
    scene = dataclasses.replace(lists, read=ROOTS[name], command=lists.read)
    copy = shutil.copytree(lists.root, tmp_path / "copy")
    found = end_of(scene, name, partner_of(name, "val"), damage, copy)
    assert found in ("equal", "fixed") or (damage, found) == ("another run's", "other source")


IMAGE = "tree/train/n00/1.png"
UNSEEN = ("another run's", "another method's")  # an image over another one


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image(tmp_path, damage):
    """It is replaced. What is no file is no image: without it the source differs."""
    scene = Scene(tmp_path / "whole", tmp_path / "other", read_images)
    write_tree(tmp_path / "whole" / "tree", classes=2, train=3, val=2, suffix="png")
    write_tree(tmp_path / "other" / "tree", classes=1, train=4, val=1, suffix="png")
    (tmp_path / "other" / IMAGE).with_name("3.png").replace(tmp_path / "other" / IMAGE)
    copy = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    assert read_images(copy) == scene.wanted
    found = end_of(scene, IMAGE, "tree/val/n00/1.png", damage, copy)
    if damage in UNSEEN:
        assert found == "silent"
    elif damage in ("directory", "fifo"):
        assert found == "other source"
    else:
        assert found in ("equal", "fixed")


def read_images(folder: Path) -> Any:
    with in_time():
        return content_of(load_folder(folder / "lists", folder / "tree", 32, "torchvision", 1).train)
