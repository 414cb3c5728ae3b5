"""Shared by all tests: one Ray session per test run, and an environment in which nothing leaves the machine.

The environment is set when this file is imported, before anything imports torch, deepspeed or ray; Ray's
workers inherit it.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.ports import free_port

# Unix socket paths end at 107 bytes, and Ray's are long: stay directly under the shortest temporary folder.
_SHORT_TEMPORARY = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
_SCRATCH = Path(tempfile.mkdtemp(prefix="fs", dir=_SHORT_TEMPORARY))

_ENVIRONMENT = {
    # A private folder: a stale address file in the default one slows every fit.
    "RAY_TMPDIR": str(_SCRATCH / "r"),
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray writes a token into the home folder of whoever runs the tests.
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray's own warning about a default that will change; this is the new default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Two workers on two cores.
    "OMP_NUM_THREADS": "1",
    # A killed build leaves a lock on which every later start waits for ever.
    "TORCH_EXTENSIONS_DIR": str(_SCRATCH / "torch_extensions"),
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    # Otherwise in the home folder of whoever runs the tests.
    "WANDB_DATA_DIR": str(_SCRATCH / "wandb"),
    "WANDB_CACHE_DIR": str(_SCRATCH / "wandb"),
    "WANDB_CONFIG_DIR": str(_SCRATCH / "wandb"),
    "MPLBACKEND": "agg",
}


def _has_nvidia_gpu() -> bool:
    """Whether a driver is here; asking torch would import it before the environment is set."""
    return Path("/dev/nvidiactl").exists()


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment once; a caller's own RAY_ADDRESS must not pull the tests onto a real cluster."""
    os.environ.pop("RAY_ADDRESS", None)
    # A shared machine is slow at times; the first call of a function that reads a file or compiles is slow always.
    hypothesis.settings.register_profile("farsight", deadline=None)
    hypothesis.settings.load_profile("farsight")
    os.environ.update(_ENVIRONMENT)
    if not _has_nvidia_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
    (_SCRATCH / "r").mkdir(exist_ok=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the run left in its private folder."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole run: starting it costs about as much as twenty ordinary tests."""
    import ray

    from data.session import connect

    connect()
    yield
    # Imported late: only if a test served something is there anything to stop.
    import ray.serve

    ray.serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of this run's own."""
    import redis

    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--save", "", "--dir", str(folder), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        url = f"redis://127.0.0.1:{port}/0"
        deadline = time.monotonic() + 20
        while True:
            try:
                redis.Redis.from_url(url).ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "the Redis server did not start"
                time.sleep(0.05)
        try:
            yield url
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def farsight_data() -> Path:
    """The folder with the public data sets' published files, or a skip that says how to get it."""
    place = os.environ.get("FARSIGHT_DATA")
    if not place:
        pytest.skip("FARSIGHT_DATA is not set: set it to the folder with the public data sets (ml-1m, ...)")
    path = Path(place).resolve()
    if not path.is_dir():
        pytest.skip(f"FARSIGHT_DATA={place} is not a folder")
    return path
