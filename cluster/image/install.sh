#!/usr/bin/env bash
# Farsight itself, as a wheel, into a virtual environment that `dependencies.sh` made.
#
#   install.sh VENV
#
# Runs in the root of the tree.
set -euo pipefail
venv=$1
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" .
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheels"/farsight-*.whl
"$venv/bin/python" -m pip check
