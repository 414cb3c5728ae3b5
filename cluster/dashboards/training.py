"""The dashboard of training runs: progress, speed, gradient, machines, failures."""

from cluster.dashboards.nodes import NODES
from cluster.dashboards.panels import Dashboard, Panel, Query, Row, Variable
from cluster.dashboards.promql import new_counts

CLUSTER = 'cluster=~"$cluster"'
HERE = f'{CLUSTER}, run=~"$run"'
WINDOW = "10m"
# Ray Train sets some gauges once, and Ray forgets a gauge after 20 seconds.
REMEMBERED = "12h"


def _gauge(name: str, legend: str = "{{run}}", of: str = HERE, by: str = "run") -> Query:
    """A gauge of rank 0; the newest attempt's, should the one before still be seen."""
    return Query(f"max by ({by}) (ray_farsight_train_{name}{{{of}}})", legend)


def _evaluation(metrics: str) -> Query:
    return _gauge("evaluation_ratio", "{{run}} {{metric}}", f'{HERE}, metric=~"{metrics}"', "run, metric")


def _of_ray_train(name: str) -> Query:
    """Seconds per second that Ray Train's workers spend on something; its runs have ids of their own."""
    return Query(
        f"max by (ray_train_run_id) (rate(ray_train_{name}_total_time_s{{{CLUSTER}}}[{WINDOW}]))",
        f"{name.replace('_', ' ')} {{{{ray_train_run_id}}}}",
    )


OVERVIEW = Row(
    "Overview",
    (
        Panel("Epoch", "Complete or under way.", (_gauge("epoch"),), "short", "stat", 3),
        Panel("Batches", "Since the run began.", (_gauge("step"),), "short", "stat", 3),
        Panel("Loss", "Mean per target.", (_gauge("loss"),), "short", "stat", 3),
        Panel("NDCG@10", "Of the last validation.", (_evaluation("ndcg_at_10"),), "short", "stat", 3),
        Panel("Events", "Per second, all workers together.", (_gauge("events_per_second"),), "short", "stat", 3),
        Panel(
            "Waiting for data",
            "Share of the time.",
            (_gauge("data_wait_ratio"),),
            "percentunit",
            "stat",
            3,
            (0.1, 0.3),
        ),
        Panel(
            "Since the last figures",
            "A run writes some every few batches, and after each validation and checkpoint.",
            (Query(f"time() - max by (run) (ray_farsight_train_progress_timestamp_seconds{{{HERE}}})", "{{run}}"),),
            "s",
            "stat",
            3,
            (300, 900),
        ),
        Panel(
            "Attempts",
            "Times that the run was begun or gone on with, on nodes that still stand.",
            (Query(f"sum by (run) (ray_farsight_train_attempts_total{{{HERE}}})", "{{run}}"),),
            "short",
            "stat",
            3,
            (2, 3),
        ),
    ),
)

PROGRESS = Row(
    "Progress",
    (
        Panel("Loss", "Mean per target of rank 0 between two rows of figures.", (_gauge("loss"),)),
        Panel("NDCG", "Of each validation.", (_evaluation("ndcg_at_.*"),)),
        Panel("Recall and hit rate", "Of each validation.", (_evaluation("(recall|hr)_at_.*"),)),
        Panel("Epoch", "Complete or under way.", (_gauge("epoch"),)),
        Panel("Batches", "Since the run began; a resumed run steps back to its checkpoint.", (_gauge("step"),)),
        Panel("Learning rate", "Of the dense weights.", (_gauge("learning_rate"),)),
        Panel("Targets", "Trained on since the run began, over all workers.", (_gauge("events_seen"),), width=24),
    ),
)

