"""What trackers are told of a run when it starts: settings, commit, versions, dataset, cluster; never a secret."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.provenance import commit, surroundings
from data.tracking.contract import RunFacts, Step
from data.tracking.published import Published

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(r"token|secret|passw|api_?key|credential|private_?key|access_?key", re.IGNORECASE)
# https://user:password@host, and the keys of a URL's query.
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+@")
_KEY_OF_URL = re.compile(r"([?&][^=&\s]*(?:token|secret|key|sig|passw)[^=&\s]*=)[^&\s]+", re.IGNORECASE)


def run_facts(
    step: Step,
    directory: Path,
    settings: Mapping[str, Any],
    *,
    name: str | None = None,
    run_id: str | None = None,
    dataset: Published | None = None,
    cluster: Mapping[str, Any] | None = None,
) -> RunFacts:
    """The facts of a run that starts on this machine.

    Args:
        directory: of the run, where trackers may keep files.
        settings: resolved sections of the recipe, by name.
        name: None: the last two folders, as demo/train.
        run_id: None: from step and directory, so that the same again is the same run.
        cluster: shape of the Ray cluster, where the run uses one.
    """
    made_with = {name: value for name, value in surroundings().items() if name != "load_at_end"}
    config: dict[str, Any] = {**without_secrets(settings), "commit": commit(), **made_with}
    if dataset is not None:
        counts = dataset.manifest.get("counts", {})
        config["dataset"] = {"directory": str(dataset.directory), "content_hash": dataset.content_hash, **counts}
    if cluster is not None:
        config["cluster"] = dict(cluster)
    own = directory.resolve()
    return RunFacts(run_id or stable_id(step, str(own)), name or "/".join(own.parts[-2:]), step, own, config)


def stable_id(*words: str) -> str:
    """An id that is the same for the same words."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def without_secrets(value: Any) -> Any:
    """A copy of settings in which what may be a secret is hidden: by its name, and inside URLs."""
    if isinstance(value, Mapping):
        return {
            str(name): HIDDEN if _SECRET_NAME.search(str(name)) and isinstance(below, str) else without_secrets(below)
            for name, below in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    if isinstance(value, str):
        return _KEY_OF_URL.sub(rf"\g<1>{HIDDEN}", _USER_OF_URL.sub(f"{HIDDEN}@", value))
    return value
