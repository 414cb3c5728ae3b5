"""A registry of releases: what it holds after anything is done with it, by several at once, and cut off anywhere."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import cli
from data.errors import ArtifactError, MachineError
from serve.build import run as build_release
from serve.registry import Registry, find_release, record_deployment, run
from serve.release import Release
from tests.small_world import write_artifact, write_dataset

ROOT = Path(__file__).resolve().parents[1]
NUM_RELEASES = 4
KEEP = st.integers(1, NUM_RELEASES)
WHICH = st.integers(0, NUM_RELEASES - 1)
STEPS = st.one_of(
    st.tuples(st.just("add"), WHICH), st.tuples(st.just("record"), WHICH), st.tuples(st.just("prune"), KEEP)
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Releases named by their ids, of weights that differ."""
    place = tmp_path_factory.mktemp("releases")
    dataset = write_dataset(place / "dataset", num_users=4, num_items=12)
    found = []
    for seed in range(NUM_RELEASES):
        artifact = write_artifact(place / f"artifact-{seed}", dataset, seed=seed)
        built = build_release(str(artifact.directory), str(place / "built"), {})
        found.append((place / "built").rename(place / built["release_id"]))
    return found


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def ids_of(registry: Registry) -> list[str]:
    """Oldest first; each is checked to be whole."""
    ids = [row["release_id"] for row in reversed(registry.releases())]
    assert [Release.open(registry.directory / one).release_id for one in ids] == ids
    return ids


def names_of(registry: Registry) -> dict[str, str]:
    return {name: row["release_id"] for row in registry.releases() for name in row["names"]}


@settings(max_examples=40)
@given(steps=st.lists(STEPS, max_size=14))
def test_whatever_is_done_the_registry_holds_what_a_list_and_a_record_would(
    releases: list[Path], steps: list[tuple[str, int]]
) -> None:
    added: list[str] = []
    deployed: list[str] = []
    with TemporaryDirectory() as place:
        registry = Registry(Path(place) / "registry")
        registry.add(releases[0])
        added.append(releases[0].name)
        for step, number in steps:
            if step == "prune":
                kept = {*added[-number:], *deployed[-2:]}
                assert registry.prune(number) == [one for one in added if one not in kept]
                added = [one for one in added if one in kept]
                continue
            name = releases[number].name
            if step == "add":
                assert registry.add(releases[number]) == name
                added += [name] * (name not in added)
            else:
                registry.record(name)
                deployed += [name] * (name in added and deployed[-1:] != [name])
            named = {"latest": added[-1:], "current": deployed[-1:], "previous": [*dict.fromkeys(deployed[::-1])][1:2]}
            assert names_of(registry) == {key: value[0] for key, value in named.items() if value}
            assert registry.resolve().name == (deployed or added)[-1]
        assert ids_of(registry) == added
        assert all(registry.resolve(one[:9]).name == one for one in added)
        assert {path.name for path in registry.directory.iterdir()} - {"manifest.json", "journal"} == {*added}


