"""Images in files: both loaders, against each other and against a plain reading of the same files."""

import itertools
import math
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from alfk.data.decoding import PillowDecoder, draw_crops, open_image, scaled, window
from alfk.data.image_files import MEMORY, ImageFiles, has_dali
from alfk.data.split import Split
from alfk.support.errors import UserError
from alfk.support.files import read_json, write_json
from imagenet.config import find
from imagenet.custom_datasets.image_folder import MEAN, STD, load_folder
from tests.helpers import ONE_THREAD, ROOT, picture, refuses, write_tree

LOADERS = ["torchvision", pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="no DALI here"))]
SIZE = 32


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


def load(tree, folder, loader="torchvision", size=SIZE):
    return load_folder(folder / "ImageNet", tree, size, loader, workers=2)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("seed", [None, 5])
def test_every_image_comes_once_with_its_position_and_label(tree, tmp_path, loader, seed):
    train = load(tree, tmp_path, loader).train
    assert len(train) == 20
    assert train.labels.tolist() == sorted(list(range(4)) * 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    batches = list(train.batches(6, order, seed))
    assert [len(positions) for _, positions in batches] == [6, 6, 6, 2]
    assert torch.cat([positions for _, positions in batches]).tolist() == order.tolist()
    for images, positions in batches:
        assert images.shape == (len(positions), 3, SIZE, SIZE)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
    # Whatever batch an image comes in, and with whatever order, it is the same image.
    alone = {int(p): image for images, positions in batches for image, p in zip(images, positions, strict=True)}
    for images, positions in train.subset(torch.arange(20)).batches(20, None, seed):
        for image, p in zip(images, positions.tolist(), strict=True):
            assert torch.equal(image, alone[p])


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_is_scaled_and_cropped_in_the_middle(tree, tmp_path, loader):
    """Against Pillow: the shorter side to 37, the central 32 x 32 pixels."""
    test = load(tree, tmp_path, loader).test
    ((images, positions),) = test.batches(50)
    paths = sorted((tree / "val").glob("*/*.JPEG"))
    for image, position in zip(images, positions.tolist(), strict=True):
        with Image.open(paths[position]) as stored:
            scale = 37 / min(stored.size)
            width, height = (round(side * scale) for side in stored.size)
            left, top = (width - SIZE) // 2, (height - SIZE) // 2
            small = stored.resize((width, height), Image.Resampling.BILINEAR)
        wanted = np.array(small.crop((left, top, left + SIZE, top + SIZE))) / 255
        wanted = (wanted - np.array(MEAN)) / np.array(STD)
        assert np.abs(image.permute(1, 2, 0).numpy() - wanted).mean() < 0.05


@pytest.mark.skipif(not has_dali(), reason="no DALI here")
@pytest.mark.parametrize("seed", [None, 7])
def test_loaders_agree_on_grey_cmyk_and_oblong_images(tmp_path, seed):
    names = []
    for i in range(12):
        image = picture(i, 40 + 29 * i, 380 - 25 * i)
        mode = ("RGB", "L", "CMYK")[i % 3]
        image.convert(mode).save(tmp_path / f"{i}.JPEG", quality=95)
        names.append(f"{i}.JPEG".encode())
    one, other = (ImageFiles(tmp_path, np.array(names), 64, loader, 2) for loader in ("torchvision", "dali"))
    ((a,), (b,)) = (files.fetch([torch.arange(12)], seed) for files in (one, other))
    apart = (a.float() - b.float()).abs().mean((1, 2, 3)) / 255 / 0.226
    assert apart.max() < 0.05
    assert (a.float() - a.float().mean()).abs().mean() / 255 / 0.226 > 0.3  # the images are not all alike


def with_alpha(image):
    """Half transparent on its left side, which counts for nothing."""
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[128], [255]]), 50, 0).T.repeat(image.height, 0)))
    return image


def of_few_colours(image):
    return image.convert("RGB").quantize(9)


