"""Example retrievals: what some users had seen, what they were answered, and whether it held what came next."""

from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from data.dataset import CATALOGUE, PreparedDataset
from trainer.evaluation import Ranked

TABLE = "examples"
COLUMNS = ("user", "history", "targets", "best_rank", "hit", "answer")
SHOWN_EVENTS = 5  # of a history, the newest


class ExampleRetrievals:
    """An observer that keeps the first users of a validation; the same ones every time, so that they can be compared.

    Args:
        num_users: how many.
        k: items of an answer, at most as many as were ranked.
    """

    def __init__(self, num_users: int, k: int = 10) -> None:
        self._num_users, self._k = num_users, k
        self._found: list[dict[str, Any]] = []

    def see(self, ranked: Ranked) -> None:
        """Keep users of the batch, while there is room."""
        users = ranked.queries_T.tolist()
        for user in range(min(len(ranked.cases), self._num_users - len(self._found))):
            ranks = [rank for rank, owner in zip(ranked.ranks_T.tolist(), users, strict=True) if owner == user]
            self._found.append(
                {
                    "user": ranked.cases.user_ids[user],
                    "history": ranked.cases.items[user][-SHOWN_EVENTS:].tolist(),
                    "targets": ranked.cases.targets[user].tolist(),
                    "rank": min(ranks),
                    "answer": [row for row in ranked.top_BK[user, : self._k].tolist() if row],
                }
            )

    def rows(self, dataset: PreparedDataset) -> list[list[Any]]:
        """A row of `COLUMNS` per user, with items by title; ranks count from 1, None for a target that was missed
        because it may not be recommended.
        """
        lists = [rows for found in self._found for rows in (found["history"], found["targets"], found["answer"])]
        titles = _titles(dataset, {row for rows in lists for row in rows})
        return [
            [
                found["user"],
                " > ".join(titles[row] for row in found["history"]),
                "; ".join(titles[row] for row in found["targets"]),
                found["rank"] + 1 if found["rank"] < dataset.num_rows else None,
                found["rank"] < self._k,
                "; ".join(
                    f"{place}. {titles[row]}{' (hit)' if row in found['targets'] else ''}"
                    for place, row in enumerate(found["answer"], start=1)
                ),
            ]
            for found in self._found
        ]


def _titles(dataset: PreparedDataset, rows: Iterable[int]) -> dict[int, str]:
    """What a person calls the items: their titles, their ids where they have none."""
    wanted = sorted(rows)
    path = dataset.directory / CATALOGUE
    columns = [name for name in ("item_id", "title") if name in pq.read_schema(path).names]
    items = pq.read_table(path, columns=columns).take([row - 1 for row in wanted]).to_pylist()
    return {row: str(item.get("title") or item["item_id"]) for row, item in zip(wanted, items, strict=True)}
