"""Runs on a Ray cluster of several raylets, which are lost, drained and killed: each run ends as it would have."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_cluster import RayCluster, ray_cluster
from ruamel.yaml import YAML
from until import until

from train_cloud import child_process
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.cli import main
from train_cloud.config import RunFile, parse_run_file
from train_cloud.errors import InputError
from train_cloud.platforms.ec2.metadata import on_ec2
from train_cloud.platforms.ec2.notices import NOTICE_FILE, Notice, local_form
from train_cloud.platforms.here import here
from train_cloud.platforms.ray_node import NODE, SHARE, RayNode
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime.evaluations import model_checksum
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.store import open_store
from train_cloud.whole_file import write_local

pytest.importorskip("ray")

from train_cloud.ray import cluster as of_cluster
from train_cloud.ray.cluster import Node, NodeType
from train_cloud.ray.training import Keeper, digest, pack_code, unpack

RUN: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 5120,
    "save_frequency": 1024,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 128, "batch_size": 32, "n_epochs": 8, "policy_kwargs": {"net_arch": [8]}},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
}
EXPERIMENT: dict[str, Any] = {
    "experiment": "nets",
    "base": "base.yaml",
    "vary": {"net": {"small": {}, "large": {"hyperparameters.policy_kwargs.net_arch": [16]}}},
    "seeds": [1],
}
PACED = """
import os, time
from pathlib import Path
from stable_baselines3.common.callbacks import BaseCallback

class Paced(BaseCallback):
    def _on_step(self):
        if not Path(os.environ["AS_FAST_AS_IT_CAN"]).exists():
            time.sleep(0.05)
        return True
