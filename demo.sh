#!/usr/bin/env bash
# The main job in small, offline but for the packages: active learning on scikit-learn's digits, biased 20 to 1.
# Installs into .venv; after that it takes some minutes on 2 cores and ends with tables, figures and their names.
set -euo pipefail
cd "$(dirname "$0")"
source .ci/venv.sh requirements.txt
export PYTHONUNBUFFERED=1
run=(.venv/bin/python mnist/run.py --dataset DIGITS --jobs 2)
"${run[@]}" --initial
"${run[@]}"
"${run[@]}" --baseline
.venv/bin/python run_plot.py --dataset DIGITS
.venv/bin/python run_plot.py --dataset DIGITS --show-selected --methods Rzg_pz random --run-stop 1
.venv/bin/python mnist/visualize_tsne.py --dataset DIGITS --methods varR Rzg_pz Rzg_true
