"""Profiles: what a kind of cluster changes about a job; shipped in `cluster/profiles/`, or YAML files by their path."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.shipped_files import shipped_file, shipped_in
from data.errors import RecipeError
from data.settings import SECTIONS, Settings, read_yaml

FOLDER = Path(__file__).parent / "profiles"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Names of environment variables that hold what no file and no printed line should.
SECRET = re.compile(r"KEY$|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


class EntrypointSettings(Settings):
    """What Ray reserves for the process of the command itself, beside its workers; nothing: it runs on the head."""

    num_cpus: float = Field(0, ge=0, description="logical CPUs")
    num_gpus: float = Field(0, ge=0, description="GPUs")
    memory_gib: float = Field(0, ge=0, description="memory, GiB")
    resources: dict[str, float] = Field({}, description="custom resources of Ray: name -> amount")
    label_selector: dict[str, str] = Field({}, description="labels of the node it may run on: name -> value")


class Profile(Settings):
    """A kind of cluster."""

    description: str = Field("", description="what cluster this is for")
    storage: str | None = Field(
        None,
        description="directory that all nodes share, from which a job's relative paths start; `.` is where you stand, "
        "for a cluster on this machine; None: said with --storage",
    )
    recipe: dict[str, dict[str, Any]] = Field(
        {}, description="settings laid over the recipe's, section by section, as far as the command reads them"
    )
    env: dict[str, str] = Field({}, description="environment variables of the job and all its workers: name -> value")
    secrets: tuple[str, ...] = Field(
        (), description="names of environment variables whose values are taken from your shell and never shown"
    )
    entrypoint: EntrypointSettings = Field(EntrypointSettings(), description="reserved for the command itself")
    entrypoint_of: dict[str, EntrypointSettings] = Field({}, description="instead, for these commands: name -> amounts")

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        for name in secrets:
            if not VARIABLE.fullmatch(name):
                raise ValueError("expected names of environment variables, not values")
        return secrets

    @model_validator(mode="after")
    def _well_formed(self) -> "Profile":
        unknown = sorted(set(self.recipe) - set(SECTIONS))
        if unknown:
            raise ValueError(f"recipe: unknown section {unknown[0]!r}; a recipe has {', '.join(SECTIONS)}")
        for name in self.env:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"env: {name!r} is no name of an environment variable")
            if SECRET.search(name):
                raise ValueError(
                    f"env: {name} looks like a secret; list its name under secrets, and set it in your shell"
                )
        return self

    def overrides(self, sections: tuple[str, ...]) -> list[str]:
        """The settings of these sections as `a.b=c`."""
        chosen = {section: self.recipe[section] for section in sections if section in self.recipe}
        return [f"{name}={_text(value)}" for name, value in _leaves(chosen)]

    def with_own(self, secrets: Sequence[str], env: Mapping[str, str]) -> "Profile":
        """This profile with secrets and variables of the command line.

        Raises:
            RecipeError: a name is none, or a variable looks like a secret.
        """
        chosen = {**self.model_dump(), "secrets": (*self.secrets, *secrets), "env": {**self.env, **env}}
        return _validated(chosen, "command line")


def shipped_profiles() -> dict[str, Path]:
    """The profiles that come with Farsight: name -> file."""
    return shipped_in(FOLDER)


def read_profile(name: str) -> Profile:
    """A profile given as the name of a shipped one or as the path of a YAML file.

    Raises:
        RecipeError: no such profile, or a wrong setting, named by its path.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_file(name, FOLDER, "profile")
    return _validated(read_yaml(path), path)


def _validated(settings: Mapping[str, Any], place: str | Path) -> Profile:
    try:
        return Profile.model_validate(settings)
    except ValidationError as error:
        # Without what was found: it may be a secret in the wrong place.
        lines = [f"{place}: {'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise RecipeError("\n".join(lines)) from None


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    """A value as an override has it: plain where YAML reads it back as it was, as JSON otherwise."""
    try:
        plain = isinstance(value, str) and yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value)
