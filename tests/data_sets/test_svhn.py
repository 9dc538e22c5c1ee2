"""SVHN's files and splits, ResNet-10, and the four scripts end to end on scikit-learn's digits in colour."""

import os
import shutil

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
import torchvision
from torchvision.models.resnet import BasicBlock

from alfk.data import bias
from alfk.data.split import UNOFFICIAL, Split
from alfk.experiment.config import Recipe, StepDecay
from alfk.experiment.training import fit
from alfk.method.descriptors import descriptors_of
from alfk.networks.modes import dropout_mode
from alfk.networks.resnet import TappedResNet
from alfk.networks.weights import kaiming_fan_out
from alfk.support.errors import UserError
from svhn.config import SVHN
from svhn.custom_datasets import svhn
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import (
    call,
    draw,
    official_svhn,
    outcome,
    records,
    refused,
    refuses,
    workspace,
    write_digit_mats,
    write_mat,
)

# Images of each digit, 0 to 9, in the official files.
TRAIN = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
EXTRA = (45550, 90560, 74740, 60765, 50633, 53490, 41582, 43997, 35358, 34456)
TEST = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)
SMALL = {part: [round(c / 400) for c in counts] for part, counts in zip(svhn.NAMES, (TRAIN, TEST, EXTRA), strict=True)}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The official files in miniature, 1/400 of every class; returns the folder and what is in each file."""
    folder = tmp_path_factory.mktemp("miniature") / "SVHN"
    (folder / "raw").mkdir(parents=True)
    content = {p: write_mat(folder / "raw" / svhn.NAMES[p], SMALL[p], seed) for seed, p in enumerate(SMALL)}
    return folder, content


@pytest.fixture
def online(miniature, tmp_path):
    """A folder with the three .mat files, which are the official ones, also on a server; nothing is converted yet."""
    folder, raw = tmp_path / "SVHN", miniature[0] / "raw"
    shutil.copytree(raw, folder / "raw")
    with official_svhn(raw):
        yield folder


def load(folder):
    return svhn.load_svhn(folder, strict=False)


def same(splits, content):
    """Whether the images are those that were written."""
    train, test = splits
    parts = (content["train"][0], content["extra"][0])
    return np.array_equal(train.images, np.concatenate(parts)) and np.array_equal(test.images, content["test"][0])


def svhn_workspace(folder, tmp_path):
    train, test = load(folder)
    return workspace(SVHN.for_data(train), tmp_path, train, test)


def test_the_official_class_counts_give_the_stated_sizes():
    """500,000 and 104,388 at ir=1; about 318,556 in the pool at ir=100."""
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(TRAIN) + torch.tensor(EXTRA))
    assert (len(labels), sum(TRAIN), sum(TEST)) == (SVHN.train_images, 73_257, 26_032)
    validation, pool = bias.split_validation(labels, SVHN.validation_per_class, torch.Generator())
    assert (len(validation), len(pool)) == (104_388, 500_000)
    assert torch.bincount(labels[validation]).tolist() == [10_439] * 8 + [10_438] * 2
    assert len(bias.thin_minority(labels[pool], SVHN.minority, 100, torch.Generator())) == 318_556


def test_the_miniature_is_split_in_proportion(miniature, tmp_path):
    folder, content = miniature
    work = svhn_workspace(folder, tmp_path)
    labels = np.concatenate([content["train"][1], content["extra"][1]])
    assert same((work.train, work.test), content)
    assert torch.equal(work.train.labels, torch.from_numpy(labels))
    assert work.test.labels.tolist() == content["test"][1].tolist()
    validation, pool = work.validation_indices(), work.pool_indices(1, "ir_1_nr_0")
    each = 10_439 * len(labels) // SVHN.train_images
    assert torch.bincount(torch.from_numpy(labels)[validation]).tolist() == [each] * 10
    assert sorted([*pool.tolist(), *validation.tolist()]) == list(range(len(labels)))  # no index in two parts
    thin = work.pool_indices(100, "ir_100_nr_0")
    assert not set(thin.tolist()) & set(validation.tolist())
    kept = torch.bincount(torch.from_numpy(labels)[thin], minlength=10)
    many = np.bincount(labels)[:5] - each
    assert kept[:5].tolist() == many.tolist()
    assert int(kept[5:].sum()) == many.sum() // 100


def test_the_mat_files_are_read_once(miniature, tmp_path, monkeypatch):
    folder, reads, loadmat = tmp_path / "SVHN", [], scipy.io.loadmat
    shutil.copytree(miniature[0] / "raw", folder / "raw")
    first = load(folder)
    monkeypatch.setattr(scipy.io, "loadmat", lambda path, **more: reads.append(path.name) or loadmat(path, **more))
    assert torch.equal(load(folder)[1].images, first[1].images)
    assert not reads
    images, labels = write_mat(folder / "raw" / svhn.NAMES["test"], [3] * 10, 9)  # another file, read again
    test = load(folder)[1]
    assert set(reads) == {svhn.NAMES["test"]}
    assert np.array_equal(test.images.numpy(), images)
    assert test.labels.tolist() == labels.tolist()
    shutil.rmtree(folder / "raw")  # the arrays are enough
    assert len(load(folder)[0]) == len(first[0])


def test_a_conversion_that_was_cut_short_is_done_again(miniature, tmp_path, monkeypatch):
    folder, loadmat = tmp_path / "SVHN", scipy.io.loadmat
    shutil.copytree(miniature[0] / "raw", folder / "raw")

    def die(path, variable_names):
        if "extra" in path.name and "X" in variable_names:
            raise KeyboardInterrupt
        return loadmat(path, variable_names=variable_names)

    with monkeypatch.context() as patch:
        patch.setattr(scipy.io, "loadmat", die)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert same(load(folder), miniature[1])


def test_files_of_another_origin_are_refused_unless_asked_for(online, miniature):
    """Before they are converted, and after; what the message says leads back to the official ones."""
    path, header = online / "raw" / svhn.NAMES["test"], online / "processed" / "test_labels.json"
    _, labels = write_mat(path, [2] * 10, 4)
    message = f"{path}: not the official content (md5), figures are not those of SVHN; delete it, then it is downloaded"
    refuses(lambda: svhn.load_svhn(online), message)
    refuses(lambda: svhn.load_svhn(online), "or take other files of the same form by --allow-subset")
    test = load(online)[1]
    assert test.labels.tolist() == labels.tolist()
    assert test.source.startswith(UNOFFICIAL)
    message = f"{header}: made of test_32x32.mat, not the official content (md5), figures are not those of SVHN"
    refuses(lambda: svhn.load_svhn(online), f"{message}; delete it, then the .mat files are converted again")
    header.unlink()
    path.unlink()
    assert same(svhn.load_svhn(online), miniature[1])


PIXELS, DIGITS = np.zeros((32, 32, 3, 5), np.uint8), np.ones((5, 1), np.uint8)
OTHER = {
    "labels to 11": {"X": PIXELS, "y": DIGITS + 10},
    "labels from 0": {"X": PIXELS, "y": DIGITS - 1},
    "fractions": {"X": PIXELS, "y": DIGITS * 1.5},
    "no number": {"X": PIXELS, "y": DIGITS * np.nan},
    "text": {"X": PIXELS, "y": "12345"},
    "a structure": {"X": PIXELS, "y": {"label": 1}},
    "a sparse matrix": {"X": PIXELS, "y": scipy.sparse.csc_matrix(DIGITS)},
    "no labels": {"X": PIXELS},
    "other counts": {"X": PIXELS, "y": DIGITS[:4]},
    "other sides": {"X": PIXELS[:28, :28], "y": DIGITS},
    "a single image": {"X": PIXELS[..., 0], "y": DIGITS[:1]},
    "no image": {"X": PIXELS[..., :0], "y": DIGITS[:0]},
    "floats": {"X": PIXELS.astype(np.float64), "y": DIGITS},
    "no images": {"y": DIGITS},
}


@pytest.mark.parametrize("case", OTHER)
def test_a_file_of_something_else_is_named(tmp_path, case):
    raw = tmp_path / "SVHN" / "raw"
    raw.mkdir(parents=True)
    scipy.io.savemat(raw / svhn.NAMES["train"], {"X": PIXELS, "y": DIGITS})
    scipy.io.savemat(raw / svhn.NAMES["extra"], OTHER[case])
    refuses(lambda: load(tmp_path / "SVHN"), f"{raw / svhn.NAMES['extra']} does not hold SVHN's cropped digits: ")


def test_labels_may_be_stored_as_floats(tmp_path):
    raw = tmp_path / "SVHN" / "raw"
    raw.mkdir(parents=True)
    for name in svhn.NAMES.values():
        scipy.io.savemat(raw / name, {"X": PIXELS, "y": DIGITS * 10.0})
    assert load(tmp_path / "SVHN")[1].labels.tolist() == [0] * 5


def test_arrays_of_different_conversions_are_not_mixed(online):
    svhn.load_svhn(online)
    kept = {path: path.read_bytes() for path in (online / "processed").glob("test_images.*")}
    write_mat(online / "raw" / svhn.NAMES["test"], SMALL["test"], 5)
    load(online)
    for path, content in kept.items():
        path.write_bytes(content)
    refuses(lambda: load(online), f"{online}/processed/test_images.npy is not the file it should be: its sources")


def test_no_files_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "URLS", dict.fromkeys(svhn.URLS, "http://127.0.0.1:9/x.mat"))
    files = "train_32x32.mat, test_32x32.mat, extra_32x32.mat"
    with pytest.raises(UserError, match=rf"SVHN's train_32x32.mat is not here .* put {files} into .*SVHN/raw"):
        svhn.load_svhn(tmp_path / "SVHN")


def test_a_download_that_breaks_off_leaves_nothing_under_the_files_name(online, monkeypatch):
    """Its md5 is wrong, as that of half a file is."""
    shutil.rmtree(online / "raw")
    right = svhn.MD5
    with monkeypatch.context() as patch:
        patch.setattr(svhn, "MD5", dict.fromkeys(right, "0" * 32))
        refuses(lambda: load(online), "SVHN's train_32x32.mat is not here")
        assert not list((online / "raw").iterdir())
    train, _ = svhn.load_svhn(online)
    assert train.source == f"{right['train']} {right['extra']}"
    assert len(list((online / "raw").iterdir())) == 3


def test_too_few_images_of_a_class(tmp_path):
    folder = tmp_path / "SVHN"
    (folder / "raw").mkdir(parents=True)
    for name in svhn.NAMES.values():
        write_mat(folder / "raw" / name, [0, *[5] * 9], 0)
    with pytest.raises(UserError, match="class 0 has 0 images"):
        svhn_workspace(folder, tmp_path).validation_indices()


# The network


def resnet():
    model = ResNet10(10)
    kaiming_fan_out(model, torch.Generator().manual_seed(1))
    return model.eval()


def images(count, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("size", "sides"), [(32, (8, 4, 2)), (64, (16, 8, 4))])
def test_taps_have_the_stated_shapes(size, sides):
    logits, taps = resnet()(images(2, size))
    wanted = [(2, width, side, side) for width, side in zip((64, 128, 256), sides, strict=True)]
    assert [tuple(tap.shape) for tap in taps] == [*wanted, (2, 512)]
    assert logits.shape == (2, 10)
    for length, indices in SVHN.descriptors.items():
        assert sum((64, 128, 256, 512)[i] for i in indices) == length


def test_the_network_is_torchvisions():
    """Equal logits from equal weights, whose names are torchvision's."""
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    ours = TappedResNet(BasicBlock, [2, 2, 2, 2], 7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(3, 64)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], theirs(x))
    assert sum(p.numel() for p in ResNet10().parameters()) == 4_910_922


