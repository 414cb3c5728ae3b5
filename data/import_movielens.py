"""The files of MovieLens as GroupLens publishes them: https://grouplens.org/datasets/movielens/."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from data.catalogue import MOVIES_DAT, CatalogueFormat
from data.errors import LogError
from data.log_files import TextFormat, open_text

# `u.genre` of MovieLens-100K, in the order of the flags at the end of each line of `u.item`.
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_BEFORE_FLAGS = 5  # movie id, title, release date, video release date, URL


@dataclass(frozen=True)
class MovieLens:
    """One release: file names, and how to read them."""

    events: str
    catalogue: str
    text: TextFormat
    columns: Mapping[str, str] = field(default_factory=dict)
    catalogue_format: CatalogueFormat = MOVIES_DAT
    has_genre_flags: bool = False


MOVIELENS: Mapping[str, MovieLens] = {
    "movielens-1m": MovieLens(
        "ratings.dat", "movies.dat", TextFormat("::", "iso-8859-1", ("user_id", "item_id", "weight", "timestamp"))
    ),
    "movielens-100k": MovieLens(
        "u.data",
        "u.item",
        TextFormat("\t", "iso-8859-1", ("user_id", "item_id", "weight", "timestamp")),
        has_genre_flags=True,
    ),
    "movielens-20m": MovieLens(
        "ratings.csv",
        "movies.csv",
        TextFormat(),
        {"user_id": "userId", "item_id": "movieId", "weight": "rating"},
        CatalogueFormat({"item_id": "movieId", "categories": "genres"}, "|"),
    ),
}


def read_genre_flags(location: str) -> pa.Table:
    """The catalogue in `u.item`: a line per movie, its genres as 19 flags.

    Raises:
        LogError: a line has another number of fields.
    """
    rows = []
    with open_text(location, "iso-8859-1") as lines:
        for number, line in enumerate(lines):
            fields = line.rstrip("\r\n").split("|")
            if len(fields) != _BEFORE_FLAGS + len(_GENRES):
                raise LogError(f"{location} line {number + 1}: found {len(fields)} fields, expected 24 with | between")
            flags = fields[_BEFORE_FLAGS:]
            genres = [genre for genre, flag in zip(_GENRES, flags, strict=True) if flag == "1"]
            rows.append({"item_id": fields[0], "categories": genres, "title": fields[1]})
    schema = pa.schema([("item_id", pa.string()), ("categories", pa.list_(pa.string())), ("title", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)
