"""Jobs on a Ray cluster, through Ray's own client: submit, follow, list, stop."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from data.errors import ClusterError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# In the order in which Ray's own commands look at them.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# A cluster answers before the agents of its nodes do.
AGENT_SECONDS = 90.0
# A head that restarts, or a port that is forwarded again, comes back; a log waits for it.
LOST_SECONDS = 300.0
STOP_SECONDS = 60.0
POLL_SECONDS = 1.0
WAITING_LINE_SECONDS = 15.0
INTERRUPTED = 130
FAILED_OTHERWISE = 6
NO_AGENT = "No available agent"

TOKEN_ADVICE = (
    "set RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or its file as RAY_AUTH_TOKEN_PATH, then again"
)


def dashboard_url(address: str | None) -> str:
    """Where the Jobs API answers: as given, else by Ray's environment variables, else Ray's default on this machine."""
    if address:
        return (address if "://" in address else f"http://{address}").rstrip("/")
    stated = next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
    if stated is None:
        return DEFAULT_ADDRESS
    if stated.startswith(("http://", "https://")):
        return stated.rstrip("/")
    # The address of the cluster and not of its dashboard; Ray asks the one for the other.
    from ray.dashboard.utils import get_address_for_submission_client

    with ray_errors(stated):
        return str(get_address_for_submission_client(stated))


class Jobs:
    """The Jobs API of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ClusterError: the cluster does not answer, or refuses the token.
        """
        # Here and not above: it loads all of Ray.
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.getLogger().level)
        # It warns of each directory that it leaves out by default, such as .git.
        logging.getLogger("ray._private.runtime_env.working_dir").setLevel(logging.ERROR)
        headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "null")
        self.address = address
        with ray_errors(address), _overruling(address):
            self._client = JobSubmissionClient(address, headers=headers)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Hand in a job; waits for a cluster whose nodes have only just come up.

        Args:
            request: arguments of `JobSubmissionClient.submit_job`.

        Returns:
            the job's submission id.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with ray_errors(self.address):
                    return str(self._client.submit_job(**request))
            except ClusterError as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            click.echo("the cluster has no node ready for a job yet; trying again", err=True)
            time.sleep(POLL_SECONDS)

    def find(self, submission_id: str) -> dict[str, Any] | None:
        """A job by its id; None where there is none."""
        return next((job for job in self.list() if job["submission_id"] == submission_id), None)

    def list(self) -> list[dict[str, Any]]:
        """All submitted jobs that the cluster remembers, newest first."""
        with ray_errors(self.address):
            jobs = [_facts(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job["started"] or 0.0, reverse=True)

    def job(self, submission_id: str) -> dict[str, Any]:
        """One job.

        Raises:
            ClusterError: there is none with this id.
        """
        with ray_errors(self.address, submission_id):
            return _facts(self._client.get_job_info(submission_id))

    def logs(self, submission_id: str) -> str:
        """What a job has printed so far."""
        with ray_errors(self.address, submission_id):
            return str(self._client.get_job_logs(submission_id))

    def stop(self, submission_id: str) -> dict[str, Any]:
        """Ask a job to end, and wait until it has; one that has ended already stays as it is."""
        with ray_errors(self.address, submission_id):
            asked = bool(self._client.stop_job(submission_id))
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            found = self.job(submission_id)
            if found["ended"] or time.monotonic() > deadline:
                return {**found, "stopped": asked}
            time.sleep(POLL_SECONDS / 4)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> dict[str, Any]:
        """Hand on what a job prints until it has ended; goes on after a broken connection where it stopped.

        Returns:
            the ended job.

        Raises:
            ClusterError: no such job, or the cluster was out of reach for minutes.
        """
        self.job(submission_id)  # an unknown one is no lost connection
        written, lost_since = 0, None

        def hand_on(text: str) -> None:
            nonlocal written
            written += len(text)
            write(text)

        while True:
            try:
                self._wait_for_start(submission_id)
                asyncio.run(self._tail(submission_id, written, hand_on))
                found = self.job(submission_id)
                if found["ended"]:
                    hand_on(self.logs(submission_id)[written:])  # a connection that was closed may have ended too early
                    return found
                lost_since = None
            except ClusterError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_SECONDS:
                    raise ClusterError(f"{error}; job {submission_id} may go on: look again later") from None
            time.sleep(POLL_SECONDS)

    def _wait_for_start(self, submission_id: str) -> None:
        began = said = time.monotonic()
        while (found := self.job(submission_id))["status"] == "PENDING":
            if time.monotonic() - said >= WAITING_LINE_SECONDS:
                said = time.monotonic()
                click.echo(f"waiting for {said - began:.0f} s: {found['message']}", err=True)
            time.sleep(POLL_SECONDS / 4)

    async def _tail(self, submission_id: str, skip: int, write: Callable[[str], None]) -> None:
        """Write the log as it grows, without its first `skip` characters, until the job or the connection ends."""
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(submission_id):
                new, skip = text[skip:], max(0, skip - len(text))
                if new:
                    write(new)
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise ClusterError(f"{self.address}: the log of {submission_id} broke off: {_first_line(error)}") from None


@contextmanager
def _overruling(address: str) -> Iterator[None]:
    """Ray lets a variable overrule the address that its client is given; let it say the same for a moment."""
    before = os.environ.get(ADDRESS_VARIABLES[0])
    os.environ[ADDRESS_VARIABLES[0]] = address
    try:
        yield
    finally:
        del os.environ[ADDRESS_VARIABLES[0]]
        if before is not None:
            os.environ[ADDRESS_VARIABLES[0]] = before


@contextmanager
def ray_errors(address: str, submission_id: str | None = None) -> Iterator[None]:
    """Say in one line what Ray's client raises, and what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        refused = "refused the token that was sent" if "invalid" in str(error).lower() else "asks for a token"
        raise ClusterError(f"{address}: the cluster {refused}; {TOKEN_ADVICE}") from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise ClusterError(
            f"{address}: no Ray cluster answers ({_first_line(error)}); expected the address of its dashboard, such as "
            f"{DEFAULT_ADDRESS}; forward the port if it is not reachable from here"
        ) from None
    except RuntimeError as error:
        if submission_id and "does not exist" in str(error):
            raise ClusterError(
                f"{address}: no job {submission_id}; `farsight jobs list` shows those that the cluster remembers"
            ) from None
        raise ClusterError(f"{address}: {_first_line(error)}") from None


def exit_status(job: Mapping[str, Any]) -> int:
    """The status that a command which followed this job ends with: the job's own, where it came to have one."""
    if job["status"] == "SUCCEEDED":
        return 0
    if job["status"] == "STOPPED":
        return INTERRUPTED
    code = job["exit_code"]
    if code is None:
        return FAILED_OTHERWISE  # it was never started, or lost with its node
    # Of a process that a signal ended, as a shell says it.
    return int(code) if code > 0 else 128 - int(code)


def _facts(job: Any) -> dict[str, Any]:
    """What is told of a job. Not its runtime environment, whose variables may hold secrets."""
    seconds = None if job.start_time is None else (job.end_time or time.time() * 1000) - job.start_time
    return {
        "submission_id": job.submission_id,
        "status": str(job.status),
        "ended": job.status.is_terminal(),
        "exit_code": job.driver_exit_code,
        "started": None if job.start_time is None else job.start_time / 1000,
        "seconds": None if seconds is None else round(seconds / 1000, 1),
        "command": job.entrypoint,
        "message": _first_line(job.message or "").partition(", last available logs")[0],
    }


def _first_line(text: object) -> str:
    lines = str(text).strip().splitlines()
    return lines[0] if lines else type(text).__name__
