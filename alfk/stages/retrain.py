"""Stage 3: match, acquire, retrain, score (paper, Algorithm 1, one iteration)."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alfk import ranks
from alfk.acquisition import choose, get_method
from alfk.data import Split
from alfk.errors import UserError
from alfk.matching import Selection
from alfk.network import snapshot
from alfk.runs import Record, Trial, has_array, load_checkpoint, open_array, save_array, save_checkpoint
from alfk.seeding import global_randomness
from alfk.stages.describe import databases, have_databases, read_databases
from alfk.stages.memory import peak_mib
from alfk.stages.workspace import Workspace, join_states
from alfk.training import accuracy, accuracy_per_class, fit, predict, ranking
from alfk.uncertainty import MEASURES


def acquire(work: Workspace, trial: Trial, b: int, pool: Split, validation: Split) -> tuple[Tensor, dict[str, Any]]:
    """The labelled set of AL iteration b: what was labelled before it and the n images its method chooses.

    Returns:
        (n (b+1),) int64 positions in the pool in the order they were labelled, and the index list's header.
    Raises:
        UserError: a missing or damaged file, or too few unlabelled images.
    """
    if ranks.agreed(lambda: has_array(work.folder.index_list(trial, b, work.size(b)))):
        return read_labelled(work, trial, b)
    before, measurement, facts = labelled_before(work, trial, b), None, {}
    if databases(trial, b):
        _, model_is = work.models_before(trial, b)
        if not have_databases(work, trial, b):
            raise UserError(f"there are no descriptors of {trial.label()} b={b}: run gen_descr.py first")
        measurement, about_it = read_databases(work, trial, b, model_is)
        facts = {key: about_it[key] for key in ("pseudo_labels", "forward", "backward")}
        facts["seconds_describe"] = about_it["seconds"]
    work.report("stage", run=work.folder.number, trial=trial, b=b, doing="matching")
    start = time.perf_counter()
    available = torch.ones(len(pool), dtype=torch.bool)
    available[before] = False
    method = get_method(trial.method)
    chosen = choose(
        method, measurement, validation.labels, available, work.experiment.query_size, work.generator("acquire", b)
    )
    return write_labelled(work, trial, b, before, chosen, {**facts, "seconds_acquire": time.perf_counter() - start})


def write_labelled(
    work: Workspace, trial: Trial, b: int, before: Tensor, chosen: Selection, facts: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Write and return the labelled set of AL iteration b and its header.

    Args:
        before: (n b,) positions in the pool, labelled before.
        facts: what the header says of the acquisition beyond NOTHING_MEASURED.
    """
    header = {
        "kind": "labelled set",
        **work.identity(trial, b),
        "meaning": "positions in the pool, in the order they were labelled; the pool's own index list is in data/",
        **NOTHING_MEASURED,
        "misclassified": chosen.misclassified,
        "centres": chosen.centres,
        "at_random": chosen.at_random,
        **facts,
    }
    labelled = torch.cat([before, chosen.indices])
    save_array(work.folder.index_list(trial, b, work.size(b)), labelled.numpy(), header)
    return labelled, header


def read_labelled(work: Workspace, trial: Trial, b: int) -> tuple[Tensor, dict[str, Any]]:
    """The labelled set of AL iteration b, which is there, and its header. Raises UserError if it is damaged."""
    path = work.folder.index_list(trial, b, work.size(b))
    array, header = open_array(path, {"kind": "labelled set", **work.identity(trial, b)})
    return torch.from_numpy(np.array(array)), header


def labelled_before(work: Workspace, trial: Trial, b: int) -> Tensor:
    """(n b,) the labelled set that AL iteration b adds to. Raises UserError if the one before was not run."""
    if b == 0:
        return torch.empty(0, dtype=torch.int64)
    path = work.folder.index_list(trial, b - 1, work.size(b - 1))
    if not has_array(path):
        raise UserError(f"there is no labelled set {path}: AL iteration b={b - 1} has to be run first")
    return read_labelled(work, trial, b - 1)[0]


@dataclasses.dataclass
class Epoch:
    """What is known after one epoch (from 1): accuracies in percent and (N_test,) predictions.

    Of a training that counts steps, `number` is the step.
    """

    number: int
    test: float
    validation: float
    predictions: Tensor
    misclassified: int
    top5: float | None = None


