"""`make demo`: the whole path on a simulated log, each step as the command that a user would type.

All steps run in this process and share one private Ray, which saves ten seconds a step and leaves nothing behind.
Run as `python -m cluster.demo [RECIPE] [a.b=c ...]`; everything is written to `runs/RECIPE/`, which is emptied first.
"""

import io
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click
import pyarrow.parquet as pq

from cluster import floors
from cluster.cli import cli
from cluster.output import set_up_logging
from cluster.recipe_files import find_recipe, read_recipe, split_words

HISTORY_EVENTS = 8
# Laid over the recipe for the second stage, which teaches the trained model to follow conditions.
FINE_TUNING = ("model.condition={kind: cgsa}", "train.epochs=2", "train.optimizer.learning_rate=3.0e-4")
# The answer is wanted this long after the history's last event.
SECONDS_LATER = 60


def walk(recipe: str, overrides: Sequence[str] = ()) -> None:
    """Go the whole path with a shipped recipe that has a `simulate` section."""
    run = Path("runs") / find_recipe(recipe).stem
    log, dataset, release = run / "log", run / "dataset", run / "release"
    pretrained, artifact = run / "train" / "artifact", run / "fine_tuning" / "artifact"
    words = [recipe, *overrides]
    shutil.rmtree(run, ignore_errors=True)
    started = time.monotonic()
    _command(["simulate", "--out", str(log), *words])
    _command(["ingest", *words])
    _command(["train", *words])
    places = [f"train.start_from={pretrained}", f"train.run_dir={artifact.parent}"]
    _command(["train", *words, *places, *FINE_TUNING])
    _command(["index", "--artifact", str(artifact), "--dataset", str(dataset), "--out", str(release), *words])
    with _endpoint(release, words) as url:
        oracle = f"oracle={log / 'oracle.parquet'}"
        asked = ["evaluate", "--artifact", str(artifact), "--dataset", str(dataset), "--rankings", oracle]
        _command([*asked, *words])
        history = run / "history.json"
        request_time, category = _write_one_history(log, history)
        question = ["retrieve", "--url", url, "--history", str(history), "--request-time", str(request_time)]
        _command(question)
        _command([*question, "--condition", category])
    click.echo(f"\nthe whole path took {time.monotonic() - started:.0f} s; everything is in {run}/")


def _command(words: Sequence[str]) -> None:
    """Print a command, run it here, print how long it took; stop the walk if it fails."""
    click.secho(f"\n$ farsight {shlex.join(words)}", bold=True)
    started = time.monotonic()
    code = cli.main(list(words), prog_name="farsight", standalone_mode=False)
    if code:
        sys.exit(code)
    click.echo(f"({time.monotonic() - started:.1f} s)")


@contextmanager
def _endpoint(release: Path, words: Sequence[str]) -> Iterator[str]:
    """Serve a release while the body runs. `farsight serve` itself would wait for an interrupt."""
    click.secho(f"\n$ farsight serve {shlex.join([str(release), *words])} &", bold=True)
    started = time.monotonic()
    result = floors.start(floors.SERVE, release=str(release), recipe=read_recipe(words[0], words[1:]), blocking=False)
    click.echo(f"answering at {result['url']} ({time.monotonic() - started:.1f} s)")
    try:
        yield result["url"]
    finally:
        # Ray prints the controller that it stops here as a task that failed.
        with redirect_stdout(io.StringIO()):
            floors.start(floors.STOP_SERVING)


def _write_one_history(log: Path, path: Path) -> tuple[int, str]:
    """Write the newest events of the user whose event is last in the log, show them; when to ask, and for what."""
    shard = max((log / "events").iterdir())
    columns = ["user_id", "item_id", "timestamp", "action"]
    rows = pq.read_table(shard, columns=columns).to_pylist()
    user = rows[-1]["user_id"]
    events = [{name: row[name] for name in columns[1:]} for row in rows if row["user_id"] == user][-HISTORY_EVENTS:]
    path.write_text(json.dumps(events, indent=2), encoding="utf-8")
    catalogue = {row["item_id"]: row for row in pq.read_table(log / "catalogue.parquet").to_pylist()}
    seen = ", ".join(f"{event['item_id']} ({catalogue[event['item_id']].get('title')})" for event in events)
    click.echo(f"\nuser {user} has lately seen: {seen}")
    # Not of the newest event, whose like the answer would hold anyway.
    category = catalogue[events[0]["item_id"]]["categories"][-1]
    return int(events[-1]["timestamp"]) + SECONDS_LATER, category


def main() -> None:
    """Entry point of `make demo`."""
    # An ordinary exit: Ray then stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    set_up_logging(verbose=False)
    name, overrides = split_words(sys.argv[1:])
    walk(name or "demo", overrides)


if __name__ == "__main__":
    main()
