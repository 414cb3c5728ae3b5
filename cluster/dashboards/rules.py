"""The alert rules, all together."""

from typing import Any

from cluster.dashboards.alerts import Alert
from cluster.dashboards.serving_alerts import serving
from cluster.dashboards.settings import AlertSettings
from cluster.dashboards.training_alerts import nodes, training


def rules_yaml(settings: AlertSettings) -> dict[str, Any]:
    """The rule file, as a mapping."""
    groups = {"serving": serving(settings), "training": training(settings), "nodes": nodes(settings)}
    return {
        "groups": [
            {"name": f"farsight-{name}", "interval": "30s", "rules": [alert.rule(settings.runbook) for alert in alerts]}
            for name, alerts in groups.items()
        ]
    }


def all_alerts(settings: AlertSettings) -> tuple[Alert, ...]:
    """Every rule."""
    return (*serving(settings), *training(settings), *nodes(settings))
