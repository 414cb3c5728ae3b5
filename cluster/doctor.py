"""`farsight doctor`: is this machine fit to run Farsight, and if not, what to do.

Each check is a function that returns one row; a row that is `broken` stops something, `note` is worth knowing.
This package knows no torch: what torch sees is asked of a second interpreter.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

PACKAGES = ("cluster", "trainer", "modeling", "data", "serve")
TREE = Path(__file__).resolve().parents[1]
CONSTRAINTS = TREE / "constraints.txt"
GIB = 2**30
MIN_MEMORY_BYTES = 4 * GIB
MIN_FREE_DISK_BYTES = 2 * GIB
MIN_SHARED_MEMORY_BYTES = GIB
PROBE_SECONDS = 60
# Python sources for the second interpreter; prints one JSON object.
TORCH_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "devices": names}))
"""
# The same for FAISS.
FAISS_PROBE = """
import json, faiss
on_gpu = hasattr(faiss, "StandardGpuResources")
print(json.dumps([on_gpu, hasattr(faiss, "GpuIndexCagra"), faiss.get_num_gpus() if on_gpu else 0]))
"""

State = Literal["ok", "note", "broken"]


class ProbeFailed(Exception):
    """A second interpreter gave no answer."""


@dataclass(frozen=True)
class Check:
    """One row of the report."""

    check: str
    state: State
    found: str
    advice: str = ""


def run(path: str = "runs") -> dict[str, Any]:
    """Check this machine.

    Args:
        path: where runs will be written.

    Returns:
        `ok`, and `checks`: rows of check, state, found and what to do.
    """
    checks = [_python(), *_requirements(), _faiss(), _tree(), _accelerator(), _processor(), _memory()]
    checks += [_shared_memory(), _storage(Path(path)), _compiler(), _ray_address()]
    rows = [{**asdict(check), "what to do": check.advice} for check in checks]
    for row in rows:
        del row["advice"]
    return {"ok": all(check.state != "broken" for check in checks), "checks": rows}


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - a wheel can be unpacked under any Python
        return Check("python", "broken", found, "use Python 3.11 or newer: make clean setup")
    return Check("python", "ok", f"{found} at {sys.prefix}")


