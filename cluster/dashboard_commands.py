"""The commands that write dashboards and alert rules."""

from typing import Any

import click

from cluster import floors
from cluster.command_line import command, recipe_of, recipe_words


@click.group()
def dashboards() -> None:
    """Write dashboards and alert rules for what runs. Each command takes --json.

    Example: farsight dashboards wandb tracking.wandb.mode=online
    """


@dashboards.command()
@click.option("--out", type=click.Path(), help="File for the definition; offline runs/wandb_workspace.json by default.")
@recipe_words
@command
def wandb(words: tuple[str, ...], out: str | None) -> dict[str, Any]:
    """Create the page of a project's runs in W&B; offline, write its definition to a file.

    Example: farsight dashboards wandb demo tracking.wandb.mode=online tracking.wandb.entity=my-team
    """
    return floors.start(floors.WANDB_WORKSPACE, recipe=recipe_of(words), out=out)
