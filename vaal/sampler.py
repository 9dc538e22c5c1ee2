"""VAAL's acquisition: the images with the lowest logits of being labelled (Sinha et al. 2019, Section 3.3)."""

import torch
from torch import Tensor

from alfk.data.split import Split
from alfk.method.selection import top_scoring
from alfk.networks.modes import evaluation_mode
from vaal.model import VAE, Discriminator, fit_to_vae


@torch.inference_mode()
def labelled_scores(vae: VAE, discriminator: Discriminator, pool: Split, batch_size: int) -> Tensor:
    """(N,) float32 on the CPU: the discriminator's logit for every pool image, at the mean of its code.

    In evaluation mode: an image's score does not depend on its batch.
    """
    with evaluation_mode(vae), evaluation_mode(discriminator):
        scores = [discriminator(vae.encode(fit_to_vae(images))[0]) for images, _ in pool.batches(batch_size)]
    return torch.cat(scores).cpu()


def least_labelled(scores: Tensor, available: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n,) int64: the available images with the lowest scores (N,), lowest first, ties in random order."""
    return top_scoring(-scores, available, n, generator)
