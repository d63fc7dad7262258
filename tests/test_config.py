from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from train_cloud.cli import main
from train_cloud.config import (
    PARTS,
    Code,
    Environment,
    InitialModel,
    Limits,
    Preservation,
    RunFile,
    dump_run_file,
    expand,
    identity_changes,
    load_run_file,
    parse_run_file,
)
from train_cloud.config.architecture import Architecture
from train_cloud.config.artifacts import Artifacts, Wandb
from train_cloud.config.code import NEVER
from train_cloud.config.curriculum import Advance, Curriculum, Mix, Regress, Stage
from train_cloud.config.evaluation import Category, Evaluation, Routes, Video
from train_cloud.config.load import read_yaml
from train_cloud.config.pretraining import Keep, Pretraining
from train_cloud.config.ray import Ray
from train_cloud.config.reproducibility import Reproducibility
from train_cloud.config.sagemaker import SageMaker
from train_cloud.errors import InputError, NotYet
from train_cloud.operations.requirements import pip_arguments

DOCS = Path(__file__).parent.parent / "docs" / "run-file.md"

GOOD: dict[str, Any] = {
    "run_id": "pendulum-1",
    "algorithm": "sac",
    "total_timesteps": 2000,
    "save_frequency": 500,
    "environment": {"id": "Pendulum-v1"},
}
SCRIPT: dict[str, Any] = {
    "run_id": "script-1",
    "total_timesteps": 2000,
    "save_frequency": 500,
    "entry_point": "my_project.train:main",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    path = write(
        tmp_path,
        """\
run_id: racetrack-sac
algorithm: sac
policy: my.policies:Wide
seed: 7
device: cuda:1
total_timesteps: 1_000_000
save_frequency: 5e4
environment: {id: racetrack-v0, module: highway_env, kwargs: {config: {duration: 30}}, wrappers: ["a.b:C"], n_envs: 2,
              vectorization: subproc, normalize: {norm_reward: false}, frame_stack: null, state: pickle}
hyperparameters: {learning_rate: lin_3e-4, policy_kwargs: {net_arch: [256, 256]}}
callbacks: [my.callbacks:Log]
entry_point: null
code: {folder: code, exclude: ["data/**"], requirements: null, system_packages: [], python: "3.11"}
experiment: null
initial_model: null
data: []
env: {OMP_NUM_THREADS: 1}
secrets: {}
evaluation: null
wandb: null
limits: {hours: 12, dollars: null}
""",
    )
    run_file = load_run_file(path)
    assert (run_file.total_timesteps, run_file.save_frequency) == (1_000_000, 50_000)
    assert run_file.environment is not None
    assert run_file.environment.kwargs == {"config": {"duration": 30}}
    assert run_file.environment.wrappers == ("a.b:C",)
    assert run_file.code.folder == (tmp_path / "code").resolve()
    assert run_file.env == {"OMP_NUM_THREADS": "1"}
    assert run_file.limits.hours == 12


def test_a_script_finds_its_run_file(tmp_path: Path) -> None:
    import train_cloud
    from train_cloud.config.current import training

    with pytest.raises(InputError, match="run_file"):
        train_cloud.run_file()
    path = write(tmp_path, json.dumps(SCRIPT))
    assert train_cloud.run_file(path) == load_run_file(path)
    overridden = parse_run_file(SCRIPT, ["total_timesteps=9999"])
    with training(overridden):
        assert train_cloud.run_file() is train_cloud.run_file(path) is overridden
    with pytest.raises(InputError):
        train_cloud.run_file()
    assert not hasattr(train_cloud, "nonsense")


def test_it_is_frozen_and_leaves_its_input_alone() -> None:
    given_values = json.loads(json.dumps(GOOD))
    run_file = parse_run_file(given_values, ["environment.n_envs=3"], extra={"environment.kwargs.g": 1})
    assert given_values == GOOD
    assert run_file.environment is not None and run_file.environment.n_envs == 3
    with pytest.raises(ValueError, match="frozen"):
        run_file.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("1_000_000", 1_000_000),
        ("1_000.5", 1000.5),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        (".5", 0.5),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("lin_3e-4", "lin_3e-4"),
        ("~", None),
        ("", None),
    ],
)
def test_yaml_1_2(tmp_path: Path, written: str, read: object) -> None:
    text = json.dumps(GOOD)[:-1] + f', "hyperparameters": {{"x": {written}}}}}'
    assert load_run_file(write(tmp_path, text)).hyperparameters == {"x": read}
    assert parse_run_file(GOOD, [f"hyperparameters.x={written}"]).hyperparameters == {"x": read}


