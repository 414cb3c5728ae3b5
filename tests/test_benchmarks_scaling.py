"""The arithmetic from coefficients to a stated scale, against numbers worked out by hand."""

from collections import defaultdict

import pytest

from benchmarks.scaling_plan import GIB, Scale, breaks, query_seconds, serving, storage, training

# Every coefficient that is not named here is 1.
NAMED = {
    "log_bytes_per_event": 10.0,
    "spill_bytes_per_event": 50.0,
    "cell_bytes": 1000.0,
    "lazy_adam_fp32_bytes_per_row": 768.0,
    "distinct_rows_per_batch": 40_000.0,
    "resume_sort_seconds_per_window": 4e-7,
    "resume_lookup_seconds_per_window": 1e-6,
    "index_items": 1e6,
    "flat_query_seconds": 0.01,
    "ivf_query_seconds": 0.001,
    "model_seconds_per_request": 0.002,
    "vocabulary_bytes_per_item": 400.0,
    "ivf_bytes_per_vector": 272.0,
}
KNOWN = defaultdict(lambda: 1.0, NAMED)
SCALE = Scale(users=1e9, items=1e8, events=1e12, requests=1e5, width=64, batch=65_536)


def test_bytes_of_logs_and_spill() -> None:
    terms = {row["term"]: row["value"] for row in storage(SCALE, KNOWN)}
    assert terms["log"] == pytest.approx(10)  # 1e12 x 10 bytes
    # 1e12 / 500,000 files with 4,096 cells of 1,000 bytes beside 50 bytes an event
    assert terms["spill of ingest, on shared storage"] == pytest.approx(50 + 2e6 * 4096 * 1000 / 1e12)


def test_table_tokens_and_exchange_of_a_gpu() -> None:
    terms = {row["term"]: row["value"] for row in training(SCALE, KNOWN, gpus=64)}
    tokens = 1e12 / 86_400 / 64
    assert terms["needed for a pass a day"] == pytest.approx(tokens)
    assert terms["table and optimiser, lazy_adam_fp32"] == pytest.approx(1e8 * 768 / 64 / GIB)
    sent = 40_000 * 63 / 64 * (8 + 64 * 4 + 64 * 4)  # ids, vectors one way, gradients the other
    assert terms["all-to-all, fp32 rows"] == pytest.approx(sent / 1e6)
    assert terms["needed for it in 10% of a step, fp32"] == pytest.approx(sent / (0.1 * 65_536 / tokens) / 1e9)
    assert terms["position at the end of an epoch"] == pytest.approx(160)  # 5e9 windows of 32 bytes


def test_a_flat_search_grows_with_items_and_an_ivf_with_their_root() -> None:
    assert query_seconds("flat", 1e8, KNOWN) == pytest.approx(1)
    assert query_seconds("ivf", 1e8, KNOWN) == pytest.approx(0.01)
    terms = {row["term"]: row["value"] for row in serving(SCALE, KNOWN)}
    assert terms["flat: search for all requests"] == pytest.approx(100_000)
    assert terms["replicas of one thread for each"] == pytest.approx(1000)
    assert terms["a replica: vocabulary, table, ivf index"] == pytest.approx(1e8 * (400 + 256 + 272 + 16) / GIB)


def test_what_breaks_is_sorted_and_is_just_bearable_at_its_size() -> None:
    rows = breaks(SCALE, KNOWN, gpus=64)
    times = [row["times_stated_scale"] for row in rows]
    assert times == sorted(times)
    at = {row["what"]: row["at"] for row in rows}
    flat = at["serving: flat search takes 1,024 cores"]
    assert SCALE.requests * query_seconds("flat", flat, KNOWN) == pytest.approx(1024)
    ivf = at["serving: ivf search takes 1,024 cores"]
    assert SCALE.requests * query_seconds("ivf", ivf, KNOWN) == pytest.approx(1024)
    assert at["ingest: a bucket is more than a core's memory"] == pytest.approx(4096 * SCALE.core_bytes)
    windows = at["resume: leaving out what was done takes a day"] / 200
    assert windows / 2 * 4e-7 + windows / 64 * 1e-6 == pytest.approx(86_400)
