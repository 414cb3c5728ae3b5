"""A promoted release in the place of the one that an application serves.

`farsight deploy` in a process of its own: a process is in one Ray at a time, and the pipeline's is the one that trains.
"""

import subprocess
import sys
from pathlib import Path

import yaml

from data.errors import EndpointError
from data.settings import Recipe

# New replicas beside the old ones load model and index first.
_TIMEOUT_SECONDS = 1800


def deploy(release: str, address: str, serve: Recipe, folder: Path) -> None:
    """Deploy a release of a registry; the same again changes nothing.

    Args:
        address: of the Ray that serves.
        serve: section `serve` of the recipe.
        folder: where the recipe that the command reads is written.

    Raises:
        EndpointError: it was not deployed; the release before goes on answering.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "serve.yaml"
    recipe.write_text(yaml.safe_dump({"serve": serve}), encoding="utf-8")
    command = [sys.executable, "-m", "cluster.cli", "deploy", release, "--address", address, str(recipe), "--json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EndpointError(
            f"{release}: not deployed at {address} after {_TIMEOUT_SECONDS} s; it is in the registry: look there with "
            "farsight releases, then run the same command again"
        ) from None
    # With --json what is deployed is all that is on standard output, whatever else befalls the process at its end.
    if not ran.stdout.strip():
        lines = ran.stderr.strip().splitlines()
        said = next((line for line in reversed(lines) if line.startswith("error: ")), "\n".join(lines[-20:]))
        raise EndpointError(
            f"{release}: not deployed at {address} (exit code {ran.returncode}: {said}); it is in the registry, "
            "and the release before goes on answering: mend the cause and run the same command again"
        )
