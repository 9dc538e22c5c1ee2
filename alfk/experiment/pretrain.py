"""Before the loop: a run's initial models, random and pretrained by rotation (Section 5; docs/method.md, section 4)."""

import contextlib
import itertools
import time

from torch import Tensor

from alfk.experiment.config import digest_of
from alfk.experiment.folder import check_settings
from alfk.experiment.training import BestEpoch, Evaluator, at_chance, fit, rotate
from alfk.experiment.trial import distortion_name
from alfk.experiment.workspace import Workspace
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.files import FIX, has_file


def make_initial_models(work: Workspace, ir: float, nr: float, members: int = 1, select: str = "test") -> None:
    """Make the missing ones of the random and rotation models of one distortion, for each member of an ensemble.

    A member's rotation model starts from the weights of its random model and is trained on the distorted pool. The
    epoch kept is the one with the best rotation accuracy on the test images (`select` "test") or the validation images
    ("val"), where the untrained model counts as epoch 0, or the "last".
    """
    distortion, settings = distortion_name(ir, nr), work.settings("initial")
    with work.lock(f"init_{distortion}", "initial"):
        for member in range(members):
            for init, make in (("random", _random), ("rotation", _rotation)):
                facts = {"init": init, "ir": ir, "member": member}
                path = work.folder.initial(distortion, init == "rotation", member, select)
                about = {"kind": "initial", **facts, "nr": nr, **work.identity()}
                about |= {"select": select} if init == "rotation" else {}
                if has_file(path):
                    found = load_checkpoint(path, about)[1]
                    made_with = {"pretraining.restarts": 0} | found.get("behaviour", {}) | found.get("settings", {})
                    now = settings | (work.behaviour("initial") if init == "rotation" else {})
                    check_settings(path, made_with, now, FIX)
                    work.report("initial", run=work.folder.number, **facts, skipped=True)
                    continue
                start = time.perf_counter()
                state, extra = make(work, ir, nr, distortion, member, select)
                extra |= {"seconds": time.perf_counter() - start}
                made_with = {"made_with": digest_of(settings), "settings": settings}
                made_with |= {"behaviour": work.behaviour("initial")}
                save_checkpoint(path, state, {**about, **extra, **made_with})
                work.report("initial", run=work.folder.number, **facts, **extra)


Made = tuple[dict[str, Tensor], dict[str, object]]  # weights, facts about them


def _random(work: Workspace, ir: float, nr: float, distortion: str, member: int, select: str) -> Made:
    return work.random_state(work.experiment.classes, "init", member), {}


class Stalled(Exception):
    """A rotation training that has stalled, and is started again."""


def _rotation(work: Workspace, ir: float, nr: float, distortion: str, member: int, select: str) -> Made:
    """A stalled training is started again, with the images in another order, as often as `restarts` allows."""
    for attempt in itertools.count():  # the last one allowed does not end as stalled
        with contextlib.suppress(Stalled):
            return _train_rotation(work, ir, nr, distortion, member, select, attempt)


def _train_rotation(
    work: Workspace, ir: float, nr: float, distortion: str, member: int, select: str, attempt: int
) -> Made:
    """One training. Raises Stalled after its first epoch, but not in the last attempt."""
    experiment = work.experiment
    model = work.network(4)
    model.load_state_dict(work.random_state(4, "init", member))
    split = work.validation() if select == "val" else work.test
    evaluator = Evaluator(split, experiment.descriptor_batch, rotate)
    best = BestEpoch(None if select == "last" else evaluator)
    facts: dict[str, object] = {}

    def after_epoch(epoch: int) -> None:
        best(epoch, model, last=epoch == experiment.pretraining.epochs and select == "last")
        work.report("epoch", run=work.folder.number, doing="rotation", epoch=epoch, of=experiment.pretraining.epochs)
        if epoch == 1 and experiment.stalled_below is not None:
            accuracy = (best.evaluation if best.epoch == 1 else evaluator(model)).accuracy
            facts.update(attempt=attempt, first_epoch_accuracy=accuracy)
            if accuracy < experiment.stalled_below:
                _stalled(work, distortion, accuracy, again=attempt < experiment.restarts)

    order = work.generator("rotation", distortion, *([f"attempt {attempt}"] if attempt else []), member=member)
    pool = work.pool(ir, nr, distortion)
    best(0, model)
    fit(model, pool, experiment.pretraining, order, rotate, after_epoch, experiment.training_threads)
    evaluation = best.evaluation or evaluator(model)
    if at_chance(evaluation.accuracy, 4, len(split)):
        found = f"the rotation accuracy is not clearly above chance, 25 %, on {len(split)} images"
        fixed = "more --unsup-epochs, another --lr, or a smaller --batch-size"
        work.report("warning", text=f"{found}: the initial model may have learnt nothing; {fixed}")
    return best.weights, {"rotation_accuracy": evaluation.accuracy, "select": select, "epoch": best.epoch, **facts}


def _stalled(work: Workspace, distortion: str, accuracy: float, again: bool) -> None:
    """Warn that a training has stalled (docs/method.md, section 4). Raises Stalled if it is started again."""
    found = f"run {work.folder.number}: the rotation training on {distortion} has stalled: after its first epoch "
    found += f"{accuracy:.1f} % of the rotations are right, less than {work.experiment.stalled_below:g} %"
    if again:
        work.report("warning", text=f"{found}; it is started again, with the images in another order")
        raise Stalled
    work.report(
        "warning",
        text=f"{found}; most recover; from one that did not accuracy was 19 points lower at 375 labels: "
        "--restart-stalled, with another --save-folder, starts such a training again",
    )
