"""DeepSpeed under every ZeRO stage on two real ranks, against one process of plain PyTorch."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from data.batch import Batch, collate
from data.encode import encode_histories
from data.errors import NonFiniteLoss
from modeling.build import build_retriever
from modeling.hashed_table import row_hashes
from modeling.retriever import Retriever
from modeling.settings import HashedItems, HstuSettings, ItemRows, ModelSettings
from tests.ports import free_port
from tests.ranks import join_ranks
from trainer.engine import deepspeed_config, learning_rate_factor, load_engine, plain_weights, start_engine
from trainer.ranks import Ranks
from trainer.settings import EngineSettings, OptimizerSettings
from trainer.step import train_step

STEPS = 6
SAVED_AT = 3
NUM_ROWS = 40
ROWS = ItemRows()
HASHED = HashedItems(kind="hashed", quotient_rows=5, remainder_rows=6)
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_steps=3)


def _retriever(items: ItemRows | HashedItems = ROWS) -> Retriever:
    torch.manual_seed(0)
    # Without dropout, so that ranks and reference draw nothing but the same negatives.
    settings = ModelSettings(
        width=8, max_events=6, dropout=0.0, encoder=HstuSettings(blocks=1, query_width=8, value_width=8), items=items
    )
    return build_retriever(
        settings,
        num_rows=NUM_ROWS,
        num_actions=0,
        train_counts=np.ones(NUM_ROWS, np.int64),
        item_hashes=row_hashes(map(str, range(1, NUM_ROWS))),
    )


def _batch(step: int, rank: int) -> Batch:
    random = np.random.default_rng([step, rank])
    items = [random.integers(1, NUM_ROWS, 6) for _ in range(5)]
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, 6)) for _ in range(5)]
    batch = collate(encode_histories(items, times, [np.zeros(6)] * 5, [2 * 10**9] * 5, max_events=6))
    batch["targets_BL"] = batch["items_BL"].roll(-1, 1)
    return batch


def _generator(step: int, rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 * step + rank)


def _plain_training(*, on_others_from: int = STEPS, items: ItemRows | HashedItems = ROWS) -> dict[str, torch.Tensor]:
    """Both ranks' batches in one process: the mean of their gradients, clipped, AdamW.

    From the step `on_others_from` on every rank has the batch of rank 0, however many ranks there are.
    """
    retriever = _retriever(items)
    adam = torch.optim.AdamW(retriever.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, learning_rate_factor(OPTIMIZER, 100))
    for step in range(STEPS):
        adam.zero_grad()
        ranks = range(2 if step < on_others_from else 1)
        losses = [retriever(_batch(step, rank), _generator(step, rank))["loss"] for rank in ranks]
        (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(retriever.parameters(), 0.5)
        adam.step()
        schedule.step()
    return {name: value.detach().clone() for name, value in retriever.state_dict().items()}


def _rank(rank: int, port: int, directory: str) -> None:
    """Train under each stage, save the weights, then meet a NaN that only rank 1 has."""
    join_ranks(rank, 2, port)
    ranks = Ranks(rank, 2)
    for stage in (0, 1, 2, 3):
        settings = EngineSettings(zero_stage=stage, gradient_clipping=0.5)
        engine = start_engine(_retriever(), settings, OPTIMIZER, total_steps=100)
        norms = []
        for step in range(STEPS):
            figures = train_step(
                engine, _batch(step, rank), generator=_generator(step, rank), ranks=ranks, where="", measure_norm=True
            )
            norms.append(figures["gradient_norm"])
            if step + 1 == SAVED_AT:
                engine.save_checkpoint(Path(directory, f"checkpoint-{stage}"), tag="engine")
        weights = plain_weights(engine)
        if rank == 0:
            torch.save({"weights": weights, "norms": norms}, Path(directory, f"stage-{stage}.pt"))
        if stage == 0:
            _meet_nan(engine, ranks, rank, directory)
    engine = start_engine(
        _retriever(HASHED), EngineSettings(zero_stage=3, gradient_clipping=0.5), OPTIMIZER, total_steps=100
    )
    for step in range(STEPS):
        train_step(
            engine, _batch(step, rank), generator=_generator(step, rank), ranks=ranks, where="", measure_norm=False
        )
    weights = plain_weights(engine)
    if rank == 0:
        torch.save(weights, Path(directory, "hashed.pt"))
    torch.distributed.destroy_process_group()


def _meet_nan(engine: Any, ranks: Ranks, rank: int, directory: str) -> None:
    if rank == 1:
        engine.module.encoder.positions.weight.data[0, 0] = float("nan")
    before = plain_weights(engine)["items.weight"]
    message = "no error"
    try:
        train_step(
            engine,
            _batch(0, rank),
            generator=_generator(0, rank),
            ranks=ranks,
            where="epoch 3, batch 7",
            measure_norm=False,
        )
    except NonFiniteLoss as error:
        message = str(error)
    changed = not torch.equal(before, plain_weights(engine)["items.weight"])
    Path(directory, f"nan-{rank}.txt").write_text(f"{changed} {message}")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote after training under every stage."""
    directory = tmp_path_factory.mktemp("ranks")
    sys.path.insert(0, str(Path(__file__).parent))  # the spawned ranks import this file by its name
    mp.spawn(_rank, args=(free_port(), str(directory)), nprocs=2)  # type: ignore[no-untyped-call]
    return directory


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_under_every_stage_train_the_same_weights_as_plain_pytorch(two_ranks: Path, stage: int) -> None:
    found = torch.load(two_ranks / f"stage-{stage}.pt", weights_only=True)
    expected = _plain_training()
    assert found["weights"].keys() == expected.keys()
    for name, value in expected.items():
        # Adam divides by small numbers, so that rounding of the gradients' sum grows a little.
        torch.testing.assert_close(
            found["weights"][name], value, atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_hashed_items_split_over_two_ranks_train_as_in_plain_pytorch(two_ranks: Path) -> None:
    found = torch.load(two_ranks / "hashed.pt", weights_only=True)
    expected = _plain_training(items=HASHED)
    assert {"items.quotients", "items.remainders"} < found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_gradient_norm_is_reported_under_every_stage(two_ranks: Path, stage: int) -> None:
    norms = torch.load(two_ranks / f"stage-{stage}.pt", weights_only=True)["norms"]
    assert all(norm > 0 for norm in norms[1:]), norms


def test_a_loss_that_is_nan_on_one_rank_stops_all_ranks_and_changes_no_weight(two_ranks: Path) -> None:
    for rank, loss in ((0, r"loss \d"), (1, "loss nan")):
        text = (two_ranks / f"nan-{rank}.txt").read_text()
        assert text.startswith("False epoch 3, batch 7"), text
        assert f"rank {rank}" in text
        assert re.search(loss, text), text


def _other_rank(rank: int, world: int, port: int, directory: str) -> None:
    """Go on with what two ranks saved, under each stage, every rank with the batches of rank 0."""
    join_ranks(rank, world, port)
    ranks = Ranks(rank, world)
    for stage in (0, 1, 2, 3):
        settings = EngineSettings(zero_stage=stage, gradient_clipping=0.5)
        engine = start_engine(_retriever(), settings, OPTIMIZER, total_steps=100, universal=True)
        load_engine(engine, Path(directory, f"checkpoint-{stage}"), "engine", ranks, written_by=2)
        for step in range(SAVED_AT, STEPS):
            train_step(
                engine, _batch(step, 0), generator=_generator(step, 0), ranks=ranks, where="", measure_norm=False
            )
        weights = plain_weights(engine)
        if rank == 0:
            torch.save(weights, Path(directory, f"others-{world}-{stage}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 3])
def others(request: pytest.FixtureRequest, two_ranks: Path) -> int:
    """Another number of ranks that has gone on with what two saved."""
    world: int = request.param
    mp.spawn(_other_rank, args=(world, free_port(), str(two_ranks)), nprocs=world)  # type: ignore[no-untyped-call]
    return world


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_another_number_of_ranks_goes_on_as_if_it_had_been_there_all_along(
    two_ranks: Path, others: int, stage: int
) -> None:
    found = torch.load(two_ranks / f"others-{others}-{stage}.pt", weights_only=True)
    for name, value in _plain_training(on_others_from=SAVED_AT).items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert not list((two_ranks / f"checkpoint-{stage}").glob(".universal-*"))


def test_what_deepspeed_would_default_is_written_out() -> None:
    config = deepspeed_config(EngineSettings(gradient_clipping=0.0, zero_stage=2, precision="bf16"))
    assert config["gradient_clipping"] == 0.0
    assert config["zero_optimization"] == {"stage": 2}
    assert config["bf16"] == {"enabled": True}


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_over_the_warm_up_then_never_rises_again(decay: str) -> None:
    settings = OptimizerSettings(warmup_steps=10, decay=decay, final_share=0.1)  # type: ignore[arg-type]
    factor = learning_rate_factor(settings, total_steps=100)
    rates = [factor(step) for step in range(130)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert all(before < after for before, after in itertools.pairwise(rates[:10]))
    assert all(before >= after for before, after in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)
