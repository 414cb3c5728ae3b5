"""Weights & Biases: one run per run, figures over our own axes, lineage as artifacts by reference."""

import base64
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

from data.storage import MANIFEST
from data.tracking.contract import AXES, EPOCH, GLOBAL_STEP, Degraded, RunFacts
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings

logger = logging.getLogger(__name__)

# Seconds that a server may take to answer the start of a run.
INIT_SECONDS = 30
# Figures whose best value tells more than their last, and which end of them is best.
_BEST = {"train/loss": "min", "eval/ndcg_at_10": "max", "eval/recall_at_10": "max"}


class Wandb:
    """A W&B run in `wandb` of the run's directory, which goes on under the same id after a failure.

    Steps: W&B's own only grows, so it counts our rows over all attempts (`wandb/rows-ID`), and figures are drawn over
    `global_step` or `epoch`, which may step back.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._run: Any = None
        self._rows_file = Path()
        self._rows = 0

    def start(self, run: RunFacts) -> None:
        """Begin or go on; offline where the server cannot be reached.

        Raises:
            Degraded: it is offline and was to be online.
        """
        wandb.setup(wandb.Settings(silent=True))  # or it would ask a person for a key
        mode = self._settings.wandb.mode
        failure = None
        try:
            self._run = self._init(run, mode)
        except wandb.Error as error:
            if mode == "offline":
                raise
            failure = error
            wandb.teardown()  # or the id is still taken by the run that could not start
            wandb.setup(wandb.Settings(silent=True))
            self._run = self._init(run, "offline")
        self._rows_file = run.directory / "wandb" / f"rows-{run.run_id}"
        stored = int(self._rows_file.read_text()) if self._rows_file.is_file() else 0
        self._rows = max(stored, int(self._run.step))
        for axis in AXES:
            self._run.define_metric(axis, hidden=True)
        for group in ("train", "data", "system"):
            self._run.define_metric(f"{group}/*", step_metric=GLOBAL_STEP)
        self._run.define_metric("eval/*", step_metric=EPOCH)
        for name, best in _BEST.items():
            step_metric = EPOCH if name.startswith("eval/") else GLOBAL_STEP
            self._run.define_metric(name, step_metric=step_metric, summary=f"{best},last")
        if failure is not None:
            folder = run.directory / "wandb"
            raise Degraded(f"offline, since going online failed ({failure}); wandb sync {folder} sends it later")

    def _init(self, run: RunFacts, mode: str) -> Any:
        return wandb.init(
            project=self._settings.project,
            entity=self._settings.wandb.entity,
            group=self._settings.group,
            job_type=run.step,
            id=run.run_id,
            name=run.name,
            dir=str(run.directory),
            mode=mode,  # type: ignore[arg-type]  # checked by the settings
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(
                silent=True,
                init_timeout=INIT_SECONDS,
                save_code=False,
                # What workers print stays in Ray's log files, and the command line of a worker, with the address and
                # at times the password of its cluster, goes nowhere; hardware and versions are in our config.
                console="off",
                x_disable_meta=True,
            ),
        )

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Log them as one row of the history."""
        self._log({**figures, **axes})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Log a W&B table, which the panel of its name shows."""
        self._log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows]), **axes})

    def alert(self, title: str, text: str) -> None:
        """Send an alert, which W&B mails or posts as its user has set."""
        self._run.alert(title=title, text=text, level="ERROR")

    def used(self, piece: Published) -> None:
        """Draw the edge into the run; a piece that W&B does not know yet becomes known."""
        self._note("used", piece)
        artifact = self._artifact(piece, upload=False)
        if self._run.offline:
            # use_artifact refuses to work offline, although its record needs no server: wandb sync draws the edge.
            self._run._log_artifact(
                artifact, aliases=[piece.content_hash[:12]], is_user_created=True, use_after_commit=True
            )
        else:
            self._run.use_artifact(artifact, aliases=[piece.content_hash[:12]])

    def made(self, piece: Published) -> None:
        """Draw the edge out of the run."""
        self._note("made", piece)
        artifact = self._artifact(piece, upload=self._settings.upload and piece.kind != "dataset")
        self._run.log_artifact(artifact, aliases=["latest", piece.content_hash[:12]])

    def finish(self, *, failed: bool) -> None:
        """End the run, as finished or failed."""
        self._run.finish(exit_code=int(failed))

    def _log(self, content: dict[str, Any]) -> None:
        self._rows += 1
        self._rows_file.write_text(str(self._rows))
        self._run.log(content, step=self._rows)

    def _note(self, role: str, piece: Published) -> None:
        """Beside the artifact, what names it in the run's own config."""
        facts = {"directory": str(piece.directory), "content_hash": piece.content_hash}
        self._run.config.update({f"{role}_{piece.kind}": facts}, allow_val_change=True)

    def _artifact(self, piece: Published, *, upload: bool) -> Any:
        """The piece as a W&B artifact: equal content, wherever it lies, is the same version."""
        facts = {"content_hash": piece.content_hash, "directory": str(piece.directory), **_metadata(piece)}
        name = "-".join(part for part in (self._settings.group, piece.kind) if part)
        artifact = wandb.Artifact(name, piece.kind, metadata=facts)
        if upload:
            artifact.add_dir(str(piece.directory))
            return artifact
        # Where each file lies and our own hash of it: W&B would read all of them again to make one.
        hashes = {MANIFEST: piece.content_hash, **piece.hashes()}
        for path, size in piece.sizes().items():
            if path in hashes:
                digest = base64.b64encode(bytes.fromhex(hashes[path])).decode()
                ref = (piece.directory / path).as_uri()
                artifact.manifest.add_entry(ArtifactManifestEntry(path=path, ref=ref, digest=digest, size=size))
        return artifact


def _metadata(piece: Published) -> dict[str, Any]:
    """Of the manifest what a person compares versions by; lists of files are in the artifact itself."""
    names = ("counts", "split", "recall", "release_id", "artifact_hash", "vocabulary_hash", "format_version")
    return {name: piece.manifest[name] for name in names if name in piece.manifest}
