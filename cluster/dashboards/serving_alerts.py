"""Alert rules on endpoints."""

from cluster.dashboards.alerts import Alert
from cluster.dashboards.promql import increase, quantile, rate, score_drift, share, unknown_share
from cluster.dashboards.settings import AlertSettings

# The endpoint, and the applications of its searchers.
APPLICATION = 'application="farsight"'
APPLICATIONS = 'application=~"farsight.*"'
REQUESTS = "ray_serve_num_http_requests_total"
DRIFT_WINDOW = "6h"


def serving(settings: AlertSettings) -> tuple[Alert, ...]:
    """Rules on endpoints."""
    return (*_of_requests(settings), *_of_answers(settings), *_of_releases(settings), *_of_replicas())


def _of_requests(settings: AlertSettings) -> tuple[Alert, ...]:
    def answered(statuses: str) -> str:
        whole = rate(REQUESTS, APPLICATION, "cluster", "5m")
        return share(rate(REQUESTS, f'{APPLICATION}, status_code=~"{statuses}"', "cluster", "5m"), whole)

    p99 = quantile(0.99, "ray_farsight_request_seconds", f'{APPLICATION}, path="/v1/retrieve"', "cluster", "5m")
    deadline = f"max by (cluster) (ray_farsight_deadline_seconds{{{APPLICATION}}})"
    percent = "{{ $value | humanizePercentage }}"
    return (
        Alert(
            "FarsightErrors",
            f"{answered('500|501|502|505|5[1-9].')} > {settings.error_share}",
            "5m",
            "critical",
            "The endpoint answers with errors (5xx).",
            percent,
        ),
        Alert(
            "FarsightRefusals",
            f"{answered('503|429')} > {settings.refused_share}",
            "5m",
            "warning",
            "The endpoint refuses requests (503, 429).",
            percent,
        ),
        Alert(
            "FarsightDeadlinesMissed",
            f"{answered('504')} > {settings.late_share}",
            "5m",
            "warning",
            "Requests pass their deadline (504).",
            percent,
        ),
        Alert(
            "FarsightSlow",
            f"{p99} > on (cluster) {settings.slow_share} * {deadline}",
            "10m",
            "warning",
            "The 99th percentile of /v1/retrieve comes near the deadline.",
            "{{ $value | humanizeDuration }}",
        ),
    )


def _of_answers(settings: AlertSettings) -> tuple[Alert, ...]:
    def counted(name: str, window: str) -> str:
        return rate(f"ray_farsight_{name}_total", APPLICATION, "cluster", window)

    known = f"max by (cluster) (ray_farsight_release_unknown_ratio{{{APPLICATION}}})"
    nothing = f"0 * count by (cluster) (ray_farsight_release{{{APPLICATION}}})"
    scored = increase("ray_farsight_top_scores_total", APPLICATION, "cluster", DRIFT_WINDOW)
    percent = "{{ $value | humanizePercentage }}"
    return (
        Alert(
            "FarsightFallbacks",
            f"{share(counted('fallbacks', '15m'), counted('answers', '15m'))} > {settings.fallback_share}",
            "15m",
            "warning",
            "Many answers are not the model's.",
            percent,
        ),
        Alert(
            "FarsightShortAnswers",
            f"{counted('items_answered', '15m')} / {counted('items_wanted', '15m')} < {settings.fill_rate}",
            "30m",
            "warning",
            "Answers have fewer items than were asked for.",
            percent,
        ),
        Alert(
            "FarsightUnknownItems",
            f"{unknown_share(APPLICATION, '1h')} > on (cluster) ({known} or {nothing}) + {settings.unknown_share}",
            "30m",
            "warning",
            "Users act on more items that the release does not know than its own data made expect.",
            percent,
        ),
        Alert(
            "FarsightScoreDrift",
            f"{score_drift(APPLICATION, DRIFT_WINDOW)} > {settings.score_drift} "
            f"and on (cluster) {scored} > {settings.drift_answers}",
            "1h",
            "warning",
            "Best scores fall otherwise than those of the release's own requests did.",
            '{{ $value | printf "%.2f" }}',
        ),
    )


def _of_releases(settings: AlertSettings) -> tuple[Alert, ...]:
    releases = f"count by (cluster, release) (ray_farsight_release{{{APPLICATION}}})"
    built = f"max by (cluster) (ray_farsight_release_built_timestamp_seconds{{{APPLICATION}}})"
    versions = f"(ray_farsight_updates_version{{{APPLICATION}}})"
    return (
        Alert(
            "FarsightReleaseMixture",
            f"count by (cluster) ({releases}) > 1",
            f"{settings.rollout_minutes}m",
            "warning",
            "Replicas of several releases answer beside each other.",
        ),
        Alert(
            "FarsightReleaseOld",
            f"time() - {built} > {settings.release_days * 86_400:.0f}",
            "1h",
            "warning",
            "No new release has come for long.",
            "{{ $value | humanizeDuration }}",
        ),
        Alert(
            "FarsightUpdatesBehind",
            f"max by (cluster) {versions} - min by (cluster) {versions} > 0",
            "5m",
            "critical",
            "A replica does not follow the updates of items: it may answer with what was removed.",
            "{{ $value | humanize }} ms apart",
        ),
    )


def _of_replicas() -> tuple[Alert, ...]:
    running = f"max by (cluster, application) (ray_serve_application_status{{{APPLICATIONS}}}) > 0"
    healthy = f"sum by (cluster, application) (ray_serve_deployment_replica_healthy{{{APPLICATIONS}}}) > 0"
    proxies = "max by (cluster, node_id) (ray_serve_proxy_status{})"
    return (
        Alert(
            "FarsightNoReadyReplica",
            f"({running}) unless on (cluster, application) ({healthy})",
            "1m",
            "critical",
            "Application {{ $labels.application }} has no replica that answers.",
            "application status {{ $value }}",
        ),
        Alert(
            "FarsightEndpointGone",
            f"count by (cluster) (last_over_time(ray_farsight_release{{{APPLICATION}}}[1h])) "
            f"unless on (cluster) count by (cluster) (ray_farsight_release{{{APPLICATION}}})",
            "2m",
            "critical",
            "An endpoint that answered within the last hour is gone.",
            "{{ $value }} replicas then",
        ),
        Alert(
            "FarsightDeployment",
            f"(max by (cluster, application, deployment) (ray_serve_deployment_status{{{APPLICATIONS}}}) < 3) > 0",
            "5m",
            "warning",
            "Serve calls deployment {{ $labels.deployment }} of {{ $labels.application }} failed or unhealthy.",
            "status {{ $value }}",
        ),
        Alert(
            "FarsightProxyDown",
            f"{proxies} == 1 or {proxies} == 3 or max by (cluster, node_id) (ray_serve_haproxy_process_count{{}}) == 0",
            "2m",
            "critical",
            "The proxy of node {{ $labels.node_id }} takes no requests.",
            "status {{ $value }}",
        ),
    )
