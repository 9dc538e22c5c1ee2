"""MNIST's files, the embedded digits, and how a run divides them."""

import gzip
import shutil
import struct

import numpy as np
import pytest
import torch
import torchvision

from alfk.errors import UserError
from mnist.config import DIGITS, MNIST
from mnist.custom_datasets import mnist
from mnist.custom_datasets.digits import enlarge
from tests.helpers import workspace


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small(tmp_path):
    """Four small IDX files, two of them gzipped."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i, (name, count) in enumerate(zip(mnist.FILES, (12, 12, 5, 5), strict=True)):
        shape = (count, 28, 28) if "images" in name else (count,)
        content = idx(generator.integers(0, 10, shape, dtype=np.uint8))
        (raw / (f"{name}.gz" if i % 2 else name)).write_bytes(gzip.compress(content) if i % 2 else content)
    return raw.parent


def test_gzipped_and_plain_files(small):
    train, test = mnist.load_mnist(small)
    assert (train.images.shape, len(test)) == ((12, 1, 28, 28), 5)
    content = (small / "raw" / mnist.FILES[0]).read_bytes()
    assert train.images.numpy().tobytes() == content[16:]


@pytest.mark.parametrize("which", range(4))
def test_a_truncated_file_is_named(small, which):
    path = next((small / "raw").glob(f"{mnist.FILES[which]}*"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{path.name} is truncated"):
        mnist.load_mnist(small)


def test_a_corrupt_archive_is_named(small):
    path = next((small / "raw").glob("*.gz"))
    content = bytearray(path.read_bytes())
    content[12:40] = bytes(28)
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or not"):
        mnist.load_mnist(small)


def test_a_file_of_something_else_is_named(small):
    (small / "raw" / mnist.FILES[0]).write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(UserError, match="not an IDX file"):
        mnist.load_mnist(small)


def test_files_that_do_not_belong_together(small):
    shutil.copy(small / "raw" / f"{mnist.FILES[3]}.gz", small / "raw" / f"{mnist.FILES[1]}.gz")
    with pytest.raises(UserError, match="do not belong together"):
        mnist.load_mnist(small)


def test_no_files_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UserError) as raised:
        mnist.load_mnist(tmp_path / "MNIST")
    message = str(raised.value)
    assert all(f"{name}.gz" in message for name in mnist.FILES)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "--dataset DIGITS" in message
    assert "\n" not in message


def test_the_real_thing_has_the_protocols_sizes(mnist_raw, tmp_path):
    train, test = mnist.load_mnist(mnist_raw.parent)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    work = workspace(MNIST, tmp_path, train, test)
    assert torch.bincount(work.validation().labels).tolist() == [1000] * 10
    assert work.undistorted_pool_size() == len(work.pool_indices(1, "ir_1_nr_0")) == 50_000
    pool = work.pool(100, 0, "ir_100_nr_0")
    counts = torch.bincount(pool.labels)
    assert counts[:5].tolist() == [4923, 5742, 4958, 5131, 4842]
    assert int(counts[5:].sum()) == 25_596 // 100
    scaled = train.images.double() / 255
    assert float(scaled.mean()) == pytest.approx(MNIST.mean[0], abs=1e-4)
    assert float(scaled.std()) == pytest.approx(MNIST.std[0], abs=1e-4)


def test_the_embedded_digits():
    train, test = DIGITS.load(None)
    assert (len(train), len(test)) == (1397, 400)
    assert torch.bincount(test.labels).tolist() == [40] * 10
    assert torch.equal(DIGITS.load(None)[1].images, test.images)
    scaled = train.images.double() / 255
    assert (float(scaled.mean()), float(scaled.std())) == pytest.approx((DIGITS.mean[0], DIGITS.std[0]), abs=1e-4)


def test_digits_are_centred_in_a_margin():
    large = enlarge(torch.full((1, 8, 8), 16.0))
    assert (large[0, 0, 4:24, 4:24] == 255).all()
    assert int(large.sum()) == 255 * 400


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


def test_noisy_labels_belong_to_the_pool_alone(tmp_path):
    train, test = DIGITS.load(None)
    work = workspace(DIGITS, tmp_path, train, test)
    pool, rows = work.pool(20, 0.5, "ir_20_nr_0.5"), work.pool_indices(20, "ir_20_nr_0.5")
    changed = int((pool.labels != train.labels[rows]).sum())
    assert 0.3 * len(pool) < changed <= 0.5 * len(pool)
    assert torch.equal(work.pool(20, 0.5, "ir_20_nr_0.5").labels, pool.labels)


def test_an_index_list_of_another_seed_is_refused(tmp_path):
    train, test = DIGITS.load(None)
    workspace(DIGITS, tmp_path, train, test, seed=0).validation_indices()
    with pytest.raises(UserError, match="its seed is 0, not 1"):
        workspace(DIGITS, tmp_path, train, test, seed=1).validation_indices()
