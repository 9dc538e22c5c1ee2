"""Active learning on a folder of photos in a training loop of your own, with a network of torchvision.

    pip install .                        # in the repository's folder; installs the package alfk
    python3 own_photos.py DIR            # DIR holds train/<class>/ and val/<class>/ with JPEG or PNG files
    python3 own_photos.py DIR --methods Rzg_pz --run-stop 1

A pool is made of train/ in which half of the classes are 20 times rarer; half of val/ is the validation set, the other
half are test images. For every run the network is first trained to recognise rotations of the pool's images, which
needs no labels; then each method queries 4 times 40 labels and trains. Prints test accuracy in percent, over all
classes and over the rare ones.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import alfk

SIZE, ROUNDS, QUERY_SIZE, RATIO = 64, 4, 40, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--methods", nargs="+", default=["random", "Rz", "Rzg_pz", "entropy"])
    parser.add_argument("--run-start", type=int, default=0)
    parser.add_argument("--run-stop", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rotation-epochs", type=int, default=20)
    options = parser.parse_args()
    results = {method: [] for method in options.methods}
    for run in range(options.run_start, options.run_stop):
        start = time.time()
        pool, pool_labels, validation, test, rare = splits(options.folder, run)
        torch.manual_seed(run)
        start_model = network(len(test.classes))
        train(start_model, pool, None, options.rotation_epochs)
        print(f"run {run}: {len(pool)} pool images, rotation task {time.time() - start:.0f} s", flush=True)
        for method in options.methods:
            start, accuracies = time.time(), []
            torch.manual_seed(run)
            model, labelled = copy.deepcopy(start_model), []
            model.fc[1].reset_parameters()
            for _ in range(ROUNDS):
                arguments = alfk.tapped(model, ["layer3", "layer4"]), pool, validation, QUERY_SIZE
                query = alfk.query(method, *arguments, labelled=labelled, samples=8, generator=run)
                labelled += query.indices.tolist()
                train(model, pool, pool_labels, options.epochs, labelled)
                accuracies.append(accuracy(model, test, rare))
            results[method].append(accuracies)
            text = ", ".join(f"{overall:.1f} ({of_rare:.1f})" for overall, of_rare in accuracies)
            print(f"run {run}  {method:<8} {text}  {time.time() - start:.0f} s", flush=True)
    for method, runs in results.items():
        cells = [
            [f"{statistics.fmean(v):.1f} ± {statistics.pstdev(v):.1f}" for v in zip(*at, strict=True)]
            for at in zip(*runs, strict=True)
        ]
        print(f"{method:<8}", ", ".join(f"{overall} ({of_rare})" for overall, of_rare in cells))


def splits(folder, run):
    """The biased pool without labels, its labels, validation and test set, and the rare classes."""
    generator = torch.Generator().manual_seed(run)
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    rare = torch.randperm(len(names), generator=generator)[: len(names) // 2].tolist()
    files, labels = {"pool": [], "validation": [], "test": []}, {"pool": [], "validation": [], "test": []}

    def add(part, paths, name):
        files[part] += paths
        labels[part] += [name] * len(paths)

    for i, name in enumerate(names):
        found = [sorted((folder / part / name).iterdir()) for part in ("train", "val")]
        pool, val = ([paths[j] for j in torch.randperm(len(paths), generator=generator)] for paths in found)
        add("pool", pool[: len(pool) // RATIO] if i in rare else pool, name)
        add("validation", val[::2], name)
        add("test", val[1::2], name)
    pool = alfk.Split.from_files(files["pool"], size=SIZE, classes=names)
    validation = alfk.Split.from_files(files["validation"], labels["validation"], like=pool)
    test = alfk.Split.from_files(files["test"], labels["test"], like=pool)
    return pool, torch.tensor([names.index(name) for name in labels["pool"]]), validation, test, rare


def network(classes):
    """A ResNet with one block per stage, and dropout, which the uncertainty methods need."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], classes)
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, classes))
    return model.to(memory_format=torch.channels_last)  # faster on a CPU


def train(model, pool, labels, epochs, rows=None, batch_size=32, lr=0.02):
    """SGD with random crops; without labels on the rotation task, with a last layer of its own for four classes."""
    last = model.fc[1] if labels is not None else nn.Linear(512, 4)
    model.fc[1], kept = last, model.fc[1]
    rows = torch.arange(len(pool)) if rows is None else torch.tensor(rows)
    data, model = pool.subset(rows), model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * (0.1 if epoch >= 0.8 * epochs else 1)
        seed = int(torch.randint(2**31, ()))  # of the random crops
        for images, positions in data.batches(batch_size, torch.randperm(len(data)), seed=seed):
            if len(images) < 2:  # batch norm needs two
                continue
            if labels is None:
                turns = torch.randint(4, (len(images),))
                images = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, turns, strict=True)])
                images = images.contiguous(memory_format=torch.channels_last)
            targets = turns if labels is None else labels[rows[positions]]
            optimiser.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimiser.step()
    model.fc[1] = kept


@torch.no_grad()
def accuracy(model, test, rare):
    """In percent, over all test images and over those of rare classes."""
    model.eval()
    right = torch.cat([model(images).argmax(1) == test.labels[positions] for images, positions in test.batches(200)])
    of_rare = torch.isin(test.labels, torch.tensor(rare))
    return 100 * right.float().mean().item(), 100 * right[of_rare].float().mean().item()


if __name__ == "__main__":
    main()
