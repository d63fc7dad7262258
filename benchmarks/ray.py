"""``python -m benchmarks.ray``: four runs on two nodes of one CPU each, against half of what they take by turns.

On a cluster in a network namespace of its own, as the tests have it: needs root, the extra ``ray``, two quiet cores.
What the launch itself takes, connecting and asking the nodes included, is part of it; starting the cluster is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.worker import ROOT

sys.path.insert(0, str(ROOT / "tests" / "support"))
from ray_cluster import RayCluster, ray_cluster

#: Of the ideal.
LIMIT = 1.15
_RUN = {
    "run_id": "base",
    "algorithm": "ppo",
    "device": "cpu",
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 2048, "policy_kwargs": {"net_arch": [64, 64]}},
    "reproducibility": {"replay": "never"},
}
_IDS = [f"four-{rate}-s{seed}" for rate in ("slow", "fast") for seed in (1, 2)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray", description=__doc__)
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    with tempfile.TemporaryDirectory(prefix="train-cloud-bench-") as name:
        folder = Path(name)
        experiment = _write(folder, options.timesteps)
        with ray_cluster(folder, CPU=0) as cluster:
            for _ in range(2):
                cluster.add(CPU=1)
            _launch(cluster, experiment, folder, "warm-up")
            together, alone = [], []
            for number in range(options.repeat):
                together.append(_launch(cluster, experiment, folder, f"together-{number}"))
                alone.append([_train(folder / "each" / f"{run}.yaml", folder, f"alone-{number}") for run in _IDS])
    ratios = [took / (sum(each) / 2) for took, each in zip(together, alone, strict=True)]
    print(json.dumps({"together, s": together, "one after the other, s": [sum(each) for each in alone]}))
    print(f"{statistics.median(ratios):.3f} of the ideal ({min(ratios):.3f} to {max(ratios):.3f}), limit {LIMIT}")
    return int(statistics.median(ratios) > LIMIT)


def _write(folder: Path, timesteps: int) -> Path:
    (folder / "base.yaml").write_text(
        json.dumps({**_RUN, "total_timesteps": timesteps, "save_frequency": max(1, timesteps // 4)})
    )
    path = folder / "four.yaml"
    rates = {"slow": {"hyperparameters.learning_rate": 1e-4}, "fast": {}}
    path.write_text(json.dumps({"experiment": "four", "base": "base.yaml", "vary": {"rate": rates}, "seeds": [1, 2]}))
    _run("expand", str(path), "--out", str(folder / "each"))
    return path


def _launch(cluster: RayCluster, path: Path, folder: Path, name: str) -> float:
    places = ["--store", str(folder / name), "--state-dir", str(folder / f"{name}-nodes")]
    command = [sys.executable, "-m", "train_cloud", "launch", str(path), "--platform", "ray", *places]
    return _timed(cluster.inside([*command, "--address", cluster.address]), cluster.environment())


def _train(path: Path, folder: Path, name: str) -> float:
    places = ["--store", str(folder / name), "--state-dir", str(folder / f"{name}-{path.stem}")]
    return _timed([sys.executable, "-m", "train_cloud", "train", str(path), *places], dict(os.environ))


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "train_cloud", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _timed(command: list[str], environment: dict[str, str]) -> float:
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
