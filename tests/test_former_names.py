"""Names that modules had once are still understood: in pickles, in scripts, in a machine's units."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import train_cloud
from train_cloud import former_names


@pytest.mark.parametrize("name", [*former_names.FORMER, "learn.pickling", "instance.journal"])
def test_a_former_name_is_the_very_module_of_today(name: str) -> None:
    today = former_names.today(f"train_cloud.{name}")
    assert today is not None
    module = importlib.import_module(f"train_cloud.{name}")
    assert module is importlib.import_module(today) is sys.modules[today]
    assert module.__name__ == today and module.__spec__ is not None and module.__spec__.name == today


def test_a_pickle_with_a_former_name_is_read() -> None:
    from train_cloud.runtime.commit_estimate import CommitEstimate
    from train_cloud.sb3.pickling import Live

    for today, former in (
        (Live, b"ctrain_cloud.learn.pickling\nLive\n."),
        (CommitEstimate, b"ctrain_cloud.worker.line\nCommitEstimate\n."),
    ):
        assert pickle.loads(former) is today


def test_what_was_never_there_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="never"):
        importlib.import_module("train_cloud.learn.never")
    assert train_cloud.__name__ == "train_cloud"


def test_a_unit_of_an_earlier_version_still_starts_its_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train_cloud.instance.journal"], capture_output=True, text=True, timeout=60
    )
    assert "No module named" not in done.stderr and "journal.py" in done.stderr, done.stderr
