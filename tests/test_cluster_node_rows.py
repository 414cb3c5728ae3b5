"""What the doctor of a cluster makes of the nodes' answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cluster import floors
from cluster.cli import cli
from cluster.doctor import PACKAGES
from cluster.doctor_job import report_in
from cluster.node_probe import NodeProbe, package_folders, source_hash
from cluster.node_rows import Clock, Node, accelerators_row, clock_row, offset_of, packages_row, same_row, storage_row

ROOT = Path(__file__).resolve().parents[1]
H100 = "NVIDIA H100 80GB HBM3, 580.95.05"


def _node(number: int, **facts: Any) -> Node:
    said = {"source": "abc", "packages": dict.fromkeys(PACKAGES, "/code"), "gpus": [], "torch_gpus": [], **facts}
    return Node(
        id=f"{number:06d}ffff",
        address="10.0.0.1",
        is_head=not number,
        gpus=said.pop("counted", 0),
        probe=None,
        facts=said,
    )


def _with_gpus(number: int, ray: int, driver: list[str], torch: int) -> Node:
    return _node(number, counted=ray, gpus=driver, torch_gpus=["H100"] * torch)


def test_one_version_is_fine_and_of_two_it_is_said_who_has_which() -> None:
    assert same_row("ray", {"a": "2.60.0", "b": "2.60.0"}).found == "2.60.0 on all"
    row = same_row("ray", {"a": "2.60.0", "b": "2.59.1", "c": "2.60.0"})
    assert (row.state, row.found) == ("broken", "2.60.0 on a, c; 2.59.1 on b")


def test_nodes_with_other_sources_or_without_a_package_are_broken() -> None:
    assert packages_row([_node(0), _node(1)], "abc").state == "ok"
    other = packages_row([_node(0), _node(1)], "def")
    assert (other.state, other.found.split("; ")[1]) == ("broken", "sources def on here")
    lacking = packages_row([_node(0), _node(1, packages={"data": ""})], "abc")
    assert lacking.found == "not all there on 10.0.0.1 (000001)"


@pytest.mark.parametrize(
    ("node", "state", "found"),
    [
        (_node(1), "ok", "none"),
        (_with_gpus(1, 2, [H100, H100], 2), "ok", f"2 x {H100}"),
        (_with_gpus(1, 0, [H100], 1), "ok", "none"),  # Ray was told not to use it
        (_with_gpus(1, 2, [H100], 1), "broken", "10.0.0.1 (000001): Ray counts 2, the driver 1"),
        (_with_gpus(1, 1, [H100], 0), "broken", "10.0.0.1 (000001): the driver has 1, torch sees 0"),
        (_with_gpus(1, 1, ["nvidia-smi fails: no devices"], 0), "broken", "nvidia-smi fails: no devices"),
        (_with_gpus(1, 2, [H100, "NVIDIA A100, 580.95.05"], 2), "note", f"2: NVIDIA A100, 580.95.05; {H100}"),
    ],
)
def test_gpus_must_be_counted_alike_by_ray_the_driver_and_torch(node: Node, state: str, found: str) -> None:
    row = accelerators_row([_node(0), node])
    assert row.state == state
    assert row.found.endswith(found)


@given(
    ahead=st.floats(-100, 100),
    trips=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=8),
)
def test_a_clocks_true_offset_lies_within_the_margin(ahead: float, trips: list[tuple[float, float]]) -> None:
    samples, now = [], 1_000.0
    for there, back in trips:
        samples.append((now, now + there + ahead, now + there + back))
        now += there + back + 1
    offset, margin = offset_of(samples)
    assert abs(offset - ahead) <= margin + 1e-9
    assert margin <= min(there + back for there, back in trips) / 2 + 1e-9


def test_a_clock_is_wrong_only_where_the_measurement_says_so() -> None:
    assert clock_row([], 1.0).found == "one node"
    assert clock_row([Clock("a", 0.2, 0.1), Clock("b", -0.9, 0.1)], 1.0).state == "ok"
    wrong = clock_row([Clock("a", 0.2, 0.1), Clock("b", -1.5, 0.1)], 1.0)
    assert (wrong.state, wrong.found) == ("broken", "at most 1500.0 ms from the head's (give or take 100.0), on b")
    assert clock_row([Clock("a", 1.5, 2.0)], 1.0).state == "note"


def test_storage_that_one_node_has_for_itself_is_broken() -> None:
    nodes = [_node(0), _node(1)]
    assert storage_row("/s", nodes, [None, None], [[], []], 10**12).state == "ok"
    assert storage_row("/s", nodes, [None, None], [[], []], 10**6).state == "note"
    unseen = storage_row("/s", nodes, [None, None], [[], [nodes[0].id]], 10**12)
    assert unseen.found == "10.0.0.1 (000001) does not see what 10.0.0.1 (000000) wrote to /s"
    unwritable = storage_row("/s", nodes, [None, "/s/x: Read-only file system"], [[], []], 10**12)
    assert unwritable.found == "10.0.0.1 (000001) cannot write: /s/x: Read-only file system"
    assert (unseen.state, unwritable.state) == ("broken", "broken")


def test_a_mark_is_seen_and_one_that_nobody_left_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.node_probe.SEEN_SECONDS", 0.1)
    probe, folder = NodeProbe(), str(tmp_path / "marks")
    assert probe.make_folder(folder) is None
    assert probe.leave_mark(folder, "a") is None
    assert probe.missing_marks(folder, ["a", "b"]) == ["b"]
    assert probe.leave_mark(str(tmp_path / "none"), "a") == f"{tmp_path}/none: No such file or directory"
    assert probe.make_folder(str(tmp_path / "none" / "x")) == f"{tmp_path}/none: No such file or directory"


def test_the_sources_of_this_tree_have_one_hash_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = source_hash()
    folders = {name: tmp_path / name for name in PACKAGES}
    for name, folder in package_folders().items():
        for file in Path(folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".proto"):
                copy = folders[name] / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    monkeypatch.setattr("cluster.node_probe.package_folders", lambda: {name: str(to) for name, to in folders.items()})
    assert source_hash() == here
    (folders["data"] / "batch.py").write_text("")
    assert source_hash() != here


def test_a_report_is_found_among_what_else_a_job_prints() -> None:
    report = {"ok": True, "checks": [{"check": "x"}], "nodes": []}
    log = f'starting\n{{not json\n{{"other": 1}}\n{json.dumps(report, indent=2)}\nerror: {{\n'
    assert report_in(log) == report
    assert report_in("Traceback\n{}\n") is None


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 6)])
def test_the_doctor_of_a_cluster_is_a_table_and_an_exit_code(
    ok: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, Any]] = []

    def answer(entry: str, /, **arguments: Any) -> dict[str, Any]:
        asked.append({"entry": entry, **arguments})
        return {"ok": ok, "checks": [{"check": "clocks", "state": "ok", "found": "x", "what to do": ""}], "nodes": []}

    monkeypatch.setattr(floors, "start", answer)
    result = CliRunner().invoke(cli, ["doctor", "--cluster", "--address", "http://h:8265", "--storage", "/s"])
    assert result.exit_code == status
    assert result.stdout.startswith("This cluster\n")
    assert (asked[0]["address"], asked[0]["storage"], asked[0]["max_skew"]) == ("http://h:8265", "/s", 1.0)
