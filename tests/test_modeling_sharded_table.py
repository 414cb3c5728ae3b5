"""The sharded item table on 1, 2 and 4 real ranks over gloo, against one plain embedding."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from data.errors import TrainingError
from modeling.losses import sampled_softmax
from modeling.row_optimizers import LazyAdam, RowOptimizer, RowwiseAdagrad
from modeling.sharded_table import ShardedTable
from modeling.table_files import BLOCK, merge_table_files, table_files
from tests.ports import free_port
from tests.ranks import join_ranks

NUM_ROWS, WIDTH, STEPS, PARTS = 5 * BLOCK + 7, 8, 50, 4
OPTIMIZERS = {"lazy_adam": LazyAdam, "rowwise_adagrad": RowwiseAdagrad}


def _part(step: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """A quarter of a step's batch: histories, targets, negatives; some rows occur in several quarters."""
    generator = torch.Generator().manual_seed(100 * step + part)
    history_BL = torch.randint(0, NUM_ROWS, (6, 5), generator=generator)
    return (
        history_BL,
        torch.randint(1, 90, (6,), generator=generator),
        torch.randint(1, 200, (16,), generator=generator),
    )


def _loss(embed: Any, step: int, part: int) -> Tensor:
    history_BL, targets_B, negatives_N = _part(step, part)
    constant = torch.zeros(len(negatives_N))
    return sampled_softmax(
        functional.normalize(embed(history_BL).mean(1), dim=-1),
        functional.normalize(embed(targets_B), dim=-1),
        functional.normalize(embed(negatives_N), dim=-1),
        positive_rows_EK=targets_B[:, None],
        negative_rows_N=negatives_N,
        target_log_q_E=constant[: len(targets_B)],
        negative_log_q_N=constant,
        temperature=0.2,
    )


def _table(optimizer: RowOptimizer, group: Any, num_rows: int = NUM_ROWS, **options: Any) -> ShardedTable:
    return ShardedTable(num_rows, WIDTH, optimizer, group=group, **options)


def _train(table: ShardedTable, steps: range) -> list[float]:
    """The mean loss of each step; every rank takes its share of the quarters."""
    losses = []
    for step in steps:
        held = table.hold(*(rows for part in range(table.rank, PARTS, table.world) for rows in _part(step, part)))
        parts = [_loss(held, step, part) for part in range(table.rank, PARTS, table.world)]
        loss = torch.stack(parts).mean()
        loss.backward()
        table.collect()
        table.step(0.05)
        total = loss.detach().clone()
        if table.group is not None:
            dist.all_reduce(total, group=table.group)
        losses.append(total.item() / table.world)
    return losses


def _whole(table: ShardedTable) -> Tensor:
    """The rows of all ranks, in order."""
    with torch.no_grad():
        return table.hold(torch.arange(table.num_rows)).vectors_UD.detach()


def _plain(optimizer: str) -> tuple[list[float], Tensor]:
    """One `nn.Embedding`, trained by `torch.optim.SparseAdam` or by Adagrad written out row by row."""
    embedding = nn.Embedding(NUM_ROWS, WIDTH, padding_idx=0, sparse=optimizer == "lazy_adam")
    embedding.weight.data = _whole(_table(LazyAdam(), None)).clone()
    adam = torch.optim.SparseAdam(embedding.parameters(), lr=0.05) if optimizer == "lazy_adam" else None
    squares_V = torch.zeros(NUM_ROWS)
    losses = []
    for step in range(STEPS):
        loss = torch.stack([_loss(embedding, step, part) for part in range(PARTS)]).mean()
        embedding.zero_grad()
        loss.backward()
        if adam is not None:
            adam.step()
        else:
            gradient_VD = embedding.weight.grad
            assert gradient_VD is not None
            for row in gradient_VD.abs().sum(1).nonzero()[:, 0].tolist():
                squares_V[row] += gradient_VD[row].square().mean()
                embedding.weight.data[row] -= 0.05 * gradient_VD[row] / (squares_V[row].sqrt() + 1e-8)
        losses.append(loss.item())
    return losses, embedding.weight.detach()


