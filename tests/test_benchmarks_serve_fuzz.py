"""How `benchmarks.serve_fuzz` counts what schemathesis reports."""

import base64
import json
from pathlib import Path
from typing import Any

from benchmarks.serve_fuzz import summary


def interaction(method: str, path: str, status: int | None, content: str = "{}") -> dict[str, Any]:
    body = {"$base64": base64.b64encode(content.encode()).decode()}
    response = None if status is None else {"status_code": status, "content": body}
    return {"request": {"method": method, "uri": f"http://127.0.0.1:8000{path}"}, "response": response}


def test_a_late_answer_is_no_server_error_and_a_stack_trace_is_seen(tmp_path: Path) -> None:
    sent = [
        interaction("POST", "/v1/retrieve", 200),
        interaction("POST", "/v1/retrieve", 504),
        interaction("POST", "/v1/retrieve", 500, "Traceback (most recent call last)"),
        interaction("GET", "/v1/users/a%2Fb", 503),
        interaction("GET", "/v1/users/c", None),
    ]
    checks = {str(number): [{"name": "not_a_server_error", "status": "success"}] for number in range(3)}
    recorder = {"interactions": {str(number): one for number, one in enumerate(sent)}, "checks": checks}
    lines = [{"Initialize": {}}, {"ScenarioFinished": {"recorder": recorder}}, {"ScenarioFinished": {"recorder": {}}}]
    (tmp_path / "events").write_text("\n".join(map(json.dumps, lines)))
    assert summary(tmp_path / "events") == {
        "requests": 5,
        "statuses": {0: 1, 200: 1, 500: 1, 503: 1, 504: 1},
        "routes": {"GET /v1/users/USER": {0: 1, 503: 1}, "POST /v1/retrieve": {200: 1, 500: 1, 504: 1}},
        "server_errors": 2,
        "no_answer": 1,
        "stack_traces": 1,
        "checks": {"not_a_server_error": {"success": 3}},
    }
