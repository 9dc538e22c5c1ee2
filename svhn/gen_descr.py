"""Descriptor databases of validation set and pool for one AL iteration.

    python3 gen_descr.py -r 0 -ir 100 -sub Rzg_pz -dl 768 -b 0

Writes local_data/SVHN/run0/descr/{validation,pool}_*.npy with .json headers: 6 KB per image at L=768, half of that
with --descr-dtype float16. Needs the initial model (unsup.py) for b=0, iteration b-1 (main_descr.py) otherwise.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alfk.cli import scripts
from svhn.config import EXPERIMENTS

if __name__ == "__main__":
    sys.exit(scripts.gen_descr(EXPERIMENTS, __doc__))
