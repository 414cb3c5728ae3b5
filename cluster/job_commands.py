"""The commands that send work to a Ray cluster and look after it."""

import shlex
from typing import Any

import click

from cluster.command_line import command, recipe_words, show
from cluster.tables import print_jobs

ADDRESS = click.option(
    "--address",
    metavar="URL",
    help="Dashboard of the cluster; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265.",
)
# These run here: they talk to a cluster, or wait for a person.
NOT_AS_A_JOB = ("submit", "jobs")


@click.command()
@ADDRESS
@click.option("--profile", "profile_name", required=True, help="Kind of cluster: a shipped profile, or a YAML file.")
@click.option("--command", "text", default="train", show_default=True, help="Farsight command, with its options.")
@click.option("--storage", metavar="DIR", help="Directory that all nodes share; relative paths start there.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="Pass this variable of your shell; repeat it.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set this variable there; repeat it.")
@click.option("--working-dir", type=click.Path(exists=True, file_okay=False), help="Directory to ship.")
@click.option("--submission-id", metavar="ID", help="Id of the job; one that runs or is done is followed, not started.")
@click.option("--no-wait", is_flag=True, help="Return when the job is handed in.")
@click.option("--dry-run", is_flag=True, help="Print the line and hand in nothing.")
@recipe_words
@command
def submit(**chosen: Any) -> None:
    """Run a farsight command as a job on a Ray cluster, follow its log, and end with its status.

    Profiles that are shipped: laptop, 1xgpu, 8xgpu, 2x8gpu. Printed first is the `ray job submit` line that does the
    same; the value of a --secret stays out of it. An interrupt leaves the job running.

    Example: farsight submit movielens_1m_cpu --address http://head:8265 --profile 8xgpu --storage /mnt/farsight
    """
    from cluster.submit import run

    _refuse(shlex.split(chosen["text"]), chosen["words"])
    as_json = click.get_current_context().params["as_json"]
    line, result, status = run(**chosen, on_line=(lambda line: None) if as_json else click.echo)
    if as_json or not result.get("ended"):
        show({"line": line, **result} if as_json else result)
    click.get_current_context().exit(status)


def _refuse(words: list[str], recipe: tuple[str, ...]) -> None:
    """Refuse what is no farsight command, or takes no recipe where one is given."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    chosen = root.commands.get(words[0]) if words else None
    if chosen is None or chosen.name in NOT_AS_A_JOB:
        known = ", ".join(name for name in root.commands if name not in NOT_AS_A_JOB)
        raise click.UsageError(f"--command {' '.join(words)!r}: expected one of {known}, with its options")
    if recipe and not any(parameter.name == "words" for parameter in chosen.params):
        raise click.UsageError(f"farsight {chosen.name} takes no RECIPE")


@click.group()
def jobs() -> None:
    """List, follow and stop the jobs of a Ray cluster.

    Example: farsight jobs list --address http://head:8265
    """


@jobs.command(name="list")
@ADDRESS
@command
def list_(address: str | None) -> None:
    """List the jobs that the cluster remembers, newest first.

    Example: farsight jobs list --address http://head:8265
    """
    from cluster.jobs import Jobs, dashboard_url

    found = Jobs(dashboard_url(address)).list()
    show({"jobs": found}, print_jobs)


@jobs.command()
@click.argument("submission_id", metavar="ID")
@ADDRESS
@click.option("--follow", is_flag=True, help="Go on until the job ends, and end with its status.")
@command
def logs(submission_id: str, address: str | None, follow: bool) -> None:
    """Print what a job has printed.

    Example: farsight jobs logs raysubmit_2xHTGi3Ftv7WkPbb --follow
    """
    from cluster.jobs import Jobs, dashboard_url
    from cluster.submit import follow_job

    found = Jobs(dashboard_url(address))
    as_json = click.get_current_context().params["as_json"]
    if follow:
        result, status = follow_job(found, submission_id)
        if as_json:
            show(result)
        click.get_current_context().exit(status)
    if as_json:
        show({**found.job(submission_id), "log": found.logs(submission_id)})
    else:
        click.echo(found.logs(submission_id), nl=False)


@jobs.command()
@click.argument("submission_id", metavar="ID")
@ADDRESS
@command
def stop(submission_id: str, address: str | None) -> None:
    """Stop a job: it is asked to end, and ended after a while.

    Example: farsight jobs stop raysubmit_2xHTGi3Ftv7WkPbb
    """
    from cluster.jobs import Jobs, dashboard_url

    found = Jobs(dashboard_url(address)).stop(submission_id)
    show(found, lambda job: print_jobs({"jobs": [job]}))


JOBS = (submit, jobs)
