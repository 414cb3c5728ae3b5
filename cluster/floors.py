"""How the roof starts the floors below: by import string, only when a command runs.

So `farsight --help` loads neither torch nor ray, and this package depends on none of them.
"""

import importlib
from collections.abc import Callable
from typing import Any, Literal

SIMULATE = "data.simulate:run"
SIMULATE_DAYS = "data.simulate_days:run"
IMPORT = "data.importers:run"
INGEST = "data.ingest:run"
TRAIN = "trainer.train:run"
EVALUATE = "trainer.evaluate:run"
CONDITIONAL = "trainer.conditional:run"
INSPECT = "trainer.inspect:run"
GAPS = "trainer.gaps:run"
INDEX = "serve.build:run"
RELEASES = "serve.registry:run"
SERVE = "serve.app:run"
SEED_HISTORIES = "serve.histories.store:seed"
DEPLOY = "serve.deploy:run"
STOP_SERVING = "ray.serve:shutdown"
PREDICT = "serve.predict:run"
RETRIEVE = "serve.client:run"
BENCHMARK = "cluster.benchmark:run"
COMPARE = "trainer.significance:compare"
ALL_REDUCE = "trainer.cluster_check:all_reduce"
FIRST_BATCH = "trainer.cluster_check:first_batch"
GRAFANA = "cluster.dashboards.write:grafana"
PROMETHEUS = "cluster.dashboards.write:prometheus"
CHECK_DASHBOARDS = "cluster.dashboards.check:check"
CHECK_TRACKING = "data.tracking.steps:check"
TRACK = "data.tracking.steps:track"
ALERT = "data.tracking.steps:alert"
WANDB_WORKSPACE = "data.tracking.workspace:run"
PAIRED = "trainer.significance:paired_bootstrap"
LOG_DAYS = "data.log_days:run"
LOG_STATE = "data.log_days:state"
REHEARSE = "serve.rehearsal:run"
PIPELINE_RUN = "cluster.pipeline.run:run"
PIPELINE_STATUS = "cluster.pipeline.status:run"


def start(entry: str, /, **arguments: Any) -> dict[str, Any]:
    """Import `module:function` and call it; what our floors return is the mapping that `--json` prints."""
    result: dict[str, Any] = load(entry)(**arguments)
    return result


def load(entry: str) -> Callable[..., Any]:
    """Import `module:function`. `start` does it where it calls; beforehand it is for a process that joins Ray itself:
    torch that is imported after that now and then ends the process ("oneMKL FATAL ERROR: Cannot load").
    """
    module, _, function = entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def tracked(
    step: Literal["ingest", "evaluate", "index"], entry: str, /, *, recipe: dict[str, Any], **arguments: Any
) -> dict[str, Any]:
    """`start`, and then tell the recipe's trackers what came of it."""
    start(CHECK_TRACKING, recipe=recipe)
    result = start(entry, recipe=recipe, **arguments)
    start(TRACK, step=step, recipe=recipe, result=result, artifact=arguments.get("artifact"))
    return result
