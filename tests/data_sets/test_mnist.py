"""MNIST's files, the digits of scikit-learn, the silhouettes, and how a run divides them."""

import gzip
import json
import os
import pickle
import re
import socket
import zipfile

import numpy as np
import pytest
import torch

from alfk.data.split import UNOFFICIAL
from alfk.plotting.contact_sheets import same_images
from alfk.support.errors import UserError
from mnist.config import DIGITS, MNIST
from mnist.custom_datasets import mnist, silhouettes
from mnist.custom_datasets.digits import enlarge
from tests.helpers import (
    SHARED,
    call,
    draw,
    idx,
    mnist_mirror,
    official_mnist,
    refused,
    refuses,
    small_files,
    workspace,
)


@pytest.fixture
def small(tmp_path):
    """A folder with four small files, two of them gzipped, which are the official ones, also on the server."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for i, (name, content) in enumerate(small_files().items()):
        (raw / (f"{name}.gz" if i % 2 else name)).write_bytes(gzip.compress(content) if i % 2 else content)
    with official_mnist(tmp_path / "server"):
        yield raw.parent


@pytest.fixture
def online(small):
    """The same folder, with a server that has the official files; the first mirror does not reply."""
    with mnist_mirror(small.parent / "server"):
        yield small


def place_of(folder, name):
    """The file `name` of a folder, gzipped or not."""
    return next((folder / "raw").glob(f"{name}*"))


def load(folder, strict=True):
    """(12 and 5 images with their labels,) the sources of both splits."""
    train, test = mnist.load_mnist(folder, strict)
    assert (train.images.shape[1:], test.images.shape[1:]) == ((1, 28, 28), (1, 28, 28))
    return (train.images, train.labels, test.images, test.labels), (train.source, test.source)


def test_files_are_gzipped_or_plain_whatever_their_names(small, capsys):
    arrays, sources = load(small)
    assert sources == (None, None)
    for array, (name, content) in zip(arrays, small_files().items(), strict=True):
        assert array.to(torch.uint8).numpy().tobytes() == content[-array.numel() :]
        path = place_of(small, name)
        path.write_bytes(content if path.suffix == ".gz" else gzip.compress(content))
    again, sources = load(small, strict=False)
    assert sources == (None, None)
    assert all(map(torch.equal, again, arrays))
    assert capsys.readouterr().err == ""


def corrupt(content):
    """Gzipped, with zeros inside."""
    zipped = bytearray(gzip.compress(content))
    zipped[12:30] = bytes(18)
    return bytes(zipped)


BROKEN, OTHER = "is truncated or not an IDX file of bytes", "not the official content"
HARMS = [
    (lambda content: content + b"\0", BROKEN),
    (lambda content: gzip.compress(content)[:-9], BROKEN),
    (corrupt, BROKEN),
    (lambda content: gzip.compress(content) + b"more", BROKEN),
    (lambda content: b"<html>not found</html>" * 100, BROKEN),
    (lambda content: content[:2] + b"\x0d" + content[3:], BROKEN),  # floats
    (lambda content: b"\0\0\x08\0\7", OTHER),  # no dimension
    (lambda content: b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\7", BROKEN),  # many dimensions
    (lambda content: content[:-1] + bytes([content[-1] ^ 1]), OTHER),  # another pixel or label
]


@pytest.mark.parametrize("i", range(len(HARMS)))
def test_a_damaged_file_is_named_and_downloaded_again_after_it_is_deleted(online, i):
    (harm, words), name = HARMS[i], mnist.FILES[i % 4]
    wanted, path = load(online)[0], place_of(online, name)
    path.write_bytes(harm(small_files()[name]))
    for expected in (words, f"{path}", "delete it, then it is downloaded again"):
        refuses(lambda expected=expected: load(online), expected)
    path.unlink()
    assert all(map(torch.equal, load(online)[0], wanted))
    assert {path.name.removesuffix(".gz") for path in (online / "raw").iterdir()} == set(mnist.FILES)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket"])
def test_what_is_no_regular_file_is_named(small, kind, monkeypatch):
    path = place_of(small, mnist.FILES[1])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "folder":
            path.mkdir()
        elif kind == "FIFO":
            os.mkfifo(path)
        else:
            monkeypatch.chdir(path.parent)  # the whole path may be too long for it
            bound.bind(path.name)
        for strict in (True, False):
            refuses(lambda strict=strict: load(small, strict), f"cannot read {path}: ")


def test_other_files_of_the_same_form_are_refused_unless_asked_for(small, capsys):
    known, path = load(small)[0], place_of(small, mnist.FILES[0])
    path.write_bytes(small_files(1)[path.name])
    refuses(lambda: load(small), f"{path}: not the official content (SHA-256), figures are not those of MNIST; delete")
    refuses(lambda: load(small), "or take other files of the same form by --allow-subset")
    (images, *others), sources = load(small, strict=False)
    assert images.numpy().tobytes() == small_files(1)[path.name][16:]
    assert all(map(torch.equal, others, known[1:]))
    assert sources[0] == sources[1]
    assert re.fullmatch(rf"{UNOFFICIAL} [0-9a-f]{{64}}", sources[0])
    warning = f"warning: {path}: not the official content (SHA-256), figures are not those of MNIST\n"
    assert capsys.readouterr().err == warning
    place_of(small, mnist.FILES[1]).write_bytes(gzip.compress(small_files(2)[mnist.FILES[1]]))
    assert load(small, strict=False)[1] != sources


UNFIT = [  # the file's number, its content, the message
    (2, np.zeros((3, 28, 28), np.uint8), "do not belong together: their shapes are (3, 28, 28) and (5,)"),
    (0, np.zeros((12, 32, 32), np.uint8), "their shapes are (12, 32, 32) and (12,), not (N, 28, 28)"),
    (0, np.zeros(12, np.uint8), "their shapes are (12,) and (12,)"),
    (0, np.zeros((), np.uint8), "their shapes are () and (12,)"),
    (0, np.zeros((0, 28, 28), np.uint8), "their shapes are (0, 28, 28) and (12,)"),
    (1, np.full(12, 46, np.uint8), "has the label 46, but labels are 0 to 9"),
]


@pytest.mark.parametrize(("which", "array", "words"), UNFIT)
def test_files_that_do_not_fit(small, which, array, words, capsys):
    path = place_of(small, mnist.FILES[which])
    path.write_bytes(idx(array))
    for expected in (words, str(path)):
        refuses(lambda expected=expected: load(small, strict=False), expected)
    assert capsys.readouterr().err == ""  # no warning before the refusal
    path.write_bytes(idx(array)[:-1] + b"\0\0")
    refuses(lambda: load(small, strict=False), f"{path} is truncated or not an IDX file of bytes: replace it")


def test_no_files_and_no_network(small):
    for path in (small / "raw").iterdir():
        path.unlink()
    names = ", ".join(f"{name}.gz" for name in mnist.FILES)
    refuses(lambda: load(small), f"put {names} into {small / 'raw'}, or use --dataset DIGITS")


def test_a_download_that_breaks_off_leaves_nothing_under_the_files_name(online):
    """Its MD5 is wrong, as that of half a file is."""
    wanted, path = load(online)[0], place_of(online, mnist.FILES[3])
    served = online.parent / "server" / f"{mnist.FILES[3]}.gz"
    content = served.read_bytes()
    served.write_bytes(content[:-5])
    path.unlink()
    refuses(lambda: load(online), f"MNIST's {served.name} is not here and cannot be downloaded")
    assert len(list((online / "raw").iterdir())) == 3
    served.write_bytes(content)
    assert all(map(torch.equal, load(online)[0], wanted))


def test_the_scripts_take_other_files_with_their_flag_alone(small, tmp_path):
    """A validation set in proportion; runs and figures say what they are made of."""
    raw = small / "raw"
    labels = (np.arange(600) % 10).astype(np.uint8)
    images = np.repeat(labels * 25, 784).reshape(-1, 28, 28)
    for name, part in zip(mnist.FILES, (images, labels, images[:50], labels[:50]), strict=True):
        place_of(small, name).write_bytes(idx(part))
    few = ["--datadir", tmp_path, "--device", "cpu", "--run-stop", 1, "-as", 20, "-e", 1, "--unsup-epochs", 1]
    refused("mnist/run.py", *few, "--initial", words=f"{raw}/{mnist.FILES[0]}")
    done = call("mnist/run.py", *few, "--initial", "--allow-subset")
    assert done.stderr.count("figures are not those of MNIST") == 1
    call("mnist/run.py", *few, "--allow-subset", "--methods", "Rz", "--iterations", 1)
    assert json.loads((small / "run0" / "manifest.json").read_text())["settings"]["data"][0].startswith(UNOFFICIAL)
    assert len(np.load(small / "run0" / "data" / "validation.npy")) == 100
    assert "(not the official files)" in draw(tmp_path, "--dataset", "MNIST").stdout
    draw(tmp_path, "--dataset", "MNIST", "--show-selected")
    place_of(small, mnist.FILES[1]).write_bytes(idx(labels[::-1]))
    done = draw(tmp_path, "--dataset", "MNIST", "--show-selected", status=2)
    assert "the images of MNIST are not those of these runs: bring those back" in done.stderr


def test_pictures_of_a_run_show_its_own_images():
    official, other = [None, None], [f"{UNOFFICIAL} 1", f"{UNOFFICIAL} 1"]
    assert [same_images(recorded, None) for recorded in ([], official, other)] == [True, True, False]
    assert [same_images(recorded, other[0]) for recorded in ([], official, other)] == [False, False, True]


def test_the_real_thing_has_the_protocols_sizes(mnist_raw, tmp_path):
    train, test = mnist.load_mnist(mnist_raw.parent)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    work = workspace(MNIST, tmp_path, train, test)
    assert torch.bincount(work.validation().labels).tolist() == [1000] * 10
    assert work.undistorted_pool_size() == len(work.pool_indices(1, "ir_1_nr_0")) == 50_000
    counts = torch.bincount(work.pool(100, 0, "ir_100_nr_0").labels)
    assert counts[:5].tolist() == [4923, 5742, 4958, 5131, 4842]
    assert int(counts[5:].sum()) == 25_596 // 100
    scaled = train.images.double() / 255
    assert float(scaled.mean()) == pytest.approx(MNIST.mean[0], abs=1e-4)
    assert float(scaled.std()) == pytest.approx(MNIST.std[0], abs=1e-4)


def test_the_digits_of_scikit_learn():
    train, test = DIGITS.load(None)
    assert (len(train), len(test)) == (1397, 400)
    assert torch.bincount(test.labels).tolist() == [40] * 10
    assert torch.equal(DIGITS.load(None)[1].images, test.images)
    scaled = train.images.double() / 255
    assert (float(scaled.mean()), float(scaled.std())) == pytest.approx((DIGITS.mean[0], DIGITS.std[0]), abs=1e-4)
    large = enlarge(torch.full((1, 8, 8), 16.0))  # in a margin
    assert (large[0, 0, 4:24, 4:24] == 255).all()
    assert int(large.sum()) == 255 * 400


def write_silhouettes(folder, **changes):
    """The path of a small file of the silhouettes' form, some of its arrays changed."""
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(0, 256, (6, 28, 28), np.uint8), "train_labels": np.arange(6, dtype=np.uint8)}
    arrays |= {"test_images": arrays["train_images"][:2], "test_labels": np.array([0, 9], np.uint8)}
    np.savez(folder / silhouettes.FILE, **(arrays | changes))
    return folder / silhouettes.FILE


