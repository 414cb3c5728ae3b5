"""The table of index kinds measures what it says, FAISS without our contract and the peers included."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.index_kinds import (
    KINDS,
    PEERS,
    SELECTIVITIES,
    K,
    direct,
    drawn,
    measured,
    started,
    vectors_written,
)
from benchmarks.peers.ann import ROUND_QUERIES
from benchmarks.peers.process import PINS, ROOT, read_pins
from serve.index.store import build_index

PEER_PYTHON = ROOT / "runs" / "peers" / "ann" / "bin" / "python"


def test_every_kind_is_measured_and_fills_its_answers(tmp_path: Path) -> None:
    item_VD, query_QD = drawn(3_000, 16)
    assert item_VD.shape == (3_000, 16)
    figures = measured(item_VD, query_QD[:64], KINDS, 1, tmp_path, {})
    assert set(figures) == {*KINDS}
    assert figures["flat"][f"recall@{K}"] == figures["matrix"][f"recall@{K}"] == 1
    for name in KINDS:
        assert 0.9 < figures[name][f"recall@{K}"] <= 1
        assert figures[name]["bytes_per_item"] > 0
        assert all(figures[name][f"filter_{share:g}_fill"] == 1 for share in SELECTIVITIES)
        assert all(figures[name][f"queries_per_second_{batch}"] > 0 for batch in ROUND_QUERIES)
        assert (figures[name].get("overhead_1", 0) > 0) == (name in ("flat", "ivf", "hnsw"))
    # Codes and halved vectors against whole vectors and a graph.
    assert figures["binary"]["bytes_per_item"] < figures["flat"]["bytes_per_item"] < figures["hnsw"]["bytes_per_item"]
    by_probes = [row[f"recall@{K}"] for row in figures["ivf"]["probes"].values()]
    assert by_probes[0] < by_probes[-1]


def test_an_index_that_stands_is_read_and_not_built_again(tmp_path: Path) -> None:
    item_VD, query_QD = drawn(500, 16)
    place = vectors_written(tmp_path, item_VD, query_QD)
    first, again = (measured(item_VD, query_QD[:8], {"hnsw": KINDS["hnsw"]}, 1, place, {})["hnsw"] for _ in range(2))
    assert first["build_seconds"] == again["build_seconds"]
    assert first[f"recall@{K}"] == again[f"recall@{K}"]
    assert vectors_written(tmp_path, item_VD + 1, query_QD) != place


@pytest.mark.parametrize("name", ["flat", "ivf", "hnsw"])
def test_faiss_without_our_contract_finds_the_scores_that_ours_finds(name: str) -> None:
    item_VD, query_QD = drawn(3_000, 16)
    index = build_index(item_VD, KINDS[name])
    search = direct(index)
    assert search is not None
    np.testing.assert_array_equal(search(query_QD)[0], index.search(query_QD, K).scores_QK)  # type: ignore[index]


def test_the_peers_environment_is_pinned() -> None:
    assert set(PEERS) < set(read_pins(PINS / "ann.txt"))


@pytest.mark.skipif(not PEER_PYTHON.is_file(), reason="no runs/peers/ann; `python -m benchmarks.index_kinds` builds it")
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_takes_turns_with_ours_and_finds_nearly_all(name: str, tmp_path: Path) -> None:
    item_VD, query_QD = drawn(1_000, 16)
    place = vectors_written(tmp_path, item_VD, query_QD)
    for _ in range(2):  # built, then read
        with started(name, PEER_PYTHON, place) as peer:
            figures = measured(item_VD, query_QD, {"flat": KINDS["flat"]}, 1, place, {name: peer})[name]
        assert figures[f"recall@{K}"] > 0.99
        assert figures["bytes_per_item"] > 16 * 4
        assert all(figures[f"queries_per_second_{batch}"] > 0 for batch in ROUND_QUERIES)
