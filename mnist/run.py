"""The MNIST experiment: all methods, all AL iterations, all runs; what is complete is skipped.

    python3 run.py --initial            # initial models, random and rotation-pretrained
    python3 run.py --unsupervised 1     # active learning from the rotation-pretrained model
    python3 run.py --unsupervised 0     # the same from the random one
    python3 run.py --dataset DIGITS --initial && python3 run.py --dataset DIGITS    # small, without any download

Figures (a) and (b) of the paper are the rows of cfg with --unsupervised 1; (c) adds Rzg_pz with --unsupervised 0.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.stages import cli
from mnist.config import EXPERIMENTS

# (imbalance ratio, method, descriptor length L, ensemble size)
cfg = [
    (ir, method, length, 1)
    for ir in (1, 100)
    for method, length in (
        ("random", 0),
        ("Rz", 20),
        ("Rzg_true", 20),
        ("Rzg_pred", 20),
        ("Rzg_pz", 20),
        ("Rzg_pz", 80),
    )
]

cfg_digits = [
    (20, "random", 0, 1),
    (20, "Rz", 20, 1),
    (20, "Rzg_pred", 80, 1),
    (20, "Rzg_pz", 80, 1),
    (20, "Rzg_true", 80, 1),
]

if __name__ == "__main__":
    sys.exit(cli.run(EXPERIMENTS, {"MNIST": cfg, "DIGITS": cfg_digits}, __doc__))
