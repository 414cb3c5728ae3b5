"""What estimated times cost on MovieLens-1M: the rows of the suite, by how much of each user's time is known.

    FARSIGHT_DATA=DIR python -m benchmarks.exact_times --rows runs/benchmarks/movielens_1m/last-out

For the copy of MovieLens-1M whose `ratings.parquet` marks each second as exact or estimated. Where seconds
are estimated, the order inside what was one second is lost. Models that read no
order are the control. The users whose every second is exact are also newer than the others, so a difference
between the groups is a hint and no proof.
"""

from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.report import parser, publish, run
from cluster.suite import published_folder
from data.errors import DatasetError

METRICS = ("hr@10", "ndcg@10")


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rows", type=Path, required=True, help="directory of one data set of `farsight benchmark`")
    chosen = arguments.parse_args()
    file = published_folder("MovieLens-1M") / "ml-1m" / "ratings.parquet"
    ratings = pl.read_parquet(file, columns=["user_id", "timestamp_exact"])
    exact = ratings.group_by(pl.col("user_id").cast(pl.String)).agg(exact=pl.col("timestamp_exact").all())
    files = sorted(chosen.rows.glob("*/seed-*/users/test/*.parquet"))
    if not files:
        raise DatasetError(f"{chosen.rows}: no measured rows; run farsight benchmark movielens_1m first")
    publish("exact_times", {"rows": {_name(file, chosen.rows): groups(file, exact) for file in files}}, chosen)


def _name(file: Path, rows: Path) -> str:
    model, seed, *_ = file.relative_to(rows).parts
    return f"{model}/{seed}"


def groups(file: Path, exact: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Means over the users whose every second is exact, and over the others.

    Args:
        file: metrics of every user, as `farsight evaluate --users-out` writes them.
        exact: `user_id` and whether all of the user's seconds are exact.
    """
    users = pl.read_parquet(file, columns=["user_id", *METRICS]).join(exact, on="user_id", how="inner")
    chosen = {"all": users, "exact": users.filter(pl.col("exact")), "estimated": users.filter(~pl.col("exact"))}
    return {
        name: {"users": group.height, **{metric: group[metric].mean() for metric in METRICS}}
        for name, group in chosen.items()
    }


if __name__ == "__main__":
    run(main)
