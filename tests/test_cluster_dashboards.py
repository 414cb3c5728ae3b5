"""Dashboards: every query parses and reads metrics and labels that exist; Grafana's own types read the JSON."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from click.testing import CliRunner
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanasDashboard

from cluster.cli import cli
from cluster.dashboards.check import check, plain
from cluster.dashboards.grafana import dashboard_json
from cluster.dashboards.panels import Dashboard
from cluster.dashboards.rules import all_alerts
from cluster.dashboards.settings import AlertSettings
from cluster.dashboards.write import DASHBOARDS
from data.errors import EndpointError
from data.metrics import PREFIX, SUFFIXES
from data.tracking.on_prometheus import TRAINING
from serve.metrics import SERVING
from tests.ports import free_port
from tests.promql import selected, selected_by_all

ROOT = Path(__file__).resolve().parents[1]
OURS = {name: metric for metric in (*SERVING, *TRAINING) for name in metric.exported}
ALERTS = all_alerts(AlertSettings())
EXPRESSIONS = [
    *(plain(query.expr) for dashboard in DASHBOARDS for panel in dashboard.panels for query in panel.queries),
    *(plain(variable.metric) for dashboard in DASHBOARDS for variable in dashboard.variables),
    *(alert.expr for alert in ALERTS),
]
# Prometheus's own, and those of HAProxy, which tests/test_serve_haproxy.py has running.
NOT_RAYS = {"ALERTS", "up", "haproxy_backend_current_queue"}
# What a scrape adds, and what Serve adds to the metrics of a replica.
SCRAPED = {"cluster", "instance", "job"}
BY_SERVE = {"application", "deployment", "replica"}


def _in_rays_sources(names: set[str]) -> set[str]:
    """Of these names, those that the installed Ray has in its sources, or its own processes in their code."""
    package = Path(ray.__file__).parent
    places = [package / "serve", package / "train" / "v2", package / "data" / "_internal", package / "dashboard"]
    texts = [file.read_bytes() for place in places for file in place.rglob("*.py")]
    texts += [(package / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()]
    found = set()
    for name in names:
        # Serve makes those of its proxies for HTTP and gRPC alike.
        wanted = re.sub(r"_http_", "_{protocol_name}_", name) if "_http_" in name else name
        if any(wanted.encode() in text for text in texts):
            found.add(name)
    return found


def _base(name: str) -> str:
    """The name that a metric was declared with, without Ray's prefix and what its kind adds."""
    bare = name.removeprefix(PREFIX)
    for suffix in ("_bucket", "_sum", "_count", "_total"):
        if bare.endswith(suffix) and not bare.endswith(("replica_count", "process_count")):
            return bare.removesuffix(suffix)
    return bare


def test_every_query_parses_and_a_panel_says_which_metrics_it_reads() -> None:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            read = {name for query in panel.queries for name in selected(plain(query.expr))}
            assert read == set(panel.metrics), panel.title
    for alert in ALERTS:
        assert set(selected(alert.expr)) == set(alert.metrics), alert.name


def test_every_metric_that_is_read_is_declared_by_us_or_known_to_ray() -> None:
    names = set(selected_by_all(EXPRESSIONS)) - set(OURS) - NOT_RAYS
    assert all(name.startswith(PREFIX) and "farsight" not in name for name in names), names
    bases = {_base(name): name for name in names}
    assert bases.keys() - _in_rays_sources(set(bases)) == set()


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    read = set(selected_by_all(EXPRESSIONS))
    unread = {metric.name for metric in (*SERVING, *TRAINING) if not read & set(metric.exported)}
    assert unread == set()


def test_our_metrics_have_the_labels_by_which_they_are_chosen_and_grouped() -> None:
    for name, labels in selected_by_all(EXPRESSIONS).items():
        if name in OURS:
            metric = OURS[name]
            known = SCRAPED | set(metric.labels) | (BY_SERVE if metric in SERVING else set())
            known |= {"le"} if name.endswith("_bucket") else set()
            assert labels <= known, f"{name}: {labels - known}"


def test_metrics_are_declared_once_with_their_unit_and_what_their_kind_needs() -> None:
    names = [metric.name for metric in (*SERVING, *TRAINING)]
    assert len(set(names)) == len(names)
    for metric in (*SERVING, *TRAINING):
        assert re.fullmatch(r"farsight_[a-z_]+", metric.name)
        assert not metric.name.endswith(tuple(suffix for kind in SUFFIXES.values() for suffix in kind if suffix))
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert not re.search(r"_(ms|minutes|gib|mb|percent|share)$", metric.name), "seconds, bytes, ratios"


