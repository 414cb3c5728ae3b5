"""Figures of a run: rates from two clock readings, rows that survive a resume, the curve."""

import json
from pathlib import Path

import pytest

from data.tracking.contract import RunFacts
from data.tracking.settings import TrackingSettings
from trainer.curves import draw_curve
from trainer.progress import Follower
from trainer.telemetry import FILE_NAME, StepWindow, Telemetry, read_figures

QUIET = TrackingSettings(to=())


def _run(directory: Path, resumed_at: int | None = None) -> RunFacts:
    return RunFacts("abc123", "a run", "train", directory, resumed_at=resumed_at)


def test_rates_come_from_two_clock_readings() -> None:
    readings = iter([100.0, 104.0, 105.0])
    window = StepWindow(clock=lambda: next(readings))
    window.add(head_losses=[2.0], num_targets=30, num_events=40, num_padded=50, waited_seconds=0.5)
    window.add(head_losses=[5.0], num_targets=10, num_events=20, num_padded=25, waited_seconds=0.5)
    figures = window.figures(world=2)
    assert figures["events_per_second"] == 60 * 2 / 4
    assert figures["seconds_per_batch"] == 2
    assert figures["loss"] == pytest.approx((2.0 * 30 + 5.0 * 10) / 40)
    assert figures["padding_share"] == pytest.approx(1 - 60 / 75)
    assert figures["waiting_share"] == 0.25
    window.add(head_losses=[1.0], num_targets=1, num_events=7, num_padded=7, waited_seconds=0.0)
    assert window.figures(world=1)["events_per_second"] == 7  # the window began afresh


def test_a_resumed_run_drops_the_rows_past_its_checkpoint(tmp_path: Path) -> None:
    first = Telemetry(_run(tmp_path), QUIET)
    for step in (10, 20, 30):
        first.write("step", step, loss=1.0)
    first.close()
    second = Telemetry(_run(tmp_path, resumed_at=20), QUIET)
    second.write("step", 30, loss=0.5)
    second.close()
    assert [(row["step"], row["loss"]) for row in read_figures(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 0.5)]


def test_a_run_that_starts_afresh_drops_all_rows(tmp_path: Path) -> None:
    for _ in range(2):
        telemetry = Telemetry(_run(tmp_path), QUIET)
        telemetry.write("step", 1, loss=1.0)
        telemetry.close()
    assert len(read_figures(tmp_path)) == 1


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    assert read_figures(tmp_path) == [{"kind": "step", "step": 1}]


def test_the_curve_is_a_png(tmp_path: Path) -> None:
    rows = [{"kind": "step", "step": 1, "loss": 3.0}, {"kind": "validation", "step": 1, "ndcg@10": 0.1}]
    (tmp_path / FILE_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert draw_curve(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_progress_bar_reads_each_row_once_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    follower = Follower(path)
    follower.look()
    assert follower.step == 0
    path.write_text(
        '{"kind": "step", "step": 20, "loss": 3.0}\n{"kind": "validation", "step": 20, "ndcg@10": 0.2}\n{"ki'
    )
    follower.look()
    assert (follower.step, follower.loss, follower.best) == (20, 3.0, 0.2)
    aside = tmp_path / "aside"  # as a new attempt does; it may be longer than what was read of the other
    aside.write_text('{"kind": "start", "step": 0, "windows": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "workers": [1]}\n' * 2)
    with aside.open("a") as file:
        file.write('{"kind": "step", "step": 10, "loss": 4.0}\n')
    aside.replace(path)
    follower.look()
    assert (follower.step, follower.loss, follower.best) == (10, 4.0, 0.2)
