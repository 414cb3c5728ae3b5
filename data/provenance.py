"""Where a figure comes from: commit, versions and hardware, as every report states them."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "deepspeed", "pyarrow", "numpy", "implicit", "faiss-cpu", "faiss-gpu", "wandb", "pydantic")


def commit() -> str:
    """Short hash of the checkout, marked where files differ from it; FARSIGHT_COMMIT where the code was shipped
    without one, as in an image or a submitted job.
    """
    stated = os.environ.get("FARSIGHT_COMMIT")
    if stated:
        return stated
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "git is not installed"
    return answer.stdout.strip() or "not a git checkout"


def surroundings() -> dict[str, Any]:
    """Versions of Python and of the packages that move figures, and the machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
