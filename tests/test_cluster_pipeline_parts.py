"""The parts of the nightly pipeline that need no training: judgement, state of a day, places, reports, commands."""

import datetime
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cluster import floors
from cluster.cli import cli
from cluster.pipeline.judge import at_least, at_most, judge_candidate, judge_data, passed, relative, why
from cluster.pipeline.notice import alert, announce
from cluster.pipeline.report import page
from cluster.pipeline.run import waiting
from cluster.pipeline.settings import ChecksSettings, GateSettings, PipelineSettings
from cluster.pipeline.state import PLACES, Day, alone, as_date, days, running
from cluster.pipeline.steps import Base, InUse, Task, ingest_section
from data.errors import DatasetError, LogError, MachineError, RecipeError

ROOT = Path(__file__).resolve().parents[1]
NIGHT = "2026-01-05"
METRIC = "ndcg@10"
COUNTS = {"events": 900, "rows_read": 1000, "quarantined": 5, "duplicates": 20, "silence_hours": 0.1}
BEFORE = [{"events": 1000, "accuracy": 0.2}, {"events": 1200, "accuracy": 0.1}, {"events": 800, "accuracy": None}]
MEASURED = {
    "cold_share": 0.1,
    "rows": {"popularity": {METRIC: 0.05, "coverage@10": 0.1}, "model": {METRIC: 0.12, "coverage@10": 0.5}},
}
CHANGE = {"mean": -0.01, "low": -0.04, "high": 0.02, "p_value": 0.4, "users": 500}
EVALUATED = {"rows": {"model": {METRIC: 0.119, "coverage@10": 0.45}}, "change": CHANGE}
INDEX: dict[str, Any] = {"recall": 0.97, "recall_k": 100, "golden": None, "requests": 8, "overlap": 0.6}


def judged(**changes: Any) -> list[str]:
    """Names of the failed checks of a day's data."""
    return [
        check.name
        for check in judge_data({**COUNTS, **changes}, MEASURED, BEFORE, ChecksSettings(), METRIC)
        if check.passed is False
    ]


def gate(measured: Any = MEASURED, evaluated: Any = EVALUATED, index: Any = INDEX, **settings: Any) -> list[str]:
    """Names of the failed checks of a candidate."""
    checks = judge_candidate(measured, evaluated, index, GateSettings(**settings), METRIC)
    return [check.name for check in checks if check.passed is False]


# -- judgement


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"events": 500}, []),  # half of the median of 1000, 1200 and 800
        ({"events": 499}, ["events"]),
        ({"events": 0}, ["events"]),
        ({"events": 3001}, ["surplus"]),
        ({"silence_hours": 8.1}, ["silence"]),
        ({"quarantined": 11}, ["quarantined"]),
        ({"duplicates": 101}, ["duplicates"]),
        ({"rows_read": 0, "quarantined": 0, "duplicates": 0, "events": 0}, ["events"]),
    ],
)
def test_the_data_of_a_day_are_judged_beside_the_days_before(changes: dict[str, int], failed: list[str]) -> None:
    assert judged(**changes) == failed


def test_a_day_whose_items_the_release_in_use_does_not_recognise_is_suspected() -> None:
    def checks(accuracy: float, cold: float = 0.1) -> list[str]:
        measured = {"cold_share": cold, "rows": {"model": {METRIC: accuracy}}}
        found = judge_data(COUNTS, measured, BEFORE, ChecksSettings(), METRIC)
        return [check.name for check in found if check.passed is False]

    assert checks(0.091) == []  # 0.6 of the median of 0.2 and 0.1
    assert checks(0.089) == ["recognised"]
    assert checks(0.12, cold=0.51) == ["cold"]


