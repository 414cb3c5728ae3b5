"""Ray Serve behind HAProxy with nothing in it (a side of `benchmarks.serve_load`).

python -m benchmarks.peers.noop_application --port N
"""

import argparse
import os
import signal

import ray.serve
from fastapi import FastAPI
from starlette.requests import Request

from serve.haproxy import haproxy_environment
from serve.settings import Queueing

api = FastAPI()


@ray.serve.deployment(max_ongoing_requests=512)
@ray.serve.ingress(api)
class Nothing:
    """Reads the body."""

    @api.post("/v1/retrieve")
    async def retrieve(self, request: Request) -> str:
        """Answer nothing."""
        await request.body()
        return "{}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    os.environ.update(haproxy_environment(Queueing()))
    ray.serve.start(http_options={"port": arguments.parse_args().port}, logging_config={"enable_access_log": False})
    ray.serve.run(Nothing.bind())  # type: ignore[attr-defined]  # of what the decorator makes
    signal.sigwait([signal.SIGINT, signal.SIGTERM])
    ray.serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
