"""What Ray's HAProxy is told: to try again elsewhere, and to keep and refuse what the replicas cannot take."""

from serve.problems import ASK_AGAIN, refusal
from serve.settings import Queueing

# Between two checks of a replica's health: Serve's own default.
_HEALTH_CHECK_EVERY = "5s"


def haproxy_environment(queueing: Queueing) -> dict[str, str]:
    """Variables that Serve's processes read when they start.

    A replica gets no more requests than it works on; others wait in HAProxy, and past a number of them it answers 503
    itself. Refusing costs HAProxy a few microseconds, and a replica half a millisecond of the time in which it answers.
    Ray 2.60 has no variables for that; it writes the interval of health checks as it stands into a backend's line
    `default-server ... inter INTERVAL check`, and with it the limit of its servers and the rule that follows.

    A request whose replica is lost before it answers goes to another one: it changes nothing, or like /v1/events
    nothing twice.
    """
    body = refusal("", f"overloaded; {ASK_AGAIN}")
    rule = (
        f"http-request return status 503 content-type application/json hdr Retry-After {queueing.retry_after_seconds} "
        f"string '{body}' if {{ queue ge {queueing.max_in_proxy} }}"
    )
    on_servers = f"{_HEALTH_CHECK_EVERY} maxconn {queueing.max_in_flight} check"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Of that, not the router in the replica's event loop: searchers are asked from another thread.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{on_servers}\n    {rule} #",
    }
