"""How long a commit will take: never less than it does on a line that stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_cloud.runtime import commit_estimate
from train_cloud.runtime.commit_estimate import CommitEstimate


def test_before_anything_is_measured() -> None:
    assert CommitEstimate().seconds(0) == 5.0
    assert CommitEstimate().seconds(200_000_000) == 15.0


def test_bytes_by_the_rate_and_two_round_trips() -> None:
    measured = CommitEstimate()
    measured.note(10_000_000, writing=1.05, swap=0.05)
    assert measured.seconds(20_000_000) == pytest.approx(2.1)
    assert measured.seconds(0) == pytest.approx(0.1)
    measured.note(10_000_000, writing=2.2, swap=0.2)  # the slower one counts
    assert measured.seconds(20_000_000) == pytest.approx(4.4)
    for _ in range(3):
        measured.note(10_000_000, writing=0.52, swap=0.02)  # for as long as it is remembered
    assert measured.seconds(20_000_000) == pytest.approx(1.04)


@given(
    st.floats(1e6, 1e9),
    st.floats(0.001, 0.3),
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(0, 10**9),
)
def test_it_is_never_too_low(rate: float, trip: float, commits: list[tuple[int, int]], wanted: int) -> None:
    """Commits write one after another; the one that is waited for writes all at once, and both swap the head."""
    measured = CommitEstimate()
    for sent, writes in commits:
        measured.note(sent, writing=writes * trip + sent / rate, swap=trip)
    assert measured.seconds(wanted) >= (wanted / rate + 2 * trip) * (1 - 1e-6) - wanted * 1e-12


def test_a_commit_in_flight_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 100.0
    monkeypatch.setattr(commit_estimate, "time", type("Clock", (), {"monotonic": staticmethod(lambda: at)}))
    measured = CommitEstimate()
    measured.note(10_000_000, writing=9.0, swap=1.0)
    alone = measured.seconds(1000)
    measured.begin()
    assert measured.seconds(1000) == pytest.approx(alone + 10)
    at = 107.0
    assert measured.seconds(1000) == pytest.approx(alone + 3)
    at = 130.0  # twenty seconds longer than usual: perhaps as long again
    assert measured.seconds(1000) == pytest.approx(alone + 20)
    measured.note(10_000_000, writing=9.0, swap=1.0)
    assert measured.seconds(1000) == alone
