"""Initial models of one run: all-random weights, and weights pretrained by predicting rotations.

    python3 unsup.py -r 0 -ir 100

Writes local_data/SVHN/run0/checkpoint/init_*.pt. Meant for a GPU: 8 epochs of four times 318,556 images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from svhn.config import EXPERIMENTS

if __name__ == "__main__":
    sys.exit(scripts.unsup(EXPERIMENTS, __doc__))
