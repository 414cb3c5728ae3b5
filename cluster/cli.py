"""The `farsight` command: parses, starts a floor by its import string, prints what came back.

Exit codes: 0 done, 1 a defect of ours (with a traceback), 2 wrong usage or recipe, 3 log or dataset, 4 artifact or
release, 5 training, 6 machine, 7 endpoint, 8 held back (`data.errors`), 130 interrupted.
"""

import sys
from functools import partial
from typing import Any

import click

from cluster import floors
from cluster.command_line import Farsight, command, pairs_of, recipe_of, recipe_words, show, work_in
from cluster.dashboard_commands import dashboards
from cluster.job_commands import JOBS
from cluster.output import Output, keep_standard_output_clean
from cluster.pipeline_commands import pipeline
from cluster.serving_commands import SEEN, SERVING
from cluster.tables import (
    print_checks,
    print_conditional,
    print_inspection,
    print_rankings,
    print_suite,
)
from data.errors import MachineError

CONDITION = click.Choice(["oracle", "favourite", "rare"])


@click.group(cls=Farsight, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="farsight")
@click.option("--storage", metavar="DIR", help="Where relative paths start, but for a RECIPE's; the working directory.")
@click.pass_context
def cli(context: click.Context, storage: str | None) -> None:
    """Generative retrieval, from log files to a served endpoint, on Ray.

    A RECIPE is a YAML file, or the name of one that is shipped: demo, smoke, nightly, movielens_1m_cpu,
    climber_pilot_pretrain, climber_pilot_sft. Every setting can be given on the command line as section.name=value.
    """
    work_in(context, storage)


@cli.command()
@click.option("--out", required=True, type=click.Path(), help="Log directory to write.")
@click.option("--days", type=click.IntRange(min=1), help="Write days apart: OUT/YYYY-MM-DD, all before in the first.")
@recipe_words
@command
def simulate(out: str, days: int | None, words: tuple[str, ...]) -> dict[str, Any]:
    """Write a sharded log and a catalogue from the simulator.

    Example: farsight simulate --out runs/demo/log demo simulate.num_users=1000
    """
    if days is None:
        return floors.start(floors.SIMULATE, recipe=recipe_of(words), out=out)
    return floors.start(floors.SIMULATE_DAYS, recipe=recipe_of(words), out=out, days=days)


