"""The lists of the files of ImageNet and of folders of own images."""

import os
import shutil
import socket

import pytest

from imagenet.config import find
from imagenet.custom_datasets.image_folder import load_folder
from tests.helpers import picture, refuses, write_tree

SIZE = 32


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", classes=2, train=3, val=2)


def load(tree, folder):
    return load_folder(folder / "ImageNet", tree, SIZE, "torchvision", workers=2)


def paths(split):
    return [os.fsdecode(path) for path in split.store.paths]


def test_lists_are_made_once_and_again_when_files_come_or_go(tree, tmp_path):
    first = load(tree, tmp_path)
    assert (len(first.train), len(first.validation)) == (6, 4)
    assert first.test is first.validation
    listed = tmp_path / "ImageNet" / "processed" / "train_paths.npy"
    made = listed.stat().st_mtime_ns
    again = load(tree, tmp_path)
    assert listed.stat().st_mtime_ns == made
    assert again.train.source == first.train.source
    os.remove(tree / "train" / "n01" / "0.JPEG")
    fewer = load(tree, tmp_path)
    assert len(fewer.train) == 5
    assert fewer.train.source != first.train.source
    assert fewer.test.source == first.test.source
    tree.rename(tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere", tmp_path)
    assert moved.train.source == fewer.train.source
    assert next(moved.train.batches(2))[0].shape == (2, 3, SIZE, SIZE)


def test_what_is_wrong_with_a_folder_is_said(tree, tmp_path):
    refuses(lambda: load(tmp_path / "nowhere", tmp_path), "train/<class>/*.JPEG")
    (tree / "val" / "n99").mkdir()
    refuses(lambda: load(tree, tmp_path), "n99")
    (tree / "val" / "n99").rmdir()
    (tree / "train" / "n05").mkdir()
    refuses(lambda: load(tree, tmp_path), "n05 in only one of train/ and val/")
    (tree / "val" / "n05").mkdir()
    refuses(lambda: load(tree, tmp_path), "n05 has no image")
    (tmp_path / "file").touch()
    refuses(lambda: load(tree, tmp_path / "file"), "give --datadir another folder")


def test_only_regular_files_with_the_suffix_of_an_image_are_images(tree, tmp_path):
    """Others are counted, folders too, hidden ones ignored (macOS leaves ._0.jpg beside 0.jpg); links are followed."""
    here = tree / "train" / "n00"
    for name in ("a.heic", "b.txt", ".hidden", "._a.jpg"):
        (here / name).write_bytes(b"\0\5\x16\7")
    for folder in ("folder.png", ".folder"):
        (here / folder).mkdir()
        picture(1).save(here / folder / "b.png")
    os.mkfifo(here / "fifo.png")
    (here / "device.png").symlink_to("/dev/zero")
    (here / "linked.png").symlink_to(tree / "train" / "n01" / "0.JPEG")
    picture(1).save(here / os.fsdecode(b"x\xff.JPEG"), format="JPEG")
    os.mkfifo(tree / "val" / "n01" / "fifo.JPEG")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(here / "socket.png"))  # an absolute path may be too long for it
    for _ in range(2):  # listed, and read from the list
        data = load(tree, tmp_path)
        names = ["0.JPEG", "1.JPEG", "2.JPEG", "linked.png", os.fsdecode(b"x\xff.JPEG")]
        assert paths(data.train)[:-3] == [f"train/n00/{name}" for name in names]
        assert (data.train.left_out, data.validation.left_out) == (6, 1)
    assert data.train.subset([0]).left_out == 6
    assert len(next(data.train.batches(5))[0]) == 5
    (here / "lost.png").symlink_to("nowhere")
    refuses(lambda: load(tree, tmp_path), f"{here}/lost.png: No such file or directory; make it readable")


@pytest.mark.parametrize("part", ["val", "train"])
def test_the_folder_that_was_listed_last_is_the_default(tree, tmp_path, part):
    """Of the scripts by the list of val/, of figures by that of train/; these name the list if it is of no use."""
    lists = tmp_path / "ImageNet" / "processed"

    def use():
        return load(None, tmp_path) if part == "val" else find(lists.parent).load(lists.parent)

    assert paths(load(tree, tmp_path).train) == paths(use().train)
    header = lists / f"{part}_labels.json"
    shutil.copy(lists / f"{part}_paths.json", header)
    refuses(use, f"{header} does not name the folder of its images: delete it, and give imagenet/run.py the folder")
    header.unlink()
    load(tree, tmp_path)
    use()
