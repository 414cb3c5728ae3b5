"""A Ray cluster of two nodes on this machine, as `ray start` makes it, with token authentication on."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-of-this-test-0123456789abcdef"
START_SECONDS = 120


@dataclass(frozen=True)
class RayCluster:
    """A running cluster, and a shared storage of its own."""

    port: int
    gcs: str
    storage: Path
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def farsight(self, *words: str, folder: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        """Start a farsight command that knows the token."""
        return self.shell([sys.executable, "-m", "cluster.cli", *words], folder=folder, **environment)

    def shell(self, command: list[str], *, folder: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        """Start a command that knows the token, the packages and nothing of another Ray; in the storage by default."""
        known = {**self.environment, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.Popen(
            command, cwd=folder or self.storage, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def jobs(self) -> list[dict[str, Any]]:
        """What Ray itself keeps of its jobs."""
        asked = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())
        return found


@contextmanager
def ray_cluster(folder: Path, storage: Path) -> Iterator[RayCluster]:
    """Start a head and a second node; both are gone afterwards, and no other Ray of this machine is touched.

    Args:
        folder: of Ray's sessions; short, since sockets lie in it.
    """
    folder.mkdir()
    token = folder / "token"
    token.write_text(TOKEN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    gcs, dashboard = free_port(), free_port()
    with ExitStack() as stack:
        head = [f"--head --num-cpus=3 --include-dashboard=true --port={gcs} --dashboard-port={dashboard}"]
        head.append(f"--ray-client-server-port={free_port()} --temp-dir={folder}")
        stack.enter_context(_node(" ".join(head), environment, folder / "head.log"))
        cluster = RayCluster(dashboard, f"127.0.0.1:{gcs}", storage, environment)
        stack.enter_context(_node(f"--address={cluster.gcs} --num-cpus=1", environment, folder / "node.log"))
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                cluster.jobs()
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline, "the dashboard does not answer"
                time.sleep(0.1)
        yield cluster


@contextmanager
def _node(options: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """One node, until its processes are killed, one by one."""
    command = ["ray", "start", "--block", "--disable-usage-stats", *options.split()]
    # Fixed ranges would meet another cluster of this machine.
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    with log.open("w") as output:
        started = psutil.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "block forever" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert started.poll() is None, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        tree: list[psutil.Process] = [started]
        with suppress(psutil.NoSuchProcess):  # it died by itself; the assertion above says why
            tree += started.children(recursive=True)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(tree, timeout=10)
