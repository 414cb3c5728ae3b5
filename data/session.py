"""One way to reach Ray: the cluster of the job we run in, or a private local one."""

import logging
import os

import ray

logger = logging.getLogger(__name__)

# Two training workers on two cores would leave Ray Data none, and the first batch would never come.
# These are Ray's bookkeeping units, not threads.
MIN_LOGICAL_CPUS = 4


def connect() -> None:
    """Connect to Ray once per process; later calls do nothing.

    With `RAY_ADDRESS` set (as inside a submitted job) that cluster is used. Otherwise a private
    local one is started: a bare `ray.init()` could attach to another program's cluster.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    num_cpus = max(os.cpu_count() or 1, MIN_LOGICAL_CPUS)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        logging_level=logging.WARNING,
        # What workers print stays in Ray's own log files unless somebody is debugging.
        log_to_driver=logger.isEnabledFor(logging.DEBUG),
    )
    logger.info("started a local Ray with %d logical CPUs", num_cpus)
