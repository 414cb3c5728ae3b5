"""DuckDB or Polars make histories of a log. Run by the peers' own environment, started by `benchmarks.ingest`.

    PEER/bin/python -m benchmarks.peers.grouping --engine duckdb --log DIR --out DIR --spill DIR --threads 2

Item ids become rows of the sorted distinct ids; the events of a user are sorted by time and written as one row of
lists to Parquet. Standard output: one JSON line. The clock starts after the imports.
"""

import argparse
import importlib
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

# One sort of whole events is faster than one for each list. DuckDB's `list` cannot spill: 100 million events in one
# query end with an out-of-memory error at 4 GiB, so users are taken in parts, each a query over the whole log.
_EVENTS_PER_PART = 25_000_000
_VOCABULARY = """
    CREATE TABLE vocabulary AS SELECT item_id, row_number() OVER (ORDER BY item_id)::INTEGER AS item
    FROM (SELECT DISTINCT item_id FROM read_parquet('{log}'))
"""
_HISTORIES = """
    COPY (
        SELECT user_id, list({{item: item, time: timestamp, action: action, request: request_id}} ORDER BY timestamp)
        FROM read_parquet('{log}') JOIN vocabulary USING (item_id)
        WHERE hash(user_id) % {parts} = {part} GROUP BY user_id
    ) TO '{out}/part-{part}.parquet' (FORMAT parquet)
"""


def duckdb_histories(log: Path, out: Path, spill: Path, *, threads: int, memory_gib: float) -> None:
    """Histories by DuckDB under its own memory limit."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {threads}")
        connection.execute(f"SET memory_limit = '{memory_gib}GiB'")
        connection.execute(f"SET temp_directory = '{spill}'")
        connection.execute("SET preserve_insertion_order = false")
        files = log / "*.parquet"
        connection.execute(_VOCABULARY.format(log=files))
        (num_events,) = connection.execute(f"SELECT count(*) FROM read_parquet('{files}')").fetchone()
        parts = -(-num_events // _EVENTS_PER_PART)
        for part in range(parts):
            connection.execute(_HISTORIES.format(log=files, out=out, part=part, parts=parts))


def polars_histories(log: Path, out: Path, spill: Path, *, threads: int, memory_gib: float) -> None:
    """Histories by Polars' streaming engine, which spills past its budget; loading it set its limits."""
    import polars as pl

    assert pl.thread_pool_size() == threads

    events = pl.scan_parquet(log / "*.parquet")
    items = events.select("item_id").unique().sort("item_id").with_row_index("item", offset=1)
    vocabulary = items.collect(engine="streaming").lazy()
    rows = events.join(vocabulary, on="item_id", how="left").drop("item_id")
    histories = rows.sort("timestamp").group_by("user_id", maintain_order=True).agg(pl.all())
    histories.sink_parquet(out / "part-0.parquet", engine="streaming")


ENGINES = {"duckdb": duckdb_histories, "polars": polars_histories}


def main() -> None:
    """Make the histories once and say how long it took."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--engine", choices=ENGINES, required=True)
    arguments.add_argument("--log", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--spill", type=Path, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--memory-gib", type=float, default=4)
    chosen = arguments.parse_args()
    chosen.spill.mkdir(parents=True, exist_ok=True)
    chosen.out.mkdir()
    os.environ["POLARS_MAX_THREADS"] = str(chosen.threads)
    os.environ["POLARS_OOC_SPILL_DIR"] = str(chosen.spill)
    os.environ["POLARS_OOC_MEMORY_BUDGET_MB"] = str(round(chosen.memory_gib * 1024))
    importlib.import_module(chosen.engine)
    began = time.perf_counter()
    limits = {"threads": chosen.threads, "memory_gib": chosen.memory_gib}
    ENGINES[chosen.engine](chosen.log, chosen.out, chosen.spill, **limits)
    seconds = time.perf_counter() - began
    versions = {"python": sys.version.split()[0], chosen.engine: metadata.version(chosen.engine)}
    print(json.dumps({"seconds": seconds, "versions": versions}), flush=True)


if __name__ == "__main__":
    main()
