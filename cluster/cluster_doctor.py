"""`farsight doctor --cluster`: are the nodes of a Ray cluster fit to run Farsight together, and if not, what to do."""

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import floors
from cluster.doctor import Check, report_of
from cluster.node_probe import VERSIONS, NodeProbe, source_hash
from cluster.node_rows import Clock, Node, accelerators_row, clock_row, offset_of, packages_row, same_row, storage_row
from data.errors import ClusterError, FarsightError

CLOCK_SAMPLES = 10
# Of a log that is ingested where no dataset is given: as small as one can be that has every split.
TINY = {
    "simulate": {"num_users": 40, "num_items": 200, "events_per_user": 20, "num_shards": 2},
    "ingest": {"num_buckets": 2},
}


def run(
    address: str | None, *, storage: str | None, dataset: str | None, max_skew: float, seconds: float
) -> dict[str, Any]:
    """Check the nodes of a cluster that this process can join.

    Args:
        address: of the cluster itself, as `ray.init` takes it; None: `RAY_ADDRESS`, or the one on this machine.
        storage: directory that all nodes share.
        dataset: prepared dataset to stream; None: a tiny one is made in the storage.
        max_skew: seconds that clocks may differ.
        seconds: time limit of each step.

    Returns:
        `ok`, `checks` (rows as of `cluster.doctor.run`) and `nodes`, what each said.

    Raises:
        ClusterError: the cluster cannot be joined.
    """
    import ray

    floors.load(floors.ALL_REDUCE)  # torch, before Ray is joined
    _join(address)
    nodes, silent = _nodes(seconds)
    checks = [*silent]
    if nodes:
        gpus = [node.gpus for node in nodes]
        checks += [*_versions(nodes), packages_row(nodes, source_hash()), accelerators_row(nodes)]
        checks.append(clock_row(_clocks(nodes), max_skew))
        stored = _storage(nodes, storage, seconds)
        checks.append(stored)
        checks.append(_all_reduce(nodes, seconds, free_gpus=_free_gpus(), gpus=gpus))
        shared = storage if stored.state != "broken" else None
        checks.append(_first_batch(nodes, shared, dataset, seconds))
    said = [{"id": node.id, "address": node.address, "head": node.is_head, **node.facts} for node in nodes]
    for node in nodes:
        ray.kill(node.probe)
    return {**report_of(checks), "nodes": said}


