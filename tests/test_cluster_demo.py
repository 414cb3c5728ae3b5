"""End to end: from log shards to an HTTP answer, on two Ray Train workers with DeepSpeed.

This is `make demo` with the recipe `smoke`, on the tests' Ray session.
"""

import json
import socket
from pathlib import Path

import pytest

from cluster import demo
from cluster.recipe_files import read_recipe
from tests.ports import free_port

STEPS = ["simulate", "ingest", "train", "train", "index", "serve", "evaluate", "retrieve", "retrieve"]


@pytest.mark.long
@pytest.mark.ray
def test_the_whole_path_goes_from_log_shards_to_an_http_answer(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    demo.walk("smoke", [f"serve.port={port}"])
    printed = capsys.readouterr().out

    commands = [line.split()[2] for line in printed.splitlines() if line.startswith("$ farsight ")]
    assert commands == STEPS
    run = tmp_path / "runs" / "smoke"
    kinds = {"log": "log", "dataset": "dataset", "train/artifact": "artifact", "fine_tuning/artifact": "artifact"}
    for place, step in {**kinds, "release": "release"}.items():
        assert json.loads((run / place / "manifest.json").read_text())["kind"] == step
    assert len(list((run / "log" / "events").glob("part-*.parquet"))) == 3

    assert read_recipe("smoke")["train"]["workers"]["num_workers"] == 2
    figures = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in figures} >= {"step", "validation"}
    assert (run / "train" / "curve.png").is_file()

    assert {"loss_head_1", "loss_head_2"} <= next(row for row in figures if row["kind"] == "step").keys()

    # The end of what is printed: the table with the three rows, then answers of ten items over HTTP.
    table, answer, told = printed.split("$ farsight evaluate")[1].split("$ farsight retrieve")
    assert all(f"│ {name} " in table for name in ("oracle", "popularity", "model"))
    release = json.loads((run / "release" / "manifest.json").read_text())["release_id"]
    assert f"Release {release}" in answer
    assert sum("│ i0" in line for line in answer.splitlines()) == 10
    condition = told.split("--condition ")[1].split()[0]
    assert sum("│ i0" in line and condition in line for line in told.splitlines()) == 10
    stages = [run / stage / "artifact" / "settings.json" for stage in ("train", "fine_tuning")]
    before, after = (json.loads(file.read_text())["model"] for file in stages)
    assert before["condition"] is None
    assert after["condition"]["kind"] == "cgsa"
    assert before["prediction"]["gap"] == after["prediction"]["gap"] > 0

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the endpoint was left running"
