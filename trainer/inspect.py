"""`farsight inspect`: what the model sees of one user and what it answers, as tables and as a picture of the mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from data.batch import Batch, collate
from data.dataset import PreparedDataset
from data.encode import encode_histories, encode_windows
from data.errors import ArtifactMismatch, DatasetError
from data.windows import WINDOW_COLUMNS, cut_windows
from modeling.artifact import Artifact
from modeling.foresight import foresee
from modeling.metrics import hide, top_rows
from modeling.retriever import Retriever

SHOWN_EVENTS = 40  # of a history, the newest; more do not fit a screen


@dataclass(frozen=True)
class _Names:
    """Item rows to what a person reads."""

    item_ids: list[str]
    titles: list[str | None]
    categories: list[list[str]]

    def of(self, row: int) -> dict[str, Any]:
        return {
            "item_id": self.item_ids[row - 1],
            "title": self.titles[row - 1],
            "categories": ", ".join(self.categories[row - 1] or []),
        }


def run(
    artifact: str,
    dataset: str,
    user: str,
    *,
    conditions: Sequence[str] = (),
    k: int = 10,
    out: str | None = None,
) -> dict[str, Any]:
    """Show one user to an artifact, as they stood before their test events.

    Args:
        conditions: names of conditions to answer for besides.
        out: PNG file of the mask in training: which events each prediction was made from.

    Returns:
        `history` (the newest events, with `visible_from`: how many events the prediction of the event
        was made from in training), and `answers`: the k best items per head and per condition.

    Raises:
        ArtifactMismatch: the dataset has another vocabulary, or the artifact no such condition.
        DatasetError: no such user, or one with fewer than two training events.
    """
    opened, prepared = Artifact.open(artifact), PreparedDataset.open(dataset)
    opened.check_dataset(prepared)
    row = _history(prepared, user)
    retriever, names = opened.load_retriever(), _names(opened)
    window, plan_rows, allowed = _training_view(opened, retriever, row)
    known = int(row["num_train"]) + int(row["num_validation"])
    items, times, actions = (np.array(row[name][:known], np.int64) for name in ("items", "times", "actions"))
    asked_at = int(row["times"][known] if known < len(row["times"]) else times[-1])
    batch = collate(encode_histories([items], [times], [actions], [asked_at], max_events=opened.max_events))
    codes = [_code(opened, name) for name in conditions]
    answers = {
        name: [names.of(found) for found in _best(retriever, query_D, items, k)]
        for name, query_D in _queries(retriever, batch, dict(zip(conditions, codes, strict=True))).items()
    }
    result: dict[str, Any] = {
        "user": user,
        "events": len(row["items"]),
        "request_time": asked_at,
        "history": _events(row, window, plan_rows, allowed, names),
        "answers": answers,
    }
    if out is not None:
        result["picture"] = _draw(Path(out), user, plan_rows, allowed, opened)
    return result


def _history(prepared: PreparedDataset, user: str) -> dict[str, Any]:
    columns = ["user_id", *WINDOW_COLUMNS, "num_train", "num_validation", "num_test"]
    for table in prepared.history_tables(columns):
        found = table.filter(pc.equal(table.column("user_id"), user))
        if found.num_rows:
            row: dict[str, Any] = found.to_pylist()[0]
            if row["num_train"] < 2:
                raise DatasetError(f"user {user!r} has {row['num_train']} training events; choose one with at least 2")
            return row
    raise DatasetError(f"{prepared.directory}: no user {user!r}; ids are those of the log, and a user needs events")


def _names(artifact: Artifact) -> _Names:
    catalogue = artifact.catalogue()
    titles = catalogue.column("title").to_pylist() if "title" in catalogue.column_names else [None] * len(catalogue)
    return _Names(artifact.vocabulary().item_ids, titles, catalogue.column("categories").to_pylist())


def _training_view(artifact: Artifact, retriever: Retriever, row: dict[str, Any]) -> tuple[Batch, Tensor, Tensor]:
    """The newest training window, the position that predicts each of its targets (-1: none), and what that one sees."""
    fields = {name: pa.array([row[name]]) for name in (*WINDOW_COLUMNS, "num_train")}
    window = collate(encode_windows(cut_windows(pa.table(fields), max_events=artifact.max_events, rule="last")))
    plan = foresee(window, retriever.prediction)
    places_L = torch.arange(window["items_BL"].shape[1])
    rows_L = places_L if plan.rows_BL is None else plan.rows_BL[0]
    allowed_LL = plan.allowed.expand(1, -1, -1)[0][rows_L]
    return window, rows_L.where(plan.labels_BLK[0, :, 0] > 0, -1), allowed_LL


def _queries(retriever: Retriever, batch: Batch, codes: dict[str, int]) -> dict[str, Tensor]:
    with torch.inference_mode():
        heads_KD = retriever.head_query_vectors(batch)[0]
        queries = {f"head {head}": query_D for head, query_D in enumerate(heads_KD, start=1)}
        if codes:
            asked = torch.tensor([list(codes.values())])
            queries |= dict(zip(codes, retriever.conditioned_query_vectors(batch, asked)[0], strict=True))
    return queries


def _code(artifact: Artifact, name: str) -> int:
    if artifact.settings.condition is None:
        raise ArtifactMismatch(f"{artifact.directory}: trained without conditions; train with model.condition")
    code = artifact.conditions().code(name)
    if code is None:
        some = ", ".join(artifact.conditions().names[:8])
        raise ArtifactMismatch(f"{artifact.directory}: no condition {name!r}; there are {some}, ...")
    return code


def _best(retriever: Retriever, query_D: Tensor, seen: np.ndarray[Any, Any], k: int) -> list[int]:
    with torch.inference_mode():
        items_VD = retriever.catalogue_vectors()
        scores_1V = hide((items_VD @ query_D)[None], [torch.from_numpy(seen)])
    return [row for row in top_rows(scores_1V, k)[0][0].tolist() if row]


def _events(
    row: dict[str, Any], window: Batch, plan_rows: Tensor, allowed: Tensor, names: _Names
) -> list[dict[str, Any]]:
    """The newest events; those that were targets in the window know what they were predicted from."""
    length = int(window["lengths_B"][0])
    seen_from = {}
    for place in range(length):
        event = row["num_train"] - length + place  # what stands after `place` of the window
        seen_from[event] = int(allowed[place].sum()) if plan_rows[place] >= 0 else None
    parts = ["train"] * row["num_train"] + ["validation"] * row["num_validation"] + ["test"] * row["num_test"]
    first = max(0, len(parts) - SHOWN_EVENTS)
    return [
        {
            "event": event,
            "part": parts[event],
            "time": row["times"][event],
            **names.of(row["items"][event]),
            "visible_from": seen_from.get(event),
        }
        for event in range(first, len(parts))
    ]


def _draw(path: Path, user: str, plan_rows: Tensor, allowed: Tensor, artifact: Artifact) -> str:
    from matplotlib.figure import Figure  # slow to import

    shown = allowed.float().where((plan_rows >= 0)[:, None], torch.nan)
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
    places = torch.arange(len(plan_rows))
    held = plan_rows >= 0
    axes.plot(plan_rows[held], places[held], ".", color="tab:red", markersize=3, label="event that predicts")
    prediction = artifact.settings.prediction
    hidden = "all visible" if prediction.hidden == "nothing" else f"{prediction.hidden}, gap {prediction.gap}"
    axes.set(
        title=f"user {user}: what each target was predicted from ({hidden})",
        xlabel="event of the window (blue: visible)",
        ylabel="target: the event after this one (grey row: none)",
    )
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    return str(path)
