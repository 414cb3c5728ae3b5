"""The pilot's arithmetic: what is compared with what, and means over seeds."""

import json
from pathlib import Path

import pytest

from benchmarks.climber_pilot import ROWS, foresight, over_seeds
from benchmarks.conditions import PLAIN, compared


def test_nested_figures_become_means_and_deviations_in_the_same_form() -> None:
    means, deviations = over_seeds([{"a": 1.0, "of": {"b": 2.0}}, {"a": 3.0, "of": {"b": 2.0}}])
    assert means == {"a": 2.0, "of": {"b": 2.0}}
    assert deviations == {"a": pytest.approx(2**0.5), "of": {"b": 0.0}}


def test_one_seed_has_means_and_no_deviation() -> None:
    assert over_seeds([{"a": 1.0, "of": {"b": 2.0}}]) == ({"a": 1.0, "of": {"b": 2.0}}, {"of": {}})


def test_cgsa_is_compared_with_its_rivals_told_and_with_the_plain_model_filtered() -> None:
    hits = {PLAIN: {"plain, filtered": 0.5}, "adaln": {"conditioned": 0.4}, "head": {"conditioned": 0.2}}
    hits["cgsa"] = {"conditioned": 0.3, "conditioned, filtered": 0.6}
    tables = {name: {row: {"hr@50": value} for row, value in rows.items()} for name, rows in hits.items()}
    assert compared(tables) == {
        "cgsa_over_adaln": pytest.approx(-0.25),
        "cgsa_over_head": pytest.approx(0.5),
        "cgsa_prefilter_over_prefilter": pytest.approx(0.2),
    }


def test_foresight_reads_the_hits_under_the_gap_of_its_own_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        for number, row in enumerate(ROWS, start=1):
            folder = tmp_path / row / f"seed-{seed}"
            folder.mkdir(parents=True)
            metrics = {"gap": {"hr@10": 0.1 * number * (seed + 1)}, "test": {"hr@10": 1.0}}
            (folder / "row.json").write_text(json.dumps({"metrics": metrics}))
    figures = foresight(tmp_path, 1)
    assert figures["gap_hr@10"] == {row: pytest.approx(0.2 * number) for number, row in enumerate(ROWS, start=1)}
    assert figures["gap_tamip_over_mip"] == pytest.approx(3 / 2 - 1)
    assert figures["gap_strict_over_next_item"] == pytest.approx(4 - 1)
