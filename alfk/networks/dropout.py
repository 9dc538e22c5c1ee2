"""MC-dropout: dropout layers that act only while uncertainty is sampled (Gal and Ghahramani 2016)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MCDropout(nn.Module):
    """Dropout that is active inside `dropout_mode` alone, while uncertainty is sampled (Gal and Ghahramani 2016).

    Otherwise, in training too, it returns its input.

    Args:
        p: probability that an entry is zeroed.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.active = p, False

    def forward(self, features: Tensor) -> Tensor:
        return dropout(features, self.p) if self.active else features

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(features: Tensor, p: float) -> Tensor:
    """Features (B, ...) with every entry zeroed with probability p, the others divided by 1 - p.

    Seeded by torch's global generator. On a CPU, if p is a power of 1/2 not below 2^-8, each entry uses one random
    byte, which takes a tenth of the time of a Bernoulli draw and is fastest in channels-last memory.
    """
    halvings = -math.log2(p) if p else 0.0
    if features.device.type != "cpu" or halvings not in range(1, 9):
        return F.dropout(features, p, training=True)
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-features.numel() // 8), dtype=np.uint64)
    noise = torch.from_numpy(words.view(np.uint8))[: features.numel()]
    keep = (noise >> (8 - int(halvings))).clamp_(max=1)  # 0 where its first bits are all 0
    if features.ndim == 4:
        images, channels, height, width = features.shape
        keep = keep.view(images, height, width, channels).permute(0, 3, 1, 2)
    return (features * keep.view_as(features)).mul_(1 / (1 - p))
