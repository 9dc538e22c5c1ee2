"""Splits of a torch.utils.data.Dataset: read item by item, also in other processes, which may die."""

import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData

import alfk
from alfk.data import arrays
from alfk.data.split import Split
from alfk.support.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)  # (N, H, W, C)
FIRST = COLOURS.transpose(0, 3, 1, 2)
LABELS = np.arange(12) % 3


def refused(words, function, *arguments, **more):
    """A UserError of one line."""
    with pytest.raises(UserError, match=words) as caught:
        function(*arguments, **more)
    assert "\n" not in str(caught.value)


def batch(split):
    return next(split.batches(len(split)))[0]


class Items(torch.utils.data.Dataset):
    """Whatever a function makes of a position."""

    def __init__(self, item, count=12):
        self.item, self.count, self.seen = item, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.seen.append(i)
        return self.item(i)


def labelled_float(i):
    return torch.from_numpy(FIRST[i] / 60 - 2).float(), int(LABELS[i])


def labelled_picture(i):
    return Image.fromarray(COLOURS[i]), "abc"[LABELS[i]]


@pytest.mark.parametrize("workers", [0, 2])
def test_float_items_are_taken_as_their_transform_gives_them(workers):
    split = Split.of(Items(labelled_float), workers=workers)
    wanted = torch.from_numpy(FIRST / 60 - 2).float()
    assert (split.mean, split.std, split.in_files) == ((0.0,), (1.0,), True)
    assert split.labels.tolist() == LABELS.tolist()
    assert torch.equal(torch.cat([images for images, _ in split.batches(5)]), wanted)
    view = split.subset([7, 2, 9]).to("cpu").subset([2, 0])
    assert torch.equal(batch(view), wanted[[9, 7]])
    assert view.labels.tolist() == LABELS[[9, 7]].tolist()
    assert len(next(split.batches(5, torch.tensor([3])))[0]) == 1


def test_picture_items_are_scaled_and_their_names_are_mapped():
    split, wanted = Split.of(Items(labelled_picture)), Split.of(COLOURS, ["abc"[label] for label in LABELS])
    assert (split.labels.tolist(), split.classes) == (wanted.labels.tolist(), ("a", "b", "c"))
    assert (split.mean, split.std) == (pytest.approx(wanted.mean), pytest.approx(wanted.std))
    assert torch.allclose(batch(split), batch(wanted), atol=1e-5)
    assert torch.equal(batch(Split.of(Items(labelled_picture), like=wanted)), batch(wanted))
    assert torch.equal(split.images, wanted.images)


def test_items_are_read_when_they_are_needed(monkeypatch):
    items = Items(labelled_float)
    split = Split.of(items, LABELS)
    assert set(items.seen) == {0}  # for their shape
    items.seen.clear()
    batch(split.subset([4, 8]))
    assert items.seen == [4, 8]
    monkeypatch.setattr("alfk.data.split.SAMPLE", 4)
    items = Items(lambda i: COLOURS[i])
    assert Split.of(items).mean == pytest.approx(Split.of(COLOURS[[0, 4, 7, 11]]).mean)
    assert set(items.seen) == {0, 4, 7, 11}


def test_labels_of_a_data_set_are_found_without_reading_it():
    first = torch.from_numpy(FIRST / 255).float()
    tensors = TensorDataset(first, torch.from_numpy(LABELS))
    assert Split.of(tensors).labels.tolist() == LABELS.tolist()
    assert Split.of(Subset(tensors, [5, 3])).labels.tolist() == LABELS[[5, 3]].tolist()
    assert Split.of(TensorDataset(first)).labels is None
    assert torch.equal(batch(Split.of(Subset(tensors, [5, 3]))), first[[5, 3]])
    for name in ("targets", "labels"):
        items = Items(labelled_picture)
        setattr(items, name, ["xyz"[label] for label in LABELS])
        assert Split.of(items).classes == ("x", "y", "z")
        assert Split.of(Subset(Subset(items, range(6)), [1, 4])).labels.tolist() == [0, 0]
        assert Split.of(items, LABELS, mean=0.5, std=0.5).labels.tolist() == LABELS.tolist()
        items.target_transform = str.upper  # what it gives is found in the items alone
        assert Split.of(items).classes == ("a", "b", "c")
    assert Split.of(Items(lambda i: COLOURS[i])).labels is None


