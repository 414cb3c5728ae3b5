"""MLflow: a server, or a local SQLite store, whose runs `mlflow server --backend-store-uri URI` shows."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.tracking.contract import AXES, GLOBAL_STEP, RunFacts
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings

RUN_ID = "farsight_run_id"  # MLflow chooses ids itself; by this tag a run is found again
LOCAL = "sqlite:///"
# Of MLflow: what one call takes, and how long a value may be.
MAX_PARAMS = 100
MAX_PARAM_LETTERS = 6000
MAX_TAG_LETTERS = 8000


class Mlflow:
    """An MLflow run with parameters, metrics over global_step, tables and lineage as files, alerts as tags."""

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._run_id = ""

    def start(self, run: RunFacts) -> None:
        """Begin a run in the project's experiment, or find the one of the same id and go on with it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it reports its own use, from its import on
        from mlflow import MlflowClient  # slow to import

        for library in ("mlflow", "alembic"):  # which tell of each table that they make
            logging.getLogger(library).setLevel(logging.WARNING)
        uri = self._settings.mlflow.uri
        assert uri is not None, "data.tracking.build settles it"
        if uri.startswith(LOCAL):
            Path(uri.removeprefix(LOCAL)).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=uri)
        experiment_id = self._experiment(uri)
        found = self._client.search_runs([experiment_id], f"tags.{RUN_ID} = '{run.run_id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            self._client.set_tag(self._run_id, "resumed_at", str(run.resumed_at))
            return
        tags = {RUN_ID: run.run_id, "step": run.step, "directory": str(run.directory)}
        if self._settings.group is not None:
            tags["group"] = self._settings.group
        self._run_id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        self._log_params(run.config)

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Log metrics at global_step, those of the other axes among them."""
        from mlflow.entities import Metric

        now, step = time.time_ns() // 10**6, axes.get(GLOBAL_STEP, 0)
        others = {name: axes[name] for name in AXES if name in axes and name != GLOBAL_STEP}
        metrics = [Metric(name, float(value), now, step) for name, value in {**figures, **others}.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Keep it as a file per step, in the form that MLflow shows as a table."""
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self._run_id, content, f"tables/{name}/step-{axes.get(GLOBAL_STEP, 0):08d}.json")

    def alert(self, title: str, text: str) -> None:
        """Set the tag `alert`: MLflow has no way to call a person."""
        self._client.set_tag(self._run_id, "alert", f"{title}: {text}"[:MAX_TAG_LETTERS])

    def used(self, piece: Published) -> None:
        """Note what names it, as a tag to search for and as a file."""
        self._lineage("used", piece)

    def made(self, piece: Published) -> None:
        """Note what names it, as a tag to search for and as a file."""
        self._lineage("made", piece)
        if self._settings.upload and piece.kind != "dataset":
            self._client.log_artifacts(self._run_id, str(piece.directory), piece.kind)

    def finish(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _experiment(self, uri: str) -> str:
        name = self._settings.project
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A local store would otherwise put files into whatever folder the process runs in.
        place = Path(uri.removeprefix(LOCAL)).parent / "files" if uri.startswith(LOCAL) else None
        return str(self._client.create_experiment(name, None if place is None else place.as_uri()))

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:MAX_PARAM_LETTERS]) for name, value in _flat(config)]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS])

    def _lineage(self, role: str, piece: Published) -> None:
        facts = {"kind": piece.kind, "content_hash": piece.content_hash, "directory": str(piece.directory)}
        self._client.set_tag(self._run_id, f"{role}.{piece.kind}", piece.content_hash)
        self._client.log_text(self._run_id, json.dumps(facts, indent=2), f"lineage/{role}-{piece.kind}.json")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by path: `train.epochs`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
