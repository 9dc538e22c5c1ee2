"""Initial models of one run: all-random weights, and weights pretrained by predicting rotations.

    python3 unsup.py --imagenetdir DIR -r 0 -ir 100

Writes local_data/ImageNet/run0/checkpoint/init_*.pt. Meant for GPUs: 15 epochs of four times 645,770
images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from imagenet.config import EXPERIMENTS

if __name__ == "__main__":
    sys.exit(scripts.unsup(EXPERIMENTS, __doc__))
