"""`farsight submit`: hand in a job, follow it to its end, and end as it did."""

import shlex
from collections.abc import Callable
from typing import Any

import click

from cluster.command_line import pairs_of
from cluster.job import Job, command_words, storage_of
from cluster.jobs import Jobs, dashboard_url, exit_status
from cluster.profiles import read_profile
from cluster.recipe_files import split_words
from cluster.shipping import check_shipment, plan_shipment
from data.errors import RecipeError


def run(
    *,
    address: str | None,
    profile_name: str,
    text: str,
    words: tuple[str, ...],
    storage: str | None,
    secrets: tuple[str, ...],
    variables: tuple[str, ...],
    working_dir: str | None,
    submission_id: str | None,
    no_wait: bool,
    dry_run: bool,
    on_line: Callable[[str], None],
) -> tuple[str, dict[str, Any], int]:
    """Submit a farsight command and follow it.

    Args:
        on_line: takes the `ray job submit` line before anything is sent.

    Returns:
        that line, what is told of the job, and the status to end with.
    """
    command = shlex.split(text)
    profile = read_profile(profile_name).with_own(secrets, pairs_of(variables, "--env"))
    shipment = plan_shipment(split_words(words)[0], working_dir=working_dir)
    job = Job(
        address=dashboard_url(address),
        entrypoint=command_words(command, words, shipment, profile, storage_of(profile, storage)),
        shipment=shipment,
        env=profile.env,
        secrets=profile.secrets,
        reserved=profile.entrypoint_of.get(command[0], profile.entrypoint),
        submission_id=submission_id,
    )
    load = check_shipment(shipment)
    line = job.line()
    on_line(line)
    if dry_run:
        return line, {"shipped_files": load.files, "shipped_bytes": load.num_bytes}, 0
    request = job.request()
    jobs = Jobs(job.address)
    if (known := _handed_in_before(jobs, job)) is None:
        known = jobs.submit(request)
        click.echo(f"job {known} is handed in", err=True)
    if no_wait:
        return line, {"submission_id": known, "address": job.address}, 0
    found, status = follow_job(jobs, known)
    return line, found, status


def follow_job(jobs: Jobs, submission_id: str) -> tuple[dict[str, Any], int]:
    """Print a job's log until it ends.

    Returns:
        what is told of the job, and the status to end with.

    Raises:
        KeyboardInterrupt: somebody interrupted; the job goes on, and how to reach it has been said.
    """
    try:
        found = jobs.follow(submission_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\njob {submission_id} goes on. To follow it again, and to stop it:\n"
            f"    farsight jobs logs {submission_id} --follow --address {jobs.address}\n"
            f"    farsight jobs stop {submission_id} --address {jobs.address}",
            err=True,
        )
        raise
    status, ended = exit_status(found), f"job {submission_id} {found['status'].lower()} after {found['seconds']} s"
    if status:
        code = found["exit_code"]
        ended = f"error: {ended}: {found['message'] if code is None else f'exit status {code}'}; its log says more"
    click.echo(ended, err=True)
    return found, status


def _handed_in_before(jobs: Jobs, job: Job) -> str | None:
    """The id, if a job with it runs or is done already: so the same line can be given twice.

    Raises:
        RecipeError: it belongs to another command, or its job failed or was stopped.
    """
    found = None if job.submission_id is None else jobs.find(job.submission_id)
    if found is None:
        return None
    if found["command"] != shlex.join(job.entrypoint):
        raise RecipeError(
            f"--submission-id {job.submission_id}: belongs to another command, {found['command']}; choose another"
        )
    if found["status"] in ("FAILED", "STOPPED"):
        raise RecipeError(
            f"--submission-id {job.submission_id}: its job {found['status'].lower()}, and Ray runs an id once; choose "
            "another id (training goes on from its last checkpoint all the same)"
        )
    click.echo(f"job {job.submission_id} was handed in before and is {found['status'].lower()}", err=True)
    return str(found["submission_id"])
