"""Matching against examples/paper.py, and its promises for any input."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alfk.method import matching
from alfk.method.matching import draw, k_centre, load_rows, match, top_matches, walk_ranks
from examples import paper


def vectors(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def plain_match(centres, pool, available, n):
    allowed = available.nonzero().flatten()
    return allowed[paper.walk(centres @ pool[allowed].T, n)].tolist()


@settings(deadline=None)
@given(st.data(), st.integers(2, 40), st.integers(0, 10**6))
def test_k_centre_is_greedy(data, rows, seed):
    x = vectors(rows, 5, seed).double()
    n, first = data.draw(st.integers(1, rows)), data.draw(st.integers(0, rows - 1))
    shortlist, height = data.draw(st.integers(1, rows + 2)), data.draw(st.integers(1, rows + 2))
    with mock.patch.multiple(matching, SHORTLIST=shortlist, HEIGHT=height):
        assert k_centre(x, n, first).tolist() == paper.k_centre(x @ x.T, n, first)


def test_k_centre_of_equal_rows_takes_each_once():
    for shortlist in (1, 2, 6):
        with mock.patch.object(matching, "SHORTLIST", shortlist):
            assert k_centre(torch.ones(6, 3), 6, 2).tolist() == [2, 0, 1, 3, 4, 5]


def test_k_centre_refuses_more_centres_than_rows():
    with pytest.raises(ValueError, match="cannot choose 7"):
        k_centre(torch.ones(6, 3), 7, 0)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 9), st.integers(1, 60), st.integers(0, 10**6))
def test_top_matches_is_the_full_ranking_cut_off(data, m, rows, seed):
    """For any size of tiles, and any memory: down to a few bytes, where a tile has one row of the database.

    Whole numbers, of which many similarities are equal: the lowest index comes first.
    """
    queries, database = vectors(m, 4, seed).round(), vectors(rows, 4, seed + 1).round()
    available = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any)))
    k = data.draw(st.integers(1, int(available.sum())))
    tile, room = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 5000) | st.just(2**30))
    with mock.patch.multiple(matching, TILE=tile, BUDGET=room):
        similarity, index = top_matches(queries, database.numpy(), k, available)
    full = (queries @ database.T).masked_fill(~available, -torch.inf).sort(dim=1, descending=True, stable=True)
    assert torch.equal(similarity, full.values[:, :k])
    assert torch.equal(index, full.indices[:, :k])


def test_tiles_narrower_than_the_database(monkeypatch):
    queries, database = vectors(70, 6, 3), vectors(20_000, 6, 4)
    monkeypatch.setattr(matching, "TILE", 2**14)
    similarity, index = top_matches(queries, database, 5)
    full = (queries @ database.T).topk(5)
    assert torch.allclose(similarity, full.values, atol=1e-5)
    assert torch.equal(index, full.indices)


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 60), st.integers(0, 10**6))
def test_match_follows_the_definition(data, m, rows, seed):
    errors, pool = vectors(m, 4, seed), vectors(rows, 4, seed + 1)
    available = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any)))
    near_m = st.integers(max(1, m - 1), m + 1) | st.integers(1, 60)
    n, first = min(int(available.sum()), data.draw(near_m)), data.draw(st.integers(0, m - 1))
    chosen = match(errors, pool, available, n, torch.Generator(), first)
    centres = paper.k_centre(errors @ errors.T, n, first) if n < m else list(range(m))
    assert chosen.indices.tolist() == plain_match(errors[centres], pool, available, n)
    assert (chosen.misclassified, chosen.centres, chosen.at_random) == (m, min(n, m), 0)
    largest = errors[centres].square().sum(1).max()
    similarity = (errors[chosen.matches] * pool[chosen.indices]).sum(1) / largest
    assert torch.allclose(chosen.similarity, similarity.clamp(-1, 1), atol=1e-5)
    for centre, image, rank in zip(chosen.matches, chosen.indices, chosen.rank, strict=True):
        to_all = (errors[centre] @ pool.T)[available]
        assert int((to_all > errors[centre] @ pool[image] + 1e-5).sum()) < rank


def test_the_first_centre_is_drawn_from_the_generator():
    errors, pool, available = vectors(30, 5, 1), vectors(80, 5, 2), torch.ones(80, dtype=torch.bool)
    first = int(torch.randint(30, (1,), generator=torch.Generator().manual_seed(4)))
    drawn = match(errors, pool, available, 12, torch.Generator().manual_seed(4))
    assert torch.equal(drawn.indices, match(errors, pool, available, 12, torch.Generator(), first).indices)
    assert int(drawn.matches[0]) in paper.k_centre(errors @ errors.T, 12, first)


def test_match_deepens_until_the_pool_is_used_up():
    """All centres have the same ranks: 200 of them have to be computed, where 12 are at first."""
    errors, pool = torch.ones(200, 2), vectors(200, 2, 7)
    chosen = match(errors, pool, torch.ones(200, dtype=torch.bool), 200, torch.Generator())
    assert chosen.indices.tolist() == pool.sum(1).argsort(descending=True, stable=True).tolist()


def test_without_an_error_the_choice_is_random_and_says_so():
    available = torch.arange(50) >= 30
    chosen = match(torch.empty(0, 4), vectors(50, 4, 0), available, 5, torch.Generator().manual_seed(3))
    assert (chosen.misclassified, chosen.at_random) == (0, 5)
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
