"""Active learning in a training loop of your own: a biased pool, a small clean validation set, your network.

    pip install .            # in the repository's folder; installs the package alfk
    python3 own_loop.py      # from any folder; half a minute on 2 CPU cores

The data are scikit-learn's 1,797 digits. In the pool the digits 5 to 9 are 20 times rarer than 0 to 4; the validation
set and the test images are balanced. Prints test accuracy for the paper's method (Rzg_pz) and for random choice, after
every query, and how many of the chosen images are of the rare classes.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import alfk

QUERIES, QUERY_SIZE, RARE, RATIO = 5, 15, 5, 20  # digits from RARE on are rare in the pool


class Net(nn.Module):
    """A small network; `forward` returns the logits and the list of layers ("taps") that describe an image."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.hidden, self.out = nn.Linear(32 * 4, 64), nn.Linear(64, 10)

    def forward(self, images):
        first = F.max_pool2d(F.relu(self.conv1(images)), 2)
        second = F.max_pool2d(F.relu(self.conv2(first)), 2)
        third = F.relu(self.hidden(second.flatten(1)))
        return self.out(third), [first, second, third]


def main():
    torch.set_num_threads(1)  # for images this small threads cost more than they save, many times more on a busy CPU
    images, labels, parts = digits()
    pool_labels = labels[parts["pool"]]  # your annotators know them, the method does not
    pool = alfk.Split.of(images[parts["pool"]])
    validation = alfk.Split.of(images[parts["validation"]], labels[parts["validation"]], like=pool)
    test = alfk.Split.of(images[parts["test"]], labels[parts["test"]], like=pool)
    print(f"{len(pool)} pool images, {int((pool_labels >= RARE).sum())} of them of rare classes")
    for method in ("random", "Rzg_pz"):
        torch.manual_seed(0)
        model, labelled = Net(), []
        for _ in range(QUERIES):
            query = alfk.query(method, model, pool, validation, QUERY_SIZE, labelled=labelled)
            labelled += query.indices.tolist()
            train(model, pool.subset(labelled, labels=pool_labels[labelled]))
            rare = int((pool_labels[labelled] >= RARE).sum())
            print(f"{method:<8}{len(labelled):>4} labels, {rare:>2} rare{accuracy(model, test):>7.1f} % right")


def digits():
    """(1797, 1, 8, 8) images in [0, 1], labels, and the positions of pool, validation and test images."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    test, validation, rest = order[:400], order[400:600], order[600:]
    rare = rest[labels[rest] >= RARE]
    common = rest[labels[rest] < RARE]
    pool = torch.cat([common, rare[: len(rare) // RATIO]])
    return images, labels, {"test": test, "validation": validation, "pool": pool}


def train(model, data, epochs=60):
    """Your training: here Adam on cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for images, positions in data.batches(15, torch.randperm(len(data))):
            optimiser.zero_grad()
            F.cross_entropy(model(images)[0], data.labels[positions]).backward()
            optimiser.step()


@torch.no_grad()
def accuracy(model, data):
    """In percent."""
    model.eval()
    images, _ = next(data.batches(len(data)))
    return 100 * (model(images)[0].argmax(1) == data.labels).float().mean().item()


if __name__ == "__main__":
    main()
