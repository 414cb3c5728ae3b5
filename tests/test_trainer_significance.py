"""The paired bootstrap against exact enumeration and simulation, and the verdict's rules."""

from itertools import product

import numpy as np
import pytest

from trainer import significance
from trainer.significance import compare, paired_bootstrap, verdict


def test_the_same_values_for_everyone_have_no_difference_and_p_one() -> None:
    values = np.random.default_rng(0).random(50)
    found = paired_bootstrap(values, values)
    assert found == {"difference": 0, "low": 0, "high": 0, "p_value": 1, "users": 50}


def test_a_constant_difference_is_certain() -> None:
    found = paired_bootstrap(np.full(20, 0.75), np.full(20, 0.5), resamples=999)
    assert (found["difference"], found["low"], found["high"], found["users"]) == (0.25, 0.25, 0.25, 20)
    assert found["p_value"] == pytest.approx(2 / 1000)


def test_few_users_equal_the_enumeration_of_all_resamples() -> None:
    a, b = np.array([0.9, 0.2, 0.5, 0.7]), np.array([0.1, 0.4, 0.5, 0.6])
    means = [np.mean(drawn) for drawn in product((a - b).tolist(), repeat=4)]
    found = paired_bootstrap(a, b, resamples=200_000)
    assert found["difference"] == pytest.approx(np.mean(a - b), abs=1e-12)
    # A share of 200,000 draws has a standard error of at most 0.0011.
    assert found["p_value"] == pytest.approx(2 * np.mean(np.array(means) <= 1e-12), abs=0.01)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_swapping_the_two_turns_the_sign_and_keeps_the_p_value() -> None:
    random = np.random.default_rng(1)
    a, b = random.random(200), random.random(200)
    one, other = paired_bootstrap(a, b, resamples=20_000), paired_bootstrap(b, a, resamples=20_000)
    assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
    assert one["p_value"] == pytest.approx(other["p_value"], abs=0.02)  # four standard errors of 20,000 draws


def test_a_seed_gives_the_same_result_however_the_resamples_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    a, b = random.random(300), random.random(300)
    whole = paired_bootstrap(a, b, resamples=500, seed=3)
    assert paired_bootstrap(a, b, resamples=500, seed=4) != whole
    monkeypatch.setattr(significance, "_CHUNK_NUMBERS", 1000)
    # Other chunks add up in another order: rounding alone.
    assert paired_bootstrap(a, b, resamples=500, seed=3) == pytest.approx(whole, abs=1e-12)


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    truth, covered, rejected, trials = 0.05, 0, 0, 400
    for trial in range(trials):
        # Hits of two rankings that share most users, as they do in practice.
        both = random.random(300) < 0.3
        a = np.where(random.random(300) < 2 * truth, 1.0, both)
        b = np.where(random.random(300) < 2 * truth, 0.0, both)
        expected = 2 * truth * (1 - 0.3) + 2 * truth * 0.3
        found = paired_bootstrap(a, b, resamples=1000, seed=trial)
        covered += found["low"] <= expected <= found["high"]
        again = paired_bootstrap(a, np.where(random.random(300) < 2 * truth, 1.0, both), resamples=1000, seed=trial)
        rejected += again["p_value"] < 0.05
    # Three standard errors of 400 trials are 0.033.
    assert covered / trials == pytest.approx(0.95, abs=0.033)
    assert rejected / trials == pytest.approx(0.05, abs=0.033)


@pytest.mark.parametrize(
    ("a", "b", "resamples", "message"),
    [
        ([1.0, 2.0], [1.0], 10, r"shapes \(2,\) and \(1,\): expected one value per user"),
        ([], [], 10, "expected one value per user"),
        ([1.0, float("nan")], [1.0, 1.0], 10, "a value is not finite; leave out the users"),
        ([1.0], [1.0], 0, "resamples is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: list[float], b: list[float], resamples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, resamples=resamples)


@pytest.mark.parametrize(
    ("mean_a", "mean_b", "seed_deviation", "p_value", "expected"),
    [
        (0.75, 0.5, 0.125, 0.001, "better"),  # exactly twice the deviation is not under it
        (0.5, 0.75, 0.125, 0.001, "worse"),
        (0.75, 0.5, 0.13, 0.001, "no effect"),
        (0.5, 0.75, 0.13, 0.001, "no effect"),
        (0.75, 0.5, 0.0, 0.05, "no effect"),
        (0.75, 0.5, 0.0, 0.049, "better"),
        (0.5, 0.5, 0.0, 0.0, "no effect"),
    ],
)
def test_a_gain_under_twice_the_seed_deviation_is_no_effect(
    mean_a: float, mean_b: float, seed_deviation: float, p_value: float, expected: str
) -> None:
    assert verdict(mean_a, mean_b, seed_deviation=seed_deviation, p_value=p_value) == expected


@pytest.mark.parametrize("seed_deviation", [-0.1, float("nan")])
def test_a_deviation_must_be_a_size(seed_deviation: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        verdict(1, 0, seed_deviation=seed_deviation, p_value=0)


def test_a_comparison_knows_users_and_seeds() -> None:
    users = np.linspace(0, 1, 400)
    found = compare(users + 0.1, users, a_seeds=[0.61, 0.59], b_seeds=[0.5, 0.5])
    assert found["verdict"] == "better"
    assert found["difference"] == pytest.approx(0.1)
    assert found["seed_deviation"] == pytest.approx(0.02 / 2**0.5)
    assert compare(users + 0.1, users, a_seeds=[0.7, 0.5], b_seeds=[0.5, 0.5])["verdict"] == "no effect"
    alone = compare(users + 0.1, users, a_seeds=[0.6], b_seeds=[0.5, 0.5])
    assert (alone["verdict"], alone["seed_deviation"]) == ("one seed", None)
