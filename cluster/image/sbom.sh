#!/usr/bin/env bash
# The list of Python packages in a virtual environment, as CycloneDX JSON (SBOM).
#
#   sbom.sh VENV OUT
#
# Packages of the system are not in it: `docker buildx build --sbom=true`, or `syft IMAGE`, lists both.
set -euo pipefail
venv=$1 out=$2
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
# In an environment of its own, so that it does not list itself.
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
"$tools/bin/cyclonedx-py" environment --output-reproducible --output-format JSON --output-file "$out" "$venv/bin/python"
