"""The SVHN experiment: all methods, all AL iterations, all runs; finished iterations are skipped.

    python3 run.py --initial            # initial models, random and rotation-pretrained
    python3 run.py --unsupervised 1     # active learning from the rotation-pretrained model: figures (a) and (b)
    python3 run.py --baseline           # the line "all train"

The three .mat files are downloaded, or read from local_data/SVHN/raw. Other files in the same format need
--allow-subset and a query size that fits their number of images, for example --allow-subset -as 20 -e 5.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from svhn.config import EXPERIMENTS

# (imbalance ratio, method, descriptor length L, ensemble size E)
cfg = [
    (ir, *row)
    for ir in (1, 100)
    for row in (
        ("random", 0, 1),
        ("varR", 0, 1),
        ("Rz", 256, 1),
        ("Rzg_true", 256, 1),
        ("Rzg_pred", 256, 1),
        ("Rzg_pz", 256, 1),
        ("Rzg_pz", 768, 1),
    )
]

if __name__ == "__main__":
    sys.exit(scripts.run(EXPERIMENTS, {"SVHN": cfg}, __doc__))
