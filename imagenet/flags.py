"""The flags that only ImageNet's scripts have, and folders of a user's own images."""

import argparse
import functools
import os
from dataclasses import replace
from pathlib import Path

from alfk.cli.datasets import all_experiments
from alfk.cli.options import up_to
from alfk.data.image_files import LOADERS, default_workers, has_dali
from alfk.experiment.config import Experiment
from alfk.support.errors import UserError
from imagenet.custom_datasets.image_folder import is_imagenet, load_folder
from imagenet.custom_models.resnet import ARCHITECTURES

HOLDOUT = 0.5  # share of val/ that is kept for test in a folder of own images without test/


class ImageNetFlags:
    """See `alfk.experiment.config.Flags`."""

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags to a parser."""
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
        add("--amp", action="store_true", help="train in mixed precision, bfloat16")
        add("--compile", action="store_true", help="train with torch.compile")

    def apply(self, experiment: Experiment, options: argparse.Namespace) -> Experiment:
        """The constants, changed by these flags; `options.images` is then the folder of images, or None.

        Raises:
            UserError: flags that do not fit together, or do not fit the folder.
        """
        root = options.images = options.imagenetdir or options.folder
        if root is not None and not is_imagenet(root):
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
        workers = options.workers or default_workers()
        wider = 4 if options.arch == "resnet50" else 1  # its taps have four times as many channels
        precision = {"amp": options.amp, "compiled": options.compile}
        images = {"root": root, "size": size, "loader": loader, "workers": workers}
        return replace(
            experiment,
            image_size=size,
            loader=loader,
            holdout=holdout,
            network=ARCHITECTURES[options.arch],
            descriptors={wider * length: taps for length, taps in experiment.descriptors.items()},
            default_length=wider * experiment.default_length,
            retraining=replace(experiment.retraining, **precision),
            pretraining=replace(experiment.pretraining, **precision),
            load=functools.partial(load_folder, **images),
        )


def of_folder(root: Path, imagenet: Experiment) -> Experiment:
    """ImageNet's constants for a folder of a user's own images: its pool is taken as it is, and the epoch is chosen on
    the validation images. Raises UserError if it has the name of a data set.
    """
    name = Path(os.path.abspath(root)).name
    if name in all_experiments():
        raise UserError(f"{root}: results are kept under the folder's name, but {name} is a data set: rename it")
    return replace(
        imagenet,
        name=name,
        default_ir=1,
        query_size=0,
        own_images=True,
        default_select="val",
        holdout=0.0 if (root / "test").is_dir() else HOLDOUT,
        panels={},
    )
