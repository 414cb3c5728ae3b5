"""Recipes: extends, overrides, and errors that name the setting."""

from pathlib import Path

import pytest

from data.errors import RecipeError
from data.settings import Settings, load_recipe, read_section


class Inner(Settings):
    rate: float = 0.1


class Section(Settings):
    epochs: int = 1
    inner: Inner = Inner()


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_laid_over_the_one_it_extends_and_overrides_over_both(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "train: {epochs: 3, inner: {rate: 0.5}}\nmodel: {width: 8}")
    path = write(tmp_path, "top.yaml", "extends: base.yaml\ntrain: {epochs: 4}")
    recipe = load_recipe(path, ["train.inner.rate=0.25", "serve.port=1"])
    assert recipe == {"train": {"epochs": 4, "inner": {"rate": 0.25}}, "model": {"width": 8}, "serve": {"port": 1}}
    assert read_section(recipe, "train", Section) == Section(epochs=4, inner=Inner(rate=0.25))


def test_overrides_are_read_as_yaml_and_fill_empty_sections(tmp_path: Path) -> None:
    path = write(tmp_path, "r.yaml", "train:\n")
    assert load_recipe(path, ["train.a=[1, 2]", "train.b=null", "train.c=x=y"]) == {
        "train": {"a": [1, 2], "b": None, "c": "x=y"}
    }


def test_an_empty_recipe_or_a_missing_section_means_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "r.yaml", "")) == {}
    assert read_section({}, "train", Section) == read_section({"train": None}, "train", Section) == Section()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Section().epochs = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: [", [], "not valid YAML"),
        ("- a", [], "found a list, expected a mapping of sections"),
        ("tarin: {}", [], "unknown section 'tarin'; a recipe has simulate, ingest"),
        ("extends: gone.yaml", [], "gone.yaml: no such recipe file"),
        ("extends: middle.yaml", [], "only one level is allowed"),
        ("train: {}", ["train.epochs"], "expected section.name=value"),
        ("train: {}", ["train..epochs=1"], "expected section.name=value"),
        ("train: {epochs: 1}", ["train.epochs.more=1"], "epochs is a value, not a group of settings"),
        ("train: {}", ["train.epochs=["], "override 'train.epochs=\\[': not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_reason(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    write(tmp_path, "middle.yaml", "extends: r.yaml")
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, "r.yaml", text), overrides)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe file"):
        load_recipe(tmp_path / "none.yaml")


def test_every_wrong_setting_is_named_by_its_path_and_value() -> None:
    recipe = {"train": {"epochs": "many", "inner": {"rat": 1}}}
    with pytest.raises(RecipeError) as caught:
        read_section(recipe, "train", Section)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("train.epochs: ")
    assert "found 'many'" in lines[0]
    assert lines[1].startswith("train.inner.rat: ")
    assert caught.value.exit_code == 2
