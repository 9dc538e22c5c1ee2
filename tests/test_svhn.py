"""SVHN's files, splits and ResNet-10, and its four scripts end to end on a real subset."""

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
from alfk.method.acquisition import METHODS
from alfk.method.descriptors import describe
from alfk.networks.modes import dropout_mode
from alfk.networks.resnet import TappedResNet
from alfk.networks.weights import kaiming_fan_out
from alfk.rivals.methods import RIVALS
from alfk.support.checkpoints import save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import read_json, write_json
from svhn.config import SVHN
from svhn.custom_datasets import svhn
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import call, draw, official_svhn, outcome, records, refused, refuses, workspace, write_mat

# Images of each digit, 0 to 9, in the official files.
TRAIN = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
EXTRA = (45550, 90560, 74740, 60765, 50633, 53490, 41582, 43997, 35358, 34456)
TEST = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The official files in miniature, 1/100 of every class; returns the folder and what is in each file."""
    folder = tmp_path_factory.mktemp("miniature") / "SVHN"
    (folder / "raw").mkdir(parents=True)
    content = {}
    for part, counts in (("train", TRAIN), ("extra", EXTRA), ("test", TEST)):
        path = folder / "raw" / svhn.NAMES[part]
        content[part] = write_mat(path, [round(count / 100) for count in counts], len(content))
    return folder, content


def load(folder):
    return svhn.load_svhn(folder, strict=False)


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
    assert len(labels) == 6046
    assert torch.equal(work.train.labels, torch.from_numpy(labels))
    assert np.array_equal(work.train.images.numpy(), np.concatenate([content["train"][0], content["extra"][0]]))
    assert np.array_equal(work.test.images.numpy(), content["test"][0])
    validation = work.validation_indices()
    assert torch.bincount(torch.from_numpy(labels)[validation]).tolist() == [104] * 10
    pool = work.pool_indices(1, "ir_1_nr_0")
    assert len(pool) == 6046 - 1040
    assert sorted([*pool.tolist(), *validation.tolist()]) == list(range(6046))  # no index in two parts
    thin = work.pool_indices(100, "ir_100_nr_0")
    assert not set(thin.tolist()) & set(validation.tolist())
    kept = torch.bincount(torch.from_numpy(labels)[thin], minlength=10)
    many = np.bincount(labels)[:5] - 104
    assert kept[:5].tolist() == many.tolist()
    assert int(kept[5:].sum()) == many.sum() // 100


def test_the_mat_files_are_read_once(miniature, tmp_path, monkeypatch):
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0], folder)
    first = load(folder)[1].images.clone()
    reads = []
    monkeypatch.setattr(scipy.io, "loadmat", lambda path: reads.append(path.name) or loadmat(path))
    assert torch.equal(load(folder)[1].images, first)
    assert not reads
    images, labels = write_mat(folder / "raw" / svhn.NAMES["test"], [3] * 10, 9)  # another file, read again
    test = load(folder)[1]
    assert reads == [svhn.NAMES["test"]]
    assert np.array_equal(test.images.numpy(), images)
    assert test.labels.tolist() == labels.tolist()
    shutil.rmtree(folder / "raw")  # the arrays are enough
    assert len(load(folder)[0]) == 6046


loadmat = scipy.io.loadmat


def test_a_conversion_that_was_cut_short_is_done_again(miniature, tmp_path, monkeypatch):
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0] / "raw", folder / "raw")

    def die(path):
        if "extra" in path.name:
            raise KeyboardInterrupt
        return loadmat(path)

    monkeypatch.setattr(scipy.io, "loadmat", die)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    monkeypatch.setattr(scipy.io, "loadmat", loadmat)
    train, _ = load(folder)
    assert np.array_equal(train.images[-5:].numpy(), miniature[1]["extra"][0][-5:])


def test_files_of_another_origin_are_refused_unless_asked_for(miniature, tmp_path):
    """Before they are converted, and after; what the line says leads back to the official ones."""
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0] / "raw", folder / "raw")
    with official_svhn(miniature[0] / "raw"):
        path, header = folder / "raw" / svhn.NAMES["test"], folder / "processed" / "test_labels.json"
        _, labels = write_mat(path, [2] * 10, 4)
        for _ in range(2):
            told = f"{path}: not the official content (md5), figures are not those of SVHN; delete it, then it is"
            refuses(lambda: svhn.load_svhn(folder), told)
            refuses(lambda: svhn.load_svhn(folder), "or take other files of the same form by --allow-subset")
            assert load(folder)[1].labels.tolist() == labels.tolist()
            told = f"{header}: made of test_32x32.mat, not the official content (md5), figures are not those of SVHN"
            refuses(lambda: svhn.load_svhn(folder), f"{told}; delete it, then the .mat files are converted again")
            header.unlink()
        path.unlink()
        assert same(svhn.load_svhn(folder), miniature[1])


@pytest.fixture
def online(miniature, tmp_path):
    """A folder with the three .mat files, which are the official ones, also on a server; nothing is converted yet."""
    folder, raw = tmp_path / "SVHN", miniature[0] / "raw"
    shutil.copytree(raw, folder / "raw")
    with official_svhn(raw):
        yield folder


def same(splits, content):
    """Whether the images are those that were written."""
    train, test = splits
    parts = (content["train"][0], content["extra"][0])
    return np.array_equal(train.images, np.concatenate(parts)) and np.array_equal(test.images, content["test"][0])


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("harm", ["truncated", "empty", "text"])
def test_a_damaged_file_is_named_and_downloaded_again_after_it_is_deleted(online, miniature, harm, part):
    path = online / "raw" / svhn.NAMES[part]
    content = {"truncated": path.read_bytes()[:-20_000], "empty": b"", "text": b"<html>not found</html>" * 50}
    path.write_bytes(content[harm])
    refuses(lambda: load(online), f"{path} is truncated or not a MATLAB file: delete it, then it is downloaded again")
    told = f"{path}: not the official content (md5), figures are not those of SVHN; delete it, then it is downloaded"
    refuses(lambda: svhn.load_svhn(online), told)
    path.unlink()
    splits = svhn.load_svhn(online)
    assert same(splits, miniature[1])
    assert UNOFFICIAL not in splits[0].source + splits[1].source


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
def test_a_file_of_something_else_is_named(miniature, tmp_path, case):
    shutil.copytree(miniature[0] / "raw", tmp_path / "SVHN" / "raw")
    path = tmp_path / "SVHN" / "raw" / svhn.NAMES["extra"]
    scipy.io.savemat(path, OTHER[case])
    refuses(lambda: load(tmp_path / "SVHN"), f"{path} does not hold SVHN's cropped digits: ")


def test_labels_may_be_stored_as_floats(miniature, tmp_path):
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0] / "raw", folder / "raw")
    scipy.io.savemat(folder / "raw" / svhn.NAMES["test"], {"X": PIXELS, "y": DIGITS * 10.0})
    assert load(folder)[1].labels.tolist() == [0] * 5


@pytest.mark.parametrize("kind", ["folder", "FIFO"])
@pytest.mark.parametrize("converted", [False, True])
def test_what_is_no_regular_file_is_named(miniature, tmp_path, kind, converted):
    """Among the .mat files, and among what they were converted to."""
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0] / "raw", folder / "raw")
    if converted:
        load(folder)
    places = [folder / "raw" / svhn.NAMES["train"]]
    if converted:
        places += [folder / "processed" / f"test_{what}" for what in ("labels.json", "labels.npy", "images.npy")]
    for path in places:
        kept = path.rename(tmp_path / "kept")
        path.mkdir() if kind == "folder" else os.mkfifo(path)
        refuses(lambda: load(folder), f"cannot read {path}: ")
        path.rmdir() if kind == "folder" else path.unlink()
        kept.rename(path)
    assert same(load(folder), miniature[1])


def rewrite(path, change):
    """Change a header, with the right checksum."""
    header = read_json(path)
    change(header)
    write_json(path, header)


SPOILT = {
    "no sources": (lambda header: header.pop("sources"), "does not state the .mat files"),
    "null": (lambda header: header.update(sources=None), "does not state the .mat files"),
    "an object": (lambda header: header.update(sources={"name": 1}), "does not state the .mat files"),
    "text": (lambda header: header.update(sources=["test_32x32.mat"]), "does not state the .mat files"),
    "no md5": (lambda header: header["sources"][0].pop("md5"), "does not state the .mat files"),
    "a number": (lambda header: header["sources"][0].update(md5=1), "does not state the .mat files"),
    "a name": (lambda header: header["sources"][0].update(mtime_ns="1"), "does not state the .mat files"),
    "none": (lambda header: header.update(sources=[]), "was made of other .mat files than test has"),
    "twice": (lambda header: header["sources"].append(header["sources"][0]), "was made of other .mat files"),
    "another": (lambda header: header["sources"][0].update(name="extra_32x32.mat"), "was made of other .mat files"),
    "another kind": (lambda header: header.update(kind="images"), "is not the file it should be: its kind is images"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", SPOILT)
def test_a_header_that_is_not_one_is_named_and_made_again_after_it_is_deleted(online, miniature, case, strict):
    svhn.load_svhn(online)
    change, words = SPOILT[case]
    path = online / "processed" / "test_labels.json"
    rewrite(path, change)
    refuses(lambda: svhn.load_svhn(online, strict), words)
    refuses(lambda: svhn.load_svhn(online, strict), "delete it, then the .mat files are converted again")
    refuses(lambda: svhn.load_svhn(online, strict), str(path.with_suffix("")))
    path.unlink()
    assert same(svhn.load_svhn(online, strict), miniature[1])


@pytest.mark.parametrize("name", ["test_labels.json", "test_labels.npy", "train_images.json", "train_images.npy"])
def test_a_damaged_array_is_named_and_made_again_after_it_is_deleted(online, miniature, name):
    """Also after the .mat files are gone: then they are downloaded."""
    svhn.load_svhn(online)
    shutil.rmtree(online / "raw")
    path = online / "processed" / name
    content = path.read_bytes()
    for spoilt in (content[:-9], b"", content[:-9] + b"x" * 9):
        path.write_bytes(spoilt)
        refuses(lambda: svhn.load_svhn(online), f"{path} is damaged")
        refuses(lambda: svhn.load_svhn(online), "delete it, then the .mat files are converted again")
        path.unlink()
        assert same(svhn.load_svhn(online), miniature[1])
        shutil.rmtree(online / "raw")


def test_arrays_of_different_conversions_are_not_mixed(online, miniature, tmp_path):
    svhn.load_svhn(online)
    kept = {path: path.read_bytes() for path in (online / "processed").glob("test_images.*")}
    write_mat(online / "raw" / svhn.NAMES["test"], [round(count / 100) for count in TEST], 5)
    load(online)
    for path, content in kept.items():
        path.write_bytes(content)
    refuses(lambda: load(online), f"{online}/processed/test_images.npy is not the file it should be: its sources")


def test_no_files_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "URLS", dict.fromkeys(svhn.URLS, "http://127.0.0.1:9/x.mat"))
    files = "train_32x32.mat, test_32x32.mat, extra_32x32.mat"
    with pytest.raises(UserError, match=rf"SVHN's train_32x32.mat is not here .* put {files} into .*SVHN/raw"):
        svhn.load_svhn(tmp_path / "SVHN")


def test_a_download_that_breaks_off_leaves_nothing_under_the_files_name(online, miniature, monkeypatch):
    """Its md5 is wrong, as that of half a file is; then it is what it should be."""
    shutil.rmtree(online / "raw")
    right = svhn.MD5
    with monkeypatch.context() as patch:
        patch.setattr(svhn, "MD5", dict.fromkeys(right, "0" * 32))
        for _ in range(2):
            refuses(lambda: load(online), "SVHN's train_32x32.mat is not here")
            assert not list((online / "raw").iterdir())
    train, _ = svhn.load_svhn(online)
    assert train.source == f"{right['train']} {right['extra']}"
    assert len(list((online / "raw").iterdir())) == 3


def test_a_run_is_bound_to_the_files_it_was_made_of(miniature, tmp_path):
    folder = tmp_path / "SVHN"
    shutil.copytree(miniature[0], folder)
    before = svhn_workspace(folder, tmp_path)
    before.folder.check_manifest(before.settings())
    before.folder.record_session(before.settings("initial"), {})
    model = before.folder.initial("ir_1_nr_0", unsupervised=False)
    save_checkpoint(model, {}, {"settings": before.settings("initial")})
    write_mat(folder / "raw" / svhn.NAMES["test"], [round(count / 100) for count in TEST], 77)
    after = svhn_workspace(folder, tmp_path)
    with pytest.raises(UserError, match=r"was made with other image files.*unofficial"):
        after.folder.check_manifest(after.settings("initial"))


def test_too_few_images_of_a_class(tmp_path):
    folder = tmp_path / "SVHN"
    (folder / "raw").mkdir(parents=True)
    for part in svhn.NAMES:
        write_mat(folder / "raw" / svhn.NAMES[part], [0, *[5] * 9], 0)
    with pytest.raises(UserError, match="class 0 has 0 images"):
        svhn_workspace(folder, tmp_path).validation_indices()


def test_a_subset_of_a_subset_shares_the_images():
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    split = Split(images, torch.arange(10), (0.0,), (1.0,))
    view = split.subset(torch.tensor([9, 3, 7, 1])).subset(torch.tensor([2, 0]), torch.tensor([4, 5]))
    assert view.store.data_ptr() == images.data_ptr()
    assert torch.equal(view.images, images[[7, 9]])
    assert view.labels.tolist() == [4, 5]
    ((batch, positions),) = view.batches(5, torch.tensor([1, 0]))
    assert positions.tolist() == [1, 0]
    assert torch.allclose(batch, images[[9, 7]] / 255)
    with pytest.raises(UserError, match="2 images but 3 labels"):
        split.subset(torch.tensor([1, 2]), torch.arange(3))


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


def test_scores_are_gradients_at_the_taps():
    """g for L=768 against finite differences of the loss, moved along one tap's channel."""
    model = resnet().double()
    x, labels = images(2).double(), torch.tensor([3, 8])
    _, taps = model(x)
    loss = torch.nn.functional.cross_entropy(model.fc(taps[3]), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, taps[3])
    for channel in (0, 77, 511):
        losses = []
        for step in (-1e-5, 1e-5):
            moved = taps[3].detach().clone()
            moved[:, channel] += step
            losses.append(torch.nn.functional.cross_entropy(model.fc(moved), labels, reduction="none"))
        slope = (losses[1] - losses[0]) / 2e-5
        assert torch.allclose(slope, gradient[:, channel], atol=1e-7)


