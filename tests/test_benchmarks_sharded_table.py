"""The benchmark of the sharded item table is the test of its scale: memory per rank, and what it learns."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.process import ROOT
from tests.scale import scale

ROWS, WIDTH = scale(200_000, 5_000_000), 64


def test_a_rank_holds_its_share_and_the_table_learns_as_a_plain_embedding_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sharded_table", "--rows", str(ROWS), "--width", str(WIDTH)]
    subprocess.run([*command, "--steps", "3", "--json", str(tmp_path / "found.json")], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    # A row is its vector and two moments of Adam, fp32; beside them a process takes some MB as it goes.
    table = ROWS * WIDTH * 4 * 3
    for ranks in (1, 2, 4):
        held = found[f"ranks_{ranks}"]["lazy_adam"]["resident_bytes"]
        assert 0.95 * table / ranks < held < 1.05 * table / ranks + 16e6, ranks
    # 50 steps. Its logits are large and amplify the order of a sum (.0013 was seen); with moderate ones
    # `test_modeling_sharded_table.py` holds 2e-5.
    assert found["max_loss_difference"] < 0.01