def test_the_page_on_monitoring_lists_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert [name for name in {metric.name for metric in OURS.values()} if f"{PREFIX}{name}" not in page] == []


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_grafanas_own_types_read_the_json_and_lose_nothing_of_it(dashboard: Dashboard) -> None:
    plugins.register_default_plugins()
    written = json.loads(json.dumps(dashboard_json(dashboard)))
    read = json.loads(JSONEncoder(sort_keys=True).encode(GrafanasDashboard.from_json(written)))
    assert list(_lost(written, read, dashboard.uid)) == []


def _lost(written: Any, read: Any, place: str) -> Iterator[str]:
    """What stands in one and not so in the other; what the other adds are defaults."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from _lost(value, read[key], f"{place}.{key}") if key in read else [f"{place}.{key}"]
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (ours, theirs) in enumerate(zip(written, read, strict=True)):
            yield from _lost(ours, theirs, f"{place}[{number}]")
    elif written != read:
        yield f"{place}: {written!r} is read as {read!r}"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_have_numbers_and_places_of_their_own(dashboard: Dashboard) -> None:
    outer = dashboard_json(dashboard)["panels"]
    panels = [*outer, *(inner for panel in outer for inner in panel.get("panels", ()))]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", ()))
        # What a panel asks for is chosen at the head of its page, or nothing.
        chosen = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel.get("targets", ()))))
        known = {variable["name"] for variable in dashboard_json(dashboard)["templating"]["list"]}
        assert chosen <= known | {"__rate_interval"}


def test_the_commands_write_what_grafana_and_prometheus_start_with(tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["dashboards", "grafana", "--out", str(tmp_path / "grafana"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["panels"] == sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    for dashboard in DASHBOARDS:
        written = json.loads((tmp_path / "grafana" / "dashboards" / f"{dashboard.uid}.json").read_text())
        assert written == json.loads(json.dumps(dashboard_json(dashboard)))
    provisioned = yaml.safe_load((tmp_path / "grafana" / "provisioning" / "dashboards" / "farsight.yaml").read_text())
    assert Path(provisioned["providers"][0]["options"]["path"]) == tmp_path / "grafana" / "dashboards"
    words = ["--out", str(tmp_path / "p"), "--target", "node-1:9000", "--haproxy", "--alertmanager", "alerts:9093"]
    ran = CliRunner().invoke(cli, ["dashboards", "prometheus", *words, "--json", "alerts.release_days=2"])
    assert ran.exit_code == 0, ran.output
    config = yaml.safe_load((tmp_path / "p" / "prometheus.yml").read_text())
    assert [job["job_name"] for job in config["scrape_configs"]] == ["ray", "haproxy"]
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["node-1:9000"]}]
    rules = yaml.safe_load((tmp_path / "p" / "farsight-rules.yml").read_text())
    objects = [yaml.safe_load(file.read_text()) for file in sorted((tmp_path / "p" / "kubernetes").iterdir())]
    assert [found["kind"] for found in objects] == ["PodMonitor", "PrometheusRule"]
    assert objects[1]["spec"] == rules
    ports = [endpoint["port"] for endpoint in objects[0]["spec"]["podMetricsEndpoints"]]
    assert ports == ["metrics", "as-metrics", "dash-metrics", "haproxy-metrics"]
    assert "> 172800" in json.dumps(rules)
    assert "&id" not in (tmp_path / "p" / "prometheus.yml").read_text()


def test_a_prometheus_that_is_not_there_is_named() -> None:
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1.*no Prometheus answers there .* give its address"):
        check("http://127.0.0.1:1")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes nothing."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    CliRunner().invoke(cli, ["dashboards", "prometheus", "--out", str(tmp_path), "--target", "127.0.0.1:1"])
    port = free_port()
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command) as server:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        try:
            while True:
                try:
                    if httpx.get(f"{url}/-/ready").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < deadline, "Prometheus did not start"
                time.sleep(0.05)
            yield url
        finally:
            server.terminate()


def test_a_real_prometheus_starts_with_the_files_and_takes_every_query(prometheus: str) -> None:
    found = check(prometheus)
    assert found["panels"] == sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    empty = [row["panel"] for row in found["empty"]]
    assert "Alerts" not in empty  # none fire: a number, too
    assert found["with_data"] == found["panels"] - len(empty) == 1
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in groups) == len(ALERTS)
