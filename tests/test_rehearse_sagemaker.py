"""The rehearsal of SageMaker: each status of a job's life around the real entry point, and the run ends as promised."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from train_cloud.cli import main
from train_cloud.rehearsal.sagemaker import podman
from train_cloud.rehearsal.sagemaker.containers import lacking

RUN_FILE = """\
run_id: jobs
algorithm: sac
seed: 3
total_timesteps: 1_600
save_frequency: 200
environment: {id: Pendulum-v1}
hyperparameters: {learning_starts: 100, buffer_size: 1600, batch_size: 16, policy_kwargs: {net_arch: [8, 8]}}
"""


def rehearsed(tmp_path: Path, *options: str) -> dict[str, object]:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN_FILE)
    assert main(["rehearse", str(run_file), "--platform", "sagemaker", "--out", str(tmp_path / "out"), *options]) == 0
    found: dict[str, object] = json.loads((tmp_path / "out" / "jobs" / "report.json").read_text())
    return found


def check(report: dict[str, object]) -> None:
    assert report["outcome"] == "completed" and report["differences"] == []
    assert report["timesteps_repeated"] == [0, 0, 0]
    assert report["resources_left_after_destroy"] == []
    jobs = report["jobs"]
    assert isinstance(jobs, list)
    assert [job["secondary_statuses"][-1] for job in jobs] == [
        *("MaxWaitTimeExceeded", "Stopped", "MaxRuntimeExceeded", "Completed", "Completed", "Failed"),
    ]
    assert "Interrupted" in jobs[1]["secondary_statuses"] and jobs[1]["exit_codes"] == [None, 0]
    assert "launched" in jobs[5]["failure"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(lacking() is not None and "CI" not in os.environ, reason=str(lacking()))
def test_a_run_lives_through_all_that_sagemaker_does(tmp_path: Path) -> None:
    check(rehearsed(tmp_path))


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.skipif(bool(podman.lacking()) and "CI" not in os.environ, reason="; ".join(podman.lacking()))
def test_so_does_one_in_the_real_image(tmp_path: Path) -> None:
    check(rehearsed(tmp_path, "--machine"))


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--platform", "ecs"], "use ec2 or sagemaker"), (["--set", "seeds=[1, 2]"], "train-cloud expand")],
)
def test_what_cannot_be_rehearsed_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN_FILE.replace("seed: 3\n", ""))
    assert main(["rehearse", str(run_file), "--platform", "sagemaker", *options]) == 64
    assert words in capsys.readouterr().err
