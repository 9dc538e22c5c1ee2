"""Stage 3a: choose the next n pool images and label them (paper, Algorithm 1)."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from alfk.acquisition import Situation, choose
from alfk.matching import Selection
from alfk.runs import save_array
from alfk.stages.describe import read_databases
from alfk.stages.round import Round

# Entries of an index list's header for an acquisition without a measurement.
NOTHING_MEASURED = {
    "misclassified": None,
    "centres": None,
    "at_random": 0,
    "pseudo_labels": None,
    "forward": 0,
    "backward": 0,
    "seconds_describe": 0.0,
    "seconds_acquire": 0.0,
}


def acquire(current: Round) -> None:
    """Write the labelled set of an AL iteration: the images labelled before it and the n images its method chooses.

    Raises:
        UserError: a missing or damaged file, or too few unlabelled images.
    """
    if current.is_labelled():
        return
    situation = situation_of(current)
    situation.measurement, header = read_databases(current)
    facts = {key: header[key] for key in ("pseudo_labels", "forward", "backward") if header}
    facts |= {"seconds_describe": header["seconds"]} if header else {}
    current.report("stage", trial=current.trial, b=current.b, doing="matching")
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
    )


def write_labelled(current: Round, selection: Selection, facts: Mapping[str, Any]) -> None:
    """Write the labelled set of an AL iteration and its header.

    Args:
        facts: entries of the header that replace those of NOTHING_MEASURED.
    """
    header = {
        "kind": "labelled set",
        **current.identity(),
        "meaning": "positions in the pool, in the order they were labelled; the pool's own index list is in data/",
        **NOTHING_MEASURED,
        "misclassified": selection.misclassified,
        "centres": selection.centres,
        "at_random": selection.at_random,
        **facts,
    }
    labelled = torch.cat([current.labelled_before(), selection.indices])
    save_array(current.index_list, labelled.numpy(), header)
