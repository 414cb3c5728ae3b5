"""Rows on what an endpoint answers with: items, releases, drift; and on its scaling."""

from cluster.dashboards.panels import Panel, Query, Row
from cluster.dashboards.promql import quantile, rate, score_drift, share, tenths, unknown_share
from cluster.dashboards.traffic import EDGE, HERE

DRIFT_WINDOW = "1h"
# Of Serve, by number.
STATUSES = (
    (1, "deploy failed"),
    (2, "unhealthy"),
    (3, "updating"),
    (4, "upscaling"),
    (5, "downscaling"),
    (6, "healthy"),
)

ANSWERS = Row(
    "Answers",
    (
        Panel(
            "Items answered of those asked for",
            "Below 1 where filters leave fewer than k, or the catalogue has fewer.",
            (
                Query(
                    share(
                        rate("ray_farsight_items_answered_total", HERE), rate("ray_farsight_items_wanted_total", HERE)
                    ),
                    "fill rate",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Answers that are not the model's",
            "By why: an empty history, or one of unknown items only, is answered from popularity.",
            (Query(rate("ray_farsight_fallbacks_total", HERE, "fallback"), "{{fallback}}"),),
            "reqps",
            "areas",
        ),
        Panel(
            "p99 of the search",
            "Of a batch, in the index.",
            (Query(quantile(0.99, "ray_farsight_stage_seconds", f'{HERE}, stage="search"'), "search"),),
            "s",
        ),
        Panel(
            "Items added and removed since the release",
            "left_out: added, but this release cannot show them.",
            (Query(f"max by (state) (ray_farsight_updated_items{{{HERE}}})", "{{state}}"),),
        ),
        Panel(
            "Replicas apart",
            "Milliseconds between the updates of items that replicas answer from; 0 but for a moment.",
            (
                Query(
                    f"max(ray_farsight_updates_version{{{HERE}}}) - min(ray_farsight_updates_version{{{HERE}}})",
                    "apart",
                ),
            ),
            "ms",
        ),
        Panel(
            "Events of a history",
            "That requests sent or the store had, on average.",
            (
                Query(
                    f"{rate('ray_farsight_history_events_total', HERE)} / {rate('ray_farsight_answers_total', HERE)}",
                    "events",
                ),
            ),
        ),
    ),
)

RELEASES = Row(
    "Releases",
    (
        Panel(
            "Replicas by release",
            "Two lines while one release follows another; two lines for long: a replica of the old one has stayed.",
            (Query(f"count by (release) (ray_farsight_release{{{EDGE}}})", "{{release}}"),),
            kind="areas",
        ),
        Panel(
            "Age by release",
            "Since it was built.",
            (
                Query(
                    f"time() - max by (release) (ray_farsight_release_built_timestamp_seconds{{{EDGE}}})", "{{release}}"
                ),
            ),
            "s",
        ),
        Panel(
            "Deployments",
            "What Serve thinks of each, searchers included.",
            (
                Query(
                    'max by (application, deployment) (ray_serve_deployment_status{cluster=~"$cluster"})',
                    "{{application}} {{deployment}}",
                ),
            ),
            kind="states",
            names=STATUSES,
        ),
        Panel(
            "Replicas that started",
            "In the last hour.",
            (
                Query(
                    f"count by (deployment) (ray_serve_deployment_replica_starts_total{{{EDGE}}} unless "
                    f"ray_serve_deployment_replica_starts_total{{{EDGE}}} offset 1h)",
                    "{{deployment}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Until a replica answers",
            "Of nine in ten since Serve began: a replica reads the release and answers its golden requests first.",
            (
                Query(
                    "histogram_quantile(0.9, sum by (deployment, le) "
                    f"(ray_serve_replica_startup_latency_ms_bucket{{{EDGE}}})) / 1000",
                    "{{deployment}}",
                ),
            ),
            "s",
            width=12,
        ),
    ),
)

DRIFT = Row(
    "Drift from the release's own data",
    (
        Panel(
            "Population stability index of the best scores",
            f"Over {DRIFT_WINDOW}. 0: scores fall as those of the release's own test histories did; above .25 they "
            "have shifted. Needs a release that was built with --dataset.",
            (Query(score_drift(HERE, DRIFT_WINDOW), "{{cluster}}"),),
            limits=(0.1, 0.25),
        ),
        Panel(
            "Best scores by tenth",
            f"Share of the answers of {DRIFT_WINDOW} in each tenth of the release's own best scores; without drift all "
            "are .1. More in the low tenths: the model is less sure than it was.",
            (Query(f"avg by (tenth) ({tenths(HERE, DRIFT_WINDOW)})", "{{tenth}}"),),
            "percentunit",
            "bars",
        ),
        Panel(
            "Unknown items",
            f"Share of the events of histories whose item the release lacks, over {DRIFT_WINDOW}, beside the share of "
            "the release's own held-out events whose item had no training event. It grows as the release ages.",
            (
                Query(unknown_share(HERE, DRIFT_WINDOW), "now {{cluster}}"),
                Query(f"max by (release) (ray_farsight_release_unknown_ratio{{{HERE}}})", "held out, {{release}}"),
            ),
            "percentunit",
        ),
    ),
)

SCALING = Row(
    "Scaling",
    (
        Panel(
            "Replicas",
            "wanted: what the load asks for, before the limits; aimed at: within serve.replicas; ready: that answer.",
            (
                Query(
                    f"sum by (deployment) (ray_serve_autoscaling_desired_replicas{{{EDGE}}})", "{{deployment}} wanted"
                ),
                Query(
                    f"sum by (deployment) (ray_serve_autoscaling_target_replicas{{{EDGE}}})", "{{deployment}} aimed at"
                ),
                Query(f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{EDGE}}})", "{{deployment}} ready"),
            ),
        ),
        Panel(
            "Load",
            "Requests in flight in all, beside those that the ready replicas aim at (target_ongoing_requests each).",
            (
                Query(
                    f"sum by (deployment) (ray_serve_autoscaling_total_requests{{{EDGE}}})", "{{deployment}} in flight"
                ),
                Query(
                    f"max by (deployment) (ray_serve_autoscaling_target_ongoing_requests{{{EDGE}}}) * on (deployment) "
                    f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{EDGE}}})",
                    "{{deployment}} aimed at",
                ),
            ),
        ),
        Panel(
            "Use of the replicas",
            "Share of max_ongoing_requests that work takes, by Serve's count.",
            (Query(f"max by (replica) (ray_serve_replica_utilization_percent{{{HERE}}}) / 100", "{{replica}}"),),
            "percentunit",
        ),
    ),
)