def black_and_white(image):
    return image.convert("L").point(lambda value: 255 * (value > 120)).convert("1")


def deep(image):
    """Sixteen bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


MODES = {  # name of a file -> (the image that is saved, the one that is to be read)
    "1.png": (black_and_white, black_and_white),
    "L.png": (lambda image: image.convert("L"),) * 2,
    "LA.png": (lambda image: with_alpha(image.convert("L")), lambda image: image.convert("L")),
    "P.png": (of_few_colours, of_few_colours),
    "RGBA.png": (with_alpha, lambda image: image),
    "I;16.png": (deep, lambda image: image.convert("L")),
    "CMYK.jpg": (lambda image: image.convert("CMYK"), lambda image: image),
    "L.jpg": (lambda image: image.convert("L"),) * 2,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_read_as_its_8_bits_in_rgb(tmp_path, loader, seed, name):
    stored, wanted = (make(picture(3)) for make in MODES[name])
    stored.save(tmp_path / name, quality=95)
    assert name.startswith(stored.mode)
    wanted.convert("RGB").save(tmp_path / "wanted.png")
    ((found,), (right,)) = (
        ImageFiles(tmp_path, np.array([file.encode()]), 64, which, 1).fetch([torch.zeros(1, dtype=torch.int64)], seed)
        for file, which in ((name, loader), ("wanted.png", "torchvision"))
    )
    assert (found.float() - right.float()).abs().mean() / 255 / 0.226 < 0.05
    assert right.float().std() > 20


def without_range(mode):
    values = np.asarray(picture(3).convert("L"))
    return Image.fromarray(values.astype(np.float32) if mode == "F" else values.astype(np.int32) * 257)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused_by_both_loaders(tmp_path, loader, seed, mode):
    """TIFF, which has such modes, under the name of a JPEG."""
    without_range(mode).save(tmp_path / "b.jpg", format="TIFF")
    picture(1).save(tmp_path / "a.jpg")
    files = ImageFiles(tmp_path, np.array([b"a.jpg", b"b.jpg"]), 64, loader, 1)
    refuses(
        lambda: list(files.fetch([torch.arange(2)], seed)),
        f"{tmp_path}/b.jpg cannot be decoded: its values (mode {mode})",
    )


def without_end(content):
    """Pillow reads a PNG without its last block."""
    return content[:-12]


def with_wrong_checksum(content):
    """One of a block of pixels, which Pillow does not look at."""
    start = content.index(b"IDAT")
    end = start + 4 + int.from_bytes(content[start - 4 : start], "big")
    return content[:end] + bytes(4) + content[end + 4 :]


UNDECODABLE = {  # what DALI does not decode, or not as Pillow does -> the format and how the file is changed
    "GIF": ("GIF", bytes),
    "AVIF": ("AVIF", bytes),
    "TIFF, mode LA": ("TIFF", bytes),
    "PNG": ("PNG", without_end),
    "PNG of another checksum": ("PNG", with_wrong_checksum),
}


@pytest.mark.skipif(not has_dali(), reason="no DALI here")
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("case", UNDECODABLE)
def test_a_file_that_dali_does_not_decode_is_named(tmp_path, seed, case):
    """Under the name of a JPEG, in the second batch; the other loader reads it."""
    if case == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    kind, change = UNDECODABLE[case]
    for i in range(7):
        picture(i).save(tmp_path / f"{i}.jpg", quality=95)
    odd = with_alpha(picture(4).convert("L")) if "LA" in case else picture(4)
    odd.save(tmp_path / "4.jpg", format=kind)
    (tmp_path / "4.jpg").write_bytes(change((tmp_path / "4.jpg").read_bytes()))
    paths, batches = np.array([f"{i}.jpg".encode() for i in range(7)]), list(torch.arange(7).split(3))
    words = f"{tmp_path}/4.jpg ({case.partition(' of')[0]}) cannot be decoded by NVIDIA DALI"
    refuses(lambda: list(ImageFiles(tmp_path, paths, 64, "dali", 1).fetch(batches, seed)), words)
    assert len(torch.cat(list(ImageFiles(tmp_path, paths, 64, "torchvision", 1).fetch(batches, seed)))) == 7


@pytest.mark.skipif(not has_dali(), reason="no DALI here")
@pytest.mark.parametrize("seed", [None, 7])
def test_loaders_agree_on_photos(photos, tmp_path, seed):
    one, other = (load(photos, tmp_path, loader, 64).test for loader in ("torchvision", "dali"))
    assert torch.equal(one.labels, other.labels)
    for (a, p), (b, q) in zip(one.batches(128, None, seed), other.batches(128, None, seed), strict=True):
        assert torch.equal(p, q)
        assert (a - b).abs().mean() < 0.05


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["text", "truncated", "missing", "FIFO", "folder"])
@pytest.mark.parametrize("seed", [None, 1])
def test_an_undecodable_file_is_named(tmp_path, loader, damage, seed):
    tree = write_tree(tmp_path / "tree")
    train = load(tree, tmp_path, loader).train
    bad = tree / "train" / "n02" / "3.JPEG"
    content = bad.read_bytes()
    bad.unlink()
    if damage == "FIFO":
        os.mkfifo(bad)
    elif damage == "folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes(b"not an image" if damage == "text" else content[: len(content) // 2])
    refuses(lambda: list(train.batches(4, None, seed)), f"{bad} cannot be decoded")
    bad.rmdir() if damage == "folder" else bad.unlink(missing_ok=True)
    bad.write_bytes(content)
    assert sum(len(positions) for _, positions in train.batches(4, None, seed)) == 20


@pytest.mark.parametrize("loader", LOADERS)
def test_two_readings_at_once_and_one_left_early(tree, tmp_path, loader):
    train = load(tree, tmp_path, loader).train
    next(train.batches(3))
    first, second = train.batches(3), train.batches(3, torch.arange(20).flip(0))
    pairs = [(one[0], other[0]) for one, other in zip(first, second, strict=True)]
    whole = torch.cat([images for images, _ in train.batches(20)])
    assert torch.equal(torch.cat([one for one, _ in pairs]), whole)
    assert torch.equal(torch.cat([other for _, other in pairs]), whole.flip(0))


def test_threads_keep_the_order_and_the_pixels(tree):
    names = np.array([os.fsencode(path.relative_to(tree)) for path in sorted(tree.glob("*/*/*.JPEG"))])
    rows = torch.randint(len(names), (90,), generator=torch.Generator().manual_seed(2))  # some more than once
    for seed in (None, 4):
        crops = [None] * len(names)
        if seed is not None:
            crops = draw_crops(len(names), torch.Generator().manual_seed(seed)).numpy()
        wanted = [scaled(open_image(f"{tree}/{os.fsdecode(names[row])}"), SIZE, crops[row]) for row in rows]
        for workers, memory in itertools.product((1, 2, 5), (0, MEMORY)):
            files = ImageFiles(tree, names, SIZE, "torchvision", workers, memory=memory)
            found = torch.cat(list(files.fetch(rows.split(40), seed)))
            assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(wanted)), (seed, workers, memory)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("seed", [None, 3])
def test_kept_images_are_those_that_are_decoded(tree, tmp_path, loader, seed):
    """Whatever was read before, in whatever part and mode, also when the memory is enough for some of the files."""
    copy = shutil.copytree(tree, tmp_path / "tree")
    paths = load(copy, tmp_path).train.store.paths
    evaluation = len(paths) * SIZE * SIZE * 3  # bytes
    read, memories = {}, (0, evaluation, MEMORY)
    for memory in memories:
        files = ImageFiles(copy, paths, SIZE, loader, 2, memory=memory)
        train = Split(files, None, MEAN, STD)
        assert files.keeps == (memory > 0)
        with torch.inference_mode():
            list(train.subset(torch.tensor([3, 17, 4])).batches(2, None, seed))
        passes = [list(train.batches(6, order, seed)) for order in (None, torch.arange(20).flip(0), torch.arange(9))]
        read[memory] = [torch.cat([images for images, _ in batches]) for batches in passes]
        if loader == "torchvision" and seed is not None:
            kept = sum(4 * image.width * image.height for image in files.decode.files.values())
            assert kept <= memory
            assert (len(files.decode.files) > 0) == (memory > 0)
    for memory in memories[1:]:
        assert all(map(torch.equal, read[memory], read[0]))
    if seed is None or loader == "torchvision":  # no file is read again
        shutil.rmtree(copy)
        assert torch.equal(torch.cat([images for images, _ in train.batches(7, None, seed)]), read[0][0])


def test_a_store_is_pickled_without_its_images(tree, tmp_path):
    files = load(tree, tmp_path).train.store
    (images,) = files.fetch([torch.arange(20)])
    stored = pickle.dumps(files)
    assert len(stored) < 10_000
    assert torch.equal(next(pickle.loads(stored).fetch([torch.arange(20)])), images)
    assert files.to(torch.device("cpu")) is files


UNGUARDED = """
import os, sys
import numpy as np, torch
from pathlib import Path
from alfk.image_files import ImageFiles

