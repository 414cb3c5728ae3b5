"""A peer's own virtual environment, and the peer as a process that computes only when it is its turn."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import MachineError

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).parent


def read_pins(file: Path) -> dict[str, str]:
    """Package -> exact version of a requirements file."""
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line)


def peer_python(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment with the versions of `NAME.txt`; built where it is missing.

    TORCH_INDEX names a further package index for torch, as for `make setup`.

    Raises:
        MachineError: the environment cannot be built.
    """
    pins = PINS / f"{name}.txt"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *index, "-r", str(pins)]
    print(f"building {folder} from {pins.name}; a few minutes", file=sys.stderr)
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise MachineError(
                f"{folder}: could not be built with {' '.join(command)!r}; see pip's lines above, or name an "
                f"environment that has {pins.name}'s packages with --peer-python"
            )
    stamp.write_text(wanted, encoding="utf-8")
    return python


class Peer:
    """A peer that takes a turn, an epoch or a round of searches, whenever it is asked to; a context that ends it.

    Args:
        module: run by the peer's interpreter with `python -m`, from the root of this tree.
        log: file for what the peer prints besides its reports.

    Raises:
        MachineError: the process ended without saying `ready`.
    """

    def __init__(self, python: Path, module: str, arguments: Sequence[str], *, threads: int, log: Path) -> None:
        self._log = log
        began = time.perf_counter()
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                # Absolute, but not resolved: the link's own place is what makes it the peer's environment.
                [str(python.absolute()), "-m", module, *arguments, "--threads", str(threads)],
                cwd=ROOT,
                env={**os.environ, **limits},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.ready = self._next("ready")
        except MachineError:
            self.__exit__()
            raise
        self.set_up_seconds = time.perf_counter() - began  # its imports included

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def turn(self, kind: str) -> dict[str, Any]:
        """Let it do its `kind` of work once, and wait for its figures.

        Raises:
            MachineError: the process ended.
        """
        assert self._process.stdin is not None  # a pipe, as asked for above
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        return self._next(kind)

    def _next(self, kind: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print too
                row: dict[str, Any] = json.loads(line)
                if row["kind"] == kind:
                    return row
        code = self._process.wait()
        raise MachineError(f"the peer ended with code {code} before its {kind!r} report; its own words: {self._log}")
