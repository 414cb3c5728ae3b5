"""What of this machine a job takes along: the code, where it runs from a source tree, and the recipe.

Ray zips directories as its clients see them, which leaves out what `.gitignore` and `.rayignore` name. So what would
arrive is looked at first, with Ray's own walk, and a job that would miss its code is refused here and not there.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor import PACKAGES, TREE
from cluster.recipe_files import find_recipe
from data.errors import RecipeError
from data.settings import read_yaml

MIB = 2**20
# Written beside sources by Python; of another machine at that.
CACHES = "__pycache__"


@dataclass(frozen=True)
class Shipment:
    """Directories that travel with a job, and how the job names its recipe."""

    working_dir: Path | None
    py_modules: tuple[Path, ...]
    recipe: str | None


@dataclass(frozen=True)
class Load:
    """What Ray would ship."""

    files: int
    num_bytes: int


def is_source_tree(tree: Path) -> bool:
    """Whether these packages are a checkout, and not what an installed wheel left."""
    return (tree / "pyproject.toml").is_file()


def plan_shipment(recipe: str | None, *, working_dir: str | None = None, tree: Path = TREE) -> Shipment:
    """Decide what a job takes along.

    From a source tree the tree itself, and for a recipe elsewhere that recipe's folder with our packages beside it.
    From an installed wheel the recipe's folder alone: the code is the cluster's own.

    Args:
        recipe: as typed: a path, the name of a shipped recipe, or None.
        working_dir: directory to ship in any case.

    Raises:
        RecipeError: no such recipe, or it lies outside the directory that is shipped.
    """
    here = Path.cwd()
    if (here / "cluster" / "cli.py").is_file() and here.resolve() != tree.resolve():
        raise RecipeError(
            f"this command runs code from {tree}, but you stand in another copy, {here}; run that copy's own farsight, "
            "or stand elsewhere"
        )
    file = None if recipe is None else find_recipe(recipe).resolve()
    shipped_by_name = recipe is not None and find_recipe(recipe) != Path(recipe)
    from_source = is_source_tree(tree)
    needed = [] if file is None or shipped_by_name else _recipe_files(file)
    if working_dir is not None:
        folder = Path(working_dir).resolve()
    elif from_source and all(path.is_relative_to(tree) for path in needed):
        folder = tree
    elif needed:
        folder = needed[0].parent
    else:
        folder = None
    for path in needed:
        assert folder is not None  # a recipe's own folder at least
        if not path.is_relative_to(folder):
            raise RecipeError(
                f"{path}: lies outside {folder}, which is what the job takes along; say --working-dir DIR"
            )
    code = () if not from_source or folder == tree else tuple(tree / name for name in PACKAGES)
    return Shipment(folder, code, str(needed[0].relative_to(folder)) if needed and folder else recipe)


def _recipe_files(recipe: Path) -> list[Path]:
    """The recipe and what it extends."""
    parent = read_yaml(recipe).get("extends")
    return [recipe] if parent is None else [recipe, (recipe.parent / str(parent)).resolve()]


def check_shipment(shipment: Shipment, *, tree: Path = TREE) -> Load:
    """Refuse a job whose code or recipe would not arrive, or which Ray would not take.

    Raises:
        RecipeError: naming a file that Ray would leave out, or how large the directory is.
    """
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    files = num_bytes = 0
    for folder in [*([shipment.working_dir] if shipment.working_dir else []), *shipment.py_modules]:
        is_code = folder != shipment.working_dir
        found = shipped_files(folder, [CACHES] if is_code else default_excludes())
        needed = _sources(folder, "") if is_code else []
        if folder == tree:
            needed = [path for package in PACKAGES for path in _sources(tree, package)]
        if not is_code and shipment.recipe and (folder / shipment.recipe).is_file():
            needed.append(folder / shipment.recipe)
        _refuse_missing(folder, needed, found)
        size = sum(found.values())
        if size > GCS_STORAGE_MAX_SIZE:
            raise RecipeError(_too_large(folder, found, GCS_STORAGE_MAX_SIZE))
        files, num_bytes = files + len(found), num_bytes + size
    return Load(files, num_bytes)


def default_excludes() -> list[str]:
    """What Ray leaves out of every working directory."""
    from ray._private.ray_constants import get_runtime_env_default_excludes

    excludes: list[str] = get_runtime_env_default_excludes()
    return excludes


def shipped_files(folder: Path, excludes: Sequence[str]) -> dict[Path, int]:
    """The files of a directory that Ray would ship -> bytes, found by Ray's own walk."""
    from ray._private.runtime_env import packaging

    found: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            found[path] = path.stat().st_size

    respects_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    matches = [packaging._get_excludes(folder, list(excludes))]
    silent = logging.Logger("silent")  # of which ignore files were met
    packaging._dir_travel(folder, matches, take, include_gitignore=respects_gitignore, logger=silent)
    return found


def _sources(tree: Path, package: str) -> list[Path]:
    """The files of a package that a job needs: code and what is read at run time."""
    files = (tree / package).rglob("*")
    return [path for path in files if path.suffix in (".py", ".yaml") and CACHES not in path.parts]


def _refuse_missing(folder: Path, needed: Sequence[Path], found: dict[Path, int]) -> None:
    missing = [path for path in needed if path not in found]
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise RecipeError(
            f"{missing[0].relative_to(folder)}{more} would not reach the cluster: a .gitignore or .rayignore in "
            f"{folder} names them, and Ray leaves out what these name; take that line out, or make it begin with / if "
            "it means another folder"
        )


def _too_large(folder: Path, found: dict[Path, int], limit: int) -> str:
    """What to say of a directory that Ray would not take; its largest parts first."""
    parts: dict[str, int] = {}
    for path, num_bytes in found.items():
        name = path.relative_to(folder).parts[0]
        parts[name] = parts.get(name, 0) + num_bytes
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    named = ", ".join(f"{name} {num_bytes / MIB:,.0f} MiB" for name, num_bytes in largest)
    return (
        f"{folder}: {sum(found.values()) / MIB:,.0f} MiB would be shipped, and Ray takes {limit / MIB:,.0f} MiB; the "
        f"largest parts are {named}: name what the job does not need in a file .rayignore there"
    )
