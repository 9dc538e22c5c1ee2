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
from alfk.runs import Record, Trial, has_array, load_checkpoint, open_array, save_array, save_checkpoint
from alfk.seeding import global_randomness
from alfk.stages.describe import databases, have_databases, read_databases
from alfk.stages.memory import peak_mib
from alfk.stages.workspace import Workspace, join_states
from alfk.training import BestEpoch, Evaluation, Evaluator, accuracy_per_class, fit


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
class Trained:
    """A network after the training of one AL iteration, at the epoch that `--select` keeps (METHOD: retraining).

    Attributes:
        weights: of that epoch, on the CPU.
        epoch: its number; 0 is the model that training started from. Of a training that counts steps, the step.
        test: its evaluation on the test images, with predictions (N,).
        top5: top-5 accuracy on the test images in percent, where that is asked for.
        accuracy_validation: in percent, with `--select val` alone.
        accuracy_last: test accuracy of the last epoch in percent, with `--select test` alone.
    """

    weights: dict[str, Tensor]
    epoch: int
    test: Evaluation
    top5: float | None = None
    accuracy_validation: float | None = None
    accuracy_last: float | None = None


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
    members = [
        _train(work, trial, b, number, model, pool.subset(labelled), validation) for number, model in enumerate(models)
    ]
    seconds = time.perf_counter() - start
    record = make_record(work, trial, b, pool, labelled, newest, header, members, seconds)
    conclude(work, trial, b, record, [member.weights for member in members], work.settings())
    return record


def make_record(
    work: Workspace,
    trial: Trial,
    b: int,
    pool: Split,
    labelled: Tensor,
    newest: Tensor,
    header: Mapping[str, Any],
    members: Sequence[Trained],
    seconds_retrain: float,
) -> Record:
    """The results record of a training: what was measured, and no more.

    Args:
        labelled, newest: positions in the pool of all labelled images, and of those added last.
        header: of the acquisition, as in an index list.
        members: the members of the ensemble.
    """
    seconds = {
        "describe": header["seconds_describe"],
        "acquire": header["seconds_acquire"],
        "retrain": seconds_retrain,
    }
    classes, pseudo_labels = work.experiment.classes, header["pseudo_labels"] or {}
    per_class = [accuracy_per_class(member.test.predictions, work.test.labels, classes) for member in members]
    return {
        **work.identity(trial, b),
        "labelled": len(labelled),
        "labelled_share": 100 * len(labelled) / work.undistorted_pool_size(),
        "accuracy": fmean(member.test.accuracy for member in members),
        **_mean_of(members, "accuracy_last"),
        **_mean_of(members, "accuracy_validation"),
        **_mean_of(members, "top5", "accuracy_top5"),
        "accuracy_members": [member.test.accuracy for member in members],
        "epochs": [member.epoch for member in members],
        "accuracy_per_class": [None if None in values else fmean(values) for values in zip(*per_class, strict=True)],
        "selected_histogram": torch.bincount(pool.labels[newest.to(pool.device)], minlength=classes).tolist(),
        "pseudo_label_accuracy": pseudo_labels.get("accuracy"),
        "pseudo_label_accuracy_per_class": pseudo_labels.get("per_class"),
        "misclassified": header["misclassified"],
        "centres": header["centres"],
        "at_random": header["at_random"],
        "passes": {"forward": header["forward"], "backward": header["backward"]},
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mib": peak_mib(work.device),
    }


def _mean_of(members: Sequence[Trained], attribute: str, key: str | None = None) -> dict[str, float]:
    """The members' mean of what was measured, as an entry of a record; none where it was not."""
    values = [getattr(member, attribute) for member in members]
    return {} if None in values else {key or attribute: fmean(values)}


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


class Selector:
    """Evaluates a network in the course of its training and keeps the epoch that `select` names.

    Only what `select` needs is evaluated: the test images after every epoch ("test"), the validation images after
    every epoch and the test images once ("val"), or the test images once ("last").

    Attributes:
        best: the epoch kept so far.
    """

    def __init__(self, select: str, test: Split, validation: Split, batch_size: int, top5: bool = False):
        self.select, self.top5 = select, top5
        self.on_test = Evaluator(test, batch_size, k=5 if top5 else 1)
        self.decides_on_test = select == "test" or (select == "val" and validation is test)
        judge = self.on_test if self.decides_on_test else None
        if select == "val" and not self.decides_on_test:
            judge = Evaluator(validation, batch_size)
        self.best = BestEpoch(judge)

    def __call__(self, epoch: int, model: nn.Module, last: bool = False) -> None:
        """To be called after every epoch, and, where the starting model counts, with 0 before the first."""
        self.best(epoch, model, last)

    def conclude(self, model: nn.Module) -> Trained:
        """What the training ends with; `model` gets the weights that are kept."""
        best = self.best
        model.load_state_dict(best.weights)
        on_test = best.evaluation if self.decides_on_test else self.on_test(model)
        top5 = None
        if self.top5:
            hits = on_test.predictions == self.on_test.split.labels.unsqueeze(1)
            top5 = 100 * float(hits.any(1).double().mean())
        return Trained(
            best.weights,
            best.epoch,
            Evaluation(on_test.errors, on_test.answers, on_test.predictions[:, 0]),
            top5,
            accuracy_validation=best.evaluation.accuracy if self.select == "val" else None,
            accuracy_last=best.last.accuracy if self.decides_on_test and best.last else None,
        )


def _train(
    work: Workspace, trial: Trial, b: int, member: int, model: nn.Module, labelled: Split, validation: Split
) -> Trained:
    """Train one member; the starting model counts as epoch 0."""
    experiment = work.experiment
    selector = Selector(trial.select, work.test, validation, experiment.descriptor_batch, experiment.top5)

    def after_epoch(number: int) -> None:
        selector(number, model, last=number == experiment.retraining.epochs)
        doing = f"{trial.label()} b={b}" + (f" member {member}" if trial.ensemble > 1 else "")
        work.report("epoch", run=work.folder.number, doing=doing, epoch=number, of=experiment.retraining.epochs)

    shuffles = work.generator("train", b, member=member)
    masks = work.generator("dropout", b, *([] if ranks.first() else [f"rank {ranks.rank()}"]), member=member)
    selector(0, model)
    with global_randomness(masks, work.device):
        threads = experiment.training_threads
        fit(model, labelled, experiment.retraining, shuffles, after_epoch=after_epoch, threads=threads)
    return selector.conclude(model)
