"""Confusion matrices and t-SNE of the test images, three methods side by side, at one AL iteration.

    python3 visualize_tsne.py                                      # varR, Rzg_pz and its oracle Rzg_true at b=3
    python3 visualize_tsne.py -b 5 --methods random Rz_L20 Rzg_pz_L80
    python3 visualize_tsne.py --dataset DIGITS --methods varR Rzg_pz Rzg_true

Small dots are correctly classified test images, large dots misclassified ones; the colour is the true class. Needs the
models of the run (run.py). A map of 10,000 images takes about a minute on one core, and is then cached.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli.visualise import visualise
from mnist.config import EXPERIMENTS, X4

if __name__ == "__main__":
    sys.exit(visualise(EXPERIMENTS, __doc__, taps=(X4,)))
