"""Dropout: what it drops, what it leaves, and that a seed fixes it."""

import pytest
import torch

from modeling.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_stated_share_is_dropped_and_the_rest_scaled_up(share: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(share)(torch.ones(1001, 999))
    rounded = round(share * 256) / 256
    # Three standard deviations of a million draws are below 0.0015.
    assert (dropped == 0).double().mean().item() == pytest.approx(rounded, abs=2e-3)
    assert dropped.max().item() == pytest.approx(1 / (1 - rounded))
    assert dropped.mean().item() == pytest.approx(1, abs=3e-3)


def test_a_byte_below_the_share_drops_and_any_other_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    monkeypatch.setattr(torch.Tensor, "random_", lambda words, *_: words.copy_(every_byte.view(torch.int64)))
    for dropped_bytes in (1, 26, 128, 255):
        kept = torch.where(every_byte >= dropped_bytes, 256 / (256 - dropped_bytes), 0.0)
        torch.testing.assert_close(Dropout(dropped_bytes / 256)(torch.ones(256)), kept)


def test_every_place_of_a_word_is_dropped_equally_often() -> None:
    torch.manual_seed(0)
    dropped_by_place = (Dropout(0.5)(torch.ones(100_000, 8)) == 0).double().mean(0)
    torch.testing.assert_close(dropped_by_place, torch.full((8,), 0.5, dtype=torch.float64), atol=6e-3, rtol=0)


def test_nothing_is_dropped_in_evaluation_or_at_share_zero() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_a_seed_fixes_what_is_dropped_and_gradients_flow_through_what_is_kept() -> None:
    x = torch.randn(7, 3, requires_grad=True)
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(layer(x), first, atol=0, rtol=0)
    first.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(first == 0, 0.0, 2.0))


def test_half_precision_keeps_its_type() -> None:
    assert Dropout(0.2)(torch.ones(4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
