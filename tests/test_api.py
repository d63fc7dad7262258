"""The Python API: what ``train_cloud`` offers by name, and its page."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

import train_cloud

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "document_api.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_is_there_and_no_other_is_claimed() -> None:
    assert set(train_cloud.__all__) <= set(dir(train_cloud))
    for name in train_cloud.__all__:
        assert getattr(train_cloud, name) is not None
    assert train_cloud.__version__ == version("train-cloud")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = train_cloud.nonsense


def test_a_run_can_be_looked_at_and_taken_home(tmp_path: Path) -> None:
    """Nobody but the API is asked, and paths may be text."""
    folder = tmp_path / "runs" / "a-run"
    folder.mkdir(parents=True)
    with tarfile.open(ROOT / "tests" / "old_checkpoint" / "sac.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    assert train_cloud.load_run_file(str(folder / "run.yaml"), ["seed=7"]).seed == 7
    assert train_cloud.run_ids(str(tmp_path)) == ["a-run"]
    assert train_cloud.run_status(str(tmp_path), "a-run").committed_timesteps == 150
    assert train_cloud.open_store(str(folder)).list("head.json")
    model = train_cloud.export(str(tmp_path), "a-run", out=str(tmp_path / "model"))
    assert (model / "model.zip").exists() and model == tmp_path / "model"


def test_train_takes_text_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(train_cloud.InputError, match="name an existing file"):
        train_cloud.train(str(tmp_path / "absent.yaml"), store=str(tmp_path / "store"))
    assert not list(tmp_path.iterdir())