def test_a_release_is_taken_in_without_its_bytes_and_outlives_the_one_that_was_given(
    registry: Registry, releases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_path = tmp_path / "built"
    shutil.copytree(releases[0], given_path)
    registry.add(given_path)
    taken_in = registry.resolve("latest")
    assert (taken_in / "index" / "index.faiss").samefile(given_path / "index" / "index.faiss")
    shutil.rmtree(given_path)
    assert Release.open(taken_in).release_id == taken_in.name

    def refused(source: Path, target: Path) -> None:
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", refused)
    registry.add(releases[1])
    assert ids_of(registry) == [releases[0].name, releases[1].name]


def test_a_rollback_goes_back_and_once_more_forth(registry: Registry, releases: list[Path]) -> None:
    before, after = (registry.add(release) for release in releases[:2])
    record_deployment(registry.directory / before)
    record_deployment(registry.directory / after)
    record_deployment(registry.directory / after)  # again, with other settings
    for expected in (before, after, before):
        place = find_release(registry.directory / "previous")
        assert place.name == expected
        record_deployment(place)
        assert find_release(registry.directory).name == expected
    entries = [*(registry.directory / "journal").iterdir()]
    assert len(entries) == 2 + 5  # one for each that changed something


def test_a_path_that_is_in_no_registry_is_what_it_was(releases: list[Path], tmp_path: Path) -> None:
    assert find_release(str(releases[0])) == releases[0]
    assert find_release(tmp_path / "nowhere" / "latest") == tmp_path / "nowhere" / "latest"
    record_deployment(releases[0])
    assert {path.name for path in releases[0].iterdir()} == {"artifact", "index", "golden.json", "manifest.json"}


def test_a_command_adds_from_another_registry_removes_and_lists(registry: Registry, releases: list[Path]) -> None:
    staging = registry.directory.parent / "staging"
    for release in releases[:3]:
        found = run(str(staging), add=str(release))
    assert (found["added"], found["removed"], len(found["releases"])) == (releases[2].name, [], 3)
    found = run(str(registry.directory), add=f"{staging}/latest", keep=1)
    [row] = found["releases"]
    assert (row["release_id"], row["names"], row["deployed"]) == (releases[2].name, ["latest"], None)
    assert (row["items"], row["index"], row["recall"]["value"]) == (12, "flat", 1.0)
    found = run(str(staging), keep=2)
    assert (found["added"], found["removed"]) == (None, [releases[0].name])
    assert [row["release_id"] for row in found["releases"]] == [releases[2].name, releases[1].name]


def test_a_reference_that_names_none_or_several_is_refused(registry: Registry, releases: list[Path]) -> None:
    name = registry.add(releases[0])
    with pytest.raises(ArtifactError, match=rf"found no release 'previous', expected one of: latest, {name}; current"):
        registry.resolve("previous")
    with pytest.raises(ArtifactError, match="found no release 'newest'"):
        find_release(registry.directory / "newest")
    for release in releases[1:]:
        registry.add(release)
    with pytest.raises(ArtifactError, match=rf"'' begins 4 ids \({name}, .*\); give more digits"):
        registry.resolve("")


def test_on_the_command_line_what_is_not_found_is_one_line_and_exits_with_4(
    registry: Registry, releases: list[Path]
) -> None:
    result = CliRunner().invoke(cli, ["releases", str(registry.directory)])
    assert result.exit_code == 4
    assert result.stderr.startswith(f"error: {registry.directory}: not a registry of releases")
    result = CliRunner().invoke(cli, ["releases", str(registry.directory), "--add", str(releases[0])])
    assert result.exit_code == 0
    assert f"added: {releases[0].name}" in result.stdout
    for words in (["serve"], ["predict", "--dataset", "d", "--out", "o"]):
        result = CliRunner().invoke(cli, [*words, f"{registry.directory}/previous"])
        assert result.exit_code == 4
        assert result.stderr.startswith(f"error: {registry.directory}: found no release 'previous'")


def test_what_is_no_registry_is_refused_and_left_alone(registry: Registry, releases: list[Path]) -> None:
    with pytest.raises(ArtifactError, match=r"not a registry of releases \(.*; farsight releases DIR --add RELEASE"):
        run(str(registry.directory))
    registry.directory.mkdir()
    (registry.directory / "thesis.txt").touch()
    with pytest.raises(
        ArtifactError, match=r"found 'thesis.txt' and no manifest.json, expected a registry or an empty"
    ):
        registry.add(releases[0])
    with pytest.raises(ArtifactError, match=r"not a registry of releases .*found kind 'release'"):
        Registry(releases[1]).add(releases[0])
    with pytest.raises(MachineError, match="cannot be a registry"):
        Registry(registry.directory / "thesis.txt").add(releases[0])
    assert [path.name for path in registry.directory.iterdir()] == ["thesis.txt"]
    (registry.directory / "thesis.txt").unlink()
    registry.add(releases[0])  # an empty directory, such as storage that was just mounted


def test_damage_is_refused_where_it_is(registry: Registry, releases: list[Path], tmp_path: Path) -> None:
    for release in releases[:2]:
        shutil.copytree(release, tmp_path / release.name)
        damaged = tmp_path / release.name / "index" / "index.faiss"
        damaged.unlink()
        damaged.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=rf"{tmp_path / releases[0].name}/index/index.faiss: found SHA-256"):
        registry.add(tmp_path / releases[0].name)
    assert not registry.releases()
    registry.add(releases[0])
    shutil.rmtree(registry.resolve())
    assert "not a finished release" in registry.releases()[0]["problem"]
    registry.add(releases[0])
    assert "problem" not in registry.releases()[0]
    shutil.rmtree(registry.resolve())
    shutil.move(tmp_path / releases[0].name, registry.resolve())
    with pytest.raises(ArtifactError, match=r"damaged in the registry .*; remove it there and add the release again"):
        registry.add(releases[0])
    (registry.directory / "journal" / "00000001" / "entry.json").write_text("")
    with pytest.raises(ArtifactError, match=r"00000001/entry.json: not an entry .*; restore it, or remove"):
        registry.resolve("latest")


