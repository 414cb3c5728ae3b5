"""What a benchmark suite is: data sets, models and seeds in one YAML file."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from cluster.shipped_files import shipped_file, shipped_in
from data.errors import DatasetError, RecipeError
from data.settings import Settings, merged, read_yaml

FOLDER = Path(__file__).parent / "suites"

Sections = dict[str, Any]


class DataSettings(Settings):
    """One prepared dataset of a suite: where its log comes from, and how it is cut."""

    title: str = Field(description="name in reports")
    source: Sections | None = Field(
        None, description="arguments of `farsight import`; files are inside the folder that FARSIGHT_DATA names"
    )
    simulate: Sections | None = Field(None, description="`simulate` section of a recipe, instead of a source")
    ingest: Sections = Field(default_factory=dict, description="`ingest` section of a recipe, without its places")
    model: Sections = Field(default_factory=dict, description="`model` section, laid over the suite's")
    train: Sections = Field(default_factory=dict, description="`train` section, laid over the suite's")
    notes: list[str] = Field([], description="what a reader of its tables must know")

    @model_validator(mode="after")
    def _one_origin(self) -> "DataSettings":
        if (self.source is None) == (self.simulate is None):
            raise ValueError("expected either source or simulate")
        return self


class ModelSettings(Settings):
    """One row of a suite's tables: a retriever's settings, or a baseline."""

    title: str = Field(description="name in reports")
    baseline: Sections | None = Field(None, description="one of `evaluate.baselines`; no training then")
    model: Sections = Field(default_factory=dict, description="`model` section, laid over the data set's")
    train: Sections = Field(default_factory=dict, description="`train` section, laid over the data set's")
    begins_with: str | None = Field(
        None,
        description="an earlier row, whose artifact of the same data set and seed training begins with",
    )
    data: list[str] | None = Field(None, description="data sets that have this row; all by default")
    seeds: list[int] | None = Field(None, description="seeds of this row; the suite's by default")
    published: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="data set -> metric -> the figure that was published"
    )


class SuiteSettings(Settings):
    """A suite file."""

    title: str = Field(description="title of the report")
    notes: list[str] = Field([], description="what a reader of all tables must know")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="seeds of every trained row")
    data: dict[str, DataSettings] = Field(min_length=1, description="data sets by name")
    protocols: dict[str, Sections] = Field(
        {"test": {}},
        min_length=1,
        description="`evaluate` sections by name; the first is the one that models are compared by, and validated by",
    )
    model: Sections = Field(default_factory=dict, description="`model` section that all rows start from")
    train: Sections = Field(default_factory=dict, description="`train` section that all rows start from")
    tracking: Sections = Field(default_factory=dict, description="`tracking` section of all rows")
    models: dict[str, ModelSettings] = Field(min_length=1, description="rows by name, in the order of the tables")
    compare: list[tuple[str, str]] = Field([], description="pairs of rows: is the first better than the second?")
    compare_under: list[str] = Field(
        [], description="protocols that pairs are compared under, one by one; the first of `protocols` by default"
    )
    compare_by: list[str] = Field(["ndcg@10"], min_length=1, description="the metrics that pairs are compared by")

    @model_validator(mode="after")
    def _names_exist(self) -> "SuiteSettings":
        for name, row in self.models.items():
            for data in [*(row.data or []), *row.published]:
                if data not in self.data:
                    raise ValueError(f"models.{name} names the data set {data!r}; there are {', '.join(self.data)}")
            earlier = list(self.models)[: list(self.models).index(name)]
            if row.begins_with is not None and row.begins_with not in earlier:
                raise ValueError(
                    f"models.{name} begins with the row {row.begins_with!r}; before it stand {', '.join(earlier)}"
                )
        for protocol in self.compare_under:
            if protocol not in self.protocols:
                raise ValueError(f"compare_under names {protocol!r}; there are {', '.join(self.protocols)}")
        for model in (model for pair in self.compare for model in pair):
            if model not in self.models:
                raise ValueError(f"compare names the row {model!r}; there are {', '.join(self.models)}")
        return self


def row_recipe(suite: SuiteSettings, data: str, model: str) -> Sections:
    """The recipe of a trained row: the suite's sections, the data set's over them, the row's over those."""
    sections: Sections = {}
    for layer in (suite, suite.data[data], suite.models[model]):
        sections = merged(sections, {"model": layer.model, "train": layer.train})
    validated = next(iter(suite.protocols.values()))
    others = {"evaluate": validated, "tracking": suite.tracking}
    return sections | {name: section for name, section in others.items() if section}


def published_folder(name: str) -> Path:
    """The folder with the published files of a data set, which FARSIGHT_DATA names.

    Raises:
        DatasetError: FARSIGHT_DATA is not set.
    """
    folder = os.environ.get("FARSIGHT_DATA")
    if not folder:
        raise DatasetError(f"FARSIGHT_DATA is not set; set it to the folder that holds the published files of {name}")
    return Path(folder)


def import_arguments(name: str, source: Sections) -> Sections:
    """A data set's `source` with its files in the folder that FARSIGHT_DATA names: arguments of `farsight import`.

    Raises:
        DatasetError: FARSIGHT_DATA is not set.
    """
    folder = published_folder(name)
    files = [key for key in ("source", "catalogue") if key in source]
    return source | {key: str(folder / source[key]) for key in files}


def shipped_suites() -> dict[str, Path]:
    """The suites that come with Farsight: name -> file."""
    return shipped_in(FOLDER)


def load_suite(name: str) -> SuiteSettings:
    """Read a suite given as the name of a shipped one or as a path.

    Raises:
        RecipeError: no such suite, or a wrong setting, named by its path.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_file(name, FOLDER, "suite")
    try:
        return SuiteSettings.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise RecipeError("\n".join(lines)) from None
