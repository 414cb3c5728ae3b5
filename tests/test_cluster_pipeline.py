"""The nightly pipeline over three simulated days, with everything that can be wrong with one of them.

The first day is killed in the middle; the second comes four times in a bad state before it comes well; the third trains
a candidate that has learned nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from click.testing import CliRunner, Result

from cluster.cli import cli
from cluster.pipeline.settings import PipelineSettings
from cluster.pipeline.state import PLACES, Day
from cluster.pipeline.steps import InUse, Task, promote
from data.errors import EndpointError
from data.storage import write_json
from serve.app import run as serve
from serve.build import run as build_release
from serve.registry import Registry
from tests.ports import free_port
from tests.small_world import write_artifact, write_dataset

FIRST, SECOND, THIRD = "2025-12-20", "2025-12-21", "2025-12-22"
RECIPE = {
    "simulate": {
        "num_users": 700, "num_items": 240, "num_days": 30, "events_per_user": 40, "max_events_per_user": 100,
        "end_date": "2026-01-01",
    },
    "ingest": {"num_buckets": 2},
    "model": {
        "width": 16, "max_events": 32, "encoder": {"kind": "hstu", "blocks": 1, "query_width": 16, "value_width": 16},
        "negatives": {"kind": "uniform", "num_uniform": 64},
    },
    "train": {
        "epochs": 6, "evaluate_every_epochs": 6, "events_per_batch": 1024, "optimizer": {"learning_rate": 0.01},
        "workers": {"threads_per_worker": 1},
    },
    "evaluate": {"ks": [10]},
    "tracking": {"to": []},
    "index": {"recall_k": 10, "num_recall_queries": 32},
    "pipeline": {
        "dir": "pipeline", "log": "logs/{day}", "marker": "logs/{day}/manifest.json", "registry": "releases",
        "continued": {"epochs": 1, "evaluate_every_epochs": 1, "optimizer": {"learning_rate": 0.001}},
        "gate": {"max_accuracy_drop": 0.2},
        "notify": ["sh", "-c", "cat >> told.jsonl; echo >> told.jsonl"],
    },
}  # fmt: skip
# What a candidate is that was trained with this has forgotten what it knew.
GARBAGE = "pipeline.continued={epochs: 1, optimizer: {learning_rate: 30.0, warmup_steps: 0}}"


def document(result: Result) -> dict[str, Any]:
    """The JSON document of a command; in the tests' own process Ray's lines may stand before it."""
    return dict(json.loads(result.stdout[result.stdout.index("{\n") :]))


WAIVED = [f"pipeline.gate.{limit}" for limit in ("max_accuracy_drop=2", "above_popularity=false")]
WAIVED += ["pipeline.gate.min_coverage_share=0", "pipeline.keep_releases=1"]


@dataclass
class Nights:
    """What happened, by name."""

    folder: Path
    results: dict[str, Result] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, *words: str) -> dict[str, Any]:
        result = CliRunner().invoke(cli, ["pipeline", "run", "nightly.yaml", "--json", *words])
        self.results[name] = result
        assert result.exit_code in (0, 8), result.output
        return document(result)

    def report(self, name: str) -> dict[str, Any]:
        [report] = document(self.results[name])["days"]
        return dict(report)

    def status(self) -> dict[str, Any]:
        result = CliRunner().invoke(cli, ["pipeline", "status", "nightly.yaml", "--json"])
        assert result.exit_code == 0, result.output
        return document(result)

    def began(self, day: str) -> dict[str, int]:
        """When each step of a day began, of those that have."""
        steps = (self.folder / "pipeline" / day / "steps").glob("*.json")
        return {step.stem: json.loads(step.read_text())["began"] for step in steps}


def same(report: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when it was done."""
    return {name: value for name, value in report.items() if name not in ("seconds", "steps")}


