"""Runs as trials of Ray Tune, and a launch of many: what takes longer than CI has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_cluster import RayCluster, ray_cluster
from ruamel.yaml import YAML
from test_ray import begin, parameters, write
from until import until

from train_cloud.checkpoint import read_manifest
from train_cloud.operations.fork import fork
from train_cloud.report.status import run_ids, statuses
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import read_sessions
from train_cloud.store import open_store

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3000)]

RUN: dict[str, Any] = {
    "run_id": "pbt",
    "algorithm": "ppo",
    "total_timesteps": 4096,
    "save_frequency": 512,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 128, "batch_size": 32, "n_epochs": 8, "policy_kwargs": {"net_arch": [8]}},
    "reproducibility": {"replay": "never"},
}
SCRIPT = """
import json, sys
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
import train_cloud.ray

address, run_file, store, folder, kind = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
rate = "hyperparameters.learning_rate"
if kind == "pbt":
    scheduler = PopulationBasedTraining(
        time_attr="timesteps_total", perturbation_interval=1024, quantile_fraction=0.5,
        hyperparam_mutations={rate: [1e-4, 1e-3, 3e-3]},
    )
else:
    scheduler = ASHAScheduler(time_attr="timesteps_total", max_t=4096, grace_period=1024, reduction_factor=2)
tuner = tune.Tuner(
    train_cloud.ray.trainable(run_file, store=store, keep=50, state_dir=folder + "/nodes"),
    param_space={rate: tune.grid_search([1e-6, 1e-3])},
    tune_config=tune.TuneConfig(metric="episode_return", mode="max", scheduler=scheduler),
    run_config=tune.RunConfig(
        name=kind, storage_path=folder + "/results", failure_config=tune.FailureConfig(max_failures=3),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    ),
)
found = tuner.fit()
told = [{k: r.metrics.get(k) for k in ("run_id", "timesteps_total", "episode_return", "trial_id")} for r in found]
print(json.dumps({"errors": [str(e) for e in found.errors], "told": told}))
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), CPU=0) as found:
        found.add(CPU=1)
        found.add(CPU=1)
        yield found


def tuned(ray: RayCluster, folder: Path, kind: str, *, kill_one: bool = False) -> dict[str, Any]:
    YAML().dump(RUN, folder / "run.yaml")
    (folder / "tune.py").write_text(SCRIPT)
    command = [
        *(sys.executable, str(folder / "tune.py"), ray.address),
        *(str(folder / "run.yaml"), str(folder / "store"), str(folder), kind),
    ]
    with (folder / "said.txt").open("w") as said, (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            ray.inside(command), env=ray.environment(TUNE_DISABLE_STRICT_METRIC_CHECKING="1"), stdout=said, stderr=log
        )
        try:
            if kill_one:
                store = str(folder / "store")
                until(lambda: any(one.timesteps >= 1024 for one in statuses(store, run_ids(store))), "some steps")
                processes = [each for node in ray.added for each in ray.tree(node)]
                actors = [
                    each for each in processes if re.match("ray::(TrainCloud|RunTrain)", "".join(each.cmdline()[:1]))
                ]
                assert actors, [each.cmdline() for each in processes]
                actors[0].kill()
            assert process.wait(1500) == 0, (folder / "log.txt").read_text()[-4000:]
        finally:
            process.kill()
            process.wait()
    lines = (folder / "said.txt").read_text().splitlines()
    found: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith('{"errors"')))
    return found


def origin(root: Path, run_id: str) -> tuple[str, int] | None:
    """The run that this one was forked from, and at which timesteps."""
    store = open_store(layout.run_url(str(root), run_id))
    if not any(info.key == layout.RUN_JSON for info in store.list(layout.RUN_JSON)):
        return None
    parent = json.loads(bytes(store.get(layout.RUN_JSON).body)).get("forked_from")
    if parent is None:
        return None
    url, _, at = parent.rpartition("@")
    return url.rpartition("/")[2], int(at)


def rate(root: Path, run_id: str) -> float:
    store = open_store(layout.run_url(str(root), run_id))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    return float(read_manifest(store, read[0].manifest).facts["identity"]["hyperparameters"]["learning_rate"])