@pytest.mark.parametrize("written", ["2e6", "2000000", "2_000_000", "2000000.0", "0x1E8480"])
def test_step_counts_may_be_written_as_people_do(written: str) -> None:
    total = parse_run_file(GOOD, [f"total_timesteps={written}"]).total_timesteps
    assert total == 2_000_000 and type(total) is int


BAD: list[tuple[str, str, str]] = [
    # override of a good file, the field that is named, a part of the fix
    ("reproducibility.replay=off", "reproducibility.replay", "use idle, always or never"),
    ("artifacts.sync_seconds=0", "artifacts.sync_seconds", "at least 0.1"),
    ("wandb={}", "wandb.project", "required"),
    ("wandb={project: p, mode: disabled}", "wandb.mode", "online"),
    ("secrets={A: no/such name}", "secrets.A", "name an SSM parameter"),
    ("secrets={AWS_PROFILE: /x}", "secrets.AWS_PROFILE", "the worker sets it"),
    ("total_timestep=5", "total_timestep", "did you mean total_timesteps"),
    ("environment.idd=Pendulum-v1", "environment.idd", "did you mean id"),
    ("environment.vectorisation=dummy", "environment.vectorisation", "did you mean vectorization"),
    ("limits.minutes=5", "limits.minutes", "unknown key"),
    ("code.folders=.", "code.folders", "did you mean folder"),
    ("zzz=1", "zzz", "use one of run_id"),
    ("run_id=Pendulum", "run_id", "lower-case"),
    ("run_id=-a", "run_id", "lower-case"),
    ("run_id=" + "a" * 64, "run_id", "1 to 63"),
    ("run_id=17", "run_id", "quotes"),
    ("run_id=", "run_id", "text"),
    ("algorithm=SAC", "algorithm", "did you mean sac"),
    ("algorithm=sacc", "algorithm", "did you mean sac"),
    ("algorithm=nope", "algorithm", "module:Class"),
    ('algorithm="my.module:"', "algorithm", "module:Class"),
    ("algorithm=null", "algorithm", "name one of a2c"),
    ("policy=Mlp Policy", "policy", "MlpPolicy"),
    ("policy=null", "policy", "text"),
    ("seed=-1", "seed", "at least 0"),
    ("seed=4294967296", "seed", "below 4294967296"),
    ("seed=true", "seed", "whole number"),
    ("run_id.x=1", "run_id.x", "not a map"),
    ("device=gpu", "device", "cuda"),
    ("total_timesteps=0", "total_timesteps", "at least 1"),
    ("total_timesteps=1.5", "total_timesteps", "whole number"),
    ('total_timesteps="1000"', "total_timesteps", "without quotes"),
    ("total_timesteps=lots", "total_timesteps", "whole number"),
    ("save_frequency=0", "save_frequency", "at least 1"),
    ("save_frequency=2001", "save_frequency", "at most total_timesteps, which is 2000"),
    ("save_frequency=true", "save_frequency", "whole number"),
    ("save_frequency=null", "save_frequency", "it is required: add it, or max_seconds_at_risk"),
    ("max_seconds_at_risk=0", "max_seconds_at_risk", "above 0"),
    ("max_seconds_at_risk=.inf", "max_seconds_at_risk", "finite"),
    ("max_seconds_at_risk=1 min", "max_seconds_at_risk", "number"),
    ("environment=null", "environment", "id: Pendulum-v1"),
    ("environment=Pendulum-v1", "environment", "give a map"),
    ("environment={}", "environment.id", "required"),
    ("environment.id=", "environment.id", "text"),
    ('environment.id=""', "environment.id", "empty"),
    ("environment.module=my-envs", "environment.module", "importable"),
    ("environment.kwargs=[1]", "environment.kwargs", "give a map"),
    ("environment.kwargs={a: {1: 2}}", "environment.kwargs", "quotes"),
    ("environment.kwargs={a: .nan}", "environment.kwargs", "nan"),
    ("environment.wrappers=a:B", "environment.wrappers", "list"),
    ("environment.wrappers=[a:B, nonsense]", "environment.wrappers.1", "module:Name"),
    ("environment.n_envs=0", "environment.n_envs", "at least 1"),
    ("environment.vectorization=threads", "environment.vectorization", "dummy or subproc"),
    ("environment.normalize={norm_observation: true}", "environment.normalize.norm_observation", "norm_obs"),
    ("environment.normalize=3", "environment.normalize", "map"),
    ("environment.frame_stack=0", "environment.frame_stack", "at least 1"),
    ("environment.state=magic", "environment.state", "replay or episode"),
    ("hyperparameters.learning_rate=lin_fast", "hyperparameters.learning_rate", "lin_<number>"),
    ('hyperparameters.learning_rate="3e-4"', "hyperparameters.learning_rate", "without quotes"),
    ("hyperparameters.seed=1", "hyperparameters.seed", "set the field seed"),
    ("hyperparameters.env=x", "hyperparameters.env", "set the field environment"),
    ("hyperparameters.tensorboard_log=x", "hyperparameters.tensorboard_log", "remove it"),
    ("hyperparameters=[]", "hyperparameters", "give a map"),
    ("callbacks=[my.Callback]", "callbacks.0", "module:Name"),
    ("entry_point=my.script", "entry_point", "module:function"),
    ("entry_point=my:main", "algorithm", "decides this"),
    ("code.folder=nowhere", "code.folder", "existing folder"),
    ("code.exclude=['{a,b}.py']", "code.exclude.0", "use only"),
    ("code.exclude=['data**']", "code.exclude.0", "use only"),
    ("code.exclude=[/tmp]", "code.exclude.0", "relative"),
    ("code.python=3.12", "code.python", "3.11"),
    ("env.1A=x", "env.1A", "letters"),
    ("env.A=yes", "", ""),
    ("env.A=true", "env.A", "quotes"),
    ('env.A="a\\nb"', "env.A", "one line"),
    ("env.AWS_REGION=x", "env.AWS_REGION", "worker sets it"),
    ("env.TRAIN_CLOUD_STORE=x", "env.TRAIN_CLOUD_STORE", "worker sets it"),
    ("limits.hours=0", "limits.hours", "above 0"),
    ("limits.hours=-1", "limits.hours", "above 0"),
    ("limits.hours=.inf", "limits.hours", "finite"),
    ("limits.hours=12h", "limits.hours", "without quotes"),
    ("schedule_total=0", "schedule_total", "at least 1"),
    ("preservation.keep=5", "preservation.keep", "use one of last, every, best"),
    ("preservation.last=0", "preservation.last", "at least 1"),
    ("preservation.last=1001", "preservation.last", "at most 1000"),
    ("preservation.every=3", "preservation.every", "at least 4: at most 500 stay"),
    ("preservation.every=4", "", ""),
    ("preservation.best=3", "preservation.best", "true or false"),
    ("total_timesteps", "--set", "key=value"),
    ("=1", "--set", "key=value"),
    ("environment..id=1", "--set", "key.sub"),
    ("seed=[1", "--set seed", "correct the YAML"),
]


