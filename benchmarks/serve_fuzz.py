"""Requests made up from the endpoint's own OpenAPI description, thrown at a real `farsight serve` for some minutes.

    python -m benchmarks.serve_fuzz --minutes 10 --json FILE

Schemathesis reads `/openapi.json` and sends, with a token, what fits the description, what just does not, and sequences
of calls, to a release of drawn items, with an empty file of histories. Its checks (statuses, bodies, content types and
headers as described; wrong bodies refused; what was removed is gone) are those of the pinned version, but for
`benchmarks/peers/schemathesis.toml`. `server_errors` counts statuses from 500 on without 504, which is the answer to a
deadline that has passed; `stack_traces` the answers that hold one.
"""

import base64
import json
import secrets
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.peers.process import PINS, peer_python, read_pins
from benchmarks.report import parser, publish, run
from benchmarks.serve_load import endpoint
from benchmarks.serve_release import made_release
from data.errors import MachineError

USERS = "/v1/users/"
# Seconds beyond its own limit, for its start and its report.
GRACE_SECONDS = 300


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--items", type=int, default=1_000)
    arguments.add_argument("--folder", type=Path, default=Path("runs/serve_fuzz"), help="kept for later runs")
    arguments.add_argument("--peer-python", type=Path, help="an interpreter with schemathesis.txt's packages")
    arguments.add_argument("--port", type=int, default=8700)
    chosen = arguments.parse_args()
    seconds = round(60 * (0.5 if chosen.quick else chosen.minutes))
    python = chosen.peer_python or peer_python("schemathesis", chosen.folder / "peer")
    release, token = made_release(chosen.folder, chosen.items, "flat"), secrets.token_hex(32)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tokens").write_text(f"fuzz {token}\n", encoding="utf-8")
        words = [
            f"serve.histories={{kind: sqlite, path: {folder / 'histories.sqlite'}}}",
            f"serve.access.tokens_file={folder / 'tokens'}",
            "serve.deadline_ms=10000",  # a busy machine is not a finding
        ]
        with endpoint(release, chosen.port, words) as running:
            url = running.url.removesuffix("/v1/retrieve")
            fuzz(python, url, token, seconds, folder)
            ready_after = httpx.get(f"{url}/readyz", timeout=60).status_code
        figures = {**summary(folder / "events.ndjson"), **_failures(folder / "report.json"), "ready_after": ready_after}
    publish("serve_fuzz", {"seconds": seconds, "items": chosen.items, **figures, **_version()}, chosen)


def fuzz(python: Path, url: str, token: str, seconds: int, folder: Path) -> None:
    """Let schemathesis ask for some time; its reports are `events.ndjson` and `report.json` in the folder.

    Raises:
        MachineError: it did not come to its end.
    """
    command = [
        str(python.absolute().parent / "schemathesis"),
        *("--config-file", str(PINS / "schemathesis.toml"), "--no-color", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--max-time", str(seconds), "--continue-on-failure"),
        *("--workers", "2", "--request-timeout", "60", "--generation-database", "none"),
        *("--report", "ndjson,json", "--report-ndjson-path", str(folder / "events.ndjson")),
        *("--report-json-path", str(folder / "report.json")),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS)
    if done.returncode not in (0, 1):  # 1: it found something
        raise MachineError(f"schemathesis ended with code {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def summary(events: Path) -> dict[str, Any]:
    """What was sent, how it was answered, and how often each check passed and failed."""
    statuses: Counter[int] = Counter()
    routes: dict[str, Counter[int]] = {}
    checks: dict[str, Counter[str]] = {}
    stack_traces = 0
    for recorder in _recorders(events):
        for interaction in (recorder.get("interactions") or {}).values():
            response = interaction["response"] or {"status_code": 0}
            status = response["status_code"]
            statuses[status] += 1
            routes.setdefault(_route(interaction["request"]), Counter())[status] += 1
            content = (response.get("content") or {}).get("$base64", "")
            stack_traces += b"Traceback (most recent call last)" in base64.b64decode(content)
        for outcomes in (recorder.get("checks") or {}).values():
            for outcome in outcomes:
                checks.setdefault(outcome["name"], Counter())[outcome["status"]] += 1
    return {
        "requests": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "routes": {route: dict(sorted(routes[route].items())) for route in sorted(routes)},
        "server_errors": sum(count for status, count in statuses.items() if status >= 500 and status != 504),
        "no_answer": statuses[0],
        "stack_traces": stack_traces,
        "checks": {name: dict(checks[name]) for name in sorted(checks)},
    }


def _route(request: dict[str, Any]) -> str:
    path = urlsplit(request["uri"]).path
    return f"{request['method']} {USERS + 'USER' if path.startswith(USERS) else path}"


def _recorders(events: Path) -> Iterator[dict[str, Any]]:
    with events.open(encoding="utf-8") as lines:
        for line in lines:
            finished = json.loads(line).get("ScenarioFinished")
            if finished is not None:
                yield finished["recorder"]


def _failures(report: Path) -> dict[str, Any]:
    found = json.loads(report.read_text(encoding="utf-8"))
    return {name: found[name] for name in ("failures", "errors", "phases", "seed")}


def _version() -> dict[str, str]:
    return {"schemathesis": read_pins(PINS / "schemathesis.txt")["schemathesis"]}


if __name__ == "__main__":
    run(main)
