"""Methods compared on a folder of labelled photos, in a loop of your own, with a pretrained network of torchvision.

    pip install .                        # in the repository's folder; installs the package alfk
    python3 own_photos.py DIR            # DIR holds train/<class>/ and val/<class>/ with JPEG or PNG files
    python3 own_photos.py DIR -a mobilenet_v2 --weights mobilenet_v2.pth --freeze none --seeds 3

A pool is made of train/ in which half of the classes are thinned 15 to 1; half of val/ are the clean images, the other
half are held out. Each method queries three times 40 labels; after each query the network is trained from its
pretrained weights on all labels so far: its last layer (--freeze backbone), or all of it (--freeze none). With
--add-validation every second clean image is trained on as well, and only the others guide the choice; methods that need
no clean images leave all of them to the training. Prints a line of JSON for each training, with the accuracy on the
held-out images in percent, over all classes and over the rare ones, and at the end a table over the seeds. Trainings
whose lines are in the file --results are not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import alfk
from alfk.method.acquisition import METHODS
from alfk.networks.outputs import logits_of
from alfk.own import transfer

ROUNDS, QUERY_SIZE, RATIO = 3, 40, 15
ALONE = "clean images alone"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR")
    add("--methods", nargs="+", default=["random", "entropy_det", "Rzg_pz", "Rzg_fl"])
    add("--seeds", type=int, default=3, help="number of pools (3)")
    add("-a", "--arch", choices=transfer.ARCHITECTURES, default="resnet18", metavar="NAME", help="network (resnet18)")
    add("--weights", type=Path, help="a file with its weights; torchvision's are downloaded otherwise")
    add("--freeze", choices=("backbone", "none"), default="backbone")
    add("--image-size", type=int, default=96)
    add("--add-validation", action="store_true")
    add("--results", type=Path, help="file that lines are added to")
    options = parser.parse_args()
    facts = {key: getattr(options, key) for key in ("arch", "image_size", "freeze", "add_validation")}
    lines = Lines(options.results, **facts)
    for seed in range(options.seeds):
        data = splits(options.folder, seed, options.image_size)
        if not lines.has(seed, ALONE, 0):
            lines.record(seed, ALONE, 0, result(trained(data["clean"], options), data))
        for method in options.methods:
            if not lines.has(seed, method, ROUNDS * QUERY_SIZE):
                loop(method, seed, data, options, lines)
    lines.print_table()


def splits(folder, seed, size):
    """The biased pool, its labels, clean images, those held out, and the numbers of the rare classes."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    rare = torch.randperm(len(names), generator=generator)[: len(names) // 2].tolist()
    files = {"pool": [], "clean": [], "held_out": []}
    for i, name in enumerate(names):
        found = [sorted((folder / part / name).iterdir()) for part in ("train", "val")]
        pool, val = ([paths[j] for j in torch.randperm(len(paths), generator=generator)] for paths in found)
        files["pool"] += pool[: max(1, len(pool) // RATIO)] if i in rare else pool
        files["clean"] += val[::2]
        files["held_out"] += val[1::2]
    scale = {"size": size, "mean": transfer.MEAN, "std": transfer.STD, "classes": names}
    data = {
        part: alfk.Split.from_files(paths, [p.parent.name for p in paths], **scale) for part, paths in files.items()
    }
    labels, data["pool"].labels = data["pool"].labels, None  # hidden from the methods
    return {**data, "labels": labels, "rare": rare, "files": files, "scale": scale}


def loop(method, seed, data, options, lines):
    """Query and train, ROUNDS times."""
    pool, labels, guide, trained_on = data["pool"], data["labels"], data["clean"], []
    model = transfer.pretrained(options.arch, options.weights)
    transfer.renew_head(model, len(guide.classes), seed)
    if options.add_validation:
        step = 2 if METHODS[method].needs_validation else 1  # methods that need no guide leave all to the training
        trained_on = data["files"]["clean"][::step]
        guide = guide.subset(range(1, len(guide), 2))
        model = trained(joined(data, [], trained_on), options)
    labelled = []
    for _ in range(ROUNDS):
        network = transfer.with_taps(model, options.image_size)
        query = alfk.query(
            method,
            network,
            pool,
            guide,
            QUERY_SIZE,
            labelled=labelled,
            generator=seed,
            annotate=lambda rows: labels[rows],
        )
        labelled += query.indices.tolist()
        model = trained(joined(data, labelled, trained_on), options)
        found = result(model, data) | {
            "rare_labels": int(torch.isin(labels[labelled], torch.tensor(data["rare"])).sum())
        }
        lines.record(seed, method, len(labelled), found)


def joined(data, labelled, clean):
    """The labelled pool images and some clean ones."""
    files = [data["files"]["pool"][i] for i in labelled] + clean
    return alfk.Split.from_files(files, [path.parent.name for path in files], **data["scale"])


def trained(images, options):
    """The pretrained network, trained on labelled images."""
    model = transfer.pretrained(options.arch, options.weights)
    training = transfer.Training(freeze=options.freeze)
    transfer.train(model, images, len(images.classes), training, 0, transfer.unwatched)
    return model


def result(model, data):
    """Accuracies on the held-out images in percent."""
    held_out = data["held_out"]
    predicted = logits_of(transfer.with_taps(model, held_out.store.size), held_out, 100).argmax(1)
    right, of_rare = predicted == held_out.labels, torch.isin(held_out.labels, torch.tensor(data["rare"]))
    return {"accuracy": 100 * right.float().mean().item(), "rare": 100 * right[of_rare].float().mean().item()}


class Lines:
    """Results, one line of JSON each."""

    def __init__(self, path, **facts):
        self.path, self.facts = path, facts
        found = path.read_text().splitlines() if path and path.exists() else []
        self.lines = [line for line in map(json.loads, found) if facts.items() <= line.items()]

    def has(self, seed, method, labels):
        return any((r["seed"], r["method"], r["labels"]) == (seed, method, labels) for r in self.lines)

    def record(self, seed, method, labels, found):
        if self.has(seed, method, labels):
            return
        line = {**self.facts, "seed": seed, "method": method, "labels": labels, **found}
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def print_table(self):
        cells = {}
        for r in self.lines:
            cells.setdefault((r["method"], r["labels"]), []).append((r["accuracy"], r["rare"]))
        for (method, labels), values in cells.items():
            all_classes, rare = ([v[i] for v in values] for i in (0, 1))
            text = f"{statistics.fmean(all_classes):.1f} ± {statistics.pstdev(all_classes):.1f}"
            print(f"{method:<20}{labels:>4} labels  {text} ({statistics.fmean(rare):.1f})")


if __name__ == "__main__":
    main()
