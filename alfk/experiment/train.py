"""Stage 4 of an AL iteration: train on the labelled set and evaluate (Algorithm 1; docs/method.md, section 8)."""

import dataclasses
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.experiment.choose import NOTHING_MEASURED, Labelled
from alfk.experiment.journal import Acquired, Outcome
from alfk.experiment.memory import peak_mib
from alfk.experiment.records import VALIDATION_ALONE, Record
from alfk.experiment.round import Round
from alfk.experiment.training import BestEpoch, Evaluation, Evaluator, accuracy_per_class, fit
from alfk.experiment.workspace import join_states
from alfk.support import distributed
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


def train(current: Round, labelled: Labelled) -> Outcome:
    """Train on the labelled images, and on the validation images if the trial says so, from the previous weights.

    The members of an ensemble are trained one after the other; accuracies are the members' means.
    """
    data = labelled.data.joined(current.validation) if current.trial.adds_validation else labelled.data
    models, starts_from = current.starting_models()
    start = time.perf_counter()
    members = [_train_member(current, number, model, data) for number, model in enumerate(models)]
    record = record_of(current, labelled, members, time.perf_counter() - start)
    weights = join_states([member.weights for member in members])
    return Outcome(record, weights, labelled.acquired, starts_from)


def everything(current: Round) -> Labelled:
    """The images of the paper's line "all train": the whole distorted pool, or the validation set."""
    data = current.validation if current.trial.method == VALIDATION_ALONE else current.pool
    return Labelled(data, data.labels)


def _train_member(current: Round, member: int, model: nn.Module, data: Split) -> Trained:
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
        fit(model, data, experiment.retraining, shuffles, after_epoch=after_epoch, threads=threads)
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
            Evaluation(on_test.errors, on_test.count, on_test.predictions[:, 0]),
            top5,
            accuracy_validation=best.evaluation.accuracy if self.select == "val" else None,
            accuracy_last=best.last.accuracy if self.decides_on_test and best.last else None,
        )


def record_of(current: Round, labelled: Labelled, members: Sequence[Trained], seconds: float) -> Record:
    """The results record of an iteration (docs/files.md), with entries only for the accuracies that were measured.

    Args:
        members: the members of the ensemble.
        seconds: of the training.
    """
    work, classes = current.work, current.experiment.classes
    facts = labelled.acquired.facts if labelled.acquired else NOTHING_MEASURED
    pseudo_labels = facts["pseudo_labels"] or {}
    per_class = [accuracy_per_class(member.test.predictions, work.test.labels, classes) for member in members]
    seconds_of = {"describe": facts["seconds_describe"], "acquire": facts["seconds_acquire"], "retrain": seconds}
    count = len(labelled.data)
    return {
        **current.identity(),
        "labelled": count,
        "labelled_share": min(100.0, 100 * count / work.pool_size_of_shares(current.pool)),
        "accuracy": fmean(member.test.accuracy for member in members),
        **_mean_of(members, "accuracy_last"),
        **_mean_of(members, "accuracy_validation"),
        **_mean_of(members, "accuracy_top5"),
        "accuracy_members": [member.test.accuracy for member in members],
        "epochs": [member.epoch for member in members],
        "accuracy_per_class": [None if None in values else fmean(values) for values in zip(*per_class, strict=True)],
        "selected_histogram": torch.bincount(labelled.newest, minlength=classes).tolist(),
        "minority": current.minority,
        "pseudo_label_accuracy": pseudo_labels.get("accuracy"),
        "pseudo_label_accuracy_per_class": pseudo_labels.get("per_class"),
        **_matching(labelled.acquired),
        "passes": {"forward": facts["forward"], "backward": facts["backward"]},
        "seconds": {stage: round(value, 3) for stage, value in seconds_of.items()},
        "peak_memory_mib": peak_mib(work.device),
    }


def _matching(acquired: Acquired | None) -> dict[str, Any]:
    """The entries about errors, centres and matches; None for methods without them."""
    if acquired is None:
        return {"misclassified": None, "centres": None, "at_random": 0, "matched": None, "similarity": None}
    chosen = acquired.selection
    return {
        "misclassified": chosen.misclassified,
        "centres": chosen.centres,
        "at_random": chosen.at_random,
        "matched": None if chosen.similarity is None else int(chosen.matches.unique().numel()),
        "similarity": None if chosen.similarity is None else round(float(chosen.similarity.mean()), 4),
    }


def _mean_of(members: Sequence[Trained], attribute: str) -> dict[str, float]:
    """The members' mean of an attribute, as an entry of a record; empty if it was not measured."""
    values = [getattr(member, attribute) for member in members]
    return {} if None in values else {attribute: fmean(values)}
