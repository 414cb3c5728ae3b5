"""Alert rules: each has a page to go to, and fires on what it is for and on nothing else."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.dashboards.prometheus import configuration
from cluster.dashboards.rules import all_alerts, rules_yaml
from cluster.dashboards.settings import AlertSettings
from tests.promql import selected

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = AlertSettings(checkpoint_minutes=30)
ALERTS = all_alerts(SETTINGS)
DAY = 86_400
HERE = 'cluster="c", application="farsight"'
REPLICA = f'{HERE}, deployment="endpoint", replica="r1"'
RUN = 'cluster="c", run="demo/train", run_id="1"'
TOLD = f'ray_farsight_alerts_total{{{RUN}, step="pipeline", title="The gate held a release back"}}'
ERRORED = 'ray_train_controller_state{cluster="c", ray_train_run_id="x", ray_train_controller_state="ERRORED"}'
MINUTES = 120
# A counter of a process that began to count after ten minutes.
LATE = f"_x10 1x{MINUTES}"

Series = dict[str, str]


def edge(status: int) -> str:
    return f'ray_serve_num_http_requests_total{{{HERE}, status_code="{status}"}}'


def bucket(le: str) -> str:
    return f'ray_farsight_request_seconds_bucket{{{REPLICA}, path="/v1/retrieve", le="{le}"}}'


def held(value: float) -> str:
    """A gauge, as promtool writes it."""
    return f"{value}x{MINUTES}"


def growing(per_minute: float) -> str:
    return f"0+{per_minute}x{MINUTES}"


# An endpoint and a run with nothing the matter; time begins at 0.
WELL: Series = {
    edge(200): growing(6_000),
    edge(503): growing(60),
    bucket("0.1"): growing(5_990),
    bucket("2.0"): growing(6_000),
    bucket("+Inf"): growing(6_000),
    f"ray_farsight_deadline_seconds{{{REPLICA}}}": held(2),
    f"ray_farsight_answers_total{{{REPLICA}}}": growing(6_000),
    f'ray_farsight_fallbacks_total{{{REPLICA}, fallback="popularity"}}': growing(600),
    f"ray_farsight_items_wanted_total{{{REPLICA}}}": growing(60_000),
    f"ray_farsight_items_answered_total{{{REPLICA}}}": growing(59_900),
    f"ray_farsight_history_events_total{{{REPLICA}}}": growing(60_000),
    f"ray_farsight_unknown_items_total{{{REPLICA}}}": growing(1_200),
    f'ray_farsight_release{{{REPLICA}, release="aa"}}': held(1),
    f'ray_farsight_release_built_timestamp_seconds{{{REPLICA}, release="aa"}}': held(0),
    f'ray_farsight_release_unknown_ratio{{{REPLICA}, release="aa"}}': held(0.02),
    f"ray_farsight_updates_version{{{REPLICA}}}": held(1_700_000_000_000),
    **{f'ray_farsight_top_scores_total{{{REPLICA}, tenth="{tenth}"}}': growing(100) for tenth in range(10)},
    f"ray_serve_application_status{{{HERE}}}": held(6),
    f'ray_serve_deployment_status{{{HERE}, deployment="endpoint"}}': held(6),
    f"ray_serve_deployment_replica_healthy{{{REPLICA}}}": held(1),
    'ray_serve_proxy_status{cluster="c", node_id="n1"}': held(2),
    'ray_serve_haproxy_process_count{cluster="c", node_id="n1"}': held(1),
    f'ray_farsight_train_attempts_total{{{RUN}, WorkerId="w1"}}': held(1),
    f"ray_farsight_train_progress_timestamp_seconds{{{RUN}}}": growing(60),
    f"ray_farsight_train_checkpoint_timestamp_seconds{{{RUN}}}": growing(60),
    f"ray_farsight_train_data_wait_ratio{{{RUN}}}": held(0.02),
    'up{cluster="c", job="ray", instance="n1:1"}': held(1),
    'ray_node_mem_used{cluster="c", ip="n1"}': held(5e9),
    'ray_node_mem_total{cluster="c", ip="n1"}': held(1e10),
    'ray_node_disk_utilization_percentage{cluster="c", ip="n1"}': held(40),
}


@dataclass(frozen=True)
class Case:
    """What is otherwise than well, and when the alert must have fired; before `not_before` it must not."""

    name: str
    changed: Series
    at: str
    not_before: str | None = None


def _gone(series: str, after: int) -> Series:
    """A series that ends, as of a process that dies."""
    value = WELL[series].split("x")[0]
    return {series: f"{value}x{after} stale"}


RELEASE, READY = (
    next(name for name in WELL if name.startswith(start))
    for start in ("ray_farsight_release{", "ray_serve_deployment_replica_healthy")
)
CASES = [
    Case("FarsightErrors", {edge(500): growing(120)}, "10m", "4m"),
    Case("FarsightRefusals", {edge(503): growing(900)}, "10m", "4m"),
    Case("FarsightRefusals", {edge(429): growing(900)}, "10m", "4m"),
    Case("FarsightDeadlinesMissed", {edge(504): growing(120)}, "10m", "4m"),
    Case("FarsightSlow", {bucket("0.1"): growing(3_000)}, "20m", "9m"),
    Case(
        "FarsightFallbacks",
        {f'ray_farsight_fallbacks_total{{{REPLICA}, fallback="popularity"}}': growing(3_000)},
        "40m",
        "14m",
    ),
    Case("FarsightShortAnswers", {f"ray_farsight_items_answered_total{{{REPLICA}}}": growing(50_000)}, "60m", "29m"),
    Case("FarsightUnknownItems", {f"ray_farsight_unknown_items_total{{{REPLICA}}}": growing(6_000)}, "40m", "29m"),
    Case(
        "FarsightScoreDrift",
        {f'ray_farsight_top_scores_total{{{REPLICA}, tenth="{tenth}"}}': growing(400) for tenth in (0, 1)},
        "70m",
        "59m",
    ),
    Case(  # nothing in the two highest tenths, which then have no series
        "FarsightScoreDrift",
        {f'ray_farsight_top_scores_total{{{REPLICA}, tenth="{tenth}"}}': f"_x{MINUTES}" for tenth in (8, 9)},
        "70m",
        "59m",
    ),
    Case("FarsightReleaseMixture", {RELEASE.replace("r1", "r2").replace("aa", "bb"): held(1)}, "40m", "29m"),
    Case(
        "FarsightReleaseOld",
        {f'ray_farsight_release_built_timestamp_seconds{{{REPLICA}, release="aa"}}': held(-8 * DAY)},
        "70m",
        "59m",
    ),
    Case(
        "FarsightUpdatesBehind",
        {f"ray_farsight_updates_version{{{REPLICA.replace('r1', 'r2')}}}": held(1_600_000_000_000)},
        "7m",
        "4m",
    ),
    Case("FarsightNoReadyReplica", _gone(READY, after=10), "20m", "10m"),
    Case("FarsightNoReadyReplica", {READY: held(0)}, "5m"),
    Case("FarsightEndpointGone", _gone(RELEASE, after=10), "20m", "11m"),
    Case("FarsightDeployment", {f'ray_serve_deployment_status{{{HERE}, deployment="endpoint"}}': held(1)}, "7m", "4m"),
    Case("FarsightProxyDown", {'ray_serve_proxy_status{cluster="c", node_id="n1"}': held(3)}, "4m", "1m"),
    Case("FarsightProxyDown", {'ray_serve_haproxy_process_count{cluster="c", node_id="n1"}': held(0)}, "4m", "1m"),
    Case(
        "FarsightTrainingNotFinite",
        {f"ray_farsight_train_not_finite_total{{{RUN}}}": LATE},
        "15m",
        "9m",
    ),
    Case(
        "FarsightTrainingFailed",
        {ERRORED: "_x5 1 stale"},
        "10m",
        "4m",
    ),
    Case(
        "FarsightTrainingRestarts",
        {
            f'ray_farsight_train_attempts_total{{{RUN}, WorkerId="w{number}"}}': f"_x{10 * number} 1x{MINUTES}"
            for number in (2, 3, 4)
        },
        "35m",
        "29m",
    ),
    Case("FarsightTrainingStalled", {f"ray_farsight_train_progress_timestamp_seconds{{{RUN}}}": held(0)}, "20m", "15m"),
    Case("FarsightTrainingWaits", {f"ray_farsight_train_data_wait_ratio{{{RUN}}}": held(0.5)}, "20m", "14m"),
    Case("FarsightCheckpointOld", {f"ray_farsight_train_checkpoint_timestamp_seconds{{{RUN}}}": held(0)}, "40m", "30m"),
    Case(
        "FarsightRunAlert",
        {TOLD: LATE},
        "15m",
        "9m",
    ),
    Case("FarsightNodeUnseen", {'up{cluster="c", job="ray", instance="n1:1"}': held(0)}, "5m", "2m"),
    Case("FarsightNodeMemory", {'ray_node_mem_used{cluster="c", ip="n1"}': held(9.5e9)}, "15m", "9m"),
    Case("FarsightNodeDisk", {'ray_node_disk_utilization_percentage{cluster="c", ip="n1"}': held(95)}, "15m", "9m"),
]


def test_every_rule_has_what_a_person_needs_and_a_section_of_the_runbook() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    sections = re.findall(r"^### (Farsight\w+)$", page, re.MULTILINE)
    assert sections == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        rule = alert.rule(SETTINGS.runbook)
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith((".", "}}"))
        assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{alert.name.lower()}"
        # A label that a summary names is one that the expression leaves.
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert named <= set().union(*selected(alert.expr).values()) | {"instance"}, alert.name


def test_every_alert_has_a_case_that_fires_it() -> None:
    assert {case.name for case in CASES} == {alert.name for alert in ALERTS}


def test_rule_files_are_plain_yaml_in_three_groups() -> None:
    groups = yaml.safe_load(yaml.safe_dump(rules_yaml(SETTINGS)))["groups"]
    assert [group["name"] for group in groups] == ["farsight-serving", "farsight-training", "farsight-nodes"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    assert len(set(names)) == len(names) == len(ALERTS)


@pytest.fixture
def promtool(tmp_path: Path) -> Any:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")

    def run(*words: str) -> None:
        ran = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    (tmp_path / "farsight-rules.yml").write_text(yaml.safe_dump(rules_yaml(SETTINGS)))
    return run


def test_promtool_takes_the_rules_and_the_configuration(promtool: Any, tmp_path: Path) -> None:
    promtool("check", "rules", "farsight-rules.yml")
    config = configuration(cluster="c", discovery="nodes.json", targets=(), alertmanagers=("a:9093",), haproxy=True)
    (tmp_path / "nodes.json").write_text('[{"labels": {"job": "ray"}, "targets": ["10.0.0.1:9000"]}]')
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_on_its_cause_after_its_time_and_no_other_does(promtool: Any, tmp_path: Path) -> None:
    well = {"series": WELL, "firing": [("100m", None)]}
    worlds = [well]
    for case in CASES:
        firing: list[tuple[str, str | None]] = [(case.at, case.name)]
        if case.not_before is not None:
            firing.insert(0, (case.not_before, None))
        worlds.append({"series": {**WELL, **case.changed}, "firing": firing})
    (tmp_path / "tests.yml").write_text(
        yaml.safe_dump({"rule_files": ["farsight-rules.yml"], "tests": [_world(**world) for world in worlds]})
    )
    promtool("test", "rules", "tests.yml")


def _world(series: Series, firing: list[tuple[str, str | None]]) -> dict[str, Any]:
    """A test of promtool: series by the minute, and the alerts that fire at some moments."""
    asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": asked,
                "eval_time": moment,
                "exp_samples": [] if name is None else [{"labels": f'{{alertname="{name}"}}', "value": 1}],
            }
            for moment, name in firing
        ],
    }