@pytest.mark.parametrize(("override", "field", "fix"), BAD, ids=[case[0][:40] for case in BAD])
def test_bad_values_name_field_and_fix(override: str, field: str, fix: str) -> None:
    if not field:
        parse_run_file(GOOD, [override])
        return
    with pytest.raises(InputError) as caught:
        parse_run_file(GOOD, [override])
    error = caught.value
    assert type(error) is InputError and error.exit_code == 64
    assert error.field == field
    assert fix in error.fix
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("algorithm=ars", "algorithm"),
        ("code.system_packages=[ffmpeg]", "code.system_packages"),
    ],
)
def test_later_sections_are_refused_not_ignored(override: str, field: str) -> None:
    if not field:
        parse_run_file(GOOD, [override])
        return
    with pytest.raises(NotYet, match="not in this version") as caught:
        parse_run_file(GOOD, [override])
    assert caught.value.field == field


@pytest.mark.parametrize("key", ["algorithm", "policy", "environment", "hyperparameters", "callbacks"])
def test_a_script_decides_for_itself(key: str) -> None:
    assert parse_run_file(SCRIPT).algorithm is None
    values = {
        "algorithm": "sac",
        "policy": "MlpPolicy",
        "environment": {"id": "Pendulum-v1"},
        "hyperparameters": {"gamma": 0.9},
        "callbacks": ["a:B"],
    }
    with pytest.raises(InputError) as caught:
        parse_run_file({**SCRIPT, key: values[key]})
    assert caught.value.field == key


