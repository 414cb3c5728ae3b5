"""The rows of `farsight doctor --cluster`, each a function of what the nodes said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.doctor import GIB, MIN_FREE_DISK_BYTES, Check


@dataclass(frozen=True)
class Node:
    """One node that is alive, its process of ours, and what that one said."""

    id: str
    address: str
    is_head: bool
    gpus: int
    probe: Any
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How rows call it; several nodes on one machine share an address."""
        return f"{self.address} ({self.id[:6]})"


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is from the head's, seconds, give or take half a round trip."""

    node: str
    offset: float
    margin: float


def same_row(check: str, found: Mapping[str, str]) -> Check:
    """Whether all nodes say the same."""
    by_value: dict[str, list[str]] = {}
    for node, value in found.items():
        by_value.setdefault(value, []).append(node)
    if len(by_value) == 1:
        return Check(check, "ok", f"{next(iter(by_value))} on all")
    text = "; ".join(f"{value} on {', '.join(nodes)}" for value, nodes in by_value.items())
    return Check(check, "broken", text, "start all nodes from one image, or install constraints.txt on each")


def packages_row(nodes: Sequence[Node], here: str) -> Check:
    """Whether all nodes import the same sources, which are those that this command runs.

    Args:
        here: `cluster.node_probe.source_hash` of this process.
    """
    lacking = [node.name for node in nodes if "" in node.facts["packages"].values()]
    if lacking:
        return Check("packages", "broken", f"not all there on {', '.join(lacking)}", "ship them with farsight submit")
    sources = {node.name: f"sources {node.facts['source']}" for node in nodes}
    row = same_row("packages", {**sources, "here": f"sources {here}"})
    if row.state == "broken":
        return Check("packages", "broken", row.found, "ship one tree with farsight submit, or install one version")
    return row


def accelerators_row(nodes: Sequence[Node]) -> Check:
    """Whether Ray, the driver and torch count the same GPUs on each node."""
    for node in nodes:
        driver, torch, place = node.facts["gpus"], node.facts["torch_gpus"], node.name
        if len(driver) == 1 and driver[0].startswith("nvidia-smi"):
            return Check("GPUs", "broken", f"{place}: {driver[0]}", "restart the node's driver, or take the node out")
        if len(driver) < node.gpus:
            found = f"{place}: Ray counts {node.gpus}, the driver {len(driver)}"
            return Check("GPUs", "broken", found, "start its raylet with --num-gpus as the driver has")
        if len(torch) < len(driver) and node.gpus:
            found = f"{place}: the driver has {len(driver)}, torch sees {len(torch)}"
            return Check("GPUs", "broken", found, "install the torch build for this driver's CUDA")
    kinds = sorted({gpu for node in nodes if node.gpus for gpu in node.facts["gpus"]})
    if not kinds:
        return Check("GPUs", "ok", "none")
    count = sum(node.gpus for node in nodes)
    if len(kinds) > 1:
        return Check("GPUs", "note", f"{count}: {'; '.join(kinds)}", "the slowest kind sets the pace of them all")
    return Check("GPUs", "ok", f"{count} x {kinds[0]}")


def offset_of(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """How far another clock is ahead of ours, and give or take how much.

    Args:
        samples: (our time when asked, its time, our time when answered). The quickest answer tells most: its time was
            read somewhere between ours.
    """
    asked, theirs, answered = min(samples, key=lambda sample: sample[2] - sample[0])
    return theirs - (asked + answered) / 2, (answered - asked) / 2


def clock_row(clocks: Sequence[Clock], max_skew: float) -> Check:
    """Whether the clocks agree: times of events, journals and logs of several nodes stand side by side."""
    if not clocks:
        return Check("clocks", "ok", "one node")
    worst = max(clocks, key=lambda clock: abs(clock.offset))
    found = f"at most {abs(worst.offset) * 1000:.1f} ms from the head's (give or take {worst.margin * 1000:.1f})"
    if abs(worst.offset) - worst.margin > max_skew:
        return Check("clocks", "broken", f"{found}, on {worst.node}", "run chrony or another NTP client on every node")
    if worst.margin > max_skew:
        return Check("clocks", "note", found, "too slow an answer to tell; try again on a quieter cluster")
    return Check("clocks", "ok", found)


def storage_row(
    storage: str, nodes: Sequence[Node], wrote: Sequence[str | None], missing: Sequence[Sequence[str]], free: int
) -> Check:
    """Whether all wrote, and each saw what all wrote."""
    names = {node.id: node.name for node in nodes}
    for node, problem in zip(nodes, wrote, strict=True):
        if problem:
            remedy = "mount the shared storage there, writable for the user that Ray runs as"
            return Check("storage", "broken", f"{node.name} cannot write: {problem}", remedy)
    for node, unseen in zip(nodes, missing, strict=True):
        if unseen:
            found = f"{node.name} does not see what {names[unseen[0]]} wrote to {storage}"
            return Check(
                "storage", "broken", found, "mount one shared storage (NFS, Lustre, CSI) at this path everywhere"
            )
    found = f"{storage}: written and seen by all, {free / GIB:.1f} GiB free"
    if free < MIN_FREE_DISK_BYTES:
        return Check("storage", "note", found, "make room before training: checkpoints and shards need it")
    return Check("storage", "ok", found)