def test_an_images_descriptor_does_not_depend_on_its_batch():
    """Batch norm is in evaluation mode."""
    pixels = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    split = Split(pixels, torch.arange(9), SVHN.mean, SVHN.std)
    model = resnet().train()
    rule = lambda probe: split.labels[probe.positions]  # noqa: E731
    together, alone = (descriptors_of(model, split, (2, 3), rule, size) for size in (9, 1))
    assert together.vectors.shape == (9, 2 * 768)
    assert torch.allclose(together.vectors, alone.vectors, atol=2e-4)
    assert model.training


def test_dropout_follows_both_relus_of_every_block_where_uncertainty_is_sampled():
    model, seen = resnet(), []
    for block in model.modules():
        if isinstance(block, BasicBlock):
            block.relu.register_forward_hook(lambda module, _, out: seen.append(float((out == 0).float().mean())))
    with torch.no_grad(), dropout_mode([model]):
        first, second = (model.after_dropout(model.before_dropout(images(4)))[0] for _ in range(2))
    assert len(seen) == 2 * 2 * 4
    dropped = list(seen)
    assert not torch.allclose(first, second)
    seen.clear()
    with torch.no_grad():
        third, fourth = (model(images(4))[0] for _ in range(2))
    assert torch.equal(third, fourth)
    # A quarter of the rest of the first block, whose input is the same.
    assert dropped[0] == pytest.approx(seen[0] + 0.25 * (1 - seen[0]), abs=0.02)