"""
IDS = ("nets-small-s1", "nets-large-s1")


def write(folder: Path, run: dict[str, Any] | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**RUN, **(run or {})}, folder / "base.yaml")
    path = folder / "experiment.yaml"
    YAML().dump({**EXPERIMENT, **changed}, path)
    return path


def config(**changed: Any) -> RunFile:
    return parse_run_file({**RUN, **changed})


def command(ray: RayCluster, path: Path, *options: str) -> list[str]:
    places = ["--store", str(path.parent / "store"), "--state-dir", str(path.parent / "nodes")]
    launch = ["launch", str(path), "--platform", "ray", "--address", ray.address]
    return ray.inside([sys.executable, "-m", "train_cloud", *launch, *places, *options])


def launch(ray: RayCluster, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ray, path, *options),
        env=ray.environment(),
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )


def begin(ray: RayCluster, path: Path, *options: str) -> subprocess.Popen[str]:
    log = (path.parent / "launch.log").open("ab")
    return subprocess.Popen(
        command(ray, path, *options), env=ray.environment(), cwd=path.parent, stdout=log, stderr=log, text=True
    )


def sessions(path: Path, run_id: str) -> list[SessionRecord]:
    return read_sessions(open_store(layout.run_url(str(path.parent / "store"), run_id)))


def reached(path: Path, run_id: str) -> int:
    try:
        return read_timesteps(path.parent / "nodes" / run_id)
    except OSError:
        return 0


def parameters(root: Path, run_id: str) -> tuple[int, str]:
    store = open_store(layout.run_url(str(root), run_id))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None and read[0].outcome == "completed"
    snapshot = restore(store, read_manifest(store, read[0].manifest), parts={"model"})
    return read[0].timesteps, model_checksum(snapshot.parts["model"])


def ended(record: SessionRecord) -> dict[str, Any]:
    assert record.end is not None, record
    return record.end


def worker_of(run_id: str, among: list[psutil.Process]) -> list[psutil.Process]:
    """Ray's process in which the run's task is."""
    found = []
    for process in among:
        try:
            if process.cmdline()[:1] == [f"ray::train-cloud {run_id}"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), CPU=0) as found:
        yield found


# ------------------------------------------------------------------------------------------------ a launch's whole life


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whatever_is_lost_each_run_ends_bit_for_bit(ray: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "paced.py").write_text(PACED)
    fast = tmp_path / "fast"
    small = {
        "total_timesteps": 3072,
        "save_frequency": 512,
        "hyperparameters": {**RUN["hyperparameters"], "n_steps": 32},
    }
    mine = {"code": {"folder": "code"}, "callbacks": ["paced:Paced"], "env": {"AS_FAST_AS_IT_CAN": str(fast)}}
    path, control = write(tmp_path, {**small, **mine}), tmp_path / "control"
    fast.touch()
    alone = ["train", str(path), "--store", str(control), "--state-dir", str(tmp_path / "alone")]
    assert subprocess.run([sys.executable, "-m", "train_cloud", *alone], env=os.environ, timeout=600).returncode == 0
    fast.unlink()

    def trains(run_id: str, count: int) -> bool:
        """A session that is its ``count``-th, and has taken a step."""
        found = sessions(path, run_id)
        first = (found[-1].progress or {}).get("first_timestep") if len(found) == count else None
        return len(found) == count and reached(path, run_id) > (first or head_of(path, run_id))

    with MetadataService("i-spot", listener=ray.listener()) as metadata:
        ray.variables = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint, "AWS_EC2_METADATA_DISABLED": ""}
        spot = ray.add(CPU=1)
        ray.variables = {}
        other = ray.add(CPU=1)
        driver = begin(ray, path)
        try:
            until(lambda: all(trains(run_id, 1) for run_id in IDS), "both are trained", seconds=300)
            second = launch(ray, path)
            assert second.returncode == 64 and "another launch trains it on this cluster" in second.stderr

            # SIGKILL of the task's process: the training commits, and nothing is repeated.
            everywhere = [*ray.tree(spot), *ray.tree(other)]
            for process in worker_of(IDS[0], everywhere):
                process.kill()
            until(lambda: trains(IDS[0], 2), "the run goes on", seconds=300)
            first = sessions(path, IDS[0])[0]
            assert ended(first)["ended_by"] == "signal"
            assert 0 < ended(first)["committed_timesteps"] == ended(first)["last_timestep"]

            # The driver is killed: its tasks end with a commit, and the next one goes on with what is not over.
            driver.kill()
            driver.wait()
            until(lambda: all(sessions(path, run_id)[-1].end for run_id in IDS), "all has ended", seconds=120)
            assert ended(sessions(path, IDS[0])[1])["first_timestep"] == ended(first)["committed_timesteps"]
            driver = begin(ray, path)
            until(lambda: trains(IDS[0], 3) and trains(IDS[1], 2), "both go on", seconds=300)

            # A spot notice for one node: Ray gives it no more work, and its run goes on elsewhere.
            leaves = next(run_id for run_id in IDS if worker_of(run_id, ray.tree(spot)))
            count = len(sessions(path, leaves))
            metadata.interrupt()
            until(lambda: sessions(path, leaves)[count - 1].end is not None, "it leaves the node", seconds=120)
            record = sessions(path, leaves)[count - 1]
            assert ended(record)["ended_by"] == "notice" and [one["kind"] for one in record.notices] == ["spot"]
            assert record.start["instance_id"] == "i-spot" and record.start["ray"]["node"] == spot
            third = ray.add(CPU=1)
            until(lambda: trains(leaves, count + 1), "it goes on elsewhere", seconds=300)
            assert sessions(path, leaves)[-1].start["ray"]["node"] == third

            # Power is cut for another node: at most an interval is repeated.
            ray.kill(other)
            fast.touch()
            assert driver.wait(600) == 0, (tmp_path / "launch.log").read_text()
        finally:
            driver.kill()
            driver.wait()
    for run_id in IDS:
        assert parameters(tmp_path / "store", run_id) == parameters(control, run_id)
        of_run = sessions(path, run_id)
        ends = [one.end for one in of_run if one.end is not None]
        assert [end["repeated"] for end in ends if end["repeated"] > 512 + 32] == []
        for before, then in itertools.pairwise(of_run):
            if before.end is not None and then.end is not None:
                assert then.end["repeated"] == 0
    count = sum(len(sessions(path, run_id)) for run_id in IDS)
    again = launch(ray, path)
    assert again.returncode == 0, again.stderr
    assert sum(len(sessions(path, run_id)) for run_id in IDS) == count, "nothing completed runs again"
    ray.remove(third)
    ray.remove(spot)


def head_of(path: Path, run_id: str) -> int:
    read = read_head(open_store(layout.run_url(str(path.parent / "store"), run_id)))
    return read[0].timesteps if read is not None else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set", "ray.gpus=1"], "no node has as much, but 1 CPU and 0 GPU: set the run file's ray section"),
        (["--set", "ray.resources.licence=2"], "nets-small-s1: ray: '1 CPU and 2 licence': no node has as much"),
        (["--no-wait"], "--no-wait: True: a cluster trains for as long as its launch looks on"),
        (["--set", "secrets.A_KEY=/a/parameter"], "secrets.A_KEY: ***: set the environment variable A_KEY"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    ray: RayCluster, tmp_path: Path, options: list[str], told: str
) -> None:
    if not ray.added:
        ray.add(CPU=1)
    done = launch(ray, write(tmp_path), *options)
    assert done.returncode == 64, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_node_without_train_cloud_is_named(ray: RayCluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "train_cloud").mkdir(parents=True)
    # A checkout's finder would find what an empty package here does not have.
    (other / "train_cloud" / "__init__.py").write_text("raise ImportError('No module named train_cloud')")
    ray.variables = {"PYTHONPATH": str(other)}
    node = ray.add(CPU=1)
    ray.variables = {}
    done = launch(ray, write(tmp_path / "runs"))
    ray.remove(node)
    assert done.returncode == 64, done.stderr
    assert "install train-cloud on this node: No module named train_cloud" in done.stderr


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:9", "nothing answers there"),
        ("ray://127.0.0.1:10001", "call this on a node of the cluster"),
        ("nonsense", "write host:port of the cluster's head"),
        ("127.0.0.1:999999", "write host:port"),
    ],
)
def test_an_address_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, told: str
) -> None:
    path = write(tmp_path)
    code = main(["launch", str(path), "--platform", "ray", "--store", str(tmp_path / "s"), "--address", address])
    said = capsys.readouterr().err
    assert code == 64 and told in said and f"--address: '{address}'" in said
    assert not (tmp_path / "s").exists()


def test_a_run_file_is_no_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    run = tmp_path / "base.yaml"
    assert main(["launch", str(run), "--platform", "ray", "--store", str(tmp_path / "s")]) == 64
    assert "name an experiment file; for one run, one that says" in capsys.readouterr().err


def test_another_version_is_named_in_one_line() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as raised:
        theirs = {"ray_version": "2.59.0", "python_version": "3.10.4"}
        check_version_info(theirs, "here", raise_on_mismatch=True)
    told = str(of_cluster._explained("head:6379", raised.value))
    assert "the cluster has Ray 2.59.0 and Python 3.10.4, this process Ray" in told and "\n" not in told


# ---------------------------------------------------------------------------------------------- what runs take of nodes


@pytest.mark.parametrize(
    ("changed", "gpus", "need"),
    [
        ({}, False, {"CPU": 2.0}),
        ({}, True, {"CPU": 2.0, "GPU": 1.0}),
        ({"device": "cpu"}, True, {"CPU": 2.0}),
        ({"device": "cuda"}, False, {"CPU": 2.0, "GPU": 1.0}),
        ({"ray": {"cpus": 0.5, "gpus": 0.25}}, False, {"CPU": 0.5, "GPU": 0.25}),
        ({"ray": {"cpus": 0, "memory_gb": 2, "resources": {"a": 3}}}, False, {"memory": 2e9, "a": 3.0}),
    ],
)
def test_what_a_run_takes(changed: dict[str, Any], gpus: bool, need: dict[str, float]) -> None:
    assert of_cluster.needs(config(**changed), 2, gpus=gpus) == need


def test_how_many_runs_nodes_hold_and_which_part_each_has() -> None:
    small, large = Node("a", "a", {"CPU": 4.0}), Node("b", "b", {"CPU": 8.0, "GPU": 1.0})
    later = NodeType("spot", {"CPU": 4.0, "GPU": 1.0}, 10)
    need = {"CPU": 1.0, "GPU": 0.25}
    assert [of_cluster.fits(need, one.resources) for one in (small, large, later)] == [0, 4, 4]
    assert of_cluster.room(need, [small, large], []) == 4
    assert of_cluster.room(need, [small], [later]) == 40
    assert of_cluster.fits({"CPU": 0.1}, {"CPU": 0.3}) == 3, "of decimal fractions nothing is lost"
    assert of_cluster.share(need, large.resources) == 0.25
    assert of_cluster.share({"CPU": 6.0}, large.resources) == 0.75
    of_cluster.check_resources({"r": need}, [small], [later])
    with pytest.raises(InputError, match=r"r: ray: '1 CPU and 0\.25 GPU': no node has as much, but 4 CPU and 0 GPU"):
        of_cluster.check_resources({"r": need}, [small], [])


def test_what_may_come_is_read_where_ray_up_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert of_cluster.may_come() == []
    described = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}},
            "spot": {"resources": {"CPU": 4}, "max_workers": 2},
            "large": {"resources": {"CPU": 16}},
        },
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(described))
    assert of_cluster.may_come() == [NodeType("spot", {"CPU": 4}, 2), NodeType("large", {"CPU": 16}, 3)]


def test_the_cluster_file_is_one_that_ray_up_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (Path(__file__).parents[1] / "examples" / "ray" / "cluster.yaml").read_text()
    text = text.replace("${subnet_ids}", '["subnet-1", "subnet-2"]')
    found = YAML(typ="safe").load(re.sub(r"\$\{(\w+)\}", r"\1", text))
    validate_config(prepare_config(found))
    for name, kind in found["available_node_types"].items():
        node = kind["node_config"]
        assert (node.get("InstanceMarketOptions") is None) == (name == "head")
        assert node["IamInstanceProfile"]["Arn"] == ("head_profile_arn" if name == "head" else "worker_profile_arn")
        assert node["SubnetIds"] == ["subnet-1", "subnet-2"] and node["MetadataOptions"]["HttpTokens"] == "required"
    assert len({kind["node_config"]["InstanceType"] for kind in found["available_node_types"].values()}) == 4


@pytest.mark.parametrize(
    ("ray", "field"),
    [
        ({"gpus": 1.5}, "ray.gpus"),
        ({"cpus": -1}, "ray.cpus"),
        ({"resources": {"GPU": 1}}, "ray.resources.GPU"),
        ({"cores": 1}, "ray.cores"),
    ],
)
def test_a_wrong_section_is_named(ray: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as raised:
        config(ray=ray)
    assert raised.value.field == field


def test_the_code_folder_is_packed_alike_and_unpacked_once(tmp_path: Path) -> None:
    code = tmp_path / "mine"
    (code / "below").mkdir(parents=True)
    (code / "mine.py").write_text("A = 1\n")
    (code / "below" / "data.txt").write_text("data")
    (code / "left.csv").write_text("out")
    section = config(code={"folder": str(code), "exclude": ["*.csv"]}).code
    archive = pack_code(section)
    assert archive is not None and archive == pack_code(section)
    found = unpack(archive, digest(archive), tmp_path / "there")
    assert sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()) == [
        "below/data.txt",
        "mine.py",
    ]
    (found / "mine.py").write_text("B = 2\n")
    assert (unpack(archive, digest(archive), tmp_path / "there") / "mine.py").read_text() == "B = 2\n"
    assert pack_code(config().code) is None


# --------------------------------------------------------------------------------------------------------------- keeper

CHILD = """
import os, signal, sys, time
from pathlib import Path
from train_cloud.warm_process import die_with_parent
said = Path(sys.argv[1])
def stop(number, frame):
    said.write_text("committed")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
