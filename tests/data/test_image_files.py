"""Images in files: both loaders, against each other and against a plain reading of the same files."""

import contextlib
import itertools
import math
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from alfk.data.decoding import PillowDecoder, draw_crops, open_image, scaled, window
from alfk.data.image_files import MEMORY, ImageFiles, has_dali
from alfk.data.split import Split
from imagenet.custom_datasets.image_folder import MEAN, STD, load_folder
from tests.helpers import picture, refuses, wait_until, write_tree

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
def test_every_mode_is_read_as_its_8_bits_in_rgb(tmp_path, loader, seed):
    for name, makers in MODES.items():
        stored, wanted = (make(picture(3)) for make in makers)
        stored.save(tmp_path / name, quality=95)
        assert name.startswith(stored.mode)
        wanted.convert("RGB").save(tmp_path / f"{name} wanted.png")
    paths, right_paths = (np.array([f"{name}{end}".encode() for name in MODES]) for end in ("", " wanted.png"))
    (found,) = ImageFiles(tmp_path, paths, 64, loader, 1).fetch([torch.arange(len(MODES))], seed)
    (right,) = ImageFiles(tmp_path, right_paths, 64, "torchvision", 1).fetch([torch.arange(len(MODES))], seed)
    apart = (found.float() - right.float()).abs().mean((1, 2, 3)) / 255 / 0.226
    assert dict(zip(MODES, (apart < 0.05).tolist(), strict=True)) == dict.fromkeys(MODES, True)
    assert right.float().std((1, 2, 3)).min() > 20


def without_range(mode):
    values = np.asarray(picture(3).convert("L"))
    return Image.fromarray(values.astype(np.float32) if mode == "F" else values.astype(np.int32) * 257)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("seed", "mode"), [(None, "F"), (7, "I")])
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
@pytest.mark.parametrize("case", UNDECODABLE)
def test_a_file_that_dali_does_not_decode_is_named(tmp_path, case):
    """Under the name of a JPEG, in the second batch; the other loader reads it."""
    seed = 7 if case.startswith("PNG") else None
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
    order = torch.arange(0, len(one), 7)
    ((a, _),), ((b, _),) = (split.batches(len(order), order, seed) for split in (one, other))
    assert (a - b).abs().mean() < 0.05


DAMAGES = {  # name -> (seed, what is done to a file that had a content, the message)
    "text": (None, lambda bad, content: bad.write_bytes(b"not an image"), "{} cannot be decoded"),
    "truncated": (1, lambda bad, content: bad.write_bytes(content[: len(content) // 2]), "{} cannot be decoded"),
    "missing": (1, lambda bad, content: None, "cannot read {}"),
    "FIFO": (None, lambda bad, content: os.mkfifo(bad), "cannot read {}"),
    "folder": (1, lambda bad, content: bad.mkdir(), "cannot read {}"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_undecodable_file_is_named(tmp_path, loader, damage):
    seed, spoil, words = DAMAGES[damage]
    tree = write_tree(tmp_path / "tree", classes=2)
    train = load(tree, tmp_path, loader).train
    bad = tree / "train" / "n01" / "3.JPEG"
    content = bad.read_bytes()
    bad.unlink()
    spoil(bad, content)
    refuses(lambda: list(train.batches(4, None, seed)), words.format(bad))
    bad.rmdir() if damage == "folder" else bad.unlink(missing_ok=True)
    bad.write_bytes(content)
    assert sum(len(positions) for _, positions in train.batches(4, None, seed)) == 10


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


def test_a_forked_process_reads_too(tree):
    """It inherits no threads."""
    names = np.array([f"train/n00/{i}.JPEG".encode() for i in range(5)])
    files = ImageFiles(tree, names, SIZE, "torchvision", workers=2)
    first = torch.cat(list(files.fetch(torch.arange(5).split(2), seed=1)))
    child = os.fork()
    if not child:
        with contextlib.suppress(Exception):
            os._exit(int(not torch.equal(torch.cat(list(files.fetch(torch.arange(5).split(2), seed=1))), first)))
        os._exit(2)
    ended = []
    wait_until(lambda: ended.append(os.waitpid(child, os.WNOHANG)) or ended[-1][0])
    assert os.waitstatus_to_exitcode(ended[-1][1]) == 0


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


@pytest.mark.parametrize("loader", LOADERS)
def test_names_need_not_be_ascii_or_utf8(tmp_path, loader):
    tree = write_tree(tmp_path / "tree")
    for name in ("grün.JPEG", os.fsdecode(b"b\xff.JPEG")):
        picture(1).save(tree / "val" / "n01" / name, format="JPEG")
    assert sum(len(positions) for _, positions in load(tree, tmp_path, loader).test.batches(5)) == 14


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


def block(name, content):
    """Of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_an_image_that_pillow_takes_for_a_bomb_is_named(tmp_path):
    """15,000 x 12,500 pixels of 1 bit, a file of 23 KB."""
    header = struct.pack(">IIBBBBB", 15_000, 12_500, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(12_500 * (1 + 15_000 // 8)))
    content = block(b"IHDR", header) + block(b"IDAT", pixels) + block(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    files = ImageFiles(tmp_path, np.array([b"huge.png"]), SIZE, "torchvision", 1)
    words = f"{tmp_path}/huge.png cannot be decoded: Image size (187500000 pixels) exceeds limit"
    refuses(lambda: list(files.fetch([torch.zeros(1, dtype=torch.int64)])), words)


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
