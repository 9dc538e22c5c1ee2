"""The MNIST experiment: all methods, all AL iterations, all runs; finished iterations are skipped.

    python3 run.py --initial            # initial models, random and rotation-pretrained
    python3 run.py --unsupervised 1     # active learning from the rotation-pretrained model
    python3 run.py --unsupervised 0     # active learning from the random model
    python3 run.py --conv-only          # active learning from only the convolutions of the rotation-pretrained model
    python3 run.py --dataset DIGITS --initial && python3 run.py --dataset DIGITS    # small, without any download
    python3 run.py --dataset SILHOUETTES --initial && python3 run.py --dataset SILHOUETTES

The paper's figures (a) and (b) are the rows of cfg with ir 1 and ir 100 and --unsupervised 1; (c), the ablation, has
those with ir 100, and Rzg_pz with --unsupervised 0.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from mnist.config import EXPERIMENTS

# (imbalance ratio, method, descriptor length L, ensemble size E)
cfg = [
    (ir, *row)
    for ir in (1, 100)
    for row in (
        ("random", 0, 1),
        ("varR", 0, 1),
        ("Rz", 20, 1),
        ("Rzg_true", 20, 1),
        ("Rzg_pred", 20, 1),
        ("Rzg_pz", 20, 1),
        ("Rzg_pz", 80, 1),
    )
] + [
    (100, "Rzg_true", 80, 1),
    (100, "Rzg_trace", 20, 1),
    (100, "Rzg_mi", 20, 1),
]

cfg_small = [  # DIGITS and SILHOUETTES
    (20, "random", 0, 1),
    (20, "varR", 0, 1),
    (20, "Rz", 20, 1),
    (20, "Rzg_pred", 80, 1),
    (20, "Rzg_pz", 80, 1),
    (20, "Rzg_true", 80, 1),
]

if __name__ == "__main__":
    sys.exit(scripts.run(EXPERIMENTS, {"MNIST": cfg, "DIGITS": cfg_small, "SILHOUETTES": cfg_small}, __doc__))
