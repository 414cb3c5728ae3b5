"""The throughput benchmark counts tokens and FLOPs of what it runs."""

import torch

from benchmarks.report import parser
from benchmarks.throughput import measure, random_batch


def test_a_batch_has_the_stated_length_and_a_target_everywhere() -> None:
    batch = random_batch(3, 20)
    assert batch["items_BL"].shape == (3, 20)
    assert (batch["targets_BL"] > 0).all()
    assert (batch["query_times_BL"] > batch["times_BL"]).all()


def test_flops_are_those_of_the_matrix_products_and_the_share_is_of_the_peak() -> None:
    arguments = parser("")
    arguments.set_defaults(quick=True, tokens=64, width=256)
    row = measure("hstu", 16, arguments.parse_args([]), torch.device("cpu"), peak=1e12)
    tokens, width = 64, 256
    linear = 4 * (width * 4 * width + width * width)
    attention = 4 * 4 * 16 * (64 + 64)  # per token: 4 blocks, 4 heads, 16 columns, scores and pooling
    loss = 1024 * width
    expected = 6 * tokens * (linear + attention + loss)
    # The gradient of the input of the first block's products is not needed everywhere.
    assert 0.9 * expected < row["flops_per_step"] <= 1.01 * expected
    assert row["rows"] == 4
    speed = tokens / row["seconds_per_step"]["median"]
    assert abs(row["tokens_per_second"] - speed) < 1e-6 * speed
    assert row["share_of_peak"] == row["flops_per_step"] / row["seconds_per_step"]["median"] / 1e12
