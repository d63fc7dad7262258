"""Several ``learn`` calls in one script, interrupted in each of them, end where the uninterrupted script ends."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.sb3.compare import differences

pytestmark = pytest.mark.slow

TOTALS = {"counted": 288, "restarted": 300, "ended_early": 200, "two_models": 192}


@pytest.fixture(scope="module")
def uninterrupted(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def trained(script: str) -> Rehearsed:
        run = _run(warm, tmp_path_factory.mktemp(script), script)
        assert run.session() == 0, run.log()
        return run

    return trained


def _run(warm: Any, folder: Path, script: str, **more: Any) -> Rehearsed:
    total = {"total_timesteps": TOTALS.get(script, 64)}
    run = {"seed": 3, "save_frequency": 30, "entry_point": f"phased:{script}", **total, **more}
    return Rehearsed(warm, folder, run)


@pytest.mark.parametrize(
    ("script", "interrupts"),
    [
        ("counted", ["SIGTERM@50", "SIGKILL@130", "SIGKILL@140", "SIGTERM@250"]),
        ("restarted", ["SIGKILL@70", "SIGTERM@150", "SIGKILL@215", "SIGKILL@260"]),
        ("ended_early", ["SIGKILL@60", "SIGTERM@120", "SIGKILL@180"]),
        ("two_models", ["SIGTERM@70", "SIGKILL@125", "SIGTERM@135"]),
    ],
)
def test_a_script_that_is_interrupted_in_its_phases_ends_the_same(
    warm: Any, uninterrupted: Any, tmp_path: Path, script: str, interrupts: list[str]
) -> None:
    whole = uninterrupted(script)
    run = _run(warm, tmp_path, script)
    reached = 0
    for interrupt in interrupts:
        code = run.session(interrupt)
        assert code == (75 if "TERM" in interrupt else -9), run.log()
        assert run.head().timesteps >= reached, "a phase was begun anew"
        reached = run.head().timesteps
    assert run.session() == 0, run.log()
    assert run.head().timesteps == whole.head().timesteps == TOTALS[script]
    assert differences(whole.final(), run.final()) == []
    mine, theirs = run.scalars(shown=True), whole.scalars(shown=True)
    assert mine == theirs
    assert any(step > TOTALS[script] // 2 for points in mine.values() for step, _ in points), "the run's steps go on"


@pytest.mark.parametrize(
    ("script", "said"),
    [("another_buffer", "a replay buffer goes with one model"), ("too_many", "all its calls together may train")],
)
def test_what_cannot_be_a_phase_is_refused(warm: Any, tmp_path: Path, script: str, said: str) -> None:
    run = _run(warm, tmp_path, script, **({"total_timesteps": 100} if script == "another_buffer" else {}))
    assert run.session() == 64
    assert said in run.log()
