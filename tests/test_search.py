"""Searches: what is refused, the journal under races and kills, what is drawn, who is pruned, real runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from paths import PYTHONPATH
from pydantic import BaseModel
from ruamel.yaml import YAML
from until import until

from train_cloud.cli import main
from train_cloud.config import Dimension, Experiment, Search, load_experiment
from train_cloud.errors import CorruptCheckpoint, InputError, TrainCloudError
from train_cloud.evaluate.results import Episode, Evaluation, summarise
from train_cloud.experiments.engine import Row
from train_cloud.experiments.search.journal import Journal, Overtaken
from train_cloud.experiments.search.study import Study, Trial, examples
from train_cloud.experiments.search.trials import Trials, drawn
from train_cloud.experiments.search.worker import Worker
from train_cloud.experiments.standing import Standing, run_store
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.store import ObjectStore, open_store

DOCS = Path(__file__).parent.parent / "docs" / "search.md"
BEGIN, END = "<!-- fields: written by python tests/test_search.py -->\n", "<!-- end -->"
RATE, NET = "hyperparameters.learning_rate", "hyperparameters.policy_kwargs.net_arch"
BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 1024,
    "save_frequency": 256,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 128, "batch_size": 32, "n_epochs": 4, "policy_kwargs": {"net_arch": [8]}},
    "evaluation": {"every": 256, "episodes": 1, "max_steps": 60},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
}
SEARCH: dict[str, Any] = {
    "space": {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, NET: [[8], [16, 16]]},
    "pruner": "median",
    "startup_trials": 2,
    "trials": 6,
}


def write(
    folder: Path, base: Mapping[str, Any] | None = None, top: Mapping[str, Any] | None = None, **search: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**BASE, **(base or {})}, folder / "base.yaml")
    path = folder / "search.yaml"
    values = {"experiment": "rates", "base": "base.yaml", "search": {**SEARCH, **search}, **(top or {})}
    YAML().dump(values, path)
    return path


def load(
    folder: Path, base: Mapping[str, Any] | None = None, top: Mapping[str, Any] | None = None, **search: Any
) -> Experiment:
    return load_experiment(write(folder, base, top, **search))


# ------------------------------------------------------------------------------------------------------ experiment file


def test_a_trial_is_a_run_for_each_seed(tmp_path: Path) -> None:
    experiment = load(tmp_path, top={"seeds": [7, 3, 9]}, seeds_per_trial=2)
    cells = experiment.trial(4, {RATE: 0.001, NET: [16, 16]})
    assert [(cell.run_id, cell.seed) for cell in cells] == [("rates-t4-s7", 7), ("rates-t4-s3", 3)]
    config = cells[1].config
    assert (config.run_id, config.seed, config.experiment) == ("rates-t4-s3", 3, "rates")
    assert config.hyperparameters["learning_rate"] == 0.001
    assert config.hyperparameters["policy_kwargs"] == {"net_arch": [16, 16]}
    assert config.hyperparameters["n_steps"] == 128


@pytest.mark.parametrize(
    ("top", "base", "count", "seeds"),
    [
        ({}, {}, None, [0]),
        ({}, {"seed": 5}, 3, [5, 6, 7]),
        ({"seeds": [4, 2]}, {}, None, [4, 2]),
        ({"seeds": [4, 2]}, {"seed": 9}, 1, [4]),
        ({}, {"seeds": [8, 1]}, None, [8, 1]),
    ],
)
def test_seeds(tmp_path: Path, top: Any, base: Any, count: int | None, seeds: list[int]) -> None:
    experiment = load(tmp_path, base, top, seeds_per_trial=count)
    assert [cell.seed for cell in experiment.trial(0, {RATE: 0.1})] == seeds


@pytest.mark.parametrize(
    ("given", "whole", "grid"),
    [
        ({"low": 1, "high": 8}, True, 8),
        ({"low": 16, "high": 65, "step": 16}, True, 4),
        ({"low": 1.0, "high": 8}, False, None),
        ({"low": 0.1, "high": 0.9, "step": 0.2}, False, 5),
        ({"low": 0, "high": 1, "int": False}, False, None),
        ({"low": 1e4, "high": 1e6, "log": True, "int": True}, True, 10_001),
        (["a", None, True, 1, [1], {"b": 2}], False, 6),
    ],
)
def test_what_a_dimension_means(tmp_path: Path, given: Any, whole: bool, grid: int | None) -> None:
    experiment = load(tmp_path, space={"hyperparameters.x": given})
    assert experiment.search is not None
    dimension = experiment.search.space["hyperparameters.x"]
    assert dimension.whole == whole
    assert (None if dimension.grid is None else len(dimension.grid)) == grid
    allowed = None if dimension.choices is None else [json.dumps(choice) for choice in dimension.choices]
    for values in examples(experiment, 6):
        drawn = values["hyperparameters.x"]
        if allowed is not None:
            assert json.dumps(drawn) in allowed
        else:
            assert dimension.low is not None and dimension.high is not None
            assert dimension.low <= drawn <= dimension.high and isinstance(drawn, int if whole else float)


def of(dimension: object) -> dict[str, Any]:
    return {"search": {**SEARCH, "space": {"hyperparameters.gamma": dimension}}}


def over(key: str) -> dict[str, Any]:
    return {"search": {**SEARCH, "space": {key: [1, 2]}}}


def search(**changed: Any) -> dict[str, Any]:
    return {"search": {**SEARCH, **changed}}


GAMMA = "search.space.hyperparameters.gamma"


@pytest.mark.parametrize(
    ("top", "words"),
    [
        (of({"low": 0, "high": 1}), f"{GAMMA}: {{'low': 0, 'high': 1}}: write int: true if"),
        (of({"low": 1e4, "high": 1e6}), f"{GAMMA}: {{'low': 10000.0, 'high': 1000000.0}}: write int: true if"),
        (of({"low": 3, "high": 3}), f"{GAMMA}: {{'low': 3, 'high': 3}}: give a low that is below high"),
        (of({"low": 0.0, "high": 1.0, "log": True}), f"{GAMMA}: {{'low': 0.0, 'high': 1.0, 'log': True}}: a logarithm"),
        (of({"low": 1.0, "high": 2.0, "step": 3.0}), f"{GAMMA}: {{'low': 1.0, 'high': 2.0, 'step': 3.0}}: give a step"),
        (of({"low": 0.5, "high": 2, "int": True}), f"{GAMMA}: {{'low': 0.5, 'high': 2, 'int': True}}: with int: true"),
        (of({"low": True, "high": 8}), f"{GAMMA}.low: True: give a number"),
        (of({"low": "1", "high": 8}), f"{GAMMA}.low: '1': give a number"),
        (of({"low": float("nan"), "high": 8}), f"{GAMMA}.low: nan: give a finite number"),
        (of({"low": -float("inf"), "high": 8}), f"{GAMMA}.low: -inf: give a finite number"),
        (of({"high": 8}), f"{GAMMA}: {{'high': 8}}: give low and high, or a list of choices: low is missing"),
        (of({"low": 1, "high": 8, "hihg": 9}), f"{GAMMA}.hihg: 9: unknown key: did you mean high?"),
        (of([1]), f"{GAMMA}: {{'choices': [1]}}: give at least two choices"),
        (of([1, 2, 1]), f"{GAMMA}: {{'choices': [1, 2, 1]}}: 1 stands there twice"),
        (of({"choices": [1, 2], "low": 1}), f"{GAMMA}: {{'choices': [1, 2], 'low': 1}}: give choices, or low"),
        (of(0.9), f"{GAMMA}: 0.9: give a map"),
        (over("run_id"), "search.space.run_id: '1 | 2': runs are named after experiment"),
        (over("seed"), "search.space.seed: '1 | 2': all trials have the same seeds"),
        (over("total_timesteps"), "search.space.total_timesteps: '1 | 2': trials are compared at equal timesteps"),
        (over("evaluation.every"), "search.space.evaluation.every: '1 | 2': trials are compared by it"),
        (over("save_frequency"), "search.space.save_frequency: '1 | 2': what is learned does not depend on it"),
        (
            over("hyperparameter.x"),
            "search.space.hyperparameter.x: '1 | 2': unknown key: did you mean hyperparameters?",
        ),
        (over("environment.n_env"), "search.space.environment.n_env: 1: unknown key: did you mean n_envs?"),
        (over("hyperparameters.env"), "search.space.hyperparameters.env: "),
        (over("policy"), "search.space.policy: 1: give text"),
        (over("a..b"), "search.space.a..b: '1 | 2': write key or key.sub"),
        (search(space={"algorithm": ["ppo", "sacx"]}), "search.space.algorithm: 'sacx': did you mean sac?"),
        (search(space={"training_type": ["ppo", "sacx"]}), "search.space.training_type: 'sacx': did you mean sac?"),
        (
            search(space={"environment.n_envs": {"low": -1, "high": 2}}),
            "search.space.environment.n_envs: -1: give a num",
        ),
        (search(space={"hyperparameters": [{}, {"gamma": 1}], RATE: [1, 2]}), f"search.space.{RATE}: '1 | 2': hyperp"),
        (search(space={}), "search.space: []: name 1 to 100 keys"),
        (search(sampler="grid"), f"search.space.{RATE}: '1e-05 … 0.01, log': a grid needs"),
        (search(trials=None), "search.trials: None: it is required"),
        (search(trials=0), "search.trials: 0: give a number of at least 1"),
        (search(metric="mean_retrun"), "search.metric: 'mean_retrun': did you mean mean_return?"),
        (search(direction="larger"), "search.direction: 'larger': use maximize or minimize"),
        (search(pruner="asah"), "search.pruner: 'asah': use median, asha or none"),
        (search(prunner="asha"), "search.prunner: 'asha': unknown key: did you mean pruner?"),
        (search(seeds_per_trial=3) | {"seeds": [1, 2]}, "search.seeds_per_trial: 3: there are only 2 seeds"),
        (search(warmup_timesteps=1024), "search.warmup_timesteps: 1024: nothing would be pruned"),
        ({"vary": {"a": {"b": {}}}}, f"search: ['{RATE}', '{NET}']: give search or vary, not both"),
        ({"experiment": "a" * 60}, f"experiment: '{'a' * 60}-t5-s0': it has 66 characters"),
    ],
)
def test_what_is_refused(tmp_path: Path, top: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, top=top)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("base", "overrides", "words"),
    [
        ({"evaluation": None}, [], "search.metric: 'mean_return': the base has no evaluation"),
        ({"evaluation": {"episodes": 1}}, [], "search.pruner: 'median': it decides by evaluations before the end"),
        ({"evaluation": {"every": 1024}}, [], "search.pruner: 'median': it decides by evaluations before the end"),
        ({"algorithm": "ppp"}, [], "rates-t0-s0: algorithm: 'ppp': did you mean ppo?"),
        ({}, [f"{RATE}=1"], f"--set {RATE}: 1: search.space.{RATE} is searched"),
        ({}, ["hyperparameters={}"], f"--set hyperparameters: {{}}: search.space.{RATE} is searched"),
        ({}, ["search.trials=x"], "search.trials: 'x': give a whole number"),
    ],
)
def test_what_the_base_and_overrides_refuse(tmp_path: Path, base: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as refused:
        load_experiment(write(tmp_path, base), overrides)
    assert str(refused.value).startswith(words)


def test_a_search_cannot_be_written_out_beforehand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expand", str(write(tmp_path)), "--out", str(tmp_path / "files")]) == 64
    assert "its runs are drawn one after the other" in capsys.readouterr().err
    assert not (tmp_path / "files").exists()


def test_a_search_is_read_without_optuna(tmp_path: Path) -> None:
    code = (
        "import sys; from train_cloud.config import load_experiment; "
        f"print(load_experiment({str(write(tmp_path))!r}).search.most_trials, 'optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["6", "False"]


# -------------------------------------------------------------------------------------------------------------- journal


def records(count: int, of: str = "a") -> list[dict[str, Any]]:
    return [{"op_code": 2, "worker_id": of, "number": number} for number in range(count)]


def test_the_journal_keeps_the_order_in_which_it_was_written(store_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_cloud.experiments.search.journal._IN_A_FOLDER", 4)
    one, other = Journal(open_store(store_root)), Journal(open_store(store_root))
    assert one.is_empty and one.read_logs(0) == []
    every = records(11)
    one.append_logs(every[:2])
    other.append_logs(every[2:3])  # which has not read the first
    for index in range(3, 11):
        (one, other)[index % 2].append_logs([every[index]])
    assert one.read_logs(0) == other.read_logs(0) == Journal(open_store(store_root)).read_logs(0) == every
    assert one.read_logs(9) == every[9:] and one.read_logs(11) == []


def test_a_transaction_is_written_whole_or_not_at_all(store_root: str) -> None:
    one, other = Journal(open_store(store_root)), Journal(open_store(store_root))
    with one.transaction():
        one.append_logs(records(2))
        one.append_logs(records(1, "b"))
        assert one.read_logs(1) == [*records(2)[1:], *records(1, "b")]
        assert other.is_empty
    assert len(other.read_logs(0)) == 3
    with pytest.raises(Overtaken), one.transaction():
        other.append_logs(records(1, "c"))
        one.append_logs(records(1, "d"))
    with pytest.raises(RuntimeError), one.transaction():
        one.append_logs(records(1, "e"))
        raise RuntimeError
    assert [record["worker_id"] for record in one.read_logs(0)] == ["a", "a", "b", "c"]


def test_a_record_that_is_gone_or_damaged_is_named(folder_root: str) -> None:
    journal = Journal(open_store(folder_root))
    for record in records(3):
        journal.append_logs([record])
    path = Path(folder_root) / "search/journal/000000/000000001.json"
    whole = path.read_bytes()
    for damaged in (b"", b"[]", b'{"records": 1}', None):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(CorruptCheckpoint, match="000000001"):
            Journal(open_store(folder_root)).read_logs(0)
    path.write_bytes(whole)
    assert len(Journal(open_store(folder_root)).read_logs(0)) == 3


RACING = """
import json, sys, time
from train_cloud.config import load_experiment
from train_cloud.experiments.search.study import Study
experiment, root, name = load_experiment(sys.argv[1]), sys.argv[2], sys.argv[3]
study = Study(experiment, root)
print("ready", flush=True)
sys.stdin.readline()
study.begin()
mine = []
while (trial := study.ask(name)) is not None:
    mine.append(trial.number)
    time.sleep(0.01)  # what a training would take at the very least
    value = trial.values["hyperparameters.learning_rate"]
    if study.report(trial.number, {256: value, 512: value}).state == "running":
        study.complete(trial.number, value)
