"""Recipes by name: the ones shipped in `cluster/recipes/`, and any YAML file by its path."""

from collections.abc import Sequence
from pathlib import Path

from cluster.shipped_files import shipped_file, shipped_in
from data.errors import RecipeError
from data.settings import Recipe, load_recipe

FOLDER = Path(__file__).parent / "recipes"
# What a command reads when it is given no recipe: every setting at its default.
DEFAULTS = "defaults"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Farsight: name -> file."""
    return shipped_in(FOLDER)


def find_recipe(name: str, folder: str | Path = "") -> Path:
    """The file of a recipe given as a path or as the name of a shipped one.

    Args:
        folder: where relative paths begin; the working directory by default.

    Raises:
        RecipeError: neither a file nor a shipped name.
    """
    path = Path(name)
    # A bare word is a name first: a folder `demo` in the working directory must not shadow the recipe.
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return Path(folder) / path
    return shipped_file(name, FOLDER, "recipe")


def read_recipe(name: str | None, overrides: Sequence[str] = (), folder: str | Path = "") -> Recipe:
    """Load a recipe by path or name, from `folder` on, with its overrides; no name means every default.

    Raises:
        RecipeError: see `find_recipe` and `data.settings.load_recipe`.
    """
    return load_recipe(find_recipe(name or DEFAULTS, folder), overrides)


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Part `[RECIPE] [a.b=c ...]`, as typed on the command line, into the recipe and the overrides.

    Raises:
        RecipeError: a word after the first is not an override.
    """
    rest = list(words)
    name = rest.pop(0) if rest and "=" not in rest[0] else None
    for word in rest:
        if "=" not in word:
            raise RecipeError(f"{word!r}: expected an override such as train.epochs=3; only one recipe may be given")
    return name, rest
