"""A selection of docs/exactness.md's table, in which every two values of two columns stand together; each day another.

``EXACTNESS_SEED=N`` repeats the one that a failure names. ``make test-full`` tries all of the table.
"""

from __future__ import annotations

import itertools
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from exactness import ALGORITHMS, DOCUMENT, EXTRAS, WORLDS, Case, cases, differences, document, pairwise

#: The same in all of pytest's processes, of which each tries one part.
SEED = int(os.environ.get("EXACTNESS_SEED") or datetime.now(timezone.utc).strftime("%Y%m%d"))
PARTS = 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_stop_at_an_awkward_step_changes_nothing(warm: Any, tmp_path: Path, part: int) -> None:
    chosen = pairwise(SEED)[part::PARTS]
    print(f"EXACTNESS_SEED={SEED}")
    lacking = sorted({str(case.lacking) for case in chosen if case.lacking})
    if lacking:
        print(f"left out, because these are not installed: {', '.join(lacking)}")
    found = {}
    for number, case in enumerate(chosen):
        if case.lacking is None:
            folder = tmp_path / str(number)
            folder.mkdir()
            found[str(case)] = differences(warm, case, folder)
    told = {case: text for case, text in found.items() if text}
    assert not told, f"EXACTNESS_SEED={SEED}: {told}"
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_the_product_leaves_out(warm: Any, tmp_path: Path, extra: str) -> None:
    """One case of each; a full run has them all."""
    case = next(case for case in cases() if case.extra == extra)
    if case.lacking:
        pytest.skip(f"{case.lacking} is not installed")
    assert differences(warm, case, tmp_path) == []


@pytest.mark.parametrize("seed", [1, 2, SEED])
def test_the_selection_has_every_pair(seed: int) -> None:
    def pairs(chosen: list[Case]) -> set[Any]:
        return {
            pair
            for case in chosen
            for pair in itertools.combinations([(axis, getattr(case, axis)) for axis in Case.AXES], 2)
        }

    everything = [case for case in cases() if not case.extra]
    chosen = pairwise(seed)
    assert pairs(chosen) == pairs(everything)
    assert len(chosen) < len(everything) / 4
    assert chosen == pairwise(seed) and all(case.valid for case in chosen)
    assert {case.algorithm for case in chosen} == set(ALGORITHMS)
    assert {WORLDS[case.world].provider for case in chosen} == {"own", "mujoco", "ale", "pickle", "replay"}


def test_a_difference_is_found(warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose state nobody saves goes on with another episode."""
    from train_cloud.envs.trial import Choice

    case = Case("sac", "Pendulum-v1", "dummy", False, False)
    monkeypatch.setattr(Case, "choice", lambda self: Choice("episode", True, "pretended"))
    assert differences(warm, case, tmp_path) != []


def test_the_document_says_what_was_found() -> None:
    good, bad = cases()[0], cases()[1]
    entry = {"commit": "abc", "date": "2026-01-01", "differences": []}
    text = document({good: entry, bad: {**entry, "differences": ["state.x: 1 and 2"]}})
    assert "1 of 2 cases equal" in text and "commit abc" in text
    assert f"{len(cases()) - 2} of {len(cases())} not tried" in text
    assert "**different**" in text and "not tried" in text


def test_the_document_is_of_this_table() -> None:
    """Whoever changes the table makes the document anew: ``python tests/exactness.py``."""
    lines = [line for line in document({}).splitlines() if line.startswith("|")]
    written = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    assert [line.split("|")[1:3] for line in lines if " gSDE" in line] == [
        line.split("|")[1:3] for line in written if " gSDE" in line
    ]
    assert len(lines) == len(written)
    assert not [line for line in written if "**different**" in line]
