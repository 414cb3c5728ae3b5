"""What a dashboard is made of: rows of panels, each a few PromQL queries."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# Our queries write `name{...}`, also without matchers; a label never stands before a brace.
_SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\{")

Kind = Literal["lines", "areas", "stat", "heatmap", "bars", "states"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression; the legend may name labels as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    text: str  # what it shows, and what to make of it
    queries: tuple[Query, ...]
    unit: str = "short"  # of Grafana: s, bytes, percentunit, reqps
    kind: Kind = "lines"
    width: int = 8  # of 24
    limits: tuple[float, ...] = ()  # values from which it is yellow, then red
    names: tuple[tuple[int, str], ...] = ()  # of states, by number

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it reads."""
        return metrics_of(query.expr for query in self.queries)


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the head of a dashboard: the values that a label has in a metric.

    `all_of` says what "All" means: "anything", also where the label is missing, or "listed", the values of the list,
    which may depend on variables before it.
    """

    name: str
    text: str
    metric: str
    label: str
    all_of: Literal["anything", "listed"] = "anything"


@dataclass(frozen=True)
class Dashboard:
    """One page of Grafana."""

    uid: str
    title: str
    text: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels."""
        return tuple(panel for row in self.rows for panel in row.panels)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that panels and variables read."""
        return metrics_of(
            [*(query.expr for panel in self.panels for query in panel.queries), *(one.metric for one in self.variables)]
        )


def metrics_of(expressions: Iterable[str]) -> tuple[str, ...]:
    """Names of the metrics that PromQL expressions read, sorted."""
    return tuple(sorted({name for expr in expressions for name in _SELECTOR.findall(expr)}))
