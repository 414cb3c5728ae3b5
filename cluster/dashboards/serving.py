"""The dashboard of an endpoint."""

from cluster.dashboards.answers import ANSWERS, DRIFT, RELEASES, SCALING
from cluster.dashboards.nodes import NODES
from cluster.dashboards.panels import Dashboard, Variable
from cluster.dashboards.promql import INTERVAL
from cluster.dashboards.traffic import BATCHING, EDGE, LATENCY, OVERVIEW, QUEUES, TRAFFIC

SERVING = Dashboard(
    uid="farsight-serving",
    title="Farsight: serving",
    text=f"An endpoint of Farsight. Rates are over {INTERVAL}. Alerts and what to do: docs/monitoring.md.",
    variables=(
        Variable("cluster", "Cluster", "ray_farsight_release{}", "cluster"),
        Variable("application", "Application", 'ray_farsight_release{cluster=~"$cluster"}', "application", "listed"),
        Variable("release", "Release", f"ray_farsight_release{{{EDGE}}}", "release", "listed"),
        Variable("replica", "Replica", f'ray_farsight_release{{{EDGE}, release=~"$release"}}', "replica", "listed"),
    ),
    rows=(OVERVIEW, TRAFFIC, LATENCY, BATCHING, QUEUES, ANSWERS, RELEASES, DRIFT, SCALING, NODES),
)
