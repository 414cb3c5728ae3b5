"""The metrics of an endpoint. Serve adds `application`, `deployment` and `replica` to each."""

from data.metrics import Metric

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

REQUESTS = Metric("farsight_requests", "counter", "requests answered", ("path", "status"))
REQUEST_SECONDS = Metric("farsight_request_seconds", "histogram", "from the first byte to the last", ("path",), SECONDS)
OF_REQUESTS = (REQUESTS, REQUEST_SECONDS)

STAGE_SECONDS = Metric(
    "farsight_stage_seconds",
    "histogram",
    "queue: of a request; encode, search, merge: of a batch",
    ("stage",),
    SECONDS,
)
BATCH_SIZE = Metric("farsight_batch_size", "histogram", "requests of one forward pass", (), BATCH_SIZES)
QUERY_CACHE = Metric(
    "farsight_query_cache", "counter", "histories by whether their query vectors were kept: hit, miss", ("result",)
)
HISTORY_EVENTS = Metric("farsight_history_events", "counter", "events of the histories that were sent")
UNKNOWN_ITEMS = Metric("farsight_unknown_items", "counter", "of these, events whose item the release lacks")
ITEMS_WANTED = Metric("farsight_items_wanted", "counter", "items asked for")
ITEMS_ANSWERED = Metric("farsight_items_answered", "counter", "of these, items answered")
ANSWERS = Metric("farsight_answers", "counter", "answers, of whatever kind")
FALLBACKS = Metric("farsight_fallbacks", "counter", "of these, answers that are not the model's", ("fallback",))
TOP_SCORES = Metric(
    "farsight_top_scores", "counter", "best scores by the tenth of the release's own that they fall in", ("tenth",)
)
DEADLINE_SECONDS = Metric("farsight_deadline_seconds", "gauge", "that a request waits if it states no deadline")
RELEASE = Metric("farsight_release", "gauge", "1 for the release that this replica answers with", ("release",))
RELEASE_BUILT = Metric("farsight_release_built_timestamp_seconds", "gauge", "when the release was built", ("release",))
RELEASE_UNKNOWN = Metric(
    "farsight_release_unknown_ratio",
    "gauge",
    "of the held-out events of the release's dataset, those whose item was in no training event",
    ("release",),
)
UPDATES_VERSION = Metric(
    "farsight_updates_version", "gauge", "of the updates of items that this replica answers from, in milliseconds"
)
UPDATED_ITEMS = Metric("farsight_updated_items", "gauge", "items that stand added, left_out, or removed", ("state",))
OF_A_REPLICA = (
    STAGE_SECONDS,
    BATCH_SIZE,
    QUERY_CACHE,
    HISTORY_EVENTS,
    UNKNOWN_ITEMS,
    ITEMS_WANTED,
    ITEMS_ANSWERED,
    ANSWERS,
    FALLBACKS,
    TOP_SCORES,
    DEADLINE_SECONDS,
    RELEASE,
    RELEASE_BUILT,
    RELEASE_UNKNOWN,
    UPDATES_VERSION,
    UPDATED_ITEMS,
)

SERVING = (*OF_REQUESTS, *OF_A_REPLICA)