def write_wheel(folder, **changes):
    """A file like the package's with the real images, some of its objects changed."""
    path = SHARED / "data" / "Silhouettes" / silhouettes.FILE
    if not path.exists():
        pytest.skip("needs the silhouettes")
    positions = np.load(silhouettes.POSITIONS)
    objects = {"data": np.zeros((10_000, 28, 28), np.uint8), "label": np.zeros(10_000, np.int64)} | changes
    with np.load(path) as arrays:
        for part, kind in (("data", "images"), ("label", "labels")):
            if part not in changes:
                objects[part][positions] = np.concatenate([arrays[f"train_{kind}"], arrays[f"test_{kind}"]])
    with zipfile.ZipFile(folder / silhouettes.WHEEL, "w") as wheel:
        for part, value in objects.items():
            wheel.writestr(silhouettes.MEMBERS.format(part), gzip.compress(pickle.dumps(value), 1))


def test_the_silhouettes_from_the_package(tmp_path):
    write_wheel(tmp_path)
    train, test = silhouettes.load_silhouettes(tmp_path)  # the content is known
    assert (len(train), len(test)) == (7716, 2000)
    assert torch.bincount(test.labels).tolist() == [200] * 10
    for strange in (print, np.zeros(9)):
        write_wheel(tmp_path, label=strange)
        refuses(lambda: silhouettes.load_silhouettes(tmp_path), f"{silhouettes.WHEEL} is damaged: download it again")
    write_wheel(tmp_path, data=np.zeros((10_000, 28, 28)))
    refuses(
        lambda: silhouettes.load_silhouettes(tmp_path), f"{silhouettes.WHEEL} has images and labels (7716, 28, 28) f"
    )