@pytest.mark.parametrize("missing", ["run_id", "total_timesteps", "save_frequency", "algorithm", "environment"])
def test_missing_fields(missing: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_run_file({key: value for key, value in GOOD.items() if key != missing})
    assert (caught.value.field, caught.value.value) == (missing, None)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"seed: -1: .*also: environment\.n_envs"):
        parse_run_file(GOOD, ["seed=-1", "environment.n_envs=0"])


BYTES = bytes(range(256))
CHAIN = list(itertools.pairwise("abcdefghijklmnopqrstuvw"))


@pytest.mark.parametrize(
    ("text", "field", "part"),
    [
        ("", "run file", "mapping"),
        ("- a\n", "run file", "mapping"),
        ("run_id: a\nrun_id: b\n", "run_id", "written twice"),
        ("run_id: a\nenvironment: {id: a, id: b}\n", "id", "written twice"),
        ("algorithm: sac\ntraining_type: sac\n", "training_type", "given twice"),
        ("run_id: [a\n", "run.yaml", "correct the YAML"),
        ("run_id: a\n---\nrun_id: b\n", "run.yaml", "correct the YAML"),
        ("run_id: !!python/object:os.system a\n", "run.yaml", "correct the YAML"),
        ("%YAML 1.1\n---\nrun_id: a\n", "run.yaml", "YAML 1.2"),
        ("run_id: a\tb\n\t- c", "run.yaml", "correct the YAML"),
        ("1: a\n", "1", "quotes"),
        (
            "environment: &e {id: a, kwargs: {x: *e}}\n" + "run_id: a\ntotal_timesteps: 1\nsave_frequency: 1\n",
            "run.yaml",
            "contains itself",
        ),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in CHAIN),
            "",
            "aliases",
        ),
        (
            "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}], y: *{a}}}\n" for a, b in CHAIN),
            "run.yaml",
            "aliases",
        ),
        ("{a: " * 1200, "run.yaml", "too deeply"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1200)), "run.yaml", "too deeply"),
        ("# " + "x" * 1_000_000, "run.yaml", "more than 1,000,000"),
        ("run_id: a\0b", "run.yaml", "correct the YAML"),
        ("run_id: !!bool 7", "run.yaml", "correct the YAML"),
        ("run_id: !!binary x", "run.yaml", "correct the YAML"),
        ("total_timesteps: " + "9" * 5000, "run.yaml", "correct the YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, field: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        load_run_file(write(tmp_path, text))
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not field or caught.value.field == field


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, content in (("absent.yaml", None), ("latin.yaml", "é".encode("latin-1")), (".", None), ("bytes", BYTES)):
        if content:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_run_file(tmp_path / path)
        assert caught.value.field == "run file"


def test_precedence_and_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "run_id: a\ntotal_timesteps: 100\nsave_frequency: 10\nenvironment: {id: E-v0}\n")
    run_file = load_run_file(
        path, ["save_frequency=30"], extra={"training_type": "sac", "save_frequency": 20, "total_timesteps": 200}
    )
    assert (run_file.algorithm, run_file.total_timesteps, run_file.save_frequency) == ("sac", 200, 30)

    overrides = tmp_path / "overrides.json"
    overrides.write_text('{"training_type": "sac", "limits.hours": 2}')
    monkeypatch.setenv("TRAIN_CLOUD_OVERRIDES", str(overrides))
    assert load_run_file(path).limits.hours == 2
    assert load_run_file(path, ["limits.hours=3"]).limits.hours == 3
    assert load_run_file(path, extra={"algorithm": "sac"}).limits.hours is None
    for content in ("[]", "{"):
        overrides.write_text(content)
        with pytest.raises(InputError, match="TRAIN_CLOUD_OVERRIDES"):
            load_run_file(path)


