"""Initial models of one run: all-random weights, and weights pretrained by predicting rotations.

    python3 unsup.py -r 0 -ir 100

Writes local_data/MNIST/run0/checkpoint/init_*.pt; about 25 s on 2 CPU cores for ir=100.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from mnist.config import EXPERIMENTS

if __name__ == "__main__":
    sys.exit(scripts.unsup(EXPERIMENTS, __doc__))