def replay(root: Path, run_id: str, folder: Path) -> None:
    """Train a run again in another store, with all that it came of, as a person would with ``train`` and ``fork``."""
    path = folder / f"{run_id}.yaml"
    if path.exists():
        return
    came_of = origin(root, run_id)
    learning_rate = f"hyperparameters.learning_rate={rate(root, run_id)!r}"
    kept = {"preservation": {"last": 50}}
    if came_of is None:
        own = {**RUN, **kept, "run_id": run_id, "experiment": "pbt"}
        own["hyperparameters"] = {**RUN["hyperparameters"], "learning_rate": rate(root, run_id)}
        YAML().dump(own, path)
    else:
        replay(root, came_of[0], folder)
        store = str(folder / "store")
        fork(store, came_of[0], run_id, at=came_of[1], overrides=[learning_rate], base=folder, out=path)
    command = ["train", str(path), "--store", str(folder / "store"), "--state-dir", str(folder / "state" / run_id)]
    done = subprocess.run([sys.executable, "-m", "train_cloud", *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_forked_population_can_be_trained_again_from_its_lineage(ray: RayCluster, tmp_path: Path) -> None:
    found = tuned(ray, tmp_path, "pbt", kill_one=True)
    assert found["errors"] == []
    assert [one["timesteps_total"] for one in found["told"]] == [4096, 4096]
    root, again = tmp_path / "store", tmp_path / "again"
    again.mkdir()
    every = run_ids(str(root))
    forks = {run_id: came_of for run_id in every if (came_of := origin(root, run_id)) is not None}
    assert forks, every
    ended = [one["run_id"] for one in found["told"]]
    for run_id in ended:
        replay(root, run_id, again)
        assert parameters(root, run_id) == parameters(again / "store", run_id)
    # Wherever a training could say how it ended, the next one has repeated nothing.
    for run_id in every:
        ends = [one.end for one in read_sessions(open_store(layout.run_url(str(root), run_id)))]
        assert [end["repeated"] for end in ends if end is not None and end["repeated"]] == []
    # Of Tune's own checkpoints nothing has a model in it.
    kept = [path for path in (tmp_path / "results").rglob("checkpoint_*/*") if path.is_file()]
    assert kept and all(path.stat().st_size < 1000 for path in kept)


def test_a_scheduler_ends_trials_early(ray: RayCluster, tmp_path: Path) -> None:
    found = tuned(ray, tmp_path, "asha")
    assert found["errors"] == [] and len(found["told"]) == 2
    reached = sorted(one["timesteps_total"] for one in found["told"])
    assert reached[-1] == 4096
    root = str(tmp_path / "store")
    for one in found["told"]:
        run = next(run for run in statuses(root, run_ids(root)) if run.run_id == one["run_id"])
        assert run.timesteps >= one["timesteps_total"], "what was told is committed"


def test_two_hundred_short_runs_wait_for_two_cpus(ray: RayCluster, tmp_path: Path) -> None:
    small = {"total_timesteps": 128, "save_frequency": 128, "hyperparameters": {"n_steps": 64, "n_epochs": 1}}
    path = write(tmp_path, small, vary={}, seeds=list(range(200)))
    began = time.monotonic()
    driver = begin(ray, path)
    root = str(tmp_path / "store")
    memory, took = [], []
    try:
        while driver.poll() is None:
            time.sleep(2.0)
            try:
                memory.append(
                    (len(run_ids(root)) if Path(root).exists() else 0, psutil.Process(driver.pid).memory_info().rss)
                )
            except psutil.NoSuchProcess:
                break
            before = time.monotonic()
            if Path(root).exists():
                statuses(root, run_ids(root))
                took.append(time.monotonic() - before)
        assert driver.wait() == 0, (tmp_path / "launch.log").read_text()[-3000:]
    finally:
        driver.kill()
        driver.wait()
    found = statuses(root, run_ids(root))
    assert len(found) == 200 and all(run.state == "completed" for run in found)
    early = max(rss for count, rss in memory if 20 <= count <= 60)
    late = max(rss for count, rss in memory)
    print(
        f"200 runs in {time.monotonic() - began:.0f} s; memory {early / 1e6:.0f} to {late / 1e6:.0f} MB; "
        f"status {sorted(took)[len(took) // 2]:.2f} s, at most {max(took):.2f} s"
    )
    assert late < early + 40e6 and late < 500e6
    assert sorted(took)[len(took) // 2] < 1.0
