"""The commands that write dashboards and alert rules."""

from typing import Any

import click

from cluster import floors
from cluster.command_line import command, recipe_of, recipe_words, show
from cluster.tables import print_panels


@click.group()
def dashboards() -> None:
    """Write dashboards and alert rules for what runs. Each command takes --json.

    Example: farsight dashboards grafana --out monitoring/grafana
    """


@dashboards.command()
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Directory to write.")
@click.option(
    "--prometheus", default="http://127.0.0.1:9090", show_default=True, help="Prometheus, as Grafana reaches it."
)
@command
def grafana(**chosen: Any) -> dict[str, Any]:
    """Write Grafana's dashboards of serving and training, and the files by which it finds them and Prometheus.

    Example: farsight dashboards grafana --out monitoring/grafana
    """
    return floors.start(floors.GRAFANA, **chosen)


@dashboards.command()
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Directory to write.")
@click.option("--cluster", default="farsight", show_default=True, help="Name of the cluster, a label of all series.")
@click.option("--discovery", type=click.Path(), help="Ray's file of its nodes; where Ray's head writes it by default.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="HOST:PORT",
    help="A node's metrics, in place of that file; repeat it.",
)
@click.option("--alertmanager", "alertmanagers", multiple=True, metavar="HOST:PORT", help="Where alerts go; repeat it.")
@click.option("--haproxy", is_flag=True, help="Read HAProxy's own metrics on every node, too.")
@click.option("--namespace", default="farsight", show_default=True, help="Of the objects for Kubernetes.")
@recipe_words
@command
def prometheus(words: tuple[str, ...], **chosen: Any) -> dict[str, Any]:
    """Write Prometheus's configuration and alert rules, and both for its operator on Kubernetes.

    Thresholds are the section `alerts` of a RECIPE.

    Example: farsight dashboards prometheus --out monitoring/prometheus alerts.release_days=2
    """
    return floors.start(floors.PROMETHEUS, recipe=recipe_of(words), **chosen)


@dashboards.command()
@click.argument("prometheus", default="http://127.0.0.1:9090")
@command
def check(prometheus: str) -> None:
    """Ask a running PROMETHEUS for every panel, and list those that it has no data for.

    Example: farsight dashboards check http://127.0.0.1:9090
    """
    show(floors.start(floors.CHECK_DASHBOARDS, prometheus=prometheus), print_panels)


@dashboards.command()
@click.option("--out", type=click.Path(), help="File for the definition; offline runs/wandb_workspace.json by default.")
@recipe_words
@command
def wandb(words: tuple[str, ...], out: str | None) -> dict[str, Any]:
    """Create the page of a project's runs in W&B; offline, write its definition to a file.

    Example: farsight dashboards wandb demo tracking.wandb.mode=online tracking.wandb.entity=my-team
    """
    return floors.start(floors.WANDB_WORKSPACE, recipe=recipe_of(words), out=out)
