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
        return F.relu(self._pool(self.conv1(images)))

    def after_dropout(self, x1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rest of the network, with new dropout masks in each call."""
        x2 = F.relu(self._pool(self.conv2(self.drop1(x1))))
        x4 = F.relu(self.fc1(self.drop2(x2).flatten(1)))
        logits = self.fc2(self.drop4(x4))
        return logits, [x1, x2, x4, logits]

    def _pool(self, features: Tensor) -> Tensor:
        return F.max_pool2d(features, 2) if self.training else max_pool(features)


def max_pool(images: Tensor) -> Tensor:
    """2x2 max pooling for evaluation. On a CPU maxima of strided views are bitwise equal and so
    much faster that the network evaluates 1.5 times, and describes 1.8 times as many images a second.
    """
    if images.is_cuda:
        return F.max_pool2d(images, 2)
    return MaxPoolByViews.apply(images) if torch.is_grad_enabled() else maxima_of_views(images)


def maxima_of_views(images: Tensor) -> Tensor:
    height, width = (size // 2 * 2 for size in images.shape[-2:])  # a last odd row or column has no window
    images = images[..., :height, :width]
    rows = torch.maximum(images[:, :, ::2], images[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class MaxPoolByViews(torch.autograd.Function):
    """2x2 max pooling whose backward pass computes the indices of the maxima, which the forward pass saves."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return maxima_of_views(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        with torch.no_grad():
            _, indices = F.max_pool2d(images, 2, return_indices=True)
        window = [2, 2], [2, 2], [0, 0], [1, 1], False  # kernel, stride, padding, dilation, ceil_mode
        return torch.ops.aten.max_pool2d_with_indices_backward(gradient, images, *window, indices)
