"""Settings of the simulator: section `simulate` of a recipe."""

import datetime

from pydantic import Field, model_validator

from data.settings import Settings

# Smallest part of the simulated time between a user's first and last event (see `simulator_time`).
MIN_ACTIVE_SHARE = 0.2
# Room reserved per event; within a session an event takes about a minute with the defaults.
MAX_SECONDS_PER_EVENT = 600
MIN_ITEMS_PER_LEAF = 8


class SimulateSettings(Settings):
    """What world is simulated and how much of it is logged; same settings, same bytes."""

    seed: int = Field(0, ge=0, description="seed of everything random")
    num_users: int = Field(4000, ge=1, description="users")
    num_items: int = Field(2000, ge=1, description="items born before the log ends")
    num_categories: int = Field(8, ge=1, le=1000, description="top-level categories of the tree")
    num_subcategories: int = Field(3, ge=1, le=1000, description="leaves under each top-level category")
    num_days: int = Field(90, ge=1, le=3650, description="length of the log, days")
    end_date: datetime.date = Field(
        datetime.date(2026, 1, 1), ge=datetime.date(2000, 1, 1), description="day the log ends before, 00:00 UTC"
    )

    events_per_user: float = Field(60.0, ge=10, description="mean events of a user")
    max_events_per_user: int = Field(400, ge=10, description="events at which the most active users are cut off")
    activity_exponent: float = Field(1.5, gt=1, description="Pareto exponent of events per user; lower = heavier tail")
    events_per_request: float = Field(4.0, ge=1, description="mean events of one request (a burst, seconds apart)")
    requests_per_session: float = Field(1.6, ge=1, description="mean requests of one session (minutes apart)")
    event_gap_seconds: float = Field(8.0, gt=0, le=60, description="mean seconds between events of one request")
    request_gap_seconds: float = Field(
        240.0, ge=60, le=600, description="mean seconds between requests of one session, 45 of them at least"
    )

    interests_per_user: int = Field(4, ge=1, le=64, description="leaves a user is interested in at a time")
    interest_drift: float = Field(0.4, ge=0, description="step of each interest's log-weight from session to session")
    interest_turnover: float = Field(
        0.1, ge=0, le=1, description="probability per session that one interest dies and another is born"
    )
    popularity_exponent: float = Field(0.9, ge=0, description="Zipf exponent of items within a leaf")
    leaf_exponent: float = Field(0.8, ge=0, description="Zipf exponent of the leaves")
    born_later_share: float = Field(0.3, ge=0, le=0.9, description="share of items born while the log runs")
    young_boost: float = Field(3.0, ge=0, description="extra popularity of an item on its first day, as a multiple")
    young_days: float = Field(7.0, gt=0, description="days in which the extra popularity falls to 1/e")

    repeat_probability: float = Field(0.06, ge=0, le=1, description="probability that an event repeats a recent item")
    explore_probability: float = Field(
        0.06, ge=0, le=1, description="probability that an event ignores the interests and follows popularity"
    )
    successor_probability: float = Field(
        0.75, ge=0, le=1, description="probability that an event of an interest continues from its last items"
    )

    num_shards: int = Field(8, ge=1, le=10_000, description="event shards, each of an equal span of time")
    oracle_users: int = Field(20_000, ge=0, description="users for whom the oracle's ranking is written")
    oracle_items: int = Field(200, ge=1, description="items of each oracle ranking that its user does not know")

    @property
    def num_leaves(self) -> int:
        """Leaves of the category tree."""
        return self.num_categories * self.num_subcategories

    @property
    def start_seconds(self) -> int:
        """First second of the log, UTC."""
        return self.end_seconds - self.num_days * 86_400

    @property
    def end_seconds(self) -> int:
        """Second after the log's last, UTC."""
        return (self.end_date - datetime.date(1970, 1, 1)).days * 86_400

    @model_validator(mode="after")
    def _fits_together(self) -> "SimulateSettings":
        if self.repeat_probability + self.explore_probability > 1:
            raise ValueError("repeat_probability + explore_probability is above 1; lower one of them")
        if self.num_items < MIN_ITEMS_PER_LEAF * self.num_leaves:
            raise ValueError(
                f"{self.num_items} items for {self.num_leaves} leaves; give at least {MIN_ITEMS_PER_LEAF} items "
                "per leaf, or fewer num_categories or num_subcategories"
            )
        if self.interests_per_user > self.num_leaves:
            raise ValueError(f"{self.interests_per_user} interests per user, but only {self.num_leaves} leaves")
        if self.events_per_user > self.max_events_per_user / 2:
            raise ValueError("events_per_user is above half of max_events_per_user; raise the latter")
        if self.max_events_per_user * MAX_SECONDS_PER_EVENT > self.num_days * 86_400 * MIN_ACTIVE_SHARE:
            raise ValueError(
                f"{self.max_events_per_user} events do not fit into the active time of a user in {self.num_days} "
                "days; lower max_events_per_user or raise num_days"
            )
        return self
