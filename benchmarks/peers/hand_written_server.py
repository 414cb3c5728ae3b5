"""What a team writes in an afternoon: one process, FastAPI, the model, FAISS. The bar of `benchmarks.serve_load`.

    python -m benchmarks.peers.hand_written_server RELEASE --port N

It answers what the endpoint answers for a history without conditions, one request at a time, on one thread.
"""

import argparse
from typing import Any

import faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from data.batch import collate
from data.encode import encode_histories
from serve.release import Release

api = FastAPI()
loaded: dict[str, Any] = {}


class Event(BaseModel):
    """One event."""

    item_id: str
    timestamp: int


class Asked(BaseModel):
    """A request."""

    history: list[Event]
    k: int = 10
    request_time: int


def load(directory: str) -> None:
    """Read model, ids and index of a release."""
    release = Release.open(directory)
    loaded["retriever"] = release.artifact.load_retriever()
    loaded["max_events"] = release.artifact.max_events
    loaded["ids"] = ["", *release.artifact.vocabulary().item_ids]
    loaded["rows"] = {item_id: row for row, item_id in enumerate(loaded["ids"]) if row}
    loaded["index"] = release.index.faiss_index  # type: ignore[attr-defined]  # flat and ivf have one
    loaded["release"] = release.release_id


@api.post("/v1/retrieve")
async def retrieve(asked: Asked) -> JSONResponse:
    """The best items for a history."""
    events = [
        (loaded["rows"][event.item_id], event.timestamp) for event in asked.history if event.item_id in loaded["rows"]
    ]
    items = np.array([row for row, _ in events])
    times = np.array([time for _, time in events])
    histories = encode_histories(
        [items], [times], [np.zeros_like(items)], [asked.request_time], max_events=loaded["max_events"]
    )
    with torch.inference_mode():
        query_1D = loaded["retriever"].query_vectors(collate(histories)).numpy()
    scores, found = loaded["index"].search(query_1D, asked.k + len(items))
    seen = set(items.tolist())
    best = [
        (row + 1, score)
        for row, score in zip(found[0].tolist(), scores[0].tolist(), strict=True)
        if row + 1 not in seen
    ]
    answer = [{"item_id": loaded["ids"][row], "score": score} for row, score in best[: asked.k]]
    return JSONResponse({"release": loaded["release"], "items": answer})


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("release")
    arguments.add_argument("--port", type=int, required=True)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    load(chosen.release)
    uvicorn.run(api, port=chosen.port, log_level="warning", access_log=False)
