"""VAAL's constants for each data set (docs/method.md, section 10), in addition to those of the other methods.

MNIST, ir=100, rotation init (published, 10 runs, mean +- std): 51.5 +- 2.3, 53.9 +- 2.8 and 57.0 +- 3.1 % at 125, 250
and 375 labels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from alfk.cli.datasets import all_experiments
from alfk.experiment.config import Experiment
from mnist.custom_models.lenet import LeNet


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One AL iteration's training of VAE, discriminator and task model on one data set."""

    divisor: int  # s, which divides the widths of VAE (128 to 1024 channels) and discriminator (512)
    batch_size: int
    train_iterations: int  # task model steps
    lr: float  # of Adam, for all three networks
    training_threads: int  # CPU threads: fixed, so that results depend on neither --jobs nor the machine
    padding: int = 0  # zeros on each side of the images
    network: Callable[[int], nn.Module] | None = None  # classes -> task model, if it is not the experiment's network
    lr_factor: float = 0.9
    lr_drops: int = 25  # the rate is multiplied by lr_factor after every 1/25 of the steps
    vae_steps: int = 2  # per step of the task model
    adversary_steps: int = 2  # of the discriminator, per step of the task model
    latent_dim: int = 32
    adversary_param: float = 1.0  # lambda_2, weight of the adversarial term in the VAE's loss (VAAL, Eq. 4)
    checks: int = 5  # evaluations, the first after step 1, the others every 2,000 of 10,000 steps

    def settings(self) -> dict[str, Any]:
        """The constants as flat JSON-able values for a run's manifest, with the prefix "vaal."."""
        return {f"vaal.{f.name}": getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "network"}

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.lr * self.lr_factor ** (step * self.lr_drops // self.train_iterations)

    def check_steps(self) -> list[int]:
        """The steps after which accuracy is evaluated: 1, 2001, 4001, 6001 and 8001 of 10,000, never the last one."""
        return [1 + step for step in range(0, self.train_iterations, -(-self.train_iterations // self.checks))]


MNIST = Recipe(
    divisor=2,
    batch_size=25,
    train_iterations=10_000,
    lr=5e-4,
    training_threads=1,
    padding=2,  # 28x28 -> 32x32, the VAE's input
    network=functools.partial(LeNet, size=32),
)

RECIPES = {
    "MNIST": MNIST,
    "DIGITS": dataclasses.replace(MNIST, divisor=8, train_iterations=500),  # to try things out
    "SVHN": Recipe(divisor=1, batch_size=25, train_iterations=10_000, lr=5e-4, training_threads=1),
    "ImageNet": Recipe(divisor=1, batch_size=25, train_iterations=10_000, lr=1e-3, training_threads=1),
}


def experiments() -> dict[str, Experiment]:
    """The data sets in the repository that have a recipe, by name."""
    known = all_experiments()
    return {name: known[name] for name in RECIPES if name in known}
