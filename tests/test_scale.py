"""The switch between reduced and full sizes of the tests of scale."""

import pytest

from tests.scale import VARIABLE, scale


@pytest.mark.parametrize(("value", "expected"), [(None, 1), ("reduced", 1), ("full", 100)])
def test_the_variable_chooses_the_size(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: int) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert scale(1, 100) == expected


@pytest.mark.parametrize("value", ["", "Full", "1"])
def test_any_other_value_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=r"FARSIGHT_SCALE is .*, expected 'full' or 'reduced'; unset it"):
        scale(1, 100)
