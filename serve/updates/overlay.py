"""Updates laid over a release: which of its items are masked, and the segment of those that were added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data.item_features import FeatureCodes, ItemFacts
from data.vocabulary import PAD_ROW, Vocabulary
from serve.catalogue import Catalogue, FloatArray, Segment
from serve.engine import Engine
from serve.index.on_torch import MatrixIndex
from serve.updates.contract import AddedItem, Updates

REMOVED = "it is removed; restore it"
IN_RELEASE = "the release has it, and answers with its own"
MAKES_NONE = "this release's model makes no vectors of ids or features (model.items); give like, or a vector"
KNOWS_NONE = "the release knows none of its categories, numbers and contents; give others, like, or a vector"


@dataclass(frozen=True)
class Overlay:
    """What a replica answers from once it knows some updates."""

    updates: Updates
    catalogue: Catalogue
    left_out: Mapping[str, str]  # ids of added items that it does not answer with, and why


def lay_over(engine: Engine, updates: Updates) -> Overlay:
    """The catalogue of a release as updates leave it. What it makes depends on nothing else."""
    release = engine.catalogue.release
    removed_V = np.zeros(release.vocabulary.num_items, bool)
    rows = release.vocabulary.rows(updates.removed)
    removed_V[rows[rows != PAD_ROW] - 1] = True
    left_out = {}
    candidates = []
    for item, row in zip(updates.added, release.vocabulary.rows(item.item_id for item in updates.added), strict=True):
        if item.item_id in updates.removed:
            left_out[item.item_id] = REMOVED
        elif row != PAD_ROW:
            left_out[item.item_id] = IN_RELEASE
        else:
            candidates.append(item)
    vectors, reasons = vectors_of(engine, candidates)
    added = [item for item in candidates if item.item_id in vectors]
    catalogue = Catalogue(
        replace(release, kept_V=~removed_V if removed_V.any() else None),
        _segment(release, added, np.stack([vectors[item.item_id] for item in added])) if added else None,
    )
    return Overlay(updates, catalogue, left_out | reasons)


def vectors_of(engine: Engine, items: Sequence[AddedItem]) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """By id, the vectors of added items, of length 1 as those of a release are; and why others have none."""
    found: dict[str, FloatArray] = {}
    reasons: dict[str, str] = {}
    like = [item for item in items if item.vector is None and item.like]
    alone = {item.item_id: _facts(item) for item in items if item.vector is None and not item.like}
    codes = engine.feature_codes
    reasons |= {item_id: why for item_id, facts in alone.items() if (why := _misfit(facts, codes))}
    alone = {item_id: facts for item_id, facts in alone.items() if item_id not in reasons}
    for item in items:
        if item.vector is None:
            continue
        if item.artifact == engine.artifact_hash:
            found[item.item_id] = np.frombuffer(item.vector, "<f4").astype(np.float32)
        else:
            reasons[item.item_id] = (
                f"its vector is of artifact {str(item.artifact)[:12]}, and this release's is "
                f"{engine.artifact_hash[:12]}; add it again with a vector of that, or by like"
            )
    for item, vector in zip(like, _means(engine, like), strict=True):
        if vector is None:
            reasons[item.item_id] = "the release has none of the items that it is like"
        else:
            found[item.item_id] = vector
    composed = engine.composed_vectors([*alone], [*alone.values()])
    for place, item_id in enumerate(alone):
        if composed is None:
            reasons[item_id] = MAKES_NONE
        elif (made := composed[place]) is None:
            reasons[item_id] = KNOWS_NONE
        else:
            found[item_id] = made
    lengths = {item_id: float(np.linalg.norm(vector.astype(np.float64))) for item_id, vector in found.items()}
    reasons |= {item_id: "its vector has no direction" for item_id, length in lengths.items() if not length}
    vectors = {item_id: found[item_id] / length for item_id, length in lengths.items() if length}
    if vectors:
        vectors = dict(zip(vectors, engine.normalized(np.stack([*vectors.values()])), strict=True))
    return vectors, reasons


def _facts(item: AddedItem) -> ItemFacts:
    contents = {name: np.frombuffer(content, "<f4").astype(np.float32) for name, content in item.contents.items()}
    return ItemFacts(item.categories, item.numbers, contents)


def _misfit(facts: ItemFacts, codes: FeatureCodes) -> str | None:
    """Why what is said of an item cannot be read by a release; what it has no name for does not count."""
    for name, content in facts.contents.items():
        if (width := codes.widths.get(name, len(content))) != len(content):
            return f"its {name} has {len(content)} numbers, and this release reads {width}; add it again with as many"
    return None


def _means(engine: Engine, items: Sequence[AddedItem]) -> list[FloatArray | None]:
    """The mean vector of what each item is like, as far as the release has it."""
    rows = [engine.catalogue.release.vocabulary.rows(item.like) for item in items]
    known = [rows_N[rows_N != PAD_ROW] for rows_N in rows]
    if not any(map(len, known)):
        return [None] * len(items)
    vectors_ND, stops = engine.item_vectors(np.concatenate(known)), np.cumsum([len(rows_N) for rows_N in known])
    parts = zip(stops - [len(rows_N) for rows_N in known], stops, strict=True)
    return [vectors_ND[start:stop].mean(axis=0) if stop > start else None for start, stop in parts]


def _segment(release: Segment, items: Sequence[AddedItem], vectors_AD: FloatArray) -> Segment:
    nothing_A = np.zeros(len(items), np.int64)
    return Segment(
        Vocabulary([item.item_id for item in items]),
        MatrixIndex(vectors_AD),
        release.conditions.of_others([item.categories for item in items], [item.added_at for item in items]),
        train_events_V=nothing_A,
        popular_V=np.arange(1, len(items) + 1),
        titles=pa.array([item.title for item in items], pa.string()),
        rows_before=release.vocabulary.num_items,
    )
