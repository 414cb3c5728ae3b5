"""Directories are whole or absent, and manifests say what they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import DatasetError, FarsightError, MachineError
from data.storage import (
    MANIFEST,
    directory_hashes,
    file_hash,
    link_or_copy,
    published_directory,
    published_once,
    read_manifest,
    write_json,
)


def test_a_published_directory_appears_only_when_the_body_has_ended(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "out"
    with published_directory(final) as aside:
        (aside / "a").write_text("1")
        assert not final.exists()
    assert (final / "a").read_text() == "1"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_a_body_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with published_directory(tmp_path / "out") as aside:
            (aside / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_stands_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("1")
    with pytest.raises(FarsightError, match="out: already exists; choose another place or remove it"):
        published_directory(final).__enter__()
    with pytest.raises(ZeroDivisionError), published_directory(final, replace=True):
        raise ZeroDivisionError
    assert (final / "old").exists()
    with published_directory(final, replace=True) as aside:
        (aside / "new").write_text("2")
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_writers_of_one_place_the_first_to_finish_wins(tmp_path: Path) -> None:
    late = published_directory(tmp_path / "out")
    (late.__enter__() / "a").write_text("late")
    with published_directory(tmp_path / "out") as aside:
        (aside / "a").write_text("first")
    with pytest.raises(FarsightError, match="out: already exists; choose another place or remove it"):
        late.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_what_stands_already_is_not_published_again_and_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    def fill(aside: Path) -> None:
        (aside / "a").touch()

    assert [published_once(tmp_path / "out", fill) for _ in range(3)] == [True, False, False]
    with pytest.raises(MachineError, match=r"a/out: cannot be written \(.*; make room or get permission"):
        published_once(tmp_path / "out" / "a" / "out", fill)


def test_hashes_name_every_file_but_the_manifest_and_change_with_a_byte(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"y")
    write_json(tmp_path / MANIFEST, {})
    before = directory_hashes(tmp_path)
    assert list(before) == ["b", "sub/a"]
    assert directory_hashes(tmp_path, lambda name: name == "b") == {"b": file_hash(tmp_path / "b")}
    (tmp_path / "sub" / "a").write_bytes(b"z")
    assert directory_hashes(tmp_path)["sub/a"] != before["sub/a"]


def test_a_file_is_linked_and_where_that_is_impossible_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError("no links on this file system")

    (tmp_path / "a").write_text("1")
    link_or_copy(tmp_path / "a", tmp_path / "linked")
    monkeypatch.setattr(os, "link", refused)
    link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    assert not (tmp_path / "copied").samefile(tmp_path / "a")
    assert (tmp_path / "linked").read_text() == (tmp_path / "copied").read_text() == "1"


def test_a_manifest_of_the_right_kind_and_version_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, {"kind": "dataset", "format_version": 1, "counts": {"users": 2}})
    assert read_manifest(tmp_path, "dataset", 1, DatasetError)["counts"]["users"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json, so this is not a finished dataset; make it again"),
        ("{", "not valid JSON"),
        ('{"kind": "log", "format_version": 1}', "found kind 'log' version 1, expected 'dataset' version 1"),
        ('{"kind": "dataset", "format_version": 2}', "found kind 'dataset' version 2, expected 'dataset' version 1"),
    ],
)
def test_what_is_not_a_finished_dataset_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_manifest(tmp_path, "dataset", 1, DatasetError)


def test_a_process_killed_in_the_middle_leaves_no_directory(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from data.storage import MANIFEST, published_directory, write_json\n"
        "with published_directory(sys.argv[1]) as aside:\n"
        "    write_json(aside / MANIFEST, {'kind': 'dataset', 'format_version': 1})\n"
        "    print('written', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="not a finished dataset"):
        read_manifest(tmp_path / "out", "dataset", 1, DatasetError)
