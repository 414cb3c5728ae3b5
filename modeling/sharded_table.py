"""An item table whose rows are split over the ranks of a run, so that no rank holds the catalogue.

It stands beside the DeepSpeed engine, not inside its module: the engine would copy rank 0's rows to
all ranks when it starts, average a dense gradient of the whole table at every step, and gather all
of it under ZeRO-3. Here one step moves the rows that its batch names, once there and once back:

    held = table.hold(items_BL, labels_BLK, negatives_N)   # ids to their owners, vectors back
    loss = ...  held(rows) ...                             # like an embedding
    loss.backward()
    table.collect()                                        # gradients to the owners
    table.step(learning_rate)                              # the rows that were touched, no others

Every method named above is a collective: all ranks call it equally often, in the same order. The
exchange happens outside of autograd's own threads, so it cannot cross the engine's all-reduces.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from data.errors import TrainingError
from modeling.item_table import INITIAL_DEVIATION
from modeling.row_optimizers import RowOptimizer
from modeling.table_files import BLOCK, num_blocks, table_files


@dataclass
class Held:
    """The rows of one batch on this rank, whoever owns them. Call it like an embedding."""

    rows_U: Int[Tensor, "U"]  # ascending, each once
    vectors_UD: Float[Tensor, "U D"]  # a leaf: its gradient is what `collect` sends to the owners
    order_U: Int[Tensor, "U"]  # the rows by owner
    sent_W: list[int]  # rows asked of each rank
    received_W: list[int]  # rows that each rank asks of this one
    asked_M: Int[Tensor, "M"]  # where they stand in this rank's shard

    def __call__(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Vectors of rows that are held; what is not held gives vectors of other rows."""
        return functional.embedding(torch.searchsorted(self.rows_U, rows), self.vectors_UD)


