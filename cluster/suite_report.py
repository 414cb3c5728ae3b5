"""The report of a suite: what its rows say together, as JSON, Markdown and plots."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster import floors
from cluster.suite import SuiteSettings
from cluster.suite_markdown import as_markdown
from cluster.suite_plots import draw_bars, draw_curves, draw_horizon
from data.storage import write_json

Measured = dict[str, Any]  # what `cluster.benchmark` wrote to row.json


def write_report(settings: SuiteSettings, suite: str, out: Path) -> dict[str, Any]:
    """Write report.md, report.json and the plots of every row measured in `out`.

    Returns:
        Paths of the report, and the summary that report.json holds.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"suite": suite, "title": settings.title, "notes": settings.notes, "data": {}}
    for name, data in settings.data.items():
        rows = {model: _measured(out / name / model, settings.protocols) for model in settings.models}
        rows = {model: found for model, found in rows.items() if found}
        figures = {
            protocol: {model: summarise([run["metrics"][protocol] for run in runs]) for model, runs in rows.items()}
            for protocol in settings.protocols
        }
        plots = _draw(settings, name, rows, figures, out) if rows else []
        summary["data"][name] = {
            "title": data.title,
            "notes": data.notes,
            "protocols": {protocol: _statement(rows.values(), protocol) for protocol in settings.protocols},
            "figures": figures,
            "runs": {model: [_facts(run) for run in runs] for model, runs in rows.items()},
            "comparisons": [
                _compared((a, b), metric, protocol, rows, settings, out / name)
                for protocol in settings.compare_under or [*settings.protocols][:1]
                for a, b in settings.compare
                if {a, b} <= rows.keys()
                for metric in settings.compare_by
            ],
            "plots": plots,
        }
    write_json(out / "report.json", summary)
    (out / "report.md").write_text(as_markdown(settings, summary), encoding="utf-8")
    return {"report": str(out / "report.md"), "json": str(out / "report.json"), **summary}


def _measured(folder: Path, protocols: Iterable[str]) -> list[Measured]:
    """The rows measured for one model under all of these protocols, by seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("seed-*/row.json")]
    return sorted((row for row in rows if row["metrics"].keys() >= set(protocols)), key=lambda row: int(row["seed"]))


def summarise(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and deviation over runs of each metric; the deviation of a single run is not known."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, []).append(float(value))
    return {
        name: {
            "mean": statistics.fmean(found),
            "deviation": statistics.stdev(found) if len(found) > 1 else None,
            "runs": len(found),
        }
        for name, found in values.items()
    }


def _statement(rows: Iterable[list[Measured]], protocol: str) -> dict[str, Any] | None:
    for runs in rows:
        statement: dict[str, Any] = runs[0]["protocols"][protocol]
        return statement
    return None


def _facts(run: Measured) -> dict[str, Any]:
    return {name: run[name] for name in ("seed", "seconds", "training", "command", "made_with")}


def _compared(
    pair: tuple[str, str],
    metric: str,
    protocol: str,
    rows: Mapping[str, list[Measured]],
    settings: SuiteSettings,
    folder: Path,
) -> dict[str, Any]:
    """Whether one row is better than another by a metric under a protocol, over the same users and over seeds."""
    first, second = pair
    users = {model: _user_means(folder / model, rows[model], protocol, metric) for model in pair}
    shared = sorted(users[first].keys() & users[second].keys())
    of_seeds = {model: [run["metrics"][protocol][metric] for run in rows[model]] for model in pair}
    for model in pair:
        if settings.models[model].baseline is not None:  # the same for every seed
            of_seeds[model] *= 2
    found = floors.start(
        floors.COMPARE,
        a_U=[users[first][user] for user in shared],
        b_U=[users[second][user] for user in shared],
        a_seeds=of_seeds[first],
        b_seeds=of_seeds[second],
    )
    return {"first": first, "second": second, "metric": metric, "protocol": protocol, **found}


def _user_means(folder: Path, runs: Sequence[Measured], protocol: str, metric: str) -> dict[str, float]:
    """A metric of every user, averaged over the seeds of one model."""
    sums: dict[str, float] = {}
    for run in runs:
        (file,) = (folder / f"seed-{run['seed']}" / "users" / protocol).glob("*.parquet")
        table = pq.read_table(file, columns=["user_id", metric])
        for user, value in zip(table["user_id"].to_pylist(), table[metric].to_pylist(), strict=True):
            sums[user] = sums.get(user, 0.0) + value / len(runs)
    return sums


def _draw(
    settings: SuiteSettings,
    data: str,
    rows: Mapping[str, list[Measured]],
    figures: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> list[str]:
    """The plots of one data set; returns their file names."""
    titles = {model: settings.models[model].title for model in rows}
    main = figures[next(iter(settings.protocols))]
    published = {model: settings.models[model].published.get(data, {}) for model in rows}
    bars, curves, horizon = (out / f"{data}_{name}.png" for name in ("bars", "curves", "horizon"))
    drawn: list[Path | None] = [draw_bars(bars, main, titles, published)]
    runs = {model: [out / data / model / f"seed-{run['seed']}" for run in found] for model, found in rows.items()}
    drawn += [draw_curves(curves, runs, titles), draw_horizon(horizon, main, titles)]
    return [path.name for path in drawn if path is not None]