def _on_four_ranks(rank: int, port: int, out: str) -> None:
    join_ranks(rank, 4, port)
    groups = {world: dist.new_group(range(world)) for world in (2, 4)}
    found: dict[str, Any] = {}
    for world, group in groups.items():
        if rank >= world:
            continue
        for name, optimizer in OPTIMIZERS.items():
            table = _table(optimizer(), group)
            losses = _train(table, range(STEPS))
            found[f"{name}-{world}"] = (losses, _whole(table))
        found[f"bytes-{world}"] = table.vectors_RD.nbytes
        # Half the steps, a checkpoint, and the rest on another number of ranks.
        first = _table(LazyAdam(), group)
        _train(first, range(STEPS // 2))
        folder = Path(out, f"from-{world}")
        folder.mkdir(exist_ok=True)
        first.save(folder)
        narrow = _table(RowwiseAdagrad(), group, dtype=torch.bfloat16)
        found[f"bf16-{world}"] = _train(narrow, range(STEPS))
    dist.barrier()
    for before, world in ((2, 4), (4, 2)):
        if rank < world:
            again = _table(LazyAdam(), groups[world], seed=1)
            again.load(Path(out, f"from-{before}"))
            losses = _train(again, range(STEPS // 2, STEPS))
            found[f"{before}-to-{world}"] = (losses, _whole(again))
    if rank == 0:
        torch.save(found, Path(out, "found.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_on_four_ranks, args=(free_port(), str(folder)), nprocs=4)  # type: ignore[no-untyped-call]
    return torch.load(folder / "found.pt"), folder


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_number_of_ranks_learns_as_one_plain_embedding_does(on_ranks: Any, name: str) -> None:
    losses, weights_VD = _plain(name)
    alone = _table(OPTIMIZERS[name](), None)
    found = {world: on_ranks[0][f"{name}-{world}"] for world in (2, 4)}
    found[1] = (_train(alone, range(STEPS)), _whole(alone))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for world, (curve, table_VD) in found.items():
        # fp32; sums over ranks are taken in another order.
        assert curve == pytest.approx(losses, abs=2e-5), world
        torch.testing.assert_close(table_VD, weights_VD, atol=1e-4, rtol=0)
        assert not table_VD[0].any()


def test_a_rank_holds_its_share_of_the_table(on_ranks: Any) -> None:
    whole = _table(LazyAdam(), None).vectors_RD.nbytes
    assert on_ranks[0]["bytes-2"] == whole / 2
    assert on_ranks[0]["bytes-4"] <= whole / 4 + BLOCK * WIDTH * 4


def test_a_table_goes_on_with_any_number_of_ranks(on_ranks: Any) -> None:
    found, folder = on_ranks
    losses, weights_VD = _plain("lazy_adam")
    alone = _table(LazyAdam(), None, seed=1)
    alone.load(folder / "from-4")
    continued = {"4-to-1": (_train(alone, range(STEPS // 2, STEPS)), _whole(alone))}
    for way in ("2-to-4", "4-to-2"):
        continued[way] = found[way]
    for curve, table_VD in continued.values():
        assert curve == pytest.approx(losses[STEPS // 2 :], abs=2e-5)
        torch.testing.assert_close(table_VD, weights_VD, atol=1e-4, rtol=0)


def test_rows_of_half_the_size_learn_nearly_as_well(on_ranks: Any) -> None:
    losses, _ = _plain("rowwise_adagrad")
    for world in (2, 4):
        assert on_ranks[0][f"bf16-{world}"][-1] == pytest.approx(losses[-1], rel=0.02)


def test_a_grown_table_keeps_its_old_rows_and_starts_the_new_ones_fresh(on_ranks: Any) -> None:
    _, folder = on_ranks
    old, grown = _table(LazyAdam(), None), _table(LazyAdam(), None, num_rows=NUM_ROWS + 100, seed=3)
    fresh_VD = _whole(grown)
    old.load(folder / "from-2")
    grown.load(folder / "from-2")
    torch.testing.assert_close(_whole(grown)[:NUM_ROWS], _whole(old), atol=0, rtol=0)
    torch.testing.assert_close(_whole(grown)[NUM_ROWS:], fresh_VD[NUM_ROWS:], atol=0, rtol=0)


def test_the_files_of_all_ranks_become_one_tensor_in_row_order(on_ranks: Any, tmp_path: Path) -> None:
    table = _table(LazyAdam(), None)
    for before in ("from-2", "from-4"):
        table.load(on_ranks[1] / before)
        merge_table_files(on_ranks[1] / before, tmp_path / "items.safetensors", "items.weight")
        torch.testing.assert_close(load_file(tmp_path / "items.safetensors")["items.weight"], _whole(table))


def test_files_that_are_missing_or_of_another_table_are_refused(on_ranks: Any, tmp_path: Path) -> None:
    _, folder = on_ranks
    with pytest.raises(TrainingError, match="found no file of an item table"):
        _table(LazyAdam(), None).load(tmp_path)
    first = table_files(folder / "from-2")[0]
    (tmp_path / first.name).write_bytes(first.read_bytes())
    with pytest.raises(TrainingError, match="expected the files of all ranks"):
        _table(LazyAdam(), None).load(tmp_path)
    smaller = _table(LazyAdam(), None, num_rows=NUM_ROWS - 1)
    with pytest.raises(TrainingError, match="a table may grow, and nothing else"):
        smaller.load(folder / "from-2")


def test_gradients_of_several_batches_add_up_and_padding_never_learns() -> None:
    one, two = _table(RowwiseAdagrad(), None), _table(RowwiseAdagrad(), None)
    for table, batches in (
        (one, [torch.tensor([0, 3, 3, 200])]),
        (two, [torch.tensor([0, 3]), torch.tensor([3, 200])]),
    ):
        for rows in batches:
            table.hold(rows)(rows).sum().backward()
            table.collect()
        table.step(0.1)
    torch.testing.assert_close(_whole(one), _whole(two))
    assert not _whole(one)[0].any()
    untouched = torch.ones(NUM_ROWS, dtype=torch.bool)
    untouched[[3, 200]] = False
    torch.testing.assert_close(_whole(one)[untouched], _whole(_table(LazyAdam(), None))[untouched], atol=0, rtol=0)


def test_updates_smaller_than_the_last_bit_of_bfloat16_are_not_lost() -> None:
    table = _table(RowwiseAdagrad(), None, dtype=torch.bfloat16)
    rows = torch.arange(1, NUM_ROWS)
    table.vectors_RD[1:NUM_ROWS] = 1.0
    for _ in range(100):
        table.hold(rows)(rows).sum().backward()
        table.collect()
        table.step(1e-3)
    # Adagrad under a constant gradient goes 1e-3 * sum of 1/sqrt(n); the last bit at 1 is 4e-3 to 8e-3.
    expected = 1 - 1e-3 * sum(n**-0.5 for n in range(1, 101))
    assert float(table.vectors_RD[1:NUM_ROWS].float().mean()) == pytest.approx(expected, abs=1e-3)