class Killed(BaseException):
    """Nothing of the process runs after this."""


CHANGES = ("mkdir", "link", "rename", "replace", "unlink", "rmdir", "fsync")


@contextmanager
def killed_at(change: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let so many changes of the file system happen and none after, as if the process were no more."""
    happened: list[str] = []

    def counted(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **named: object) -> None:
            if len(happened) >= change:
                raise Killed
            happened.append(name)
            original(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for name in CHANGES:
            patched.setattr(os, name, counted(name, getattr(os, name)))
        try:
            yield happened
        except Killed:
            happened.append("killed")


@pytest.mark.parametrize("operation", ["first", "add", "record", "prune"])
def test_a_process_killed_at_any_change_leaves_all_or_nothing_and_the_same_again_completes_it(
    operation: str, releases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(name: str) -> Registry:
        registry = Registry(tmp_path / name)
        for release in releases[:3] if operation != "first" else []:
            registry.record(registry.add(release))
        return registry

    def operate(registry: Registry) -> None:
        match operation:
            case "first" | "add":
                registry.add(releases[3])
            case "record":
                registry.record(releases[0].name)
            case "prune":
                registry.prune(1)

    whole = prepared("whole")
    before = (ids_of(whole), names_of(whole))
    operate(whole)
    after = (ids_of(whole), names_of(whole))
    assert before != after
    for change in range(200):
        registry = prepared(f"killed-{change}")
        with killed_at(change, monkeypatch) as happened:
            operate(registry)
        found = (ids_of(registry), names_of(registry))
        assert found in (before, after)
        operate(registry)
        assert (ids_of(registry), names_of(registry)) == after
        if happened[-1] != "killed":
            break
    assert change > 3
    assert found == after


def test_what_a_killed_process_left_is_removed_a_day_later_and_nothing_else(
    registry: Registry, releases: list[Path]
) -> None:
    registry.add(releases[0])
    left = [releases[1].name, f".{releases[1].name}.0123abcd.partial", f".{releases[1].name}.0123abcd.old"]
    for name in [*left, "notes"]:
        (registry.directory / name / "artifact").mkdir(parents=True)
    registry.prune(1)
    assert {path.name for path in registry.directory.iterdir()} > {*left}
    for place in registry.directory.iterdir():
        os.utime(place, (1, 1))
    registry.prune(1)
    found = {path.name for path in registry.directory.iterdir()}
    assert found == {releases[0].name, "notes", "manifest.json", "journal"}


def test_processes_that_add_at_the_same_time_make_one_registry_with_each_release_once(
    registry: Registry, releases: list[Path], tmp_path: Path
) -> None:
    script = (
        "import sys, pathlib\n"
        "from serve.registry import Registry\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "registry = Registry(pathlib.Path(sys.argv[1]))\n"
        "for release in sys.argv[2:]:\n"
        "    registry.record(registry.add(pathlib.Path(release)))\n"
    )
    command = [sys.executable, "-c", script, str(registry.directory)]
    orders = [[str(release) for release in order] for order in (releases, releases)]
    started = [
        subprocess.Popen([*command, *order], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for order in orders
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0, 0]
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
    assert sorted(ids_of(registry)) == sorted(release.name for release in releases)
    assert [path.name for path in registry.directory.iterdir() if path.name.startswith(".")] == []


def test_a_release_that_is_deployed_while_others_are_removed_stays(registry: Registry, releases: list[Path]) -> None:
    for release in releases:
        registry.add(release)

    def deploy_and_remove(number: int) -> None:
        if number % 3:
            registry.record(releases[number % 2].name)
        else:
            registry.prune(1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(deploy_and_remove, range(48)))
    names = names_of(registry)
    assert {*ids_of(registry)} >= {*names.values()}
    assert names["latest"] == releases[-1].name
    entries = sorted(path.name for path in (registry.directory / "journal").iterdir())
    assert entries == [f"{number:08d}" for number in range(1, len(entries) + 1)]
