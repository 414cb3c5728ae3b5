"""Settings of a retriever with several objectives (CSMF): section `model.objectives`."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from pydantic import Field, model_validator

from data.settings import Settings


class ObjectivesSettings(Settings):
    """Objectives that are learnt one after the other, each in a block of its own of user and item vectors.

    An event of a later objective is one of every earlier objective too: who buys has clicked, and has seen.
    """

    names: tuple[str, ...] = Field(
        ("exposure", "click", "conversion"),
        min_length=1,
        description="objectives, in the order they are learnt in",
    )
    actions: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="objective -> actions of the log whose events are its own; those of later objectives count too, "
        "and a first objective that is not named has all events",
    )
    stage: str | None = Field(
        None,
        description="the objective that is trained, on top of the earlier ones, which stay as `train.start_from` has "
        "them; None: all at once, without stages (a shared bottom)",
    )
    widths: tuple[int, ...] | None = Field(
        None, description="coordinates of each objective's block; they add up to model.width; None: equal shares"
    )
    neurons: int = Field(128, ge=1, description="hidden neurons of the layer that the objectives share out (F)")
    experts: int = Field(
        1,
        ge=1,
        description="without stages: parts that the neurons are split into, which each objective mixes by a gate of "
        "its own (MMoE); 1: a shared bottom",
    )
    free_mass: float = Field(
        0.3, ge=0, lt=1, description="share of the neurons' absolute weights whose weakest holders are freed (tau)"
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="largest margin, in logits, of items that a user was shown without an event of the objective, in "
        "the losses after the first; 0: none. A stand-in for the paper's, whose formula is not published",
    )
    recover: bool = Field(
        False,
        description="accuracy recovery: free the weakest neurons of the stage that train.start_from has learnt last, "
        "and tune what is kept on that stage's own data",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="objective -> weight of its score where a request states none; by default 1 for the newest stage",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "ObjectivesSettings":
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names {list(self.names)}: an objective stands there twice")
        listed = ", ".join(self.names)
        for field, named in (("actions", [*self.actions]), ("stage", [self.stage] if self.stage else [])):
            for name in named:
                if name not in self.names:
                    raise ValueError(f"{field} names the objective {name!r}; there are {listed}")
        unnamed = [name for name in self.names[1:] if not self.actions.get(name)]
        if unnamed:
            raise ValueError(
                f"actions names no action of {', '.join(unnamed)}; only the first objective has all events"
            )
        if self.widths is not None and (len(self.widths) != len(self.names) or min(self.widths) < 1):
            raise ValueError(f"widths {list(self.widths)}: expected one number of at least 1 for each of {listed}")
        if self.experts > 1 and (self.stage is not None or self.neurons % self.experts):
            raise ValueError(
                f"experts {self.experts} split {self.neurons} neurons into equal parts where there are no stages; "
                "change one of them, or leave out stage"
            )
        if self.recover and self.stage is None:
            raise ValueError("recover tunes a stage; name it in stage")
        if self.weights and (problem := self.wrong_weights(self.weights)):
            raise ValueError(f"weights: {problem}")
        return self

    @property
    def learnt(self) -> tuple[str, ...]:
        """The objectives that a model with these settings has learnt, in order."""
        return self.names if self.stage is None else self.names[: self.names.index(self.stage) + 1]

    def blocks(self, width: int) -> tuple[int, ...]:
        """Coordinates of each block, the first ones the wider where D is not a multiple."""
        if self.widths is not None:
            return self.widths
        count = len(self.names)
        return tuple(width // count + (place < width % count) for place in range(count))

    def actions_of(self, name: str) -> tuple[str, ...] | None:
        """The actions whose events are of an objective; None for all events, whatever their action."""
        place = self.names.index(name)
        if not self.actions.get(name):
            return None
        return tuple(action for later in self.names[place:] for action in self.actions[later])

    def levels(self, actions: Sequence[str]) -> list[int]:
        """How many objectives an event of each action code is of, code 0 (no action) first."""
        first = 0 if self.actions.get(self.names[0]) else 1
        reached = {action: place + 1 for place, name in enumerate(self.names) for action in self.actions.get(name, ())}
        return [first, *(max(first, reached.get(action, 0)) for action in actions)]

    def wrong_weights(self, weights: Mapping[str, float]) -> str | None:
        """What is wrong with the weights of a request; None if nothing is."""
        unknown = sorted(set(weights) - set(self.learnt))
        if unknown:
            shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            return f"found {shown}, expected some of {', '.join(self.learnt)}, which the model has learnt"
        wrong = [
            f"{name}={weight:g}" for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)
        ]
        if wrong:
            return f"found {', '.join(wrong)}, expected finite numbers that are not negative"
        return None if any(weights.values()) else "found no weight above 0, expected at least one"

    def scales(self, width: int, weights: Mapping[str, float] | None = None) -> list[float]:
        """What each of D coordinates of a query is multiplied by, so that its score is the weighted sum of the stages'.

        A block counts in the score of its own stage and of all later ones, so its factor is the sum of their weights.

        Args:
            weights: of objectives; one that is not named has 0. None for the default weights.
        """
        stated = weights or self.weights or {self.learnt[-1]: 1.0}
        by_stage = [stated.get(name, 0.0) for name in self.names]
        factors = list(accumulate(reversed(by_stage)))[::-1]
        return [factor for factor, own in zip(factors, self.blocks(width), strict=True) for _ in range(own)]