names = [os.fsencode(path.name) for path in sorted(Path(sys.argv[1]).iterdir())]
files = ImageFiles(Path(sys.argv[1]), np.array(names), 32, "torchvision", workers=2)
first = torch.cat(list(files.fetch(torch.arange(len(files)).split(2), seed=1)))
child = os.fork()
same = torch.equal(torch.cat(list(files.fetch(torch.arange(len(files)).split(2), seed=1))), first)
if not child:
    os._exit(0 if same else 3)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_script_without_a_main_guard_and_its_fork_read(tree, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    line = [sys.executable, str(script), str(tree / "train" / "n00")]
    environment = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout, done.stderr) == ("True 0\n", "")


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    drawn=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=5, max_size=5),
)
def test_a_crop_lies_within_the_image(height, width, drawn):
    crop = np.array([0.1 + 0.9 * drawn[0], math.exp((2 * drawn[1] - 1) * math.log(1.25)), *drawn[2:]], np.float32)
    top, left, down, across = window(height, width, crop)
    assert down >= 1
    assert across >= 1
    assert 0 <= top <= height - down
    assert 0 <= left <= width - across


def test_crops_have_the_protocols_areas_and_aspects():
    crops = draw_crops(20_000, torch.Generator().manual_seed(0)).double()
    area, aspect = crops[:, 0], crops[:, 1].log()
    assert area.min() >= 0.1
    assert area.max() <= 1
    assert area.mean() == pytest.approx(0.55, abs=0.01)
    assert aspect.abs().max() <= math.log(1.25) + 1e-6
    assert aspect.mean() == pytest.approx(0, abs=0.01)
    for height, width in ((240, 240), (200, 300)):
        windows = np.array([window(height, width, crop)[2:] for crop in crops[:500].numpy()])
        share = windows.prod(1) / (height * width)
        fits = (windows < (height, width)).all(1)
        assert fits.mean() > 0.6
        assert np.abs(share - area[:500].numpy())[fits].max() < 0.01
        assert (share <= area[:500].numpy() + 0.01).all()
        ratio = windows[:, 1] / windows[:, 0]
        assert np.abs(np.log(ratio) - aspect[:500].numpy())[fits].max() < 0.02


