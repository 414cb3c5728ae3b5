"""What every benchmark writes: figures by name, and where they come from."""

import json
from pathlib import Path

import pytest

from benchmarks.quality import SOURCES
from benchmarks.report import parser, publish, spread


def test_a_report_holds_figures_by_name_with_versions_commit_and_hardware(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = parser("what it does").parse_args(["--json", str(tmp_path / "reports" / "speed.json")])
    publish("speed", {"ratio": 1.5}, chosen)
    report = json.loads((tmp_path / "reports" / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["benchmark"] == "speed"
    assert report["ratio"] == 1.5
    made = report["made_with"]
    assert made["versions"]["torch"]
    assert made["commit"]
    assert made["cores"] >= 1


def test_the_median_stands_between_minimum_and_maximum() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0, "runs": 3}


def test_every_benchmark_knows_quick_and_json() -> None:
    chosen = parser("what it does").parse_args(["--quick", "--json", "report.json"])
    assert chosen.quick
    assert chosen.json == Path("report.json")


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_published_files_of_every_data_set_are_where_the_benchmark_looks(farsight_data: Path, name: str) -> None:
    assert (farsight_data / SOURCES[name]["source"]).is_file()
    assert (farsight_data / SOURCES[name]["catalogue"]).is_file()
