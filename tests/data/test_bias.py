"""The validation split and the distortions of the pool: exact counts, for any input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.data.bias import add_label_noise, proportional_counts, split_validation, thin_half_of_classes, thin_minority
from alfk.support.seeding import generator

labels_of = st.lists(st.integers(0, 9), min_size=1, max_size=300).map(torch.tensor)
often = settings(max_examples=40)


@often
@given(st.lists(st.integers(0, 30), min_size=4, max_size=4), st.data(), st.integers(0, 10**6))
def test_split_takes_exactly_what_is_asked(sizes, data, seed):
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    per_class = [data.draw(st.integers(0, size)) for size in sizes]
    validation, pool = split_validation(labels, per_class, generator(seed))
    assert torch.bincount(labels[validation], minlength=4).tolist() == per_class
    assert torch.cat([validation, pool]).sort().values.tolist() == list(range(len(labels)))


def test_split_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="class 1 has 2 images, 3 are wanted"):
        split_validation(torch.tensor([0, 1, 1]), (1, 3), generator(0))


@often
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any), st.data())
def test_shares_are_in_proportion_and_only_grow(counts, data):
    total = sum(counts)
    size = data.draw(st.integers(0, total))
    found = proportional_counts(torch.tensor(counts), size)
    assert sum(found) == size
    assert all(0 <= share <= count for share, count in zip(found, counts, strict=True))
    for share, count in zip(found, counts, strict=True):  # no image would be nearer to proportion in another class
        for other, its in zip(found, counts, strict=True):
            assert (2 * share - 1) * its <= (2 * other + 1) * count or not count or not its
    if all(count * size % total == 0 for count in counts):
        assert found == [count * size // total for count in counts]
    larger = proportional_counts(torch.tensor(counts), data.draw(st.integers(size, total)))
    assert all(share <= more for share, more in zip(found, larger, strict=True))


def test_shares_of_equal_classes_and_of_classes_that_would_lose_an_image():
    assert proportional_counts(torch.tensor([1000] * 10), 100) == [10] * 10
    assert proportional_counts(torch.tensor([50] * 4), 102) == [26, 26, 25, 25]
    counts = torch.tensor([6, 6, 2])  # by largest remainders the last one has 2 of 10, but 1 of 11
    assert [proportional_counts(counts, size) for size in (10, 11, 12)] == [[5, 4, 1], [5, 5, 1], [5, 5, 2]]


@often
@given(
    st.lists(st.integers(0, 40), min_size=10, max_size=10),
    st.floats(1, 200),
    st.sets(st.integers(0, 9), min_size=5, max_size=5),
    st.integers(0, 10**6),
)
def test_thinning_keeps_the_majority_and_the_stated_share(sizes, ratio, minority, seed):
    labels = torch.arange(10).repeat_interleave(torch.tensor(sizes))
    kept = thin_minority(labels, sorted(minority), ratio, generator(seed))
    rare = torch.isin(labels, torch.tensor(sorted(minority)))
    many, few = int((~rare).sum()), int(rare.sum())
    assert int((~rare[kept]).sum()) == many
    wanted = few if ratio == 1 else min(few, int(many / ratio))
    assert int(rare[kept].sum()) == wanted
    assert kept.tolist() == sorted(set(kept.tolist()))
    other = thin_minority(labels, sorted(minority), ratio, generator(seed + 1))
    assert not 10 <= wanted <= few - 10 or kept.tolist() != other.tolist()  # the seed decides which ones stay


@often
@given(st.lists(st.integers(4, 40), min_size=2, max_size=9), st.floats(1, 200), st.integers(0, 10**6))
def test_half_of_the_classes_are_thinned(sizes, ratio, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator(0))]
    kept = thin_half_of_classes(labels, len(sizes), ratio, generator(seed))
    left = torch.bincount(labels[kept], minlength=len(sizes)).tolist()
    thinned = [size - round(size * (ratio - 1) / ratio) for size in sizes]
    changed = [c for c, count in enumerate(sizes) if left[c] < count]
    assert len(changed) == len(sizes) // 2 or any(map(int.__eq__, thinned, sizes))
    assert all(left[c] == thinned[c] for c in changed)
    assert kept.tolist() == sorted(set(kept.tolist()))


@often
@given(labels_of, st.floats(0, 1, exclude_max=True), st.integers(0, 10**6))
def test_noise_touches_at_most_the_stated_number(labels, ratio, seed):
    before = labels.clone()
    noisy = add_label_noise(labels, ratio, 10, generator(seed))
    assert torch.equal(labels, before)
    assert int((noisy != labels).sum()) <= int(len(labels) * ratio)
    assert noisy.min() >= 0
    assert noisy.max() <= 9


def test_noise_is_uniform_over_the_classes():
    noisy = add_label_noise(torch.zeros(100_000, dtype=torch.int64), 0.5, 10, generator(0))
    counts = torch.bincount(noisy, minlength=10)
    assert 44_000 < 100_000 - int(counts[0]) < 46_000  # nine tenths of the half that is redrawn
    assert (counts[1:] - 5000).abs().max() < 400


def test_generators_depend_on_every_part_of_their_purpose():
    def first(*purpose):
        return float(torch.rand(1, generator=generator(*purpose)))

    draws = [first(0), first(1), first(0, 1), first(0, "1"), first(0, "a", 1), first(0, "b", 1)]
    assert len(set(draws)) == len(draws)
    assert first(0, "a", 1) == first(0, "a", 1)
