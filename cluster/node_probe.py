"""What `farsight doctor --cluster` runs on every node; what torch sees is asked of a second interpreter."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.doctor import PACKAGES, PROBE_SECONDS, TORCH_PROBE

# Their versions must be the same on every node, apart from a build tag.
VERSIONS = ("ray", "torch", "deepspeed", "farsight")
# NFS and its kin show a file of another node after seconds, not at once.
SEEN_SECONDS = 15.0
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


class NodeProbe:
    """One process per node that answers the questions of the doctor."""

    def facts(self) -> dict[str, Any]:
        """Versions, where our packages come from, and the GPUs."""
        return {
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in VERSIONS},
            "source": source_hash(),
            "packages": package_folders(),
            "gpus": _driver_gpus(),
            "torch_gpus": _torch_gpus() if _has_gpus() else [],
        }

    def now(self) -> float:
        """This node's clock, seconds UTC."""
        return time.time()

    def make_folder(self, folder: str) -> str | None:
        """Make a directory whose parent stands; returns what went wrong, if anything."""
        try:
            Path(folder).mkdir()
        except OSError as error:
            return f"{Path(folder).parent}: {error.strerror}"
        return None

    def remove_folder(self, folder: str) -> None:
        """Remove a directory with all that is in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def leave_mark(self, folder: str, name: str) -> str | None:
        """Write a file for the other nodes, as every published directory is; returns what went wrong, if anything."""
        try:
            aside = Path(folder, f".{name}.partial")
            aside.mkdir()
            (aside / "mark").write_text(name, encoding="utf-8")
            aside.rename(Path(folder, name))
        except OSError as error:
            return f"{folder}: {error.strerror}"
        return None

    def missing_marks(self, folder: str, names: list[str]) -> list[str]:
        """The marks of these nodes that cannot be read here, after some seconds of trying."""
        deadline = time.monotonic() + SEEN_SECONDS
        missing = names
        while missing:
            missing = [name for name in missing if not _reads(Path(folder, name, "mark"), name)]
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return missing

    def free_bytes(self, folder: str) -> int:
        """Room under a directory of this node; none where it cannot be asked."""
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            return 0


def package_folders() -> dict[str, str]:
    """Where each of our packages would be imported from; empty where there is none."""
    found = {name: importlib.util.find_spec(name) for name in PACKAGES}
    return {name: str(Path(spec.origin).parent) if spec and spec.origin else "" for name, spec in found.items()}


def source_hash() -> str:
    """A hash of the names and contents of our sources, the same for the same code, wherever it lies."""
    digest = hashlib.sha256()
    for package, folder in sorted(package_folders().items()):
        files: Iterable[Path] = sorted(Path(folder).rglob("*")) if folder else ()
        for file in files:
            if file.suffix in (".py", ".yaml", ".proto") and file.is_file():
                digest.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except OSError:
        return False


def _has_gpus() -> bool:
    return shutil.which(NVIDIA_SMI[0]) is not None


def _driver_gpus() -> list[str]:
    """`name, driver` of each GPU that the driver knows; what it says instead where it does not answer."""
    if not _has_gpus():
        return []
    try:
        ran = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi does not answer in {PROBE_SECONDS} s"]
    except subprocess.CalledProcessError as error:
        return [f"nvidia-smi fails: {(error.stdout or error.stderr).strip()}"]
    return ran.stdout.strip().splitlines()


def _torch_gpus() -> list[str]:
    """The GPUs that torch sees; all of the node's, though Ray hides them from a process that reserves none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    asked = [sys.executable, "-c", TORCH_PROBE]
    try:
        ran = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        devices: list[str] = json.loads(ran.stdout.splitlines()[-1])["devices"]
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        return []
    return devices
