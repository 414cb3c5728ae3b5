"""What tells Prometheus where to look: its configuration, and the objects of its operator on Kubernetes."""

from collections.abc import Sequence
from typing import Any

from cluster.dashboards.rules import rules_yaml
from cluster.dashboards.settings import AlertSettings

RULES_FILE = "farsight-rules.yml"
SCRAPE_SECONDS = 10
# Where Ray's head writes the addresses of all nodes, its own and the autoscaler's.
DISCOVERY_FILE = "/tmp/ray/prom_metrics_service_discovery.json"
HAPROXY_PORT = 9101
# Labels of Ray's exporter that say the same of every series.
_NOISE = {"action": "labeldrop", "regex": "otel_scope_.*"}


def configuration(
    *, cluster: str, discovery: str, targets: Sequence[str], alertmanagers: Sequence[str], haproxy: bool
) -> dict[str, Any]:
    """`prometheus.yml`.

    Args:
        cluster: the label `cluster` of all series.
        discovery: Ray's service discovery file.
        targets: HOST:PORT of nodes' metrics, in the place of that file.
        alertmanagers: HOST:PORT of each.
        haproxy: read HAProxy's own metrics, too, on every node.
    """
    found: dict[str, Any] = (
        {"static_configs": [{"targets": list(targets)}]}
        if targets
        else {"file_sd_configs": [{"files": [discovery], "refresh_interval": "30s"}]}
    )
    name = {"target_label": "cluster", "replacement": cluster}
    ray = {"job_name": "ray", **found, "relabel_configs": [name], "metric_relabel_configs": [_NOISE]}
    jobs: list[dict[str, Any]] = [ray]
    if haproxy:
        port = {"source_labels": ["__address__"], "regex": r"(.+):\d+", "target_label": "__address__"}
        # Several addresses of a node become one, which Prometheus then reads once.
        other = [
            {**port, "replacement": f"${{1}}:{HAPROXY_PORT}"},
            {"target_label": "job", "replacement": "haproxy"},
            name,
        ]
        jobs.append({"job_name": "haproxy", **found, "relabel_configs": other})
    result: dict[str, Any] = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "30s"},
        "rule_files": [RULES_FILE],
        "scrape_configs": jobs,
    }
    if alertmanagers:
        result["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}
    return result


def pod_monitor(namespace: str) -> dict[str, Any]:
    """For the Prometheus operator: all pods of KubeRay clusters in a namespace, by the names of their ports."""
    component = "__meta_kubernetes_pod_label_app_kubernetes_io_component"
    cluster = [
        {"sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"], "targetLabel": "cluster"},
        # Ours are named by what they are for: an upgrade of a RayService is another RayCluster, and the same endpoint.
        {
            "sourceLabels": ["__meta_kubernetes_namespace", component],
            "regex": "(.+);(.+)",
            "replacement": "${1}/${2}",
            "targetLabel": "cluster",
        },
    ]
    endpoints = [
        {
            "port": port,
            "interval": f"{SCRAPE_SECONDS}s",
            "relabelings": [*cluster, {"targetLabel": "job", "replacement": job}],
            "metricRelabelings": [_NOISE],
        }
        # Not every pod has all of them: the autoscaler and the dashboard run on the head, HAProxy beside replicas.
        for port, job in (
            ("metrics", "ray"),
            ("as-metrics", "ray"),
            ("dash-metrics", "ray"),
            ("haproxy-metrics", "haproxy"),
        )
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "farsight-ray", "namespace": namespace, "labels": {"release": "prometheus"}},
        "spec": {
            "selector": {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]},
            "podMetricsEndpoints": endpoints,
        },
    }


def prometheus_rule(namespace: str, settings: AlertSettings) -> dict[str, Any]:
    """For the Prometheus operator: the alert rules."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "farsight", "namespace": namespace, "labels": {"release": "prometheus"}},
        "spec": rules_yaml(settings),
    }
