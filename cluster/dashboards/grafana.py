"""Dashboards as Grafana reads them: its JSON model, as of Grafana 11.6; later ones read it too."""

from typing import Any

from cluster.dashboards.panels import Dashboard, Kind, Panel, Query, Row, Variable

SCHEMA_VERSION = 41
HEIGHT = 8
STAT_HEIGHT = 4
PAGE_WIDTH = 24
TAG = "farsight"
# Every panel asks the Prometheus that is chosen at the head of its page.
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLOURS = ("green", "yellow", "red")
_TYPES: dict[Kind, str] = {
    "lines": "timeseries",
    "areas": "timeseries",
    "bars": "bargauge",
    "stat": "stat",
    "heatmap": "heatmap",
    "states": "state-timeline",
}


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """The JSON model of a dashboard."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.text,
        "tags": [TAG],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,  # one crosshair on all panels
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [_link()],
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": _placed(dashboard.rows),
    }


def _placed(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Panels from left to right, row by row, each with its place and a number."""
    placed: list[dict[str, Any]] = []
    number = top = 0
    for row in rows:
        number += 1
        heading = {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "gridPos": {"x": 0, "y": top, "w": PAGE_WIDTH, "h": 1},
            "panels": [],
        }
        inside: list[dict[str, Any]] = []
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            number += 1
            if left + panel.width > PAGE_WIDTH:
                left, top, height = 0, top + height, 0
            tall = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            inside.append(_panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": tall}))
            left, height = left + panel.width, max(height, tall)
        top += height
        # A closed row holds its panels, an open one stands before them.
        if row.collapsed:
            heading["panels"] = inside
        placed += [heading] if row.collapsed else [heading, *inside]
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": _TYPES[panel.kind],
        "title": panel.title,
        "description": f"{panel.text}\n\nReads {', '.join(f'`{name}`' for name in panel.metrics)}.",
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [
            _target(query, panel.kind, letter) for query, letter in zip(panel.queries, "ABCDEFGH", strict=False)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(query: Query, kind: Kind, letter: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": "heatmap" if kind == "heatmap" else "time_series",
        "instant": kind in ("stat", "bars"),
        "range": kind not in ("stat", "bars"),
        "editorMode": "code",
    }


def _field(panel: Panel) -> dict[str, Any]:
    # The first colour has no value: it is from below on.
    steps: list[dict[str, Any]] = [{"color": COLOURS[0], "value": None}]
    steps += [{"color": colour, "value": limit} for limit, colour in zip(panel.limits, COLOURS[1:], strict=False)]
    field: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {str(number): {"text": name, "index": index}}}
            for index, (number, name) in enumerate(panel.names)
        ],
    }
    if panel.kind in ("lines", "areas"):
        field["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "showPoints": "auto",
            "spanNulls": False,
            "fillOpacity": 40 if panel.kind == "areas" else 0,
            "stacking": {"mode": "normal" if panel.kind == "areas" else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
        }
    if panel.unit == "percentunit":
        field["min"] = 0
    return field


def _options(panel: Panel) -> dict[str, Any]:
    last: dict[str, Any] = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
    match panel.kind:
        case "lines" | "areas":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {
                "reduceOptions": last,
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "textMode": "auto",
                "wideLayout": True,
            }
        case "bars":
            return {
                "reduceOptions": last,
                "displayMode": "gradient",
                "orientation": "horizontal",
                "showUnfilled": True,
                "minVizWidth": 8,
                "minVizHeight": 16,
                "valueMode": "color",
                "namePlacement": "auto",
                "sizing": "auto",
            }
        case "states":
            return {
                "mergeValues": True,
                "showValue": "auto",
                "alignValue": "left",
                "rowHeight": 0.9,
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
                "color": {
                    "mode": "scheme",
                    "scheme": "Spectral",
                    "steps": 64,
                    "reverse": False,
                    "exponent": 0.5,
                    "fill": "dark-orange",
                },
                "cellGap": 1,
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "rowsFrame": {"layout": "auto"},
                "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            }


def _datasource() -> dict[str, Any]:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.metric}, {variable.label})"
    found = {
        "type": "query",
        "name": variable.name,
        "label": variable.text,
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": f"variable-{variable.name}"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,  # when the range of time changes: old replicas have series there
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }
    return found | {"allValue": ".*"} if variable.all_of == "anything" else found


def _link() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "Farsight",
        "icon": "external link",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
