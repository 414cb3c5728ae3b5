"""A sharded item table beside DeepSpeed on two real ranks: the same weights and the same metrics as one whole table."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from data.batch import Batch, collate
from data.cases import split_cases
from data.dataset import PreparedDataset
from data.encode import encode_histories
from modeling.build import build_retriever
from modeling.item_table import ItemTable
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from modeling.table_files import BLOCK
from tests.ports import free_port
from tests.ranks import join_ranks
from tests.small_world import write_dataset
from trainer.engine import plain_weights, start_engine
from trainer.evaluation import RetrieverScorer, evaluate_cases
from trainer.ranks import Ranks
from trainer.settings import EngineSettings, OptimizerSettings, ShardedTableSettings
from trainer.sharded_evaluation import ShardedRanker
from trainer.step import train_step
from trainer.table import Table, start_table

STEPS = 6
NUM_ITEMS = 3 * BLOCK  # of the table's four blocks the last has a single row
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_steps=1)
SETTINGS = ModelSettings.model_validate(
    {
        "width": 8,
        "max_events": 6,
        "dropout": 0.0,
        "encoder": {"kind": "hstu", "blocks": 2, "query_width": 8, "value_width": 8},
        "prediction": {"heads": 2, "hidden": "strict", "gap": 60},
        "negatives": {"kind": "mixed", "num_uniform": 20, "num_in_batch": 5},
    }
)


def _retriever(items: ItemTable | None = None) -> Retriever:
    counts = np.ones(NUM_ITEMS + 1, np.int64)
    torch.manual_seed(0)
    whole = build_retriever(SETTINGS, num_rows=NUM_ITEMS + 1, num_actions=0, train_counts=counts)
    if items is None:
        return whole
    built = build_retriever(SETTINGS, num_rows=NUM_ITEMS + 1, num_actions=0, train_counts=counts, items=items)
    dense = {name: value for name, value in whole.state_dict().items() if not name.startswith("items.")}
    built.load_state_dict(dense)
    return built


def _table(optimizer: str = "lazy_adam") -> Table:
    settings = ShardedTableSettings(kind="sharded", optimizer=optimizer)  # type: ignore[arg-type]
    table = start_table(settings, OPTIMIZER, num_rows=NUM_ITEMS + 1, width=8, seed=0, device=torch.device("cpu"))
    assert table is not None
    return table


def _batch(step: int, rank: int) -> Batch:
    random = np.random.default_rng([step, rank])
    items = [random.integers(1, NUM_ITEMS + 1, 6) for _ in range(5)]
    times = [np.sort(random.integers(10**9, 10**9 + 1000, 6)) for _ in range(5)]
    if (step, rank) == (2, 1):  # a rank whose batch has nothing to learn: all one burst
        times = [np.full(6, 10**9) for _ in range(5)]
    batch = collate(encode_histories(items, times, [np.zeros(6)] * 5, [int(row[-1]) for row in times], max_events=6))
    batch["targets_BL"] = batch["items_BL"].roll(-1, 1)
    return batch


def _generator(step: int, rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 * step + rank)


def _rows(table: Table) -> Tensor:
    with torch.no_grad():
        return table.rows.hold(torch.arange(NUM_ITEMS + 1)).vectors_UD


def _rank(rank: int, port: int, directory: str) -> None:
    join_ranks(rank, 2, port)
    ranks = Ranks(rank, 2)
    for stage in (0, 1, 3):
        table = _table()
        engine = start_engine(
            _retriever(table.rows), EngineSettings(zero_stage=stage, gradient_clipping=0), OPTIMIZER, total_steps=100
        )
        for step in range(STEPS):
            train_step(
                engine,
                _batch(step, rank),
                table=table,
                generator=_generator(step, rank),
                ranks=ranks,
                where="",
                measure_norm=False,
            )
        weights, rows = plain_weights(engine), _rows(table)
        if rank == 0:
            torch.save({"dense": weights, "items": rows}, Path(directory, f"stage-{stage}.pt"))
    # Users are dealt to ranks unevenly, and one rank has batches left when the other is done.
    dataset = PreparedDataset.open(Path(directory, "dataset"))
    trained = _retriever(table.rows)
    trained.load_state_dict(weights)
    ranker = ShardedRanker(trained.eval(), table.rows, ranks, max_events=6, train_events_V=dataset.train_counts())
    for remove_seen in (True, False):
        cases = split_cases(dataset, "test", users_per_batch=7, gap_seconds=300_000, rank=rank, world=2)
        totals = ranker.evaluate(cases, ks=(5, 10), remove_seen=remove_seen).over_ranks(ranks)
        if rank == 0:
            torch.save(totals.means(), Path(directory, f"metrics-{remove_seen}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    write_dataset(directory / "dataset", num_users=61, num_items=NUM_ITEMS)
    sys.path.insert(0, str(Path(__file__).parent))  # the spawned ranks import this file by its name
    mp.spawn(_rank, args=(free_port(), str(directory)), nprocs=2)  # type: ignore[no-untyped-call]
    return directory


def _plain_training() -> dict[str, Tensor]:
    """Both ranks' batches in one process; AdamW for the dense part, `SparseAdam` for the items."""
    retriever = _retriever()
    items = retriever.get_parameter("items.weight")
    items.data = _rows(_table()).clone()
    dense = [value for name, value in retriever.named_parameters() if name != "items.weight"]
    adam = torch.optim.AdamW(dense, lr=1e-2, betas=(0.9, 0.98), weight_decay=0)
    sparse_adam = torch.optim.SparseAdam([items], lr=1e-2, betas=(0.9, 0.98))
    for step in range(STEPS):
        adam.zero_grad()
        losses = [retriever(_batch(step, rank), _generator(step, rank))["loss"] for rank in range(2)]
        (sum(losses) / 2).backward()  # type: ignore[union-attr]
        assert items.grad is not None
        items.grad[0] = 0
        items.grad = items.grad.to_sparse(1)
        adam.step()
        sparse_adam.step()
        items.grad = None
    return {name: value.detach().clone() for name, value in retriever.state_dict().items()}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_two_ranks_with_half_the_items_each_train_what_plain_pytorch_does(two_ranks: Path, stage: int) -> None:
    found = torch.load(two_ranks / f"stage-{stage}.pt", weights_only=True)
    expected = _plain_training()
    items = expected.pop("items.weight")
    # Adam divides by small numbers, so that rounding of the gradients' sum grows a little.
    torch.testing.assert_close(found["items"], items, atol=2e-4, rtol=2e-3)
    assert found["dense"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found["dense"][name], value, atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("remove_seen", [True, False])
def test_metrics_over_shards_are_those_over_the_whole_table(two_ranks: Path, remove_seen: bool) -> None:
    trained = torch.load(two_ranks / "stage-3.pt", weights_only=True)
    dataset = PreparedDataset.open(two_ranks / "dataset")
    whole = _retriever()
    whole.load_state_dict({**trained["dense"], "items.weight": trained["items"]})
    scorer = RetrieverScorer(whole.eval(), max_events=6, train_events_V=dataset.train_counts())
    cases = split_cases(dataset, "test", users_per_batch=7, gap_seconds=300_000)
    expected = evaluate_cases(scorer, cases, num_rows=NUM_ITEMS + 1, ks=(5, 10), remove_seen=remove_seen).means()
    found = torch.load(two_ranks / f"metrics-{remove_seen}.pt", weights_only=True)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 < found["hr@10"] < 1