print(json.dumps(mine))
"""


def test_two_processes_in_a_race_lose_no_trial_and_do_none_twice(tmp_path: Path, store_root: str) -> None:
    path = write(tmp_path, trials=16)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(path), store_root, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("one", "other")
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [json.loads(racer.communicate(timeout=240)[0]) for racer in racers]
    assert sorted(said[0] + said[1]) == list(range(16))
    assert said[0] and said[1]
    trials = Study(load_experiment(path), store_root).trials()
    assert [trial.number for trial in trials] == list(range(16))
    for name, numbers in zip(("one", "other"), said, strict=True):
        assert [trial.number for trial in trials if trial.worker == name] == numbers
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    assert len({trial.values[RATE] for trial in trials}) == 16


def test_optuna_reads_it(tmp_path: Path, folder_root: str) -> None:
    experiment = load(tmp_path)
    study = Study(experiment, folder_root)
    study.begin()
    trial = study.ask("me")
    assert trial is not None
    study.complete(trial.number, 3.0)
    storage = optuna.storages.JournalStorage(Journal(open_store(f"{folder_root}/experiments/rates")))
    found = optuna.load_study(study_name="rates", storage=storage)
    assert found.best_value == 3.0 and found.best_params[RATE] == trial.values[RATE]
    assert found.direction == optuna.study.StudyDirection.MAXIMIZE


# ----------------------------------------------------------------------------------------- trials, played without torch


def reached(values: Mapping[str, Any], timesteps: int, seed: int) -> float:
    """What an evaluation finds: it depends on what was drawn, and grows."""
    return 100 * float(values[RATE]) * (1 + timesteps / 1000) + len(values[NET]) + seed / 100


def enter_evaluation(store: ObjectStore, timesteps: int, value: float, success: bool | None = None) -> None:
    episode = Episode(
        **{"return": value, "category": "default", "index": 0, "seed": 1, "level": None, "length": 10},
        terminated=True,
        success=success,
        collisions=None,
        inference_ms=1.0,
    )
    summary = summarise({"default": [episode]})
    found = Evaluation(
        timesteps=timesteps,
        model="0",
        at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        deterministic=True,
        overall=summary,
        categories={"default": summary},
        episodes=(episode,),
    )
    store.put(layout.evaluation_key(timesteps), found.model_dump_json(by_alias=True).encode())


def values_of(experiment: Experiment, row: Row) -> dict[str, Any]:
    hyperparameters = row.cell.config.hyperparameters
    return {RATE: hyperparameters["learning_rate"], NET: hyperparameters["policy_kwargs"]["net_arch"]}


class Player:
    """What the engine does, with runs that are over at once: so nothing is left but the search."""

    def __init__(self, experiment: Experiment, root: str, folder: Path, *, train_on: bool = False) -> None:
        self.experiment, self.root, self.folder = experiment, root, folder
        folder.mkdir(exist_ok=True)
        self.trials = Trials(experiment, root, train_on=train_on)
        self.trials._every = 0.0
        self.trials.prepare()
        cells = experiment.cells
        self.trials.begin(folder)
        others = self.trials.of_others()
        self.rows = [self.row(cell) for cell in cells if cell.run_id not in others]
        self.ended: dict[str, str] = {}

    def row(self, cell: Any) -> Row:
        return Row(cell, Standing(cell, "new"), self.folder / cell.run_id)

    def play(self, evaluated: tuple[int, ...] = (256, 512, 768, 1024), trials: int = 10_000) -> None:
        """Until there is nothing more to do, or so many trials were begun."""
        while True:
            for run_id, why in self.trials.look(self.rows).items():
                row = next(row for row in self.rows if row.cell.run_id == run_id)
                row.doing, row.reason = "stopped", why
                self.ended[run_id] = why
            waiting = [row for row in self.rows if row.doing == "waiting"]
            if not waiting:
                more = self.trials.more() if trials > 0 else ()
                trials -= 1
                if not more:
                    return
                self.rows += [self.row(cell) for cell in more]
                continue
            self.train(waiting[0], evaluated)

    def train(self, row: Row, evaluated: tuple[int, ...]) -> None:
        store = run_store(self.root, row.cell.run_id)
        there = {info.key for info in store.list(layout.EVALUATIONS)}
        for timesteps in evaluated:
            value = reached(values_of(self.experiment, row), timesteps, row.cell.seed)
            if layout.evaluation_key(timesteps) not in there:
                enter_evaluation(store, timesteps, value)
            row.doing = "training"
            if row.cell.run_id in self.trials.look(self.rows):
                row.doing = "stopped"
                return
        row.doing = "completed"
        row.standing = dataclasses.replace(row.standing, state="completed", timesteps=max(evaluated))


def outcome(trials: list[Trial]) -> list[Trial]:
    return [dataclasses.replace(trial, worker=None) for trial in trials]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    folder = tmp_path_factory.mktemp("played")
    player = Player(load(folder), str(folder / "store"), folder / "worker")
    player.play()
    found = drawn(load(folder), str(folder / "store"))
    assert [trial.state for trial in found].count("pruned") >= 1
    assert [trial.state for trial in found].count("complete") >= 3
    return outcome(found)


def test_the_same_trials_again_and_others_with_another_seed(tmp_path: Path, played: list[Trial]) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        experiment = load(tmp_path / name, seed=seed)
        Player(experiment, str(tmp_path / name / "store"), tmp_path / name / "worker").play()
        found = outcome(drawn(experiment, str(tmp_path / name / "store")))
        assert (found == played) == (seed == 0)
        assert examples(experiment, 2) == [trial.values for trial in found[:2]]


def killed_at(write: int, after: bool, play: Callable[[], None]) -> bool:
    """In a process that is killed right before or after its so many-th write.

    :return: whether it was, rather than came to its end
    """
    child = os.fork()
    if child == 0:
        count = 0

        def wrapped(verb: Callable[..., Any]) -> Callable[..., Any]:
            def write_or_die(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                if count == write and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = verb(*arguments)
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return write_or_die

        from train_cloud.store.folder import FolderStore

        for name in ("create", "put"):
            setattr(FolderStore, name, wrapped(getattr(FolderStore, name)))
        code = 1
        try:
            play()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_goes_on_with_the_same_trials(tmp_path: Path, played: list[Trial], after: bool) -> None:
    """The same process is killed again and again, each time one write further than it came before."""
    experiment = load(tmp_path)

    def play() -> None:
        Player(load_experiment(tmp_path / "search.yaml"), str(tmp_path / "store"), tmp_path / "worker").play()

    kills = 0
    while killed_at(2 + kills % 5, after, play):
        kills += 1
        assert kills < 200
        trials = drawn(experiment, str(tmp_path / "store"))
        for trial, expected in zip(outcome(trials), played, strict=False):
            assert trial.values == expected.values
            if trial.state != "running":
                assert trial == expected
    assert kills > 8
    assert outcome(drawn(experiment, str(tmp_path / "store"))) == played


def test_a_trial_is_taken_up_by_another_worker_when_its_own_is_gone(tmp_path: Path, played: list[Trial]) -> None:
    experiment, root = load(tmp_path), str(tmp_path / "store")
    assert killed_at(14, False, lambda: Player(load(tmp_path), root, tmp_path / "one").play())
    before = Study(experiment, root).trials()
    running = [trial for trial in before if trial.state == "running"]
    assert len(running) == 1
    player = Player(experiment, root, tmp_path / "other")
    assert not any(row.cell.run_id.startswith(f"rates-t{running[0].number}-") for row in player.rows)
    player.play()
    found = drawn(experiment, root)
    assert outcome(found) == played
    assert found[running[0].number].worker == player.trials._worker.name  # type: ignore[union-attr]


def test_a_trial_that_was_drawn_without_an_answer_is_its_workers_all_the_same(tmp_path: Path) -> None:
    one = Player(load(tmp_path), str(tmp_path / "store"), tmp_path / "one")
    worker = one.trials._worker
    assert worker is not None
    lost = Study(one.experiment, one.root).ask(worker.name)
    assert lost is not None and lost.number == 0
    assert [[cell.run_id for cell in one.trials.more()] for _ in range(2)] == [["rates-t0-s0"], ["rates-t1-s0"]]


def test_a_worker_that_is_there_keeps_its_trials(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    one = Player(load(tmp_path), root, tmp_path / "one")
    one.play(trials=0)
    mine = one.trials.more()
    other = Player(load(tmp_path), root, tmp_path / "other")
    other.play()
    assert other.trials.waits  # for the one that is still trained
    found = Study(one.experiment, root).trials()
    assert [trial.state for trial in found].count("running") == 1
    one.rows += [one.row(cell) for cell in mine]
    one.play()
    assert all(trial.state != "running" for trial in drawn(one.experiment, root))
    # It says that it leaves; whatever it had begun could be taken up from then on.
    worker = one.trials._worker
    assert worker is not None and not other.trials._worker.is_gone(worker.name)  # type: ignore[union-attr]
    one.trials.leave()
    assert other.trials._worker.is_gone(worker.name)  # type: ignore[union-attr]


def test_a_run_that_was_fenced_is_left_to_the_worker_that_has_taken_it_up(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    one = Player(load(tmp_path), root, tmp_path / "one")
    one.rows += [one.row(cell) for cell in one.trials.more()]
    row = one.rows[0]
    row.doing = "fenced"  # somebody trains the run by hand: the trial is still this worker's
    one.trials.look(one.rows)
    assert one.rows == [row]
    worker = one.trials._worker
    assert worker is not None and Study(one.experiment, root).take_up(0, worker.name, "other")
    assert not Study(one.experiment, root).take_up(0, worker.name, "third")
    one.trials.look(one.rows)
    assert one.rows == []


def test_a_run_that_a_person_cancels_ends_its_trial(tmp_path: Path) -> None:
    experiment, root = load(tmp_path, top={"seeds": [1, 2]}), str(tmp_path / "store")
    player = Player(experiment, root, tmp_path / "one")
    player.rows += [player.row(cell) for cell in player.trials.more()]
    row = player.rows[0]
    row.doing, row.standing = "cancelled", dataclasses.replace(row.standing, state="cancelled", outcome="stopped")
    row.reason = "cancelled on here"
    assert list(player.trials.look(player.rows)) == ["rates-t0-s2"]
    found = drawn(experiment, root)[0]
    assert (found.state, found.value, found.reason) == ("pruned", None, "cancelled on here")


def test_a_search_that_was_cancelled_draws_nothing_until_a_person_says_so(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    Study(load(tmp_path), root).cancel()  # before it has begun there is nothing to cancel
    assert not (tmp_path / "store").exists()
    Player(load(tmp_path), root, tmp_path / "worker").play(trials=1)
    Study(load(tmp_path), root).cancel()
    for train_on, count in ((False, 1), (True, 6), (False, 6)):
        Player(load(tmp_path), root, tmp_path / "worker", train_on=train_on).play()
        assert len(drawn(load(tmp_path), root)) == count


def test_a_worker_of_another_machine_is_gone_when_it_says_nothing(
    store_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = open_store(store_root), [1000.0]
    monkeypatch.setattr("train_cloud.experiments.search.worker.time.monotonic", lambda: now[0])
    (tmp_path / "one").mkdir()
    worker, beats = Worker(store, tmp_path / "one"), iter(range(9))
    assert Worker(store, tmp_path / "one").name == worker.name

    def beat() -> None:
        body = {"machine": "another", "process": 1, "began": 0.0, "beat": next(beats)}
        store.put("search/workers/far.json", json.dumps(body).encode())

    assert worker.is_gone("nobody")
    beat()
    assert not worker.is_gone("far")
    now[0] += 100
    assert not worker.is_gone("far")
    beat()
    assert not worker.is_gone("far")
    now[0] += 100
    assert not worker.is_gone("far")
    now[0] += 21
    assert worker.is_gone("far")


def test_trials_are_compared_at_equal_timesteps_over_all_seeds(tmp_path: Path) -> None:
    """Rollouts may step over a multiple of `every`; what is told then counts for it, once all seeds have it."""
    experiment = load(tmp_path, top={"seeds": [1, 3]}, pruner="asha", reduction_factor=2, trials=3)
    player = Player(experiment, str(tmp_path / "store"), tmp_path / "worker")
    player.play(evaluated=(300, 520, 1100), trials=1)
    first = drawn(experiment, player.root)[0]
    assert list(first.steps) == [256, 512]
    expected = [sum(reached(first.values, at, seed) for seed in (1, 3)) / 2 for at in (300, 520, 1100)]
    assert list(first.steps.values()) == pytest.approx(expected[:2])
    assert first.state == "complete" and first.value == pytest.approx(expected[2])
    # Another one, whose second seed has said nothing yet, is not judged.
    rows = [player.row(cell) for cell in player.trials.more()]
    player.rows += rows
    store = run_store(player.root, rows[0].cell.run_id)
    for row in rows:
        row.doing = "training"
    enter_evaluation(store, 260, -1000.0)
    assert player.trials.look(player.rows) == {} and drawn(experiment, player.root)[1].steps == {}
    enter_evaluation(run_store(player.root, rows[1].cell.run_id), 300, -1000.0)
    stopped = player.trials.look(player.rows)
    assert stopped == {row.cell.run_id: "pruned: not the best at 256 timesteps: mean_return -1000" for row in rows}
    second = drawn(experiment, player.root)[1]
    assert (second.state, second.value) == ("pruned", -1000.0)


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    space: dict[str, list[Any]] = {RATE: [0.1, 0.2], NET: [[8], [16], [8, 8]]}
    experiment = load(tmp_path, space=space, sampler="grid", trials=None, pruner=None)
    assert experiment.search is not None and experiment.search.most_trials == 6
    Player(experiment, str(tmp_path / "store"), tmp_path / "worker").play()
    found = drawn(experiment, str(tmp_path / "store"))
    assert [(trial.values[RATE], trial.values[NET]) for trial in found] == [
        (a, b) for a in space[RATE] for b in space[NET]
    ]
    assert all(trial.state == "complete" for trial in found)


def test_more_trials_may_follow_and_another_search_may_not(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    Player(load(tmp_path, trials=3), root, tmp_path / "worker").play()
    Player(load(tmp_path, trials=5), root, tmp_path / "worker").play()
    assert len(drawn(load(tmp_path, trials=5), root)) == 5
    before = sorted(Path(root).rglob("*"))
    for changed, words in (
        ({"metric": "efficiency"}, "search.metric: 'efficiency': the search was begun with 'mean_return'"),
        ({"seed": 4}, "search.seed: 4: the search was begun with 0"),
        ({"space": {NET: [[8], [16]]}}, f"search.space.{RATE}: None: the search was begun with"),
        ({"base": {"total_timesteps": 2048}}, "total_timesteps: 2048: the search was begun with 1024"),
        (
            {"base": {"evaluation": {"every": 256, "episodes": 2}}},
            "evaluation.episodes: 2: the search was begun with 1",
        ),
        ({"seeds_per_trial": 2}, "seeds: [0, 1]: the search was begun with [0]"),
        (
            {"base": {"environment": {"id": "Acrobot-v1"}}},
            "base.environment.id: 'Acrobot-v1': the search was begun with",
        ),
    ):
        with pytest.raises(InputError) as refused:
            Player(load(tmp_path, **changed), root, tmp_path / "worker")
        assert str(refused.value).startswith(words)
    assert sorted(Path(root).rglob("*")) == before


def fail(row: Row, *, refused: bool = False) -> None:
    row.doing, row.reason, row.attempts, row.refused = "failed", "no luck", row.attempts + 1, refused


def test_trials_that_fail(tmp_path: Path) -> None:
    experiment, root = (
        load(tmp_path, {"evaluation": {"every": 256, "success": "info.won"}}, trials=9),
        str(tmp_path / "s"),
    )
    player = Player(experiment, root, tmp_path / "worker")
    for trial in range(5):
        player.rows += [player.row(cell) for cell in player.trials.more()]
        row = player.rows[-1]
        assert row.cell.run_id == f"rates-t{trial}-s0"
        if trial == 0:  # it is tried again at once, so often
            for attempt in (1, 2, 3):
                fail(row)
                stopped = player.trials.look(player.rows)
                assert row.doing == ("waiting" if attempt < 3 else "failed")
                assert stopped == {}
        else:  # what is refused is refused again
            fail(row, refused=True)
            player.trials.look(player.rows)
    assert [trial.state for trial in drawn(experiment, root)] == ["failed"] * 5
    assert drawn(experiment, root)[0].reason == "rates-t0-s0: no luck"
    assert player.trials.more() == ()
    with pytest.raises(
        TrainCloudError, match="5 trials in a row have failed, the last: rates-t4-s0: no luck; --continue"
    ):
        player.trials.check_end()
    assert Player(experiment, root, tmp_path / "worker", train_on=True).trials.more()[0].run_id == "rates-t5-s0"


def test_a_metric_that_no_evaluation_tells_ends_the_search(tmp_path: Path) -> None:
    experiment = load(tmp_path, trials=4, metric="success_rate")
    player = Player(experiment, str(tmp_path / "store"), tmp_path / "worker")
    player.play()
    (found,) = drawn(experiment, player.root)
    assert (found.state, found.reason) == ("failed", "rates-t0-s0 has no success_rate: its evaluation tells None")
    with pytest.raises(TrainCloudError, match=r"rates-t0-s0 does not tell success_rate.* say with evaluation\.success"):
        player.trials.check_end()


# -------------------------------------------------------------------------------------------------------------- compare


def test_what_a_search_has_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store, out = write(tmp_path, trials=12), str(tmp_path / "store"), tmp_path / "out"
    (tmp_path / "store").mkdir()
    compare = ["compare", str(path), "--store", store]
    assert main([*compare, "--out", str(out)]) == 64
    assert "no trial of this search has been drawn" in capsys.readouterr().err
    experiment = load_experiment(path)
    Player(experiment, store, tmp_path / "worker").play()
    trials = drawn(experiment, store)
    best = max((trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.value or 0.0)

    assert main([*compare, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("12 of 12 trials: ") and f"Best: t{best.number}, mean return" in said
    for name in ("history", "importances", "parallel-coordinates"):
        body = (out / f"{name}.png").read_bytes()
        assert body.startswith(b"\x89PNG") and len(body) > 5000
        assert f'src="{name}.png"' in (out / "index.html").read_text()
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [float(row[RATE]) for row in rows] == [trial.values[RATE] for trial in trials]
    assert [json.loads(row[NET]) for row in rows] == [trial.values[NET] for trial in trials]
    assert len(list(csv.DictReader((out / "evaluations.csv").open()))) == sum(len(trial.steps) for trial in trials)

    assert main([*compare, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == best.number and found["trials"][best.number]["run_ids"] == [f"rates-t{best.number}-s0"]
    assert sum(found["importances"].values()) == pytest.approx(1.0)
    assert found["importances"][RATE] > found["importances"][NET]  # see `reached`
    assert main([*compare, "--metric", "length"]) == 64
    assert "--metric: 'length': the trials were chosen by mean_return" in capsys.readouterr().err


def test_a_search_without_a_complete_trial_has_no_best_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = write(tmp_path, trials=1), str(tmp_path / "store")
    player = Player(load_experiment(path), store, tmp_path / "worker")
    assert player.trials.more()
    assert main(["compare", str(path), "--store", store, "--out", str(tmp_path / "out")]) == 0
    assert "1 of 1 trials: 1 running. None is complete" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png")) and (tmp_path / "out" / "index.html").is_file()


# ----------------------------------------------------------------------------------------------------------- real runs


def command(path: Path, *options: str, state: str = "state") -> list[str]:
    places = ["--store", str(path.parent / "store"), "--state-dir", str(path.parent / state), "--parallel", "1"]
    return [sys.executable, "-m", "train_cloud", "train", str(path), *places, *options]


def tree(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    above = psutil.Process(process.pid)
    yield above
    yield from above.children(recursive=True)


def at(path: Path, run_id: str, state: str = "state") -> int:
    try:
        return read_timesteps(path.parent / state / run_id)
    except OSError:
        return 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("search"), trials=4)
    done = subprocess.run(command(path), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return path


def found(path: Path) -> list[Trial]:
    return outcome(drawn(load_experiment(path), str(path.parent / "store")))


def outcomes(path: Path) -> list[str | None]:
    heads = [read_head(run_store(str(path.parent / "store"), f"rates-t{number}-s0")) for number in range(4)]
    return [None if head is None else head[0].outcome for head in heads]


@pytest.mark.slow
def test_killed_with_all_its_runs_a_search_ends_with_the_same_trials(uninterrupted: Path, tmp_path: Path) -> None:
    path = write(tmp_path, trials=4)
    process = subprocess.Popen(command(path), stderr=subprocess.DEVNULL, text=True)
    until(lambda: at(path, "rates-t1-s0") > 300, "300 timesteps of the second trial")
    for each in list(tree(process)):
        each.kill()
    process.wait()
    assert [trial.state for trial in found(path)][:2] == ["complete", "running"]
    # The second time its store does not answer for a while: of its process each write fails, as on a full disk.
    process = subprocess.Popen(command(path), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("rates-t1-s0: trains from" in line for line in process.stderr)
    most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
    assert any("the search waits for its store" in line for line in process.stderr)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert found(path) == found(uninterrupted)
    assert all(end in ("completed", "stopped") for end in outcomes(path))
    for trial, end in zip(found(path), outcomes(path), strict=True):
        assert trial.state in ("complete", "pruned")
        assert trial.state == "pruned" or end == "completed"


@pytest.mark.slow
def test_another_machine_takes_up_what_a_dead_one_has_begun(tmp_path: Path) -> None:
    path = write(tmp_path, trials=3, pruner="none")
    one = subprocess.Popen(command(path, state="one"), stderr=subprocess.DEVNULL, text=True)
    until(lambda: at(path, "rates-t0-s0", "one") > 0, "the first trial")
    other = subprocess.Popen(command(path, state="other"), stderr=subprocess.PIPE, text=True)
    until(lambda: at(path, "rates-t1-s0", "other") > 0 or at(path, "rates-t2-s0", "other") > 0, "one of the other's")
    for each in list(tree(one)):
        each.kill()
    one.wait()
    said = other.communicate(timeout=600)[1]
    assert other.returncode == 0, said
    trials = found(path)
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert outcomes(path)[:3] == ["completed"] * 3
    assert "is taken up" in said


@pytest.mark.slow
def test_what_the_commands_say_of_it(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(uninterrupted.parent / "store")
    assert main(["status", str(uninterrupted), "--store", store]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 trials: " in said and "best: t" in said and "rates-t3-s0" in said
    assert main(["train", str(uninterrupted), "--store", store, "--dry-run"]) == 0
    assert main(["cancel", str(uninterrupted), "--store", store]) == 0
    assert "rates-t0-s0 is completed" in capsys.readouterr().out
    # A person has ended it: no other trial is drawn until a person says so.
    more = [*command(uninterrupted), "--set", "search.trials=5"]
    assert subprocess.run(more, timeout=600).returncode == 0
    assert len(found(write(uninterrupted.parent, trials=5))) == 4
    assert main(["delete", str(uninterrupted), "--store", store, "--yes"]) == 0
    assert not list(Path(store).glob("runs/rates-*")) and not (Path(store) / "experiments" / "rates").exists()


# --------------------------------------------------------------------------------------------------------------- pages


def fields() -> str:
    """The tables of docs/search.md."""
    sections: list[tuple[str, type[BaseModel]]] = [("search", Search), ("search.space.KEY", Dimension)]
    lines = []
    for section, model in sections:
        lines += [f"\n### `{section}`\n", "| field | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n\n"


def test_the_documented_fields_are_those_that_there_are() -> None:
    assert DOCS.read_text().split(BEGIN)[1].split(END)[0] == fields()


def test_the_documented_example_is_right(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(DOCS.read_text().split("```yaml\n")[1].split("```")[0])
    YAML().dump({**BASE, "total_timesteps": 50_000}, tmp_path / "cartpole.yaml")
    experiment = load_experiment(path)
    assert experiment.search is not None and len(examples(experiment, 3)) == 3


if __name__ == "__main__":
    before, rest = DOCS.read_text().split(BEGIN)
    DOCS.write_text(before + BEGIN + fields() + END + rest.split(END, 1)[1])