def test_what_there_is_nothing_to_compare_with_is_not_judged() -> None:
    checks = judge_data(COUNTS, {"cold_share": None}, [], ChecksSettings(), METRIC)
    assert {check.name for check in checks if check.passed is None} == {"surplus", "cold", "recognised"}
    assert passed(checks)
    first = {"rows": {"popularity": MEASURED["rows"]["popularity"]}}  # type: ignore[index]
    assert gate(first, {**EVALUATED, "change": None}, {**INDEX, "overlap": None}) == []
    assert gate(first, {"rows": {"model": {METRIC: 0.05, "coverage@10": 0.4}}, "change": None}) == ["popularity"]


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({}, []),
        ({"max_accuracy_drop": 0.03}, ["accuracy"]),  # the interval goes down to 0.04
        ({"max_accuracy_drop": 0.03, "judged_by": "mean"}, []),
        ({"max_accuracy_drop": 0.0, "judged_by": "mean"}, ["accuracy"]),
        ({"min_coverage_share": 0.9}, []),
        ({"min_coverage_share": 0.91}, ["coverage"]),
        ({"min_recall": 0.98}, ["recall"]),
        ({"min_overlap": 0.6}, []),
        ({"min_overlap": 0.61}, ["overlap"]),
    ],
)
def test_a_candidate_is_judged_beside_the_release_in_use(settings: dict[str, Any], failed: list[str]) -> None:
    assert gate(**settings) == failed


def test_a_candidate_must_beat_popularity_and_answer_its_golden_requests() -> None:
    worse = {**EVALUATED, "rows": {"model": {METRIC: 0.05, "coverage@10": 0.45}}}
    assert gate(evaluated=worse) == ["popularity"]
    assert gate(evaluated=worse, above_popularity=False) == []
    checks = judge_candidate(MEASURED, EVALUATED, {**INDEX, "golden": "request 3: x"}, GateSettings(), METRIC)
    assert why(checks) == ["golden: request 3: x"]


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_reason_says_what_was_found_and_what_was_expected(found: float, limit: float) -> None:
    least, most = at_least("x", found, limit, "share"), at_most("y", found, limit, "share")
    assert least.passed is (found >= limit)
    assert most.passed is (found <= limit)
    assert why([least]) == ([] if found >= limit else [f"x: found {found:.4g}, expected at least {limit:.4g} (share)"])
    assert why([most]) == ([] if found <= limit else [f"y: found {found:.4g}, expected at most {limit:.4g} (share)"])


def test_a_change_is_a_share_of_what_was_there() -> None:
    comparison = {"difference": -0.01, "low": -0.02, "high": 0.01, "p_value": 0.3, "users": 9}
    assert relative(comparison, 0.2) == pytest.approx(
        {"mean": -0.05, "low": -0.1, "high": 0.05, "p_value": 0.3, "users": 9}
    )
    assert relative(comparison, 0.0) is None


# -- what stands of a day


def test_a_step_is_done_once_for_the_same_inputs_and_again_for_others(tmp_path: Path) -> None:
    day, done = Day(tmp_path / NIGHT), []

    def work() -> dict[str, Any]:
        done.append(len(done))
        day.place("ingest").mkdir()
        return {"number": len(done)}

    assert day.take("ingest", {"a": 1}, work) == day.take("ingest", {"a": 1}, work) == {"number": 1}
    named = day.made_from("ingest")
    assert day.take("ingest", {"a": 2}, work) == {"number": 2}
    assert day.made_from("ingest") != named
    assert done == [0, 1]


def test_a_step_that_failed_says_why_and_is_tried_again(tmp_path: Path) -> None:
    day = Day(tmp_path / NIGHT)

    def fail() -> dict[str, Any]:
        raise DatasetError("no such thing")

    with pytest.raises(DatasetError):
        day.take("check", {}, fail)
    assert (day.step("check")["state"], day.step("check")["error"]) == ("failed", "no such thing")
    assert day.result("check") == {}
    assert day.take("check", {}, lambda: {"fine": True}) == day.result("check") == {"fine": True}


