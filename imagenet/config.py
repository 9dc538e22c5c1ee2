"""ImageNet (paper, Section 5, and the protocol of its release): ResNet-18 at 224 pixels.

    python3 run.py DIR --initial && python3 run.py DIR      # DIR holds train/<class>/*.JPEG and val/<class>/*.JPEG

Expected at ir=100 from the rotation model (paper, figure (d), 1 run): 38.4 % with the whole pool; Rzg_pz L768 reaches
38 % with 42 % fewer labels than random. About nine days of one H200-class GPU for all rows of cfg at both imbalance
ratios: computed from the numbers of images, not run here. Ten classes of it with crops of 64 pixels, 2 epochs and 2
iterations of four methods took 5 minutes on two CPU cores.

Any other folder of this form works too (docs/own_data.md); flags.py has what is different for it.
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

from alfk.data.image_files import default_workers
from alfk.experiment.config import Experiment, Recipe, WarmUpAndDecay
from alfk.networks.weights import kaiming_fan_out
from imagenet.custom_datasets.image_folder import MEAN, STD, is_imagenet, load_folder, root_of
from imagenet.custom_models.resnet import resnet18
from imagenet.flags import ImageNetFlags, of_folder

LAYER1, LAYER2, LAYER3, LAYER4 = range(4)  # ResNet-18's taps: 64, 128, 256 and, pooled, 512 channels

IMAGENET = Experiment(
    name="ImageNet",
    classes=None,  # counted from the folders in train/: 1,000
    mean=MEAN,
    std=STD,
    minority=None,  # a random half of the classes in each run
    validation_per_class=(),  # none is drawn: the 50,000 images of val/ are both validation and test images
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
    descriptors={448: (LAYER1, LAYER2, LAYER3), 512: (LAYER4,), 768: (LAYER3, LAYER4)},
    default_length=768,
    default_ir=100,
    panels={1: "(c)", 100: "(d)"},
    descriptor_batch=512,
    training_threads=1,
    samples=32,  # 8 per model in an ensemble of four
    network=resnet18,
    initialise=kaiming_fan_out,
    load=functools.partial(load_folder, root=None, size=224, loader="torchvision", workers=1),
    descriptor_dtype="float16",  # z and g of L=768: 3 KB per image, 3.9 GB in total
    image_size=224,
    top5=True,
    flags=ImageNetFlags(),
)

EXPERIMENTS = {IMAGENET.name: IMAGENET}

PICTURE = 128  # pixels of the images in contact sheets


def find(folder: Path) -> Experiment | None:
    """The constants with which figures of a folder of own images are drawn, if it was used before.

    Args:
        folder: local_data/<name>, with the lists of its files.
    """
    header = folder / "processed" / "train_labels.json"
    if not os.path.lexists(header):
        return None
    root = root_of(header)
    if root.name == IMAGENET.name or is_imagenet(root):
        return None
    images = {"root": root, "size": PICTURE, "loader": "torchvision", "workers": default_workers()}
    return replace(of_folder(root, IMAGENET), load=functools.partial(load_folder, **images))
