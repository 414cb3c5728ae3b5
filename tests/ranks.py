"""Real ranks of a test: processes of this machine over gloo."""

import os

import torch


def join_ranks(rank: int, world: int, port: int) -> None:
    """Make a spawned process one of `world` ranks, with one thread; `port` comes from `tests.ports.free_port`."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world)
    )
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
