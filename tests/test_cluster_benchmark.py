"""`farsight benchmark smoke`, run for real: every row, the report, and a second run that measures nothing again."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import cli
from cluster.suite import load_suite

pytestmark = pytest.mark.ray


def test_the_smoke_suite_measures_every_row_once_and_reports_it(ray_session: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["benchmark", "smoke", "--out", str(out)]
    first = CliRunner().invoke(cli, [*asked, "--models", "popularity", "--models", "hstu", "--seeds", "0"])
    assert first.exit_code == 0, first.output
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*/seed-*/row.json")}
    assert len(kept) == 3
    second = CliRunner().invoke(cli, asked)
    assert second.exit_code == 0, second.output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # rows that stood were not measured again
    report = json.loads((out / "report.json").read_text())
    suite = load_suite("smoke")
    for name in suite.data:
        rows = {model for model, row in suite.models.items() if row.data is None or name in row.data}
        for protocol in suite.protocols:
            assert report["data"][name]["figures"][protocol].keys() == rows
    assert (out / "simulated_curves.png").stat().st_size > 1000
    by_time = report["data"]["simulated-by-time"]
    assert "simulated-by-time_horizon.png" in by_time["plots"]
    assert by_time["figures"]["test"]["item_knn"]["hit@10[t+2]"]["runs"] == 1
    assert report["data"]["simulated"]["figures"]["test"]["hstu"]["ndcg@10"]["runs"] == 2
    figures = report["data"]["simulated"]["figures"]
    assert figures["test"]["ease"]["repeat_rate@10"]["mean"] == 0
    assert figures["seen_kept"]["ease"]["repeat_rate@10"]["mean"] > 0
    assert figures["gap_1d"]["item_knn"]["ndcg@10"]["mean"] < figures["test"]["item_knn"]["ndcg@10"]["mean"]
    verdicts = {
        (found["first"], found["second"]): found["verdict"] for found in report["data"]["simulated"]["comparisons"]
    }
    assert verdicts["hstu", "sasrec"] == "one seed"
    assert verdicts["hstu", "popularity"] in {"better", "worse", "no effect"}
    assert "# Smoke suite" in (out / "report.md").read_text()


def test_names_that_the_suite_lacks_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["benchmark", "smoke", "--out", str(tmp_path), "--models", "nosuch"])
    assert result.exit_code == 2
    assert "--models nosuch: the suite has popularity, recent_popularity" in result.output


def test_published_data_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARSIGHT_DATA", raising=False)
    result = CliRunner().invoke(cli, ["benchmark", "amazon", "--out", str(tmp_path)])
    assert result.exit_code == 3
    assert "FARSIGHT_DATA is not set; set it to the folder that holds the published files of beauty" in result.output
