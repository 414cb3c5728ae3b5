"""The commands of the nightly pipeline."""

import click

from cluster import floors
from cluster.command_line import command, recipe_of, recipe_words, show
from data.errors import HeldBack


@click.group()
def pipeline() -> None:
    """The nightly pipeline: new day's log -> candidate -> gate -> release; with status and --json.

    Example: farsight pipeline run nightly
    """


@pipeline.command()
@recipe_words
@click.option("--day", metavar="YYYY-MM-DD", help="This day only; by default all whose logs wait, oldest first.")
@click.option(
    "--log", "logs", multiple=True, metavar="PLACE", help="Log of that day instead of pipeline.log; repeat it."
)
@click.option("--again", is_flag=True, help="Forget first what was done of that day.")
@command
def run(words: tuple[str, ...], day: str | None, logs: tuple[str, ...], again: bool) -> None:
    """Take new days from their logs to a release in use, or hold them back.

    Per day: ingest behind the days before, check the data, train on from the release in use, evaluate both on the day,
    build the index, judge, promote. What is done is not done again, so an interrupted run goes on with the same
    command. Exit code 8: a day was held back, and the release in use stays.

    Example: farsight pipeline run nightly --day 2026-01-02
    """
    # Here and not above: the modules behind it take longer to load than all the rest of `farsight --help`.
    from cluster.pipeline.status import print_run

    result = floors.start(floors.PIPELINE_RUN, recipe=recipe_of(words, required=True), day=day, logs=logs, again=again)
    show(result, print_run)
    if result["held"]:
        raise HeldBack(
            f"held back: {', '.join(result['held'])}; the release in use stays (farsight pipeline status says why)"
        )


@pipeline.command()
@recipe_words
@click.option("--newest", type=click.IntRange(min=1), default=10, show_default=True, help="Days listed at most.")
@command
def status(words: tuple[str, ...], newest: int) -> None:
    """Show the days, where each stands, what is in use, and what waits.

    Example: farsight pipeline status nightly
    """
    from cluster.pipeline.status import print_status

    show(floors.start(floors.PIPELINE_STATUS, recipe=recipe_of(words, required=True), newest=newest), print_status)
