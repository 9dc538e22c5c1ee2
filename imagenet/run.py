"""The ImageNet experiment: all methods, all AL iterations; finished iterations are skipped.

    python3 run.py DIR --initial            # initial models; DIR holds train/<class>/*.JPEG and val/<class>/*.JPEG
    python3 run.py DIR --unsupervised 1     # active learning from the rotation-pretrained model: figures (c) and (d)
    python3 run.py DIR --baseline           # the line "all train"
    torchrun --nproc-per-node 8 run.py DIR --amp    # active learning on eight GPUs, in mixed precision

The default of DIR is ../local_data/ILSVRC2012_pytorch if it exists, else ImageNet's folder used last. Any other
folder of this form works too: docs/own_data.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from imagenet.config import EXPERIMENTS

# (imbalance ratio, method, descriptor length L, ensemble size E)
cfg = [
    (ir, *row)
    for ir in (1, 100)
    for row in (
        ("random", 0, 1),
        ("varR", 0, 1),
        ("Rz", 512, 1),
        ("Rzg_true", 512, 1),
        ("Rzg_pred", 768, 1),
        ("Rzg_pz", 512, 1),
        ("Rzg_pz", 768, 1),
    )
]

if __name__ == "__main__":
    sys.exit(scripts.run(EXPERIMENTS, {"ImageNet": cfg}, __doc__))
