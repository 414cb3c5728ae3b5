"""`farsight dashboards grafana` and `prometheus`: the files, from what is described beside."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.dashboards.grafana import dashboard_json
from cluster.dashboards.prometheus import (
    DISCOVERY_FILE,
    RULES_FILE,
    SCRAPE_SECONDS,
    configuration,
    pod_monitor,
    prometheus_rule,
)
from cluster.dashboards.rules import all_alerts, rules_yaml
from cluster.dashboards.serving import SERVING
from cluster.dashboards.settings import AlertSettings
from cluster.dashboards.training import TRAINING
from data.settings import Recipe, read_section

DASHBOARDS = (SERVING, TRAINING)


def grafana(out: str, prometheus: str) -> dict[str, Any]:
    """Write the dashboards, and what lets Grafana find them and Prometheus when it starts.

    Args:
        out: directory; files of these names there are replaced.
        prometheus: address of Prometheus, as Grafana reaches it.

    Returns:
        The files, and the number of panels.
    """
    place = Path(out)
    files = {
        f"dashboards/{dashboard.uid}.json": json.dumps(dashboard_json(dashboard), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }
    source = {
        "name": "Prometheus",
        "uid": "farsight-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus,
        "isDefault": True,
        "jsonData": {"timeInterval": f"{SCRAPE_SECONDS}s", "httpMethod": "POST"},
    }
    provider = {
        "name": "farsight",
        "folder": "Farsight",
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": str((place / "dashboards").absolute())},
    }
    files["provisioning/datasources/farsight.yaml"] = _yaml({"apiVersion": 1, "datasources": [source]})
    files["provisioning/dashboards/farsight.yaml"] = _yaml({"apiVersion": 1, "providers": [provider]})
    panels = sum(len(dashboard.panels) for dashboard in DASHBOARDS)
    return {"files": _written(place, files), "panels": panels}


def prometheus(
    out: str,
    recipe: Recipe,
    *,
    cluster: str,
    discovery: str | None,
    targets: Sequence[str],
    alertmanagers: Sequence[str],
    haproxy: bool,
    namespace: str,
) -> dict[str, Any]:
    """Write Prometheus's configuration and alert rules, and both as objects of its operator on Kubernetes.

    Args:
        out: directory; files of these names there are replaced.
        recipe: section `alerts` is read.
        discovery, targets: see `cluster.dashboards.prometheus.configuration`.
        namespace: of the objects on Kubernetes.

    Returns:
        The files, and the number of alerts.

    Raises:
        RecipeError: wrong settings.
    """
    settings = read_section(recipe, "alerts", AlertSettings)
    config = configuration(
        cluster=cluster,
        discovery=discovery or DISCOVERY_FILE,
        targets=targets,
        alertmanagers=alertmanagers,
        haproxy=haproxy,
    )
    files = {
        "prometheus.yml": _yaml(config),
        RULES_FILE: _yaml(rules_yaml(settings)),
        "kubernetes/podmonitor.yaml": _yaml(pod_monitor(namespace)),
        "kubernetes/prometheusrule.yaml": _yaml(prometheus_rule(namespace, settings)),
    }
    return {"files": _written(Path(out), files), "alerts": len(all_alerts(settings))}


class _Whole(yaml.SafeDumper):
    """Writes what stands twice twice, and not as a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Whole, sort_keys=False, width=110)


def _written(place: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [str(place / name) for name in files]