SPEED = Row(
    "Speed and data",
    (
        Panel("Events per second", "All workers together, padding left out.", (_gauge("events_per_second"),)),
        Panel("Seconds per batch", "Waiting for data included.", (_gauge("step_seconds"),), "s"),
        Panel(
            "Waiting for data",
            "Share of the time in which rank 0 waited for a batch. Above a few percent the data is the limit.",
            (_gauge("data_wait_ratio"),),
            "percentunit",
            limits=(0.1, 0.3),
        ),
        Panel(
            "Padding", "Share of the computed positions that held no event.", (_gauge("padding_ratio"),), "percentunit"
        ),
        Panel(
            "Blocked in Ray Data",
            "Seconds per second that workers wait for Ray Data's iterator.",
            (
                Query(
                    f"sum by (dataset) (rate(ray_data_iter_total_blocked_seconds{{{CLUSTER}}}[{WINDOW}]))",
                    "{{dataset}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Rows of Ray Data",
            "Windows per second that come out of each operator.",
            (
                Query(
                    f"sum by (dataset, operator) (rate(ray_data_output_rows{{{CLUSTER}}}[{WINDOW}]))",
                    "{{dataset}} {{operator}}",
                ),
            ),
        ),
    ),
)

GRADIENT = Row(
    "Gradient and checkpoints",
    (
        Panel("Gradient norm", "Of all weights, before clipping.", (_gauge("gradient_norm"),)),
        Panel(
            "Since the last checkpoint",
            "What a failure now would cost, in time; from the start of the attempt where there is none yet.",
            (Query(f"time() - max by (run) (ray_farsight_train_checkpoint_timestamp_seconds{{{HERE}}})", "{{run}}"),),
            "s",
        ),
        Panel(
            "Validation and checkpoint",
            "Seconds of the last of each; training stands still meanwhile.",
            (_gauge("evaluation_seconds", "validation {{run}}"), _gauge("checkpoint_seconds", "checkpoint {{run}}")),
            "s",
        ),
        Panel(
            "Time that saving takes",
            "Share of the time that workers are held up: in all (report blocked), waiting for each other (sync), "
            "copying to storage (transfer).",
            (
                Query(
                    f"max by (ray_train_run_id) (rate(ray_train_report_total_blocked_time_s{{{CLUSTER}}}[{WINDOW}]))",
                    "report blocked {{ray_train_run_id}}",
                ),
                _of_ray_train("checkpoint_sync"),
                _of_ray_train("checkpoint_transfer"),
            ),
            "percentunit",
            width=24,
        ),
    ),
)

MEMORY = Row(
    "Memory and GPU of rank 0",
    (
        Panel("Memory", "Peak of the process.", (_gauge("memory_bytes"),), "bytes", width=6),
        Panel("CPU", "Cores that the process kept busy.", (_gauge("cpu_cores"),), width=6),
        Panel("GPU memory", "Peak that torch allocated.", (_gauge("gpu_memory_bytes"),), "bytes", width=6),
        Panel(
            "GPU",
            "Share of the last moment in which it computed; low while batches are waited for.",
            (_gauge("gpu_busy_ratio"),),
            "percentunit",
            width=6,
        ),
    ),
)

FAILURES = Row(
    "Failures and restarts",
    (
        Panel(
            "Ray Train's controller",
            "The state that each run was last known to be in.",
            (
                Query(
                    "max by (ray_train_run_id, ray_train_controller_state) "
                    f"(last_over_time(ray_train_controller_state{{{CLUSTER}}}[{REMEMBERED}])) == 1",
                    "{{ray_train_controller_state}} {{ray_train_run_id}}",
                ),
            ),
            kind="states",
            names=((1, "here"),),
            width=12,
        ),
        Panel(
            "Begun and failed",
            "Attempts that began, and that ended with an error, in the last hour.",
            (
                Query(new_counts("ray_farsight_train_attempts_total", HERE, "run", "1h"), "begun, {{run}}"),
                Query(new_counts("ray_farsight_train_failures_total", HERE, "run", "1h"), "failed, {{run}}"),
            ),
            width=12,
        ),
        Panel(
            "Told to people",
            "Alerts that the run itself raised in the last hour: a loss that is not finite, a gate not passed.",
            (
                Query(
                    new_counts("ray_farsight_alerts_total", HERE, "run, title", "1h"),
                    "{{title}}, {{run}}",
                ),
            ),
        ),
        Panel(
            "Starting workers",
            "Seconds that worker groups of a run took to start, in all; it jumps when a group is started again.",
            (
                Query(
                    "max by (ray_train_run_id) "
                    f"(last_over_time(ray_train_worker_group_start_total_time_s{{{CLUSTER}}}[{REMEMBERED}]))",
                    "{{ray_train_run_id}}",
                ),
            ),
            "s",
        ),
        Panel("Workers", "Of each run; fewer where nodes are missing.", (_gauge("workers"),)),
    ),
)

TRAINING = Dashboard(
    uid="farsight-training",
    title="Farsight: training",
    text="Training runs of Farsight. Figures are those of metrics.jsonl. Alerts and what to do: docs/monitoring.md.",
    variables=(
        Variable("cluster", "Cluster", "ray_node_cpu_count{}", "cluster"),
        Variable("run", "Run", f"ray_farsight_train_step{{{CLUSTER}}}", "run", "listed"),
    ),
    rows=(OVERVIEW, PROGRESS, SPEED, GRADIENT, MEMORY, FAILURES, NODES),
)