def test_a_data_set_of_torchvision():
    data = FakeData(20, (3, 16, 16), 4, transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]))
    split = Split.of(data)
    assert torch.equal(batch(split), torch.stack([image for image, _ in data]))
    assert split.labels.tolist() == [int(label) for _, label in data]


def test_random_transforms_are_those_of_the_seed_for_any_batches_and_workers():
    """And neither they nor the reading advance the global generator."""

    state = torch.get_rng_state()
    passes = []
    for workers, size in ((0, 12), (0, 5), (2, 4)):
        split = Split.of(Items(lambda i: i + torch.rand(1, 4, 6)), mean=0, std=1, workers=workers)
        passes.append([torch.cat([b for b, _ in split.batches(size, None, seed)]) for seed in (None, None, 1, 2)])
    for found in passes:
        for one, other in zip(found, passes[0], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[2], found[3])
    assert torch.equal(torch.get_rng_state(), state)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([labelled_float(0)])


@pytest.mark.parametrize(
    ("item", "more", "words"),
    [
        (lambda i: torch.zeros(3, 8, 8 + i // 7), {}, r"image 0 is \(3, 8, 8\) float32, image \d+ is \(3, 8, 9\)"),
        (lambda i: torch.zeros(3, 8, 8, dtype=torch.int64), {}, r"images are int64"),
        (lambda i: {"image": labelled_float(i)}, {}, r"items are dictionaries"),
        (lambda i: torch.full((1, 8, 8), float("nan") if i == 9 else 0.0), {}, r"image 9 has values that are NaN"),
        (lambda i: torch.full((1, 8, 8), 2.0 * i), {"mean": 0.5, "std": 0.5}, r"divide them by 255"),
        (lambda i: (labelled_float(i)[0], -1), {}, r"labels go from -1"),
        (lambda i: "a.png", {}, r"Split.from_files"),
    ],
)
@pytest.mark.parametrize("size", [12, 7])
def test_items_that_would_be_misread_are_refused(item, more, words, size):
    refused(words, lambda: list(Split.of(Items(item), **more).batches(size)))


def test_data_sets_that_cannot_be_indexed_are_refused():
    refused(r"map-style", Split.of, Stream())
    refused(r"no items", Split.of, Items(labelled_float, 0))
    refused(r"image 0 is .*, image 7 is", lambda: list(Split.of(Items(odd_sizes), workers=2).batches(7)))


def odd_sizes(i):
    return torch.zeros(3, 8, 8 + i // 7)


def in_a_worker():
    return torch.utils.data.get_worker_info() is not None


DEATHS = {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "ended": lambda: os._exit(1)}
DEAD = "a process that reads the data set ended before its work, as when memory runs out: use fewer workers"


@pytest.mark.parametrize("death", DEATHS)
def test_a_reading_process_that_dies_ends_the_reading_in_a_line(death):
    split = Split.of(Items(lambda i: DEATHS[death]() if in_a_worker() and i == 8 else torch.ones(1, 4, 6)), workers=2)
    start = time.monotonic()
    refused(DEAD, lambda: list(split.batches(3)))
    assert time.monotonic() - start < 20
    if death == "killed":
        labelled = Items(lambda i: (torch.ones(1, 4, 6), DEATHS[death]() if in_a_worker() else 0), 300)
        refused(DEAD, Split.of, labelled, workers=2)


def test_a_reading_process_whose_death_is_noticed_in_the_midst_of_a_query():
    """torch raises its error from a signal handler, wherever the main process is."""

    class Net(torch.nn.Module):
        def forward(self, _):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    split = Split.of(Items(labelled_float))
    refused(DEAD, alfk.select, "Rz", Net(), split, split, 3)


def test_a_reading_process_whose_death_is_noticed_while_images_are_checked(monkeypatch):
    def noticed(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    split = Split.of(Items(labelled_float))
    monkeypatch.setattr(arrays, "check_values", noticed)
    refused(DEAD, lambda: list(split.batches(3)))
    monkeypatch.setattr(arrays, "mean_and_std", noticed)
    refused(DEAD, Split.of, Items(lambda i: (torch.ones(1, 4, 6, dtype=torch.uint8), 0)))


def test_items_of_reading_processes_need_no_shared_memory(monkeypatch):
    """A container's /dev/shm has few MiB; a process that finds no room for a tensor would be waited for for ever."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", lambda *_: os._exit(1))
    split = Split.of(Items(labelled_float), workers=2)
    assert torch.equal(torch.cat([images for images, _ in split.batches(5)]), torch.from_numpy(FIRST / 60 - 2).float())


def test_a_split_of_items_can_be_sent_to_a_process():
    split = pickle.loads(pickle.dumps(Split.of(TensorDataset(torch.rand(4, 1, 8, 8)), [0, 1, 0, 1])))
    assert batch(split).shape == (4, 1, 8, 8)


# Classes of the data set's own


class Folder(Items):
    """Like torchvision's ImageFolder, which numbers the classes that it finds."""

    def __init__(self, names):
        super().__init__(lambda i: FIRST[i], len(names))
        self.classes = sorted(set(names))
        self.targets = [self.classes.index(name) for name in names]


def test_a_data_sets_own_classes_are_found_by_name():
    def names(split):
        return [split.classes[label] for label in split.labels]

    pool = Split.of(Folder(["ant", "bee", "cat"]))
    validation = Split.of(Folder(["cat", "ant", "cat"]), like=pool)
    assert (validation.classes, names(validation)) == (("ant", "bee", "cat"), ["cat", "ant", "cat"])
    assert names(Split.of(Subset(Folder(["dog", "cat", "bee"]), [2, 1]), like=pool)) == ["bee", "cat"]
    assert names(Split.of(Folder(["cat", "ant"]), classes=["cat", "ant"])) == ["cat", "ant"]
    cranes = Folder(["ant", "bee", "cat"])
    cranes.classes = [("crane",), ("bee", "Apis"), ("crane",)]  # like torchvision's ImageNet
    assert names(Split.of(cranes)) == ["crane 0", "bee, Apis", "crane 2"]
    assert names(Split.of(Folder(["3", "1", "2"]))) == ["3", "1", "2"]
    refused(r"the class 'emu', which is not among the classes", Split.of, Folder(["emu", "ant"]), like=pool)
    assert names(Split.of(Folder(["emu", "ant"]), [1, 0], like=pool)) == ["bee", "ant"]  # labels that are given


# Data sets of Hugging Face


ImageFeature = type("Image", (), {})


class ClassLabel:
    def __init__(self, names):
        self.names = names


class HuggingFace:
    """The documented interface of datasets.Dataset, as far as it is used."""

    def __init__(self, columns, features):
        self.columns, self.features, self.column_names = columns, features, list(columns)

    def __len__(self):
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: self.columns[name][key] for name in self.columns}


PICTURES = [Image.fromarray(image) for image in COLOURS]


def test_a_data_set_of_hugging_face():
    labels = LABELS.tolist()
    features = {"image": ImageFeature(), "label": ClassLabel(["owl", "ant", "bee"])}
    split = Split.of(HuggingFace({"image": PICTURES, "label": labels}, features))
    assert torch.equal(split.images, Split.of(COLOURS).images)
    assert (split.labels.tolist(), split.classes) == (labels, ("owl", "ant", "bee"))
    unlabelled = Split.of(HuggingFace({"img": PICTURES}, {"img": ImageFeature()}), like=split)
    assert unlabelled.labels is None
    floats = [torch.from_numpy(image) / 60 - 2 for image in FIRST]
    transformed = HuggingFace({"image": PICTURES, "pixel_values": floats}, {"image": ImageFeature()})
    assert torch.equal(batch(Split.of(transformed)), torch.stack(floats))


def test_data_sets_of_hugging_face_that_are_not_clear():
    def made(**features):
        return HuggingFace(dict.fromkeys(features, PICTURES), features)

    class Streamed:
        features, column_names = {"image": ImageFeature()}, ["image"]

    coarse = ClassLabel(["a", "b"])
    refused(r"load it without streaming=True", Split.of, Streamed())
    refused(r"no column of the data set is of type Image, among label: .*np.array", Split.of, made(label=coarse))
    words = r"the columns fine, coarse: leave out all but one, dataset.remove_columns\(\['coarse'\]\)"
    refused(words, Split.of, made(image=ImageFeature(), fine=coarse, coarse=coarse))
    refused(r"x is a dict of train, test: give one of them, x\[...\]", Split.of, {"train": 1, "test": 2})
    sizes = HuggingFace({"image": [PICTURES[0], PICTURES[1].resize((5, 5))]}, {"image": ImageFeature()})
    refused(r"resize and convert them", Split.of, sizes)
