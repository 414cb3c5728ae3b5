"""A farsight command as a job on a Ray cluster: what is handed in, and the `ray job submit` line that does the same."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.jobs import ADDRESS_VARIABLES
from cluster.profiles import EntrypointSettings, Profile
from cluster.recipe_files import read_recipe, split_words
from cluster.shipping import CACHES, Shipment
from data.errors import RecipeError
from data.settings import Recipe, read_section

# The sections of a recipe that each command reads, and what they are checked with before anything is shipped.
TRAINING = {
    "train": "trainer.settings:TrainSettings",
    "model": "modeling.settings:ModelSettings",
    "evaluate": "trainer.settings:EvaluateSettings",
    "tracking": "data.tracking.settings:TrackingSettings",
}
TRACKING = {"tracking": "data.tracking.settings:TrackingSettings"}
SECTIONS_OF = {
    "simulate": {"simulate": "data.simulate_settings:SimulateSettings"},
    "ingest": {"ingest": "data.ingest_settings:IngestSettings", **TRACKING},
    "train": TRAINING,
    "evaluate": {"evaluate": "trainer.settings:EvaluateSettings", **TRACKING},
    "index": {"index": "serve.index.settings:IndexSettings", **TRACKING},
    "serve": {"serve": "serve.settings:ServeSettings"},
    "deploy": {"serve": "serve.settings:ServeSettings"},
    "predict": {"predict": "serve.predict_settings:PredictSettings"},
    "seed-histories": {"serve": "serve.settings:ServeSettings"},
    # A night completes the section `train` for each day, and so checks it itself.
    "pipeline": {"pipeline": "cluster.pipeline.settings:PipelineSettings", "train": "", **TRACKING},
}
# What starts the command there: the shipped tree comes first on the path, an installed wheel otherwise.
PROGRAM = ("python", "-m", "cluster.cli")
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """One job, as it is both printed and handed in."""

    address: str
    entrypoint: tuple[str, ...]
    shipment: Shipment
    env: Mapping[str, str]
    secrets: tuple[str, ...]
    reserved: EntrypointSettings
    submission_id: str | None = None

    def request(self, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """The arguments of Ray's `submit_job`, secrets filled in.

        Raises:
            RecipeError: a secret is not set, or cannot stand in the printed line's JSON.
        """
        reserved = self._reserved()
        working_dir = self.shipment.working_dir
        place = {} if working_dir is None else {"working_dir": str(working_dir)}
        return {
            "entrypoint": shlex.join(self.entrypoint),
            "runtime_env": {
                **self._runtime_env({name: _secret(name, environment) for name in self.secrets}),
                **place,
            },
            "submission_id": self.submission_id,
            **reserved,
        }

    def line(self, environment: Mapping[str, str] = os.environ) -> str:
        """The same as a shell line, with secrets by name: the shell puts their values in."""
        words: list[str] = []
        overruling = [name for name in ADDRESS_VARIABLES if environment.get(name, self.address) != self.address]
        if overruling:
            words.append("env " + " ".join(f"-u {name}" for name in overruling))
        words += ["ray job submit", f"--address {shlex.quote(self.address)}"]
        if self.submission_id:
            words.append(f"--submission-id {shlex.quote(self.submission_id)}")
        if self.shipment.working_dir is not None:
            words.append(f"--working-dir {shlex.quote(str(self.shipment.working_dir))}")
        runtime_env = self._runtime_env({name: f"<{name}>" for name in self.secrets})
        if runtime_env:
            text = shlex.quote(json.dumps(runtime_env))
            for name in self.secrets:
                text = text.replace(f'"<{name}>"', f'"\'"${name}"\'"')
            words.append(f"--runtime-env-json {text}")
        for name, value in self._reserved().items():
            text = (
                json.dumps(value)
                if isinstance(value, dict)
                else f"{value:g}"
                if isinstance(value, float)
                else str(value)
            )
            words.append(f"--{name.replace('_', '-')} {shlex.quote(text)}")
        return " \\\n    ".join([*words, f"-- {shlex.join(self.entrypoint)}"])

    def _runtime_env(self, secrets: Mapping[str, str]) -> dict[str, Any]:
        variables = {**self.env, **secrets}
        modules = [str(module) for module in self.shipment.py_modules]
        return {
            **({"env_vars": variables} if variables else {}),
            **({"py_modules": modules, "excludes": [CACHES]} if modules else {}),
        }

    def _reserved(self) -> dict[str, Any]:
        reserved = self.reserved
        amounts = {
            "entrypoint_num_cpus": reserved.num_cpus,
            "entrypoint_num_gpus": reserved.num_gpus,
            "entrypoint_memory": int(reserved.memory_gib * GIB),
            "entrypoint_resources": reserved.resources,
            "entrypoint_label_selector": reserved.label_selector,
        }
        return {name: amount for name, amount in amounts.items() if amount}


def command_words(
    command: Sequence[str], words: Sequence[str], shipment: Shipment, profile: Profile, storage: str
) -> tuple[str, ...]:
    """The command as it runs on the cluster; settings of the command line overrule those of the profile.

    Raises:
        RecipeError: the recipe does not hold, as far as can be told here.
    """
    name, own = split_words(words)
    sections = SECTIONS_OF.get(command[0], {})
    settings = [*profile.overrides(tuple(sections)), *own] if name is not None or sections else own
    recipe = read_recipe(name, settings)
    for section, kind in sections.items():
        if kind:
            _check(recipe, section, kind, required=command[0] == section)
    recipe_word = [] if shipment.recipe is None else [shipment.recipe]
    return (*PROGRAM, "--storage", storage, *command, *recipe_word, *settings)


def storage_of(profile: Profile, stated: str | None) -> str:
    """The directory that the job's relative paths start from, absolute.

    Raises:
        RecipeError: neither the profile nor the command line names one.
    """
    if stated is None and profile.storage is None:
        raise RecipeError(
            "--storage is missing: name a directory that all nodes of the cluster share, from which the recipe's "
            "relative paths start; a job's own working directory is removed with it (a profile can name it as storage)"
        )
    found = stated or profile.storage or ""
    # A relative one can only mean this machine; the rest is the cluster's.
    return str(Path(found).expanduser().absolute()) if "://" not in found else found


def _check(recipe: Recipe, section: str, kind: str, *, required: bool) -> None:
    if section not in recipe and not required:
        return
    module, _, name = kind.partition(":")
    read_section(recipe, section, getattr(import_module(module), name))


def _secret(name: str, environment: Mapping[str, str]) -> str:
    value = environment.get(name)
    if not value:
        raise RecipeError(f"the secret {name} is not set here; export it, or leave it out and give it to the nodes")
    if json.dumps(value) != f'"{value}"':
        raise RecipeError(
            f"the secret {name} holds a quote, a backslash or a character that is not ASCII; set it on the nodes"
        )
    return value
