"""Columns of the log form and of the prepared dataset: names, types, units.

Log form, what users bring (Parquet, CSV or JSON lines):

| column       | type                          | meaning                                              |
| ------------ | ----------------------------- | ---------------------------------------------------- |
| `user_id`    | string or integer             |                                                      |
| `item_id`    | string or integer             |                                                      |
| `timestamp`  | integer, float or Arrow time  | unit stated in the recipe; may be absent with `order` |
| `action`     | string, optional              | what the user did: click, like, buy                  |
| `request_id` | string or integer, optional   | events shown by one request share it                 |
| `weight`     | number, optional              | strength of the event, for example a rating          |
| `order`      | integer, optional             | breaks ties of time, or gives the order without times |

Catalogue: `item_id`, `categories` (list of strings), optional `title`; any other column is a side
feature and is carried along unchanged.
"""

import pyarrow as pa

LOG_REQUIRED = ("user_id", "item_id")
LOG_OPTIONAL = ("timestamp", "action", "request_id", "weight", "order")
CATALOGUE_REQUIRED = ("item_id", "categories")

# The log form as this system writes it itself (simulator, importers): times in int64 seconds UTC.
LOG_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64()),
        pa.field("action", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("weight", pa.float32()),
        pa.field("order", pa.int64()),
    ]
)

# One row per user in `histories/part-*.parquet`; the lists of a row have equal length, in the
# stable order of (timestamp, log order). The first `num_train` events are for training, the next
# `num_validation` and the last `num_test` are the targets of those splits.
HISTORY_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("user_key", pa.int64(), nullable=False),  # shard number * 2**32 + row in the shard
        pa.field("items", pa.list_(pa.int32()), nullable=False),  # item rows of the vocabulary, never 0
        pa.field("times", pa.list_(pa.int64()), nullable=False),  # seconds UTC; all 0 without times
        pa.field("actions", pa.list_(pa.int16()), nullable=False),  # 1-based code of manifest["actions"]; 0 = none
        pa.field("requests", pa.list_(pa.int32()), nullable=False),  # ordinal of the request in the history; -1 = none
        pa.field("weights", pa.list_(pa.float32()), nullable=False),  # 1.0 where the log has none
        pa.field("num_train", pa.int32(), nullable=False),
        pa.field("num_validation", pa.int32(), nullable=False),
        pa.field("num_test", pa.int32(), nullable=False),
    ]
)

# Added to the catalogue by ingest: how often each item occurs in training events.
TRAIN_EVENTS = "train_events"
# Added too: seconds UTC of the item's first event in the log; null without events or without times.
FIRST_SEEN = "first_seen"
