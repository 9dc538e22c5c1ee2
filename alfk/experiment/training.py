"""Training and evaluating a network: classification and the rotation task (Gidaris et al. 2018)."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alfk.data.split import Split
from alfk.experiment.config import Recipe
from alfk.networks.modes import evaluation_mode
from alfk.networks.weights import has_batch_norm, snapshot
from alfk.support import distributed
from alfk.support.errors import UserError, one_line
from alfk.support.seeding import draw_seed

Task = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]

NOT_FINITE = "a loss or a weight is not finite, at the learning rate"
LOWER = "give a lower --lr, and once iterations are finished another --save-folder"  # a run has one rate


def classify(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The classification task: images (B, ...) with their labels (B,)."""
    return images, labels


def rotate(images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rotation task: images (B, ...) at 0, 90, 180 and 270 degrees, labelled 0 to 3: (4 B, ...), (4 B,)."""
    rotated = torch.cat([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return rotated, torch.arange(4, device=images.device).repeat_interleave(len(images))


def fit(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    generator: torch.Generator,
    task: Task = classify,
    after_epoch: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> None:
    """Train `model` in place by SGD on cross-entropy, shuffled by `generator` in every epoch.

    In a process group every batch is divided among the processes; the gradient is that of the whole batch. Batch norm
    uses the statistics of the whole batch on GPUs (its layers become SyncBatchNorm), and those of each process's images
    on a CPU.

    Args:
        model: returns (logits, taps) (see `alfk.networks.contract`).
        data: (N, ...) images, with labels (N,) for the task `classify`.
        recipe: epochs, batch size, rate and its schedule.
        generator: source of the order of the images, and of the seeds of images in files.
        task: maps a batch of images and labels to inputs and targets.
        after_epoch: called with the number of the epoch, from 1.
        threads: CPU threads of the training steps; unchanged if None.
    Raises:
        UserError: too few images to train on, a network that cannot be compiled, or an epoch after which a loss or a
            weight is not finite.
    """
    rank, world = distributed.rank(), distributed.world_size()
    min_batch = (2 if has_batch_norm(model) else 1) * world  # batch norm needs the variance of at least two images
    if recipe.batch_size < min_batch and world > 1:
        raise UserError(f"a batch of {recipe.batch_size} images is too small for {world} processes: start fewer")
    if recipe.batch_size < min_batch:
        raise UserError("a network with batch norm cannot be trained on batches of a single image: raise --batch-size")
    network = _data_parallel(model, data.device)
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    forward = torch.compile(network) if recipe.compiled else network
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        batches = _shuffled(len(data), recipe.batch_size, min_batch, generator)
        local = torch.cat([batch[rank::world] for batch in batches])
        local_batch_size = len(range(rank, recipe.batch_size, world))
        seed = draw_seed(generator) if data.in_files else None
        losses = torch.zeros((), device=data.device)
        with cpu_threads(threads):
            for step, (images, positions) in enumerate(data.batches(local_batch_size, local, seed)):
                optimiser.param_groups[0]["lr"] = recipe.lr * recipe.schedule(epoch, (step + 1) / len(batches))
                inputs, targets = task(images, data.labels[positions])
                with compiling() if recipe.compiled else contextlib.nullcontext():
                    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.amp):
                        loss = F.cross_entropy(forward(inputs)[0], targets)
                    # DDP averages over processes; the factor, 1 for equal parts, makes that the mean over the batch.
                    loss = loss * (world * len(images) / len(batches[step]))
                    optimiser.zero_grad()
                    loss.backward()
                optimiser.step()
                losses += loss.detach()
            # Weights that are not finite make the next loss so, too.
            diverged = not are_finite(losses, *([model] if epoch == recipe.epochs else []))
        distributed.broadcast_tensors(model.buffers())
        if distributed.all_sum(diverged):
            raise UserError(f"the training diverged in epoch {epoch}: {NOT_FINITE} {recipe.lr:g}: {LOWER}")
        if after_epoch is not None:
            after_epoch(epoch)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Raises UserError if torch.compile fails, which it does when the network is called first."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and needed here only

    try:
        yield
    except TorchDynamoException as problem:
        cause = one_line(getattr(problem, "inner_exception", problem))
        raise UserError(
            f"torch.compile failed ({cause}): it needs a C++ compiler that works, e.g. g++, or the one named in CXX; "
            "without one leave out --compile"
        ) from problem


def are_finite(losses: Tensor, *models: nn.Module) -> bool:
    """Whether a sum of losses, and the sums of the models' weights and buffers, are finite. Waits for the device."""
    with torch.no_grad():
        sums = [value.sum(dtype=losses.dtype) for model in models for value in (*model.parameters(), *model.buffers())]
        return math.isfinite(sum(sums, losses))


def _shuffled(images: int, batch_size: int, min_batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """All positions in random order, in batches; a last batch of fewer than `min_batch` images is left out."""
    order = torch.randperm(images, generator=generator)
    if 0 < images % batch_size < min_batch:
        order = order[: -(images % batch_size)]  # other images in every epoch
    if images and not len(order):
        if distributed.world_size() == 1:
            raise UserError("a network with batch norm cannot be trained on a single image: raise -as")
        raise UserError(
            f"{images} images are too few for {distributed.world_size()} processes: raise -as or start fewer"
        )
    return order.split(batch_size)


def _data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The network, in a process group wrapped so that the processes average their gradients."""
    if distributed.world_size() == 1:
        return model
    on_gpu = device.type == "cuda"
    if on_gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces submodules in place
    return DistributedDataParallel(model, [device] if on_gpu else None, broadcast_buffers=False)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """`count` CPU threads inside the block. The rounding of gradient sums depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class Evaluation:
    """The evaluation of a network on all images of a split.

    Attributes:
        errors: number of wrong predictions.
        count: number of predictions: one per image, in the rotation task four.
        predictions: (N, k) int64, the top-k classes of every image, most likely first; None for the rotation task.
    """

    errors: int
    count: int
    predictions: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return 100 * (self.count - self.errors) / self.count


class Evaluator:
    """Evaluates a network on the same images after every epoch, stopping once the epoch cannot be the best.

    An epoch with as many errors as the best one cannot replace it. Images misclassified lately are evaluated first, so
    that this is often known after a fraction of the images. Images that are decoded again in every pass are all
    evaluated, in order, because their decoders prefetch.

    Args:
        split: (N, ...) images, with labels (N,) for the task `classify`.
        batch_size: images in a forward pass.
        task: `classify` or `rotate`.
        k: number of classes predicted for an image (top-k).
    """

    def __init__(self, split: Split, batch_size: int, task: Task = classify, k: int = 1):
        self.split, self.batch_size, self.task, self.k = split, batch_size, task, k
        self.difficulty = torch.zeros(len(split), device=split.device)  # decaying count of the errors on each image

    @torch.inference_mode()
    def __call__(self, model: nn.Module, best: Evaluation | None = None) -> Evaluation | None:
        """The evaluation, or None as soon as there are as many errors as in `best`."""
        split, task, k = self.split, self.task, self.k
        order = torch.arange(len(split), device=split.device)
        if split.random_access:
            order = self.difficulty.argsort(descending=True, stable=True)
        predictions = torch.empty(len(split), k, dtype=torch.int64, device=split.device)
        labels, errors, count = split.labels[order], 0, 0

        def predict(images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            inputs, targets = task(images, labels[positions])
            logits = model(inputs)[0]
            top = logits.argmax(1, keepdim=True) if k == 1 else logits.topk(min(k, logits.shape[1])).indices
            return top, (top[:, 0] != targets).view(-1, len(images)).sum(0)

        with evaluation_mode(model):
            for positions, (top, wrong) in distributed.map_batches(predict, split.subset(order), self.batch_size):
                rows = order[positions]
                self.difficulty[rows] = self.difficulty[rows] / 2 + wrong
                errors, count = errors + int(wrong.sum()), count + len(top)
                if task is classify:
                    predictions[rows, : top.shape[1]] = top
                if best is not None and errors >= best.errors and split.random_access:
                    return None
        return Evaluation(errors, count, predictions[:, : top.shape[1]] if task is classify else None)


class BestEpoch:
    """Keeps the weights of the epoch with the fewest errors, of equal epochs the first (docs/method.md, section 8).

    To be called with the number of an epoch and the network; with 0 before training if the starting model counts.
    Without an evaluator the weights of the last epoch are kept.

    Attributes:
        epoch: the epoch kept, None before the first call.
        weights: its weights, on the CPU.
        evaluation: its evaluation.
        last: the evaluation of the last epoch.
    """

    def __init__(self, evaluator: Evaluator | None):
        self.evaluator = evaluator
        self.last: Evaluation | None = None
        self.epoch: int | None = None
        self.weights: dict[str, Tensor] = {}
        self.evaluation: Evaluation | None = None

    def __call__(self, epoch: int, model: nn.Module, last: bool = False) -> None:
        """Evaluate the network, after the last epoch on all images, and keep its weights if it is the best so far."""
        evaluation = self.evaluator(model, None if last else self.evaluation) if self.evaluator else None
        self.last = evaluation if last else None
        if self.evaluator:
            better = evaluation and (self.evaluation is None or evaluation.errors < self.evaluation.errors)
        else:
            better = last
        if better:
            self.epoch, self.evaluation, self.weights = epoch, evaluation, snapshot(model)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * float((predictions == labels).double().mean())


def at_chance(percent: float, classes: int, images: int) -> bool:
    """Whether an accuracy on so many images is within two standard errors of guessing among `classes`, or below."""
    chance = 1 / classes
    return percent / 100 <= chance + 2 * (chance * (1 - chance) / images) ** 0.5


def accuracy_per_class(predictions: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Accuracy of each class in percent; None for a class without images."""
    correct = torch.bincount(labels[predictions == labels], minlength=classes).tolist()
    count = torch.bincount(labels, minlength=classes).tolist()
    return [100 * r / n if n else None for r, n in zip(correct, count, strict=True)]
