"""Feature matching, acquisition and retraining for one AL iteration.

    python3 main_descr.py -r 0 -ir 100 -sub Rzg_pz -dl 80 -b 0

Reads the descriptors that gen_descr.py wrote; writes the labelled set (index_list_*.npy), the retrained model
(checkpoint/best_*.pt) and a line of results.jsonl in local_data/MNIST/run0.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from mnist.config import EXPERIMENTS

if __name__ == "__main__":
    sys.exit(scripts.main_descr(EXPERIMENTS, __doc__))
