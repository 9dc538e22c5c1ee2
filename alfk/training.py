"""Fitting and evaluating a network: classification and the rotation task (Gidaris et al. 2018)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.config import Recipe
from alfk.data import Split
from alfk.errors import UserError
from alfk.network import evaluation_mode, has_batch_norm

Task = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def classify(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The task itself: images (B, ...) with their labels (B,)."""
    return images, labels


def rotate(images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images (B, ...) at 0, 90, 180 and 270 degrees and which of the four each shows: (4 B, ...), (4 B,)."""
    turned = torch.cat([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned, torch.arange(4, device=images.device).repeat_interleave(len(images))


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

    Args:
        task: turns a batch of images and labels into inputs and targets.
        after_epoch: called with the number of the epoch, from 1.
        threads: CPU threads of the training steps, as many as elsewhere where it is None.
    """
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    forward = torch.compile(model) if recipe.compiled else model
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        order = torch.randperm(len(data), generator=generator)
        if len(order) % recipe.batch_size == 1 and has_batch_norm(model):
            order = order[:-1]  # one image has no variance; which one it is changes with every epoch
            if not len(order):
                raise UserError("a network with batch norm cannot be trained on a single image: raise -as")
        steps = -(-len(order) // recipe.batch_size)
        seed = int(torch.randint(2**31, (1,), generator=generator)) if data.in_files else None
        with cpu_threads(threads):
            for step, (images, positions) in enumerate(data.batches(recipe.batch_size, order, seed), 1):
                optimiser.param_groups[0]["lr"] = recipe.lr * recipe.schedule(epoch, step / steps)
                labels = None if data.labels is None else data.labels[positions]
                inputs, targets = task(images, labels)
                with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.amp):
                    loss = F.cross_entropy(forward(inputs)[0], targets)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        if after_epoch is not None:
            after_epoch(epoch)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """`count` CPU threads inside the block. Sums of gradients are rounded differently by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def predict(model: nn.Module, data: Split, batch_size: int) -> Tensor:
    """(N,) int64, the arg max for every image."""
    with evaluation_mode(model):
        return torch.cat([model(images)[0].argmax(1) for images, _ in data.batches(batch_size)])


@torch.inference_mode()
def ranking(model: nn.Module, data: Split, batch_size: int, k: int) -> Tensor:
    """(N, k) int64, the k likeliest classes of every image, the likeliest first; fewer where there are fewer."""
    found = []
    with evaluation_mode(model):
        for images, _ in data.batches(batch_size):
            logits = model(images)[0]
            found.append(logits.topk(min(k, logits.shape[1]), dim=1).indices)
    return torch.cat(found)


@torch.inference_mode()
def rotation_accuracy(model: nn.Module, data: Split, batch_size: int) -> float:
    """How many of the images, each turned four ways, are told their rotation; in percent."""
    right = 0
    with evaluation_mode(model):
        for images, _ in data.batches(batch_size):
            turned, quarter = rotate(images)
            right += int((model(turned)[0].argmax(1) == quarter).sum())
    return 100 * right / (4 * len(data))


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * float((predictions == labels).double().mean())


def accuracy_per_class(predictions: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """The same for the images of each class; None for a class without images."""
    right = torch.bincount(labels[predictions == labels], minlength=classes).tolist()
    count = torch.bincount(labels, minlength=classes).tolist()
    return [100 * r / n if n else None for r, n in zip(right, count, strict=True)]
