"""A client of a running endpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from data.errors import EndpointError

# What to do about a status whose answer does not say it itself.
ADVICE = {
    404: "check the address: it is the one that farsight serve printed, without /v1/retrieve",
    401: "give a token of the endpoint with --token or in FARSIGHT_TOKEN",
    413: "send a shorter history",
    503: "the endpoint is overloaded or starting; ask again in a moment",
    504: "ask with a later deadline, or again in a moment",
}


def run(
    url: str,
    history: Sequence[str] | str | Path | None = None,
    k: int = 10,
    *,
    user: str | None = None,
    request_time: int | None = None,
    exclude_seen: bool = True,
    exclude_item_ids: Sequence[str] = (),
    conditions: Sequence[Mapping[str, Any]] = (),
    objective_weights: Mapping[str, float] | None = None,
    deadline_ms: int | None = None,
    token: str | None = None,
    timeout_seconds: float = 30,
) -> dict[str, Any]:
    """Ask a running endpoint.

    Args:
        url: the endpoint's address, as `farsight serve` prints it.
        history: item ids, oldest first; or the path of a JSON file that holds a list of ids or of
            events (`item_id`, `timestamp`, `action`); None to ask by `user`.
        user: the user whose events the endpoint has stored.
        request_time: seconds UTC; the server's clock if None.
        conditions: what the answer should satisfy: `any_of` or `own_top`, and perhaps `weight` and `hard`.
        objective_weights: objective -> weight of its score; the release's own if None.
        deadline_ms: milliseconds for the server; its own default if None.
        token: of the endpoint's file of tokens, if it has one.
        timeout_seconds: how long this client waits for each step of the connection.

    Returns:
        The body of the answer.

    Raises:
        EndpointError: no connection, no answer in time, or a refusal, with what to do.
    """
    asked = {"user_id": user} if history is None else {"history": _events(history)}
    body: dict[str, Any] = {**asked, "k": k, "exclude_seen": exclude_seen}
    if exclude_item_ids:
        body["exclude_item_ids"] = list(exclude_item_ids)
    if conditions:
        body["conditions"] = [dict(condition) for condition in conditions]
    if objective_weights is not None:
        body["objective_weights"] = dict(objective_weights)
    if request_time is not None:
        body["request_time"] = request_time
    if deadline_ms is not None:
        body["deadline_ms"] = deadline_ms
    address = url.rstrip("/") + "/v1/retrieve"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        response = httpx.post(address, json=body, headers=headers, timeout=timeout_seconds)
    except httpx.TimeoutException:
        raise EndpointError(f"{address}: no answer within {timeout_seconds:g} s; is the endpoint overloaded?") from None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise EndpointError(
            f"{address}: cannot connect ({error}); start the endpoint with farsight serve, or correct --url"
        ) from None
    return _content(address, response)


def _content(address: str, response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if response.status_code == 200 and isinstance(content, dict):
        return content
    parts = [f"{address}: found status {response.status_code}, expected 200"]
    if isinstance(content, dict):
        for problem in content.get("problems", []):
            parts.append(": ".join(filter(None, [problem.get("field"), problem.get("message")])))
    if len(parts) == 1 and response.status_code in ADVICE:
        parts.append(ADVICE[response.status_code])
    elif response.status_code == 200:
        parts[0] = f"{address}: the answer is not JSON; is this a Farsight endpoint?"
    raise EndpointError("; ".join(parts))


def _events(history: Sequence[str] | str | Path) -> list[dict[str, Any]]:
    if isinstance(history, str | Path):
        history = _read_history(Path(history))
    return [event if isinstance(event, dict) else {"item_id": event} for event in history]


def _read_history(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EndpointError(f"{path}: cannot read the history: {error.strerror}") from None
    except ValueError as error:
        raise EndpointError(f"{path}: not valid JSON ({error}); expected a list of item ids or of events") from None
    if not isinstance(content, list):
        raise EndpointError(f"{path}: found a {type(content).__name__}, expected a list of item ids or of events")
    return content