def test_the_silhouettes(tmp_path, capsys, monkeypatch):
    refuses(lambda: silhouettes.load_silhouettes(tmp_path), "pip3 download --no-deps animal-mnist==0.4 -d")
    path = write_silhouettes(tmp_path)
    refuses(lambda: silhouettes.load_silhouettes(tmp_path), f"{path}: not the known content (SHA-256)")
    train, test = silhouettes.load_silhouettes(tmp_path, strict=False)
    assert "not the known content" in capsys.readouterr().err
    assert (train.images.shape, train.images.dtype) == ((6, 1, 28, 28), torch.uint8)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 9])
    assert torch.equal(test.images, train.images[:2])
    monkeypatch.setattr(silhouettes, "SHA256", train.source.removeprefix(f"{UNOFFICIAL} "))
    assert silhouettes.load_silhouettes(tmp_path)[0].source is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_images": np.zeros((2, 32, 32), np.uint8)}, "(2, 32, 32) uint8 and (2,) uint8, not (N, 28, 28)"),
        ({"train_labels": np.zeros(5, np.uint8)}, "(6, 28, 28) uint8 and (5,) uint8"),
        ({"train_labels": np.zeros(6)}, "(6,) float64"),
        ({"test_labels": np.array([0, 10], np.uint8)}, "labels that are not 0 to 9"),
        ({"test_labels": np.array([{}, {}])}, "is damaged, or not an .npz file"),  # a pickle
    ],
)
def test_silhouettes_that_do_not_fit(tmp_path, changes, words):
    path = write_silhouettes(tmp_path, **changes)
    for expected in (str(path), words):
        refuses(lambda expected=expected: silhouettes.load_silhouettes(tmp_path, strict=False), expected)


