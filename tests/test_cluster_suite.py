"""Suites: what is refused, what a report says of the rows that are there, and of those that are not."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.benchmark import Row, _rows, run
from cluster.suite import SuiteSettings, load_suite, row_recipe, shipped_suites
from cluster.suite_markdown import number
from cluster.suite_report import summarise, write_report
from data.errors import RecipeError
from data.ingest_settings import IngestSettings
from data.settings import Settings, read_section
from data.simulate_settings import SimulateSettings
from modeling.settings import ModelSettings
from trainer.settings import EvaluateSettings, TrainSettings

SMALL: dict[str, Any] = {
    "title": "Small",
    "seeds": [3, 4],
    "data": {"log": {"title": "A log", "simulate": {}}},
    "models": {
        "popularity": {"title": "Popular", "baseline": {"kind": "popularity"}},
        "a": {"title": "Model A", "published": {"log": {"ndcg@10": 0.2}}},
        "b": {"title": "Model B"},
    },
    "compare": [["a", "b"]],
}


def suite_of(**changes: Any) -> SuiteSettings:
    return SuiteSettings.model_validate({**SMALL, **changes})


def write_row(out: Path, model: str, seed: int, ndcg: list[float], **more: float) -> None:
    """What `farsight benchmark` leaves of one run."""
    folder = out / "log" / model / f"seed-{seed}"
    (folder / "users" / "test").mkdir(parents=True)
    users = {"user_id": [f"u{number}" for number in range(len(ndcg))], "ndcg@10": ndcg}
    pq.write_table(pa.table(users), folder / "users" / "test" / "model.parquet")
    metrics = {"model": model, "ndcg@10": sum(ndcg) / len(ndcg), "hr@10": 0.5, "coverage@10": 0.1, **more}
    row = {
        "data": "log",
        "model": model,
        "seed": seed,
        "metrics": {"test": metrics},
        "protocols": {"test": {"split": "test", "seen": "removed"}},
        "training": {"seconds": 12.0, "validation": {"ndcg@10": 0.3}} if model != "popularity" else {},
        "seconds": 13.0,
        "command": f"farsight benchmark small --data log --models {model} --seeds {seed}",
        "made_with": {"commit": "abc", "cores": 2, "cpu": "a cpu", "python": "3.11", "versions": {"torch": "2"}},
        "identity": {},
    }
    (folder / "row.json").write_text(json.dumps(row))


@pytest.mark.parametrize("name", shipped_suites())
def test_every_row_of_a_shipped_suite_has_valid_settings(name: str) -> None:
    suite = load_suite(name)
    kinds: dict[str, type[Settings]] = {"simulate": SimulateSettings, "ingest": IngestSettings}
    for data in suite.data.values():
        read_section({"simulate": data.simulate or {}}, "simulate", kinds["simulate"])
        read_section({"ingest": {**data.ingest, "log": "l", "out": "o"}}, "ingest", kinds["ingest"])
    for protocol in suite.protocols.values():
        read_section({"evaluate": protocol}, "evaluate", EvaluateSettings)
    for name, row in suite.models.items():
        if row.baseline is not None:
            read_section({"evaluate": {"baselines": [row.baseline]}}, "evaluate", EvaluateSettings)
            continue
        for data in row.data or suite.data:
            recipe = row_recipe(suite, data, name)
            recipe["train"] |= {"dataset": "d", "run_dir": "r"}
            read_section(recipe, "model", ModelSettings)
            read_section(recipe, "train", TrainSettings)
            read_section(recipe, "evaluate", EvaluateSettings)


def test_a_row_lays_its_sections_over_those_of_its_data_set_and_is_validated_by_the_first_protocol() -> None:
    settings = {
        "title": "Layers",
        "data": {"log": {"title": "Log", "simulate": {}, "train": {"epochs": 5}, "model": {"width": 32}}},
        "protocols": {"gap": {"gap_seconds": 60}, "test": {}},
        "model": {"width": 64, "dropout": 0.1},
        "train": {"epochs": 3, "seed": 1},
        "models": {"wide": {"title": "Wide", "model": {"width": 128}}},
    }
    assert row_recipe(SuiteSettings.model_validate(settings), "log", "wide") == {
        "model": {"width": 128, "dropout": 0.1},
        "train": {"epochs": 5, "seed": 1},
        "evaluate": {"gap_seconds": 60},
    }


def test_the_first_seed_of_every_model_comes_before_the_second_of_any() -> None:
    rows = list(_rows(suite_of(), (), (), ()))
    assert rows == [
        Row("log", "popularity", 0),
        Row("log", "a", 3),
        Row("log", "b", 3),
        Row("log", "a", 4),
        Row("log", "b", 4),
    ]
    assert list(_rows(suite_of(), (), ("b",), (4,))) == [Row("log", "b", 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": [["a", "c"]]}, "compare names the row 'c'; there are popularity, a, b"),
        ({"models": {"a": {"title": "A", "data": ["x"]}}, "compare": []}, "names the data set 'x'; there are log"),
        ({"data": {"log": {"title": "L"}}}, "expected either source or simulate"),
        ({"modells": {}}, "modells: Extra inputs are not permitted"),
        ({"compare_under": ["x"]}, "compare_under names 'x'; there are"),
        (
            {"models": {"a": {"title": "A", "begins_with": "b"}, "b": {"title": "B"}}, "compare": []},
            "models.a begins with the row 'b'; before it stand",
        ),
    ],
)
def test_a_wrong_suite_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    with pytest.raises(RecipeError, match=message):
        load_suite(str(path))


def test_an_unknown_suite_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"nosuch: no such suite.*smoke"):
        load_suite("nosuch")


def test_a_word_that_is_no_setting_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'sasrec': expected section.name=value"):
        run("smoke", models=["popularity"], overrides=["sasrec"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mean_and_deviation_are_over_runs() -> None:
    found = summarise([{"ndcg@10": 0.1, "model": "x"}, {"ndcg@10": 0.3, "model": "x"}])
    assert found == {"ndcg@10": {"mean": pytest.approx(0.2), "deviation": pytest.approx(0.02**0.5), "runs": 2}}
    assert summarise([{"ndcg@10": 0.1}])["ndcg@10"]["deviation"] is None


def test_a_report_shows_means_published_figures_comparisons_and_what_was_not_measured(tmp_path: Path) -> None:
    for seed in (3, 4):
        write_row(tmp_path, "a", seed, [0.1 + 0.01 * seed] * 50, **{"hit@10[t+1]": 0.3, "hit@10[t+2]": 0.2})
    write_row(tmp_path, "popularity", 0, [0.05] * 50)
    report = write_report(suite_of(compare=[["a", "popularity"], ["a", "b"]]), "small", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| Model A | 2 | .1350 ± .0071 |" in text
    assert ".2000 (-32.5%)" in text
    assert "| Model B |  | not measured yet |" in text
    assert "`farsight benchmark small --data log --models a --seeds 4`" in text
    assert "Model A over Popular" in text
    assert "Model A over Model B" not in text  # one of the two was not measured
    (comparison,) = report["data"]["log"]["comparisons"]
    assert comparison["difference"] == pytest.approx(0.085)
    for plot in report["data"]["log"]["plots"]:
        assert (tmp_path / plot).stat().st_size > 1000
    assert json.loads((tmp_path / "report.json").read_text())["data"]["log"]["figures"]["test"]["a"]


def test_a_run_that_was_interrupted_or_lacks_a_protocol_is_not_in_the_report(tmp_path: Path) -> None:
    write_row(tmp_path, "a", 3, [0.2] * 5)
    write_row(tmp_path, "a", 4, [0.4] * 5)
    (tmp_path / "log" / "a" / "seed-4" / "row.json").unlink()
    write_row(tmp_path, "popularity", 0, [0.1] * 5)
    report = write_report(suite_of(compare=[["a", "popularity"]]), "small", tmp_path)
    (comparison,) = report["data"]["log"]["comparisons"]
    assert comparison["difference"] == pytest.approx(0.1)
    newer = suite_of(protocols={"test": {}, "gap": {"gap_seconds": 5}})
    assert write_report(newer, "small", tmp_path)["data"]["log"]["runs"] == {}


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    write_report(suite_of(), "small", tmp_path)
    assert "Not measured yet." in (tmp_path / "report.md").read_text()


def test_numbers_lose_their_leading_zero_and_nothing_else() -> None:
    assert [number(value) for value in (0.1684, 1.5, -0.25, 10.02, None)] == [".1684", "1.5000", "-.2500", "10.0", ""]
