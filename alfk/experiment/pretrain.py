"""Before the loop: a run's initial models, random and pretrained by rotation (Section 5; docs/method.md, section 4)."""

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
                    check_settings(path, found.get("settings", {}), settings, FIX)
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


def _rotation(work: Workspace, ir: float, nr: float, distortion: str, member: int, select: str) -> Made:
    experiment = work.experiment
    model = work.network(4)
    model.load_state_dict(work.random_state(4, "init", member))
    split = work.validation() if select == "val" else work.test
    evaluator = Evaluator(split, experiment.descriptor_batch, rotate)
    best = BestEpoch(None if select == "last" else evaluator)

    def after_epoch(epoch: int) -> None:
        best(epoch, model, last=epoch == experiment.pretraining.epochs and select == "last")
        work.report("epoch", run=work.folder.number, doing="rotation", epoch=epoch, of=experiment.pretraining.epochs)

    shuffles = work.generator("rotation", distortion, member=member)
    pool = work.pool(ir, nr, distortion)
    best(0, model)
    fit(model, pool, experiment.pretraining, shuffles, rotate, after_epoch, experiment.training_threads)
    evaluation = best.evaluation or evaluator(model)
    if at_chance(evaluation.accuracy, 4, len(split)):
        found = f"the rotation accuracy is not clearly above chance, 25 %, on {len(split)} images"
        fixed = "more --unsup-epochs, another --lr, or a smaller --batch-size"
        work.report("warning", text=f"{found}: the initial model may have learnt nothing; {fixed}")
    return best.weights, {"rotation_accuracy": evaluation.accuracy, "select": select, "epoch": best.epoch}
