"""Rows on the requests of an endpoint: how many, how long, what waits and what is refused."""

from cluster.dashboards.panels import Panel, Query, Row
from cluster.dashboards.promql import mean, quantile, rate, share

# Of what Serve's proxies and controller say: the endpoint, without its searchers.
EDGE = 'cluster=~"$cluster", application=~"$application"'
# Of what replicas say.
HERE = f'{EDGE}, replica=~"$replica"'
ASKED = f'{HERE}, path="/v1/retrieve"'
REQUESTS = "ray_serve_num_http_requests_total"
QUANTILES = (0.5, 0.95, 0.99)

PROXY_STATES = ((1, "starting"), (2, "healthy"), (3, "unhealthy"), (4, "draining"), (5, "drained"))


def _quantiles(histogram: str, where: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, histogram, where), f"p{100 * q:g}") for q in QUANTILES)


def _edge_share(statuses: str) -> str:
    whole = rate(REQUESTS, EDGE)
    return share(rate(REQUESTS, f'{EDGE}, status_code=~"{statuses}"'), whole)


_FALLBACKS = share(rate("ray_farsight_fallbacks_total", HERE), rate("ray_farsight_answers_total", HERE))
_READY = f'sum(ray_serve_deployment_replica_healthy{{{EDGE}, deployment="endpoint"}})'

OVERVIEW = Row(
    "Overview",
    (
        Panel("Requests", "Per second, at the proxies.", (Query(rate(REQUESTS, EDGE)),), "reqps", "stat", 3),
        Panel(
            "p99",
            "Of `POST /v1/retrieve`, inside the replicas.",
            (Query(quantile(0.99, "ray_farsight_request_seconds", ASKED)),),
            "s",
            "stat",
            3,
        ),
        Panel(
            "Errors",
            "Share of answers 5xx, but for 503 (refused) and 504 (too late).",
            (Query(_edge_share("500|501|502|505|5[1-9].")),),
            "percentunit",
            "stat",
            3,
            (0.001, 0.01),
        ),
        Panel(
            "Refused",
            "Share of answers 503 and 429: more was asked than replicas, or a token's rate, allow.",
            (Query(_edge_share("503|429")),),
            "percentunit",
            "stat",
            3,
            (0.01, 0.05),
        ),
        Panel(
            "Fallbacks",
            "Share of answers that are not the model's.",
            (Query(_FALLBACKS),),
            "percentunit",
            "stat",
            3,
            (0.1, 0.3),
        ),
        Panel("Ready replicas", "Of the endpoint.", (Query(_READY),), "short", "stat", 3),
        Panel(
            "Age of the release",
            "Since the newest release that answers was built.",
            (Query(f"time() - max(ray_farsight_release_built_timestamp_seconds{{{HERE}}})"),),
            "s",
            "stat",
            3,
            (3 * 86_400, 7 * 86_400),
        ),
        Panel(
            "Alerts",
            "That fire now.",
            (Query('count(ALERTS{alertname=~"Farsight.*", alertstate="firing"}) or vector(0)'),),
            "short",
            "stat",
            3,
            (1, 3),
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests by status",
            "At the proxies, HTTP, refusals of the proxy included; 499: nobody waited any more.",
            (Query(rate(REQUESTS, EDGE, "status_code"), "{{status_code}}"),),
            "reqps",
            "areas",
        ),
        Panel(
            "Requests by path",
            "In the replicas, HTTP and gRPC.",
            (Query(rate("ray_farsight_requests_total", HERE, "path"), "{{path}}"),),
            "reqps",
        ),
        Panel(
            "Requests by replica",
            "Unequal lines: one replica is slower than the others, or has just started.",
            (Query(rate("ray_farsight_requests_total", HERE, "replica"), "{{replica}}"),),
            "reqps",
        ),
    ),
)

