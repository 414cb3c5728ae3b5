"""Actions of a log that has only weights: a rating of 4 becomes a click, one of 5 a conversion."""

from collections.abc import Mapping

import polars as pl


def with_actions(rows: pl.DataFrame, by_weight: Mapping[str, float]) -> pl.DataFrame:
    """Checked rows, in which an event without an action has that of the highest threshold its weight reaches.

    Args:
        by_weight: action -> least weight. An event below all of them stays without; one with an action keeps it.
    """
    if not by_weight:
        return rows
    highest_first = sorted(by_weight.items(), key=lambda pair: -pair[1])
    reached = pl.coalesce(pl.when(pl.col("weight") >= least).then(pl.lit(name)) for name, least in highest_first)
    return rows.with_columns(pl.coalesce(pl.col("action"), reached).alias("action"))
