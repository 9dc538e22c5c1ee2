"""A network of torchvision for a user's images: pretrained weights, a new head, and the training of both.

The head is fitted first, by logistic regression on the features of the other layers, which needs no learning rate. Then
the layers that are not frozen are trained together with it (linear probing, then fine-tuning: Kumar et al. 2022).
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.experiment.training import Task, classify, rotate
from alfk.networks.outputs import outputs_of
from alfk.networks.suggestions import suggest_taps
from alfk.networks.taps import Tapped, tapped
from alfk.support.errors import UserError, one_line
from alfk.support.seeding import generator, seeded_globally

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that torchvision's weights are meant for
OTHER_FORMS = ("squeezenet", "googlenet", "inception")  # no linear head, or several heads
ARCHITECTURES = [n for n in torchvision.models.list_models(torchvision.models) if not n.startswith(OTHER_FORMS)]
BATCH, EVALUATION_BATCH = 32, 100
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
ROTATION_LR = 0.02
SMALLEST = 2  # images in a batch, which batch norm needs

Watch = Callable[[Iterable, str, int], Iterable]  # (steps, what, their number) -> the same steps, with a progress bar


def unwatched(steps: Iterable, what: str, number: int) -> Iterable:
    """No progress bar."""
    return steps


class NoWeights(UserError):
    """Pretrained weights could not be downloaded."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained from its start weights.

    Attributes:
        freeze: "backbone" (the head alone is trained), "none", or the number of first blocks that stay as they are.
        epochs: of fine-tuning; a frozen backbone needs none.
        lr, head_lr: learning rates of body and head at the beginning of fine-tuning; both fall linearly to 0.
    """

    freeze: str | int = "backbone"
    epochs: int = 20
    lr: float = 0.005
    head_lr: float = 0.02


def pretrained(arch: str, weights: Path | None) -> nn.Module:
    """A network of torchvision with pretrained weights.

    Args:
        arch: one of ARCHITECTURES.
        weights: a file with a state_dict of this network, whose last layer may have any number of classes; if None,
            torchvision's own weights, which are downloaded once.
    Raises:
        NoWeights: the download failed.
        UserError: the file cannot be read, or holds the weights of another network.
    """
    if weights is None:
        try:
            return torchvision.models.get_model(arch, weights="DEFAULT")
        except (OSError, RuntimeError) as problem:
            raise NoWeights(f"the weights of {arch} could not be downloaded ({one_line(problem)})") from None
    state = read_state(weights)
    network = untrained(arch, 1000, 0)
    head, own = head_name(network), network.state_dict()
    wrong = sorted(k for k in own.keys() | state.keys() if not k.startswith(f"{head}.") and not _same(own, state, k))
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"{weights} is not a state_dict of {arch}: {len(wrong)} of its tensors are missing or of another shape, as "
            f"{wrong[0]}; -a names the network that the weights are of"
        )
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith(f"{head}.")}, strict=False)
    return network


def _same(own: Mapping[str, Tensor], state: Mapping[str, Tensor], key: str) -> bool:
    return key in own and key in state and own[key].shape == getattr(state[key], "shape", None)


def read_state(path: Path) -> dict[str, Any]:
    """The state_dict in a file, also below the key "state_dict". No code in the file is run. Raises UserError."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: give --weights a file, or none") from None
    except Exception as problem:  # torch.load raises exceptions of many types for files of other kinds
        raise UserError(
            f"{path} is not a file of weights that torch.save has written ({type(problem).__name__})"
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no state_dict: save model.state_dict() with torch.save")
    return found


def untrained(arch: str, classes: int, seed: int) -> nn.Module:
    """A network of torchvision with random weights."""
    with seeded_globally(seed, torch.device("cpu")), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of networks whose initialisation will change
        return torchvision.models.get_model(arch, weights=None, num_classes=classes)


def check_size(network: nn.Module, size: int) -> None:
    """Raises UserError if a network on the CPU takes no images of so many pixels."""
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception as problem:  # of many types, by the layer that fails
        raise UserError(f"--image-size {size}: the network takes no such images ({one_line(problem)})") from None


def has_dropout(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())


def head_name(network: nn.Module) -> str:
    """The name of its last linear layer, which gives the logits."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def renew_head(network: nn.Module, classes: int, seed: int) -> None:
    """Replace the last linear layer by a random one for `classes` classes."""
    name = head_name(network)
    with seeded_globally(seed, torch.device("cpu")):
        network.set_submodule(name, nn.Linear(network.get_submodule(name).in_features, classes))


def with_taps(network: nn.Module, size: int) -> Tapped:
    """The network with its last two stages tapped, as `alfk.suggest_taps` proposes."""
    return tapped(network, suggest_taps(network, torch.zeros(2, 3, size, size)).last_two)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Its parts with weights, in order: its children, and in place of a child that is a row of layers these."""
    parts = []
    for child in network.children():
        parts += child.children() if isinstance(child, nn.Sequential) else [child]
    return [part for part in parts if next(part.parameters(), None) is not None]


def frozen_blocks(network: nn.Module, freeze: str | int) -> list[nn.Module]:
    """The blocks that stay as they are. Raises UserError if there are not as many."""
    body = [block for block in blocks(network) if block is not network.get_submodule(head_name(network))]
    count = {"none": 0, "backbone": len(body)}.get(freeze, freeze)
    if count > len(body):
        raise UserError(f"--freeze {freeze}: the network has {len(body)} blocks before its head; give fewer")
    return body[:count]


def train(network: nn.Module, data: Split, classes: int, training: Training, seed: int, watch: Watch) -> None:
    """Train a network with start weights and any head, in place: the head, then what is not frozen.

    Args:
        data: labelled images.
        seed: of the order of the images, and of dropout.
    Raises:
        UserError: a loss is not finite, or more blocks are to be frozen than there are.
    """
    frozen = frozen_blocks(network, training.freeze)
    renew_head(network, classes, seed)
    head = network.get_submodule(head_name(network))
    features = outputs_of(Tapped(network, [head_name(network)]), data, batch_size=EVALUATION_BATCH).features
    fit_head(head, features, data.labels)
    if training.freeze == "backbone" or len(data) < SMALLEST:
        return
    for block in frozen:
        block.requires_grad_(False)
    own = {id(parameter) for parameter in head.parameters()}
    body = [p for p in network.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": body, "lr": training.lr}, {"params": list(head.parameters()), "lr": training.head_lr}]
    _descend(network, data, groups, training.epochs, classify, seed, frozen, "training", watch)


def fit_head(head: nn.Linear, features: Tensor, labels: Tensor, decay: float = 1.0, steps: int = 200) -> None:
    """Multinomial logistic regression: the weights W, b of `head` minimise sum_i CE(W f_i + b, y_i) + decay/2 |W|^2.

    f_i are the features divided by one number, their root mean square, so that `decay` means the same for every
    network. A class without labels keeps a place: its probability becomes small, but not 0.

    Args:
        features: (N, D).
        labels: (N,) int64.
        decay: scikit-learn's 1 / C.
        steps: of L-BFGS, which stops earlier where the optimum is reached.
    """
    scale = features.double().square().mean().sqrt().clamp(min=1e-12)
    f, y = features.double() / scale, labels
    weight = torch.zeros(head.out_features, head.in_features, dtype=torch.float64, device=f.device, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=torch.float64, device=f.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(f, weight, bias), y, reduction="sum") + decay / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias)


def pretrain_by_rotation(network: nn.Module, pool: Split, epochs: int, seed: int, watch: Watch) -> None:
    """Train a network with random weights to recognise rotations of the pool's images, in place (paper, Section 5)."""
    renew_head(network, 4, seed)
    groups = [{"params": list(network.parameters()), "lr": ROTATION_LR}]
    _descend(network, pool, groups, epochs, rotate, seed, [], "pretraining by rotation", watch)


def _descend(
    network: nn.Module,
    data: Split,
    groups: list[dict[str, Any]],
    epochs: int,
    task: Task,
    seed: int,
    frozen: Sequence[nn.Module],
    what: str,
    watch: Watch,
) -> None:
    """SGD on cross-entropy with rates that fall linearly to 0; frozen blocks are computed as for evaluation.

    The rotation task sees random crops; images with labels are not changed, since a mirror image may be of no class.
    """
    random = generator(seed, what)
    optimiser = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    orders = [_shuffled(len(data), random) for _ in range(epochs)]
    steps = sum(len(batches) for batches in orders)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        for epoch, order in enumerate(orders):
            crops = None if task is classify else seed + epoch
            yield from data.batches(BATCH, torch.cat(order), crops)

    network.train()
    for block in frozen:
        block.eval()
    with seeded_globally(seed, data.device), contextlib.closing(batches()) as loaded:
        for images, positions in watch(loaded, what, steps):
            inputs, targets = task(images, None if data.labels is None else data.labels[positions])
            loss = F.cross_entropy(network(inputs), targets)
            if not loss.isfinite():
                raise UserError(f"the {what} diverged: its loss is not finite; give a lower --lr")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def _shuffled(count: int, random: torch.Generator) -> list[Tensor]:
    """Batches of shuffled positions; a last batch that is too small for batch norm is left out."""
    parts = torch.randperm(count, generator=random).split(BATCH)
    return [part for part in parts if len(part) >= min(SMALLEST, count)]