class ShardedTable:
    """This rank's rows of a table of `num_rows` x `width`, and the way to everyone else's.

    Row 0 is padding: always zero, never trained. The mean over the ranks of their gradients is
    what a step takes, as DeepSpeed and DDP do for the dense part. A table that is `frozen` (on all
    ranks) gives vectors and takes no gradients.

    Args:
        optimizer: updates rows; holds its state for this rank's rows alone.
        group: process group of the exchange; gloo for tensors on a CPU, NCCL for a GPU. None for a single rank.
        dtype: of the rows, in memory and on the way. bfloat16 rows are rounded at random on a
            write, so that updates smaller than half their last bit are not lost.
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        optimizer: RowOptimizer,
        *,
        group: dist.ProcessGroup | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self._num_rows, self.width = num_rows, width
        self.optimizer = optimizer
        self.group = group
        self.rank, self.world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        self.blocks_G = torch.arange(self.rank, num_blocks(num_rows), self.world)
        self.vectors_RD = torch.empty(len(self.blocks_G) * BLOCK, width, dtype=dtype, device=device)
        self._initialise(seed)
        optimizer.allocate(len(self.vectors_RD), width, device)
        self.frozen = False
        self._held: list[Held] = []
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator()
        for place, block in enumerate(self.blocks_G.tolist()):
            generator.manual_seed(seed << 40 | block)
            values = torch.empty(BLOCK, self.width).normal_(std=INITIAL_DEVIATION, generator=generator)
            self.vectors_RD[place * BLOCK : (place + 1) * BLOCK] = values.to(self.vectors_RD)
        if self.rank == 0:
            self.vectors_RD[0] = 0

    @property
    def num_rows(self) -> int:
        """Rows of the whole table, padding row 0 included."""
        return self._num_rows

    def own_rows(self) -> Int[Tensor, "R"]:
        """Row of the table at each place of this rank's shard; `num_rows` or more past the table's end."""
        return (self.blocks_G[:, None] * BLOCK + torch.arange(BLOCK)).flatten()

    def owner(self, rows: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """The rank that has each row."""
        return rows // BLOCK % self.world

    def place(self, rows: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Where each row stands in the shard of its owner."""
        return rows // BLOCK // self.world * BLOCK + rows % BLOCK

    def hold(self, *rows: Int[Tensor, "..."]) -> Held:
        """Fetch each of these rows once, for a batch. A collective."""
        rows_U = torch.unique(torch.cat([part.flatten() for part in rows]))
        owner_U = self.owner(rows_U)
        order_U = owner_U.argsort(stable=True)
        sent = torch.bincount(owner_U, minlength=self.world)
        received = self._exchange(sent, [1] * self.world, [1] * self.world)
        sent_W, received_W = sent.tolist(), received.tolist()
        asked_M = self._exchange(self.place(rows_U)[order_U], sent_W, received_W)
        fetched_UD = self._exchange(self.vectors_RD[asked_M], received_W, sent_W)
        vectors_UD = torch.empty_like(fetched_UD, dtype=torch.float32)
        vectors_UD[order_U] = fetched_UD.float()
        held = Held(rows_U, vectors_UD, order_U, sent_W, received_W, asked_M)
        if torch.is_grad_enabled() and not self.frozen:
            vectors_UD.requires_grad_()
            self._held.append(held)
        return held

    def collect(self) -> None:
        """Send the gradients of what was held since the last call to the owners of the rows. A collective."""
        for held in self._held:
            gradient_UD = held.vectors_UD.grad
            if gradient_UD is None:  # nothing of this rank's batch came into its loss
                gradient_UD = torch.zeros_like(held.vectors_UD)
            arrived_MD = self._exchange(gradient_UD[held.order_U], held.sent_W, held.received_W)
            self._gradients.append((held.asked_M, arrived_MD / self.world))
        self._held.clear()

    def step(self, learning_rate: float) -> None:
        """Update the rows that have a gradient. Gradients of several batches add up, as in gradient accumulation."""
        if not self._gradients:
            return
        places_M = torch.cat([places for places, _ in self._gradients])
        gradients_MD = torch.cat([gradients for _, gradients in self._gradients])
        self._gradients.clear()
        # What was held and had no part in the loss stays as it is.
        kept_M = gradients_MD.any(1)
        if self.rank == 0:
            kept_M &= places_M != 0  # padding
        places_M, gradients_MD = places_M[kept_M], gradients_MD[kept_M]
        touched_T, inverse_M = torch.unique(places_M, return_inverse=True)
        gradient_TD = torch.zeros(len(touched_T), self.width, device=gradients_MD.device)
        gradient_TD.index_add_(0, inverse_M, gradients_MD)
        vectors_TD = self.vectors_RD[touched_T].float()
        self.optimizer.steps += 1
        change_TD = self.optimizer.change(touched_T, gradient_TD, learning_rate)
        self.vectors_RD[touched_T] = _rounded(vectors_TD + change_TD, self.vectors_RD.dtype)

    def save(self, directory: str | Path) -> None:
        """Write this rank's rows and their optimiser's state into a file of its own."""
        tensors = {"vectors": self.vectors_RD, **self.optimizer.state()}
        facts = {
            "num_rows": self.num_rows,
            "width": self.width,
            "block": BLOCK,
            "rank": self.rank,
            "world": self.world,
            "steps": self.optimizer.steps,
        }
        # A rank without a block writes its file too: the files are counted.
        path = Path(directory) / f"table-{self.rank:05d}-of-{self.world:05d}.safetensors"
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(stored, path, {"facts": json.dumps(facts)})

    def load(self, directory: str | Path) -> None:
        """Read this rank's rows from the files of any number of ranks.

        A table that has grown since keeps its initial values in the new rows.

        Raises:
            TrainingError: files are missing, or hold another table.
        """
        for path in table_files(directory):
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                self._check(path, facts)
                self.optimizer.steps = facts["steps"]
                blocks_H = torch.arange(facts["rank"], num_blocks(facts["num_rows"]), facts["world"])
                mine_H = (blocks_H % self.world == self.rank) & (blocks_H < num_blocks(self.num_rows))
                if not mine_H.any():
                    continue
                places_H = blocks_H[mine_H] // self.world
                last = facts["num_rows"] - blocks_H[mine_H] * BLOCK  # rows that the file's table had from there on
                real = (torch.arange(BLOCK) < last[:, None]).flatten()
                for name, own in {"vectors": self.vectors_RD, **self.optimizer.state()}.items():
                    stored = file.get_tensor(name).unflatten(0, (-1, BLOCK))[mine_H].flatten(0, 1)
                    rows_Q = (places_H[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[real]
                    own[rows_Q.to(own.device)] = stored[real].to(own)

    def begin(self, path: Path, name: str) -> None:
        """Take over rows of a whole table; the file's others stay on the disk. Rows that it lacks stay as they are.

        Args:
            path: a safetensors file, such as an artifact's; one block of it is read at a time.
            name: of its tensor [rows, width].

        Raises:
            TrainingError: it has more rows, or another width.
        """
        with safe_open(path, framework="pt") as file:
            stored_VD = file.get_slice(name)
            num_rows, width = stored_VD.get_shape()
            self._check(path, {"num_rows": num_rows, "width": width, "block": BLOCK})
            for place, block in enumerate(self.blocks_G.tolist()):
                if block * BLOCK >= num_rows:
                    return
                rows_BD = stored_VD[block * BLOCK : min(num_rows, (block + 1) * BLOCK)]
                self.vectors_RD[place * BLOCK :][: len(rows_BD)] = rows_BD.to(self.vectors_RD)

    def _check(self, path: Path, facts: dict[str, int]) -> None:
        if facts["width"] != self.width or facts["block"] != BLOCK or facts["num_rows"] > self.num_rows:
            raise TrainingError(
                f"{path}: holds rows of a table of {facts['num_rows']} x {facts['width']} in blocks of "
                f"{facts['block']}, and this one is {self.num_rows} x {self.width} in blocks of {BLOCK}; a table may "
                "grow, and nothing else"
            )

    def _exchange(self, sent: Tensor, sent_W: Sequence[int], received_W: Sequence[int]) -> Tensor:
        """All-to-all of the first axis: so many rows to each rank, so many from each."""
        if self.world == 1:
            return sent
        # As bytes, since gloo does not know every number format.
        row = sent.element_size() * math.prod(sent.shape[1:])
        out = torch.empty(sum(received_W) * row, dtype=torch.uint8, device=sent.device)
        dist.all_to_all_single(
            out,
            sent.contiguous().view(torch.uint8).flatten(),
            [count * row for count in received_W],
            [count * row for count in sent_W],
            group=self.group,
        )
        return out.view(sent.dtype).view(-1, *sent.shape[1:])


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another format; bfloat16 is rounded up or down at random, by distance."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.contiguous().view(torch.int32)
    bits = (bits + torch.randint_like(bits, 1 << 16)) & -(1 << 16)
    return bits.view(torch.float32).to(dtype)
