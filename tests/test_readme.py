"""Every command of README.md works: its shell blocks run in order, in one directory, as they stand there.

`farsight` commands run in this process on the shared Ray session, the endpoint on a free port; everything else runs
in a shell. Lines with `make` are checked against the Makefile instead: this test runs inside one of them.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster import floors
from cluster.cli import cli
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"farsight ([a-z-]+)")


def _commands(kind: str, page: str = README) -> Iterator[str]:
    """The commands of all blocks of a kind; a here-document belongs to the command that reads it."""
    for found, text in BLOCK.findall(page):
        if found != kind:
            continue
        lines = iter(text.replace("\\\n", " ").splitlines())
        for line in lines:
            end = re.search(r"<<'(\w+)'", line)
            command = [line]
            if end:
                for body in lines:
                    command.append(body)
                    if body == end[1]:
                        break
            yield "\n".join(command)


def _run(command: str, *more: str) -> tuple[str, str]:
    """The farsight command, if it is one, and what it printed."""
    if not command.startswith("farsight "):
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)
        return "", ""
    words = shlex.split(command.removesuffix("&"))[1:]
    result = CliRunner().invoke(cli, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return words[0], result.stdout


@pytest.mark.long
@pytest.mark.ray
def test_every_shell_block_of_the_guide_runs(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = [_run(command)[0] for command in _commands("bash", GUIDE)]
    assert {"doctor", "train", "evaluate", "index", "releases", "submit", "dashboards"} <= set(ran)
    assert "farsight pipeline run" in "\n".join(_commands("console", GUIDE))  # marked as not run here


@pytest.mark.ray
def test_every_shell_block_of_the_readme_runs(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.serve

    begin = floors.start

    def without_waiting(entry: str, /, **arguments: Any) -> dict[str, Any]:
        return begin(entry, **({**arguments, "blocking": False} if entry == floors.SERVE else arguments))

    monkeypatch.setattr(floors, "start", without_waiting)
    monkeypatch.chdir(tmp_path)
    port = free_port()
    moved = {"serve": ["--port", str(port)], "retrieve": ["--url", f"http://127.0.0.1:{port}"]}
    outputs: dict[str, str] = {}
    try:
        for command in _commands("bash"):
            name = command.partition(" ")[2].partition(" ")[0] if command.startswith("farsight ") else ""
            ran, printed = _run(command, *moved.get(name, []))
            if ran:
                outputs[ran] = printed
    finally:
        ray.serve.shutdown()
    # The plays need no simulator, are too few to have bursts, and take no nights and no cluster.
    assert set(outputs) == set(cli.commands) - {"simulate", "gaps", "pipeline", "submit", "jobs"}
    assert "popularity" in outputs["evaluate"]
    answer = json.loads(outputs["retrieve"])
    assert len(answer["items"]) == 2
    assert answer["items"][0]["item_id"] != "naima"


def test_make_lines_of_the_readme_are_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = list(_commands("console"))
    assert lines
    assert all(re.fullmatch(r"make \w+", line) and line.split()[1] in targets for line in lines)


def test_the_command_table_names_every_command() -> None:
    table = README.split("## Commands")[1]
    assert set(COMMAND.findall(table.split("Every command")[0])) == set(cli.commands)


def test_files_the_readme_names_exist() -> None:
    names = set(re.findall(r"`([a-zA-Z_]+(?:/[a-z_0-9]+)*/?(?:\.(?:md|py|txt|yaml))?)`", README))
    files = {name for name in names if "/" in name or name.endswith((".md", ".py", ".txt"))}
    written_by_commands = {"runs", "FILE", "REGISTRY"}
    missing = [name for name in files if not (ROOT / name).exists() and name.split("/")[0] not in written_by_commands]
    assert not missing


def test_the_readme_stays_short() -> None:
    assert README.count("\n") <= 200