@pytest.mark.parametrize("command", ["train", "validate", "evaluate", "status", "requirements"])
def test_overrides_that_are_not_there_are_refused_everywhere(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, json.dumps(GOOD))
    monkeypatch.setenv("TRAIN_CLOUD_OVERRIDES", str(tmp_path / "gone.json"))
    store = [] if command == "requirements" else ["--store", str(tmp_path / "store")]
    assert main([command, str(path), *store]) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"train-cloud: TRAIN_CLOUD_OVERRIDES: '{tmp_path}/gone.json': name a file that holds a JSON")
    assert not (tmp_path / "store").exists() and not (tmp_path / ".train-cloud").exists()


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("TRAIN_CLOUD_THREADS", "many", "give a whole number of at least 1, or unset it"),
        ("TRAIN_CLOUD_THREADS", "0", "give a whole number of at least 1, or unset it"),
        ("TRAIN_CLOUD_STORE_PATIENCE", "nan", "give a number of at least 0.001, or unset it"),
        ("TRAIN_CLOUD_STOP_SECONDS", "-1", "give a number of at least 0, or unset it"),
        ("TRAIN_CLOUD_PATIENCE", "steps", "write phase=seconds"),
        ("TRAIN_CLOUD_PATIENCE", "naps=3", "write phase=seconds"),
    ],
)
def test_variables_that_are_no_numbers(
    tmp_path: Path, name: str, value: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, json.dumps(GOOD))
    monkeypatch.setenv(name, value)
    assert main(["train", str(path), "--store", str(tmp_path / "store")]) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"train-cloud: {name}: {value!r}: {fix}") and said.count("\n") == 1
    assert not (tmp_path / "store").exists()


names = st.text("abcdefgh_", min_size=1, max_size=8)
texts = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), include_characters="\n\t"), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@given(path=st.lists(names, min_size=1, max_size=3), value=values)
def test_an_override_arrives_as_it_was_given(path: list[str], value: object) -> None:
    key = ".".join(["environment", "kwargs", *path])
    json_text = json.dumps(value, ensure_ascii=False)
    # YAML writes infinity as .inf; a text that reads "Infinity" stays one
    written = re.sub(r'"(?:\\.|[^"\\])*"|Infinity', lambda m: ".inf" if m[0] == "Infinity" else m[0], json_text)
    expected: Any = value
    for name in reversed(path):
        expected = {name: expected}
    for run_file in (
        parse_run_file(GOOD, [f"{key}={written}"]),
        parse_run_file(GOOD, extra={key: value}),
        parse_run_file({**GOOD, "environment": {"id": "Pendulum-v1", "kwargs": expected}}),
    ):
        assert run_file.environment is not None
        assert run_file.environment.kwargs == expected
        identity = run_file.identity()
        assert identity_changes(json.loads(json.dumps(identity)), identity) == []


@given(first=values, second=values)
def test_the_last_override_wins(first: object, second: object) -> None:
    run_file = parse_run_file(GOOD, extra={"hyperparameters.x": first})
    again = parse_run_file(run_file.model_dump(mode="json"), extra={"hyperparameters.x": second})
    assert again.hyperparameters == {"x": second}


def test_requirements_travel_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code/pins").mkdir(parents=True)
    (tmp_path / "code/pins/worker.txt").write_text("highway-env==1.10\n")
    path = write(tmp_path, json.dumps({**GOOD, "code": {"folder": "code"}}))
    assert load_run_file(path).requirements is None
    (tmp_path / "code/requirements.txt").write_text("mpe2\n")
    assert load_run_file(path).requirements == tmp_path / "code/requirements.txt"
    chosen = load_run_file(path, ["code.requirements=code/pins/worker.txt"])
    assert chosen.requirements == tmp_path / "code/pins/worker.txt"
    assert pip_arguments(chosen) == ["-r", str(tmp_path / "code/pins/worker.txt")]
    contrib = load_run_file(path, ["code.requirements=code/pins/worker.txt", "algorithm=tqc"])
    assert pip_arguments(contrib)[0].startswith("sb3-contrib")
    before = chosen.identity()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "code").rename(tmp_path / "elsewhere/user")
    monkeypatch.setenv("TRAIN_CLOUD_CODE", str(tmp_path / "elsewhere/user"))
    there = load_run_file(path, ["code.requirements=code/pins/worker.txt"])
    assert there.requirements == tmp_path / "elsewhere/user/pins/worker.txt"
    assert there.identity() == before


