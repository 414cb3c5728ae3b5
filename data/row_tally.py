"""How many rows were read and refused, and whether that many are too many."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from data.errors import LogError

logger = logging.getLogger(__name__)


@dataclass
class RowTally:
    """Rows read, and refused rows by reason with an example of each."""

    rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """Rows that were refused."""
        return sum(self.reasons.values())

    @property
    def good(self) -> int:
        """Rows that were kept."""
        return self.rows - self.refused

    def add(self, good: pl.DataFrame, refused: pl.DataFrame) -> None:
        """Count a chunk as `data.log_rows.check_rows` returned it."""
        self.rows += good.height + refused.height
        for row in refused.unique("reason", keep="first", maintain_order=True).to_dicts():
            self.examples.setdefault(row["reason"], f"{row['file']} row {row['row']}: {row['content']}")
        for reason, count in refused["reason"].value_counts().rows():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def total(tallies: Iterable[RowTally]) -> RowTally:
    """The sum; of each reason the first example is kept."""
    result, reasons = RowTally(), Counter[str]()
    for tally in tallies:
        result.rows += tally.rows
        reasons.update(tally.reasons)
        result.examples = {**tally.examples, **result.examples}
    result.reasons = dict(sorted(reasons.items()))
    return result


def check_share(tally: RowTally, max_bad_share: float) -> None:
    """Stop where too many rows were refused.

    Raises:
        LogError: the share of refused rows is above `max_bad_share`; names reasons, counts, examples.
    """
    if tally.refused > max_bad_share * tally.rows:
        by_count = sorted(tally.reasons.items(), key=lambda item: -item[1])
        lines = [f"  {count} x {reason}, for example {tally.examples[reason]}" for reason, count in by_count]
        raise LogError(
            f"{tally.refused} of {tally.rows} rows are bad, more than max_bad_share {max_bad_share:g} allows:\n"
            + "\n".join(lines)
            + "\nMend the log, or the settings that read it, or raise max_bad_share"
        )
    if tally.refused:
        logger.warning("%d of %d rows were put into quarantine", tally.refused, tally.rows)