def bad_logs(logs: Path, out: Path) -> dict[str, Path]:
    """The second day as it should not come."""
    good = pq.read_table(logs / SECOND / "events")
    start = int(np.datetime64(FIRST, "s").astype(np.int64))
    history = pq.read_table(logs / FIRST / "events")
    rows = np.random.default_rng(0).permutation(len(good))
    tables = {
        "lost": good.take(pa.array(np.sort(rows[: len(good) * 2 // 5]))),
        "shuffled": good.set_column(1, "item_id", good["item_id"].take(pa.array(rows))),
        "repeated": history.filter(pc.field("timestamp") >= start),
        "damaged": good,
    }
    assert good.schema.names[1] == "item_id"
    for name, table in tables.items():
        (out / name).mkdir(parents=True)
        pq.write_table(table, out / name / "events.parquet")
    damaged = out / "damaged" / "events.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    return {name: out / name for name in tables}


def killed_in_training(folder: Path) -> None:
    """Begin the first day in a process of its own, and kill it when training has begun."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "cluster.cli", "pipeline", "run", "nightly.yaml"]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": root}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (folder / "pipeline" / FIRST / "steps" / "train.json").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)


def cut_off_in_promotion(day: Path) -> None:
    """Leave a day as if its run had died after the release was added to the registry, before that was noted."""
    (day / "report.json").unlink()
    promote = json.loads((day / "steps" / "promote.json").read_text())
    del promote["result"]
    write_json(day / "steps" / "promote.json", {**promote, "state": "begun"})


@pytest.fixture(scope="module")
def nights(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    nights = Nights(folder := tmp_path_factory.mktemp("nights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("nightly.yaml").write_text(yaml.safe_dump(RECIPE))
        made = CliRunner().invoke(cli, ["simulate", "--out", "all", "--days", "3", "nightly.yaml"])
        assert made.exit_code == 0, made.output
        Path("logs").mkdir()

        Path("all", FIRST).rename(Path("logs", FIRST))
        killed_in_training(folder)
        nights.noted["after the kill"] = {"status": nights.status(), "began": nights.began(FIRST)}
        nights.run("first")
        nights.noted["after the first"] = nights.began(FIRST)

        Path("all", SECOND).rename(Path("logs", SECOND))
        for name, log in bad_logs(Path("logs"), folder / "bad").items():
            nights.run(name, "--day", SECOND, "--log", str(log))
            nights.noted[name] = nights.status()
        nights.run("second", "--day", SECOND)
        nights.noted["before it was cut off"] = nights.began(SECOND)
        cut_off_in_promotion(folder / "pipeline" / SECOND)
        nights.run("second resumed")
        nights.noted["after it was cut off"] = nights.began(SECOND)

        Path("all", THIRD).rename(Path("logs", THIRD))
        nights.noted["before the third"] = nights.status()
        nights.run("third", GARBAGE)
        nights.noted["page"] = (folder / "pipeline" / THIRD / "report.md").read_text()
        nights.noted["third"] = nights.began(THIRD)
        nights.run("third again", "--day", THIRD, GARBAGE)
        nights.noted["third again"] = nights.began(THIRD)
        nights.run("nothing")
        nights.noted["end"] = nights.status()
        nights.run("third waived", "--day", THIRD, GARBAGE, *WAIVED)
        nights.noted["after the waiver"] = nights.began(THIRD)
        nights.noted["shown"] = CliRunner().invoke(cli, ["pipeline", "status", "nightly.yaml"]).stdout
    return nights


@pytest.mark.ray
def test_a_run_that_was_killed_goes_on_with_the_step_that_it_was_in(nights: Nights) -> None:
    killed, after = nights.noted["after the kill"], nights.noted["after the first"]
    [day] = killed["status"]["days"]
    assert day["state"] == "stopped in train"
    assert killed["status"]["running"] is None
    assert killed["status"]["waiting"] == [FIRST]
    assert killed["began"].keys() == {"ingest", "check", "train"}
    assert {name: after[name] for name in ("ingest", "check")} == {
        name: killed["began"][name] for name in ("ingest", "check")
    }
    assert after.keys() == set(PLACES)
    report = nights.report("first")
    assert report["outcome"] == "promoted"
    assert report["in_use"] is None
    assert report["accuracy"]["candidate"] > report["accuracy"]["popularity"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "check"), [("lost", "events"), ("shuffled", "recognised"), ("repeated", "events"), ("damaged", "log")]
)
def test_a_day_with_bad_data_is_held_back_before_anything_is_trained(nights: Nights, name: str, check: str) -> None:
    report = nights.report(name)
    assert nights.results[name].exit_code == 8
    assert (report["outcome"], report["held_by"]) == ("held", "data")
    assert check in [found["name"] for found in report["checks"] if found["passed"] is False]
    assert report["steps"]["train"]["state"] is None
    assert [release["names"] for release in nights.noted[name]["releases"]] == [["latest"]]


@pytest.mark.ray
def test_a_mended_day_goes_on_from_the_release_in_use_and_follows_it(nights: Nights) -> None:
    first, second = nights.report("first"), nights.report("second")
    assert (second["outcome"], second["extends"]) == ("promoted", FIRST)
    assert second["in_use"] == first["candidate"] != second["candidate"]
    assert second["data"]["new_items"] > 0
    settings = json.loads((nights.folder / "pipeline" / SECOND / "train" / "run.json").read_text())["settings"]
    assert settings["train"]["start_from"] == str(nights.folder / "releases" / first["candidate"] / "artifact")
    assert settings["train"]["since"] == first["trained_until"]
    assert settings["train"]["epochs"] == 1
    change = second["accuracy"]["change"]
    assert change["low"] <= change["mean"] <= change["high"]
    expected = second["accuracy"]["candidate"] / second["accuracy"]["in_use"] - 1
    assert change["mean"] == pytest.approx(expected, abs=1e-9)
    assert change["users"] == second["data"]["users"]


@pytest.mark.ray
def test_a_promotion_that_was_cut_off_is_ended_and_not_judged_beside_itself(nights: Nights) -> None:
    before, after = nights.noted["before it was cut off"], nights.noted["after it was cut off"]
    assert {name for name in PLACES if before[name] != after[name]} <= {"promote"}
    whole, resumed = nights.report("second"), nights.report("second resumed")
    assert same(whole) == same(resumed)
    assert resumed["in_use"] == nights.report("first")["candidate"]


@pytest.mark.ray
def test_another_limit_is_another_verdict_and_nothing_is_measured_again(nights: Nights) -> None:
    report = nights.report("third waived")
    assert report["outcome"] == "promoted"
    assert report["candidate"] == nights.report("third")["candidate"]
    assert sorted(report["removed"]) == sorted(nights.report(name)["candidate"] for name in ("first", "second"))
    after = nights.noted["after the waiver"]
    assert {name: after[name] for name in nights.noted["third"]} == nights.noted["third"]


@pytest.mark.ray
def test_a_candidate_that_has_learned_nothing_does_not_follow_the_release_in_use(nights: Nights) -> None:
    report, end = nights.report("third"), nights.noted["end"]
    assert nights.results["third"].exit_code == 8
    assert nights.noted["before the third"]["waiting"] == [THIRD]
    assert (report["outcome"], report["held_by"]) == ("held", "candidate")
    failed = {found["name"] for found in report["checks"] if found["passed"] is False}
    assert {"accuracy", "popularity"} <= failed
    [latest] = [release for release in end["releases"] if "latest" in release["names"]]
    assert latest["release_id"] == nights.report("second")["candidate"] == report["in_use"]
    assert report["candidate"] not in {release["release_id"] for release in end["releases"]}
    page = nights.noted["page"]
    assert page.startswith(f"# {THIRD}: held\n\nHeld back by the checks of the candidate; in use stays")
    assert f"farsight releases releases --add {report['release']}" in page


@pytest.mark.ray
def test_what_is_finished_is_not_done_again(nights: Nights) -> None:
    again = nights.report("third again")
    assert nights.results["third again"].exit_code == 8
    assert same(again) == same(nights.report("third"))
    assert nights.noted["third"] == nights.noted["third again"]
    assert nights.results["nothing"].exit_code == 0
    assert document(nights.results["nothing"])["days"] == []
    assert [day["state"] for day in nights.noted["end"]["days"]] == ["held", "promoted", "promoted"]
    assert nights.noted["end"]["waiting"] == []


@pytest.mark.ray
def test_status_is_a_table_of_days_and_one_of_steps(nights: Nights) -> None:
    shown, report = nights.noted["shown"], nights.report("second")
    lines = shown[shown.index("in use: ") :].splitlines()
    assert lines[:3] == [
        f"in use: {nights.report('third waived')['candidate']} (releases)",
        "running: no",
        "waiting: no day",
    ]
    [second] = [line for line in lines if f"│ {SECOND} │" in line]
    change = report["accuracy"]["change"]
    parts = ("promoted", f"{report['data']['events']:,}", f"{change['mean']:+.1%} (", report["candidate"])
    assert all(part in second for part in parts)
    steps = lines[next(number for number, line in enumerate(lines) if line == f"Steps of {THIRD}") :]
    assert [line.split()[1] for line in steps if "│ done" in line] == list(PLACES)


@pytest.mark.ray
def test_every_verdict_is_told_to_who_asked(nights: Nights) -> None:
    told = [json.loads(line) for line in (nights.folder / "told.jsonl").read_text().splitlines() if line]
    assert [(report["day"], report["outcome"]) for report in told] == [
        (FIRST, "promoted"),
        *[(SECOND, "held")] * 4,
        *[(SECOND, "promoted")] * 2,
        *[(THIRD, "held")] * 2,
        (THIRD, "promoted"),
    ]


@pytest.mark.ray
def test_a_promoted_release_is_deployed_and_an_endpoint_that_is_not_there_leaves_it_in_the_registry(
    ray_session: None, tmp_path: Path
) -> None:
    import ray.serve

    dataset = write_dataset(tmp_path / "dataset")
    registry, day = Registry(tmp_path / "registry"), Day(tmp_path / FIRST)

    def release(seed: int, place: Path) -> dict[str, Any]:
        artifact = write_artifact(tmp_path / f"artifact-{seed}", dataset, seed=seed)
        return build_release(str(artifact.directory), str(place), {}, dataset=str(dataset.directory))

    before = registry.add(Path(release(0, tmp_path / "release")["release"]))
    candidate = day.take("index", {}, lambda: release(1, day.place("index")))["release_id"]
    address = ray.get_runtime_context().gcs_address
    told = {"dir": str(tmp_path), "log": "{day}", "registry": str(registry.directory), "deploy": address}
    recipe = {"serve": {"port": free_port(), "histories": None, "updates": None}}
    in_use = InUse(before, str(registry.resolve(before)), None)
    task = Task(recipe, PipelineSettings.model_validate(told), day, [], "", None, in_use)
    with pytest.raises(EndpointError, match=rf"{candidate}: not deployed at .* \(exit code .*: error: no application"):
        promote(task)
    assert registry.resolve("latest").name == candidate
    assert day.step("promote")["state"] == "failed"
    try:
        url = serve(str(registry.resolve(before)), recipe, blocking=False)["url"]
        assert promote(task) == {"release_id": candidate, "deployed": True, "removed": []}
        assert httpx.get(f"{url}/readyz", timeout=60).json()["release"] == candidate
    finally:
        ray.serve.shutdown()
    assert (registry.resolve("current").name, registry.resolve("previous").name) == (candidate, before)