@pytest.mark.parametrize(
    ("overrides", "field", "fix"),
    [
        (["code.requirements=other.txt"], "code.requirements", "put it into code.folder"),
        (["code.requirements=code/none.txt"], "code.requirements", "existing file"),
        (["code.requirements=code/a.txt", "code.exclude=['*.txt']"], "code.exclude", "leaves out"),
        (["initial_model=model.zip"], "initial_model", "put it into code.folder"),
        (["initial_model=code/none.zip"], "initial_model", "existing file"),
        (["initial_model=run:A"], "initial_model", "run:<run_id>"),
        (["initial_model=run:a@later"], "initial_model", "run:<run_id>"),
        (["initial_model=s3://bucket"], "initial_model", "s3://bucket/folder/model.zip"),
        (["initial_model={source: code/a.txt, buffer: true}"], "initial_model.buffer", "run:<run_id>"),
        (["initial_model={source: run:a, buffr: true}"], "initial_model.buffr", "did you mean buffer"),
        (["initial_model={buffer: true}"], "initial_model.source", "required"),
        (["seeds=[1, 1]"], "seeds", "once"),
        (["seeds=[]"], "seeds", ""),
        (["seeds=3"], "seeds", "list"),
        (["seeds=[1, -2]"], "seeds.1", "at least 0"),
        (["seeds=[1]", "seed=1"], "seed", "not both"),
        (["seeds=[4294967295]", f"run_id={'a' * 53}"], "run_id", "shorten it"),
        (["experiment=Gamma sweep"], "experiment", "lower-case"),
    ],
)
def test_bad_paths_and_groups(tmp_path: Path, overrides: list[str], field: str, fix: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.txt").write_text("")
    good = {key: value for key, value in GOOD.items() if key != "seed"}
    with pytest.raises(InputError) as caught:
        load_run_file(write(tmp_path, json.dumps({**good, "code": {"folder": "code"}})), overrides)
    assert caught.value.field == field, caught.value
    assert fix in caught.value.fix


def test_an_initial_model_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    model = tmp_path / "code/model.zip"
    model.write_bytes(b"first")
    path = write(tmp_path, json.dumps({**GOOD, "code": {"folder": "code"}, "initial_model": "code/model.zip"}))
    before = load_run_file(path).identity()
    assert before["initial_model"] == {"digests": {"model.zip": hashlib.sha256(b"first").hexdigest()}, "buffer": False}
    dumped = dump_run_file(load_run_file(path), tmp_path, "a copy")
    assert "source: code/model.zip" in dumped
    monkeypatch.setenv("TRAIN_CLOUD_CODE", str(tmp_path / "code"))
    (tmp_path / "etc").mkdir()
    assert load_run_file(write(tmp_path / "etc", path.read_text())).identity() == before
    (tmp_path / "code/vecnormalize.pkl").write_bytes(b"statistics")
    changed = load_run_file(path).identity()
    names = [change[0] for change in identity_changes(before, changed)]
    assert "initial_model.digests.vecnormalize.pkl" in names
    run = parse_run_file(GOOD, ["initial_model=run:a-run@5_000"])
    assert run.initial_model is not None and run.initial_model.run == ("a-run", 5000)


def test_seeds_make_a_run_each() -> None:
    good = {key: value for key, value in GOOD.items() if key != "seed"}
    runs = expand(parse_run_file({**good, "run_id": "sweep", "seeds": [3, 1]}))
    assert [(run.run_id, run.seed, run.seeds, run.experiment) for run in runs] == [
        ("sweep-s3", 3, None, "sweep"),
        ("sweep-s1", 1, None, "sweep"),
    ]
    alone = parse_run_file(GOOD)
    assert expand(alone) == [alone]


def test_every_field_is_identity_or_budget() -> None:
    assert set(PARTS) == set(RunFile.model_fields)


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("seed=2", [("seed", 0, 2)]),
        ("policy=CnnPolicy", [("policy", "MlpPolicy", "CnnPolicy")]),
        ("environment.id=Other-v0", [("environment.id", "Pendulum-v1", "Other-v0")]),
        ("environment.normalize=true", [("environment.normalize", None, {})]),
        ("environment.kwargs={g: 9}", [("environment.kwargs.g", None, 9)]),
        ("hyperparameters.gamma=0.5", [("hyperparameters.gamma", None, 0.5)]),
        ("callbacks=[a:B]", [("callbacks", [], ["a:B"])]),
        ("env.A=1", [("env.A", None, "1")]),
        ("device=cpu", [("device", "auto", "cpu")]),
        ("total_timesteps=4000", []),
        ("save_frequency=1", []),
        ("limits.hours=1", []),
    ],
)
def test_identity_and_budget(override: str, changes: list[tuple[str, object, object]]) -> None:
    old = json.loads(json.dumps(parse_run_file(GOOD).identity()))
    assert identity_changes(old, parse_run_file(GOOD, [override]).identity()) == changes


