"""LeNet with taps (paper, Section 5: two convolutions of 5x5, two linear layers)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.networks.dropout import MCDropout


class LeNet(nn.Module):
    """Images (B, 1, size, size) -> (logits (B, classes), taps).

    The taps are x1 (B, 10, 12, 12) and x2 (B, 20, 4, 4), the convolutions after pooling and ReLU; x4 (B, 50), the first
    linear layer after ReLU; and the logits. (Shapes at 28 pixels; at VAAL's 32 pixels x2 is (B, 20, 5, 5).)

    MC-dropout follows x1 and x2 with probability 0.25 and x4 with probability 0.5; the taps are taken before it.
    """

    head = "fc2"  # the last linear layer, which is new when AL starts from a rotation model

    def __init__(self, classes: int = 10, size: int = 28):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        side = ((size - 4) // 2 - 4) // 2  # of x2: each 5x5 convolution removes 4 pixels, each pooling halves
        self.fc1 = nn.Linear(20 * side**2, 50)
        self.fc2 = nn.Linear(50, classes)
        self.drop1, self.drop2, self.drop4 = MCDropout(0.25), MCDropout(0.25), MCDropout(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.after_dropout(self.before_dropout(images))

    def before_dropout(self, images: Tensor) -> Tensor:
        """x1, which does not depend on dropout masks."""
        return F.relu(max_pool(self.conv1(images)))

    def after_dropout(self, x1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rest of the network, with new dropout masks in each call."""
        x2 = F.relu(max_pool(self.conv2(self.drop1(x1))))
        x4 = F.relu(self.fc1(self.drop2(x2).flatten(1)))
        logits = self.fc2(self.drop4(x4))
        return logits, [x1, x2, x4, logits]


def max_pool(images: Tensor) -> Tensor:
    """2x2 max pooling. On a CPU by strided views: the same bits, faster (docs/speed.md)."""
    if images.is_cuda:
        return F.max_pool2d(images, 2)
    height, width = (size // 2 * 2 for size in images.shape[-2:])  # a last odd row or column has no window
    images = images[..., :height, :width]
    if torch.is_grad_enabled():
        return MaxPool.apply(images)
    rows = torch.maximum(images[..., ::2, :], images[..., 1::2, :])  # rows first, the fastest order
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class MaxPool(torch.autograd.Function):
    """The maximum of two columns, then of two rows. Of equal values the first in a window's rows gets the gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        left, right = images[..., ::2], images[..., 1::2]
        columns = torch.maximum(left, right)
        upper, lower = columns[..., ::2, :], columns[..., 1::2, :]
        ctx.save_for_backward(right > left, lower > upper)
        return torch.maximum(upper, lower)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        is_right, is_lower = ctx.saved_tensors
        batch, channels, height, width = gradient.shape
        columns = gradient.new_empty(batch, channels, 2 * height, width)
        images = gradient.new_empty(batch, channels, 2 * height, 2 * width)
        columns[..., 1::2, :] = lower = gradient * is_lower
        columns[..., ::2, :] = gradient - lower
        images[..., 1::2] = right = columns * is_right
        images[..., ::2] = columns - right
        return images