LATENCY = Row(
    "Latency by stage",
    (
        Panel(
            "POST /v1/retrieve",
            "Whole requests inside a replica, with the deadline of those that state none.",
            (
                *_quantiles("ray_farsight_request_seconds", ASKED),
                Query(f"max(ray_farsight_deadline_seconds{{{HERE}}})", "deadline"),
            ),
            "s",
        ),
        Panel(
            "p99 by stage",
            "queue: of a request, until its batch begins; encode, search and merge: of a batch.",
            (Query(quantile(0.99, "ray_farsight_stage_seconds", HERE, "stage"), "{{stage}}"),),
            "s",
        ),
        Panel(
            "Mean by stage",
            "What a request spends its time on.",
            (Query(mean("ray_farsight_stage_seconds", HERE, "stage"), "{{stage}}"),),
            "s",
            "areas",
        ),
        Panel(
            "Distribution",
            "Of whole requests to /v1/retrieve.",
            (Query(rate("ray_farsight_request_seconds_bucket", ASKED, "le"), "{{le}}"),),
            "s",
            "heatmap",
            12,
        ),
        Panel(
            "At the proxies",
            "From the first byte to the last; what it is above the replicas' is Serve's and the network's.",
            tuple(
                Query(f"{quantile(q, 'ray_serve_http_request_latency_ms', EDGE)} / 1000", f"p{100 * q:g}")
                for q in QUANTILES
            ),
            "s",
            width=12,
        ),
    ),
)

BATCHING = Row(
    "Batching and cache",
    (
        Panel(
            "Requests of one forward pass",
            "Batches grow with load by themselves, up to serve.batching.max_batch_size.",
            (
                # Of two counters: Ray puts a histogram's values in the middle of their buckets.
                Query(
                    f"{rate('ray_farsight_answers_total', HERE)} / {rate('ray_farsight_batch_size_count', HERE)}",
                    "mean",
                ),
                Query(f"ceil({quantile(0.95, 'ray_farsight_batch_size', HERE)})", "p95"),
            ),
        ),
        Panel(
            "Forward passes",
            "Per second and replica.",
            (Query(rate("ray_farsight_batch_size_count", HERE, "replica"), "{{replica}}"),),
            "ops",
        ),
        Panel(
            "Query vectors kept",
            "Share of histories whose query vector the replica still had (serve.query_cache).",
            (
                Query(
                    share(
                        rate("ray_farsight_query_cache_total", f'{HERE}, result="hit"'),
                        rate("ray_farsight_query_cache_total", HERE),
                    ),
                    "hits",
                ),
            ),
            "percentunit",
        ),
    ),
)

QUEUES = Row(
    "Queues and refusals",
    (
        Panel(
            "Refused and too late",
            "503: no room; 429: a token's rate; 504: past the deadline.",
            (Query(rate(REQUESTS, f'{EDGE}, status_code=~"503|429|504"', "status_code"), "{{status_code}}"),),
            "reqps",
        ),
        Panel(
            "In flight",
            "Requests that each replica works on; past serve.queueing.max_in_flight it refuses.",
            (Query(f"sum by (replica) (ray_serve_replica_processing_queries{{{HERE}}})", "{{replica}}"),),
        ),
        Panel(
            "Waiting in Serve",
            "Requests at the proxies, and of these those that wait for a replica. Empty behind HAProxy.",
            (
                Query('sum(ray_serve_num_ongoing_http_requests{cluster=~"$cluster"})', "at the proxies"),
                Query(f"sum(ray_serve_deployment_queued_queries{{{EDGE}}})", "for a replica"),
            ),
        ),
        Panel(
            "Waiting in HAProxy",
            "Needs serve.haproxy and a scrape of HAProxy's own metrics (docs/monitoring.md).",
            (
                Query(
                    'sum by (proxy) (haproxy_backend_current_queue{cluster=~"$cluster", proxy=~"http-.*"})', "{{proxy}}"
                ),
            ),
        ),
        Panel(
            "Proxies",
            "Serve's proxy of each node, or the actor beside its HAProxy.",
            (Query('max by (node_ip_address) (ray_serve_proxy_status{cluster=~"$cluster"})', "{{node_ip_address}}"),),
            kind="states",
            names=PROXY_STATES,
        ),
        Panel(
            "HAProxy",
            "Processes per node: more than one for long means that old ones do not end. Differences: replicas that "
            "HAProxy has and Serve has not, or the reverse.",
            (
                Query(
                    'max by (node_id) (ray_serve_haproxy_process_count{cluster=~"$cluster"})', "processes {{node_id}}"
                ),
                Query(
                    'max by (node_id) (ray_serve_haproxy_target_mismatch{cluster=~"$cluster"})',
                    "differences {{node_id}}",
                ),
            ),
        ),
    ),
)
