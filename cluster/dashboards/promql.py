"""PromQL that dashboards and alerts share, so that an alert means what its panel shows."""

# Grafana's own: wide enough for a rate at the dashboard's zoom.
INTERVAL = "$__rate_interval"

# What a tenth of the scores is taken to have at least, so that an empty one has a logarithm.
SMALLEST_SHARE = 0.001


def rate(metric: str, where: str, by: str = "", window: str = INTERVAL) -> str:
    """Per second, summed over all series but for the labels in `by`."""
    return f"{_sum(by)} (rate({metric}{{{where}}}[{window}]))"


def increase(metric: str, where: str, by: str = "", window: str = INTERVAL) -> str:
    """How much a counter grew."""
    return f"{_sum(by)} (increase({metric}{{{where}}}[{window}]))"


def share(part: str, whole: str) -> str:
    """A part of a whole; 0 where nothing of the part was ever seen."""
    return f"({part} or 0 * {whole}) / {whole}"


def quantile(q: float, histogram: str, where: str, by: str = "", window: str = INTERVAL) -> str:
    """A quantile of a histogram, of all its processes together."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', where, labels, window)})"


def mean(histogram: str, where: str, by: str = "", window: str = INTERVAL) -> str:
    """The mean of a histogram; Ray puts each value in the middle of its bucket, so it is as fine as the buckets."""
    total, count = (rate(f"{histogram}_{part}", where, by, window) for part in ("sum", "count"))
    return f"{total} / {count}"


def tenths(where: str, window: str) -> str:
    """By `cluster` and `tenth`, the share of best scores that fell into each tenth of the release's own."""
    metric = "ray_farsight_top_scores_total"
    found = increase(metric, where, "cluster, tenth", window)
    clusters = f"0 * {increase(metric, where, 'cluster', window)}"
    missing = " or ".join(f'label_replace({clusters}, "tenth", "{tenth}", "", "")' for tenth in range(10))
    return f"({found} or {missing}) / on (cluster) group_left () {increase(metric, where, 'cluster', window)}"


def score_drift(where: str, window: str) -> str:
    """By `cluster`, the population stability index of the best scores: 0 where they fall as the release's own did,
    above .25 where they have shifted.
    """
    shares = f"clamp_min({tenths(where, window)}, {SMALLEST_SHARE})"
    return f"sum by (cluster) (({shares} - 0.1) * ln({shares} / 0.1))"


def unknown_share(where: str, window: str) -> str:
    """By `cluster`, the share of the events sent whose item the release lacks."""
    unknown, sent = (
        increase(f"ray_farsight_{name}_total", where, "cluster", window) for name in ("unknown_items", "history_events")
    )
    return share(unknown, sent)


def new_counts(counter: str, where: str, by: str, window: str) -> str:
    """What was counted by processes that began to count in the window: each has a series of its own, which begins at
    its first count, so that an increase would not see it.
    """
    series = f"{counter}{{{where}}}"
    return f"{_sum(by)} ({series} unless {series} offset {window})"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
