"""How the roof starts the floors below: by import string, only when a command runs.

So `farsight --help` loads neither torch nor ray, and this package depends on none of them.
"""

import importlib
from typing import Any

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
PAIRED = "trainer.significance:paired_bootstrap"
LOG_DAYS = "data.log_days:run"
LOG_STATE = "data.log_days:state"
REHEARSE = "serve.rehearsal:run"
PIPELINE_RUN = "cluster.pipeline.run:run"
PIPELINE_STATUS = "cluster.pipeline.status:run"


def start(entry: str, /, **arguments: Any) -> dict[str, Any]:
    """Import `module:function` and call it; what our floors return is the mapping that `--json` prints."""
    module, _, function = entry.partition(":")
    result: dict[str, Any] = getattr(importlib.import_module(module), function)(**arguments)
    return result
