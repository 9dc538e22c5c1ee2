#!/usr/bin/env bash
# What a GPU has to show, in at most 8 minutes and without a network (bench/gpu.py says what):
#     bash bench/gpu.sh                          # results in local_data/gpu.json and local_data/gpu.md
#     bash bench/gpu.sh --device cpu --small     # a quick check of the script itself
# PYTHON names another interpreter than that of .venv, or python3 where there is no .venv. It needs torch 2.11 or later.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
exec "${PYTHON:-$python}" "$root/bench/gpu.py" "$@"
