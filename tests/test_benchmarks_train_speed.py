"""The comparison with a peer: ratios, lower bounds, the peer's ranking beside ours, its pins."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.histories import Histories, hits
from benchmarks.peers.process import PINS, Peer, read_pins
from benchmarks.time_to_quality import (
    Point,
    epoch_ratio,
    epoch_seconds,
    ndcg_ratio,
    our_curve,
    peer_curve,
    seconds_to,
    wall_ratio,
)
from benchmarks.train_speed import MAX_EVENTS, MEASURED, OURS, RECIPE
from cluster.recipe_files import read_recipe
from data.errors import MachineError
from data.settings import read_section
from modeling.metrics import hide, ranking_metrics, target_ranks
from modeling.settings import ModelSettings
from trainer.settings import TrainSettings


def _curve(*ndcgs: float, seconds: float = 10.0) -> list[Point]:
    """Epochs of equal length, 5 s of start-up, and a second of evaluation after each."""
    return [
        Point(epoch=n, seconds=n * seconds, wall_seconds=5 + n * (seconds + 1), ndcg=ndcg, hr=2 * ndcg)
        for n, ndcg in enumerate(ndcgs, 1)
    ]


def test_the_time_to_a_quality_lies_between_the_epoch_that_reaches_it_and_the_one_before() -> None:
    assert seconds_to(_curve(0.05, 0.10, 0.20), 0.15) == pytest.approx(25)
    assert seconds_to(_curve(0.05, 0.10, 0.20), 0.15, "wall_seconds") == pytest.approx(5 + 27.5)
    assert seconds_to(_curve(0.05, 0.15, 0.20), 0.15) == pytest.approx(20)


def test_the_first_crossing_counts_even_if_quality_falls_again() -> None:
    assert seconds_to(_curve(0.10, 0.20, 0.05, 0.30), 0.15) == pytest.approx(15)


def test_a_first_epoch_that_reaches_the_quality_counts_whole() -> None:
    assert seconds_to(_curve(0.30), 0.15) == 10


def test_a_quality_that_is_never_reached_has_no_time() -> None:
    assert seconds_to(_curve(0.05, 0.10), 0.15) is None
    assert seconds_to([], 0.15) is None


def test_our_clock_leaves_validations_out_and_keeps_everything_else_of_an_epoch() -> None:
    rows = [
        {"kind": "start", "step": 0, "unix_time": 1003.0},
        {"kind": "step", "step": 20, "unix_time": 1005.0},
        *(
            {"kind": "validation", "epoch": n, "seconds": 2.0, "train_seconds": seconds, "unix_time": 1010.0 + n}
            | {"ndcg@10": 0.1 * n, "hr@10": 0.2 * n}
            # 7 s of training, then 2 s of validation, 1 s of checkpoint and 6 s of training.
            for n, seconds in [(1, 7.0), (2, 16.0)]
        ),
    ]
    curve = our_curve(rows, began_unix=1000.0)
    assert epoch_seconds(curve) == [7.0, 7.0]
    assert [point.wall_seconds for point in curve] == [11.0, 12.0]
    assert [(point.epoch, point.ndcg, point.hr) for point in curve] == [(1, 0.1, 0.2), (2, 0.2, 0.4)]


def test_the_peers_wall_clock_holds_its_set_up_and_earlier_evaluations() -> None:
    found = {"ndcg@10": 0.1, "hr@10": 0.2}
    rows = [{"epoch": n, "seconds": 30.0 * n, "evaluation_seconds": 4.0, "validation": found} for n in (1, 2)]
    curve = peer_curve(rows, set_up_seconds=3.0)
    assert epoch_seconds(curve) == [30.0, 30.0]
    assert [point.wall_seconds for point in curve] == [33.0, 67.0]


def test_the_ratio_of_epochs_is_the_median_over_rounds_of_peer_over_ours() -> None:
    figures = epoch_ratio([100.0, 120.0, 110.0], [10.0, 10.0, 5.0])
    assert figures["ratio_epoch"] == 12
    assert figures["ratio_epoch_spread"] == {"min": 10.0, "median": 12.0, "max": 22.0, "runs": 3}


def test_the_ratio_to_a_quality_is_the_peers_time_over_our_median() -> None:
    ours = [_curve(0.10, 0.20, seconds=s) for s in (1.0, 2.0, 3.0)]
    figures = ndcg_ratio(_curve(0.05, 0.10, 0.20, seconds=100.0), ours, 0.15)
    assert figures["ratio_to_ndcg"] == pytest.approx(250 / 3)
    assert figures["our_seconds_to_ndcg"] == pytest.approx([1.5, 3.0, 4.5])
    assert figures["peer_reached"]
    assert figures["ours_reached"]
    assert not figures["ratio_to_ndcg_is_lower_bound"]


def test_a_peer_that_did_not_get_there_gives_a_lower_bound_from_what_it_spent() -> None:
    figures = ndcg_ratio(_curve(0.05, 0.10, seconds=100.0), [_curve(0.10, 0.20)], 0.15)
    assert figures["ratio_to_ndcg"] == pytest.approx(200 / 15)
    assert figures["ratio_to_ndcg_is_lower_bound"]
    assert not figures["peer_reached"]
    assert figures["peer_seconds_to_ndcg"] is None
    assert wall_ratio(_curve(0.05, 0.10, seconds=100.0), [_curve(0.10, 0.20)], 0.15) == pytest.approx(207 / 21.5)


def test_there_is_no_ratio_where_one_of_our_runs_did_not_get_there() -> None:
    ours = [_curve(0.10, 0.20), _curve(0.10, 0.12)]
    figures = ndcg_ratio(_curve(0.20), ours, 0.15)
    assert figures["ratio_to_ndcg"] is None
    assert not figures["ours_reached"]
    assert wall_ratio(_curve(0.20), ours, 0.15) is None


def _histories() -> Histories:
    """Forty users; some repeat items, some have too few events for targets."""
    random = np.random.default_rng(0)
    lengths_B = random.integers(2, 9, 40)
    held_B = np.where(lengths_B >= 3, 2, 0)
    offsets_B1 = np.concatenate([[0], lengths_B.cumsum()])
    return Histories(random.integers(1, 25, lengths_B.sum()), offsets_B1, lengths_B - held_B, np.array(25))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_peers_are_measured_as_we_are_with_ties_repeats_and_unknown_items(split: str) -> None:
    histories = _histories()
    users = histories.users()
    # Few distinct scores give ties; -inf is the item that the peer never met.
    scores_BV = np.random.default_rng(1).integers(0, 6, (len(users), 25)).astype(np.float32)
    unknown = histories.target(int(users[0]), split)
    scores_BV[:, unknown] = -np.inf
    known = [histories.known(int(user), split) for user in users]
    targets_B = torch.tensor([histories.target(int(user), split) for user in users])
    assert any(int(target) in rows for target, rows in zip(targets_B, known, strict=True))
    hidden_BV = hide(torch.from_numpy(scores_BV.copy()), [torch.from_numpy(rows) for rows in known])
    queries_B = torch.arange(len(users))
    ours = ranking_metrics(target_ranks(hidden_BV, queries_B, targets_B), queries_B, len(users), (10,))
    # Both are sums of the same float64 terms, in another order.
    assert hits(scores_BV, histories, users, split) == pytest.approx(
        [float(ours["ndcg@10"].sum()), float(ours["hr@10"].sum())], rel=1e-12
    )


def test_histories_come_back_as_they_were_written_and_targets_follow_what_is_known(tmp_path: Path) -> None:
    histories = _histories()
    histories.save(tmp_path / "histories.npz")
    again = Histories.load(tmp_path / "histories.npz")
    assert np.array_equal(again.items_E, histories.items_E)
    user = int(again.users()[-1])
    first, stop = again.offsets_B1[user], again.offsets_B1[user + 1]
    assert [*again.known(user, "test"), again.target(user, "test")] == again.items_E[first:stop].tolist()
    assert [*again.known(user, "validation"), again.target(user, "validation")] == again.items_E[
        first : stop - 1
    ].tolist()
    assert again.num_targets(3) == int(np.clip(again.num_train_B - 1, 0, 3).sum())


def test_the_peers_environment_is_pinned_to_versions_and_to_no_place_of_one_machine() -> None:
    pins = read_pins(PINS / "rectools.txt")
    assert pins["RecTools"] == "0.19.0"
    assert {"torch", "numpy", "pandas", "pytorch-lightning"} <= set(pins)
    assert all(version[0].isdigit() and "+" not in version for version in pins.values())


def test_our_side_has_the_peers_length_and_trains_on_the_same_positions() -> None:
    recipe = read_recipe(RECIPE, [f"{name}={value}" for name, value in {**OURS, **MEASURED}.items()])
    train = read_section(recipe, "train", TrainSettings)
    assert read_section(recipe, "model", ModelSettings).max_events == MAX_EVENTS
    assert train.windows == "last"
    assert train.evaluate_every_epochs == 1


def test_a_peer_that_ends_early_is_reported_with_its_code_and_the_place_of_its_words(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"ended with code 1 before its 'ready' report; its own words: .*peer\.log"):
        Peer(Path(sys.executable), "benchmarks.no_such_peer", [], threads=1, log=tmp_path / "peer.log")
    assert "no_such_peer" in (tmp_path / "peer.log").read_text()
