"""Settings: frozen pydantic models read from one YAML recipe with `a.b=c` overrides.

A recipe has one section per step (`SECTIONS`); each floor owns the settings class of its own
sections and reads only those with `read_section`. A recipe may name one other recipe in
`extends:`, resolved beside the file; that one may not extend further.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import RecipeError

SECTIONS = (
    "simulate",
    "ingest",
    "model",
    "train",
    "evaluate",
    "index",
    "serve",
    "predict",
    "tracking",
    "alerts",
    "pipeline",
)


class Settings(BaseModel):
    """Base of all settings: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SettingsT = TypeVar("SettingsT", bound=BaseModel)
Recipe = dict[str, Any]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, merge what it extends, apply the overrides.

    Args:
        path: a YAML file.
        overrides: `section.name=value` strings; the value is read as YAML.

    Raises:
        RecipeError: the file is missing or not a mapping, a section is unknown, or an override
            is malformed.
    """
    recipe = read_yaml(Path(path))
    parent = recipe.pop("extends", None)
    if parent is not None:
        base = read_yaml(Path(path).parent / str(parent))
        if "extends" in base:
            raise RecipeError(f"{path}: extends {parent}, which extends again; only one level is allowed")
        recipe = merged(base, recipe)
    for override in overrides:
        apply_override(recipe, override)
    unknown = sorted(set(recipe) - set(SECTIONS))
    if unknown:
        raise RecipeError(f"{path}: unknown section {unknown[0]!r}; a recipe has {', '.join(SECTIONS)}")
    return recipe


def read_section(recipe: Mapping[str, Any], section: str, kind: type[SettingsT]) -> SettingsT:
    """Validate one section of a recipe; a missing section means its defaults.

    Raises:
        RecipeError: naming each wrong setting by its path, what was found and what is allowed.
    """
    try:
        return kind.model_validate(recipe.get(section) or {})
    except ValidationError as error:
        lines = [
            f"{'.'.join([section, *map(str, found['loc'])])}: {found['msg']} (found {found.get('input')!r})"
            for found in error.errors()
        ]
        raise RecipeError("\n".join(lines)) from None


def read_yaml(path: Path) -> Recipe:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: found a {type(content).__name__}, expected a mapping of sections")
    return content


def merged(base: Recipe, top: Recipe) -> Recipe:
    """`top` laid over `base`, mapping by mapping; lists and scalars are replaced whole."""
    result = copy.deepcopy(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def apply_override(recipe: Recipe, override: str) -> None:
    """Set `section.name=value` in a recipe, in place; the value is read as YAML.

    Raises:
        RecipeError: not of that form, or a value stands where a group of settings is named.
    """
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override {override!r}: expected section.name=value, for example train.epochs=3")
    here = recipe
    for key in keys[:-1]:
        below = here.setdefault(key, {})
        if below is None:
            below = here[key] = {}
        if not isinstance(below, dict):
            raise RecipeError(f"override {override!r}: {key} is a value, not a group of settings")
        here = below
    try:
        here[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: not valid YAML: {error}") from None
