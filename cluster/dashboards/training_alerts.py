"""Alert rules on training runs, and on the machines."""

from cluster.dashboards.alerts import Alert
from cluster.dashboards.promql import new_counts
from cluster.dashboards.settings import AlertSettings


def training(settings: AlertSettings) -> tuple[Alert, ...]:
    """Rules on training runs and pipelines."""
    return (*_of_failures(settings), *_of_progress(settings))


def _of_failures(settings: AlertSettings) -> tuple[Alert, ...]:
    failed = 'ray_train_controller_state{ray_train_controller_state="ERRORED"}'
    attempts = new_counts("ray_farsight_train_attempts_total", "", "cluster, run", "1h")
    return (
        Alert(
            "FarsightTrainingNotFinite",
            f"{new_counts('ray_farsight_train_not_finite_total', '', 'cluster, run', '30m')} > 0",
            "0s",
            "critical",
            "The loss of {{ $labels.run }} is not finite.",
            "{{ $value }} times",
        ),
        Alert(
            "FarsightTrainingFailed",
            f"max by (cluster, ray_train_run_id) (max_over_time({failed}[10m])) > 0",
            "0s",
            "critical",
            "A training run has ended with an error.",
            "Ray Train's run {{ $labels.ray_train_run_id }}",
        ),
        Alert(
            "FarsightTrainingRestarts",
            f"{attempts} >= {settings.attempts}",
            "0s",
            "warning",
            "{{ $labels.run }} begins again and again.",
            "{{ $value }} attempts within an hour",
        ),
        Alert(
            "FarsightRunAlert",
            f"{new_counts('ray_farsight_alerts_total', '', 'cluster, run, step, title', '30m')} > 0",
            "0s",
            "warning",
            "{{ $labels.run }} ({{ $labels.step }}): {{ $labels.title }}",
            "{{ $value }} times",
        ),
    )


def _of_progress(settings: AlertSettings) -> tuple[Alert, ...]:
    progress, checkpoint = (
        f"time() - max by (cluster, run) (ray_farsight_train_{name}_timestamp_seconds{{}})"
        for name in ("progress", "checkpoint")
    )
    waiting = "max by (cluster, run) (ray_farsight_train_data_wait_ratio{})"
    return (
        Alert(
            "FarsightTrainingStalled",
            f"{progress} > {60 * settings.stall_minutes}",
            "1m",
            "critical",
            "{{ $labels.run }} has not come further.",
            "nothing for {{ $value | humanizeDuration }}",
        ),
        Alert(
            "FarsightTrainingWaits",
            f"{waiting} > {settings.wait_share}",
            "15m",
            "warning",
            "{{ $labels.run }} waits for data.",
            "{{ $value | humanizePercentage }} of the time",
        ),
        Alert(
            "FarsightCheckpointOld",
            f"{checkpoint} > {60 * settings.checkpoint_minutes}",
            "5m",
            "warning",
            "{{ $labels.run }} would lose much work to a failure.",
            "last checkpoint {{ $value | humanizeDuration }} ago",
        ),
    )


def nodes(settings: AlertSettings) -> tuple[Alert, ...]:
    """Rules on the machines."""
    percent = "{{ $value | humanizePercentage }}"
    return (
        Alert(
            "FarsightNodeUnseen",
            'up{job="ray"} == 0',
            "3m",
            "warning",
            "Prometheus cannot read {{ $labels.instance }}.",
            "up {{ $value }}",
        ),
        Alert(
            "FarsightNodeMemory",
            f"max by (cluster, ip) (ray_node_mem_used{{}} / ray_node_mem_total{{}}) > {settings.memory_share}",
            "10m",
            "warning",
            "Node {{ $labels.ip }} runs out of memory.",
            percent,
        ),
        Alert(
            "FarsightNodeDisk",
            f"max by (cluster, ip) (ray_node_disk_utilization_percentage{{}} / 100) > {settings.disk_share}",
            "10m",
            "warning",
            "The disk of node {{ $labels.ip }} runs full.",
            percent,
        ),
    )