@cli.command(name="import")
@click.argument("name")
@click.option(
    "--source", required=True, type=click.Path(), help="Folder of the published files; of a table also a file or glob."
)
@click.option("--out", required=True, type=click.Path(), help="Log directory to write.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="A column of the table; repeat it.")
@click.option(
    "--timestamp-unit", default="s", show_default=True, help="Unit of the table's times: s, ms, us, ns or iso."
)
@click.option("--catalogue", type=click.Path(), help="Catalogue file; the data set's own by default.")
@click.option("--catalogue-column", "catalogue_columns", multiple=True, metavar="OURS=THEIRS", help="As --column.")
@click.option("--category-separator", help="What stands between an item's categories where they are one text.")
@click.option("--separator", default=",", show_default=True, help="What stands between the fields of a CSV line.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of text files.")
@click.option("--field-order", type=click.Choice(["user-first", "item-first"]), help="Of Amazon CSV without a header.")
@click.option("--max-bad-share", default=0.01, show_default=True, help="Share of rows that may be refused.")
@click.option("--replace", is_flag=True, help="Replace a log that stands at --out.")
@command
def import_(columns: tuple[str, ...], catalogue_columns: tuple[str, ...], **stated: Any) -> dict[str, Any]:
    """Turn a public data set, or any table, into a log directory.

    NAME is movielens-100k, movielens-1m, movielens-20m, amazon or table.

    Example: farsight import table --source plays.csv --out runs/plays/log --column item_id=track
    """
    return floors.start(
        floors.IMPORT,
        columns=pairs_of(columns, "--column"),
        catalogue_columns=pairs_of(catalogue_columns, "--catalogue-column"),
        **stated,
    )


@cli.command()
@recipe_words
@command
def ingest(words: tuple[str, ...]) -> dict[str, Any]:
    """Turn a log into a prepared dataset (Ray Data).

    Example: farsight ingest demo ingest.log=runs/demo/log
    """
    return floors.tracked("ingest", floors.INGEST, recipe=recipe_of(words, required=True))


@cli.command()
@click.argument("dataset", type=click.Path())
@click.option("--out", type=click.Path(), help="PNG file to write: the histogram of the gaps.")
@command
def gaps(dataset: str, out: str | None) -> dict[str, Any]:
    """Estimate how long a burst of events lasts in a prepared DATASET: what model.prediction.gap hides.

    Example: farsight gaps runs/demo/dataset --out gaps.png
    """
    return floors.start(floors.GAPS, dataset=dataset, out=out)


@cli.command()
@recipe_words
@command
def train(words: tuple[str, ...]) -> dict[str, Any]:
    """Train a retriever on a prepared dataset (Ray Train, DeepSpeed) and write its artifact.

    Example: farsight train demo train.epochs=3
    """
    return floors.start(floors.TRAIN, recipe=recipe_of(words, required=True))


@cli.command()
@click.option("--artifact", type=click.Path(), help="Artifact that training wrote; without one, baselines alone.")
@click.option("--dataset", required=True, type=click.Path(), help="Prepared dataset.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--seen", type=SEEN, help="Whether the history can be answers; short for evaluate.seen=...")
@click.option("--rankings", multiple=True, metavar="NAME=FILE", help="Another model's rankings, as a row beside ours.")
@click.option("--users-out", type=click.Path(), help="Directory to write: the metrics of every user, a file per row.")
@click.option("--condition", type=CONDITION, help="Ask each user under a condition; measures the ways to answer.")
@recipe_words
@command
def evaluate(
    seen: str | None, rankings: tuple[str, ...], condition: str | None, words: tuple[str, ...], **chosen: Any
) -> None:
    """Measure an artifact over the whole catalogue, with baselines beside it.

    Under a --condition the rows are the ways to answer for one: without it, filtered, and told it. oracle takes a
    condition of the user's next item, favourite and rare a category that the history has most or least of.

    Example: farsight evaluate --artifact runs/demo/artifact --dataset runs/demo/dataset
    """
    chosen["recipe"] = recipe_of(words if seen is None else (*words, f"evaluate.seen={seen}"))
    if condition is None:
        measured = floors.tracked("evaluate", floors.EVALUATE, rankings=pairs_of(rankings, "--rankings"), **chosen)
        show(measured, print_rankings)
        return
    if rankings or chosen["artifact"] is None:
        raise click.UsageError("--condition measures an --artifact, and no --rankings.")
    show(floors.start(floors.CONDITIONAL, condition=condition, **chosen), print_conditional)


@cli.command()
@click.option("--artifact", required=True, type=click.Path(), help="Artifact that training wrote.")
@click.option("--dataset", required=True, type=click.Path(), help="Prepared dataset.")
@click.option("--user", required=True, help="Id of a user of the log.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME", help="Answer for it too; repeat it.")
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Items per answer.")
@click.option("--out", type=click.Path(), help="PNG file to write: the mask that the user's events were learned under.")
@command
def inspect(**chosen: Any) -> None:
    """Show what a model sees of one user: history, mask, and the answers of each head and condition.

    Example: farsight inspect --artifact runs/demo/artifact --dataset runs/demo/dataset --user u000001 --out mask.png
    """
    show(floors.start(floors.INSPECT, **chosen), print_inspection)


for serving in SERVING:
    cli.add_command(serving)


cli.add_command(pipeline)


@cli.command()
@click.argument("suite")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--models", multiple=True, metavar="NAME", help="Measure this row only; repeat it.")
@click.option("--data", multiple=True, metavar="NAME", help="Measure on this data set only; repeat it.")
@click.option("--seeds", multiple=True, type=int, metavar="N", help="Measure this seed only; repeat it.")
@click.option("--out", type=click.Path(), help="Directory of runs and report; runs/benchmarks/SUITE by default.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write the report of what was measured.")
@command
def benchmark(suite: str, **chosen: Any) -> None:
    """Measure every model of a suite on every data set and seed, and write a report with plots.

    SUITE is a YAML file, or the name of one that is shipped: smoke, movielens_1m, amazon, foresight, hashed_items,
    heterrec, esans, csmf. Rows that stand are not measured again, so an interrupted suite goes on where it stopped.

    Example: farsight benchmark smoke
    """
    show(floors.start(floors.BENCHMARK, suite=suite, **chosen), print_suite)


for of_clusters in JOBS:
    cli.add_command(of_clusters)
cli.add_command(dashboards)


@cli.command()
@click.argument("path", type=click.Path(), default="runs")
@click.option("--cluster", "of_cluster", is_flag=True, help="Check every node of a Ray cluster instead.")
@click.option("--address", help="Of its dashboard, http://HEAD:8265, or of the cluster this machine belongs to.")
@click.option("--profile", "profile_name", help="Profile whose variables the check gets; with a dashboard's address.")
@click.option("--storage", metavar="DIR", help="Directory that all nodes share.")
@click.option("--dataset", metavar="DIR", help="Prepared dataset to stream; a tiny one is made by default.")
@click.option("--max-skew", default=1.0, show_default=True, help="Seconds that the nodes' clocks may differ.")
@click.option("--seconds", default=120.0, show_default=True, help="Time limit of each step of a cluster's check.")
@command
def doctor(path: str, of_cluster: bool, **chosen: Any) -> None:
    """Check this machine: versions, accelerator, storage at PATH, and that the packages are this tree's.

    With --cluster every node: equal versions and sources, GPUs and drivers, clocks, shared storage, an all-reduce over
    the nodes, and how long the first batch of training takes.

    Example: farsight doctor runs

    Example: farsight doctor --cluster --address http://head:8265 --storage /mnt/farsight
    """
    if of_cluster:
        result = floors.start("cluster.doctor_job:run", **chosen)
        place = "this cluster"
    else:
        result = floors.start("cluster.doctor:run", path=path)
        place = "this machine"
    show(result, partial(print_checks, place.capitalize()))
    if not result["ok"]:
        raise MachineError(f"{place} lacks something that Farsight needs: see the rows marked 'broken'")


def main() -> None:
    """Entry point of the console command."""
    output = keep_standard_output_clean() if "--json" in sys.argv[1:] else Output()
    cli.main(obj=output, prog_name="farsight")


if __name__ == "__main__":
    main()