@pytest.mark.parametrize("harm", [lambda content: content[:-40], lambda content: b"", lambda content: b"\x80\4N."])
def test_damaged_silhouettes(tmp_path, harm):
    path = write_silhouettes(tmp_path)
    path.write_bytes(harm(path.read_bytes()))
    refuses(lambda: silhouettes.load_silhouettes(tmp_path), f"{path} is damaged, or not an .npz file")


def test_runs_draw_their_own_and_keep_it(tmp_path):
    train, test = DIGITS.load(None)
    draws = {}
    for number, seed in ((0, 0), (1, 0), (0, 1)):
        work = workspace(DIGITS, tmp_path / str(seed), train, test, number, seed)
        pool = work.pool_indices(20, "ir_20_nr_0")
        assert not torch.isin(pool, work.validation_indices()).any()
        again = workspace(DIGITS, tmp_path / str(seed), train, test, number, seed)
        again.generator = None  # a second draw would fail
        assert torch.equal(again.pool_indices(20, "ir_20_nr_0"), pool)
        draws[number, seed] = pool.tolist()
    assert len({tuple(pool) for pool in draws.values()}) == 3
    with pytest.raises(UserError, match="its seed is 0, not 1"):
        workspace(DIGITS, tmp_path / "0", train, test, seed=1).validation_indices()


def test_noisy_labels_belong_to_the_pool_alone(tmp_path):
    train, test = DIGITS.load(None)
    work = workspace(DIGITS, tmp_path, train, test)
    pool, rows = work.pool(20, 0.5, "ir_20_nr_0.5"), work.pool_indices(20, "ir_20_nr_0.5")
    changed = int((pool.labels != train.labels[rows]).sum())
    assert 0.3 * len(pool) < changed <= 0.5 * len(pool)
    assert torch.equal(work.pool(20, 0.5, "ir_20_nr_0.5").labels, pool.labels)
