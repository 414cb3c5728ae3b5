"""The commands behind training: index, serve, predict, and asking what is served."""

from pathlib import Path
from typing import Any

import click

from cluster import floors
from cluster.command_line import command, recipe_of, recipe_words, show
from cluster.tables import print_answer, print_releases

# Where `farsight serve` listens unless told otherwise, and where `farsight retrieve` asks.
DEFAULT_URL = "http://127.0.0.1:8000"

SEEN = click.Choice(["removed", "kept"])


@click.command()
@click.option("--artifact", required=True, type=click.Path(), help="Artifact that training wrote.")
@click.option("--out", type=click.Path(), help="Release to write; by default `release` beside the artifact.")
@click.option("--dataset", type=click.Path(), help="Measure the index's recall on this dataset's histories.")
@recipe_words
@command
def index(artifact: str, out: str | None, dataset: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    """Build the FAISS index of an artifact's item vectors and write both as a release.

    Example: farsight index --artifact runs/demo/artifact index.search.kind=ivf
    """
    place = out or str(Path(artifact).parent / "release")
    return floors.tracked("index", floors.INDEX, artifact=artifact, out=place, recipe=recipe_of(words), dataset=dataset)


@click.command()
@click.argument("registry", type=click.Path())
@click.option("--add", metavar="RELEASE", type=click.Path(), help="Take this release in; the first makes the registry.")
@click.option("--keep", type=click.IntRange(min=1), help="Remove all but the newest so many, `current` and `previous`.")
@command
def releases(registry: str, add: str | None, keep: int | None) -> None:
    """List the releases of a registry, after adding or removing some.

    Where a command takes a RELEASE, it also takes REGISTRY/latest (added last), REGISTRY/current (deployed last),
    REGISTRY/previous (deployed before it) and REGISTRY/ID, of which the first digits will do. REGISTRY alone is
    the current release, or the latest where none was deployed yet.

    Example: farsight releases runs/releases --add runs/demo/release --keep 10
    """
    show(floors.start(floors.RELEASES, registry=registry, add=add, keep=keep), print_releases)


@click.command()
@click.argument("release", type=click.Path())
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port; short for serve.port=N.")
@recipe_words
@command
def serve(release: str, port: int | None, words: tuple[str, ...]) -> None:
    """Serve a release over HTTP (Ray Serve) until interrupted.

    Example: farsight serve runs/demo/release --port 8000
    """
    overrides = () if port is None else (f"serve.port={port}",)
    # Printed when the endpoint answers, not when it stops.
    floors.start(floors.SERVE, release=release, recipe=recipe_of(words + overrides), blocking=True, on_ready=show)


@click.command()
@click.argument("release", type=click.Path())
@click.option(
    "--address", help="Ray that serves, as `farsight serve` prints it; by default RAY_ADDRESS or this machine's."
)
@recipe_words
@command
def deploy(release: str, address: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    """Serve another release in the place of the running one, without a pause; the earlier one again rolls back.

    From a registry (`farsight releases`), REGISTRY/previous is the earlier one.

    Example: farsight deploy runs/releases/latest
    """
    return floors.start(floors.DEPLOY, release=release, recipe=recipe_of(words), address=address)


@click.command()
@click.argument("release", type=click.Path())
@click.option("--dataset", type=click.Path(), required=True, help="Prepared dataset whose users are answered.")
@click.option("--out", type=click.Path(), required=True, help="Directory to write, one Parquet file per shard.")
@recipe_words
@command
def predict(release: str, dataset: str, out: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Answer all users of a prepared dataset at once; a run that was stopped goes on where it was.

    Example: farsight predict runs/demo/release --dataset runs/demo/dataset --out runs/demo/predictions predict.k=50
    """
    return floors.start(floors.PREDICT, release=release, dataset=dataset, out=out, recipe=recipe_of(words))


@click.command("seed-histories")
@click.option("--dataset", type=click.Path(), required=True, help="Prepared dataset whose histories are stored.")
@recipe_words
@command
def seed_histories(dataset: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Give endpoints the histories of a prepared dataset, so that they can be asked by user.

    Up to the dataset's newest event its histories replace what is stored of its users; later events stay.

    Example: farsight seed-histories --dataset runs/demo/dataset serve.histories.path=runs/histories.sqlite
    """
    return floors.start(floors.SEED_HISTORIES, dataset=dataset, recipe=recipe_of(words))


@click.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Address that `farsight serve` printed.")
@click.option("--item", "items", multiple=True, help="Id of an item in the history; repeat it, oldest first.")
@click.option(
    "--history", type=click.Path(), help="JSON file: a list of ids or of events (item_id, timestamp, action)."
)
@click.option("--user", help="Instead of a history: the user whose stored events are meant.")
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Items wanted.")
@click.option("--request-time", type=int, help="Seconds UTC at which the answer is wanted; now by default.")
@click.option("--exclude", "excluded", multiple=True, help="Id of an item to leave out; repeat it.")
@click.option("--seen", type=SEEN, default="removed", show_default=True, help="Whether the history can be answers.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME", help="Category or pool; repeat it.")
@click.option("--hard", is_flag=True, help="Nothing that does not satisfy the conditions.")
@click.option("--weight", "weights", multiple=True, metavar="NAME=X", help="Weight of an objective; repeat it.")
@click.option("--deadline-ms", type=click.IntRange(min=1), help="Milliseconds that the endpoint may take.")
@click.option("--token", envvar="FARSIGHT_TOKEN", help="Token of the endpoint; by default FARSIGHT_TOKEN.")
@command
def retrieve(
    url: str,
    items: tuple[str, ...],
    history: str | None,
    user: str | None,
    seen: str,
    excluded: tuple[str, ...],
    conditions: tuple[str, ...],
    hard: bool,
    weights: tuple[str, ...],
    **asked: Any,
) -> None:
    """Ask a running endpoint for items.

    Example: farsight retrieve --item i00012 --item i00340 --k 5
    """
    if sum(map(bool, (items, history, user))) != 1:
        raise click.UsageError("Give the history as --item ID (repeated) or as --history FILE, or name a --user.")
    answer = floors.start(
        floors.RETRIEVE,
        url=url,
        history=None if user else history or list(items),
        user=user,
        exclude_seen=seen == "removed",
        exclude_item_ids=list(excluded),
        conditions=[{"any_of": list(conditions), "hard": hard}] if conditions else [],
        objective_weights=dict(map(_weight, weights)) or None,
        **asked,
    )
    show(answer, print_answer)


def _weight(stated: str) -> tuple[str, float]:
    name, sign, value = stated.partition("=")
    try:
        return name, float(value)
    except ValueError:
        expected = "a number behind the =" if sign else "NAME=X, such as click=1"
        raise click.UsageError(f"--weight {stated}: expected {expected}.") from None


SERVING = (index, releases, serve, deploy, predict, seed_histories, retrieve)
