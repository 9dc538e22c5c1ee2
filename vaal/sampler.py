"""Which images VAAL labels next: those that look least as if they were labelled (Sinha et al. 2019, Section 3.3)."""

import torch
from torch import Tensor

from alfk.acquisition import top_scoring
from alfk.data import Split
from alfk.network import evaluation_mode
from vaal.model import VAE, Discriminator, fit_to_vae


@torch.inference_mode()
def labelled_scores(vae: VAE, discriminator: Discriminator, pool: Split, batch_size: int) -> Tensor:
    """(N,) float32 on the CPU: for each pool image the logit of its being labelled, taken at the mean of its code.

    In evaluation mode, so that an image's score does not depend on those in its batch.
    """
    with evaluation_mode(vae), evaluation_mode(discriminator):
        scores = [discriminator(vae.encode(fit_to_vae(images))[0]) for images, _ in pool.batches(batch_size)]
    return torch.cat(scores).cpu()


def least_labelled(scores: Tensor, available: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n,) int64 positions of the n available images of the lowest score (N,), lowest first, equals in random order."""
    return top_scoring(-scores, available, n, generator)