def test_a_last_batch_of_one_image():
    """Batch norm cannot be trained on it; every epoch leaves another one out."""
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(5), SVHN.mean, SVHN.std)
    recipe = Recipe(epochs=2, batch_size=2, lr=0.01, momentum=0.5, weight_decay=0.0, schedule=StepDecay(15))
    model = resnet()
    fit(model, split, recipe, torch.Generator().manual_seed(0))
    assert int(model.bn1.num_batches_tracked) == 4
    with pytest.raises(UserError, match="single image"):
        fit(model, split.subset(torch.tensor([3])), recipe, torch.Generator())


def test_training_learns():
    """ResNet-10 tells bright images from dark ones."""
    labels = torch.arange(32) % 2
    pixels = (
        labels.view(-1, 1, 1, 1) * 120
        + torch.randint(0, 100, (32, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    ).to(torch.uint8)
    split = Split(pixels, labels, SVHN.mean, SVHN.std)
    recipe = Recipe(epochs=5, batch_size=16, lr=0.1, momentum=0.5, weight_decay=0.0, schedule=StepDecay(15))
    model = resnet()
    fit(model, split, recipe, torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = model.eval()(next(split.batches(32))[0])[0].argmax(1)
    assert (said == labels).double().mean() > 0.9


# The scripts


FEW = ["--device", "cpu", "-as", 10, "-e", 1, "--unsup-epochs", 1, "-smp", 2, "-ir", 10]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    datadir = tmp_path_factory.mktemp("digits")
    (datadir / "SVHN" / "raw").mkdir(parents=True)
    write_digit_mats(datadir / "SVHN" / "raw")
    return datadir


def script(name, datadir, *arguments, status=0):
    return call(f"svhn/{name}", "--datadir", datadir, "--allow-subset", *FEW, *arguments, status=status)


@pytest.mark.slow
def test_the_scripts_end_to_end(digits, tmp_path):
    """By run.py a method of every kind; by the other three scripts the same as by run.py."""
    whole, by_hand = tmp_path / "whole", tmp_path / "by_hand"
    several = ["--run-stop", 1, "--iterations", 2, "--save-folder", whole]
    done = script("run.py", digits, *several, "--initial", "--methods", "varR")
    assert done.stderr.count("figures are not those of SVHN") == 1
    script("unsup.py", digits, "--save-folder", by_hand)
    assert outcome(by_hand) == outcome(whole)
    script("run.py", digits, *several, "--methods", "Rzg_pz", "varR", "-dl", 512)
    script("run.py", digits, *several, "--iterations", 1, "--methods", "random", "Rzg_mi", "flqmi", "-dl", 512)
    lines = records(whole / "run0")
    ran = [("Rzg_mi", 0), ("Rzg_pz", 0), ("Rzg_pz", 1), ("flqmi", 0), ("random", 0), ("varR", 0), ("varR", 1)]
    assert sorted((line["method"], line["b"]) for line in lines) == ran
    count = len(np.load(digits / "SVHN" / "processed" / "train_labels.npy"))
    validation = sum(max(1, each * count // SVHN.train_images) for each in SVHN.validation_per_class)
    for line in lines:
        assert sum(line["selected_histogram"]) == 10
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / (count - validation))
    here = ["-sub", "Rzg_pz", "-dl", 512, "--save-folder", by_hand]
    for b in (0, 1):
        printed = script("gen_descr.py", digits, *here, "-b", b).stdout.splitlines()
        assert [np.load(path, mmap_mode="r")["descriptor"].shape[1] for path in printed] == [1024, 1024]
        script("main_descr.py", digits, *here, "-b", b)
    wanted, mine = outcome(whole), outcome(by_hand)
    assert mine["run0/results.jsonl"] == [r for r in wanted["run0/results.jsonl"] if r["method"] == "Rzg_pz"]
    assert all(value == wanted[name] for name, value in mine.items() if name != "run0/results.jsonl")
    (tmp_path / "SVHN").symlink_to(whole)
    assert "SVHN, 10x class imbalance (not the official files)" in draw(tmp_path).stdout


def test_a_run_is_bound_to_its_files_and_to_flags_that_fit(digits, tmp_path):
    few = ["svhn/run.py", "--datadir", digits, "--device", "cpu", "--save-folder", tmp_path]
    refused(*few, "--initial", words="--allow-subset")
    refused(*few, "--allow-subset", "-dl", 80, words="no descriptor of length L=80; there are 256, 512, 768")
    refused(*few, "--allow-subset", "--initial", "--run-stop", 1, words="lower -as")
    copy = shutil.copytree(digits, tmp_path / "copy")
    same = [*few[:2], copy, *few[3:], "--allow-subset", *FEW[2:], "--run-stop", 1, "--iterations", 1]
    call(*same, "--initial")
    os.replace(copy / "SVHN" / "raw" / svhn.NAMES["extra"], copy / "SVHN" / "raw" / svhn.NAMES["test"])
    write_mat(copy / "SVHN" / "raw" / svhn.NAMES["extra"], [9] * 10, 1)
    refused(*same, words="was made with other image files")
