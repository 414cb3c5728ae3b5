"""What negatives cost and how often they are wrong: milliseconds per step and false negatives, sampler by sampler.

    python -m benchmarks.negatives --dataset runs/benchmarks/esans/movielens-100k/dataset --json FILE

Rows are those of the suite `esans`, trained in a plain loop on the dataset's training windows. Needs torch, FAISS,
`modeling`, `trainer` and `data` alone: no Ray, no DeepSpeed.

`scored_per_target`: candidates that a target is scored against.
`milliseconds_per_step`: forward, backward and optimiser; of the process's own clock, which with --threads 1 on a CPU
other programs do not move. Clusters are made between the measured steps, and their seconds are told apart.
`false_negatives`: of the real negatives that a target is told from, the share that its user has at a later event, be
that of training, validation or test; the target's own item is no negative and is not counted. `own` is that share among
the negatives of each target's own (easy and hard), `shared` among those that all share. Virtual negatives are no items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import parser, publish, run, spread
from benchmarks.throughput import own_seconds
from cluster.suite import load_suite, row_recipe
from data.batch import Batch, collate
from data.dataset import PreparedDataset
from data.encode import encode_windows
from data.ragged import IntArray, list_column
from data.settings import read_section
from data.windows import cut_windows, length_buckets, window_bounds
from modeling.build import build_retriever
from modeling.esans import EsansSampler
from modeling.settings import ModelSettings
from trainer.clusters import cluster_items, content_vectors
from trainer.settings import TrainSettings

SUITE = "esans"
MODELS = ("uniform", "in_batch", "mixed", "esans", "without_simple", "without_hard", "behaviour_only")


@dataclass(frozen=True)
class Windows:
    """A batch, and where its windows begin in the events of all users laid end to end."""

    batch: Batch
    starts_B: IntArray


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--dataset", type=Path, required=True, help="prepared dataset")
    arguments.add_argument(
        "--data", default="movielens-100k", help=f"data set of the suite {SUITE} whose settings to take"
    )
    arguments.add_argument("--models", nargs="+", default=list(MODELS), help=f"rows of the suite {SUITE}")
    arguments.add_argument("--threads", type=int, help="torch threads")
    arguments.add_argument(
        "--steps", type=int, help="steps before the clusters are made anew, and after; 200, --quick 20"
    )
    chosen = arguments.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    dataset = PreparedDataset.open(chosen.dataset)
    steps = chosen.steps or (20 if chosen.quick else 200)
    figures = {name: measured(dataset, chosen.data, name, steps) for name in chosen.models}
    shape = {"dataset": str(chosen.dataset), "steps": 2 * steps, "threads": torch.get_num_threads()}
    publish("negatives", {**shape, "models": figures}, chosen)


def measured(dataset: PreparedDataset, data: str, name: str, steps: int) -> dict[str, Any]:
    """Train one row for twice as many steps, and judge what it draws in the second half."""
    recipe = row_recipe(load_suite(SUITE), data, name)
    recipe["train"] |= {"dataset": "-", "run_dir": "-"}
    model, train = read_section(recipe, "model", ModelSettings), read_section(recipe, "train", TrainSettings)
    torch.manual_seed(0)
    retriever = build_retriever(
        model, num_rows=dataset.num_rows, num_actions=dataset.num_actions, train_counts=dataset.train_counts()
    )
    sampler = retriever.sampler
    assert sampler is not None
    optimizer = torch.optim.AdamW(retriever.parameters(), lr=train.optimizer.learning_rate, fused=True)
    judge, windows = Judge(dataset), endless_windows(dataset, model, train)
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    milliseconds, clustering, counts = [], [], np.zeros(4)
    for half in range(2):
        if isinstance(sampler, EsansSampler):
            assert model.negatives.kind == "esans"
            began = own_seconds(device)
            with torch.no_grad():
                vectors_VD = retriever.catalogue_vectors().numpy()
            content = content_vectors(dataset.catalogue(), model.negatives.clusters, width=model.width)
            at_least = model.negatives.per_cluster
            sampler.use(cluster_items(vectors_VD, content, model.negatives.clusters, at_least=at_least, seed=0))
            clustering.append(own_seconds(device) - began)
        for _ in range(steps):
            drawn = next(windows)
            began = own_seconds(device)
            loss = retriever(drawn.batch, generator)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(retriever.parameters(), 1.0)
            optimizer.step()
            milliseconds.append(1e3 * (own_seconds(device) - began))
            if half:
                targets_E, users_E, places_E = judge.targets(drawn)
                shared_N = sampler(targets_E, generator)
                counts[:2] += judge.false_ones(users_E, places_E, targets_E, shared_N.expand(len(targets_E), -1))
                own = sampler.own(targets_E, shared_N, generator)
                if own is not None:
                    counts[2:] += judge.false_ones(users_E, places_E, targets_E, own.rows_EM)
    shared, own_ones = counts[:2], counts[2:]
    return {
        "scored_per_target": sampler.scored_per_target,
        "milliseconds_per_step": spread(milliseconds[5:]),
        **({"clustering_seconds": spread(clustering)} if clustering else {}),
        "false_negatives": {
            "all": _share(shared + own_ones),
            **({"shared": _share(shared)} if shared[1] else {}),
            **({"own": _share(own_ones)} if own_ones[1] else {}),
        },
    }


def _share(counts: Any) -> float:
    return float(counts[0] / max(1, counts[1]))


class Judge:
    """Knows which items each user has at later events, training, validation and test together."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.num_rows = dataset.num_rows
        items_E = list_column(whole_histories(dataset), "items")
        self.items_E = items_E.values.to_numpy().astype(np.int64)
        offsets_U1 = items_E.offsets.to_numpy().astype(np.int64)
        self.user_E = np.repeat(np.arange(len(offsets_U1) - 1), np.diff(offsets_U1))
        # The last event of each user with each item: the stable sort leaves it at the end of its run.
        keys_E = self.user_E * self.num_rows + self.items_E
        order_E = np.argsort(keys_E, kind="stable")
        ends = np.flatnonzero(np.diff(keys_E[order_E], append=-1))
        self.keys, self.last = keys_E[order_E][ends], order_E[ends]

    def targets(self, windows: Windows) -> tuple[torch.Tensor, IntArray, IntArray]:
        """The targets of a batch, the user of each, and its place in the events of all users laid end to end."""
        targets_BL = windows.batch["targets_BL"]
        row_E, column_E = (found.numpy() for found in (targets_BL > 0).nonzero(as_tuple=True))
        places_E = windows.starts_B[row_E] + column_E + 1
        return targets_BL[targets_BL > 0], self.user_E[places_E], places_E

    def false_ones(
        self, users_E: IntArray, places_E: IntArray, targets_E: torch.Tensor, rows_EM: torch.Tensor
    ) -> tuple[int, int]:
        """How many of the negatives are false, and how many there are."""
        rows = rows_EM.numpy()
        counted = (rows > 0) & (rows != targets_E.numpy()[:, None])
        keys = users_E[:, None] * self.num_rows + rows
        found = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        later = (self.keys[found] == keys) & (self.last[found] > places_E[:, None])
        return int((later & counted).sum()), int(counted.sum())


def whole_histories(dataset: PreparedDataset) -> pa.Table:
    """All histories of a dataset, in one chunk."""
    return pa.concat_tables(dataset.history_tables()).combine_chunks()


def endless_windows(dataset: PreparedDataset, model: ModelSettings, train: TrainSettings) -> Iterator[Windows]:
    """Batches of epoch after epoch, cut and padded as the trainer's are."""
    random, histories = np.random.default_rng(0), whole_histories(dataset)
    rule: Mapping[str, Any] = {"max_events": model.max_events, "rule": train.windows}
    encoded = encode_windows(cut_windows(histories, **rule))
    _, _, starts_W, _ = window_bounds(histories, since=None, **rule)
    while True:
        for rows in length_buckets(encoded.lengths_B, events_per_batch=train.events_per_batch, random=random):
            yield Windows(collate(encoded, rows), starts_W[rows])


if __name__ == "__main__":
    run(main)