die_with_parent(int(os.environ["PARENT"]))
said.write_text("begun")
time.sleep(300)
"""
WORKER = """
import json, sys, time
from train_cloud.ray.training import Keeper
keeper = Keeper()
keeper.say(start=json.loads(sys.argv[1]))
print(keeper.process.pid, flush=True)
time.sleep(300)
"""


def order(tmp_path: Path, said: Path) -> dict[str, Any]:
    (tmp_path / "child.py").write_text(CHILD)
    return {
        "command": [sys.executable, str(tmp_path / "child.py"), str(said)],
        "environment": child_process.environment(PYTHONPATH=str(Path(__file__).parents[1])),
        "parent": "PARENT",
        "folder": str(tmp_path),
        "output": str(tmp_path / "output.log"),
        "warm": False,
        "modules": [],
    }


def content(path: Path) -> Callable[[], str]:
    return lambda: path.read_text() if path.exists() else ""


@pytest.mark.parametrize("killed", ["worker", "keeper"])
def test_whoever_is_killed_above_it_the_training_commits(tmp_path: Path, killed: str) -> None:
    said = tmp_path / "said"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(order(tmp_path, said))], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    keeper = int(worker.stdout.readline())
    try:
        until(lambda: content(said)() == "begun", "it is trained")
        os.kill(worker.pid if killed == "worker" else keeper, signal.SIGKILL)
        until(lambda: content(said)() == "committed", "it has committed")
        until(lambda: not psutil.pid_exists(keeper) or psutil.Process(keeper).status() == "zombie", "no keeper is left")
    finally:
        worker.kill()
        worker.wait()


def test_a_keeper_serves_one_training_after_the_other(tmp_path: Path) -> None:
    keeper = Keeper()
    try:
        for number in range(2):
            said = tmp_path / f"said-{number}"
            keeper.say(start=order(tmp_path, said))
            until(lambda said=said: content(said)() == "begun", "it is trained")  # type: ignore[misc]
            assert keeper.ended() is None
            keeper.say(signal=int(signal.SIGTERM))
            codes: list[int] = []
            until(lambda codes=codes: codes.extend(filter(None, [keeper.ended()])) or codes, "it ends")  # type: ignore[misc]
            assert codes == [75] and keeper.lives
    finally:
        keeper.leave()
    assert not keeper.lives


# ------------------------------------------------------------------------------------------------------------- platform


def test_a_node_is_a_platform_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODE, "abc")
    monkeypatch.setenv(SHARE, "0.25")
    node = here()
    assert isinstance(node, RayNode) and not on_ec2()
    at = datetime.now(timezone.utc) + timedelta(seconds=90)
    notice = Notice(kind="drain", action="terminate", time=at, seen=at)
    assert notice.ends and node.goes_at(tmp_path) is None
    write_local(tmp_path / NOTICE_FILE, local_form(notice, "another"))
    assert node.goes_at(tmp_path) is None
    write_local(tmp_path / NOTICE_FILE, local_form(notice, "abc"))
    assert node.goes_at(tmp_path) == at
    store = open_store(str(tmp_path / "runs" / "a-run"))
    session = node.begin(store, tmp_path, {}, 0)
    (record,) = read_sessions(store)
    assert record.start["ray"] == {"node": "abc", "share": 0.25} and session.number == 1
    assert node.price(record.start) is None


def test_a_run_pays_its_share_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws_endpoint: str) -> None:
    monkeypatch.setenv(NODE, "abc")
    monkeypatch.setenv(SHARE, "0.5")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with MetadataService("i-1", public_ipv4="192.0.2.1") as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        assert on_ec2()
        store = open_store(str(tmp_path / "runs" / "a-run"))
        session = RayNode().begin(store, tmp_path, {}, 0)
    (record,) = read_sessions(store)
    assert session.instance_id == "i-1" and record.start["instance_type"] == "g5.xlarge"
    assert record.start["price"]["address"] == pytest.approx(0.0025)
    price = RayNode().price(record.start)
    assert price is not None and price.life_cycle == "spot"
