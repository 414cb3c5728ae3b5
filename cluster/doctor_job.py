"""`farsight doctor --cluster` from outside a cluster: the same check, as a job on it."""

import json
import os
from pathlib import Path
from typing import Any

import click

from cluster import cluster_doctor
from cluster.job import PROGRAM, Job
from cluster.jobs import Jobs, dashboard_url
from cluster.profiles import Profile, read_profile
from cluster.shipping import check_shipment, plan_shipment
from data.errors import ClusterError

TAIL_LINES = 15


def run(
    address: str | None,
    profile_name: str | None,
    *,
    storage: str | None,
    dataset: str | None,
    max_skew: float,
    seconds: float,
) -> dict[str, Any]:
    """Check a cluster: by joining it, or, where the address is that of a dashboard, by a job that does.

    Args:
        address: None: by Ray's environment variables, or the cluster on this machine.
        profile_name: profile whose environment variables and secrets the job gets.

    Returns:
        see `cluster.cluster_doctor.run`.

    Raises:
        ClusterError: the cluster cannot be reached, or the job gave no report.
    """
    storage = None if storage is None else str(Path(storage).absolute())
    options = {"storage": storage, "dataset": dataset, "max_skew": max_skew, "seconds": seconds}
    stated = address or os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")
    if stated is None or "://" not in stated:
        return cluster_doctor.run(address, storage=storage, dataset=dataset, max_skew=max_skew, seconds=seconds)
    profile = Profile() if profile_name is None else read_profile(profile_name)
    shipment = plan_shipment(None)
    check_shipment(shipment)
    words = [word for name, value in options.items() if value is not None for word in _option(name, value)]
    job = Job(
        address=dashboard_url(stated),
        entrypoint=(*PROGRAM, "doctor", "--cluster", "--json", *words),
        shipment=shipment,
        env=profile.env,
        secrets=profile.secrets,
        reserved=profile.entrypoint,
    )
    jobs = Jobs(job.address)
    submission_id = jobs.submit(job.request())
    log: list[str] = []
    try:
        found = jobs.follow(submission_id, log.append)
    except KeyboardInterrupt:
        jobs.stop(submission_id)
        raise
    report = report_in("".join(log))
    if report is None:
        for line in "".join(log).splitlines()[-TAIL_LINES:]:
            click.echo(line, err=True)
        raise ClusterError(
            f"{job.address}: job {submission_id} {found['status'].lower()} without a report ({found['message']}); the "
            "end of its log is above"
        )
    return report


def _option(name: str, value: object) -> tuple[str, str]:
    return f"--{name.replace('_', '-')}", str(value)


def report_in(log: str) -> dict[str, Any] | None:
    """The JSON document that the command printed among other lines; None if it printed none."""
    decoder = json.JSONDecoder()
    starts = [0, *(place + 1 for place, letter in enumerate(log) if letter == "\n")]
    for start in starts:
        if not log.startswith("{", start):
            continue
        try:
            found, _ = decoder.raw_decode(log, start)
        except json.JSONDecodeError:
            continue
        if "checks" in found:
            report: dict[str, Any] = found
            return report
    return None
