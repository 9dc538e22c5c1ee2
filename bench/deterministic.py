"""A script of this repository with torch's deterministic algorithms.

    python3 bench/deterministic.py mnist/run.py --dataset DIGITS --initial

torch warns, on stderr, of each operation that has no deterministic algorithm on the device.
"""

import os
import runpy
import sys
from pathlib import Path

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is used first

import torch

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
