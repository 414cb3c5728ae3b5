"""How large the tests of scale are: seconds by default, the sizes of the project's plan where that is asked for."""

import os
from typing import TypeVar

VARIABLE = "FARSIGHT_SCALE"
Size = TypeVar("Size")


def scale(reduced: Size, full: Size) -> Size:
    """One of two sizes, as `FARSIGHT_SCALE` says: `full`, or `reduced`, which is also what an unset one means.

    Raises:
        ValueError: the variable is anything else.
    """
    found = os.environ.get(VARIABLE, "reduced")
    if found not in ("reduced", "full"):
        raise ValueError(f"{VARIABLE} is {found!r}, expected 'full' or 'reduced'; unset it for the reduced sizes")
    return full if found == "full" else reduced
