"""A release before it is promoted: opened from disk as by a replica, asked its own golden requests and another's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ArtifactMismatch
from serve.engine import Engine
from serve.golden import check_golden, query_of
from serve.instructions import Unanswerable
from serve.release import GOLDEN, read_release_manifest


def run(release: str, against: str | None = None) -> dict[str, Any]:
    """Ask a release.

    Args:
        release: directory of a release.
        against: directory of the release in use.

    Returns:
        `golden`, None or why an answer is not the golden one; `requests`, how many of them there are; `overlap`, the
        share of the golden answers of `against` that this release gives too (None without any).

    Raises:
        ArtifactError: a release is missing or damaged.
    """
    engine = Engine.open(release)
    golden = None
    try:
        check_golden(engine, engine.golden)
    except ArtifactMismatch as error:
        golden = str(error)
    return {
        "golden": golden,
        "requests": len(engine.golden),
        "overlap": None if against is None else overlap(engine, golden_of_release(Path(against))),
    }


def golden_of_release(directory: Path) -> list[dict[str, Any]]:
    """The golden requests of a finished release, whose index need not be loaded for them.

    Raises:
        ArtifactError: no finished release is there.
    """
    read_release_manifest(directory)
    golden: list[dict[str, Any]] = json.loads((directory / GOLDEN).read_text(encoding="utf-8"))
    return golden


def overlap(engine: Engine, golden: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean share of golden answers that an engine gives too, in any order; None if it can be asked none of them."""
    shares = []
    for expected in golden:
        try:
            [answer] = engine.answer([query_of(expected)])
        except Unanswerable:  # a condition that it does not know, or no times for a model that reads them
            continue
        if expected["item_ids"]:
            shares.append(len(set(answer.item_ids) & set(expected["item_ids"])) / len(expected["item_ids"]))
    return float(np.mean(shares)) if shares else None
