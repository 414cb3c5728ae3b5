"""Shipped recipes: every section of each is valid, and a misspelt setting is refused."""

from pathlib import Path

import pytest
import yaml

from cluster.dashboards.settings import AlertSettings
from cluster.pipeline.settings import PipelineSettings
from cluster.recipe_files import DEFAULTS, find_recipe, read_recipe, shipped_recipes, split_words
from data.errors import RecipeError
from data.ingest_settings import IngestSettings
from data.settings import SECTIONS, Settings, merged, read_section
from data.simulate_settings import SimulateSettings
from data.tracking.settings import TrackingSettings
from modeling.settings import ModelSettings
from serve.index.settings import IndexSettings
from serve.predict_settings import PredictSettings
from serve.settings import ServeSettings
from trainer.settings import EvaluateSettings, TrainSettings

KINDS: dict[str, type[Settings]] = {
    "simulate": SimulateSettings,
    "ingest": IngestSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "index": IndexSettings,
    "serve": ServeSettings,
    "predict": PredictSettings,
    "tracking": TrackingSettings,
    "alerts": AlertSettings,
    "pipeline": PipelineSettings,
}
RECIPES = [name for name in shipped_recipes() if name != DEFAULTS]
NIGHTLY = [name for name in RECIPES if "pipeline" in read_recipe(name)]
SHIPPED = [(name, section) for name in RECIPES for section in SECTIONS if section != "pipeline" or name in NIGHTLY]
# What the pipeline says for each day.
OF_A_DAY = {"ingest": {"log": "x"}, "train": {"dataset": "x", "run_dir": "x"}}


def test_every_section_has_a_settings_class() -> None:
    assert tuple(KINDS) == SECTIONS


@pytest.mark.parametrize(("name", "section"), SHIPPED)
def test_shipped_recipes_are_valid(name: str, section: str) -> None:
    recipe = merged(OF_A_DAY, read_recipe(name)) if name in NIGHTLY else read_recipe(name)
    read_section(recipe, section, KINDS[section])


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_unknown_settings_are_refused_by_name(name: str, section: str) -> None:
    recipe = read_recipe(name, [f"{section}.no_such_setting=1"])
    with pytest.raises(RecipeError, match=rf"{section}\.no_such_setting"):
        read_section(recipe, section, KINDS[section])


@pytest.mark.parametrize("name", NIGHTLY)
def test_everything_of_a_pipeline_lives_under_its_recipes_folder(name: str) -> None:
    told = read_section(read_recipe(name), "pipeline", PipelineSettings)
    assert {Path(place).parts[:2] for place in (told.dir, told.log, told.registry)} == {("runs", name)}


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in NIGHTLY])
def test_everything_of_a_recipe_lives_under_its_own_folder(name: str) -> None:
    recipe = read_recipe(name)
    places = [recipe["ingest"]["log"], recipe["ingest"]["out"], recipe["train"]["dataset"], recipe["train"]["run_dir"]]
    before = recipe["train"].get("start_from")  # a second stage shares the dataset of the first
    first = name if before is None else Path(before).parts[1]
    assert [Path(place).parts[:2] for place in places] == [("runs", first)] * 3 + [("runs", name)]
    assert recipe["ingest"]["out"] == recipe["train"]["dataset"]
    assert before is None or read_recipe(first)["train"]["run_dir"] == str(Path(before).parent)


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_setting_says_what_it_is(kind: type[Settings]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_a_name_is_found_even_where_a_folder_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == shipped_recipes()["demo"]


def test_a_recipe_of_ones_own_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": {"width": 32, "dropout": 0.1}}))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", "model": {"width": 48}}))
    recipe = read_recipe(str(tmp_path / "mine.yaml"), ["model.max_events=7"])
    assert recipe == {"model": {"width": 48, "dropout": 0.1, "max_events": 7}}


def test_words_are_a_recipe_and_overrides() -> None:
    assert split_words(["demo", "train.epochs=3"]) == ("demo", ["train.epochs=3"])
    assert split_words(["train.epochs=3"]) == (None, ["train.epochs=3"])
    assert split_words([]) == (None, [])
