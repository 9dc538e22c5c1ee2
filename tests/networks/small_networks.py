"""Small networks of one's own, and random images for them."""

import torch
from torch import nn

from alfk.data.split import Split
from alfk.networks.taps import tapped

SIZE, CLASSES = 12, 4


class Net(nn.Module):
    """A convolutional network, which returns the logits alone."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace)
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, 2, padding=1), nn.ReLU(inplace)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, CLASSES)

    def features(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))))

    def forward(self, x):
        return self.fc(self.drop(self.features(x).mean((2, 3))))


class WithTaps(Net):
    """The same network, which returns (logits, taps) itself."""

    def forward(self, x):
        x1 = self.relu1(self.conv1(x))
        x2 = self.relu2(self.conv2(x1))
        return self.fc(self.drop(x2.mean((2, 3)))), [x1, x2]


class Changed(WithTaps):
    """What it returns is changed: `change` of (logits, taps)."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(*super().forward(x))


def made(kind, **options):
    """A network of that class, in evaluation mode, with the same weights every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return kind(**options).eval()


def with_taps(names=("relu1", "relu2"), **options):
    return tapped(made(Net, **options), names).eval()


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, CLASSES, (count,), generator=generator), (0.5,), (0.3,))


POOL, VALIDATION = split(14, 1), split(9, 2)
IMAGES = next(POOL.batches(5))[0]
LABELS = torch.arange(5) % CLASSES
