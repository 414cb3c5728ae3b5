"""Models of features and tokens over their life: begun from an artifact, trained, evaluated, indexed, asked."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as mp

import serve.build
import trainer.evaluate
import trainer.train
from data.batch import Batch, collate
from data.catalogue import TEXTS
from data.dataset import CATALOGUE, PreparedDataset
from data.encode import encode_histories
from data.errors import ArtifactMismatch, RecipeError
from modeling.artifact import Artifact
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import ModelSettings, PredictionSettings, SasrecSettings
from modeling.token_settings import FeatureItems, TokenSettings
from serve.answer import Query
from serve.engine import Engine
from tests.ports import free_port
from tests.ranks import join_ranks
from tests.small_world import ACTIONS, NUM_ITEMS, START, item_id, write_artifact, write_dataset
from tests.training_runs import recipe
from trainer.engine import learning_rate_factor, plain_weights, start_engine
from trainer.ranks import Ranks
from trainer.settings import EngineSettings, OptimizerSettings
from trainer.start import check_start, start_from
from trainer.step import train_step

ITEMS = FeatureItems(kind="features", numbers=("price",), number_buckets=4, contents=("image",), pool_width=16)
TOKENS = TokenSettings(window=2, feedforward_width=16)


def described(dataset: PreparedDataset, *, renamed: dict[str, str] | None = None) -> PreparedDataset:
    """The dataset with side features in its catalogue.

    Args:
        renamed: new names of the categories of the items that are no part of the smallest world.
    """
    table = dataset.catalogue()
    random = np.random.default_rng(4)
    image = random.normal(size=(len(table), 3)).astype(np.float32)
    # Prices come again and again, so that more items leave the quantiles where they are.
    price = pa.array([None if row % 6 == 0 else float(row % 5) for row in range(len(table))])
    names = [
        [(renamed or {}).get(name, name) if row >= NUM_ITEMS else name for name in of_one]
        for row, of_one in enumerate(table.column("categories").to_pylist())
    ]
    table = table.set_column(table.column_names.index("categories"), "categories", pa.array(names, TEXTS))
    table = table.append_column("price", price).append_column("image", pa.array(image.tolist(), pa.list_(pa.float32())))
    pq.write_table(table, dataset.directory / CATALOGUE)
    return PreparedDataset.open(dataset.directory)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    directory = tmp_path_factory.mktemp("begun")
    return write_artifact(
        directory / "artifact", described(write_dataset(directory / "dataset")), items=ITEMS, tokens=TOKENS
    )


def test_a_grown_catalogue_goes_on_and_its_new_items_have_vectors_of_their_features(
    begun: Artifact, tmp_path: Path
) -> None:
    # Its new category comes first by name, so that every category has another number than before.
    grown = described(write_dataset(tmp_path / "grown", num_items=NUM_ITEMS + 10), renamed={"odd": "aaa"})
    check_start(str(begun.directory), begun.settings, grown)
    torch.manual_seed(7)
    retriever = build_retriever(
        begun.settings, num_rows=grown.num_rows, num_actions=len(ACTIONS), catalogue=grown.catalogue()
    ).eval()
    fresh = retriever.get_submodule("items.values.categories").weight[1].clone()
    start_from(str(begun.directory), retriever, frozen="backbone")
    old, rows = begun.load_retriever(), torch.arange(NUM_ITEMS + 1)
    torch.testing.assert_close(retriever.item_vectors(rows), old.item_vectors(rows))
    assert torch.equal(retriever.get_submodule("items.values.categories").weight[1], fresh)
    names = grown.catalogue().to_pylist()
    unseen = [row for row in range(1, grown.num_rows) if not names[row - 1]["train_events"]]
    assert max(unseen) > NUM_ITEMS
    told = retriever.items.values(torch.tensor(unseen), torch.ones(len(unseen), dtype=torch.bool))  # type: ignore[operator, union-attr]
    assert (told[:, 0] == told[0, 0]).all()  # one id token for all of them
    learning = {name.split(".")[0] for name, value in retriever.named_parameters() if value.requires_grad}
    assert learning == {"branches"}


def test_other_tokens_or_actions_are_refused(begun: Artifact, tmp_path: Path) -> None:
    dataset = described(write_dataset(tmp_path / "dataset"))
    other = begun.settings.model_copy(update={"tokens": None})
    with pytest.raises(
        ArtifactMismatch, match=r"model.tokens is None, but .* has .*'window': 2.*; keep the artifact's"
    ):
        check_start(str(begun.directory), other, dataset)


@pytest.mark.parametrize(
    ("changes", "table", "message"),
    [
        ({}, "sharded", "keep the table replicated, or model.items.kind rows"),
        ({"numbers": ["cost"]}, "replicated", "no side column 'cost'; it has price, image"),
        ({"contents": ["price"]}, "replicated", "column 'price' of the catalogue is double, expected lists of numbers"),
    ],
)
def test_features_over_shards_or_of_unknown_columns_are_refused(
    tmp_path: Path, changes: dict[str, Any], table: str, message: str
) -> None:
    settings = recipe(tmp_path, item_table={"kind": table})
    described(PreparedDataset.open(tmp_path / "dataset"))
    settings["model"]["items"] = {"kind": "features", **changes}
    with pytest.raises(RecipeError, match=message):
        trainer.train.run(settings)
    assert not (tmp_path / "run").exists()


STEPS = 4
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_steps=3)


def _retriever(dataset: PreparedDataset) -> Retriever:
    """A retriever that drops nothing, so that ranks and reference draw nothing but the same negatives."""
    torch.manual_seed(0)
    settings = ModelSettings(
        width=8,
        max_events=6,
        dropout=0.0,
        items=ITEMS.model_copy(update={"id_dropout": 0.0}),
        tokens=TOKENS,
        encoder=SasrecSettings(blocks=1),
        prediction=PredictionSettings(heads=2, branch="shared"),
    )
    return build_retriever(
        settings,
        num_rows=dataset.num_rows,
        num_actions=len(ACTIONS),
        train_counts=dataset.train_counts(),
        catalogue=dataset.catalogue(),
    ).train()


def _batch(step: int, rank: int) -> Batch:
    random = np.random.default_rng([step, rank])
    items = [random.integers(1, NUM_ITEMS + 1, 6) for _ in range(5)]
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, 6)) for _ in range(5)]
    batch = collate(encode_histories(items, times, [np.ones(6)] * 5, [2 * 10**9] * 5, max_events=6))
    batch["targets_BL"] = batch["items_BL"].roll(-1, 1)
    return batch


def _rank(rank: int, port: int, directory: str) -> None:
    join_ranks(rank, 2, port)
    dataset = PreparedDataset.open(Path(directory, "dataset"))
    stage = EngineSettings(zero_stage=3, gradient_clipping=0.5)
    engine = start_engine(_retriever(dataset), stage, OPTIMIZER, total_steps=100)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        ranks = Ranks(rank, 2)
        train_step(engine, _batch(step, rank), generator=generator, ranks=ranks, where="", measure_norm=False)
    weights = plain_weights(engine)
    if rank == 0:
        torch.save(weights, Path(directory, "weights.pt"))
    torch.distributed.destroy_process_group()


def test_tokens_split_over_two_ranks_train_as_in_plain_pytorch(tmp_path: Path) -> None:
    dataset = described(write_dataset(tmp_path / "dataset"))
    sys.path.insert(0, str(Path(__file__).parent))  # the spawned ranks import this file by its name
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    retriever = _retriever(dataset)
    adam = torch.optim.AdamW(retriever.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, learning_rate_factor(OPTIMIZER, 100))
    for step in range(STEPS):
        adam.zero_grad()
        for rank in range(2):
            generator = torch.Generator().manual_seed(100 * step + rank)
            (retriever(_batch(step, rank), generator)["loss"] / 2).backward()
        torch.nn.utils.clip_grad_norm_(retriever.parameters(), 0.5)
        adam.step()
        schedule.step()
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert found.keys() == dict(retriever.named_parameters()).keys()
    for name, value in retriever.named_parameters():
        # Adam divides by small numbers, so that rounding of the gradients' sum grows a little.
        torch.testing.assert_close(found[name], value.detach(), atol=5e-4, rtol=5e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.ray
def test_a_run_goes_on_from_an_artifact_and_is_evaluated_indexed_and_asked(ray_session: None, tmp_path: Path) -> None:
    dataset = described(write_dataset(tmp_path / "dataset", num_users=60))
    begun = write_artifact(tmp_path / "begun", dataset, items=ITEMS, tokens=TOKENS)
    engine = {"zero_stage": 3, "precision": "bf16"}
    optimizer = {"learning_rate": 0.01, "warmup_steps": 0}
    settings = recipe(tmp_path, epochs=1, engine=engine, optimizer=optimizer, start_from=str(begun.directory))
    settings["model"] = begun.settings.model_dump(mode="json")
    settings["model"]["prediction"] = {"heads": 3, "branch": "shared"}
    summary = trainer.train.run(settings)
    found = trainer.evaluate.run(summary["artifact"], settings["train"]["dataset"], split="validation", recipe={})
    assert found["rows"][-1]["ndcg@10"] == pytest.approx(summary["validation"]["ndcg@10"], abs=1e-6)
    assert found["rows"][-1]["targets[cold]"] > 0
    ended, rows = Artifact.open(summary["artifact"]), torch.arange(1, NUM_ITEMS + 1)
    before_VD, after_VD = (artifact.load_retriever().item_vectors(rows) for artifact in (begun, ended))
    alike_V = (before_VD * after_VD).sum(-1)
    assert 0.3 < alike_V.mean() < 0.99  # it went on from them, and learned; bf16 alone leaves .9999
    run_index = serve.build.run(summary["artifact"], str(tmp_path / "release"), {})
    assert run_index["counts"]["items"] == NUM_ITEMS
    asked = Engine.open(tmp_path / "release")
    history = {"item_ids": [item_id(3), item_id(8)], "timestamps": [START, START + 50], "actions": ["click", None]}
    [answer] = asked.answer([Query(**history, k=5, request_time=START + 60)])  # type: ignore[arg-type]
    assert len(answer.item_ids) == 5
    assert answer.fallback is None
