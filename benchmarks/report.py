"""What every benchmark shares: its command line, and a JSON report that says where the figures come from."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "deepspeed", "pyarrow", "numpy", "faiss-cpu", "faiss-gpu-cuvs", "wandb", "pydantic")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark has; notes the commit before the run, not after it."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="a smaller run that shows the same thing")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    result.set_defaults(commit=_commit())
    return result


def publish(name: str, figures: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    """Print a report as JSON, and write it to the file that `--json` named."""
    file: Path | None = chosen.json
    report = {"benchmark": name, **figures, "made_with": {"commit": chosen.commit, **_surroundings()}}
    text = json.dumps(report, indent=2, default=str)
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "runs": len(values)}


def _surroundings() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python -m", *_module(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
    }


def _module() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name] if spec else [sys.argv[0]]


def _commit() -> str:
    """Short hash of the checkout, marked where files differ from it."""
    here = Path(__file__).parent
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    answer = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "not a git checkout"


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
