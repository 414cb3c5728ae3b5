"""Jobs and the doctor on a real Ray cluster of two nodes with token authentication, as a user types the commands."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flaky_proxy import FlakyProxy
from tests.ray_cluster import ROOT, RayCluster, ray_cluster
from tests.small_world import write_dataset

LAPTOP = ("--profile", "laptop")
BEGUN = "Running entrypoint for job "
ENDS_SECONDS = 240
REFUSAL = b"No available agent to submit job, please try again later."

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two nodes that know nothing of the tests' own Ray."""
    folder = Path(os.environ["RAY_TMPDIR"]).with_name("c")
    with ray_cluster(folder, tmp_path_factory.mktemp("storage")) as found:
        yield found


def _ended(process: Process, status: int) -> tuple[str, str]:
    """What a command printed, which must end with this status."""
    out, err = process.communicate(timeout=ENDS_SECONDS)
    assert process.returncode == status, out + err
    return out, err


def _begun(process: Process) -> tuple[str, str]:
    """Read what a command prints until its job has begun; that text, and the job's id."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith(BEGUN):
            return text, line.removeprefix(BEGUN).partition(":")[0]
    raise AssertionError(text + _ended(process, 0)[1])


def _rest(process: Process, status: int) -> tuple[str, str]:
    """As `_ended`, of a command whose first lines were read: Python holds more of them than it has given."""
    assert process.stdout is not None
    out = process.stdout.read()
    return out, _ended(process, status)[1]


def test_a_job_runs_what_is_shipped_and_ends_with_its_commands_status(cluster: RayCluster) -> None:
    flaky = FlakyProxy(cluster.port, refused=2, beginning=b"POST /api/jobs/ ", answer=REFUSAL)
    words = ("simulate.num_users=60", "--command", "simulate --out log", *LAPTOP)
    good = cluster.farsight("submit", "smoke", *words, "--address", f"127.0.0.1:{flaky.port}")
    words = ("ingest.log=nowhere", "--command", "ingest", *LAPTOP, "--address", cluster.url)
    bad = cluster.farsight("submit", "smoke", *words)
    before, job = _begun(good)
    flaky.cut()
    after, said = _rest(good, 0)
    assert said.count("no node ready for a job yet; trying again") == 2
    assert flaky.refusals_left == 0
    assert f"job {job} succeeded after" in said
    # Nothing lost and nothing twice, though the connection broke.
    kept, _ = _ended(cluster.farsight("jobs", "logs", job, "--address", cluster.url), 0)
    assert "users: 60" in kept
    assert (before + after).endswith(kept)
    assert (cluster.storage / "log" / "manifest.json").is_file()
    flaky.close()
    out, said = _ended(bad, 3)
    assert "error: nowhere: no such file or directory" in out
    assert re.search(r"error: job raysubmit_\w+ failed after [\d.]+ s: exit status 3", said)


def test_an_interrupt_leaves_a_job_running_that_can_be_listed_followed_and_stopped(cluster: RayCluster) -> None:
    words = ("simulate.num_users=5000000", "--command", "simulate --out endless", *LAPTOP, "--address", cluster.url)
    submitted = cluster.farsight("submit", "smoke", *words)
    _, job = _begun(submitted)
    submitted.send_signal(signal.SIGINT)
    _, said = _ended(submitted, 130)
    assert f"job {job} goes on" in said
    assert f"farsight jobs stop {job} --address {cluster.url}" in said
    following = cluster.farsight("jobs", "logs", job, "--follow", RAY_ADDRESS=cluster.url)
    out, _ = _ended(cluster.farsight("jobs", "list", "--json", "--address", cluster.url), 0)
    found = {row["submission_id"]: row for row in json.loads(out)["jobs"]}
    assert found[job]["status"] == "RUNNING"
    _begun(following)
    out, _ = _ended(cluster.farsight("jobs", "stop", job, "--json", "--address", cluster.url), 0)
    assert (json.loads(out)["status"], json.loads(out)["stopped"]) == ("STOPPED", True)
    assert f"job {job} stopped after" in _ended(following, 130)[1]
    assert job in _ended(cluster.farsight("jobs", "list", "--address", cluster.url), 0)[0]


def test_the_printed_line_pasted_into_a_shell_is_the_same_job_and_holds_no_secret(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text("simulate: {num_users: 40}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nsimulate: {num_items: 300}\n")
    options = ("--secret", "MY_KEY", "--env", "COLOUR=deep blue", "--address", cluster.url, *LAPTOP)
    words = ("submit", str(tmp_path / "mine.yaml"), "--command", "simulate --out twice", *options)
    out, _ = _ended(cluster.farsight(*words, "--dry-run", "--json", MY_KEY="k3y-of-mine"), 0)
    line = json.loads(out)["line"]
    own = ("--submission-id", "mine", "--no-wait")
    out, said = _ended(cluster.farsight(*words, *own, MY_KEY="k3y-of-mine"), 0)
    assert "submission_id: mine" in out
    again = cluster.farsight(*words, *own[:2], MY_KEY="k3y-of-mine")
    other = cluster.farsight(*words, "simulate.seed=7", *own, MY_KEY="k3y-of-mine")
    assert "belongs to another command" in _ended(other, 2)[1]
    assert "was handed in before" in _ended(again, 0)[1]
    assert json.loads((cluster.storage / "twice" / "manifest.json").read_text())["counts"]["users"] == 40
    # The same job, so it finds the directory of the first.
    pasted = cluster.shell(["bash", "-c", line], MY_KEY="k3y-of-mine")
    assert "twice: already exists" in _ended(pasted, 1)[0]
    first, second = (job for job in cluster.jobs() if "twice" in job["entrypoint"])
    assert first["entrypoint"] == second["entrypoint"]
    assert first["runtime_env"] == second["runtime_env"]
    assert first["runtime_env"]["env_vars"] == {"COLOUR": "deep blue", "MY_KEY": "k3y-of-mine"}
    listed, _ = _ended(cluster.farsight("jobs", "list", "--json", "--address", cluster.url), 0)
    assert "k3y-of-mine" not in line + out + said + listed


def test_a_missing_and_a_wrong_token_and_no_cluster_are_said_in_one_line(cluster: RayCluster) -> None:
    asked = ("jobs", "list", "--address", cluster.url)
    missing = cluster.farsight(*asked, RAY_AUTH_MODE="disabled")
    wrong = cluster.farsight(*asked, RAY_AUTH_TOKEN="some-other-token-0123456789abcdef01234567")
    nobody = cluster.farsight("jobs", "list", "--address", "127.0.0.1:1")
    unknown = cluster.farsight("jobs", "stop", "no-such-job", "--address", cluster.url)
    advice = "set RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or its file as RAY_AUTH_TOKEN_PATH"
    expected = {
        missing: f"error: {cluster.url}: the cluster asks for a token; {advice}",
        wrong: f"error: {cluster.url}: the cluster refused the token that was sent; {advice}",
        nobody: "error: http://127.0.0.1:1: no Ray cluster answers",
        unknown: f"error: {cluster.url}: no job no-such-job; `farsight jobs list` shows",
    }
    for process, message in expected.items():
        _, said = _ended(process, 6)
        assert message in said
        assert "Traceback" not in said


def test_the_doctor_asks_every_node_from_outside(cluster: RayCluster) -> None:
    write_dataset(cluster.storage / "dataset")
    asked = ("doctor", "--cluster", "--json", "--address", cluster.url, "--storage", ".", "--seconds", "200")
    out, _ = _ended(cluster.farsight(*asked, "--dataset", str(cluster.storage / "dataset")), 0)
    report = json.loads(out)
    found = {row["check"]: row["found"] for row in report["checks"]}
    assert [row["check"] for row in report["checks"] if row["state"] != "ok"] == []
    assert found["nodes"].startswith("2 alive, 4 CPUs and 0 GPUs")
    assert re.search(r"gloo, 2 ranks: 16 MiB in \d+ ms, [\d.]+ GiB/s", found["all-reduce"])
    assert "written and seen by all" in found["storage"]
    assert re.search(r"[\d.]+ s on the slowest node, [1-9][\d,]* events", found["first batch"])
    assert [node["head"] for node in report["nodes"]] == [True, False]
    # The code is what this command shipped, not what happens to be installed there.
    for node in report["nodes"]:
        assert all("_ray_pkg_" in folder for folder in node["packages"].values())
    assert not list(cluster.storage.glob(".farsight-doctor-*"))


def test_the_doctor_on_a_machine_of_the_cluster_says_what_is_broken_and_what_to_do(cluster: RayCluster) -> None:
    asked = ("doctor", "--cluster", "--address", cluster.gcs, "--storage", "/nowhere", "--max-skew", "-1")
    # Nothing is shipped: the nodes find the packages where the command stands, as they are on one machine.
    out, said = _ended(cluster.farsight(*asked, folder=ROOT), 6)
    assert "error: this cluster lacks something that Farsight needs: see the rows marked 'broken'" in said
    rows = [line.split("│")[1:4] for line in out.splitlines() if line.startswith("│") and "broken" in line]
    broken = {check.strip(): found.strip() for check, _, found in rows}
    assert list(broken) == ["clocks", "storage"], out
    assert "/nowhere: No such file or directory" in out
    assert "give a directory that exists on every node" in out


@pytest.mark.long
def test_every_shell_block_of_the_page_runs(cluster: RayCluster) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script = "\n".join(['farsight() { python -m cluster.cli "$@"; }', *blocks])
    ran = cluster.shell(["bash", "-euo", "pipefail", "-c", script], RAY_API_SERVER_ADDRESS=cluster.url)
    out, said = _ended(ran, 0)
    assert len(blocks) >= 4
    assert "--storage /mnt/farsight train smoke train.workers.num_workers=8" in out
    assert "succeeded after" in said
    assert "not-shown" not in out + said
    assert (cluster.storage / "runs" / "smoke" / "log" / "manifest.json").is_file()