def test_augmented_images_are_half_mirrored_and_change_with_the_seed(tree, tmp_path):
    train = load(tree, tmp_path).train
    (one, _), (same, _), (other, _) = (next(train.batches(20, None, seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().mean() > 0.2
    crops = draw_crops(1000, torch.Generator().manual_seed(3))
    assert crops[:, 4].lt(0.5).double().mean() == pytest.approx(0.5, abs=0.05)


def test_lists_are_made_once_and_again_when_files_come_or_go(tmp_path):
    tree = write_tree(tmp_path / "tree")
    first = load(tree, tmp_path)
    listed = tmp_path / "ImageNet" / "processed" / "train_paths.npy"
    made = listed.stat().st_mtime_ns
    again = load(tree, tmp_path)
    assert listed.stat().st_mtime_ns == made
    assert again.train.source == first.train.source
    os.remove(tree / "train" / "n01" / "0.JPEG")
    fewer = load(tree, tmp_path)
    assert len(fewer.train) == 19
    assert fewer.train.source != first.train.source
    assert fewer.test.source == first.test.source
    tree.rename(tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere", tmp_path)
    assert moved.train.source == fewer.train.source
    assert next(moved.train.batches(2))[0].shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("loader", LOADERS)
def test_names_need_not_be_ascii_or_utf8(tmp_path, loader):
    tree = write_tree(tmp_path / "tree")
    for name in ("grün.JPEG", os.fsdecode(b"b\xff.JPEG")):
        picture(1).save(tree / "val" / "n01" / name, format="JPEG")
    assert sum(len(positions) for _, positions in load(tree, tmp_path, loader).test.batches(5)) == 14


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=r"train/<class>/\*\.JPEG"):
        load(tmp_path / "nowhere", tmp_path)
    tree = write_tree(tmp_path / "tree")
    (tree / "val" / "n99").mkdir()
    with pytest.raises(UserError, match="n99"):
        load(tree, tmp_path)
    (tree / "val" / "n99").rmdir()
    (tree / "train" / "n05").mkdir()
    with pytest.raises(UserError, match=r"n05 in one of train/ and val/ alone"):
        load(tree, tmp_path)
    (tree / "val" / "n05").mkdir()
    with pytest.raises(UserError, match=r"n05 has no image"):
        load(tree, tmp_path)


@pytest.fixture
def pool(tmp_path):
    """A folder with val/<class>/ and one image in pool/, without labels."""
    tree = write_tree(tmp_path / "tree")
    (tree / "pool").mkdir()
    (tree / "train" / "n00" / "0.JPEG").rename(tree / "pool" / "a.JPEG")
    return tree


def load_pool(tree, folder):
    return load_folder(folder / "ImageNet", tree, SIZE, "torchvision", workers=2, unlabelled=True)


def test_linked_folders_are_followed_and_circles_end(pool, tmp_path):
    (pool / "pool" / "linked").symlink_to(pool / "train" / "n01")
    (pool / "pool" / "linked" / "back").symlink_to(pool / "pool")
    assert list(load_pool(pool, tmp_path).train.store.paths) == [
        b"pool/a.JPEG",
        *(b"pool/linked/%d.JPEG" % i for i in range(5)),
    ]


def test_what_a_csv_file_could_not_name_is_refused(pool, tmp_path):
    for folder in (pool / "pool", pool / "val" / "n01"):
        bad = folder / os.fsdecode(b"b\xff.JPEG")
        picture(1).save(bad, format="JPEG")
        with pytest.raises(UserError, match=rf"{folder}/b\\xff\.JPEG: a name that is not UTF-8"):
            load_pool(pool, tmp_path)
        bad.unlink()
    picture(1).save(pool / "pool" / "grün.JPEG", format="JPEG")
    assert len(load_pool(pool, tmp_path).train) == 2
    (pool / "val" / "n01").rename(pool / "val" / "skip")
    with pytest.raises(UserError, match=r"val/skip: a class cannot be called skip"):
        load_pool(pool, tmp_path)


def test_files_that_are_no_images_are_counted(pool, tmp_path):
    for name in ("a.heic", "b.txt", ".hidden"):
        (pool / "pool" / name).touch()
    (pool / "pool" / "folder.png").mkdir()
    for _ in range(2):  # listed, and read from the list
        data = load_pool(pool, tmp_path)
        assert (len(data.train), data.train.left_out, data.validation.left_out) == (1, 2, 0)
    assert data.train.subset([0]).left_out == 2


@pytest.mark.parametrize("name", ["._0.JPEG", "._pool.jpg"])
def test_hidden_files_are_no_images(tree, tmp_path, name):
    """macOS leaves such files beside those that it copies: they have the suffix of an image, but are none."""
    copied = shutil.copytree(tree, tmp_path / "copied")
    for folder in ("train/n00", "val/n01"):
        (copied / folder / name).write_bytes(b"\0\5\x16\7")
    for found, wanted in zip(load(copied, tmp_path / "a"), load(tree, tmp_path / "b"), strict=True):
        assert (found.store.paths.tolist(), found.left_out) == (wanted.store.paths.tolist(), 0)
    (copied / "pool").mkdir()
    (copied / "pool" / name).write_bytes(b"\0\5\x16\7")
    picture(1).save(copied / "pool" / "a.jpg")
    assert list(load_pool(copied, tmp_path / "c").train.store.paths) == [b"pool/a.jpg"]


def test_folders_inside_classes_are_counted_and_read_in_pool_alone(pool, tmp_path):
    for folder in (pool / "pool", pool / "val" / "n01"):
        for inside in ("more", ".hidden"):
            (folder / inside).mkdir()
            picture(1).save(folder / inside / "b.png")
    data = load_pool(pool, tmp_path)
    assert (data.train.left_out, data.validation.left_out) == (0, 1)
    assert list(data.train.store.paths) == [b"pool/a.JPEG", b"pool/more/b.png"]


def test_only_regular_files_are_images(pool, tmp_path):
    """Links to them are followed."""
    os.mkfifo(pool / "pool" / "fifo.png")
    (pool / "pool" / "device.png").symlink_to("/dev/zero")
    (pool / "pool" / "linked.png").symlink_to(pool / "train" / "n01" / "0.JPEG")
    os.mkfifo(pool / "val" / "n01" / "fifo.JPEG")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(pool / "pool" / "socket.png"))  # an absolute path may be too long for it
    data = load_pool(pool, tmp_path)
    assert (list(data.train.store.paths), data.train.left_out) == ([b"pool/a.JPEG", b"pool/linked.png"], 3)
    assert data.validation.left_out == 1
    assert len(next(data.train.batches(5))[0]) == 2
    (pool / "pool" / "linked.png").unlink()
    (pool / "pool" / "lost.png").symlink_to("nowhere")
    refuses(lambda: load_pool(pool, tmp_path), f"{pool}/pool/lost.png: No such file or directory")


def rewrite(path, **entries):
    """Change a header, with the right checksum."""
    write_json(path, {**read_json(path), **entries})


@pytest.mark.parametrize("root", [None, 7, ["/a"], "", "relative", "/a\0b"])
def test_a_list_that_names_no_folder_is_named_and_made_again_after_it_is_deleted(pool, tmp_path, root):
    for load_it, part, use in (
        (load, "val", lambda: load(None, tmp_path)),
        (load_pool, "pool", lambda: find(tmp_path / "ImageNet")),
    ):
        load_it(pool, tmp_path)
        header = tmp_path / "ImageNet" / "processed" / f"{part}_labels.json"
        rewrite(header, root=root)
        refuses(use, f"{header} does not name the folder of its images: delete it, and give imagenet/run.py the folder")
        header.unlink()
        load_it(pool, tmp_path)
        assert use() is not None


HEADERS = {
    "no digest": lambda path: rewrite(path, md5=5),
    "no number": lambda path: rewrite(path, left_out="many"),
    "another kind": lambda path: rewrite(path, kind="paths"),
    "another list": lambda path: rewrite(path, md5="0" * 32),
    "damaged": lambda path: path.write_text(path.read_text().replace("n01", "n77")),
    "text": lambda path: path.write_text("nothing"),
    "a damaged array": lambda path: path.with_suffix(".npy").write_bytes(b"nothing"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_damaged_list_is_named_and_made_again_after_it_is_deleted(tree, tmp_path, case):
    wanted = load(tree, tmp_path).train
    header = tmp_path / "ImageNet" / "processed" / "train_labels.json"
    HEADERS[case](header)
    refuses(lambda: load(tree, tmp_path), "delete it, then the images are listed again")
    with pytest.raises(UserError) as caught:
        load(tree, tmp_path)
    named = Path(str(caught.value).split()[0].rstrip(":"))
    assert named.parent == header.parent
    named.unlink()
    found = load(tree, tmp_path).train
    assert (found.source, found.store.paths.tolist()) == (wanted.source, wanted.store.paths.tolist())


def test_other_data_sets_flag_is_without_effect(tree, tmp_path):
    wanted = load(tree, tmp_path).train.source
    assert load_folder(tmp_path / "ImageNet", tree, SIZE, "torchvision", 1, strict=False).train.source == wanted


def test_images_of_a_subset_are_those_of_its_rows(tree, tmp_path):
    train = load(tree, tmp_path).train
    some = train.subset(torch.tensor([3, 17, 4])).subset(torch.tensor([2, 0]))
    assert some.labels.tolist() == [0, 0]
    whole, part = train.images, some.images
    assert part.dtype == torch.uint8
    assert torch.equal(part, whole[[4, 3]])
    plain = Split(whole, train.labels, MEAN, STD)
    assert torch.equal(next(plain.batches(20))[0], next(train.batches(20))[0])


def test_images_of_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels = np.asarray(open_image(str(tmp_path / "deep.png")))
    assert np.abs(pixels[..., 0].astype(int) - ramp / 257).max() <= 0.5 + 1e-6
    Image.fromarray(np.linspace(0, 9, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff cannot be decoded: its values \(mode F\) have no fixed range"):
        open_image(str(tmp_path / "float.tiff"))


def block(name, content):
    """Of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("seed", [None, 7])
def test_an_image_that_pillow_takes_for_a_bomb_is_named(tmp_path, seed):
    """15,000 x 12,500 pixels of 1 bit, a file of 23 KB."""
    header = struct.pack(">IIBBBBB", 15_000, 12_500, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(12_500 * (1 + 15_000 // 8)))
    content = block(b"IHDR", header) + block(b"IDAT", pixels) + block(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    files = ImageFiles(tmp_path, np.array([b"huge.png"]), SIZE, "torchvision", 1)
    words = f"{tmp_path}/huge.png cannot be decoded: Image size (187500000 pixels) exceeds limit"
    refuses(lambda: list(files.fetch([torch.zeros(1, dtype=torch.int64)], seed)), words)


def test_large_files_are_kept_for_random_crops_alone_and_within_the_budget(tmp_path):
    for i in range(3):
        picture(i, 50, 50).save(tmp_path / f"{i}.png")
    decoder = PillowDecoder(32, 1, torch.device("cpu"), memory=2 * 4 * 50 * 50)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    list(decoder([(paths, None)], 3, False))
    assert decoder.files == {}
    list(decoder([(paths, draw_crops(3, torch.Generator()).numpy())], 3, True))
    assert (len(decoder.files), decoder.memory) == (2, 0)


def test_from_files_takes_the_size_of_the_split_it_is_like(tmp_path):
    picture(0).save(tmp_path / "a.png")
    pool = Split.from_files([tmp_path / "a.png"], size=48)
    assert Split.from_files([tmp_path / "a.png"], like=pool).store.size == 48
    assert Split.from_files([tmp_path / "a.png"], mean=0.5, std=0.5).store.size == 224
