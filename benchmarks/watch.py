"""Peak memory of some processes, and peak size of some directories, while a block runs."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_SECONDS_BETWEEN = 1.0  # the kernel takes up to 10 ms to add up the pages of a process


class Watch:
    """Samples once a second; a context.

    Memory is PSS, so what processes share (the object store, mapped files) is counted once among them.

    Attributes:
        peak_bytes: largest sum of PSS over the processes, by group.
        peak_directory_bytes: largest sum of the lengths of all files under the directories.

    Args:
        processes: asked at each sample: process ids by group.
        directories: asked at each sample.
    """

    def __init__(
        self,
        processes: Callable[[], dict[str, list[int]]],
        directories: Callable[[], Iterable[Path]],
        seconds_between: float = _SECONDS_BETWEEN,
    ) -> None:
        self._seconds_between = seconds_between
        self._processes = processes
        self._directories = directories
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._cpu_seconds: dict[str, dict[int, tuple[float, float]]] = {}  # first and last of each process
        self.peak_bytes: dict[str, int] = {}
        self.peak_directory_bytes = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """What the processes computed between the first and the last sample of each, by group."""
        return {name: sum(last - first for first, last in each.values()) for name, each in self._cpu_seconds.items()}

    def _sample(self) -> None:
        while not self._ended.wait(self._seconds_between):
            for name, processes in self._processes().items():
                found = sum(proportional_bytes(process) for process in processes)
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), found)
                for process in processes:
                    self._note_cpu(name, process)
            size = sum(directory_bytes(directory) for directory in self._directories())
            self.peak_directory_bytes = max(self.peak_directory_bytes, size)

    def _note_cpu(self, group: str, process: int) -> None:
        seconds = cpu_seconds(process)
        first, last = self._cpu_seconds.setdefault(group, {}).get(process, (seconds, seconds))
        self._cpu_seconds[group][process] = first, max(last, seconds)


def proportional_bytes(process: int) -> int:
    """PSS of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def cpu_seconds(process: int) -> float:
    """What a process has computed, in user and kernel mode; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def directory_bytes(directory: Path) -> int:
    """Sizes of the files under a directory, of those that do not vanish meanwhile."""
    return sum(_size(Path(folder, name)) for folder, _, names in os.walk(directory) for name in names)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def descendants(process: int) -> Iterator[int]:
    """Processes that a process started, and those that these started."""
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = tasks.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def title(process: int) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
