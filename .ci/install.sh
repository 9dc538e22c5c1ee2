#!/usr/bin/env bash
# Installs the package into a bare environment, with the dependencies that pyproject.toml names, and runs the example
# from another folder, where the repository's other folders cannot be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
bare=$(mktemp -d)
trap 'rm -rf "$bare"' EXIT
"${PYTHON:-python3}" -m venv "$bare/venv"
"$bare/venv/bin/python" -m pip install --quiet --disable-pip-version-check .
cp examples/own_loop.py "$bare"
cd "$bare"
venv/bin/python -c "import alfk, importlib.util as u; assert not u.find_spec('mnist') and 'site-packages' in alfk.__file__"
venv/bin/python own_loop.py
venv/bin/alfk ask --help > /dev/null
