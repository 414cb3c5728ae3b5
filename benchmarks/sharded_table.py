"""The sharded item table: memory per rank, time and bytes of a step, and whether it learns what one table learns.

    python -m benchmarks.sharded_table --quick --json FILE

Ranks are processes of this machine over gloo. `memory_ratio_2_ranks`: resident bytes that the table
and its optimiser add to a rank of two, over those of a single one. `max_loss_difference`: between
the loss curves of 1, 2 and 4 ranks and a plain `nn.Embedding` under `SparseAdam`, 50 steps.
`lookup_ms`, `alltoall_bytes`: fetching the rows of a batch, per rank of two; the bytes are those
that leave a rank in one step, both ways. The batch: 4,096 events by Zipf's law, as many targets,
1,024 uniform negatives.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.report import parser, publish, run
from modeling.row_optimizers import LazyAdam, RowOptimizer, RowwiseAdagrad
from modeling.sharded_table import Held, ShardedTable

WORLDS = (1, 2, 4)
OPTIMIZERS: dict[str, Callable[[], RowOptimizer]] = {"lazy_adam": LazyAdam, "rowwise_adagrad": RowwiseAdagrad}
EVENTS, NEGATIVES = 4096, 1024
CURVE_ROWS, CURVE_STEPS = 3000, 50


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rows", type=int, help="rows of the table (5,000,000; with --quick 500,000)")
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=20)
    chosen = arguments.parse_args()
    rows = chosen.rows or (500_000 if chosen.quick else 5_000_000)
    found: dict[str, Any] = {"rows": rows, "width": chosen.width, "cores": os.cpu_count()}
    curves = {}
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            work = (world, folder, rows, chosen.width, chosen.steps)
            mp.start_processes(_rank, args=work, nprocs=world, start_method="spawn")
            ranks = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world)]
        curves[world] = ranks[0].pop("curve")
        found[f"ranks_{world}"] = {name: _slowest([rank[name] for rank in ranks]) for name in OPTIMIZERS}
    plain = _plain_curve()
    adam = {world: found[f"ranks_{world}"]["lazy_adam"] for world in WORLDS}
    headline = {
        "memory_ratio_2_ranks": adam[2]["resident_bytes"] / adam[1]["resident_bytes"],
        "memory_ratio_4_ranks": adam[4]["resident_bytes"] / adam[1]["resident_bytes"],
        "max_loss_difference": max(
            abs(ours - theirs) for curve in curves.values() for ours, theirs in zip(curve, plain, strict=True)
        ),
        "lookup_ms": adam[2]["lookup_ms"],
        "alltoall_bytes": adam[2]["alltoall_bytes"],
    }
    publish("sharded_table", {**headline, **found}, chosen)


def _slowest(ranks: list[dict[str, float]]) -> dict[str, float]:
    return {figure: max(rank[figure] for rank in ranks) for figure in ranks[0]}


def _rank(rank: int, world: int, folder: str, rows: int, width: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    group = dist.new_group() if world > 1 else None
    figures: dict[str, Any] = {}
    for name, optimizer in OPTIMIZERS.items():
        before = _resident_bytes()
        table = ShardedTable(rows, width, optimizer(), group=group)
        for tensor in (table.vectors_RD, *table.optimizer.state().values()):
            tensor.add_(0)  # zeros take no memory until they are written
        figures[name] = {"resident_bytes": _resident_bytes() - before, **_timed(table, steps)}
        del table, tensor
    figures["curve"] = _curve(ShardedTable(CURVE_ROWS, 16, LazyAdam(), group=group))
    torch.save(figures, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _timed(table: ShardedTable, steps: int) -> dict[str, float]:
    """Medians of what each part of a step takes, and what leaves this rank in it."""
    seconds: dict[str, list[float]] = {"lookup": [], "collect": [], "step": []}
    sent = 0
    for step in range(steps + 3):
        batch = _batch(table.num_rows, 1000 * step + table.rank)
        if table.group is not None:
            dist.barrier(table.group)
        began = time.perf_counter()
        held = table.hold(*batch)
        held_at = time.perf_counter()
        held.vectors_UD.grad = torch.ones_like(held.vectors_UD)
        ready_at = time.perf_counter()
        table.collect()
        collected_at = time.perf_counter()
        table.step(0.01)
        if step >= 3:  # the first ones warm up
            seconds["lookup"].append(held_at - began)
            seconds["collect"].append(collected_at - ready_at)
            seconds["step"].append(time.perf_counter() - collected_at)
        sent = _bytes_sent(table, held)
    return {
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()},
        "alltoall_bytes": float(sent),
        "rows_per_batch": float(len(held.rows_U)),
    }


def _bytes_sent(table: ShardedTable, held: Held) -> int:
    """Ids and gradients to the owners, vectors to those who asked; what a rank keeps to itself does not travel."""
    asked = sum(count for rank, count in enumerate(held.sent_W) if rank != table.rank)
    answered = sum(count for rank, count in enumerate(held.received_W) if rank != table.rank)
    return asked * (8 + 4 * table.width) + answered * table.vectors_RD.element_size() * table.width


def _batch(num_rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Histories, targets, negatives."""
    generator = torch.Generator().manual_seed(seed)
    # By the inverse of the distribution function of 1/rank: the logarithm of the rank is uniform.
    places = torch.rand(2 * EVENTS, generator=generator, dtype=torch.float64)
    popular = (num_rows - 1) ** places
    negatives = torch.randint(1, num_rows, (NEGATIVES,), generator=generator)
    return popular[:EVENTS].long(), popular[EVENTS:].long(), negatives


def _loss(embed: Callable[[Tensor], Tensor], part: int) -> Tensor:
    """A softmax over shared negatives, of a quarter of a step's batch."""
    generator = torch.Generator().manual_seed(part)
    history_BL = torch.randint(1, CURVE_ROWS, (32, 5), generator=generator)
    candidates_N = torch.randint(1, CURVE_ROWS, (64,), generator=generator)
    candidates_N[:32] = 1 + history_BL[:, 0] % 97
    scores_BN = embed(history_BL).mean(1) @ embed(candidates_N).T * 1000
    return functional.cross_entropy(scores_BN, torch.arange(32))


def _curve(table: ShardedTable) -> list[float]:
    losses = []
    for step in range(CURVE_STEPS):
        parts = range(4 * step + table.rank, 4 * step + 4, table.world)
        held = table.hold(torch.arange(1, CURVE_ROWS))
        loss = torch.stack([_loss(held, part) for part in parts]).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        table.collect()
        table.step(0.01)
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / table.world)
    return losses


def _plain_curve() -> list[float]:
    embedding = nn.Embedding(CURVE_ROWS, 16, sparse=True)
    with torch.no_grad():
        first = ShardedTable(CURVE_ROWS, 16, LazyAdam(), group=None)
        embedding.weight.copy_(first.hold(torch.arange(CURVE_ROWS)).vectors_UD)
    adam = torch.optim.SparseAdam(embedding.parameters(), lr=0.01)
    losses = []
    for step in range(CURVE_STEPS):
        loss = torch.stack([_loss(embedding, part) for part in range(4 * step, 4 * step + 4)]).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        adam.step()
        losses.append(loss.item())
    return losses


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    run(main)
