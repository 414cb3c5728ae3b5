"""What every benchmark shares: its command line, and a JSON report that says where the figures come from."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import FarsightError
from data.provenance import commit, surroundings


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark has; notes the commit before the run, not after it."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="a smaller run that shows the same thing")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    result.set_defaults(commit=commit())
    return result


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; an error of input ends it with one line and its exit code."""
    try:
        main()
    except FarsightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def publish(name: str, figures: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    """Print a report as JSON, and write it to the file that `--json` named."""
    file: Path | None = chosen.json
    report = {
        "benchmark": name,
        **figures,
        "made_with": {"commit": chosen.commit, "command": _command(), **surroundings()},
    }
    text = json.dumps(report, indent=2, default=str)
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "runs": len(values)}


def _command() -> str:
    spec = sys.modules["__main__"].__spec__
    return " ".join(["python -m", spec.name if spec else sys.argv[0], *sys.argv[1:]])