def test_an_images_descriptor_does_not_depend_on_its_batch():
    """Batch norm is in evaluation mode."""
    pixels = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    split = Split(pixels, torch.arange(9), SVHN.mean, SVHN.std)
    model = resnet().train()
    rule = lambda probe: split.labels[probe.positions]  # noqa: E731
    together, alone = (describe(model, split, (2, 3), rule, size) for size in (9, 1))
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


def test_training_learns(tmp_path):
    """ResNet-10 tells bright images from dark ones."""
    labels = torch.arange(64) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(0, 100, (64, 3, 32, 32))).to(torch.uint8)
    split = Split(pixels, labels, SVHN.mean, SVHN.std)
    recipe = Recipe(epochs=5, batch_size=16, lr=0.1, momentum=0.5, weight_decay=0.0, schedule=StepDecay(15))
    model = resnet()
    fit(model, split, recipe, torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = model.eval()(next(split.batches(64))[0])[0].argmax(1)
    assert (said == labels).double().mean() > 0.9


# The scripts, on the real subset, or on scikit-learn's digits in colour

SMALL = ["--device", "cpu", "--allow-subset", "-as", "20", "-e", "1", "--unsup-epochs", "1", "-smp", "2"]


@pytest.fixture(scope="module")
def subset(svhn_raw, tmp_path_factory):
    datadir = tmp_path_factory.mktemp("subset")
    (datadir / "SVHN").mkdir()
    (datadir / "SVHN" / "raw").symlink_to(svhn_raw)
    return datadir


@pytest.fixture(scope="module")
def initial(subset, tmp_path_factory):
    """Initial models for ensembles of two."""
    folder = tmp_path_factory.mktemp("initial")
    several = ["--methods", "varR", "-ens", 2, "--run-stop", 1, "-ir", 10]
    told = script("run.py", subset, "--initial", *several, "--save-folder", folder)
    assert told.stderr.count("figures are not those of SVHN") == 1
    return folder


def script(name, datadir, *arguments, status=0):
    return call(f"svhn/{name}", "--datadir", datadir, *SMALL, *arguments, status=status)


@pytest.mark.slow
def test_every_method_runs(subset, initial, tmp_path):
    (tmp_path / "SVHN").mkdir()
    shutil.copytree(initial, tmp_path / "SVHN", dirs_exist_ok=True)
    here = ["-ir", 10, "--run-stop", 1, "--save-folder", tmp_path / "SVHN"]
    cheap = [key for key, m in METHODS.items() if m.needs_descriptors and not m.estimates_from_copies]
    script("run.py", subset, *here, "--iterations", 1, "--methods", "random", *cheap, "-dl", 768)
    script("run.py", subset, *here, "--iterations", 1, "--methods", "Rz", "-dl", 256, 512)
    dear = [key for key, m in METHODS.items() if m.estimates_from_copies]
    script("run.py", subset, *here, "--iterations", 1, "--methods", *dear, "-dl", 512)
    uncertain = [key for key, m in METHODS.items() if m.needs_uncertainty]
    script("run.py", subset, *here, "--iterations", 2, "--methods", *uncertain, "-ens", 2)
    act = [rival.key for rival in RIVALS if rival.acts_first]
    script("run.py", subset, *here, "--iterations", 1, "--methods", *act)
    later = [rival.key for rival in RIVALS if not rival.acts_first]
    script("run.py", subset, *here, "--iterations", 2, "--methods", *later)
    lines = records(tmp_path / "SVHN" / "run0")
    assert len(lines) == 1 + len(cheap) + 2 + len(dear) + 2 * len(uncertain) + len(act) + 2 * len(later)
    assert {line["method"] for line in lines} == set(METHODS)
    images = len(np.load(subset / "SVHN" / "processed" / "train_labels.npy"))
    validation = sum(max(1, count * images // SVHN.train_images) for count in SVHN.validation_per_class)
    for line in lines:
        assert sum(line["selected_histogram"]) == 20
        assert line["labelled_share"] == pytest.approx(100 * line["labelled"] / (images - validation))
    assert "SVHN, 10x class imbalance (not the official files)" in draw(tmp_path).stdout


@pytest.mark.slow
def test_by_hand_and_by_one_command(subset, initial, tmp_path):
    """Two iterations by run.py; by the scripts, one by one."""
    one = ["--methods", "Rzg_pz", "-dl", 768, "--run-stop", 1, "--iterations", 2, "-ir", 10]
    whole, by_hand, half = (tmp_path / name for name in ("whole", "by_hand", "half"))
    for folder in (whole, half):
        shutil.copytree(initial, folder)
    script("run.py", subset, *one, "--save-folder", whole)
    script("unsup.py", subset, "-r", 0, "-ir", 10, "--save-folder", by_hand)
    here = ["-r", 0, "-ir", 10, "-sub", "Rzg_pz", "-dl", 768, "--save-folder"]
    for b in (0, 1):
        told = script("gen_descr.py", subset, *here, by_hand, "-b", b).stdout.splitlines()
        assert [np.load(path, mmap_mode="r")["descriptor"].shape[1] for path in told] == [1536, 1536]
        script("main_descr.py", subset, *here, by_hand, "-b", b)
    wanted, mine = outcome(whole), outcome(by_hand)
    assert mine == {name: value for name, value in wanted.items() if "_E_1" not in name}  # the ensemble's other member
    told = script("gen_descr.py", subset, *here, half, "--descr-dtype", "float16").stdout.splitlines()
    assert [np.load(path, mmap_mode="r")["descriptor"].dtype for path in told] == [np.float16, np.float16]
    script("main_descr.py", subset, *here, half, "--descr-dtype", "float16")


def test_the_subset_needs_its_flag_and_a_query_that_fits(subset, tmp_path):
    few = ["--datadir", subset, "--device", "cpu", "--save-folder", tmp_path]
    refused("svhn/run.py", *few, "--initial", words="--allow-subset")
    told = call("svhn/run.py", *few, "--allow-subset", "-dl", 80, status=2)
    assert "no descriptor of length L=80; there are 256, 512, 768" in told.stderr
    told = call("svhn/run.py", *few, "--allow-subset", "--initial", "--run-stop", 1, status=2)
    assert "lower -as" in told.stderr
