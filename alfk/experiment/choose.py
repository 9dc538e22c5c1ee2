"""Stage 3a: choose the next n pool images and label them (paper, Algorithm 1)."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alfk.experiment.describe import read_databases
from alfk.experiment.round import Round
from alfk.method.acquisition import choose
from alfk.method.registry import Situation
from alfk.method.selection import Selection
from alfk.support.files import has_array, open_array, save_array

# Entries of an index list's header for an acquisition without a measurement.
NOTHING_MEASURED = {
    "misclassified": None,
    "centres": None,
    "at_random": 0,
    "matched": None,
    "similarity": None,
    "pseudo_labels": None,
    "forward": 0,
    "backward": 0,
    "seconds_describe": 0.0,
    "seconds_acquire": 0.0,
}

LABELLED_SET = "positions in the pool, in the order they were labelled; the pool's own index list is in data/"
QUERY_FIELDS = (
    "the images of this iteration in the order they were chosen; index: position in the pool; similarity: to the "
    "misclassified validation image at matches, mean correlation from -1 to 1; error_prediction: the class that the "
    "model mistakes that image for; rank: 1 for its most similar available image; prediction, pseudo_label: of the "
    "chosen image; score: the larger the earlier chosen"
)


def acquire(current: Round, unavailable: Tensor | None = None) -> None:
    """Write the labelled set of an AL iteration: the images labelled before it and the n images its method chooses.

    Args:
        unavailable: further positions in the pool (k,) that are not to be chosen.
    Raises:
        UserError: a missing or damaged file, or too few unlabelled images.
    """
    if current.is_labelled():
        return
    if has_array(current.query):  # the labelled set was lost
        query, header = open_array(current.query, {"kind": "query", **current.identity()})
        write_labelled_set(current, torch.from_numpy(np.array(query["index"])), header)
        return
    situation = situation_of(current)
    if unavailable is not None:
        situation.available[unavailable] = False
    situation.measurement, header = read_databases(current)
    facts = {key: header[key] for key in ("pseudo_labels", "forward", "backward") if header}
    facts |= {"seconds_describe": header["seconds"]} if header else {}
    current.report("stage", trial=current.trial, b=current.b, doing="choosing")
    start = time.perf_counter()
    selection = choose(current.method, situation)
    write_labelled(current, selection, {**facts, "seconds_acquire": time.perf_counter() - start})


def situation_of(current: Round) -> Situation:
    """The iteration's situation without its measurement; the pool's labels simulate the annotator."""
    pool, available = current.pool, torch.ones(len(current.pool), dtype=torch.bool)
    available[current.labelled_before()] = False
    n, labels = current.experiment.query_size, current.validation.labels
    return Situation(
        available,
        n,
        current.generator("acquire"),
        validation_labels=labels,
        annotate=lambda positions: pool.labels[positions.to(pool.device)],
        rare_classes=current.minority,
        classes=current.experiment.classes,
    )


def write_labelled(current: Round, selection: Selection, facts: Mapping[str, Any]) -> None:
    """Write the query of an AL iteration, with why each image was chosen, and then the labelled set and its header.

    Args:
        facts: entries of the header that replace those of NOTHING_MEASURED.
    """
    header = {
        **current.identity(),
        **NOTHING_MEASURED,
        "misclassified": selection.misclassified,
        "centres": selection.centres,
        "at_random": selection.at_random,
        **summary(selection),
        **facts,
    }
    save_array(current.query, selection.to_array(), {**header, "kind": "query", "meaning": QUERY_FIELDS})
    write_labelled_set(current, selection.indices, header)


def write_labelled_set(current: Round, chosen: Tensor, header: Mapping[str, Any]) -> None:
    """Write the labelled set of an AL iteration that chose the pool positions `chosen` (n,)."""
    layout = ("shape", "dtype", "array_crc32")  # of the query, if it is the query's header
    header = {key: value for key, value in header.items() if key not in layout}
    labelled = torch.cat([current.labelled_before(), chosen])
    save_array(current.index_list, labelled.numpy(), {**header, "kind": "labelled set", "meaning": LABELLED_SET})


def summary(selection: Selection) -> dict[str, Any]:
    """The number of validation images matched, and the mean similarity; None for methods without matching."""
    if selection.similarity is None:
        return {"matched": None, "similarity": None}
    return {
        "matched": int(selection.matches.unique().numel()),
        "similarity": round(float(selection.similarity.mean()), 4),
    }
