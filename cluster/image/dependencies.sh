#!/usr/bin/env bash
# Everything that Farsight needs, in the tested versions, into a virtual environment.
#
#   dependencies.sh VENV cpu|gpu [TORCH_INDEX]
#
# Runs in the folder with pyproject.toml and constraints.txt, and needs a C++ compiler: DeepSpeed's one operator that
# Farsight may use (`train.engine.compiled_ops`) is built here, so that nothing is compiled where the image runs. It
# picks its vector instructions when it runs, so the image does not ask for the processor that built it.
set -euo pipefail
venv=$1 accelerator=$2 torch_index=${3:-}
case $accelerator in
    cpu | gpu) ;;
    *) echo "error: accelerator '$accelerator', expected cpu or gpu" >&2 && exit 2 ;;
esac

python3 -m venv "$venv"
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
[[ -z $torch_index ]] || install+=(--extra-index-url "$torch_index")

# DeepSpeed's build asks the torch that it will run with.
"${install[@]}" torch setuptools wheel ninja py-cpuinfo
DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1 "${install[@]}" --no-build-isolation --use-pep517 --no-binary deepspeed deepspeed

# The extras cpu and gpu hold two builds of FAISS, so there is one image for each; redis is for several machines.
mapfile -t needed < <("$venv/bin/python" - "$accelerator" redis << 'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for extra in sys.argv[1:]:
    project["dependencies"] += project["optional-dependencies"][extra]
print("\n".join(project["dependencies"]))
PYTHON
)
"${install[@]}" "${needed[@]}"
"$venv/bin/python" -m pip check
