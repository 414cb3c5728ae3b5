"""Files of an item table whose rows are split over ranks: one per rank, and their blocks as one tensor in row order."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

from data.errors import TrainingError

# Rows that stay together: block b belongs to rank b mod W. Popular items, which often have neighbouring rows, are
# spread over the ranks, and a block's first values do not depend on how many ranks there are.
BLOCK = 64


def num_blocks(num_rows: int) -> int:
    """Blocks that a table of so many rows has; the last may be short."""
    return -(-num_rows // BLOCK)


def table_files(directory: str | Path) -> list[Path]:
    """The files of a table, one per rank that wrote it.

    Raises:
        TrainingError: there are none, or some are missing.
    """
    paths = sorted(Path(directory).glob("table-*-of-*.safetensors"))
    world = int(paths[0].stem.rpartition("-of-")[2]) if paths else 0
    expected = [f"table-{rank:05d}-of-{world:05d}.safetensors" for rank in range(world)]
    found = [path.name for path in paths]
    if not paths or found != expected:
        raise TrainingError(
            f"{directory}: found {', '.join(found) or 'no file of an item table'}, expected the files of all ranks of "
            "one run; take an older checkpoint"
        )
    return paths


def merge_table_files(directory: str | Path, path: Path, name: str) -> None:
    """Write the vectors of all ranks' files as one float32 tensor, in row order.

    One file of one rank is in memory at a time.

    Raises:
        TrainingError: files are missing.
    """
    paths = table_files(directory)
    with safe_open(paths[0], framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    num_rows, width = facts["num_rows"], facts["width"]
    header = json.dumps({name: {"dtype": "F32", "shape": [num_rows, width], "data_offsets": [0, num_rows * width * 4]}})
    header += " " * (-len(header) % 8)
    with path.open("wb") as out:  # the format of safetensors: length of the header, header, numbers
        out.write(len(header).to_bytes(8, "little") + header.encode())
        out.truncate(out.tell() + num_rows * width * 4)
    vectors_VD = np.memmap(path, np.float32, "r+", offset=8 + len(header), shape=(num_rows, width))
    for source in paths:
        with safe_open(source, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            vectors_RD = file.get_tensor("vectors").float().numpy()
        for place, block in enumerate(range(facts["rank"], num_blocks(num_rows), facts["world"])):
            rows = slice(block * BLOCK, min(num_rows, (block + 1) * BLOCK))
            vectors_VD[rows] = vectors_RD[place * BLOCK :][: rows.stop - rows.start]
    vectors_VD.flush()
