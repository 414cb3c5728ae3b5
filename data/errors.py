"""The errors that input from outside can cause, and the exit code of each.

    FarsightError                 1
    ├── RecipeError               2   settings, overrides, recipe files
    ├── LogError                  3   log shards, catalogues, public data sets
    │   └── UnreadableFile        3   one log file is damaged, or not what its name says
    ├── DatasetError              3   prepared datasets
    ├── ArtifactError             4   artifacts, indexes and releases
    │   └── ArtifactMismatch      4   two pieces that do not belong together
    ├── TrainingError             5   a run that cannot go on
    │   └── NonFiniteLoss         5
    ├── MachineError              6   too few resources, missing packages, unwritable storage
    │   └── ClusterError          6   a Ray cluster refused, or did not answer
    ├── EndpointError             7   a running endpoint refused or did not answer
    └── HeldBack                  8   the pipeline's verdict: a new release does not follow the one in use

Each message says what was found, what was expected and what to do. The command line prints the
message alone and exits with `exit_code`; a traceback means a defect of ours.
"""

from typing import ClassVar


class FarsightError(Exception):
    """Base of every error that input from outside can cause."""

    exit_code: ClassVar[int] = 1


class RecipeError(FarsightError):
    """A recipe file, an override or a setting is wrong."""

    exit_code: ClassVar[int] = 2


class LogError(FarsightError):
    """A log shard, a catalogue or a public data set cannot be read as stated."""

    exit_code: ClassVar[int] = 3


class UnreadableFile(LogError):
    """A log file is damaged, or of another format than stated."""


class DatasetError(FarsightError):
    """A prepared dataset is missing, unfinished or lacks what is asked of it."""

    exit_code: ClassVar[int] = 3


class ArtifactError(FarsightError):
    """An artifact, index or release is missing, unfinished or damaged."""

    exit_code: ClassVar[int] = 4


class ArtifactMismatch(ArtifactError):
    """Two pieces were put together that were not built from the same weights or vocabulary."""


class TrainingError(FarsightError):
    """A training run cannot start or go on."""

    exit_code: ClassVar[int] = 5


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite on some rank."""


class MachineError(FarsightError):
    """The machine or cluster lacks what the command needs."""

    exit_code: ClassVar[int] = 6


class ClusterError(MachineError):
    """A Ray cluster refused what was asked of it, or did not answer."""


class EndpointError(FarsightError):
    """A running endpoint refused the request or did not answer."""

    exit_code: ClassVar[int] = 7


class HeldBack(FarsightError):
    """The pipeline held a day back: everything worked, and the verdict is no."""

    exit_code: ClassVar[int] = 8
