"""What ``make prove-foreign`` makes of an answer, and what it has written."""

from __future__ import annotations

import subprocess

import pytest
from exactness import DOCUMENT
from exactness import FOREIGN as HEADING
from foreign_environments import _DEFAULTS, FOREIGN, _judged, section

from train_cloud.config import parse_run_file


@pytest.mark.parametrize(
    ("code", "out", "err", "outcome", "words"),
    [
        (0, "a: 400 timesteps\n  equal         parameters", "", "equal", ""),
        (0, "  not reached   the end of an episode: nothing is shown of that; give", "", "equal", "the end of an"),
        (0, "  status says   exact: no, because of it", "", "not exact", "of it"),
        (
            1,
            "  status says   exact: no, because of it\n  differs       state",
            "train-cloud: a …",
            "not exact",
            "of it",
        ),
        (1, "  differs       state.x", "train-cloud: a does not go on exactly: state.x", "different", "state.x"),
        (64, "", "train-cloud: environment.id: 'X': install y", "refused", "install y"),
        (1, "", "Traceback (most recent call last):\nValueError: z", "failed", "ValueError: z"),
        (1, "", "train-cloud: a session of the proof did not complete", "failed", "did not complete"),
        (124, "", "more than 600 s", "failed", "more than"),
    ],
)
def test_what_came_out(code: int, out: str, err: str, outcome: str, words: str) -> None:
    found = _judged(subprocess.CompletedProcess([], code, out, err))
    assert found[0] == outcome and words in found[1]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: f"{foreign.package} {foreign.name}")
def test_each_has_a_run_file(foreign: object) -> None:
    run = next(one for one in FOREIGN if one is foreign).run()
    run.pop("code", None)
    assert parse_run_file(run).environment is not None


def test_each_is_one_of_a_kind() -> None:
    assert len({(one.package, one.name) for one in FOREIGN}) == len(FOREIGN) >= 20
    assert len({one.package for one in FOREIGN}) >= 10
    assert {one.algorithm for one in FOREIGN} <= {*_DEFAULTS}


def test_the_section_names_what_came_out() -> None:
    entry = {"name": "A-v0", "package": "a-gym", "algorithm": "dqn", "version": "1.2", "provider": "pickle",
             "outcome": "different", "because": "it | differs", "beside": ["numpy 1.26"], "commit": "c",
             "date": "d"}  # fmt: skip
    text = section([entry, {**entry, "name": "B-v0", "outcome": "equal", "because": ""}])
    assert "| a-gym 1.2 (with numpy 1.26) | A-v0 | dqn | pickle | **different**: it \\| differs |" in text
    assert "2 environments of 1 packages: 1 equal" in text


def test_the_document_has_no_difference_that_was_called_exact() -> None:
    _, heading, written = DOCUMENT.read_text().partition(HEADING)
    rows = [line.split(" | ") for line in written.splitlines() if line.startswith("| ")][1:]
    assert heading and rows and not [row for row in rows if "**" in row[-1]]
