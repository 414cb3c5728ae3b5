"""Who is told of a verdict: the log, a command of the recipe, and the recipe's trackers where a day is held back."""

import json
import logging
import subprocess
from collections.abc import Sequence
from typing import Any

from cluster import floors
from data.settings import Recipe

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60


def announce(report: dict[str, Any], command: Sequence[str]) -> None:
    """Tell of the verdict on a day: in the log, and to the command of `pipeline.notify`, if any.

    A command that fails is a line in the log: nobody's alerts stop the pipeline.

    Args:
        report: of `cluster.pipeline.report`; the command has it as JSON on its standard input.
    """
    if report["why"]:
        logger.warning("%s: held back: %s", report["day"], "; ".join(report["why"]))
    else:
        logger.info("%s: release %s was promoted", report["day"], report["candidate"])
    if not command:
        return
    try:
        ran = subprocess.run(
            list(command),
            input=json.dumps(report),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("pipeline.notify: %s: %s", command[0], error)
        return
    if ran.returncode:
        logger.warning("pipeline.notify: %s: exit code %d: %s", command[0], ran.returncode, ran.stderr.strip())


def alert(report: dict[str, Any], recipe: Recipe, directory: str) -> None:
    """Raise an alert in the recipe's trackers where a day is held back.

    Args:
        directory: of the pipeline; its alerts are those of one run.
    """
    if report["why"]:
        title, text = f"{report['day']}: held back", "; ".join(report["why"])
        floors.start(floors.ALERT, recipe=recipe, directory=directory, title=title, text=text)
