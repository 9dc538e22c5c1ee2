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


@pytest.fixture
def pool(tmp_path):
    """A folder with val/<class>/ and one image in pool/, without labels."""
    tree = write_tree(tmp_path / "with pool", classes=2, train=3, val=2)
    (tree / "pool").mkdir()
    (tree / "train" / "n00" / "0.JPEG").rename(tree / "pool" / "a.JPEG")
    return tree


def load(tree, folder, unlabelled=False):
    return load_folder(folder / "ImageNet", tree, SIZE, "torchvision", workers=2, unlabelled=unlabelled)


def load_pool(tree, folder):
    return load(tree, folder, unlabelled=True)


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


def test_linked_folders_are_followed_and_circles_end(pool, tmp_path):
    (pool / "pool" / "linked").symlink_to(pool / "train" / "n01")
    (pool / "pool" / "linked" / "back").symlink_to(pool / "pool")
    wanted = ["pool/a.JPEG", *(f"pool/linked/{i}.JPEG" for i in range(3))]
    assert paths(load_pool(pool, tmp_path).train) == wanted


def test_what_a_csv_file_could_not_name_is_refused(pool, tmp_path):
    for folder in (pool / "pool", pool / "val" / "n01"):
        bad = folder / os.fsdecode(b"b\xff.JPEG")
        picture(1).save(bad, format="JPEG")
        refuses(lambda folder=folder: load_pool(pool, tmp_path), f"{folder}/b\\xff.JPEG: a name that is not UTF-8")
        bad.unlink()
    picture(1).save(pool / "pool" / "grün.JPEG", format="JPEG")
    assert len(load_pool(pool, tmp_path).train) == 2
    (pool / "val" / "n01").rename(pool / "val" / "skip")
    refuses(lambda: load_pool(pool, tmp_path), "val/skip: skip in a CSV file takes an image out, so rename the class")


def test_only_regular_files_with_the_suffix_of_an_image_are_images(pool, tmp_path):
    """Others are counted, hidden ones ignored (macOS leaves ._0.jpg beside 0.jpg); links are followed."""
    here = pool / "pool"
    for name in ("a.heic", "b.txt", ".hidden", "._a.jpg"):
        (here / name).write_bytes(b"\0\5\x16\7")
    (here / "folder.png").mkdir()
    os.mkfifo(here / "fifo.png")
    (here / "device.png").symlink_to("/dev/zero")
    (here / "linked.png").symlink_to(pool / "train" / "n01" / "0.JPEG")
    os.mkfifo(pool / "val" / "n01" / "fifo.JPEG")
    (pool / "val" / "n01" / "._0.JPEG").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(here / "socket.png"))  # an absolute path may be too long for it
    for _ in range(2):  # listed, and read from the list
        data = load_pool(pool, tmp_path)
        assert (paths(data.train), data.train.left_out) == (["pool/a.JPEG", "pool/linked.png"], 5)
        assert data.validation.left_out == 1
    assert data.train.subset([0]).left_out == 5
    assert len(next(data.train.batches(5))[0]) == 2
    (here / "lost.png").symlink_to("nowhere")
    refuses(lambda: load_pool(pool, tmp_path), f"{here}/lost.png: No such file or directory; make it readable")


def test_folders_inside_classes_are_counted_and_read_in_pool_alone(pool, tmp_path):
    for folder in (pool / "pool", pool / "val" / "n01"):
        for inside in ("more", ".hidden"):
            (folder / inside).mkdir()
            picture(1).save(folder / inside / "b.png")
    data = load_pool(pool, tmp_path)
    assert (data.train.left_out, data.validation.left_out) == (0, 1)
    assert paths(data.train) == ["pool/a.JPEG", "pool/more/b.png"]


@pytest.mark.parametrize("loading", [load, load_pool])
def test_the_folder_that_was_listed_last_is_the_default(pool, tmp_path, loading):
    """Of the scripts by the list of val/, of figures by that of the pool; these name the list if it is of no use."""
    part, use = ("val", lambda: load(None, tmp_path)) if loading is load else ("pool", lambda: find(lists.parent))
    lists = tmp_path / "ImageNet" / "processed"
    wanted = paths(loading(pool, tmp_path).train)
    assert wanted == paths(use().train if loading is load else use().load(lists.parent).train)
    header = lists / f"{part}_labels.json"
    shutil.copy(lists / f"{part}_paths.json", header)
    refuses(use, f"{header} does not name the folder of its images: delete it, and give imagenet/run.py the folder")
    header.unlink()
    loading(pool, tmp_path)
    assert use() is not None
