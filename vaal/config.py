"""VAAL's constants for each data set (docs/method.md, section 10), beside those that all methods share.

    python3 ../mnist/run.py --initial -ir 100 && python3 run.py -ir 100

Expected on MNIST at ir=100 from the rotation model (published, 10 runs, mean ± standard deviation): 51.5 ± 2.3,
53.9 ± 2.8 and 57.0 ± 3.1 % at 125, 250 and 375 labels. About 16 hours a run on one core of a 2-core AMD EPYC: computed
from the time of a step, not run here.
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
    """The training of VAE, discriminator and task model in one AL iteration, on one data set."""

    divisor: int  # s, of the widths of the VAE (128 to 1024 channels) and the discriminator (512)
    batch_size: int  # images, labelled and unlabelled each
    train_iterations: int  # steps of the task model
    lr: float  # of Adam, for all three networks
    training_threads: int  # CPU threads: fixed, so that results depend on neither --jobs nor the machine
    padding: int = 0  # zeros on each side of the images
    network: Callable[[int], nn.Module] | None = None  # classes -> task model; None: the experiment's network
    lr_factor: float = 0.9
    lr_drops: int = 25  # the rate is multiplied by lr_factor after every 1/25 of the steps
    vae_steps: int = 2  # per step of the task model
    adversary_steps: int = 2  # of the discriminator, per step of the task model
    latent_dim: int = 32
    adversary_param: float = 1.0  # lambda_2, weight of the adversarial term in the VAE's loss (VAAL, Eq. 4)
    checks: int = 5  # evaluations, the first after step 1, the others every 2,000 of 10,000 steps

    def settings(self) -> dict[str, Any]:
        """The constants for a run's manifest, by name with the prefix "vaal."."""
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
    """The data sets that have a recipe, by name."""
    known = all_experiments()
    return {name: known[name] for name in RECIPES if name in known}
