#!/usr/bin/env bash
# All tests, on two cores, and the style checks. Installs into .venv; arguments go to pytest, e.g. bash test.sh -k matching.
set -euo pipefail
cd "$(dirname "$0")"
source .ci/venv.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest "$@"
