"""What `farsight doctor --cluster` asks of torch: do the nodes reach each other, and does the training stream flow."""

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import ray
import ray.exceptions
import ray.util
import torch
import torch.distributed as dist
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.dataset import PreparedDataset
from data.stream import TrainingStream, window_dataset

MIB = 2**20
# Large enough that bandwidth counts and not latency, small enough for a slow network.
REDUCED_MIB = {"nccl": 256, "gloo": 16}
REPEATS = 5
MAX_EVENTS = 64
EVENTS_PER_BATCH = 4096


class Rank:
    """One process of the all-reduce, with one GPU or none."""

    def place(self) -> tuple[str, int]:
        """An address at which the others find this process, were it the first."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
            return host, int(probe.getsockname()[1])

    def reduce(self, *, rank: int, world: int, place: tuple[str, int], backend: str, seconds: float) -> list[float]:
        """Join, sum a tensor over all ranks a few times, check the sum.

        Returns:
            seconds of each time but the first, which sets up connections.
        """
        host, port = place
        limit = timedelta(seconds=seconds)
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(
            backend,
            f"tcp://{host}:{port}",
            timeout=limit,
            world_size=world,
            rank=rank,
            device_id=device if backend == "nccl" else None,
        )
        try:
            took = []
            for _ in range(REPEATS + 1):
                values = torch.full((REDUCED_MIB[backend] * MIB // 4,), float(rank + 1), device=device)
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(values)
                total = float(values[-1])  # waits for the GPU
                took.append(time.perf_counter() - began)
                if total != world * (world + 1) / 2:
                    raise RuntimeError(f"rank {rank} has the sum {total:g} of 1 to {world}")
            return took[1:]
        finally:
            dist.destroy_process_group()


def all_reduce(*, nodes: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Sum a tensor over every node of a cluster: one rank per GPU and NCCL, or one per node and gloo.

    Args:
        nodes: `id` and `gpus` of each.
        seconds: time limit.

    Returns:
        `backend`, `ranks`, `mib`, and `gib_per_second` that each rank moved (bus bandwidth), or `error`.
    """
    with_gpus = [node for node in nodes if node["gpus"]]
    backend = "nccl" if with_gpus else "gloo"
    places = [node["id"] for node in with_gpus for _ in range(node["gpus"])] or [node["id"] for node in nodes]
    world, mib = len(places), REDUCED_MIB[backend]
    asked = {"backend": backend, "ranks": world, "mib": mib}
    ranks = [_on_node(Rank, node, num_gpus=1 if with_gpus else 0) for node in places]
    began = time.monotonic()
    try:
        place = ray.get(ranks[0].place.remote(), timeout=seconds)
        left = max(1.0, seconds - (time.monotonic() - began))
        running = [
            rank.reduce.remote(rank=number, world=world, place=place, backend=backend, seconds=left)
            for number, rank in enumerate(ranks)
        ]
        took = ray.get(running, timeout=left + 5)
    except ray.exceptions.GetTimeoutError:
        return {**asked, "error": f"not done after {seconds:g} s"}
    except ray.exceptions.RayError as error:
        return {**asked, "error": str(getattr(error, "cause", None) or error).strip().splitlines()[-1]}
    finally:
        for rank in ranks:
            ray.kill(rank)
    # The slowest rank of each time; a ring moves 2 (W - 1) / W of the tensor through every rank.
    slowest = statistics.median(max(times) for times in zip(*took, strict=True))
    moved = 2 * (world - 1) / world * mib / 1024
    return {**asked, "seconds": slowest, "gib_per_second": moved / slowest}


class Reader:
    """One process that reads its part of a dataset, as a training worker does."""

    def first_batch(self, shard: Any, rank: int) -> tuple[float, int]:
        """Seconds until the first batch, and its events."""
        began = time.perf_counter()
        stream = TrainingStream(
            shard,
            events_per_batch=EVENTS_PER_BATCH,
            windows_per_buffer=EVENTS_PER_BATCH,
            cache_bytes=0,
            device=torch.device("cpu"),
        )
        events, seconds = 0, 0.0
        for batch in stream.batches(seed=0, epoch=0, rank=rank):
            seconds = seconds or time.perf_counter() - began
            events = events or int((batch["items_BL"] > 0).sum())
        return seconds, events


def first_batch(*, nodes: Sequence[Mapping[str, Any]], dataset: str, seconds: float) -> dict[str, Any]:
    """Stream a prepared dataset to one reader per node, through the stream that training reads.

    Args:
        nodes: `id` of each.
        seconds: time limit.

    Returns:
        `seconds` until the slowest reader had its first batch, or `error`.
    """
    opened = PreparedDataset.open(dataset)
    windows = window_dataset(opened, max_events=MAX_EVENTS, rule="all")
    shards = windows.streaming_split(len(nodes), equal=True)
    readers = [_on_node(Reader, node["id"], num_gpus=0) for node in nodes]
    try:
        pairs = zip(readers, shards, strict=True)
        reading = [reader.first_batch.remote(shard, rank) for rank, (reader, shard) in enumerate(pairs)]
        found = ray.get(reading, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        return {"error": f"no batch after {seconds:g} s"}
    except ray.exceptions.RayError as error:
        return {"error": str(getattr(error, "cause", None) or error).strip().splitlines()[-1]}
    finally:
        for reader in readers:
            ray.kill(reader)
    return {"seconds": max(took for took, _ in found), "events": sum(events for _, events in found)}


def _on_node(kind: type, node: str, *, num_gpus: int) -> Any:
    """A process of this class on one node and no other."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(kind).options(num_cpus=0, num_gpus=num_gpus, scheduling_strategy=where).remote()
