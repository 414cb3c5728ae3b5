"""What an alert rule is. docs/monitoring.md says of each rule what to do."""

from dataclasses import dataclass
from typing import Any, Literal

from cluster.dashboards.panels import metrics_of


@dataclass(frozen=True)
class Alert:
    """One rule. The summary may name labels of the expression as `{{ $labels.NAME }}`."""

    name: str
    expr: str
    lasting: str  # how long it must hold before anybody is told
    severity: Literal["critical", "warning"]  # critical: requests or a run are being lost; wake somebody
    summary: str
    value: str = "{{ $value | humanize }}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it reads."""
        return metrics_of([self.expr])

    def rule(self, runbook: str) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": f"Found: {self.value}.",
                "runbook_url": f"{runbook}#{self.name.lower()}",
            },
        }
