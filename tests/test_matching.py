"""Matching against plain loops, and its promises for any input."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.method import matching
from alfk.method.matching import draw, k_centre, load_rows, match, top_matches, walk_ranks


def vectors(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def plain_k_centre(x, n, first):
    """All similarities anew in every step."""
    chosen = [first]
    while len(chosen) < n:
        largest = (x @ x[chosen].T).max(1).values
        largest[chosen] = torch.inf
        chosen.append(int(largest.argmin()))
    return chosen


def plain_match(centres, pool, available, n):
    """METHOD 7.3 word by word, on the full matrix with full rankings."""
    allowed = available.nonzero().flatten().tolist()
    ranking = [sorted(allowed, key=lambda j, c=c: -float(c @ pool[j])) for c in centres]
    taken = []
    for rank in range(len(allowed)):
        candidates = [(float(c @ pool[r[rank]]), r[rank]) for c, r in zip(centres, ranking, strict=True)]
        for _, image in sorted(candidates, key=lambda pair: -pair[0]):
            if image not in taken:
                taken.append(image)
            if len(taken) == n:
                return taken
    return taken


@settings(deadline=None)
@given(st.data(), st.integers(2, 40), st.integers(0, 10**6))
def test_k_centre_is_greedy(data, rows, seed):
    x = vectors(rows, 5, seed).double()
    n, first = data.draw(st.integers(1, rows)), data.draw(st.integers(0, rows - 1))
    with mock.patch.object(matching, "SHORTLIST", data.draw(st.integers(1, rows + 2))):
        centres = k_centre(x, n, first)
    assert centres.tolist() == plain_k_centre(x, n, first)
    assert len(centres.unique()) == n


def test_k_centre_takes_each_row_once_even_where_all_are_equal():
    for shortlist in (1, 2, 6):
        with mock.patch.object(matching, "SHORTLIST", shortlist):
            assert sorted(k_centre(torch.ones(6, 3), 6, 2).tolist()) == list(range(6))


def test_k_centre_refuses_more_centres_than_rows():
    with pytest.raises(ValueError, match="cannot choose 7"):
        k_centre(torch.ones(6, 3), 7, 0)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 9), st.integers(1, 60), st.integers(1, 200), st.integers(0, 10**6))
def test_top_matches_is_the_full_ranking_cut_off(data, m, rows, tile, seed):
    queries, database = vectors(m, 4, seed), vectors(rows, 4, seed + 1)
    k = data.draw(st.integers(1, rows))
    with mock.patch.object(matching, "TILE", tile):
        similarity, index = top_matches(queries, database.numpy(), k)
    full = (queries @ database.T).sort(1, descending=True)
    assert torch.allclose(similarity, full.values[:, :k], atol=1e-5)
    assert torch.allclose((queries[:, None] * database[index]).sum(-1), similarity, atol=1e-5)
    assert all(len(set(row)) == k for row in index.tolist())


def test_tiles_narrower_than_the_database(monkeypatch):
    queries, database = vectors(700, 6, 3), vectors(20_000, 6, 4)
    monkeypatch.setattr(matching, "TILE", 2**18)
    similarity, index = top_matches(queries, database, 5)
    full = (queries @ database.T).topk(5)
    assert torch.allclose(similarity, full.values, atol=1e-5)
    assert torch.equal(index, full.indices)


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 60), st.integers(0, 10**6))
def test_match_follows_the_definition(data, m, rows, seed):
    errors, pool = vectors(m, 4, seed), vectors(rows, 4, seed + 1)
    flags = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any))
    available = torch.tensor(flags)
    n = data.draw(st.integers(1, int(available.sum())))
    chosen = match(errors, pool, available, n, torch.Generator().manual_seed(seed))
    assert len(chosen.indices.unique()) == n
    assert available[chosen.indices].all()
    assert (chosen.misclassified, chosen.centres, chosen.at_random) == (m, min(n, m), 0)
    if n >= m:
        assert chosen.indices.tolist() == plain_match(errors, pool, available, n)


def test_match_with_k_centre_follows_the_definition():
    errors, pool, available = vectors(30, 5, 1), vectors(80, 5, 2), torch.arange(80) % 3 != 0
    chosen = match(errors, pool, available, 12, torch.Generator(), first=4)
    centres = errors[plain_k_centre(errors, 12, 4)]
    assert chosen.indices.tolist() == plain_match(centres, pool, available, 12)


def test_match_deepens_until_the_pool_is_used_up():
    """All centres want the same images: the whole pool is needed rank by rank."""
    errors, pool = torch.ones(3, 2), vectors(200, 2, 7)
    chosen = match(errors, pool, torch.ones(200, dtype=torch.bool), 200, torch.Generator())
    assert chosen.indices.tolist() == pool.sum(1).argsort(descending=True, stable=True).tolist()


def test_without_an_error_the_choice_is_random_and_says_so():
    available = torch.arange(50) >= 30
    chosen = match(torch.empty(0, 4), vectors(50, 4, 0), available, 5, torch.Generator().manual_seed(3))
    assert (chosen.misclassified, chosen.at_random, len(chosen.indices)) == (0, 5, 5)
    assert chosen.indices.tolist() == draw(available, 5, torch.Generator().manual_seed(3)).tolist()


def test_walk_takes_all_first_matches_before_any_second():
    similarity = torch.tensor([[9.0, 8.0, 7.0], [3.0, 2.0, 1.0], [5.0, 4.0, 0.0]])
    index = torch.tensor([[10, 11, 12], [13, 10, 14], [10, 15, 16]])
    images, rows, columns = walk_ranks(similarity, index, 6)
    assert images.tolist() == [10, 13, 11, 15, 12, 14]
    assert rows.tolist() == [0, 1, 0, 2, 0, 1]
    assert columns.tolist() == [0, 0, 1, 1, 2, 2]
    assert walk_ranks(similarity, index, 3)[0].tolist() == [10, 13, 11]


def test_rows_come_from_tensors_and_mapped_files_alike(tmp_path):
    x = vectors(9, 4, 0)
    np.save(tmp_path / "x.npy", x.half().numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for rows in (slice(2, 5), torch.tensor([8, 0])):
        loaded = load_rows(mapped, rows, torch.device("cpu"))
        assert loaded.dtype == torch.float32
        assert torch.allclose(loaded, load_rows(x, rows, torch.device("cpu")), atol=1e-2)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 5000), st.integers(0, 10**6))
def test_the_room_a_search_is_given_does_not_change_its_answer(m, rows, room, seed):
    """Down to a few bytes, where every row of the database is a tile of its own."""
    queries, database = vectors(m, 4, seed), vectors(rows, 4, seed + 1)
    available = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.7
    available[seed % rows] = True
    k = min(3, int(available.sum()))
    with mock.patch.object(matching, "BUDGET", room):
        similarity, index = top_matches(queries, database, k, available)
    full = (queries @ database.T).masked_fill(~available, -torch.inf).sort(1, descending=True)
    assert torch.allclose(similarity, full.values[:, :k], atol=1e-5)
    assert available[index].all()
