"""What comes with Farsight as YAML files in a folder of this package, by name: recipes, suites, profiles."""

from pathlib import Path

from data.errors import RecipeError


def shipped_in(folder: Path) -> dict[str, Path]:
    """Name -> file, by name."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def shipped_file(name: str, folder: Path, kind: str) -> Path:
    """The file of a shipped name.

    Args:
        kind: what the folder holds, for the message.

    Raises:
        RecipeError: there is none of that name.
    """
    shipped = shipped_in(folder)
    if name not in shipped:
        raise RecipeError(f"{name}: no such {kind}; give a path that ends in .yaml, or one of {', '.join(shipped)}")
    return shipped[name]
