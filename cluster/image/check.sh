#!/usr/bin/env bash
# Is a built image fit: run in it, as the user that it runs as. Ends at the first thing that is not.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $(id -u) != 0 ]] || fail "runs as root"
# What KubeRay's probes and start commands call.
for program in bash ray wget; do
    command -v "$program" > /dev/null || fail "$program is not on the PATH"
done
bash -lc 'command -v ray farsight' > /dev/null || fail "ray and farsight are not on the PATH of a login shell"
[[ ! -w $(dirname "$(command -v ray)") ]] || fail "whoever runs here can change the packages"

ray --version
# With nothing on the PATH but the packages there is no compiler: what is loaded was built before.
PATH=$(dirname "$(command -v ray)") DS_ACCELERATOR=cpu python - << 'PYTHON'
from deepspeed.ops.op_builder import ShareMemCommBuilder

print(f"DeepSpeed's operator: {ShareMemCommBuilder().load().__file__}")
PYTHON
farsight doctor
