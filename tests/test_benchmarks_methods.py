"""Verdicts on training methods: what they are drawn from, and how."""

from typing import Any

import pytest

from benchmarks.methods import CLAIMS, OFF, ON, Claim, compared, needed, verdict
from cluster.suite import load_suite


@pytest.mark.parametrize("method", CLAIMS)
def test_the_suite_of_a_method_compares_what_its_verdict_goes_by(method: str) -> None:
    suite = load_suite(method)
    for claim in CLAIMS[method]:
        assert {(claim.row, rival) for rival in claim.rivals} <= {tuple(pair) for pair in suite.compare}
        assert claim.metric in suite.compare_by
        assert claim.protocol in (suite.compare_under or list(suite.protocols)[:1])
    assert {"simulated", "movielens-100k"} <= suite.data.keys()


def test_a_row_comes_after_those_that_it_begins_with() -> None:
    names = needed(load_suite("csmf"), [Claim("conversion", ("shared_bottom",), "recall@50", "conversion")])
    assert names == ["shared_bottom", "exposure", "exposure_recovered", "click", "click_recovered", "conversion"]


def summary(**verdicts: str) -> dict[str, Any]:
    """A suite's report on one data set: the row `new` beside each rival."""
    found = {"difference": 0.02, "low": 0.01, "high": 0.03, "p_value": 0.001, "seed_deviation": 0.005}
    return {
        "figures": {
            "test": {name: {"ndcg@10": {"mean": 0.1, "deviation": 0.005, "runs": 2}} for name in (*verdicts, "new")}
        },
        "runs": {name: [{"training": {"seconds": 9.0}}] for name in (*verdicts, "new")},
        "comparisons": [
            {**found, "first": "new", "second": rival, "metric": metric, "protocol": "test", "verdict": verdict}
            for rival, verdict in verdicts.items()
            for metric in ("ndcg@10", "hr@10")
        ],
    }


def test_a_method_is_on_where_it_is_better_than_every_rival_and_off_otherwise() -> None:
    claim = Claim("new", ("old", "older"), "ndcg@10", "test")
    rows = compared(claim, "shop", summary(old="better", older="better"))
    assert [(row["rival"], row["metric"]) for row in rows] == [("old", "ndcg@10"), ("older", "ndcg@10")]
    assert rows[0]["relative_gain"] == pytest.approx(0.2)
    assert rows[0]["row"]["seconds"] == [9.0]
    assert verdict(rows) == {"verdict": ON, "reasons": []}
    for other in ("no effect", "worse", "one seed"):
        rows = compared(claim, "shop", summary(old="better", older=other))
        assert verdict(rows) == {
            "verdict": OFF,
            "reasons": [f"{other} beside older on shop (ndcg@10 of test +0.0200)"],
        }
