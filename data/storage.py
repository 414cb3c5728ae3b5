"""Directories that are either whole or absent, and content hashes.

Every directory this system publishes (log, prepared dataset, artifact, release) is written under a
temporary name beside its final place and renamed last, and carries a `manifest.json`, so an
interrupted run never leaves something that looks finished.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import FarsightError, MachineError

MANIFEST = "manifest.json"
_REMOVALS = 20


@contextmanager
def published_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary directory to write into; rename it to `path` if the body succeeds.

    The temporary directory is removed if the body raises. With `replace`, an existing directory
    at `path` is moved away first and deleted once the new one stands. Without, of several writers of
    one place the first wins, whenever they began.

    Raises:
        FarsightError: `path` exists and `replace` is false.
    """
    final = Path(path)
    taken = FarsightError(f"{final}: already exists; choose another place or remove it")
    if final.exists() and not replace:
        raise taken
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    aside.mkdir()
    try:
        yield aside
        old = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.old"
        if replace and final.exists():
            final.rename(old)
        try:
            aside.rename(final)  # refused where a directory stands that is not empty
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise taken from None
        shutil.rmtree(old, ignore_errors=True)
    finally:
        _remove(aside)


def published_once(path: Path, fill: Callable[[Path], None]) -> bool:
    """Publish a directory that `fill` writes; False where one stands already, if only since a moment ago.

    Raises:
        MachineError: the storage cannot be written.
    """
    try:
        with published_directory(path) as aside:
            fill(aside)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written ({error}); make room or get permission, then again") from None
    except FarsightError:
        if not path.exists():
            raise
        return False
    return True


def _remove(directory: Path) -> None:
    """Remove a directory into which tasks that were under way when another failed may still write a file."""
    for _ in range(_REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.2)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a finished file, which costs no space; a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all (temporary file, then rename)."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_manifest(directory: str | Path, kind: str, version: int, error: type[FarsightError]) -> dict[str, Any]:
    """Read `manifest.json` and check that it is a `kind` of this format version.

    Raises:
        error: no manifest, unreadable, another kind or another version.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise error(f"{directory}: no {MANIFEST}, so this is not a finished {kind}; make it again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as broken:
        raise error(f"{path}: not valid JSON ({broken}); make the {kind} again") from None
    found = (manifest.get("kind"), manifest.get("format_version"))
    if found != (kind, version):
        raise error(
            f"{path}: found kind {found[0]!r} version {found[1]!r}, expected {kind!r} version {version}; "
            f"make the {kind} again with this version of Farsight"
        )
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_hashes(directory: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """SHA-256 by relative path of every file under `directory`, the manifest left out."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    names = [(file.relative_to(directory).as_posix(), file) for file in files]
    return {name: file_hash(file) for name, file in names if name != MANIFEST and keep(name)}
