"""Stage 3b: train on the labelled set, evaluate, record (paper, Algorithm 1; docs/method.md, section 8)."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.experiment.choose import NOTHING_MEASURED
from alfk.experiment.memory import peak_mib
from alfk.experiment.records import VALIDATION_ALONE, Record
from alfk.experiment.round import Round
from alfk.experiment.training import BestEpoch, Evaluation, Evaluator, accuracy_per_class, fit
from alfk.experiment.workspace import join_states
from alfk.networks.weights import fingerprint
from alfk.support import distributed
from alfk.support.checkpoints import save_checkpoint
from alfk.support.seeding import global_randomness


@dataclasses.dataclass
class Trained:
    """A network after the training of one AL iteration, at the epoch that `--select` keeps (docs/method.md, section 8).

    Attributes:
        weights: the weights of that epoch, on the CPU.
        epoch: its number, 0 for the starting model; the step if the training counts steps.
        test: its evaluation on the test images, with predictions (N,).
        accuracy_top5: top-5 test accuracy in percent, if the data set records it.
        accuracy_validation: in percent, only with `--select val`.
        accuracy_last: test accuracy of the last epoch in percent, only with `--select test`.
    """

    weights: dict[str, Tensor]
    epoch: int
    test: Evaluation
    accuracy_top5: float | None = None
    accuracy_validation: float | None = None
    accuracy_last: float | None = None


def retrain(current: Round) -> Record:
    """Train on the labelled set from the previous weights; write the kept epoch's checkpoint and the results line.

    The members of an ensemble are trained one after the other; accuracies are the members' means.

    Returns:
        the results record of the iteration.
    """
    labelled, header = current.labelled()
    data = current.pool.subset(labelled)
    return train_and_record(current, data, data.labels[-current.experiment.query_size :], header)


def train_on_all(current: Round) -> Record:
    """The paper's line "all train": training on the whole distorted pool, or on the validation set, from the initial
    weights.

    Returns:
        the results record, as of an iteration 0 in which all these images are labelled.
    """
    data = current.validation if current.trial.method == VALIDATION_ALONE else current.pool
    return train_and_record(current, data, data.labels, NOTHING_MEASURED)


def train_and_record(current: Round, data: Split, newest: Tensor, header: Mapping[str, Any]) -> Record:
    """Train on the labelled images `data`, and on the validation images if the trial says so; write checkpoint and
    results line. Arguments as of `make_record`.
    """
    trained_on = data.joined(current.validation) if current.trial.adds_validation else data
    models, starts_from = current.starting_models()
    start = time.perf_counter()
    members = [_train(current, number, model, trained_on) for number, model in enumerate(models)]
    record = make_record(current, len(data), newest, header, members, time.perf_counter() - start)
    write_result(current, record, members, starts_from)
    return record


def _train(current: Round, member: int, model: nn.Module, labelled: Split) -> Trained:
    """Train one member; the starting model counts as epoch 0."""
    experiment, work, trial = current.experiment, current.work, current.trial
    selector = Selector(trial.select, work.test, current.validation, experiment.descriptor_batch, experiment.top5)

    def after_epoch(number: int) -> None:
        selector(number, model, last=number == experiment.retraining.epochs)
        doing = f"{trial.label()} b={current.b}" + (f" member {member}" if trial.ensemble > 1 else "")
        current.report("epoch", doing=doing, epoch=number, of=experiment.retraining.epochs)

    shuffles = current.generator("train", member=member)
    per_process = [] if distributed.is_main_process() else [f"rank {distributed.rank()}"]
    masks = current.generator("dropout", *per_process, member=member)  # for networks with torch's dropout layers
    selector(0, model)
    with global_randomness(masks, work.device):
        threads = experiment.training_threads
        fit(model, labelled, experiment.retraining, shuffles, after_epoch=after_epoch, threads=threads)
    return selector.result(model)


class Selector:
    """Evaluates a network during its training and keeps an epoch by the rule `select`.

    Only the evaluations that the rule needs are done: on the test images after every epoch ("test"), on the validation
    images after every epoch and on the test images once ("val"), or on the test images once ("last").

    Attributes:
        best: the epoch kept so far.
    """

    def __init__(self, select: str, test: Split, validation: Split, batch_size: int, top5: bool = False):
        self.select, self.top5 = select, top5
        self.on_test = Evaluator(test, batch_size, k=5 if top5 else 1)
        self.decides_on_test = select == "test" or (select == "val" and validation is test)
        evaluator = None
        if self.decides_on_test:
            evaluator = self.on_test
        elif select == "val":
            evaluator = Evaluator(validation, batch_size)
        self.best = BestEpoch(evaluator)

    def __call__(self, epoch: int, model: nn.Module, last: bool = False) -> None:
        """To be called after every epoch, and with 0 before the first if the starting model counts."""
        self.best(epoch, model, last and (self.decides_on_test or self.select == "last"))

    def result(self, model: nn.Module) -> Trained:
        """The result of the training; the weights kept are loaded into `model`."""
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


def make_record(
    current: Round,
    labelled: int,
    newest: Tensor,
    header: Mapping[str, Any],
    members: Sequence[Trained],
    seconds_retrain: float,
) -> Record:
    """The results record of an iteration (docs/files.md), with entries only for the accuracies that were measured.

    Args:
        labelled: number of labelled images.
        newest: (n,) int64, labels of this iteration's query.
        header: the entries of an index list's header about the acquisition.
        members: the members of the ensemble.
    """
    seconds = {
        "describe": header["seconds_describe"],
        "acquire": header["seconds_acquire"],
        "retrain": seconds_retrain,
    }
    work, pseudo_labels = current.work, header["pseudo_labels"] or {}
    classes = current.experiment.classes
    per_class = [accuracy_per_class(member.test.predictions, work.test.labels, classes) for member in members]
    return {
        **current.identity(),
        "labelled": labelled,
        **({} if labelled == current.size else {"queried": current.size}),  # some were skipped, or labelled unasked
        "labelled_share": min(100.0, 100 * labelled / work.pool_size_of_shares(current.pool)),
        "accuracy": fmean(member.test.accuracy for member in members),
        **_mean_of(members, "accuracy_last"),
        **_mean_of(members, "accuracy_validation"),
        **_mean_of(members, "accuracy_top5"),
        "accuracy_members": [member.test.accuracy for member in members],
        "epochs": [member.epoch for member in members],
        "accuracy_per_class": [None if None in values else fmean(values) for values in zip(*per_class, strict=True)],
        "selected_histogram": torch.bincount(newest, minlength=classes).tolist(),
        "minority": current.minority,
        "pseudo_label_accuracy": pseudo_labels.get("accuracy"),
        "pseudo_label_accuracy_per_class": pseudo_labels.get("per_class"),
        "misclassified": header["misclassified"],
        "centres": header["centres"],
        "at_random": header["at_random"],
        "matched": header.get("matched"),  # absent in index lists written before it was recorded
        "similarity": header.get("similarity"),
        "passes": {"forward": header["forward"], "backward": header["backward"]},
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mib": peak_mib(work.device),
    }


def _mean_of(members: Sequence[Trained], attribute: str) -> dict[str, float]:
    """The members' mean of an attribute, as an entry of a record; empty if it was not measured."""
    values = [getattr(member, attribute) for member in members]
    return {} if None in values else {attribute: fmean(values)}


def write_result(current: Round, record: Record, members: Sequence[Trained], starts_from: str | None = None) -> None:
    """Write the checkpoint, which marks the iteration finished and holds all that it leaves, and its results line.

    Args:
        starts_from: fingerprint of the weights that the training started from; None if these do not matter.
    """
    weights = join_states([member.weights for member in members])
    about = {"kind": "best", **current.identity(), "record": record, "arrays": current.arrays()}
    about["settings"] = current.work.initial_settings(current.trial) | current.work.settings()
    about |= {"starts_from": starts_from, "weights": fingerprint(weights)}
    save_checkpoint(current.checkpoint, weights, about)
    current.folder.add_result(record)
