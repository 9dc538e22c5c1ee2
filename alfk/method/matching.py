"""Density matching of the pool to the misclassified validation images (paper, Section 4.3; docs/method.md, section 7).

With R(i, j) = <x_i, x_j> the similarity of two descriptors, E the misclassified validation images, M = |E|, and n the
query size:

    1. centres      c_1 drawn at random from E;  c_{t+1} = argmin over i in E of max_{s <= t} R(i, c_s)
                    for t < n, if n < M (greedy k-centre); else all of E
    2. ranks        for every centre the available pool images by descending R: its 1st, 2nd, ... match
    3. walk         all centres' 1st matches by descending R, then all 2nd matches, ...; an image is taken once,
                    until n distinct images are taken

Descriptors are rows of 2-D tensors or memory-mapped arrays. All-pairs similarities are computed in tiles: apart from
the queries and their results no tensor is larger than `budget`.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from alfk.method.descriptors import pairwise_similarity
from alfk.method.selection import Selection
from alfk.support import distributed

TILE = 2**22  # similarities in a tile: 16 MiB in float32, which is fastest on a CPU
BUDGET = 2**30  # bytes that the largest tensor may take on a CPU
SHARE = 32  # the largest tensor may take 1/32 of a GPU's memory
HEIGHT = 2**16  # rows that k-centre updates at a time, which affects speed and memory alone
SHORTLIST = 1024  # rows that k-centre updates in every step; affects speed alone

Rows = Tensor | np.ndarray


def budget(device: torch.device) -> int:
    """Bytes that the largest tensor of a search may take: 1 GiB on a CPU, 1/32 of a GPU's memory.

    It is a part of the total memory, not of the free one: other processes must not change the sizes of tiles, and with
    them the rounding of similarities.
    """
    return BUDGET if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // SHARE


def load_rows(vectors: Rows, rows: slice | Tensor, device: torch.device) -> Tensor:
    """Some rows of `vectors` as a float32 tensor on `device`."""
    if isinstance(vectors, np.ndarray):
        part = torch.from_numpy(np.array(vectors[rows if isinstance(rows, slice) else rows.cpu().numpy()]))
    else:
        part = vectors[rows]
    return part.to(device, torch.float32)


def top_matches(
    queries: Tensor,
    database: Rows,
    k: int,
    available: Tensor | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `database` for every query, best first, of equal ones the lowest first.

    Tiled over queries and database, with a running top-k: each row of the database is read once and compared with one
    block of queries at a time. O(tile + m k) memory in addition to the queries.

    Args:
        queries: (m, D), on the device that computes the similarities.
        database: (N, D).
        k: neighbours per query; at most the number of available rows.
        available: (N,) bool, rows that may be chosen; all if None.
        shared: whether all processes (`distributed`) call with equal arguments; each then computes some tiles.
    Returns:
        similarity (m, k) float32 and index (m, k) int64.
    """
    device, (m, dimensions) = queries.device, queries.shape
    largest, on_cpu = budget(device), device.type == "cpu"
    tile = min(TILE if on_cpu else largest // 64, largest // 8)  # top-k needs as much again for its indices
    width = max(1, min(len(database), max(k, 2**13 if on_cpu else 2**16), largest // (4 * dimensions)))
    if shared:
        width = distributed.broadcast_from_main(lambda: width)  # GPUs of one group may differ
    height = max(1, tile // width)
    similarity = torch.full((m, k), -torch.inf, device=device)
    index = torch.zeros(m, k, dtype=torch.int64, device=device)
    rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    for start in range(rank * width, len(database), world_size * width):
        part = load_rows(database, slice(start, start + width), device)
        unavailable = None if available is None else ~available[start : start + width].to(device)
        for first in range(0, m, height):
            block = slice(first, first + height)
            scores = pairwise_similarity(queries[block], part)
            if unavailable is not None:
                scores[:, unavailable] = -torch.inf
            value, column = _top(scores, k)
            del scores  # before the next tile is made
            found = torch.cat([similarity[block], value], 1), torch.cat([index[block], column + start], 1)
            similarity[block], index[block] = _ranked(*found, k)
    if world_size > 1:
        every = [torch.cat(distributed.all_gather(part), 1) for part in (similarity, index)]
        similarity, index = _ranked(*every, k)
    return similarity, index


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, or all if there are fewer, and their columns; of equal ones those in lower columns."""
    if k == 1:
        return scores.max(1, keepdim=True)
    if k >= scores.shape[1]:
        return scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    value, column = scores.topk(k + 1, dim=1)
    last = value[:, k - 1]
    cut = ((last == value[:, k]) & (last > -torch.inf)).nonzero().flatten()  # only some of equal ones are taken
    value, column = value[:, :k], column[:, :k]
    if len(cut):
        values, columns = scores[cut].sort(dim=1, descending=True, stable=True)
        value[cut], column[cut] = values[:, :k], columns[:, :k]
    return value, column


def _ranked(similarity: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (m, j) and their indices, descending, of equal ones the lowest index first."""
    index, order = index.sort(1)
    similarity, order = similarity.gather(1, order).sort(dim=1, descending=True, stable=True)
    return similarity[:, :k], index.gather(1, order[:, :k])


def k_centre(
    vectors: Tensor, n: int, first: int, offsets: Tensor | None = None, closest: Tensor | None = None
) -> Tensor:
    """Greedy k-centre: repeatedly the row whose largest similarity to the centres so far is smallest.

    A row's largest similarity only grows, so that its value after an earlier step is a lower bound. Each step updates
    only a shortlist, the rows with the smallest bounds. While the shortlist's minimum is below the bounds of all other
    rows, it is the global minimum. Otherwise all rows are updated for the new centres in one matrix product. The result
    is exact, in O(n M D) at most. Of equal rows the lowest is taken.

    Args:
        vectors: (M, D).
        n: number of centres, 1 to M.
        first: the row that is the first centre.
        offsets: (M,) b, 0 if None, for the similarity <x_i, x_j> + b_i + b_j; with b_i = -|x_i|^2 / 2 it is
            -|x_i - x_j|^2 / 2.
        closest: (M,) each row's largest similarity to earlier centres, -inf if None; inf excludes a row.
    Returns:
        (n,) int64, the centres in the order they were chosen.
    Raises:
        ValueError: n is not from 1 to M.
    """
    if not 1 <= n <= len(vectors):
        raise ValueError(f"cannot choose {n} centres from {len(vectors)} vectors")
    centres = torch.empty(n, dtype=torch.int64, device=vectors.device)
    centres[0], done, included = first, 1, 0
    lowest = torch.full((len(vectors),), -torch.inf, device=vectors.device, dtype=vectors.dtype)
    closest = lowest if closest is None else closest.clone()
    height = min(HEIGHT, len(vectors))
    while done < n:
        for start in range(0, len(vectors), height):
            part = slice(start, start + height)
            for block in centres[included:done].split(max(1, TILE // height)):
                similarity = pairwise_similarity(vectors[part], vectors[block])
                if offsets is not None:
                    similarity.add_(offsets[block]).add_(offsets[part, None])
                torch.maximum(closest[part], similarity.amax(1), out=closest[part])
        closest[centres[included:done]] = torch.inf
        included = done
        short = smallest(closest, SHORTLIST)
        similarity, rows = closest[short], vectors[short]
        limit = similarity.max() if len(short) < len(vectors) else torch.inf
        while done < n:
            place = similarity.argmin()
            if done > included and similarity[place] >= limit:
                break
            centres[done] = short[place]
            to_centre = rows @ rows[place]
            if offsets is not None:
                to_centre.add_(offsets[short[place]]).add_(offsets[short])
            torch.maximum(similarity, to_centre, out=similarity)
            similarity[place] = torch.inf
            done += 1
    return centres


def smallest(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` smallest of `values` (N,), or of all if N is smaller: int64, ascending.

    Of equal values those at the lowest positions are taken.
    """
    taken, short = values.topk(min(count, len(values)), largest=False)
    last = taken[-1]
    fitting = int((taken == last).sum())
    if int((values == last).sum()) > fitting:
        short = torch.cat([short[taken < last], (values == last).nonzero().flatten()[:fitting]])
    return short.sort().values


def walk_ranks(similarity: Tensor, index: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to n distinct images, rank by rank: all first matches by descending similarity, then all second, and so on.

    Args:
        similarity: (m, k), each row descending.
        index: (m, k) int64, the image behind each similarity.
    Returns:
        images, rows and columns: each (at most n,) int64 on the CPU, in the order they were taken; `images[i]` is
        `index[rows[i], columns[i]]`.
    """
    order = similarity.argsort(dim=0, descending=True, stable=True)
    walk = index.gather(0, order).T.flatten().cpu().numpy()
    _, first_seen = np.unique(walk, return_index=True)
    places = torch.from_numpy(np.sort(first_seen)[:n])
    rows = order.T.flatten().cpu()[places]
    return torch.from_numpy(walk)[places], rows, places // len(similarity)


def match(
    errors: Tensor,
    pool: Rows,
    available: Tensor,
    n: int,
    generator: torch.Generator,
    first: int | None = None,
    random_centres: bool = False,
) -> Selection:
    """The n pool images that density matching chooses for the misclassified validation images; at random if M is 0.

    The number of ranks is doubled until n distinct images are reached. Processes share the search; the main process
    broadcasts centres and walk.

    Args:
        errors: (M, D) descriptors of the misclassified validation images, on the device that computes similarities.
        pool: (N, D) descriptors of the pool.
        available: (N,) bool, images that are not labelled yet; at least n.
        first: the misclassified image that is the first centre; drawn from `generator` if None.
        random_centres: whether all centres are drawn, in place of greedy k-centre (not in the paper).
    Returns:
        a selection whose `matches` are rows of `errors`, and whose `similarity` is R divided by the largest <c, c> of
        the centres.
    """
    count = len(errors)
    if count == 0:
        return Selection(draw(available, n, generator), 0, 0, at_random=n)
    centres, which = errors, torch.arange(count)
    if n < count and random_centres:
        which = torch.randperm(count, generator=generator)[:n].sort().values
        centres = errors[which.to(errors.device)]
    elif n < count:
        start = int(torch.randint(count, (1,), generator=generator)) if first is None else first
        which = distributed.broadcast_from_main(lambda: k_centre(errors, n, start).cpu())
        centres = errors[which.to(errors.device)]
    left = int(available.sum())
    depth = min(left, 8 + 4 * -(-n // len(centres)))
    while True:
        similarity, index = top_matches(centres, pool, depth, available, shared=True)
        images, rows, columns = distributed.broadcast_from_main(functools.partial(walk_ranks, similarity, index, n))
        if len(images) == n:
            break
        depth = min(left, 2 * depth)
    largest = centres.square().sum(1).max().clamp(min=torch.finfo(centres.dtype).tiny)
    return Selection(
        images,
        count,
        len(centres),
        similarity=(similarity.cpu()[rows, columns] / largest.cpu()).clamp(-1, 1),
        matches=which[rows],
        rank=columns + 1,
    )


def draw(available: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n of the available images at random: (n,) int64 on the CPU."""
    candidates = available.cpu().nonzero().flatten()
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]]
