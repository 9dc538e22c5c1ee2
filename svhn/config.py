"""SVHN (paper, Section 5, and the protocol of its release): ResNet-10.

    python3 run.py --initial && python3 run.py

Expected at ir=100 from the rotation model (paper, 5 runs, mean), at 6,250 labels (1.25 % of the pool): random 67.9 %,
Rzg_pz L768 83.3 %. Meant for a GPU, and not run here on all images: one core of a 2-core AMD EPYC takes 0.45 s to
evaluate 1,000 images, 12 s for the test images after each epoch.
"""

from alfk.experiment.config import Experiment, Recipe, StepDecay
from alfk.networks.weights import kaiming_fan_out
from svhn.custom_datasets import svhn
from svhn.custom_models.resnet10 import ResNet10

LAYER1, LAYER2, LAYER3, LAYER4 = range(4)  # ResNet-10's taps: 64, 128, 256 and, pooled, 512 channels

SVHN = Experiment(
    name="SVHN",
    classes=10,
    mean=svhn.MEAN,
    std=svhn.STD,
    minority=(5, 6, 7, 8, 9),
    validation_per_class=(10_439,) * 8 + (10_438,) * 2,  # leaves a pool of 500,000 at ir=1, about 318,556 at ir=100
    iterations=10,
    query_size=1250,  # 0.25 % of the undistorted pool
    runs=5,
    retraining=Recipe(epochs=35, batch_size=128, lr=0.1, momentum=0.5, weight_decay=0.0, schedule=StepDecay(every=15)),
    pretraining=Recipe(epochs=8, batch_size=128, lr=0.1, momentum=0.5, weight_decay=0.0, schedule=StepDecay(every=3)),
    descriptors={256: (LAYER3,), 512: (LAYER4,), 768: (LAYER3, LAYER4)},
    default_length=768,
    default_ir=100,
    panels={1: "(a)", 100: "(b)"},
    descriptor_batch=1000,  # the release used 5,000
    training_threads=1,
    samples=64,  # 16 per model in an ensemble of four
    network=ResNet10,
    initialise=kaiming_fan_out,
    load=svhn.load_svhn,
    has_subsets=True,
    train_images=604_388,
)

EXPERIMENTS = {SVHN.name: SVHN}