@pytest.mark.parametrize(("name", "kept"), [("train", True), ("evaluate", False)])
def test_only_training_goes_on_with_what_an_interrupted_attempt_left(tmp_path: Path, name: str, kept: bool) -> None:
    day = Day(tmp_path / NIGHT)
    found = []

    def interrupted() -> dict[str, Any]:
        day.place(name).mkdir()
        (day.folder / f".{PLACES[name]}.0123abcd.partial").mkdir()
        (day.folder / "report.json").write_text("{}")
        raise KeyboardInterrupt

    def work() -> dict[str, Any]:
        found.extend(sorted(path.name for path in day.folder.iterdir()))
        return {}

    with pytest.raises(KeyboardInterrupt):
        day.take(name, {"epochs": 2}, interrupted)
    assert day.step(name)["state"] == "begun"
    day.take(name, {"epochs": 2}, work)
    assert found == (["steps", PLACES[name]] if kept else ["steps"])
    day.place(name).mkdir(exist_ok=True)
    found.clear()
    day.take(name, {"epochs": 3}, work)  # another training does not go on with it
    assert found == ["steps"]


def test_days_are_dates_in_order_and_a_tidied_one_keeps_its_report(tmp_path: Path) -> None:
    for name in ("2026-01-02", "2025-12-31", "2026-13-01", "report", "2026-01-2x"):
        (tmp_path / name).mkdir()
    assert [day.name for day in days(tmp_path)] == ["2025-12-31", "2026-01-02"]
    day = days(tmp_path)[0]
    day.take("index", {}, lambda: {"release_id": "aa"})
    for place in PLACES.values():
        (day.folder / place).mkdir()
    (day.folder / "report.json").write_text('{"outcome": "held"}')
    day.tidy()
    assert [path.name for path in day.folder.iterdir()] == ["report.json"]
    assert as_date("20260105") is None