def _join(address: str | None) -> None:
    import ray
    import ray.exceptions

    try:
        ray.init(address=address or "auto", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines()
        raise ClusterError(
            f"{address or 'this machine'}: cannot join the cluster: {lines[0] if lines else error}; from elsewhere "
            "give the address of its dashboard, as http://HEAD:8265, which sends the check there as a job"
        ) from None


def _free_gpus() -> int:
    import ray

    return int(ray.available_resources().get("GPU", 0))  # type: ignore[no-untyped-call]  # Ray leaves it untyped


def _nodes(seconds: float) -> tuple[list[Node], list[Check]]:
    """The nodes that answer, the head first, and a row for each that does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    alive.sort(key=lambda node: (not _is_head(node), node["NodeManagerAddress"], node["NodeID"]))
    kind = ray.remote(num_cpus=0)(NodeProbe)
    probes: list[Any] = [
        kind.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in alive
    ]
    asked = [probe.facts.remote() for probe in probes]
    ray.wait(asked, num_returns=len(asked), timeout=seconds)
    found, silent = [], []
    for node, probe, answer in zip(alive, probes, asked, strict=True):
        place = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        try:
            facts = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            remedy = "see whether the node is overloaded or starting, and look at its raylet.log"
            silent.append(Check("node", "broken", f"{place}: no answer in {seconds:g} s", remedy))
        except ray.exceptions.RayError as error:
            why = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            remedy = "install this version of farsight there, or start from a job: --address http://HEAD:8265"
            silent.append(Check("node", "broken", f"{place}: {why}", remedy))
        else:
            gpus = int(node["Resources"].get("GPU", 0))
            found.append(Node(node["NodeID"], node["NodeManagerAddress"], _is_head(node), gpus, probe, facts))
    cpus = int(sum(node["Resources"].get("CPU", 0) for node in alive))
    total = int(sum(node["Resources"].get("GPU", 0) for node in alive))
    row = Check("nodes", "ok", f"{len(alive)} alive, {cpus} CPUs and {total} GPUs in Ray's books")
    return found, [row, *silent]


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _versions(nodes: Sequence[Node]) -> Iterator[Check]:
    """A row for Python and one for each package whose version must be the same everywhere."""
    yield same_row("python", {node.name: node.facts["python"] for node in nodes})
    for package in VERSIONS:
        # A build tag (+cpu, +cu130) is the same release for another accelerator.
        yield same_row(package, {node.name: node.facts["versions"][package].partition("+")[0] for node in nodes})


def _clocks(nodes: Sequence[Node]) -> list[Clock]:
    import ray

    measured = []
    for node in nodes:
        samples = []
        for _ in range(CLOCK_SAMPLES):
            asked = time.time()
            theirs = ray.get(node.probe.now.remote())
            samples.append((asked, theirs, time.time()))
        measured.append(offset_of(samples))
    # The head stands first; this process may be anywhere.
    head_offset, head_margin = measured[0]
    return [
        Clock(node.name, offset - head_offset, margin + head_margin)
        for node, (offset, margin) in zip(nodes[1:], measured[1:], strict=True)
    ]


def _storage(nodes: Sequence[Node], storage: str | None, seconds: float) -> Check:
    """Every node writes, and reads what the others wrote."""
    import ray

    if storage is None:
        return Check("storage", "note", "not asked", "name the directory that all nodes share: --storage DIR")
    folder = str(Path(storage, f".farsight-doctor-{uuid.uuid4().hex[:8]}"))
    head, names = nodes[0].probe, [node.id for node in nodes]
    try:
        problem = ray.get(head.make_folder.remote(folder), timeout=seconds)
        if problem is not None:
            remedy = "give a directory that exists on every node and that its user may write to"
            return Check("storage", "broken", problem, remedy)
        wrote = ray.get([node.probe.leave_mark.remote(folder, node.id) for node in nodes], timeout=seconds)
        missing = ray.get([node.probe.missing_marks.remote(folder, names) for node in nodes], timeout=seconds)
        free = ray.get([node.probe.free_bytes.remote(storage) for node in nodes], timeout=seconds)
        ray.get(head.remove_folder.remote(folder), timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        remedy = "a mount that hangs: look at its server, and mount it again on the nodes"
        return Check("storage", "broken", f"{storage}: no answer in {seconds:g} s", remedy)
    return storage_row(storage, nodes, wrote, missing, min(free))


def _all_reduce(nodes: Sequence[Node], seconds: float, *, free_gpus: int, gpus: Sequence[int]) -> Check:
    """Gradients are summed over all nodes, so that must work, and its bandwidth bounds what more nodes bring."""
    if len(nodes) == 1 and sum(gpus) < 2:
        return Check("all-reduce", "ok", "one node")
    if free_gpus < sum(gpus):
        remedy = "try again when no job holds GPUs"
        return Check("all-reduce", "note", f"{sum(gpus) - free_gpus} of {sum(gpus)} GPUs are in use", remedy)
    asked = [{"id": node.id, "gpus": node.gpus} for node in nodes]
    result = floors.start(floors.ALL_REDUCE, nodes=asked, seconds=seconds)
    kind = f"{result['backend']}, {result['ranks']} ranks"
    if "error" in result:
        remedy = (
            "let the nodes reach each other on all ports; where they have several interfaces, name the right one in "
            "the profile's env: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO says more"
        )
        return Check("all-reduce", "broken", f"{kind}: {result['error']}", remedy)
    speed = f"{result['mib']} MiB in {result['seconds'] * 1000:.0f} ms, {result['gib_per_second']:.2f} GiB/s per rank"
    return Check("all-reduce", "ok", f"{kind}: {speed}")


def _first_batch(nodes: Sequence[Node], storage: str | None, dataset: str | None, seconds: float) -> Check:
    """How long a worker waits for data, from a dataset in the storage that all see."""
    if dataset is None and storage is None:
        return Check("first batch", "note", "not asked", "give a sound --storage DIR, or a prepared --dataset DIR")
    asked = [{"id": node.id} for node in nodes]
    try:
        with _dataset(storage, dataset) as place:
            result = floors.start(floors.FIRST_BATCH, nodes=asked, dataset=place, seconds=seconds)
    except FarsightError as error:
        return Check("first batch", "broken", str(error), "see what the message asks for")
    if "error" in result:
        remedy = "see that a CPU is free for Ray Data, and that every node reads the storage"
        return Check("first batch", "broken", result["error"], remedy)
    return Check("first batch", "ok", f"{result['seconds']:.1f} s on the slowest node, {result['events']:,} events")


@contextlib.contextmanager
def _dataset(storage: str | None, dataset: str | None) -> Iterator[str]:
    """The dataset that was given, or a tiny one, made on the cluster as any other and removed afterwards."""
    if dataset is not None:
        yield dataset
        return
    folder = Path(storage or "", f".farsight-doctor-{uuid.uuid4().hex[:8]}").absolute()
    try:
        floors.start(floors.SIMULATE, recipe=TINY, out=str(folder / "log"))
        ingest = {**TINY["ingest"], "log": str(folder / "log"), "out": str(folder / "dataset")}
        floors.start(floors.INGEST, recipe={"ingest": ingest})
        yield str(folder / "dataset")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