def test_seconds_at_risk_instead_of_steps() -> None:
    old = parse_run_file(GOOD)
    new = parse_run_file(GOOD, ["max_seconds_at_risk=90"])
    assert (new.save_frequency, new.max_seconds_at_risk) == (None, 90.0)
    assert identity_changes(old.identity(), new.identity()) == []
    seconds = {**GOOD, "save_frequency": None, "max_seconds_at_risk": 60}
    assert parse_run_file(seconds).max_seconds_at_risk == 60
    for launched in ({"extra": {"save_frequency": 7}}, {"overrides": ["save_frequency=7"]}):
        found = parse_run_file(seconds, **launched)
        assert (found.save_frequency, found.max_seconds_at_risk) == (7, None)
    assert parse_run_file(seconds, extra={"save_frequency": None}).max_seconds_at_risk == 60
    with pytest.raises(InputError, match=r"max_seconds_at_risk: 60\.0: give this or save_frequency"):
        parse_run_file({**GOOD, "max_seconds_at_risk": 60})


def test_a_field_of_a_later_version_changes_no_older_run() -> None:
    new = parse_run_file(GOOD).identity()
    old = {key: value for key, value in new.items() if key not in ("seeds", "data", "env")}
    assert identity_changes(old, new) == []


def test_the_code_lies_elsewhere_on_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text("a")
    path = write(tmp_path, json.dumps({**GOOD, "code": {"folder": "code"}}))
    before = load_run_file(path).identity()
    worker = tmp_path / "elsewhere"
    folder.rename(worker)
    with pytest.raises(InputError, match=r"code\.folder"):
        load_run_file(path)
    monkeypatch.setenv("TRAIN_CLOUD_CODE", str(worker))
    assert load_run_file(path).code.folder == worker
    assert load_run_file(path).identity() == before


def fields_as_markdown() -> str:
    """The tables of docs/run-file.md. ``python tests/test_config.py`` writes them there."""
    sections: list[tuple[str, type[BaseModel]]] = [
        ("", RunFile),
        ("architecture", Architecture),
        ("environment", Environment),
        ("curriculum", Curriculum),
        ("curriculum.stages", Stage),
        ("curriculum.advance", Advance),
        ("curriculum.regress", Regress),
        ("curriculum.mix", Mix),
        ("initial_model", InitialModel),
        ("pretraining", Pretraining),
        ("pretraining.keep", Keep),
        ("code", Code),
        ("limits", Limits),
        ("preservation", Preservation),
        ("evaluation", Evaluation),
        ("evaluation.categories.NAME", Category),
        ("evaluation.video", Video),
        ("evaluation.routes", Routes),
        ("artifacts", Artifacts),
        ("reproducibility", Reproducibility),
        ("wandb", Wandb),
        ("sagemaker", SageMaker),
        ("ray", Ray),
    ]
    lines = []
    for section, model in sections:
        lines += [
            f"\n### `{section}`\n" if section else "",
            "| field | default | part | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{default_as_yaml(field.default)}`"
            lines.append(f"| `{name}` | {default} | {PARTS[section.split('.')[0] or name]} | {field.description} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def default_as_yaml(value: object) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    if isinstance(value, dict):
        return json.dumps({name: {} if isinstance(item, BaseModel) else item for name, item in value.items()})
    return json.dumps(value).strip('"')


def with_fields(document: str) -> str:
    before, _, rest = document.partition("by a test -->\n")
    after = rest.partition("<!-- end of fields")[2]
    return f"{before}by a test -->\n{fields_as_markdown()}<!-- end of fields{after}"


def test_the_documented_fields_are_the_programs() -> None:
    document = DOCS.read_text()
    assert with_fields(document) == document
    for glob in NEVER:
        assert f"`{glob}`" in document
    example = document.split("```yaml\n")[1].split("```")[0]
    assert parse_run_file(read_yaml(example, "docs")).run_id == "pendulum-sac"


if __name__ == "__main__":
    DOCS.write_text(with_fields(DOCS.read_text()))
