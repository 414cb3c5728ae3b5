"""Histories to query vectors on a device: at what precision, and compiled for which shapes."""

import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from data.batch import Batch, collate, to_device
from data.encode import EncodedHistories, encode_histories
from modeling.retriever import Retriever
from serve.settings import Encoding

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, int, int]  # histories, events, instructions of each


class QueryEncoder:
    """The retriever's side of a request. Not safe for concurrent calls; `prepare` belongs to the thread that asks.

    Args:
        retriever: on the device.
        max_events: longest history.
    """

    def __init__(self, retriever: Retriever, settings: Encoding, device: str, max_events: int) -> None:
        self._retriever, self._device, self._max_events = retriever, device, max_events
        self.takes_conditions = retriever.conditioning is not None
        if settings.precision == "bf16":
            # The item table stays as it is: it also makes the vectors that items are searched by.
            for name, part in retriever.named_children():
                if name != "items":
                    part.to(torch.bfloat16)
        self._shapes = sorted(_shapes(settings, max_events, self.takes_conditions))
        self._compiled = False

    def prepare(self) -> float:
        """Compile for all shapes by encoding once in each; how many seconds that took."""
        if not self._shapes:
            return 0.0
        began = time.perf_counter()
        # One program for each shape, more than torch would keep of a function by itself.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(self._shapes))
        mode = "reduce-overhead" if self._device.startswith("cuda") else "default"  # the first is CUDA graphs
        self._query = torch.compile(self._retriever.query_vectors, dynamic=False, mode=mode)
        self._conditioned = torch.compile(self._retriever.conditioned_query_vectors, dynamic=False, mode=mode)
        self._compiled = True
        for shape in self._shapes:
            for _ in range(3):  # CUDA graphs are recorded at the second call and replayed at the third
                self._vectors(_empty_histories(1), np.zeros((1, 1), np.int64), shape)
        return time.perf_counter() - began

    def __call__(self, histories: EncodedHistories, codes: Sequence[Sequence[int]]) -> FloatArray:
        """One vector of length 1 per code, [N, D], those of a history one after the other.

        The shared blocks run once per history, however many codes it has. The vectors of a history
        without events mean nothing.

        Args:
            codes: of the conditions that each history is asked for, at least one; 0 asks for nothing, and is all that a
                model without conditions knows.
        """
        counts = [len(of_one) for of_one in codes]
        widest = max(counts)
        asked_QP = np.arange(widest) < np.array(counts)[:, None]
        codes_QP = np.zeros((len(counts), widest), np.int64)
        codes_QP[asked_QP] = [code for of_one in codes for code in of_one]
        wanted = (len(counts), int(histories.lengths_B.max(initial=1)), widest)
        query_QPD = self._vectors(histories, codes_QP, self._holding(wanted))
        query_ND: FloatArray = query_QPD[asked_QP]
        return query_ND

    def _holding(self, wanted: Shape) -> Shape | None:
        """The smallest compiled shape that holds a batch; None if none does."""
        if not self._compiled:
            return None
        num_queries, length, instructions = wanted
        least = (num_queries, length, instructions if self.takes_conditions else 1)
        fitting = (shape for shape in self._shapes if all(np.less_equal(least, shape)))
        return min(fitting, key=lambda shape: shape[0] * shape[1] * shape[2], default=None)

    def _vectors(
        self, histories: EncodedHistories, codes_QP: Int[np.ndarray, "Q P"], shape: Shape | None
    ) -> FloatArray:
        """Vectors of each history for each code, [Q, P, D]; padded to the shape and compiled if there is one."""
        num_queries, num_codes = codes_QP.shape
        batch, codes = collate(histories), torch.from_numpy(codes_QP)
        if shape is not None:
            batch = _padded(batch, shape[0], shape[1])
            codes = functional.pad(codes, (0, max(0, shape[2] - num_codes), 0, shape[0] - num_queries))
        batch = to_device(batch, self._device)
        with torch.inference_mode():
            if self.takes_conditions:
                encode = self._retriever.conditioned_query_vectors if shape is None else self._conditioned
                vectors_QPD = encode(batch, codes.to(self._device))[:num_queries, :num_codes]
            else:
                encode_one = self._retriever.query_vectors if shape is None else self._query
                vectors_QPD = encode_one(batch)[:num_queries, None].expand(-1, num_codes, -1)
            # bf16 leaves lengths a few thousandths off.
            if vectors_QPD.dtype != torch.float32:
                vectors_QPD = self._retriever.normalized(vectors_QPD.float())
            vectors: FloatArray = vectors_QPD.cpu().numpy()
        return vectors


def _shapes(settings: Encoding, max_events: int, takes_conditions: bool) -> Iterator[Shape]:
    """The shapes that a model can meet, of those that are compiled for."""
    compiled = settings.compiled
    if compiled is None:
        return
    events = {min(length, max_events) for length in compiled.events} or {max_events}
    instructions = set(compiled.instructions) if takes_conditions else {1}
    yield from product(sorted(set(compiled.histories)), sorted(events), sorted(instructions))


def _empty_histories(count: int) -> EncodedHistories:
    nothing = [np.zeros(0, np.int64)] * count
    return encode_histories(nothing, nothing, nothing, [0] * count, max_events=1)


def _padded(batch: Batch, num_rows: int, length: int) -> Batch:
    """The batch with rows and events of padding up to a size; a causal model's answers do not change by it."""
    num_old, old_length = batch["items_BL"].shape
    rows, events = num_rows - num_old, length - old_length
    tensors = cast(dict[str, Tensor], batch)
    return cast(
        Batch,
        {
            name: functional.pad(value, (0, events, 0, rows) if value.ndim == 2 else (0, rows))
            for name, value in tensors.items()
        },
    )
