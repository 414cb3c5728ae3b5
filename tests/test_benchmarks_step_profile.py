"""The profile of a step: histories of the right shape, and phases that add up to what was measured."""

from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.report import parser
from benchmarks.step_profile import LEAST_EVENTS, MOST_EVENTS, PHASES, Loop, histories, operators, row_settings, summary


def test_histories_are_as_long_as_those_of_movielens() -> None:
    table = histories()
    lengths_B = table.column("num_train").to_numpy()
    assert len(lengths_B) == 6040
    assert lengths_B.min() >= LEAST_EVENTS
    assert lengths_B.max() <= MOST_EVENTS
    assert np.median(lengths_B) == pytest.approx(96, rel=0.05)
    assert lengths_B.mean() == pytest.approx(165.6, rel=0.05)
    items_E = table.column("items").combine_chunks().values.to_numpy()
    assert items_E.min() == 1
    assert items_E.max() <= 3883
    assert (np.diff(table.column("times")[0].as_py()) >= 0).all()


def test_a_row_has_the_settings_of_its_suite() -> None:
    model, train = row_settings("hstu")
    assert (model.width, model.max_events, model.encoder.kind, model.encoder.blocks) == (64, 200, "hstu", 2)
    assert model.negatives.model_dump() == {"kind": "uniform", "num_uniform": 1024}
    assert train.events_per_batch == 4096


def test_phases_are_shares_of_a_step_and_operators_of_all_operators() -> None:
    loop = Loop("sasrec", torch.device("cpu"))
    rounds = [loop.steps(islice(loop.batches, count)) for count in (1, 2)]
    assert [each["steps"] for each in rounds] == [1, 2]
    assert all(each[phase] > 0 for each in rounds for phase in PHASES)
    assert 0 < rounds[0]["events"] <= 4096 < rounds[1]["events"]
    figures = summary(rounds)
    assert figures["phases"]["loss"]["runs"] == 2
    medians = [figures["phases"][phase]["median"] for phase in PHASES]
    assert sum(medians) == pytest.approx(1)  # of two runs the median is the mean
    per_step = 1e3 * sum(rounds[0][phase] for phase in PHASES)
    assert per_step in (
        pytest.approx(figures["milliseconds_per_step"]["min"]),
        pytest.approx(figures["milliseconds_per_step"]["max"]),
    )
    arguments = parser("")
    arguments.set_defaults(trace=None)
    dearest = operators(loop, 1, arguments.parse_args([]), most=1000)
    assert sum(row["share"] for row in dearest) == pytest.approx(1)
    calls = {row["operator"]: row["calls_per_step"] for row in dearest}
    assert calls["_SampledSoftmax"] == 1
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2  # one a block
