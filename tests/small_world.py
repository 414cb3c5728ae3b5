"""A small prepared dataset and an untrained artifact of it, for the tests of training and serving."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.catalogue import TEXT, TEXTS
from data.dataset import CATALOGUE, FORMAT_VERSION, HISTORIES, KIND, PreparedDataset
from data.schema import HISTORY_SCHEMA
from data.storage import MANIFEST, directory_hashes, published_directory, write_json
from data.vocabulary import Vocabulary
from modeling.artifact import Artifact, save_artifact
from modeling.build import build_retriever
from modeling.hashed_table import row_hashes
from modeling.objectives_settings import ObjectivesSettings
from modeling.settings import (
    ConditionSettings,
    HashedItems,
    HstuSettings,
    ItemRows,
    ModelSettings,
    TransformerSettings,
)
from modeling.token_settings import FeatureItems, TokenSettings

NUM_ITEMS = 60
MAX_EVENTS = 8
ACTIONS = ["click", "like"]
START = 1_700_000_000


def item_id(row: int) -> str:
    """External id of a row."""
    return f"i{row:03d}"


def write_dataset(
    directory: Path,
    num_users: int = 20,
    num_items: int = NUM_ITEMS,
    *,
    test_events: int = 1,
    same_times: bool = False,
    side: Mapping[str, pa.Array] | None = None,
) -> PreparedDataset:
    """A prepared dataset of random histories, last out; item popularity has ties.

    Args:
        same_times: whether times are few, so that many events of a history share one.
        side: further columns of the catalogue.
    """
    random = np.random.default_rng(0)
    vocabulary = Vocabulary([item_id(row) for row in range(1, num_items + 1)])
    rows = []
    for user in range(num_users):
        length = int(random.integers(3, 20))
        times = np.sort(START + random.integers(0, 10**6, length))
        times -= times % 100_000 if same_times else 0
        held = int(length >= test_events + 2)
        rows.append(
            {
                "user_id": f"u{user}",
                "user_key": user,
                "items": random.integers(1, num_items + 1, length).tolist(),
                "times": times.tolist(),
                "actions": random.integers(0, 3, length).tolist(),
                "requests": [-1] * length,
                "weights": [1.0] * length,
                "num_train": length - held * (test_events + 1),
                "num_validation": held,
                "num_test": held * test_events,
            }
        )
    with published_directory(directory) as aside:
        vocabulary.save(aside)
        rows_of_items = range(1, num_items + 1)
        catalogue = {
            "item_id": pa.array(vocabulary.item_ids, TEXT),
            "categories": pa.array(
                [["even" if row % 2 == 0 else "odd", *(["tenth"] * (row % 10 == 0))] for row in rows_of_items], TEXTS
            ),
            "title": pa.array([f"Title {row}" for row in range(1, num_items + 1)], TEXT),
            "first_seen": pa.array([START + 10_000 * row for row in range(1, num_items + 1)], pa.int64()),
            "train_events": pa.array([row % 7 for row in range(1, num_items + 1)], pa.int64()),
            **(side or {}),
        }
        pq.write_table(pa.table(catalogue), aside / CATALOGUE)
        (aside / HISTORIES).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, HISTORY_SCHEMA), aside / HISTORIES / "part-00000.parquet")
        manifest = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "counts": {
                "users": num_users,
                "items": num_items,
                "users_with_validation": sum(row["num_validation"] > 0 for row in rows),
                "users_with_test": sum(row["num_test"] > 0 for row in rows),
            },
            "split": {"kind": "last_out", "test_events": test_events},
            "actions": ACTIONS,
            "has_times": True,
            "vocabulary_hash": vocabulary.content_hash,
            "files": directory_hashes(aside),
            "shards": [{"file": f"{HISTORIES}/part-00000.parquet", "rows": num_users}],
        }
        write_json(aside / MANIFEST, manifest)
    return PreparedDataset.open(directory)


def in_shards(directory: Path, num_shards: int, num_users: int = 70) -> PreparedDataset:
    """A dataset of several history files."""
    dataset = write_dataset(directory, num_users=num_users)
    histories = pq.read_table(dataset.shards[0])
    shards = []
    for shard in range(num_shards):
        rows = np.arange(shard, len(histories), num_shards)
        shards.append({"file": f"{HISTORIES}/part-{shard:05d}.parquet", "rows": len(rows)})
        pq.write_table(histories.take(pa.array(rows)), directory / shards[-1]["file"])
    files = directory_hashes(directory, lambda name: name != MANIFEST)
    write_json(directory / MANIFEST, {**dataset.manifest, "shards": shards, "files": files})
    return PreparedDataset.open(directory)


def write_artifact(
    directory: Path,
    dataset: PreparedDataset,
    *,
    seed: int = 0,
    needs_times: bool = True,
    num_twins: int = 0,
    condition: ConditionSettings | None = None,
    items: HashedItems | FeatureItems | None = None,
    tokens: TokenSettings | None = None,
    objectives: ObjectivesSettings | None = None,
) -> Artifact:
    """An artifact with random weights; the first `num_twins` items share one vector, so they always tie.

    Args:
        items: how vectors come from hashes or features; None for a row per item.
        tokens: the token level below the encoder's blocks; None for none.
    """
    torch.manual_seed(seed)
    encoder = HstuSettings(blocks=1, query_width=8, value_width=8) if needs_times else TransformerSettings(blocks=1)
    settings = ModelSettings(
        width=16,
        max_events=MAX_EVENTS,
        use_actions=True,
        encoder=encoder,
        condition=condition,
        objectives=objectives,
        items=items or ItemRows(),
        tokens=tokens,
    )
    vocabulary = dataset.vocabulary()
    retriever = build_retriever(
        settings,
        num_rows=vocabulary.num_rows,
        num_actions=len(ACTIONS),
        catalogue=dataset.catalogue(),
        item_hashes=row_hashes(vocabulary.item_ids),
    )
    with torch.no_grad():
        # The initial biases are zero, which would hide that times, actions and positions matter.
        for parameter in retriever.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if items is None and objectives is None:
            retriever.items.weight[0].zero_()
            retriever.items.weight[1 : num_twins + 1] = retriever.items.weight[1]
    return save_artifact(directory, retriever.state_dict(), settings, dataset)
