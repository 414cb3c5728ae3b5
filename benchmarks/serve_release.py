"""A release of any size for load tests: a drawn log through ingest, drawn item vectors, and `farsight index`."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

import data.ingest
from benchmarks.index_kinds import drawn
from data.dataset import PreparedDataset
from modeling.artifact import save_artifact
from modeling.build import build_retriever
from modeling.settings import ModelSettings, TransformerSettings
from serve.build import run as build_release

START = 1_700_000_000
EVENTS_PER_USER = 50
MAX_EVENTS = 100


def made_release(folder: Path, num_items: int, kind: str, seed: int = 0) -> Path:
    """A release whose item vectors are drawn and whose encoder is as it was born; kept for later runs.

    Args:
        kind: of index.
        seed: of the weights; the items are the same.
    """
    place = folder / f"{num_items}-{kind}-{seed}"
    if (place / "release" / "manifest.json").is_file():
        return place / "release"
    dataset = _dataset(folder / f"{num_items}", num_items)
    torch.manual_seed(seed)
    settings = ModelSettings(max_events=MAX_EVENTS, encoder=TransformerSettings(blocks=2, heads=2))
    vocabulary = dataset.vocabulary()
    retriever = build_retriever(settings, num_rows=vocabulary.num_rows, num_actions=0, catalogue=None, item_hashes=None)
    weights = retriever.state_dict()
    weights["items.weight"][1 : num_items + 1] = torch.from_numpy(drawn(num_items, settings.width)[0]).roll(
        seed, dims=0
    )
    save_artifact(place / "artifact", weights, settings, dataset)
    # Queries of an encoder that was not trained say nothing of recall; benchmarks.index_kinds measures it.
    recipe = {"index": {"search": {"kind": kind}, "min_recall": 0, "threads": 2}}
    build_release(str(place / "artifact"), str(place / "release"), recipe)
    return place / "release"


def request_bodies(num_items: int, count: int, k: int) -> list[bytes]:
    """Requests with histories drawn by popularity."""
    random = np.random.default_rng(1)
    bodies = []
    for _ in range(count):
        rows = (num_items ** random.random(EVENTS_PER_USER)).astype(int)
        history = [{"item_id": f"i{row}", "timestamp": START + 60 * event} for event, row in enumerate(rows.tolist())]
        bodies.append(json.dumps({"history": history, "k": k, "request_time": START + 100_000}).encode())
    return bodies


def _dataset(folder: Path, num_items: int) -> PreparedDataset:
    """Every item once, in users of equal length."""
    if (folder / "dataset" / "manifest.json").is_file():
        return PreparedDataset.open(folder / "dataset")
    (folder / "log").mkdir(parents=True, exist_ok=True)
    places = np.arange(num_items)
    events = {
        "user_id": [f"u{place // EVENTS_PER_USER}" for place in places],
        "item_id": [f"i{row}" for row in (np.random.default_rng(0).permutation(num_items) + 1).tolist()],
        "timestamp": START + 60 * places,
    }
    pl.DataFrame(events).write_parquet(folder / "log" / "part-00000.parquet")
    data.ingest.run(
        {"ingest": {"log": str(folder / "log"), "out": str(folder / "dataset"), "split": {"kind": "last_out"}}}
    )
    return PreparedDataset.open(folder / "dataset")