def retrain(work: Workspace, trial: Trial, b: int, pool: Split, validation: Split) -> Record:
    """Train on the labelled set from the previous weights, keep the selected epoch, write checkpoint and results line.

    Returns:
        the results record of AL iteration b.
    """
    found = finished(work, trial, b, work.size(b))
    if found is not None:
        return found
    labelled, header = acquire(work, trial, b, pool, validation)
    newest = labelled[-work.experiment.query_size :]
    return _learn(work, trial, b, pool, validation, labelled, newest, header)


def all_train(work: Workspace, trial: Trial, pool: Split, validation: Split) -> Record:
    """The paper's line "all train": the same training on the whole distorted pool, from the initial weights.

    Args:
        trial: its method is `curves.BASELINE`.
    Returns:
        its results record, that of an iteration 0 with everything labelled.
    """
    found = finished(work, trial, 0, len(pool))
    if found is not None:
        return found
    everything = torch.arange(len(pool))
    return _learn(work, trial, 0, pool, validation, everything, everything, NOTHING_MEASURED)


# What an acquisition's header says of one that looked at nothing.
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


def finished(work: Workspace, trial: Trial, b: int, size: int) -> Record | None:
    """The record in a checkpoint that is there already, put into the results where a crash kept it from them."""
    path = work.folder.checkpoint(trial, b, size)
    if not ranks.agreed(path.exists):
        return None
    record = load_checkpoint(path, {"kind": "best", **work.identity(trial, b)})[1]["record"]
    work.folder.add_result(record)
    return record


def _learn(
    work: Workspace,
    trial: Trial,
    b: int,
    pool: Split,
    validation: Split,
    labelled: Tensor,
    newest: Tensor,
    header: dict[str, Any],
) -> Record:
    """Train on the pool's `labelled` positions, of which `newest` were added last; checkpoint, record, results line.

    The members of an ensemble are trained one after the other; figures are the members' mean.
    """
    models, _ = work.models_before(trial, b)
    start = time.perf_counter()
    members, states = [], []
    for number, model in enumerate(models):
        kept, weights = _train(work, trial, b, number, model, pool.subset(labelled), validation)
        members.append(kept)
        states.append(weights)
    seconds = time.perf_counter() - start
    record = make_record(work, trial, b, pool, labelled, newest, header, members, seconds)
    if trial.method in MEASURES:
        record["accuracy_without_dropout"] = accuracy_without_dropout(work, states)
    conclude(work, trial, b, record, states, work.settings())
    return record


def accuracy_without_dropout(work: Workspace, states: Sequence[dict[str, Tensor]]) -> float:
    """Mean test accuracy, in percent, of the members' weights in networks without the dropout they were trained with.

    The protocol's accuracy of these methods is taken with dropout on (METHOD: models). It costs some points.
    """
    plain, found = work.network(work.experiment.classes), []
    for state in states:
        plain.load_state_dict(state)
        said = predict(plain, work.test, work.experiment.descriptor_batch)
        found.append(accuracy(said, work.test.labels))
    return fmean(found)


def make_record(
    work: Workspace,
    trial: Trial,
    b: int,
    pool: Split,
    labelled: Tensor,
    newest: Tensor,
    header: Mapping[str, Any],
    members: Sequence[dict[str, Epoch]],
    seconds_retrain: float,
) -> Record:
    """The results record of a training.

    Args:
        labelled, newest: positions in the pool of all labelled images, and of those added last.
        header: of the acquisition, as in an index list.
        members: of each member of the ensemble, the epoch that each rule keeps.
    """
    seconds = {
        "describe": header["seconds_describe"],
        "acquire": header["seconds_acquire"],
        "retrain": seconds_retrain,
    }
    classes, pseudo_labels = work.experiment.classes, header["pseudo_labels"] or {}
    selected = [kept[work.select] for kept in members]
    top5 = [epoch.top5 for epoch in selected]
    per_class = [accuracy_per_class(epoch.predictions, work.test.labels, classes) for epoch in selected]
    return {
        **work.identity(trial, b),
        "select": work.select,
        "labelled": len(labelled),
        "labelled_share": 100 * len(labelled) / work.undistorted_pool_size(),
        "accuracy": fmean(epoch.test for epoch in selected),
        "accuracy_best_test": fmean(kept["test"].test for kept in members),
        "accuracy_val_selected": fmean(kept["val"].test for kept in members),
        "accuracy_last": fmean(kept["last"].test for kept in members),
        "accuracy_members": [epoch.test for epoch in selected],
        **({"accuracy_top5": fmean(top5)} if None not in top5 else {}),
        "epochs": {rule: [kept[rule].number for kept in members] for rule in RULES},
        "accuracy_per_class": [None if None in values else fmean(values) for values in zip(*per_class, strict=True)],
        "selected_histogram": torch.bincount(pool.labels[newest.to(pool.device)], minlength=classes).tolist(),
        "pseudo_label_accuracy": pseudo_labels.get("accuracy"),
        "pseudo_label_accuracy_per_class": pseudo_labels.get("per_class"),
        "misclassified_before": header["misclassified"],
        "misclassified": round(fmean(epoch.misclassified for epoch in selected)),
        "centres": header["centres"],
        "at_random": header["at_random"],
        "passes": {"forward": header["forward"], "backward": header["backward"]},
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mib": peak_mib(work.device),
    }