def test_one_run_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path; from cluster.pipeline.state import alone\n"
        "with alone(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert running(tmp_path) == f"process {holder.pid} on {socket.gethostname()}"
        with (
            pytest.raises(MachineError, match=f"another run is under way .process {holder.pid} on .*; wait for it"),
            alone(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
    assert (tmp_path / "running.json").exists()
    assert running(tmp_path) is None
    with alone(tmp_path):
        assert running(tmp_path) is not None
    assert running(tmp_path) is None


# -- places


def settings(**changes: Any) -> PipelineSettings:
    return PipelineSettings(**{"dir": "p", "log": "logs/{day}", "registry": "r", **changes})


def task(tmp_path: Path, recipe: dict[str, Any], logs: list[str], base: Base | None = None) -> Task:
    return Task(
        recipe, settings(validation_hours=12), Day(tmp_path / NIGHT), logs, "d", base, InUse("aa", "r/aa", None)
    )


def test_the_day_is_what_is_tested_and_the_rest_of_ingest_is_the_recipes(tmp_path: Path) -> None:
    recipe = {"ingest": {"log": "x", "out": "y", "columns": {"item_id": "track"}, "items_from": "z", "replace": False}}
    midnight = int(datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC).timestamp())
    section = ingest_section(task(tmp_path, recipe, ["logs/5"], Base("2026-01-04", "p/2026-01-04/dataset", "h", {})))
    assert section == {
        "log": "logs/5",
        "out": None,
        "columns": {"item_id": "track"},
        "replace": True,
        "extends": "p/2026-01-04/dataset",
        "items_from": None,
        "split": {"kind": "time", "validation_start": midnight - 12 * 3600, "test_start": midnight},
    }
    assert ingest_section(task(tmp_path, recipe, ["logs/5"]))["items_from"] == "z"


def test_of_several_logs_the_catalogue_is_that_of_the_day(tmp_path: Path) -> None:
    for name in ("4", "5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "catalogue.parquet").touch()
    logs = [str(tmp_path / name) for name in ("4", "5")]
    assert ingest_section(task(tmp_path, {}, logs))["catalogue"] == str(tmp_path / "5" / "catalogue.parquet")
    stated = {"ingest": {"catalogue": "items.csv"}}
    assert ingest_section(task(tmp_path, stated, logs))["catalogue"] == "items.csv"


def test_days_that_wait_have_a_complete_log_and_are_later_than_the_newest_that_went_in(tmp_path: Path) -> None:
    for name in ("2026-01-03", "2026-01-04", "2026-01-05", "2026-01-06", "2026-01-07"):
        (tmp_path / "logs" / f"day={name}").mkdir(parents=True)
        if name != "2026-01-07":
            (tmp_path / "logs" / f"day={name}" / "_SUCCESS").touch()
    log, marker = (str(tmp_path / "logs" / "day={day}" / rest) for rest in ("*.parquet", "_SUCCESS"))
    told = settings(dir=str(tmp_path / "p"), log=log, marker=marker)
    assert waiting(told) == ["2026-01-03", "2026-01-04", "2026-01-05", "2026-01-06"]
    for name, held_by in (("2026-01-04", None), ("2026-01-05", "data")):
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "p" / name / "report.json").write_text(json.dumps({"held_by": held_by}))
    assert waiting(told) == ["2026-01-06"]
    assert waiting(settings(dir=str(tmp_path / "p"), log=str(tmp_path / "nowhere" / "{day}"))) == []
    with pytest.raises(RecipeError, match=r"expected no wildcard before \{day\}"):
        waiting(settings(log=str(tmp_path / "*" / "{day}")))


def test_a_changed_log_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\nu,i\n")

    def state() -> Any:
        return floors.start(floors.LOG_STATE, locations=[str(tmp_path)])["digest"]

    before = state()
    assert state() == before
    (tmp_path / "b.csv").write_text("user_id,item_id\n")
    assert state() != before
    (tmp_path / "b.csv").unlink()
    (tmp_path / "a.csv").write_text("user_id,item_id\nu,j\n")  # as long as before
    assert state() != before
    with pytest.raises(LogError, match="no such file or directory"):
        floors.start(floors.LOG_STATE, locations=[str(tmp_path / "none")])


# -- reports and who is told


def report(**changes: Any) -> dict[str, Any]:
    checks = judge_candidate(MEASURED, EVALUATED, INDEX, GateSettings(), METRIC)
    return {
        "day": NIGHT,
        "outcome": "promoted",
        "held_by": None,
        "why": [],
        "checks": [check.as_dict() for check in checks],
        "in_use": "aa11",
        "candidate": "bb22",
        "release": "p/release",
        "registry": "releases",
        "deployed": True,
        "data": {"events": 900, "users": 500, "new_items": None},
        "metric": METRIC,
        "accuracy": {"candidate": 0.119, "in_use": 0.12, "popularity": 0.05, "change": CHANGE},
        "coverage": {"candidate": 0.45, "in_use": 0.5},
        "steps": {name: {"seconds": 2.5 if name == "train" else None} for name in PLACES},
        **changes,
    }


def test_the_page_of_a_day_says_what_was_decided_and_what_to_do() -> None:
    text = page(report())
    assert text.startswith(f"# {NIGHT}: promoted\n\nRelease bb22 follows aa11; it was deployed.\n")
    assert "| accuracy | yes | -0.0400 | -0.0500 | change of ndcg@10 beside the release in use" in text
    assert "Change: -1.0% (-4.0% to +2.0%), of 500 users." in text
    assert "Steps: train 2.5 s." in text
    held = page(report(outcome="held", held_by="data", why=["events: few"], in_use=None))
    assert "Held back by the checks of the data; in use stays none.\n\n- events: few\n" in held
    assert "run this day again with --day" in held


def test_a_command_is_told_of_the_verdict_and_its_failure_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = report(outcome="held", why=["events: few"])
    announce(held, ["sh", "-c", f"cat > {tmp_path}/told.json"])
    assert json.loads((tmp_path / "told.json").read_text()) == held
    announce(held, ["sh", "-c", "echo broken >&2; exit 3"])
    announce(held, [str(tmp_path / "no such command")])
    assert f"{NIGHT}: held back: events: few" in caplog.text
    assert "pipeline.notify: sh: exit code 3: broken" in caplog.text
    assert "no such command" in caplog.text


def test_a_day_that_is_held_back_is_an_alert_in_the_trackers(tmp_path: Path) -> None:
    recipe = {"tracking": {"to": ["jsonl"], "project": "shop"}}
    alert(report(), recipe, str(tmp_path))
    assert not list(tmp_path.iterdir())
    alert(report(outcome="held", why=["events: few", "silence: long"]), recipe, str(tmp_path))
    [told] = tmp_path.rglob("*.jsonl")
    assert f"{NIGHT}: held back" in told.read_text()
    assert "events: few; silence: long" in told.read_text()


# -- commands


def farsight(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


@pytest.mark.parametrize("name", ["run", "status"])
def test_both_commands_have_help_with_an_example(name: str) -> None:
    result = farsight("pipeline", name, "--help")
    assert result.exit_code == 0
    assert f"Example: farsight pipeline {name} nightly" in result.output
    assert "--json" in result.output


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    section = {"dir": "p", "log": "logs/{day}", "registry": "releases"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"pipeline": section}))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--day", "yesterday"], 2, "--day yesterday: expected a date as YYYY-MM-DD"),
        (["--again"], 2, "--log and --again are about one day; name it with --day YYYY-MM-DD"),
        (["--log", "x"], 2, "--log and --again are about one day"),
        (["--day", NIGHT], 3, f"logs/{NIGHT}: no such file or directory"),
        (["pipeline.gate.max_drop=1"], 2, "pipeline.gate.max_drop: Extra inputs are not permitted"),
        (["pipeline.log=logs"], 2, "expected {day} where the date stands"),
        (["pipeline.dir=null"], 2, "pipeline.dir"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(recipe: Path, words: list[str], code: int, message: str) -> None:
    result = farsight("pipeline", "run", "mine.yaml", *words)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not result.stdout


def test_a_day_that_others_followed_is_given_back_as_it_stands_or_refused(recipe: Path) -> None:
    for name, held_by in (("2026-01-03", "data"), ("2026-01-04", None)):
        (recipe / "p" / name).mkdir(parents=True)
        (recipe / "p" / name / "report.json").write_text(
            json.dumps({**report(held_by=held_by, seconds=1), "day": name})
        )
    (recipe / "p" / "2026-01-02").mkdir()
    again = farsight("pipeline", "run", "mine.yaml", "--day", "2026-01-03", "--json")
    assert json.loads(again.stdout)["days"][0]["day"] == "2026-01-03"
    refused = farsight("pipeline", "run", "mine.yaml", "--day", "2026-01-02")
    assert refused.exit_code == 2
    assert "2026-01-02: 2026-01-04 went in after it, and days go in in order; give this log along" in refused.stderr
    assert "--again" in farsight("pipeline", "run", "--help").output
    # The dataset that the next day extends is gone.
    (recipe / "logs" / NIGHT).mkdir(parents=True)
    (recipe / "logs" / NIGHT / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    lost = farsight("pipeline", "run", "mine.yaml")
    assert lost.exit_code == 3
    assert f"p/2026-01-04/dataset: not a finished dataset, and {NIGHT} extends it; restore it" in lost.stderr


def test_an_empty_pipeline_says_so(recipe: Path) -> None:
    assert farsight("pipeline", "run", "mine.yaml").stdout == "no day waits\n"
    shown = farsight("pipeline", "status", "mine.yaml").stdout
    assert shown.startswith("in use: no release yet (releases)\nrunning: no\nwaiting: no day\n")
