#!/usr/bin/env bash
# The main job in small, offline but for the packages: active learning on scikit-learn's digits, biased 20 to 1.
# Installs into .venv, takes about a minute and a half on 2 cores after that, ends with a table and a figure.
set -euo pipefail
cd "$(dirname "$0")"
source .ci/venv.sh requirements.txt
export PYTHONUNBUFFERED=1
run=(.venv/bin/python mnist/run.py --dataset DIGITS --jobs 2)
"${run[@]}" --initial
"${run[@]}"
.venv/bin/python run_plot.py --dataset DIGITS
