"""Golden requests: what a release answered when it was built, and must answer wherever it is loaded.

They catch what hashes do not: another version of a library, a device or a setting that changes answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch
from modeling.artifact import Artifact
from serve.answer import Answer, Query
from serve.engine import Engine

NUM_REQUESTS = 8
ITEMS_PER_ANSWER = 10
# Scores are cosines. Another device, or bf16, moves them less than this; a model that differs moves them more.
SCORE_TOLERANCE = 0.02


def history_queries(dataset: PreparedDataset, at_most: int = NUM_REQUESTS) -> list[Query]:
    """Requests of the first users that have test events, as they stood before those."""
    vocabulary, actions = dataset.vocabulary(), [None, *dataset.manifest["actions"]]
    queries: list[Query] = []
    for table in dataset.history_tables():
        for row in table.to_pylist():
            seen = row["num_train"] + row["num_validation"]
            if not (row["num_test"] and seen):
                continue
            queries.append(
                Query(
                    item_ids=vocabulary.external(row["items"][:seen]),
                    timestamps=row["times"][:seen] if dataset.has_times else None,
                    actions=[actions[code] for code in row["actions"][:seen]],
                    k=ITEMS_PER_ANSWER,
                    request_time=row["times"][seen],
                )
            )
            if len(queries) == at_most:
                return queries
    return queries


def made_up_queries(artifact: Artifact) -> list[Query]:
    """Requests whose histories are drawn from the catalogue, an event every minute."""
    item_ids, random = artifact.vocabulary().item_ids, np.random.default_rng(0)
    length = min(artifact.max_events, len(item_ids))
    return [
        Query(
            item_ids=[item_ids[row] for row in random.choice(len(item_ids), length, replace=False)],
            timestamps=[60 * event for event in range(length)],
            k=ITEMS_PER_ANSWER,
            request_time=60 * length,
        )
        for _ in range(NUM_REQUESTS)
    ]


def golden_of(engine: Engine, queries: Sequence[Query]) -> list[dict[str, Any]]:
    """The requests with what the engine answers, as JSON values."""
    answers = [engine.answer([query])[0] for query in queries]
    return [
        {"query": asdict(query), "item_ids": answer.item_ids, "scores": answer.scores}
        for query, answer in zip(queries, answers, strict=True)
    ]


def query_of(golden: Mapping[str, Any]) -> Query:
    """The request of a golden one."""
    return Query(**golden["query"])


def check_golden(engine: Engine, golden: Sequence[Mapping[str, Any]]) -> None:
    """Ask all of them.

    Raises:
        ArtifactMismatch: an answer is another than when the release was built.
    """
    for number, expected in enumerate(golden):
        [answer] = engine.answer([query_of(expected)])
        if not is_golden(answer, expected):
            found, wanted = (_shown(*lists) for lists in ((answer.item_ids, answer.scores), _lists(expected)))
            raise ArtifactMismatch(
                f"release {engine.release_id}, golden request {number}: found {found}, expected {wanted}; libraries "
                "or device answer otherwise here than where the release was built: build it here with farsight index"
            )


def is_golden(answer: Answer, expected: Mapping[str, Any]) -> bool:
    """Whether an answer is the golden one: equal scores rank by rank, and no item lost but among equals."""
    item_ids, scores = _lists(expected)
    if len(answer.scores) != len(scores) or not np.allclose(answer.scores, scores, rtol=0, atol=SCORE_TOLERANCE):
        return False
    clear = {item for item, score in zip(item_ids, scores, strict=True) if score > scores[-1] + SCORE_TOLERANCE}
    return clear <= set(answer.item_ids)


def _lists(expected: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    return expected["item_ids"], expected["scores"]


def _shown(item_ids: Sequence[str], scores: Sequence[float]) -> str:
    return ", ".join(f"{item} {score:.3f}" for item, score in list(zip(item_ids, scores, strict=True))[:3])
