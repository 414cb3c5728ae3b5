"""What a stated number of users, items and events takes, from coefficients that are measured here on small data.

    python -m benchmarks.scaling --json FILE

`coefficients`: measured with the project's own code, small (a simulated log of 400,000 events, ids drawn at the stated
scale; tables, indexes and files of some hundred thousand rows). Seconds are CPU seconds. `terms`: what the stated scale
takes. `breaks`: what gives way, the earliest first, against the machines of `scale`, which are assumptions.

Nothing of a GPU is measured: tokens/s and GB/s are what would be needed. Beyond the sizes measured, figures are
extrapolated: a flat search is linear in items; an ivf of 4 sqrt(items) lists and fixed probes grows as the square root
of items (`ivf_query_ratio` and `ivf_query_ratio_expected` compare that between two sizes); its recall is not kept.
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, publish, run
from benchmarks.scaling_data import Figures, cpu_seconds, data_coefficients, popular_rows
from benchmarks.scaling_plan import Scale, breaks, serving, storage, training
from benchmarks.throughput import random_batch
from data.storage import file_hash
from modeling.build import build_retriever
from modeling.row_optimizers import LazyAdam, RowwiseAdagrad
from modeling.settings import ModelSettings
from modeling.sharded_table import ShardedTable
from modeling.table_files import BLOCK, merge_table_files
from serve.index.on_faiss import set_search_threads
from serve.index.settings import FlatSettings, IvfSettings
from serve.index.store import ON_FAISS, build_index, write_files

NEGATIVES = 1024
OPTIMIZERS = {"lazy_adam": LazyAdam, "rowwise_adagrad": RowwiseAdagrad}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
REQUESTS = 32


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    for name in ("users", "items", "events", "requests"):
        arguments.add_argument(f"--{name}", type=float, default=getattr(Scale, name))
    for name in ("width", "batch"):
        arguments.add_argument(f"--{name}", type=int, default=getattr(Scale, name))
    for name in ("host-gib", "gpu-gib"):
        arguments.add_argument(f"--{name}", type=float, default=getattr(Scale, name.replace("-", "_")))
    arguments.add_argument("--host-cores", type=int, default=Scale.host_cores)
    arguments.add_argument("--gpus", type=int, nargs="+", default=[64, 256])
    chosen = arguments.parse_args()
    names = ("users", "items", "events", "requests", "width", "batch", "host_gib", "host_cores", "gpu_gib")
    scale = Scale(**{name: getattr(chosen, name) for name in names})
    torch.set_num_threads(1)
    set_search_threads(1)
    known = coefficients(scale, chosen)
    report = {
        "scale": vars(scale),
        "coefficients": known,
        "terms": {
            "storage": storage(scale, known),
            **{f"training_{gpus}_gpus": training(scale, known, gpus) for gpus in chosen.gpus},
            "serving": serving(scale, known),
        },
        "breaks": breaks(scale, known, chosen.gpus[0]),
    }
    publish("scaling", report, chosen)


def coefficients(scale: Scale, chosen: Namespace) -> Figures:
    """Everything that is measured."""
    with tempfile.TemporaryDirectory(prefix="farsight-scaling-") as folder:
        return {
            **data_coefficients(Path(folder), users=scale.users, items=scale.items, quick=chosen.quick),
            **_table(Path(folder), scale.width, blocks=500 if chosen.quick else 4000),
            **_exchange(scale, ranks=max(chosen.gpus)),
            **_indexes(Path(folder), scale.width, (5_000, 20_000) if chosen.quick else (40_000, 160_000)),
            **_model(scale.width, scale.length),
        }


def _table(folder: Path, width: int, blocks: int) -> Figures:
    """Bytes of a row with its optimiser in memory and in a checkpoint; from checkpoint to artifact."""
    rows = blocks * BLOCK
    figures: Figures = {}
    for optimizer, build in OPTIMIZERS.items():
        for name, dtype in FORMATS.items():
            table = ShardedTable(rows, width, build(), group=None, dtype=dtype)
            tensors = (table.vectors_RD, *table.optimizer.state().values())
            directory = folder / f"{optimizer}_{name}"
            directory.mkdir()
            table.save(directory)
            size = sum(path.stat().st_size for path in directory.iterdir())
            figures[f"{directory.name}_bytes_per_row"] = sum(tensor.nbytes for tensor in tensors) / rows
            figures[f"{directory.name}_file_bytes_per_row"] = size / rows
    merged = folder / "items.safetensors"
    figures["table_seconds_per_row"] = cpu_seconds(lambda: ShardedTable(rows, width, LazyAdam(), group=None)) / rows
    figures["merge_seconds_per_row"] = cpu_seconds(lambda: merge_table_files(directory, merged, "items")) / rows
    figures["hash_seconds_per_byte"] = cpu_seconds(lambda: file_hash(merged)) / merged.stat().st_size
    return figures


def _exchange(scale: Scale, ranks: int) -> Figures:
    """Rows that a batch names, each once, and how unequal the ranks' shares of what is asked are.

    By Zipf's law over all items; a target is the next event of its window. `hot_rank_ratio`: rows asked of the rank
    that is asked most, over the mean, when item rows stand in the order of popularity, and when they do not.
    """
    random = np.random.default_rng(0)
    tokens = scale.batch * (scale.length + 1) // scale.length
    spread = np.int64(2_654_435_761)  # odd and large: a permutation where it is prime to the number of items
    asked = {"ordered": np.zeros(ranks), "shuffled": np.zeros(ranks)}
    distinct = 0
    for _ in range(ranks):
        negatives = random.integers(1, int(scale.items), NEGATIVES)
        rows = np.unique(np.concatenate([popular_rows(tokens, scale.items, random), negatives]))
        distinct += len(rows)
        for name, placed in (("ordered", rows), ("shuffled", rows * spread % int(scale.items))):
            asked[name] += np.bincount(placed // BLOCK % ranks, minlength=ranks)
    return {
        "distinct_rows_per_batch": distinct / ranks,
        **{f"hot_rank_ratio_{name}": float(of.max() / of.mean()) for name, of in asked.items()},
    }


def _indexes(folder: Path, width: int, sizes: tuple[int, int]) -> Figures:
    """Bytes of a vector and seconds of a core for a query, by kind, at the larger size."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((sizes[1], width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[random.permutation(sizes[1])[:REQUESTS]]
    figures: Figures = {"index_items": float(sizes[1])}
    for kind, settings, power in (("flat", FlatSettings(), 1.0), ("ivf", IvfSettings(), 0.5)):
        seconds = []
        for count in sizes:
            build_from = vectors[:count]
            began: dict[str, Any] = {}
            built = cpu_seconds(lambda: began.update(index=build_index(build_from, settings)))  # noqa: B023
            index = began["index"]
            index.search(queries, 100)
            seconds.append(cpu_seconds(lambda: index.search(queries, 100), 10) / REQUESTS)  # noqa: B023
        (folder / kind).mkdir()
        write_files(index, folder / kind)
        figures[f"{kind}_bytes_per_vector"] = (folder / kind / ON_FAISS).stat().st_size / sizes[1]
        figures[f"{kind}_build_seconds"] = built
        figures[f"{kind}_query_seconds"] = seconds[1]
        figures[f"{kind}_query_ratio"] = seconds[1] / seconds[0]
        figures[f"{kind}_query_ratio_expected"] = (sizes[1] / sizes[0]) ** power
    return figures


def _model(width: int, length: int) -> Figures:
    """A request of a full history through the default model, 32 at a time on one thread."""
    retriever = build_retriever(ModelSettings(width=width, max_events=length), num_rows=100_001, num_actions=0).eval()
    batch = random_batch(REQUESTS, length)
    with torch.inference_mode():
        retriever.query_vectors(batch)
        return {"model_seconds_per_request": cpu_seconds(lambda: retriever.query_vectors(batch), 10) / REQUESTS}


if __name__ == "__main__":
    run(main)
