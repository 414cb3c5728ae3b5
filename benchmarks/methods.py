"""Whether a training method is worth being on: one verdict per method, from the comparisons of its suite.

    FARSIGHT_DATA=DIR python -m benchmarks.methods --quick --json FILE

Measures the rows of the suites `heterrec`, `esans` and `csmf` that a verdict needs, with every seed and on every data
set named; rows that stand already are not measured again, and they are the rows of `farsight benchmark`. A method is
"on by default" where it is better than each of its rivals by the metric it is judged by, on every data set: gain above
twice the deviation over seeds, and p < .05 over users. Otherwise it is "off", and `reasons` says against whom.

With --quick two seeds, and the strongest rival alone; otherwise three, and all rivals.
"""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster.benchmark
from benchmarks.report import parser, publish, run
from cluster.suite import SuiteSettings, load_suite

ON, OFF = "on by default", "off"


@dataclass(frozen=True)
class Claim:
    """That a row is better than its rivals by a metric under a protocol of its suite."""

    row: str
    rivals: tuple[str, ...]  # the strongest first
    metric: str
    protocol: str


# Method, which is the name of its suite -> what has to hold.
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "heterrec": (Claim("heterrec", ("fused", "rows"), "ndcg@10", "test"),),
    "esans": (Claim("esans", ("mixed", "uniform", "in_batch"), "recall@50", "test"),),
    "csmf": (
        Claim("click_recovered", ("shared_bottom", "single_click"), "recall@50", "click"),
        Claim("conversion", ("shared_bottom", "single_conversion"), "recall@50", "conversion"),
    ),
}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--methods", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    arguments.add_argument("--data", nargs="+", default=["simulated", "movielens-100k"], help="data sets of all suites")
    arguments.add_argument("--seeds", type=int, nargs="+", help="0 1 2; with --quick 0 1")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="directory of the suites' rows")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="laid over the suites' settings")
    chosen = arguments.parse_args()
    found = {method: judged(method, chosen) for method in chosen.methods}
    verdicts = {method: result.pop("verdict") for method, result in found.items()}
    publish("methods", {**verdicts, "data": chosen.data, "seeds": _seeds(chosen), "figures": found}, chosen)


def judged(method: str, chosen: Namespace) -> dict[str, Any]:
    """The verdict on one method, with the reasons and the comparisons behind it."""
    suite = load_suite(method)
    claims = [
        Claim(claim.row, claim.rivals[:1] if chosen.quick else claim.rivals, claim.metric, claim.protocol)
        for claim in CLAIMS[method]
    ]
    summary = cluster.benchmark.run(
        method,
        models=needed(suite, claims),
        data=chosen.data,
        seeds=_seeds(chosen),
        out=str(chosen.out / method),
        overrides=chosen.overrides,
    )
    rows = [row for data in chosen.data for claim in claims for row in compared(claim, data, summary["data"][data])]
    return {**verdict(rows), "comparisons": rows}


def verdict(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """On where every comparison says better; otherwise off, and which do not."""
    reasons = [
        f"{row['verdict']} beside {row['rival']} on {row['data']} ({row['metric']} of {row['protocol']} "
        f"{row['gain']:+.4f})"
        for row in rows
        if row["verdict"] != "better"
    ]
    return {"verdict": OFF if reasons else ON, "reasons": reasons}


def needed(suite: SuiteSettings, claims: Iterable[Claim]) -> list[str]:
    """The rows of the claims and the rows that those begin with, in the order of the suite."""
    names = {name for claim in claims for name in (claim.row, *claim.rivals)}
    for name in reversed(suite.models):
        before = suite.models[name].begins_with
        if name in names and before is not None:
            names.add(before)
    return [name for name in suite.models if name in names]


def compared(claim: Claim, data: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the suite's report says of a claim on one data set, rival by rival.

    Raises:
        LookupError: the suite does not compare them.
    """
    figures, rows = summary["figures"][claim.protocol], []
    for rival in claim.rivals:
        (found,) = [
            one
            for one in summary["comparisons"]
            if (one["first"], one["second"], one["metric"], one["protocol"])
            == (claim.row, rival, claim.metric, claim.protocol)
        ]
        seconds = {name: [run["training"]["seconds"] for run in summary["runs"][name]] for name in (claim.row, rival)}
        rows.append(
            {
                "data": data,
                "metric": claim.metric,
                "protocol": claim.protocol,
                "row": {claim.row: figures[claim.row][claim.metric], "seconds": seconds[claim.row]},
                "rival": rival,
                "rival_row": {rival: figures[rival][claim.metric], "seconds": seconds[rival]},
                "gain": found["difference"],
                "relative_gain": found["difference"] / figures[rival][claim.metric]["mean"],
                "low": found["low"],
                "high": found["high"],
                "p_value": found["p_value"],
                "seed_deviation": found["seed_deviation"],
                "verdict": found["verdict"],
            }
        )
    return rows


def _seeds(chosen: Namespace) -> list[int]:
    return chosen.seeds or ([0, 1] if chosen.quick else [0, 1, 2])


if __name__ == "__main__":
    run(main)
