"""The simulator: the stated process is what the log shows, and the oracle's distribution is exact."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from data.errors import FarsightError, LogError, RecipeError
from data.schema import LOG_SCHEMA
from data.settings import read_section
from data.simulate import ORACLE_SCHEMA, run
from data.simulate_settings import SimulateSettings
from data.simulator import NUM_ATTEMPTS, UNKNOWN, SimulatedEvents, simulate_users
from data.simulator_oracle import next_event_probabilities, oracle_rankings
from data.simulator_random import normals, uniforms
from data.simulator_world import FloatArray, IntArray, World, build_world, catalogue_table
from data.storage import read_manifest

SMALL = SimulateSettings(num_users=800, num_items=960, num_days=60, events_per_user=40, max_events_per_user=150)
SMALL_RECIPE = {
    "simulate": {
        "num_users": 60, "num_items": 240, "num_days": 40, "events_per_user": 20, "max_events_per_user": 60,
        "num_shards": 4, "oracle_users": 50, "oracle_items": 30,
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SMALL)


@pytest.fixture(scope="module")
def simulated(world: World) -> SimulatedEvents:
    return simulate_users(world, np.arange(SMALL.num_users), num_watched=5)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("simulate") / "log"
    run(SMALL_RECIPE, str(directory))
    return directory


def read_events(log: Path) -> pl.DataFrame:
    return pl.read_parquet(log / "events" / "part-*.parquet")


def event_users(simulated: SimulatedEvents) -> IntArray:
    timeline = simulated.timeline
    return np.repeat(timeline.users_U, np.diff(timeline.offsets_U1))


def ndcg_at_10(scores_UV: FloatArray, targets_U: IntArray, known_UV: np.ndarray) -> float:
    """Full-catalogue NDCG@10 with known items removed; a known target is a miss, ties take their middle rank."""
    rows = np.arange(len(targets_U))
    scores_UV = np.where(known_UV, -np.inf, scores_UV)
    target_U = scores_UV[rows, targets_U]
    above_U = (scores_UV > target_U[:, None]).sum(1) + ((scores_UV == target_U[:, None]).sum(1) - 1) / 2
    gain_U = np.where((above_U < 10) & ~known_UV[rows, targets_U], 1 / np.log2(above_U + 2), 0)
    return float(gain_U.mean())


# -- the oracle


def test_the_oracles_probabilities_sum_to_one(world: World, simulated: SimulatedEvents) -> None:
    probability_MV = next_event_probabilities(world, simulated.moments.take(slice(0, 500)))
    assert (probability_MV >= 0).all()
    # Cumulative popularity of day t is stored as t + share, so shares are exact to about t * 2e-16.
    np.testing.assert_allclose(probability_MV.sum(axis=1), 1, atol=1e-12)


def test_the_oracles_probabilities_are_the_frequencies_of_what_happens(
    world: World, simulated: SimulatedEvents
) -> None:
    probability_MV = next_event_probabilities(world, simulated.moments)
    order_MV = np.argsort(-probability_MV, axis=1)
    sorted_MV = np.take_along_axis(probability_MV, order_MV, axis=1)
    happened_MV = order_MV == simulated.watched_items_M[:, None]
    for ranks in (slice(0, 1), slice(1, 3), slice(3, 10), slice(10, 30), slice(30, None)):
        stated_M = sorted_MV[:, ranks].sum(axis=1)
        spread = np.sqrt((stated_M * (1 - stated_M)).sum()) / len(stated_M)
        assert abs(happened_MV[:, ranks].any(axis=1).mean() - stated_M.mean()) < 4 * spread  # 4 standard errors


def test_the_oracles_likelihood_is_its_entropy(world: World, simulated: SimulatedEvents) -> None:
    probability_MV = next_event_probabilities(world, simulated.moments)
    log_MV = np.log(np.maximum(probability_MV, 1e-300))
    likelihood_M = log_MV[np.arange(len(log_MV)), simulated.watched_items_M]
    expected_M = (probability_MV * log_MV).sum(axis=1)
    tolerance = 4 * likelihood_M.std() / np.sqrt(len(likelihood_M))
    assert abs(likelihood_M.mean() - expected_M.mean()) < tolerance


def test_the_oracle_beats_a_markov_chain_which_beats_popularity(world: World, simulated: SimulatedEvents) -> None:
    num_items = SMALL.num_items
    offsets, items_E = simulated.timeline.offsets_U1, simulated.items_E
    last_U = offsets[1:] - 1
    users_E = event_users(simulated)
    past_E = np.ones(len(items_E), np.bool_)
    past_E[last_U] = False
    known_UV = np.zeros((SMALL.num_users, num_items), np.bool_)
    known_UV[users_E[past_E], items_E[past_E]] = True
    popularity_V = np.bincount(items_E[past_E], minlength=num_items)
    pairs = np.flatnonzero(past_E[:-1] & past_E[1:] & (users_E[:-1] == users_E[1:]))
    follows_VV = np.zeros((num_items, num_items))
    np.add.at(follows_VV, (items_E[pairs], items_E[pairs + 1]), 1)

    rows = np.flatnonzero(simulated.watched_M == 0)
    rows = rows[np.argsort(simulated.moments.users_B[rows])]
    oracle_UV = next_event_probabilities(world, simulated.moments.take(rows))
    targets_U = items_E[last_U]
    np.testing.assert_array_equal(simulated.watched_items_M[rows], targets_U)
    np.testing.assert_array_equal(simulated.moments.known_BV[rows], known_UV)

    popularity = ndcg_at_10(np.tile(popularity_V, (SMALL.num_users, 1)), targets_U, known_UV)
    markov = ndcg_at_10(follows_VV[items_E[last_U - 1]] + 1e-9 * popularity_V, targets_U, known_UV)
    oracle = ndcg_at_10(oracle_UV, targets_U, known_UV)
    assert markov > 3 * popularity
    assert oracle > 1.2 * markov


def test_a_ranking_lists_the_likeliest_and_enough_unknown_items(world: World, simulated: SimulatedEvents) -> None:
    moments = simulated.moments.take(slice(0, 40))
    items, offsets = oracle_rankings(world, moments, num_items=50, cells_per_block=7 * SMALL.num_items)
    probability_BV = next_event_probabilities(world, moments)
    for row in range(len(moments)):
        ranking = items[offsets[row] : offsets[row + 1]]
        np.testing.assert_array_equal(ranking, np.argsort(-probability_BV[row], kind="stable")[: len(ranking)])
        assert (~moments.known_BV[row, ranking]).sum() == 50


# -- the process


def test_a_user_does_not_depend_on_the_users_simulated_beside_them(world: World, simulated: SimulatedEvents) -> None:
    some = simulate_users(world, np.array([700, 3, 41]))
    offsets = simulated.timeline.offsets_U1
    for position, user in enumerate((700, 3, 41)):
        alone = slice(some.timeline.offsets_U1[position], some.timeline.offsets_U1[position + 1])
        beside = slice(offsets[user], offsets[user + 1])
        np.testing.assert_array_equal(some.items_E[alone], simulated.items_E[beside])
        np.testing.assert_array_equal(some.actions_E[alone], simulated.actions_E[beside])
        np.testing.assert_array_equal(some.timeline.times_E[alone], simulated.timeline.times_E[beside])
    assert len(some.moments) == 0


def test_no_item_is_consumed_before_its_birth_and_many_are_born_later(world: World, simulated: SimulatedEvents) -> None:
    births_V = SMALL.start_seconds + world.birth_days_V * 86_400
    assert (simulated.timeline.times_E >= births_V[simulated.items_E]).all()
    later_V = world.birth_days_V > 0
    assert 0.2 < later_V.mean() < 0.4
    assert later_V[simulated.items_E].any()


def test_an_item_draws_more_attention_when_young(world: World) -> None:
    item = int(np.flatnonzero((world.birth_days_V > 5) & (world.birth_days_V < 30))[0])
    popularity_TV = world.popularity_TV(np.arange(SMALL.num_days))
    born = int(world.birth_days_V[item])
    assert popularity_TV[born - 1, item] == 0
    assert popularity_TV[born, item] > 1.5 * popularity_TV[-1, item]


def test_the_lengths_of_histories_and_the_times_are_as_stated(simulated: SimulatedEvents) -> None:
    counts_U = np.diff(simulated.timeline.offsets_U1)
    assert counts_U.max() <= SMALL.max_events_per_user
    assert counts_U.max() > 3 * np.median(counts_U)
    assert counts_U.mean() == pytest.approx(SMALL.events_per_user, rel=0.1)  # 800 draws of spread 30
    times_E = simulated.timeline.times_E
    assert times_E.min() >= SMALL.start_seconds
    assert times_E.max() < SMALL.end_seconds
    same_user_E = np.diff(event_users(simulated)) == 0
    assert (np.diff(times_E)[same_user_E] >= 0).all()


def test_events_of_a_request_are_seconds_apart_and_sessions_hours(simulated: SimulatedEvents) -> None:
    timeline = simulated.timeline
    same_user = np.flatnonzero(np.diff(event_users(simulated)) == 0)
    gaps = np.diff(timeline.times_E)[same_user]
    opens_request = timeline.opens_request_E[1:][same_user]
    opens_session = timeline.opens_session_E[1:][same_user]
    assert np.median(gaps[~opens_request]) < 10
    assert gaps[~opens_request].mean() < 10
    assert gaps[opens_request & ~opens_session].min() >= 45
    assert np.median(gaps[opens_session]) > 3600
    # 1 / events_per_request, to 4 standard errors of about 31 000 events.
    assert opens_request.mean() == pytest.approx(1 / SMALL.events_per_request, abs=0.01)


def test_a_request_keeps_mostly_to_one_leaf(world: World, simulated: SimulatedEvents) -> None:
    inside = np.flatnonzero(~simulated.timeline.opens_request_E)
    leaf_E = world.leaf_V[simulated.items_E]
    within = (leaf_E[inside] == leaf_E[inside - 1]).mean()
    opening = np.flatnonzero(simulated.timeline.opens_session_E[1:]) + 1
    across = (leaf_E[opening] == leaf_E[opening - 1]).mean()
    assert within > 0.7
    assert across < within - 0.2


def test_interests_drift_over_a_users_life(world: World, simulated: SimulatedEvents) -> None:
    """Two halves of a history share fewer leaves than odd and even events of it do."""
    offsets = simulated.timeline.offsets_U1
    leaf_E = world.leaf_V[simulated.items_E]
    busy = np.flatnonzero(np.diff(offsets) >= 80)
    assert len(busy) > 20

    def overlap(one: IntArray, other: IntArray) -> float:
        shares = [np.bincount(part, minlength=SMALL.num_leaves) / len(part) for part in (one, other)]
        return float(np.minimum(*shares).sum())

    histories = [leaf_E[offsets[user] : offsets[user + 1]] for user in busy]
    halves = np.mean([overlap(h[: len(h) // 2], h[len(h) // 2 :]) for h in histories])
    interleaved = np.mean([overlap(h[::2], h[1::2]) for h in histories])
    assert halves < interleaved - 0.1


def test_repeats_occur_and_stay_moderate(simulated: SimulatedEvents) -> None:
    pairs = event_users(simulated) * SMALL.num_items + simulated.items_E
    repeated = 1 - len(np.unique(pairs)) / len(pairs)
    assert SMALL.repeat_probability * 0.9 < repeated < 0.2


def test_without_repeats_and_with_room_an_item_is_hardly_consumed_twice() -> None:
    settings = SMALL.model_copy(update={"repeat_probability": 0.0, "num_items": 4800, "num_users": 100})
    assert NUM_ATTEMPTS > 1
    simulated = simulate_users(build_world(settings), np.arange(100))
    pairs = event_users(simulated) * settings.num_items + simulated.items_E
    assert 1 - len(np.unique(pairs)) / len(pairs) < 0.01


def test_popularity_within_a_leaf_follows_the_stated_slope(world: World) -> None:
    popularity_V = world.popularity_TV(np.array([0]))[0]
    old = world.birth_days_V < -60  # their youth has passed
    leaf = slice(*world.leaf_starts_L1[:2])
    shares = np.sort(popularity_V[leaf][old[leaf]])[::-1]
    slope = np.polyfit(np.log(np.arange(1, len(shares) + 1)), np.log(shares), 1)[0]
    # The old are a random subset of the ranks, which makes the slope of their own ranks vary.
    assert -slope == pytest.approx(SMALL.popularity_exponent, abs=0.35)


def test_consumption_is_concentrated_on_few_items(simulated: SimulatedEvents) -> None:
    counts_V = np.sort(np.bincount(simulated.items_E, minlength=SMALL.num_items))[::-1]
    top_tenth = counts_V[: SMALL.num_items // 10].sum() / counts_V.sum()
    assert 0.2 < top_tenth < 0.8


def test_successors_are_three_other_items_of_the_same_leaf(world: World) -> None:
    rows_V = np.arange(SMALL.num_items)
    assert (world.leaf_V[world.successors_VS] == world.leaf_V[:, None]).all()
    assert (world.successors_VS != rows_V[:, None]).all()
    assert all(len(set(row)) == 3 for row in world.successors_VS.tolist())


def test_the_first_event_has_no_past_to_repeat(world: World) -> None:
    first = simulate_users(world, np.arange(50), num_watched=SMALL.max_events_per_user)
    opening = first.moments.recent_BR[:, 0] == UNKNOWN
    assert opening.sum() == 50
    assert (first.moments.focus_B[opening] == UNKNOWN).all()
    moments = first.moments.take(np.flatnonzero(opening))
    np.testing.assert_allclose(next_event_probabilities(world, moments).sum(axis=1), 1, atol=1e-12)


def test_counter_random_numbers_are_uniform_normal_and_addressable() -> None:
    drawn = uniforms(7, 3, np.arange(200)[:, None], np.arange(500))
    assert drawn.shape == (200, 500)
    np.testing.assert_array_equal(drawn[17, 20:30], uniforms(7, 3, np.array([17]), np.arange(20, 30)))
    # 100 000 draws: standard errors 0.0009 (mean) and 0.0003 (variance).
    assert drawn.mean() == pytest.approx(0.5, abs=0.004)
    assert drawn.var() == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.015
    assert (drawn != uniforms(8, 3, np.arange(200)[:, None], np.arange(500))).mean() > 0.99
    normal = normals(7, 3, np.arange(100_000))
    assert normal.mean() == pytest.approx(0, abs=0.015)
    assert normal.std() == pytest.approx(1, abs=0.01)


# -- the log directory


def test_the_log_is_in_the_log_form_and_counts_agree(log: Path) -> None:
    manifest = read_manifest(log, "log", 1, LogError)
    events = read_events(log)
    shards = sorted((log / "events").iterdir())
    assert [pq.read_schema(shard) for shard in shards] == [LOG_SCHEMA] * len(shards)
    assert manifest["counts"] == {
        "users": 60,
        "items": 240,
        "events": len(events),
        "requests": events["request_id"].n_unique(),
        "shards": len(shards),
    }
    assert events["user_id"].n_unique() == 60
    assert events["user_id"].min() == "u000000"
    assert set(events["action"].unique()) == {"click", "like", "buy"}
    assert sorted(path.name for path in log.iterdir()) == [
        "catalogue.parquet", "events", "manifest.json", "oracle.parquet",
    ]  # fmt: skip


def test_shards_follow_each_other_in_time_with_users_interleaved(log: Path) -> None:
    events = read_events(log)
    assert events["timestamp"].is_sorted()
    assert (events["user_id"] != events["user_id"].shift(1)).mean() > 0.2
    steps = events.sort("user_id", "order").group_by("user_id").agg(pl.col("timestamp").diff().min())
    assert steps["timestamp"].to_numpy().min() >= 0


def test_a_request_belongs_to_one_user_and_a_few_minutes(log: Path) -> None:
    requests = (
        read_events(log)
        .group_by("request_id")
        .agg(
            users=pl.col("user_id").n_unique(),
            seconds=pl.col("timestamp").max() - pl.col("timestamp").min(),
            gap=pl.col("order").max() - pl.col("order").min() + 1 - pl.len(),
        )
    )
    assert requests["users"].max() == 1
    assert requests["seconds"].max() < 1800
    assert requests["gap"].max() == 0  # its events stand together in the user's history


def test_the_catalogue_holds_every_item_with_its_path_in_the_tree(log: Path) -> None:
    catalogue = pl.read_parquet(log / "catalogue.parquet")
    assert catalogue["item_id"].to_list() == [f"i{number:05d}" for number in range(240)]
    assert set(read_events(log)["item_id"]) <= set(catalogue["item_id"])
    for path in catalogue["categories"].to_list():
        assert len(path) == 2
        assert path[1].startswith(path[0] + "/")
    assert catalogue["categories"].list.first().n_unique() == 8
    assert catalogue["categories"].list.last().n_unique() == 24
    assert catalogue["price"].is_between(5, 80).all()


def test_trees_wider_than_the_names_at_hand_get_numbered_names() -> None:
    settings = SMALL.model_copy(update={"num_categories": 12, "num_subcategories": 10, "num_items": 960})
    categories = catalogue_table(build_world(settings)).column("categories").to_pylist()
    assert len({path[1] for path in categories}) == 120
    assert ["topic-12", "topic-12/part-10"] in categories


def test_the_oracle_file_ranks_both_splits_of_the_first_users(log: Path) -> None:
    oracle = pq.read_table(log / "oracle.parquet")
    assert oracle.schema == ORACLE_SCHEMA
    rows = oracle.to_pylist()
    assert [(row["user_id"], row["split"]) for row in rows] == [
        (f"u{user:06d}", split) for user in range(50) for split in ("validation", "test")
    ]
    histories = read_events(log).sort("user_id", "order").group_by("user_id", maintain_order=True).agg("item_id")
    items = dict(zip(histories["user_id"], histories["item_id"].to_list(), strict=True))
    hits = 0
    for row in rows:
        place = {"test": -1, "validation": -2}[row["split"]]
        seen = set(items[row["user_id"]][:place])
        unseen = [item for item in row["item_ids"] if item not in seen]
        assert len(unseen) == 30
        assert len(set(row["item_ids"])) == len(row["item_ids"])
        hits += items[row["user_id"]][place] in unseen[:10]
    assert hits / len(rows) > 0.3


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(log: Path, tmp_path: Path) -> None:
    run(SMALL_RECIPE, tmp_path / "again")
    first, again = ((root / "manifest.json").read_bytes() for root in (log, tmp_path / "again"))
    assert first == again  # it holds the hash of every file
    assert len(json.loads(first)["hashes"]) == 4 + 2
    other = {"simulate": {**SMALL_RECIPE["simulate"], "seed": 1, "oracle_users": 0}}
    run(other, tmp_path / "other")
    assert not read_events(log).equals(read_events(tmp_path / "other"))
    assert pq.read_table(tmp_path / "other" / "oracle.parquet").num_rows == 0


def test_an_existing_directory_is_refused(log: Path) -> None:
    with pytest.raises(FarsightError, match="already exists"):
        run(SMALL_RECIPE, log)


def test_a_wrong_setting_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"simulate\.num_user: Extra inputs are not permitted"):
        run({"simulate": {"num_user": 3}}, tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_items": 100}, "100 items for 24 leaves; give at least 8 items per leaf"),
        ({"interests_per_user": 30}, "30 interests per user, but only 24 leaves"),
        ({"events_per_user": 300}, "events_per_user is above half of max_events_per_user"),
        ({"num_days": 1}, "400 events do not fit into the active time of a user in 1 days"),
        ({"repeat_probability": 0.6, "explore_probability": 0.6}, "is above 1; lower one of them"),
        ({"seed": -1}, r"simulate\.seed: Input should be greater than or equal to 0 \(found -1\)"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_section({"simulate": settings}, "simulate", SimulateSettings)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in SimulateSettings.model_fields.values())


def test_the_summary_is_plain_json(tmp_path: Path) -> None:
    summary = run(SMALL_RECIPE, str(tmp_path / "log"))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["users"] == 60
    assert summary["directory"] == str(tmp_path / "log")
