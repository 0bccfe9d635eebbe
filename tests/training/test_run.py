"""One sitting of a run: what is saved and shown when, by a clock of the test's own."""

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from causvid.training import run
from causvid.training.run import Budget, take_steps


class Diary:
    """A sitting whose steps take a minute each, and what befell it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupted_at: int | None = None) -> None:
        self.step, self.seconds, self.interrupted_at = 0, 0.0, interrupted_at
        self.saves: list[int] = []
        self.shows: list[tuple[int, float]] = []
        self.now = 1000.0
        monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: self.now))

    def budget(self, **limits: float) -> Budget:
        return Budget(**limits, seconds_before=self.seconds, _start=self.now)

    def take_step(self, progress: float) -> None:
        self.step += 1
        self.now += 60
        if self.step == self.interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)

    def save(self) -> None:
        self.saves.append(self.step)

    def show(self, progress: float) -> None:
        self.shows.append((self.step, progress))


def test_saves_and_sheets_come_every_few_minutes_and_at_the_end(monkeypatch):
    sitting = Diary(monkeypatch)
    budget = sitting.budget(minutes=10.0)
    assert take_steps(sitting, budget, save_minutes=2.5, show_minutes=3.5, show=sitting.show)
    assert sitting.saves == [3, 6, 9, 10]
    assert sitting.shows == [(4, 0.3), (8, 0.7), (10, 1.0)]  # progress as the step knew it
    assert sitting.seconds == 600

    # the time of earlier sittings is used up already
    assert take_steps(sitting, sitting.budget(minutes=12.0), save_minutes=2.5, show_minutes=3.5, show=sitting.show)
    assert sitting.step == 12 and sitting.saves[4:] == [12] and sitting.shows[3:] == [(12, 1.0)]


@pytest.mark.parametrize("at", [4, 6])
def test_who_interrupts_waits_for_a_save_and_nothing_else(monkeypatch, at):
    """Even if the interrupt came in what was the last step."""
    sitting, before = Diary(monkeypatch, interrupted_at=at), signal.getsignal(signal.SIGINT)
    budget = sitting.budget(steps=6)
    assert not take_steps(sitting, budget, save_minutes=100.0, show_minutes=2.5, show=sitting.show)
    assert sitting.step == at and sitting.saves == [at]
    assert [step for step, _ in sitting.shows] == [step for step in (3, 6) if step <= at]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("interrupted_at", [None, 2])
def test_weights_are_handed_on_even_if_the_last_sheet_fails(monkeypatch, interrupted_at):
    sitting, handed_on = Diary(monkeypatch, interrupted_at), []

    def fail(progress: float) -> None:
        raise MemoryError

    with pytest.raises(MemoryError) if interrupted_at is None else nullcontext():
        take_steps(
            sitting,
            sitting.budget(steps=3),
            save_minutes=100.0,
            show=fail,
            hand_on=lambda: handed_on.append(sitting.saves[-1]),
        )
    assert handed_on == [interrupted_at or 3]  # what was saved, once


def test_a_run_may_have_nothing_to_show(monkeypatch):
    sitting = Diary(monkeypatch)
    assert take_steps(sitting, sitting.budget(steps=3), save_minutes=0.0)
    assert sitting.saves == [1, 2, 3, 3]
