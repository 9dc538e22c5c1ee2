"""The constants of the ImageNet experiment (paper, Section 5 and its released protocol), and its flags.

ImageNet, ir=100, rotation init (the paper, 1 run): 38.4 % with the whole pool; Rzg_pz L768 reaches 38 % with 42 % fewer
labels than random.
"""

import argparse
import functools
import os
from dataclasses import replace
from pathlib import Path

from alfk.cli.options import up_to
from alfk.data.image_files import LOADERS, default_workers, has_dali
from alfk.experiment.config import Experiment, Recipe, WarmUpAndDecay
from alfk.networks.weights import kaiming_fan_out
from alfk.support.errors import UserError
from imagenet.custom_datasets import image_folder
from imagenet.custom_models.resnet import resnet10, resnet18, resnet34, resnet50

ARCHITECTURES = {"resnet10": resnet10, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
HOLDOUT = 0.5  # share of val that is kept for test, for folders without test/ that are not ImageNet
PICTURE = 128  # pixels of the images in contact sheets
LAYER1, LAYER2, LAYER3, LAYER4 = range(4)  # the taps: 64, 128, 256 and, pooled, 512 channels


def descriptors(expansion: int) -> dict[int, tuple[int, ...]]:
    """L -> taps, for a network with `expansion` times as many channels as ResNet-18."""
    taps = {448: (LAYER1, LAYER2, LAYER3), 512: (LAYER4,), 768: (LAYER3, LAYER4)}
    return {expansion * length: which for length, which in taps.items()}


class ImageNetFlags:
    """The flags that only ImageNet's scripts have.

    Attributes:
        repeat: those that a printed command repeats.
    """

    repeat = ("--imagenetdir",)

    def add(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        text = "folder with train/<class>/*.JPEG and val/<class>/*.JPEG, and test/<class>/*.JPEG if test images are "
        text += "separate (<datadir>/ILSVRC2012_pytorch, or the one with ImageNet's classes used last)"
        add("folder", nargs="?", type=Path, metavar="DIR", help=text)
        add("--imagenetdir", type=Path, metavar="DIR", help="the same folder, as a flag")
        add("-a", "--arch", choices=ARCHITECTURES, default="resnet18", help="network (resnet18)")
        add("--loader", choices=LOADERS, help="library that decodes (dali if it is installed, else torchvision)")
        add("--workers", type=up_to(1000), metavar="N", help="threads that decode (the number of CPUs)")
        add("--image-size", type=up_to(4096), metavar="PIXELS", help="side of the crops (224)")
        text = "share of val reserved for test; 0: all of val is both validation and test, as in the paper (0 for "
        text += f"ImageNet, or if there is test/; {HOLDOUT:g} for other folders)"
        add("--holdout-val", type=float, metavar="F", help=text)
        text = "people are the oracle: DIR holds pool/ instead of train/, and CSV has the columns file,label"
        add("--annotate", type=Path, metavar="CSV", help=text)
        add("--amp", action="store_true", help="train in mixed precision, bfloat16")
        add("--compile", action="store_true", help="train with torch.compile")

    def apply(self, experiment: Experiment, options: argparse.Namespace) -> Experiment:
        """The constants, changed by these flags; `options.images` is then the folder of images, or None.

        Raises:
            UserError: flags that do not fit together or the folder.
        """
        root = options.images = options.imagenetdir or options.folder
        if options.annotate:
            if root is None:
                raise UserError("--annotate needs the folder that holds pool/ and val/")
            if options.nr or options.ir not in (None, 1, [1]):
                raise UserError("-ir and -nr distort a pool whose labels are known: leave them out with --annotate")
            options.methods = getattr(options, "methods", None) or ["Rzg_pz"]
        elif root is not None and (root / "pool").is_dir() and not (root / "train").is_dir():
            raise UserError(f"{root} has pool/ and no train/: give --annotate labels.csv if its images have no labels")
        if root is not None and not image_folder.is_imagenet(root):
            experiment = of_folder(root, experiment)
        holdout = experiment.holdout if options.holdout_val is None else options.holdout_val
        if not 0 <= holdout < 1:
            raise UserError(f"--holdout-val is a share of val, from 0 to under 1, not {holdout:g}")
        if holdout and root is not None and (root / "test").is_dir():
            raise UserError(f"{root} has test images of its own: --holdout-val is for folders without test/")
        size = options.image_size or experiment.image_size
        if size < 32:
            raise UserError(f"--image-size is at least 32, not {size}")
        loader = options.loader or ("dali" if has_dali() else "torchvision")
        expansion = 4 if options.arch == "resnet50" else 1
        precision = {"amp": options.amp, "compiled": options.compile}
        return replace(
            experiment,
            image_size=size,
            loader=loader,
            holdout=holdout,
            network=ARCHITECTURES[options.arch],
            descriptors=descriptors(expansion),
            default_length=768 * expansion,
            retraining=replace(experiment.retraining, **precision),
            pretraining=replace(experiment.pretraining, **precision),
            load=functools.partial(
                image_folder.load_folder,
                root=root,
                size=size,
                loader=loader,
                workers=options.workers or default_workers(),
                unlabelled=options.annotate is not None,
            ),
        )


def of_folder(root: Path, experiment: Experiment) -> Experiment:
    """The constants for a folder of a user's own images. Raises UserError for the name of another data set."""
    name = Path(os.path.abspath(root)).name
    if name in ("MNIST", "DIGITS", "SVHN", IMAGENET.name):
        raise UserError(f"{root}: results are kept under the folder's name, but {name} is a data set: rename it")
    return replace(
        experiment,
        name=name,
        default_ir=1,
        query_size=0,
        own_images=True,
        default_select="val",
        holdout=0.0 if (root / "test").is_dir() else HOLDOUT,
        panels={},
    )


def find(folder: Path) -> Experiment | None:
    """The constants for the pictures of a folder of own images that was used before.

    Args:
        folder: local_data/<name>.
    """
    lists = {part: folder / "processed" / f"{part}_labels.json" for part in ("pool", "train")}
    used = [part for part, path in lists.items() if os.path.lexists(path)]
    if not used:
        return None
    root = image_folder.root_of(lists[used[0]])
    if root.name == IMAGENET.name or image_folder.is_imagenet(root):
        return None
    options = {"root": root, "size": PICTURE, "loader": "torchvision", "workers": default_workers()}
    load = functools.partial(image_folder.load_folder, **options, unlabelled=used[0] == "pool")
    return replace(of_folder(root, IMAGENET), load=load)


IMAGENET = Experiment(
    name="ImageNet",
    classes=None,  # counted from the folders in train/: 1,000
    mean=image_folder.MEAN,
    std=image_folder.STD,
    minority=None,  # a random half of the classes in each run
    validation_per_class=(),  # as in the paper, the 50,000 images of val/ are both validation and test images
    iterations=10,
    query_size=64_000,  # 5 % of the undistorted pool
    runs=1,
    retraining=Recipe(
        epochs=60,
        batch_size=128,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule=WarmUpAndDecay(rise=5, warm=5, falls=(30, 50, 57)),
    ),
    pretraining=Recipe(
        epochs=15,
        batch_size=128,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule=WarmUpAndDecay(rise=5, warm=2, falls=(6, 10, 14)),
    ),
    descriptors=descriptors(1),
    default_length=768,
    default_ir=100,
    panels={1: "(c)", 100: "(d)"},
    descriptor_batch=512,
    training_threads=1,
    samples=32,  # 8 per model in an ensemble of four
    network=resnet18,
    initialise=kaiming_fan_out,
    load=functools.partial(image_folder.load_folder, root=None, size=224, loader="torchvision", workers=1),
    descriptor_dtype="float16",  # z and g of L=768: 3 KB per image, 3.9 GB in total
    image_size=224,
    top5=True,
    flags=ImageNetFlags(),
)

EXPERIMENTS = {IMAGENET.name: IMAGENET}
