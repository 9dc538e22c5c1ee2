"""The alternating training of VAE, discriminator and task model (VAAL, Algorithm 1; docs/method.md, section 10)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.experiment.training import NOT_FINITE, are_finite, cpu_threads
from alfk.support.errors import UserError
from vaal.config import Recipe
from vaal.model import VAE, Discriminator, fit_to_vae, initialise_discriminator, initialise_vae


def transductive_loss(images: Tensor, reconstruction: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """One batch's term of L_VAE^trd (VAAL, Eq. 1, beta=1): the squared error, averaged over all pixels and images, plus
    the Kullback-Leibler divergence of the codes from a standard normal, summed over images and latent dimensions.

    Args:
        images, reconstruction: (B, C, 32, 32).
        mu, logvar: (B, latent_dim).
    """
    divergence = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
    return F.mse_loss(reconstruction, images) + divergence


def adversarial_loss(labelled: Tensor, unlabelled: Tensor) -> Tensor:
    """L_VAE^adv (VAAL, Eq. 2): cross-entropy with the target "labelled" for both batches.

    Args:
        labelled, unlabelled: the discriminator's logits (B,) for the two batches.
    """
    return _cross_entropy(labelled, 1.0) + _cross_entropy(unlabelled, 1.0)


def discriminator_loss(labelled: Tensor, unlabelled: Tensor) -> Tensor:
    """L_D (VAAL, Eq. 3): cross-entropy with the true targets. Arguments: see `adversarial_loss`."""
    return _cross_entropy(labelled, 1.0) + _cross_entropy(unlabelled, 0.0)


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


MOST = 2**31 - 1  # images that an AL iteration may take from the pool: their order is kept in memory

Batches = Iterator[tuple[Tensor, Tensor]]  # images and their positions in the pool


class Solver:
    """Task model, VAE and discriminator of one AL iteration, their optimisers, and the number of steps done.

    Args:
        task: the task model, untrained.
        pool: images with VAAL's preprocessing, and their labels.
        init: generator for the weights of VAE and discriminator.
        noise: generator for the noise of the codes.
    """

    def __init__(self, recipe: Recipe, task: nn.Module, pool: Split, init: torch.Generator, noise: torch.Generator):
        self.recipe, self.pool, self.noise, self.step = recipe, pool, noise, 0
        channels = next(pool.batches(1))[0].shape[1]
        self.task = task
        self.vae = VAE(channels, recipe.divisor, recipe.latent_dim)
        self.discriminator = Discriminator(recipe.divisor, recipe.latent_dim)
        initialise_vae(self.vae, init)
        initialise_discriminator(self.discriminator, init)
        self.networks = [
            network.to(pool.device, memory_format=torch.channels_last).train()
            for network in (self.task, self.vae, self.discriminator)
        ]
        self.optimisers = [torch.optim.Adam(network.parameters(), recipe.lr) for network in self.networks]
        self.losses = torch.zeros((), device=pool.device)  # their sum: not finite if one of them was not

    def train(
        self,
        labelled: Tensor,
        unlabelled: Tensor,
        shuffles: torch.Generator,
        after_check: Callable[[], None],
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Do the remaining steps, also those after the last check.

        Args:
            labelled, unlabelled: positions in the pool, int64.
            shuffles: generator for the batches of all steps; those of steps already done are skipped.
            after_check: called after each of `recipe.check_steps()`.
            after_step: called after each step.
        Raises:
            UserError: a loss or a weight is not finite, which is looked at in every check and at the end.
        """
        labelled_batches = self._batches(labelled, shuffles)
        unlabelled_batches = self._batches(unlabelled, shuffles)
        checks = self.recipe.check_steps()
        while self.step < self.recipe.train_iterations:
            with cpu_threads(self.recipe.training_threads):
                self._step(labelled_batches, unlabelled_batches)
            after_step()
            if self.step in checks or self.step == self.recipe.train_iterations:
                self._check_finite()
            if self.step in checks:
                after_check()

    def state(self) -> dict[str, Any]:
        """The state of the training, as tensors and plain values, for `load_state`."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "noise": self.noise.get_state(),
            "step": self.step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for network, saved in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.noise.set_state(state["noise"])
        self.step = state["step"]

    def _batches(self, rows: Tensor, shuffles: torch.Generator) -> Batches:
        """The batches of the remaining steps, all of the same size, from repeated shuffles of `rows`."""
        later = [steps - 1 for steps in (self.recipe.vae_steps, self.recipe.adversary_steps) if steps]
        size = self.recipe.batch_size * (1 + sum(later))  # per step: the first updates of both use the latest batch
        if size * self.recipe.train_iterations > MOST:
            raise UserError(f"VAAL takes at most {MOST} images in an iteration: lower --batch-size")
        order = endless(rows, size * self.recipe.train_iterations, shuffles)
        return iter(self.pool.batches(self.recipe.batch_size, order[size * self.step :]))

    def _step(self, labelled: Batches, unlabelled: Batches) -> None:
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = self.recipe.rate(self.step)
        task, vae, discriminator = self.optimisers
        images, positions = next(labelled)
        self._descend(task, F.cross_entropy(self.task(images)[0], self.pool.labels[positions]))
        pair = fit_to_vae(images), fit_to_vae(next(unlabelled)[0])
        for optimiser, loss_of, updates in (
            (vae, self._vae_loss, self.recipe.vae_steps),
            (discriminator, self._discriminator_loss, self.recipe.adversary_steps),
        ):
            for update in range(updates):
                if update:  # the first one uses the latest batches
                    pair = fit_to_vae(next(labelled)[0]), fit_to_vae(next(unlabelled)[0])
                self._descend(optimiser, loss_of(*pair))
        self.step += 1

    def _vae_loss(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """L_VAE = L^trd + lambda_2 L^adv (VAAL, Eq. 4, lambda_1=1), with batch statistics of each batch alone."""
        loss, logits = 0.0, []
        for images in (labelled, unlabelled):
            noise = torch.randn(len(images), self.recipe.latent_dim, generator=self.noise).to(images.device)
            reconstruction, mu, logvar = self.vae(images, noise)
            loss = loss + transductive_loss(images, reconstruction, mu, logvar)
            logits.append(self.discriminator(mu))
        return loss + self.recipe.adversary_param * adversarial_loss(*logits)

    def _discriminator_loss(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        with torch.no_grad():
            codes = [self.vae.encode(images)[0] for images in (labelled, unlabelled)]
        return discriminator_loss(*map(self.discriminator, codes))

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self.losses += loss.detach()

    def _check_finite(self) -> None:
        if not are_finite(self.losses, *self.networks):
            rate = self.recipe.rate(self.step - 1)
            raise UserError(f"VAAL's training diverged by step {self.step}: {NOT_FINITE} {rate:g} (see vaal/config.py)")


def endless(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64: repeated random permutations of `rows` (k,), concatenated."""
    repeats = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(repeats)])[:count]
