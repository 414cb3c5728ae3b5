"""The Markdown text of a suite's report."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.suite import SuiteSettings
from cluster.suite_plots import horizon_curve

MAIN = ("ndcg@10", "hr@10", "ndcg@50", "hr@50", "ndcg@200", "hr@200")
BEYOND = ("coverage@10", "head_share@10", "category_diversity@10", "novelty@10", "repeat_rate@10")
BUCKETS = ("head", "middle", "tail", "cold")


def as_markdown(settings: SuiteSettings, summary: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [f"# {settings.title}", *settings.notes]
    for name, data in summary["data"].items():
        parts += [f"## {data['title']}", *data["notes"]]
        if not data["runs"]:
            parts.append("Not measured yet.")
            continue
        for number, protocol in enumerate(settings.protocols):
            parts += _protocol(settings, name, data, protocol, main=number == 0)
        parts += _comparisons(settings, data["comparisons"])
        parts += [_runs_table(settings, data["runs"])]
        parts += [f"![{plot}]({plot})" for plot in data["plots"]]
    return "\n\n".join(parts) + "\n"


def _protocol(settings: SuiteSettings, name: str, data: Mapping[str, Any], protocol: str, *, main: bool) -> list[str]:
    figures, statement = data["figures"][protocol], data["protocols"][protocol]
    stated = "; ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in statement.items())
    parts = [f"### Protocol `{protocol}`", f"{stated}."]
    parts.append(_accuracy_table(settings, name, figures, with_missing=main))
    if not main:
        return parts
    models = list(figures)
    first = figures[models[0]]
    columns = [metric for metric in BEYOND if metric in first]
    columns += [f"recall@10[{bucket}]" for bucket in BUCKETS if f"recall@10[{bucket}]" in first]
    parts.append(_metric_table(settings, figures, columns))
    curves = {model: horizon_curve(figures[model]) for model in models}
    if len(curves[models[0]]) > 1:
        parts.append(_metric_table(settings, figures, [f"hit@10[t+{step}]" for step, _ in curves[models[0]]]))
    return parts


def _accuracy_table(settings: SuiteSettings, data: str, figures: Mapping[str, Any], *, with_missing: bool) -> str:
    known = next(iter(figures.values()))
    metrics = [metric for metric in MAIN if metric in known]
    published = [
        metric for metric in MAIN if any(metric in row.published.get(data, {}) for row in settings.models.values())
    ]
    published = published if with_missing else []
    rows = []
    for model, row in settings.models.items():
        if row.data is not None and data not in row.data:
            continue
        stated = row.published.get(data, {})
        found = figures.get(model)
        if found is None:
            if with_missing:
                blanks = ["" for _ in metrics[1:]]
                rows.append([row.title, "", "not measured yet", *blanks, *[number(stated.get(m)) for m in published]])
            continue
        rows.append(
            [
                row.title,
                str(found[metrics[0]]["runs"]),
                *[with_deviation(found[metric]) for metric in metrics],
                *[_beside_published(found[metric]["mean"], stated.get(metric)) for metric in published],
            ]
        )
    return table(["model", "seeds", *metrics, *[f"published {metric}" for metric in published]], rows)


def _beside_published(found: float, stated: float | None) -> str:
    return "" if stated is None else f"{number(stated)} ({100 * (found / stated - 1):+.1f}%)"


def _metric_table(settings: SuiteSettings, figures: Mapping[str, Any], metrics: Sequence[str]) -> str:
    rows = [
        [settings.models[model].title, *[with_deviation(found.get(metric)) for metric in metrics]]
        for model, found in figures.items()
    ]
    return table(["model", *metrics], rows)


def _comparisons(settings: SuiteSettings, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    if not comparisons:
        return []
    rows = [
        [
            found["metric"] + (f", {found['protocol']}" if settings.compare_under else ""),
            f"{settings.models[found['first']].title} over {settings.models[found['second']].title}",
            f"{found['difference']:+.4f}",
            f"{found['low']:+.4f} to {found['high']:+.4f}",
            f"{found['p_value']:.4f}",
            "one seed" if found["seed_deviation"] is None else number(found["seed_deviation"]),
            found["verdict"],
        ]
        for found in comparisons
    ]
    head = ["metric", "of", "gain", "95% interval over users", "p", "deviation over seeds", "verdict"]
    return ["### Compared, user by user", table(head, rows)]


def _runs_table(settings: SuiteSettings, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for model, found in runs.items():
        for run in found:
            training = run["training"]
            rows.append(
                [
                    settings.models[model].title,
                    str(run["seed"]),
                    number(training["validation"]["ndcg@10"]) if training else "",
                    f"{training['seconds']:.0f}" if training else "",
                    run["made_with"]["commit"],
                    f"`{run['command']}`",
                ]
            )
    head = ["model", "seed", "validation NDCG@10", "seconds of training", "commit", "command"]
    return "### Runs\n\n" + table(head, rows) + "\n\n" + _machine(runs)


def _machine(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Machine and versions of the runs, each combination once."""
    stated = []
    for found in runs.values():
        for run in found:
            made = run["made_with"]
            versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
            text = f"{made['cores']} cores, {made['cpu']}; Python {made['python']}, {versions}."
            if text not in stated:
                stated.append(text)
    return "\n\n".join(stated)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_deviation(found: Mapping[str, Any] | None) -> str:
    """Mean and, over several seeds, the deviation."""
    if found is None:
        return ""
    deviation = found["deviation"]
    return number(found["mean"]) + (f" ± {number(deviation)}" if deviation else "")


def number(value: float | None) -> str:
    """Four decimals without the leading zero; nothing for None."""
    if value is None:
        return ""
    text = f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item is not None)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
