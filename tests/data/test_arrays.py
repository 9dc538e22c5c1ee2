"""Splits of arrays, lists and files, with masks and names: read as they are meant, or refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision import transforms

from alfk.data.arrays import check_labels, mean_and_std, positions
from alfk.data.split import Split
from alfk.support.errors import UserError
from tests.helpers import picture

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)  # (N, H, W, C)
FEATURES = RNG.normal(5, 3, (12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3


def refused(words, function, *arguments, **more):
    """A UserError of one line."""
    with pytest.raises(UserError, match=words) as caught:
        function(*arguments, **more)
    assert "\n" not in str(caught.value)


def batch(split, **more):
    return next(split.batches(len(split), **more))[0]


# Positions


@given(st.integers(3, 30), st.data())
@settings(max_examples=40)
def test_positions_in_every_form_are_the_same(count, data):
    wanted = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count - 1))
    mask = np.zeros(count, dtype=bool)
    mask[wanted] = True
    array = np.array(wanted, dtype=np.int64)
    forms = [wanted, tuple(wanted), array, array.astype(np.uint16), array.astype(float), torch.from_numpy(array)]
    for form in [*forms, torch.tensor(wanted, dtype=torch.int32), [torch.tensor(i) for i in wanted]]:
        found = positions(form, count, "labelled")
        assert (found.dtype, found.tolist()) == (torch.int64, wanted)
    for form in (mask, mask.tolist(), torch.from_numpy(mask)):
        assert positions(form, count, "labelled").tolist() == sorted(wanted)


@pytest.mark.parametrize("nothing", [None, [], (), np.array([]), torch.tensor([]), torch.empty(0, dtype=torch.bool)])
def test_empty_inputs_are_no_positions(nothing):
    found = positions(nothing, 5, "labelled")
    assert (found.dtype, found.shape) == (torch.int64, (0,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([0, 1, 1, 0, 0], r"labelled has 5 integers 0 and 1.*convert it to bool"),
        (torch.tensor([0.0, 1, 1, 0, 0]), r"convert it to bool"),
        ([3, 1, 3], r"position 3 twice"),
        ([-1], r"position -1, but there are 5 images: give 0 to 4"),
        ([5, 0], r"position 5, but"),
        ([1.5], r"whole numbers"),
        ([float("nan")], r"whole numbers"),
        ([float("inf")], r"whole numbers"),
        ([[1, 2]], r"shape \(1, 2\)"),
        (3, r"shape \(\)"),
        ([True, False], r"mask of length 2 for 5"),
        (["cat"], r"give positions or a boolean mask, not a list"),
        ({1, 2}, r"not a set"),
        ([[1], [2, 3]], r"give positions"),
    ],
)
def test_positions_that_are_none_are_refused(wrong, words):
    refused(words, positions, wrong, 5, "labelled")


def test_both_images_of_two_are_positions():
    """With two images 0, 1 has no repetition and is what a shuffle gives."""
    assert positions([0, 1], 2, "labelled").tolist() == [0, 1]
    assert positions([3, 1, 3], 5, "rows", repeats=True).tolist() == [3, 1, 3]


# Labels


def test_labels_have_to_fit_the_models_outputs():
    check_labels(torch.arange(10), 10, "the validation set")
    check_labels(torch.empty(0, dtype=torch.int64), 10, "the pool")
    words = r"labels of the validation set go from 1 to 10, but the model has 10 outputs: labels are 0 to 9"
    refused(words, check_labels, torch.arange(10) + 1, 10, "the validation set")
    refused(r"go from -1 to 8", check_labels, torch.arange(10) - 1, 10, "the pool")
    refused(r"\(3, 3\) float32: give class numbers", check_labels, torch.eye(3), 10, "the pool")
    refused(r"\(3,\) float32", check_labels, torch.zeros(3), 10, "the pool")


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda y: np.array(y, np.uint8), np.float32])
def test_labels_in_every_form(form):
    split = Split.of(COLOURS, form(LABELS.tolist()))
    assert (split.labels.dtype, split.labels.tolist(), split.classes) == (torch.int64, LABELS.tolist(), None)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=12))
@settings(max_examples=30)
def test_names_are_numbered_in_sorted_order_and_kept(names):
    names = [f"a{name}" for name in names]
    for form in (names, np.array(names, dtype=object), tuple(names)):
        split = Split.of(COLOURS[: len(names)], form)
        assert split.classes == tuple(sorted(set(names)))
        assert [split.classes[label] for label in split.labels] == names


def test_names_follow_the_classes_that_are_given_or_those_of_another_split():
    pool = Split.of(COLOURS, classes=["dog", "cat", "owl"])
    assert pool.labels is None
    for more in ({"like": pool}, {"classes": np.array(["dog", "cat", "owl"])}):
        split = Split.of(COLOURS[:2], np.array(["owl", "dog"]), **more)
        assert (split.labels.tolist(), split.classes) == ([2, 0], ("dog", "cat", "owl"))
    assert Split.of(COLOURS, LABELS, like=pool).classes == pool.classes
    assert pool.subset([4, 2], ["owl", "cat"]).labels.tolist() == [2, 1]
    refused(r"no class 'emu': the classes are dog, cat, owl", Split.of, COLOURS[:1], ["emu"], like=pool)
    refused(r"labels are names, but the split does not know them", Split.of(COLOURS).subset, [0], ["cat"])


def test_what_contradicts_the_split_it_is_like():
    pool = Split.of(COLOURS, classes=["dog", "cat", "owl"])
    refused(r"classes differ from those of like, dog, cat, owl", Split.of, COLOURS, like=pool, classes=["cat", "dog"])
    normalised = Split.of(torch.utils.data.TensorDataset(torch.randn(6, 3, 8, 10)))
    words = r"pass these through the same transform"
    refused(words, Split.of, COLOURS, like=normalised)
    refused(words, Split.of, COLOURS, mean=0.5, like=normalised)
    refused(words, Split.of(COLOURS).normalised_like, normalised)
    assert Split.of(torch.randn(3, 3, 8, 10), like=normalised).std == normalised.std


class NAType:
    """Like pandas.NA, which does not say whether it equals anything."""

    def __eq__(self, other):
        raise TypeError("boolean value of NA is ambiguous")

    __ne__, __hash__ = __eq__, None


def test_unknown_labels_are_minus_one_where_they_are_allowed():
    numbers = [1, -1, 0], [1.0, float("nan"), 0.0], torch.tensor([1, -1, 0]), [1, None, 0], [1, NAType(), 0]
    for form in (*numbers, ["b", None, "a"], ["b", "", "a"], np.array(["b", NAType(), "a"], dtype=object)):
        refused(r"unknown_labels=True|whole numbers", Split.of, COLOURS[:3], form)
        split = Split.of(COLOURS[:3], form, unknown_labels=True)
        assert split.labels.tolist() == [1, -1, 0]
        assert split.subset([2, 1], form[:2]).labels.tolist() == [1, -1]
    refused(r"go from -2", Split.of, COLOURS[:2], [-2, 0], unknown_labels=True)
    assert Split.of(COLOURS[:2], [None, None], unknown_labels=True).labels.tolist() == [-1, -1]


def test_digits_as_names_are_sorted_as_numbers():
    split = Split.of(COLOURS, [str(i) for i in range(12)][::-1])
    assert split.classes == tuple(map(str, range(12)))
    assert split.labels.tolist() == list(range(12))[::-1]


def test_integers_that_may_be_names_or_class_numbers_are_refused():
    pool = Split.of(COLOURS, classes=["1", "2", "3"])
    for labels in ([1, 2, 3], np.array([0, 1, 2])):
        refused(r"are integers, and so are the names of the classes, 1, 2, 3", pool.subset, [0, 1, 2], labels)
        refused(r"give names as text", Split.of, COLOURS[:3], labels, like=pool)
    for labels in (["1", "3", "2"], torch.tensor([0, 2, 1])):
        assert pool.subset([0, 1, 2], labels).labels.tolist() == [0, 2, 1]
    assert Split.of(COLOURS, LABELS, classes=["0", "1", "2"]).labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("y", "more", "words"),
    [
        (np.eye(12), {}, r"shape \(12, 12\): .*labels.argmax\(1\)"),
        (LABELS + 0.5, {}, r"labels: these are not whole numbers"),
        (LABELS - 1, {}, r"labels go from -1 to 1: classes are numbered from 0"),
        (LABELS[:5], {}, r"12 images but 5 labels"),
        (LABELS, {"classes": ["a", "b"]}, r"labels go up to 2, but the 2 classes are 0 to 1"),
        (LABELS, {"classes": ["a", "b", "a"]}, r"name 'a' twice"),
        (LABELS, {"classes": []}, r"classes is empty"),
        (LABELS, {"classes": "abc"}, r"classes='abc' is not a list of names"),
        (np.ma.masked_equal(LABELS, 1), {}, r"labels: some values are masked"),
        (np.ma.masked_equal(LABELS.astype("U1"), "1"), {}, r"labels: some values are masked"),
        (["a"] * 11 + [3], {}, r"names and other values \(3\)"),
        (4, {}, r"labels have the shape \(\)"),
    ],
)
def test_labels_that_would_be_misread_are_refused(y, more, words):
    refused(words, Split.of, COLOURS, y, **more)


# Images and features


def plain(x, mean, std):
    """The normalisation written out: (N, C, H, W) in float64."""
    scaled = x.astype(np.float64) / (255 if x.dtype == np.uint8 else 1)
    return (scaled - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))


GREY, FIRST = COLOURS[..., 0], COLOURS.transpose(0, 3, 1, 2)
FORMS = {
    "channels last": (COLOURS, FIRST),
    "channels first": (FIRST, FIRST),
    "one channel, last": (COLOURS[..., :1], FIRST[:, :1]),
    "many channels": (RNG.random((5, 12, 6, 7)), None),
    "grey": (GREY, GREY[:, None]),
    "tensor": (torch.from_numpy(FIRST.copy()), FIRST),
    "list of arrays": (list(COLOURS), FIRST),
    "list of tensors": (list(torch.from_numpy(FIRST.copy())), FIRST),
    "PIL, colour": ([Image.fromarray(image) for image in COLOURS], FIRST),
    "PIL, grey": ([Image.fromarray(image) for image in GREY], GREY[:, None]),
    "PIL, alpha": ([Image.fromarray(image).convert("RGBA") for image in COLOURS], FIRST),
    "float16": ((COLOURS / 255).astype(np.float16), (FIRST / 255).astype(np.float16)),
    "float64": (COLOURS / 255, FIRST / 255),
    "bfloat16": (torch.from_numpy(FIRST / 255).bfloat16(), torch.from_numpy(FIRST / 255).bfloat16().double().numpy()),
    "flipped": (COLOURS[:, ::-1], FIRST[:, :, ::-1]),
    "foreign bytes": ((COLOURS / 255).astype(">f4"), (FIRST / 255).astype(np.float32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_normalised_as_written_out(form):
    x, wanted = FORMS[form]
    wanted = x if wanted is None else wanted
    split = Split.of(x)
    assert split.store.dtype in (torch.uint8, torch.float32)
    scaled = wanted.astype(np.float64) / (255 if wanted.dtype == np.uint8 else 1)
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    assert split.mean == pytest.approx(mean, rel=1e-6)
    assert split.std == pytest.approx(std, rel=1e-5)
    assert np.allclose(batch(split), plain(wanted, mean, std), atol=1e-4)
    assert np.allclose(batch(Split.of(x, mean=0.25, std=0.5)), plain(wanted, 0.25, 0.5), atol=1e-5)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.floats(-(2**20), 2**20, width=32)
    ),
    st.integers(1, 20),
)
@settings(max_examples=40)
def test_features_are_standardised_by_column(x, size):
    split = Split.of(x)
    mean, std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    steady = np.ptp(x, 0) == 0
    assert np.allclose(split.mean, mean, rtol=1e-6, atol=1e-30)
    assert np.allclose(np.array(split.std)[steady], 1)
    usable = ~steady & (std > 1e-3 * np.abs(mean)) & (std > 1e-30)
    assert np.allclose(np.array(split.std)[usable], std[usable], rtol=1e-6)
    found = torch.cat([images for images, _ in split.batches(size)])
    assert found.dtype == torch.float32
    x, mean, std = x[:, usable], mean[usable], std[usable]
    assert np.allclose(found[:, usable], (x - mean) / std, atol=1e-3)


def test_columns_far_from_zero_keep_their_digits():
    years = np.array([[2000.0], [2000.5], [2001.0]]) + 2**20
    assert np.allclose(batch(Split.of(years)).flatten(), [-(1.5**0.5), 0, 1.5**0.5], atol=1e-5)


def test_moments_do_not_depend_on_the_batches(monkeypatch):
    whole = mean_and_std([torch.from_numpy(FIRST)])
    monkeypatch.setattr("alfk.data.arrays.CHUNK", 500)
    parts = mean_and_std(torch.from_numpy(FIRST).split([5, 1, 6]))
    for found, wanted in zip(parts, whole, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_channel_without_variation_is_divided_by_one():
    x = COLOURS.copy()
    x[..., 1] = 77
    assert Split.of(x).std[1] == 1
    assert not batch(Split.of(x))[:, 1].abs().max() > 1e-6
    rounded = np.full((12, 2), 0.1, np.float32)
    rounded[::2, 1] = np.nextafter(rounded[0, 1], 1)
    assert Split.of(rounded).std == (1, 1)


def test_mean_and_std_in_every_form_and_those_of_another_split():
    wanted = batch(Split(torch.from_numpy(FIRST.copy()), None, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)))
    for form in (tuple, list, np.array, torch.tensor):
        split = Split.of(COLOURS, mean=form([0.1, 0.2, 0.3]), std=form([0.5]))
        assert torch.equal(batch(split), wanted)
        assert split.std == (0.5,)
    pool = Split.of(COLOURS)
    validation = Split.of(COLOURS[:3] // 2, like=pool)
    assert (validation.mean, validation.std) == (pool.mean, pool.std)
    assert Split.of(COLOURS[:3], mean=0.5, like=pool).std == pool.std
    assert Split.of(COLOURS[:3], mean=0.5).std == Split.of(COLOURS[:3]).std
    refused(r"mean has 3 values, but there are 1 channels", Split.of, GREY, like=pool)


def test_images_that_are_normalised_already_are_taken_as_they_are():
    x = (RNG.normal(size=(5, 3, 8, 8)) * 3).astype(np.float32)
    assert torch.equal(batch(Split.of(x, mean=0, std=1)), torch.from_numpy(x))
    x[3, 0, 0, 0] = np.inf
    refused(r"image 3 has values that are NaN or infinite", Split.of, x, mean=0, std=1)


def spoiled(x, row, value):
    x = np.array(x, dtype=np.float64)
    x[row].flat[5 % x[row].size] = value
    return x


@pytest.mark.parametrize(
    ("x", "more", "words"),
    [
        (RNG.random((5, 3, 32, 3)), {}, r"first or last: permute them"),
        (COLOURS.astype(np.int64), {}, r"images are int64: convert them to uint8"),
        (COLOURS.astype(np.uint16), {}, r"images are uint16: convert"),
        (COLOURS > 9, {}, r"images are bool: convert"),
        (COLOURS.astype(np.float32), {}, r"from 0 to 255: divide them by 255"),
        (COLOURS.astype(np.float32), {"mean": 0.5, "std": 0.5}, r"divide them by 255"),
        (COLOURS / 127.5 - 1, {}, r"from -1 to 1: if your own transform .* mean=0, std=1"),
        (spoiled(COLOURS / 255, 7, np.nan), {}, r"image 7 has values that are NaN"),
        (spoiled(FEATURES, 9, np.inf), {}, r"row 9 has values that are NaN or infinite"),
        (spoiled(FEATURES, 2, 1e300), {}, r"row 2 has values that are NaN or infinite in float32"),
        (FEATURES + np.array([0, 1e9, 0, 0]), {}, r"column 1 goes from 10000000\S+ to .* subtract the same number"),
        (np.ma.masked_greater(FEATURES, 0.5), {}, r"images: some values are masked"),
        ([np.ma.masked_equal(COLOURS[0], COLOURS[0, 0, 0, 0])], {}, r"image 0: some values are masked"),
        (torch.from_numpy(FEATURES).to_sparse(), {}, r"images: a sparse tensor .*to_dense"),
        (COLOURS, {"mean": np.ma.masked_equal([0.5, 0.5, 0], 0), "std": 0.5}, r"mean: some values are masked"),
        (FEATURES.astype(np.int64), {}, r"features \(N, D\) are int64: convert them to float32"),
        (GREY.reshape(12, -1), {}, r"features \(N, D\) are uint8"),
        (COLOURS, {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"divide both by 255"),
        (COLOURS, {"mean": 0.5, "std": 58.4}, r"divide both by 255"),
        (COLOURS, {"mean": (0.5, 0.5), "std": 0.5}, r"mean has 2 values, but there are 3 channels"),
        (COLOURS, {"mean": 0.5, "std": 0}, r"std is \[0.0\]: give finite positive"),
        (COLOURS, {"mean": float("nan"), "std": 1}, r"mean is \[nan\]"),
        (COLOURS, {"mean": "grey"}, r"mean='grey' is not a number"),
        (FEATURES[:, 0], {}, r"shape \(12,\)"),
        (COLOURS[None], {}, r"shape \(1, 12, 8, 10, 3\)"),
        (COLOURS[:0], {}, r"shape \(0,"),
        ([], {}, r"there are no images"),
        ([COLOURS[0], COLOURS[1], COLOURS[2, 1:]], {}, r"image 0 is \(8, 10, 3\) uint8, image 2 is \(7, 10, 3\) uint8"),
        ([COLOURS[0], COLOURS[1] / 255], {}, r"image 1 is \(8, 10, 3\) float64"),
        ([Image.new("I;16", (8, 8))], {}, r"mode I;16 have no fixed range"),
        (["a.png"], {}, r"Split.from_files"),
        ("a.png", {}, r"a single str"),
        (Image.new("L", (8, 8)), {}, r"a single Image"),
        (None, {}, r"not a NoneType"),
        ([[1], [2, 3]], {}, r"images: give an array"),
    ],
)
def test_images_that_would_be_misread_are_refused(x, more, words):
    refused(words, Split.of, x, **more)


# The constructor


BYTES = torch.from_numpy(FIRST.copy())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((BYTES.float(), None, 0.5, 0.5), r"divide them by 255"),
        ((BYTES / 127.5 - 1, None, 0.5, 0.5), r"mean=0, std=1"),
        ((spoiled(FIRST / 255, 7, np.nan), None, 0.5, 0.5), r"image 7 has values"),
        ((BYTES.short(), None, 0.5, 0.5), r"images are int16"),
        ((BYTES, None, 127, 60), r"divide both by 255"),
        ((BYTES, torch.full((12,), 0.5), 0.5, 0.5), r"whole numbers"),
        ((BYTES, torch.eye(12), 0.5, 0.5), r"argmax"),
        ((BYTES, torch.arange(12) - 1, 0.5, 0.5), r"go from -1"),
        ((torch.from_numpy(FEATURES).double() + 1e9, None, 0.0, 1.0), r"column 0 goes from"),
        ((torch.from_numpy(FEATURES).to_sparse(), None, 0.0, 1.0), r"a sparse tensor"),
        ((BYTES, LABELS[:2], 0.5, 0.5), r"12 images but 2 labels"),
        ((BYTES[:, 0], LABELS, 0.5, 0.5), r"images must be \(N, C, H, W\)"),
    ],
)
def test_the_constructor_refuses_the_same(arguments, words):
    refused(words, Split, *arguments)


def test_the_constructor_takes_the_same_forms():
    assert Split(BYTES, torch.arange(12) - 1, 0.5, 0.5, unknown_labels=True).labels[0] == -1
    for form in (FIRST, list(FIRST)):
        assert torch.equal(batch(Split(form, LABELS.tolist(), 0.5, 0.5)), batch(Split(BYTES, None, (0.5,), (0.5,))))


def test_images_in_memory_are_read_in_batches_alone(monkeypatch):
    """A pool of half a million images, memory-mapped from a file, is not read by its constructor; floats are, once."""
    passes = []
    monkeypatch.setattr("alfk.data.arrays.check_values", lambda *a, **k: passes.append(a))
    split = Split(torch.from_numpy(FIRST.copy()), LABELS, 0.5, 0.5)
    assert not passes
    split = Split(split.images / 255, LABELS, 0.5, 0.5)
    split.subset(torch.arange(5)).subset([1, 2], [0, 1]).to("cpu").images  # noqa: B018
    list(split.batches(3))
    assert len(passes) == 1


def test_a_memory_mapped_array_is_shared(tmp_path):
    np.save(tmp_path / "pool.npy", FIRST)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    split = Split.of(mapped, mean=0.5, std=0.5)
    assert split.store.data_ptr() == mapped.ctypes.data
    assert split.subset([3, 1]).to("cpu").store.data_ptr() == mapped.ctypes.data


# Batches


def test_batches_are_what_torchvision_makes_of_the_images():
    split = Split(BYTES[:7], LABELS[:7], (0.1, 0.2, 0.3), 0.5)
    recipe = transforms.Compose([transforms.ToTensor(), transforms.Normalize(split.mean, [0.5] * 3)])
    wanted = torch.stack([recipe(Image.fromarray(image)) for image in COLOURS[:7]])
    batches = list(split.batches(3))
    assert [len(positions) for _, positions in batches] == [3, 3, 1]
    assert torch.allclose(torch.cat([images for images, _ in batches]), wanted, atol=1e-6)
    images, positions = next(split.batches(5, order := torch.tensor([6, 0, 3])))
    assert torch.allclose(images, wanted[order], atol=1e-6)
    assert positions.tolist() == order.tolist()


# Views


def test_a_mask_takes_the_images_that_it_marks():
    split = Split.of(COLOURS, LABELS)
    mask = torch.arange(12) % 5 == 1
    for form in (mask, mask.numpy(), mask.tolist()):
        found = split.subset(form)
        assert torch.equal(found.images, split.images[mask])
        assert found.labels.tolist() == split.labels[mask].tolist()
    refused(r"rows has 12 integers 0 and 1", split.subset, mask.int())
    refused(r"rows is a mask of length 11", split.subset, mask[1:])
    refused(r"rows has the position 12", split.subset, [12])
    assert len(split.subset([])) == 0


@given(st.data())
@settings(max_examples=30)
def test_views_of_views_keep_everything(data):
    split = Split(torch.from_numpy(FIRST.copy()), LABELS, (0.1, 0.2, 0.3), 0.5, source="x", classes=["a", "b", "c"])
    rows = np.arange(12)
    view = split
    for _ in range(3):
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=3, max_size=9))
        if len(chosen) == len(rows) and max(chosen) < 2:
            continue  # looks like a mask
        view, rows = view.subset(chosen).to("cpu"), rows[chosen]
    assert view.store.data_ptr() == split.store.data_ptr()
    assert torch.equal(view.images, split.images[rows])
    assert torch.equal(batch(view), batch(split)[rows])
    assert view.labels.tolist() == LABELS[rows].tolist()
    assert (view.classes, view.mean, view.std, view.source) == (split.classes, split.mean, split.std, "x")
    refused(r"labels go up to 3", view.subset, [0], [3])
    refused(r"1 images but 2 labels", view.subset, [0], [1, 2])


def test_two_subsets_are_joined():
    """In the order given, each with the labels that it has; the images stay where they are."""
    whole = Split(BYTES, LABELS, (0.1, 0.2, 0.3), 0.5, classes=["a", "b", "c"])
    joined = whole.subset([4, 1, 9], [2, 2, 2]).joined(whole.subset([0, 11]))
    assert joined.labels.tolist() == [2, 2, 2, LABELS[0], LABELS[11]]
    assert torch.equal(joined.images, whole.images[[4, 1, 9, 0, 11]])
    assert joined.store is whole.store
    assert (joined.mean, joined.std, joined.classes) == (whole.mean, whole.std, whole.classes)
    assert torch.equal(whole.joined(whole.subset([3])).images, BYTES[[*range(12), 3]])
    assert len(whole.subset([]).joined(whole)) == 12
    unlabelled, another = Split(BYTES, None, 0.5, 0.5), Split(BYTES.clone(), LABELS, 0.5, 0.5)
    for one, other in ((whole, another), (unlabelled, unlabelled), (whole, unlabelled)):
        refused("only labelled images that were one split before", one.joined, other)


# Files


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / part / f"{i}.png" for i in range(3) for part in ("a", "b")]
    for i, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        picture(i).save(path)
    return paths


def test_files_are_images_with_the_labels_that_are_given(photos, monkeypatch):
    more = {"size": 32, "loader": "torchvision", "workers": 0}
    pool = Split.from_files(photos, **more)
    assert (pool.labels, pool.classes, pool.images.shape) == (None, None, (6, 3, 32, 32))
    whole = Split.of(pool.images)
    assert (pool.mean, pool.std) == (pytest.approx(whole.mean), pytest.approx(whole.std))
    assert torch.allclose(batch(pool), batch(whole), atol=1e-5)
    monkeypatch.chdir(photos[0].parent)
    names = ["b", "a"]
    some = Split.from_files(["2.png", str(photos[1])], names, like=pool, **more)
    assert (some.labels.tolist(), some.classes) == ([1, 0], ("a", "b"))
    assert torch.equal(batch(some), batch(pool)[[4, 1]])
    normalised = Split.of(TensorDataset(torch.randn(4, 3, 32, 32)))
    refused(r"pass these through the same transform", Split.from_files, photos, like=normalised, **more)


def test_files_that_are_not_there_are_refused(photos, tmp_path):
    refused(rf"{tmp_path}/no.png is not there", Split.from_files, [*photos, tmp_path / "no.png", tmp_path / "nor.png"])
    refused(rf"{tmp_path} is not there, or not a file", Split.from_files, [tmp_path])
    refused(r"give a list of image files", Split.from_files, [])
    refused(r"give a list of image files", Split.from_files, str(photos[0]))
    refused(r"no loader 'pil'", Split.from_files, photos, loader="pil")
    refused(r"6 images but 2 labels", Split.from_files, photos, [0, 1], mean=0.5, std=0.5, loader="torchvision")


# Tables of pandas


def test_a_pandas_table_is_features_and_a_series_labels_by_position():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": FEATURES[:, 0], "b": np.arange(12), "c": LABELS > 0}, index=range(12, 0, -1))
    names = pandas.Series(["x", None, "y"] * 4, dtype="string", index=table.index)
    split = Split.of(table, names, unknown_labels=True)
    wanted = Split.of(np.stack([FEATURES[:, 0], np.arange(12), LABELS > 0], axis=1, dtype=np.float32))
    assert torch.equal(split.images, wanted.images)
    assert (split.labels.tolist(), split.classes, split.columns) == ([0, -1, 1] * 4, ("x", "y"), ("a", "b", "c"))
    refused(r"the label of image 1 is missing", Split.of, table, names)
    numbers = pandas.Series([1, None, 0] * 4, dtype="Int64")
    assert Split.of(table, numbers, unknown_labels=True).labels.tolist() == [1, -1, 0] * 4
    refused(r"columns that are not numbers: file: leave them out", Split.of, table.assign(file="x.png"))
    refused(r"row 0 has values that are NaN", Split.of, table.assign(d=numbers.array.astype("Int64")[::-1]).iloc[1:])
