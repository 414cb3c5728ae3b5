"""The table of index kinds measures what it says."""

from benchmarks.index_kinds import KINDS, SELECTIVITIES, K, drawn, measured


def test_every_kind_is_measured_and_fills_its_answers() -> None:
    item_VD, query_QD = drawn(3_000, 16)
    assert item_VD.shape == (3_000, 16)
    figures = measured(item_VD, query_QD[:64], KINDS, rounds=1)
    assert set(figures) == {*KINDS, "faiss_direct"}
    assert figures["flat"][f"recall@{K}"] == figures["matrix"][f"recall@{K}"] == 1
    for name in KINDS:
        assert 0.9 < figures[name][f"recall@{K}"] <= 1
        assert figures[name]["bytes_per_item"] > 0
        assert all(figures[name][f"filter_{share:g}_fill"] == 1 for share in SELECTIVITIES)
        assert all(figures[name][f"queries_per_second_{batch}"] > 0 for batch in (1, 64))
    # Codes and halved vectors against whole vectors and a graph.
    assert figures["binary"]["bytes_per_item"] < figures["flat"]["bytes_per_item"] < figures["hnsw"]["bytes_per_item"]