def conclude(
    work: Workspace,
    trial: Trial,
    b: int,
    record: Record,
    states: Sequence[dict[str, Tensor]],
    settings: Mapping[str, Any],
) -> None:
    """Write the checkpoint of a training, which marks it finished, and its results line."""
    about = {"kind": "best", **work.identity(trial, b), "record": record, "settings": settings}
    save_checkpoint(work.folder.checkpoint(trial, b, record["labelled"]), join_states(states), about)
    work.folder.add_result(record)


RULES = ("test", "val", "last")  # which epoch to keep: best on test, best on validation, the last


class Keeper:
    """Scores a network in the course of its training; keeps the epoch of each rule and the selected one's weights.

    Attributes:
        kept: by rule, the epoch it keeps, the first of equals.
        weights: of the epoch that `select` keeps.
    """

    def __init__(self, test: Split, validation: Split, select: str, batch_size: int, top5: bool = False):
        self.test, self.validation, self.select, self.batch_size = test, validation, select, batch_size
        self.top5 = top5
        self.kept: dict[str, Epoch] = {}
        self.weights: dict[str, Tensor] = {}

    def __call__(self, number: int, model: nn.Module) -> None:
        """Score the network after epoch `number`. Its modes are as before afterwards."""
        top5 = None
        if self.top5:
            likeliest = ranking(model, self.test, self.batch_size, 5)
            said, truth = likeliest[:, 0], self.test.labels
            top5 = 100 * float((likeliest == truth.unsqueeze(1)).any(1).double().mean())
        else:
            said = predict(model, self.test, self.batch_size)
        again = self.validation is not self.test
        on_validation = predict(model, self.validation, self.batch_size) if again else said
        wrong = int((on_validation != self.validation.labels).sum())
        share = 100 * (1 - wrong / len(self.validation))
        epoch = Epoch(number, accuracy(said, self.test.labels), share, said, wrong, top5)
        better = {
            "test": "test" not in self.kept or epoch.test > self.kept["test"].test,
            "val": "val" not in self.kept or epoch.validation > self.kept["val"].validation,
            "last": True,
        }
        self.kept.update({rule: epoch for rule in RULES if better[rule]})
        if better[self.select]:
            self.weights = snapshot(model)


def _train(
    work: Workspace, trial: Trial, b: int, member: int, model: nn.Module, labelled: Split, validation: Split
) -> tuple[dict[str, Epoch], dict[str, Tensor]]:
    """Fit; the epoch that each rule keeps (the first of equals), and the weights of the selected one."""
    experiment = work.experiment
    keeper = Keeper(work.test, validation, work.select, experiment.descriptor_batch, experiment.top5)

    def after_epoch(number: int) -> None:
        keeper(number, model)
        doing = f"{trial.label()} b={b}" + (f" member {member}" if trial.ensemble > 1 else "")
        work.report("epoch", run=work.folder.number, doing=doing, epoch=number, of=experiment.retraining.epochs)

    shuffles = work.generator("train", b, member=member)
    masks = work.generator("dropout", b, *([] if ranks.first() else [f"rank {ranks.rank()}"]), member=member)
    with global_randomness(masks, work.device):
        threads = experiment.training_threads
        fit(model, labelled, experiment.retraining, shuffles, after_epoch=after_epoch, threads=threads)
    return keeper.kept, keeper.weights
