"""What PromQL expressions read, by a real parser of it."""

from collections.abc import Iterable
from typing import Any

import promql_parser

Selected = dict[str, set[str]]


def selected(expression: str) -> Selected:
    """Metrics that an expression reads, each with the labels that it matches or groups it by."""
    found: Selected = {}

    def visit(node: Any, labels: frozenset[str]) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matched = {matcher.name for matcher in node.matchers.matchers}
            found.setdefault(node.name, set()).update(matched | labels)
        for below in _below(node):
            grouped = isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
            # An inner grouping decides what an outer one can see; a label that a function sets is no metric's.
            inner = frozenset(node.modifier.labels) if grouped else labels
            visit(below, inner - _set_by(node))

    visit(promql_parser.parse(expression), frozenset())
    return found


def selected_by_all(expressions: Iterable[str]) -> Selected:
    """What several expressions read together."""
    found: Selected = {}
    for expression in expressions:
        for name, labels in selected(expression).items():
            found.setdefault(name, set()).update(labels)
    return found


def _below(node: Any) -> list[Any]:
    if isinstance(node, promql_parser.BinaryExpr):
        return [node.lhs, node.rhs]
    if isinstance(node, promql_parser.Call):
        return list(node.args)
    if isinstance(node, promql_parser.MatrixSelector):
        return [node.vector_selector]
    return [node.expr] if hasattr(node, "expr") else []


def _set_by(node: Any) -> set[str]:
    if isinstance(node, promql_parser.Call) and node.func.name == "label_replace":
        return {node.args[1].val}
    return set()