def tested_versions(text: str) -> dict[str, str]:
    """The pins of a constraints file: name in lower case -> version."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def _requirements() -> Iterator[Check]:
    """One row per package that Farsight states, and none for those that are as tested."""
    try:
        stated = importlib.metadata.requires("farsight") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "note", "farsight is not installed, only on the path", "make setup")
        return
    tested = tested_versions(CONSTRAINTS.read_text(encoding="utf-8")) if CONSTRAINTS.is_file() else {}
    as_tested = 0
    for requirement in map(Requirement, stated):
        # Extras are not asked for: faiss has its own check, and tools are not needed to run.
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        check = _requirement(requirement, tested.get(requirement.name.lower()))
        if check is None:
            as_tested += 1
        else:
            yield check
    yield Check("packages", "ok", f"{as_tested} as tested" if tested else f"{as_tested} within the stated ranges")


def _requirement(requirement: Requirement, tested: str | None) -> Check | None:
    """What is wrong or unusual about one requirement; None if nothing is."""
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(requirement.name, "broken", "not installed", f"pip install '{requirement}'")
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(requirement.name, "broken", found, f"pip install '{requirement}'")
    # A build tag (+cpu, +cu130) is the same release for another accelerator.
    if tested and found.partition("+")[0] != tested:
        return Check(requirement.name, "note", found, f"allowed, but tested with {tested}")
    return None


def _faiss() -> Check:
    wheels = sorted(set(importlib.metadata.packages_distributions().get("faiss", [])))
    if len(wheels) == 1:
        return _faiss_build(f"{wheels[0]} {importlib.metadata.version(wheels[0])}")
    if not wheels:
        return Check("faiss", "broken", "not installed", "pip install 'farsight[cpu]', or [gpu] on a GPU machine")
    remedy = f"pip uninstall -y {' '.join(wheels)}, then install exactly one of the extras cpu and gpu"
    return Check("faiss", "broken", " and ".join(wheels), remedy)


def _faiss_build(wheel: str) -> Check:
    """What the one wheel can do: which kinds of index go to a GPU, and whether filters work there."""
    try:
        on_gpu, cuvs, num_gpus = _probed(FAISS_PROBE)
    except ProbeFailed as failure:
        return Check("faiss", "broken", f"{wheel} does not import: {failure}", "make clean setup")
    if not on_gpu:
        return Check("faiss", "ok", f"{wheel}, for the CPU")
    found = f"{wheel}, {'with' if cuvs else 'without'} cuVS, sees {num_gpus} GPUs"
    if not num_gpus:
        return Check("faiss", "note", found, "indexes stay on the CPU; see whether nvidia-smi answers")
    if not cuvs:
        return Check("faiss", "ok", f"{found}: no index.search.kind=cagra, strong filters are answered by the CPU")
    return Check("faiss", "ok", found)


def _probed(source: str) -> Any:
    """What a source prints in a second interpreter, as JSON on its last line.

    Raises:
        ProbeFailed: it did not, in one line.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        return json.loads(ran.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"nothing after {PROBE_SECONDS} s") from None
    except (subprocess.CalledProcessError, json.JSONDecodeError, IndexError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise ProbeFailed(lines[-1]) from None


def _tree() -> Check:
    """All five packages come from one tree, and it is the one the user stands in, if any."""
    origins = {}
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        origins[name] = Path(found.origin).resolve().parents[1] if found and found.origin else None
    strays = {name: place for name, place in origins.items() if place != TREE}
    if strays:
        name, place = next(iter(strays.items()))
        remedy = f"uninstall what else provides {name}, or put {TREE} first on PYTHONPATH"
        return Check("tree", "broken", f"{name} comes from {place}, cluster from {TREE}", remedy)
    here = Path.cwd().resolve()
    if here != TREE and (here / "cluster" / "cli.py").is_file():
        remedy = "run this tree's own .venv/bin/farsight, or pip install -e . here"
        return Check("tree", "broken", f"code from {TREE}, but you stand in another copy", remedy)
    return Check("tree", "ok", str(TREE))


def _accelerator() -> Check:
    try:
        found = _probed(TORCH_PROBE)
    except ProbeFailed as failure:
        remedy = "make clean setup; if it hangs, see whether nvidia-smi answers: a driver that does not needs a restart"
        return Check("accelerator", "broken", f"torch does not import: {failure}", remedy)
    torch = f"torch {found['version']}"
    if found["devices"]:
        return Check("accelerator", "ok", f"{len(found['devices'])} x {found['devices'][0]}, {torch}")
    if shutil.which("nvidia-smi"):
        remedy = "install the torch build for this machine's CUDA driver"
        return Check("accelerator", "note", f"a driver, but {torch} sees no GPU", remedy)
    return Check("accelerator", "ok", f"CPU only, {torch}")


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Check("cores", "note", str(cores), "set train.workers.num_workers=1: more would wait for each other")
    return Check("cores", "ok", str(cores))


def _memory() -> Check:
    num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{num_bytes / GIB:.1f} GiB"
    if num_bytes < MIN_MEMORY_BYTES:
        return Check("memory", "note", found, "Ray alone takes about 2 GiB: use small recipes, or a larger machine")
    return Check("memory", "ok", found)


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "note", "no /dev/shm", "Ray keeps its objects on disk here, which is slower")
    num_bytes = shutil.disk_usage(place).free
    found = f"{num_bytes / GIB:.1f} GiB free"
    if num_bytes < MIN_SHARED_MEMORY_BYTES:
        return Check("shared memory", "note", found, "in a container: start it with a larger --shm-size")
    return Check("shared memory", "ok", found)


def _storage(path: Path) -> Check:
    """Write, rename and delete, as every published directory does."""
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        first = nearest / f".farsight-doctor-{uuid.uuid4().hex[:8]}"
        first.mkdir()
        second = first.rename(first.with_name(first.name + "-renamed"))
        second.rmdir()
    except OSError as error:
        remedy = "give doctor, and the recipe, a place that you may write to"
        return Check("storage", "broken", f"{path}: {error.strerror}", remedy)
    num_bytes = shutil.disk_usage(nearest).free
    found = f"{path}: {num_bytes / GIB:.1f} GiB free"
    if num_bytes < MIN_FREE_DISK_BYTES:
        return Check("storage", "note", found, "make room before training: checkpoints and shards need it")
    return Check("storage", "ok", found)


def _compiler() -> Check:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        remedy = "install g++ for DeepSpeed's fused operators; Farsight's own recipes run without them"
        return Check("compiler", "note", "no g++", remedy)
    return Check("compiler", "ok", compiler)


def _ray_address() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Check("ray", "note", f"RAY_ADDRESS={address}", "commands run on that cluster; unset it to run here")
    return Check("ray", "ok", "a private local Ray per command")
