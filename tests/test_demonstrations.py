"""Demonstrations: what is read, from where, and what is refused before anything is trained."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from moto.server import ThreadedMotoServer

from train_cloud.cli import main
from train_cloud.config import load_run_file, parse_run_file
from train_cloud.config.pretraining import Pretraining
from train_cloud.envs.demonstrations import Demonstrations, Episode, check, make, minari_folder, read, write
from train_cloud.errors import InputError
from train_cloud.runtime.pretraining import read_demonstrations

STEPS = 6
CARTPOLE = {"id": "CartPole-v1", "kwargs": {}}


def arrays(**changed: Any) -> dict[str, Any]:
    """Two episodes, of four and two steps."""
    found: dict[str, Any] = {
        "observations": np.arange(4 * STEPS, dtype=np.float32).reshape(STEPS, 4) / 100,
        "actions": np.array([0, 1, 0, 1, 1, 0]),
        "rewards": np.ones(STEPS),
        "terminations": np.arange(STEPS) == 3,
        "truncations": np.arange(STEPS) == 5,
        "environment": np.array(json.dumps(CARTPOLE)),
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


def saved(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "demonstrations.npz"
    np.savez(path, **arrays(**changed))
    return path


def episodes(dictionary: bool = False) -> list[Episode]:
    rng = np.random.default_rng(0)

    def seen() -> Any:
        place = rng.normal(size=3).astype(np.float32)
        return {"place": place, "kind": int(rng.integers(4))} if dictionary else place

    return [
        Episode(
            seed=number,
            observations=[seen() for _ in range(length + 1)],
            actions=[rng.uniform(-1, 1, 2).astype(np.float32) for _ in range(length)],
            rewards=rng.normal(size=length).tolist(),
            terminations=[False] * (length - 1) + [number == 0],
            truncations=[False] * (length - 1) + [number != 0],
        )
        for number, length in enumerate((3, 5))
    ]


class Place(gymnasium.Env[Any, Any]):
    def __init__(self, dictionary: bool) -> None:
        place = spaces.Box(-9, 9, (3,), np.float32)
        kinds = spaces.Dict({"place": place, "kind": spaces.Discrete(4)})
        self.observation_space = kinds if dictionary else place
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("by_name", [True, False])
def test_an_environment_that_was_registered_by_its_class_is_written(tmp_path: Path, by_name: bool) -> None:
    """Gymnasium writes no spec with a class in it, and none at all with a function of nobody's."""
    made_by: Any = Place if by_name else lambda **_: Place(False)
    gymnasium.register("ByClass-v0", made_by)
    try:
        env = gymnasium.make("ByClass-v0", dictionary=False)
        write(episodes(False), env, {"id": "ByClass-v0", "kwargs": {"dictionary": False}}, tmp_path / "a-folder")
    finally:
        del gymnasium.registry["ByClass-v0"]
    found = read(tmp_path / "a-folder", "it").environment
    assert (found and found["id"]) == ("ByClass-v0" if by_name else None)


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("name", ["a.npz", "a-folder"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, dictionary: bool) -> None:
    there, env = episodes(dictionary), Place(dictionary)
    write(there, env, {"id": "Place-v0", "kwargs": {}}, tmp_path / name)
    found = read(tmp_path / name, "it")
    assert found.starts.tolist() == [0, 3] and len(found) == 8
    assert found.episodes == [slice(0, 3), slice(3, 8)]
    for episode, rows in zip(there, found.episodes, strict=True):
        assert np.array_equal(found.actions[rows], np.stack(episode.actions))
        assert np.allclose(found.rewards[rows], episode.rewards)
        assert found.terminations[rows].tolist() == episode.terminations
        assert found.truncations[rows].tolist() == episode.truncations
        for key, column in found.by_key.items():
            expected = [seen[key] if key else seen for seen in episode.observations[:-1]]
            assert np.array_equal(column[rows], np.stack(expected))
    check(found, "Place-v0", env.observation_space, env.action_space)
    assert read(tmp_path / name, "again").digest() == found.digest()


def test_a_folder_of_files_is_one_after_the_other(tmp_path: Path) -> None:
    for name in ("b.npz", "a.npz"):
        shutil.copy(saved(tmp_path / "one"), tmp_path / name)
    found = read(tmp_path, "both")
    assert len(found) == 2 * STEPS and found.starts.tolist() == [0, 4, 6, 10]
    assert found.environment == CARTPOLE


def test_returns_end_with_their_episode(tmp_path: Path) -> None:
    found = read(saved(tmp_path), "it")
    assert found.returns(found.rewards, 0.5).tolist() == [1.875, 1.75, 1.5, 1.0, 1.5, 1.0]
    starts = np.array([True, False, True, False, True, False])
    assert read(saved(tmp_path, episode_starts=starts), "it").starts.tolist() == [0, 2, 4]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an array is missing": ({"rewards": None}, "lacks rewards"),
    "several are": ({"observations": None, "truncations": None}, r"lacks observations \(or .*\), truncations"),
    "another length": ({"rewards": np.ones(5)}, "different numbers of steps .*rewards 5"),
    "no steps": ({name: np.zeros((0, 4)) for name in arrays() if name != "environment"}, "it has no steps"),
    "NaN observed": (
        {"observations": np.full((STEPS, 4), np.nan)},
        "observations are not finite at 6 steps, the first is 0",
    ),
    "infinite reward": (
        {"rewards": np.array([0, 0, np.inf, 0, 0, 0])},
        "rewards are not finite at 1 steps, the first is 2",
    ),
    "text": ({"actions": np.array(["left"] * STEPS)}, "actions are of type .*: give numbers"),
    "a column of ends": ({"terminations": np.zeros((STEPS, 1))}, r"terminations have the shape \(6, 1\)"),
    "ends without a start": ({"episode_starts": np.arange(STEPS) == 0}, "no episode begins after the end at 3"),
    "no first start": ({"episode_starts": np.arange(STEPS) == 4}, "its first step begins no episode"),
    "both kinds of observations": ({"observations/a": np.ones((STEPS, 1))}, "leave one of them out"),
    "no JSON": ({"environment": np.array("CartPole-v1")}, "its environment is not JSON like"),
    # Of another environment than the run's.
    "another environment": (
        {"environment": np.array('{"id": "Acrobot-v1"}')},
        "they are of Acrobot-v1, .* on CartPole-v1",
    ),
    "another shape": ({"observations": np.zeros((STEPS, 5))}, r"shape \(5,\) there, \(4,\) here"),
    "a dict": ({"observations": None, "observations/a": np.zeros((STEPS, 4))}, "a dict there, an array here"),
    "actions of another kind": ({"actions": np.linspace(0, 1, STEPS)}, "actions are float64 there, int64 here"),
    "actions of another shape": (
        {"actions": np.zeros((STEPS, 1), int)},
        r"actions have the shape \(1,\) there, \(\) here",
    ),
    "an action that there is not": (
        {"actions": np.array([0, 1, 0, 2, 2, 0])},
        r"outside of Discrete\(2\) at 2 steps, the first is 3: 2",
    ),
    "a negative action": ({"actions": np.array([0, -1, 0, 1, 1, 0])}, "the first is 1: -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_line(tmp_path: Path, name: str) -> None:
    changed, why = REFUSED[name]
    path = saved(tmp_path, **changed)
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(InputError, match=why) as caught:
        check(read(path, "mine.npz"), "CartPole-v1", env.observation_space, env.action_space)
    assert caught.value.field == "pretraining.demonstrations" and "\n" not in str(caught.value)
    assert "mine.npz" in str(caught.value)


def made(**changed: Any) -> Demonstrations:
    return make({name: value for name, value in arrays(**changed).items() if name != "environment"}, None, "it")


@pytest.mark.parametrize(
    ("space", "actions", "why"),
    [
        (spaces.Box(-1, 1, (1,), np.float32), np.linspace(-1, 1.1, STEPS)[:, None], "at 1 steps, the first is 5"),
        (spaces.Box(-1, 1, (1,), np.float32), np.linspace(-1, 1 + 1e-6, STEPS)[:, None], None),
        (spaces.MultiDiscrete([3, 2]), np.array([[2, 1]] * 5 + [[0, 2]]), r"the first is 5: \[0, 2\]"),
        (spaces.MultiDiscrete([3, 2]), np.array([[2, 1]] * STEPS), None),
        (
            spaces.MultiBinary(2),
            np.array([[0, 1]] * 5 + [[0, 2]], np.int8),
            "neither 0 nor 1 at 1 steps, the first is 5",
        ),
        (spaces.Discrete(2, start=1), np.array([1, 2, 1, 2, 1, 0]), "the first is 5: 0"),
    ],
)
def test_actions_lie_in_their_space(space: spaces.Space[Any], actions: Any, why: str | None) -> None:
    found, seen = made(actions=actions), spaces.Box(-9, 9, (4,), np.float32)
    if why is None:
        check(found, "Any-v0", seen, space)
        return
    with pytest.raises(InputError, match=why):
        check(found, "Any-v0", seen, space)


def test_keys_and_types_of_a_dict_are_the_environments() -> None:
    space = spaces.Dict(
        {"place": spaces.Box(-9, 9, (4,), np.float32), "picture": spaces.Box(0, 255, (2, 2, 1), np.uint8)}
    )
    right = {"observations/place": np.zeros((STEPS, 4)), "observations/picture": np.zeros((STEPS, 2, 2, 1), np.uint8)}
    check(made(observations=None, **right), "Any-v0", space, spaces.Discrete(2))
    for changed, why in (
        (
            {"observations/picture": np.zeros((STEPS, 2, 2, 1), np.float32)},
            "observations/picture are float32 there, uint8 here",
        ),
        ({"observations/picture": None}, "observations/picture is only here"),
        ({"observations/more": np.zeros((STEPS, 1))}, "observations/more is only there"),
    ):
        with pytest.raises(InputError, match=why):
            check(made(observations=None, **{**right, **changed}), "Any-v0", space, spaces.Discrete(2))


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no archive")


def pickled(path: Path) -> None:
    np.savez(path, **arrays(actions=np.array([{"a": 1}] * STEPS, dtype=object)))


def cut(path: Path) -> None:
    path.write_bytes(saved(path.parent / "whole").read_bytes()[:-200])


def of_nothing(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((STEPS, 4)))


def without_end(path: Path) -> None:
    """The header says more than any machine has."""
    header = io.BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 4)}
    np.lib.format.write_array_header_1_0(header, said)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("observations.npy", header.getvalue())


def packed_in_another_way(path: Path) -> None:
    body = bytearray(saved(path.parent / "whole").read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = body.find(mark)
        while at >= 0:
            body[at + place] = 99
            at = body.find(mark, at + 4)
    path.write_bytes(body)


@pytest.mark.parametrize("damage", [garbage, pickled, cut, of_nothing, one_array, without_end, packed_in_another_way])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "a.npz"
    damage(path)
    with pytest.raises(InputError, match=r"it is no \.npz file|it lacks"):
        read(path, "it")


def test_a_damaged_or_unknown_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    with pytest.raises(InputError, match=r"no dataset of this id .*\(there is none\)"):
        minari_folder("mine/walk-v0")
    write(episodes(), Place(False), {"id": "Place-v0", "kwargs": {}}, tmp_path / "root" / "mine" / "walk-v0")
    assert len(read(minari_folder("mine/walk-v0"), "it")) == 8
    assert len(read_demonstrations(Pretraining(demonstrations="minari:mine/walk-v0"))) == 8
    with pytest.raises(InputError, match=r"there are mine/walk-v0\)"):
        minari_folder("mine/walk-v1")
    metadata = tmp_path / "root" / "mine" / "walk-v0" / "data" / "metadata.json"
    written = json.loads(metadata.read_text())
    for text, why in (("{", "cannot be read"), (json.dumps({**written, "data_format": "hdf5"}), "only arrow is read")):
        metadata.write_text(text)
        with pytest.raises(InputError, match=why):
            read(minari_folder("mine/walk-v0"), "it")
    metadata.write_text(json.dumps(written))
    tables = [path for path in metadata.parent.rglob("*") if path.is_file() and path.suffix != ".json"]
    whole = tables[0].read_bytes()
    tables[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as a Minari dataset"):
        read(minari_folder("mine/walk-v0"), "it")
    tables[0].write_bytes(whole)
    metadata.write_text(json.dumps({**written, "total_steps": 9}))
    with pytest.raises(InputError, match="8 of its 9 steps are there"):
        read(minari_folder("mine/walk-v0"), "it")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither \.npz files nor a Minari dataset"):
        read(tmp_path / "empty", "it")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="demonstrations")
        yield "demonstrations"
    server.stop()


def test_they_are_read_from_s3(bucket: str, tmp_path: Path) -> None:
    import boto3

    client = boto3.client("s3")
    path = saved(tmp_path)
    client.upload_file(str(path), bucket, "cart/pole.npz")
    write(episodes(), Place(False), {"id": "Place-v0", "kwargs": {}}, tmp_path / "walk")
    for file in (each for each in (tmp_path / "walk").rglob("*") if each.is_file()):
        client.upload_file(str(file), bucket, f"minari/walk-v0/{file.relative_to(tmp_path / 'walk').as_posix()}")
    there = read(path, "here").digest()
    for source in (f"s3://{bucket}/cart/pole.npz", f"s3://{bucket}/cart", f"s3://{bucket}/cart/"):
        assert read_demonstrations(Pretraining(demonstrations=source)).digest() == there
    found = read_demonstrations(Pretraining(demonstrations=f"s3://{bucket}/minari/walk-v0"))
    assert found.digest() == read(tmp_path / "walk", "here").digest()
    for source in (f"s3://{bucket}/cart/none.npz", f"s3://{bucket}/none/"):
        with pytest.raises(InputError, match="there is nothing of this name"):
            read_demonstrations(Pretraining(demonstrations=source))


# ------------------------------------------------------------------------------------------------------- the run file


def values(path: str, **changed: Any) -> dict[str, Any]:
    return {
        "run_id": "cloned",
        "algorithm": "ppo",
        "total_timesteps": 100,
        "save_frequency": 50,
        "environment": {"id": "CartPole-v1"},
        "hyperparameters": {"n_steps": 32, "policy_kwargs": {"net_arch": [8]}},
        "code": {"folder": "code"},
        "pretraining": {"demonstrations": path, **changed.pop("pretraining", {})},
        **changed,
    }


def test_identity_knows_files_by_their_content(tmp_path: Path) -> None:
    saved(tmp_path / "code")
    for path in ("code/demonstrations.npz", "code"):
        found = parse_run_file(values(path), base=tmp_path)
        before = found.identity()["pretraining"]
        assert list(before["demonstrations"]["digests"]) == ["demonstrations.npz"] and before["epochs"] == 10
        moved = tmp_path / "elsewhere"
        shutil.copytree(tmp_path / "code", moved / "code")
        assert parse_run_file(values(path), base=moved).identity()["pretraining"] == before
        saved(moved / "code", rewards=np.zeros(STEPS))
        assert parse_run_file(values(path), base=moved).identity()["pretraining"] != before
        shutil.rmtree(moved)
    assert parse_run_file(values("code/demonstrations.npz"), base=tmp_path).extras == ()
    text = {**values(""), "pretraining": "code/demonstrations.npz"}
    assert parse_run_file(text, base=tmp_path) == parse_run_file(values("code/demonstrations.npz"), base=tmp_path)


def test_an_id_of_minaris_is_no_path(tmp_path: Path) -> None:
    saved(tmp_path / "code")
    for source in ("D4RL/door/human-v2", "minari:D4RL/door/human-v2"):
        found = parse_run_file(values(source), base=tmp_path)
        assert found.pretraining is not None and found.pretraining.minari == "D4RL/door/human-v2"
        assert found.extras == ("demonstrations",)
        assert found.identity()["pretraining"]["demonstrations"] == "minari:D4RL/door/human-v2"
    shutil.copytree(tmp_path / "code", tmp_path / "code" / "walk-v2")
    found = parse_run_file(values("code/walk-v2"), base=tmp_path)
    assert found.pretraining is not None and found.pretraining.minari is None, "there is such a folder"


@pytest.mark.parametrize(
    ("changed", "field", "why"),
    [
        ({"pretraining": {"demonstrations": "none.npz"}}, "pretraining.demonstrations", "name an existing file"),
        ({"pretraining": {"demonstrations": "outside.npz"}}, "pretraining.demonstrations", "put it into code.folder"),
        (
            {"pretraining": {"demonstrations": "code/.git/a.npz"}},
            "pretraining.demonstrations",
            "nothing in this place is code",
        ),
        ({"pretraining": {"demonstrations": "s3://bucket"}}, "pretraining.demonstrations", "write s3://bucket/folder"),
        ({"pretraining": {"demonstrations": "minari:walk"}}, "pretraining.demonstrations", "write minari:"),
        ({"pretraining": {"epochs": 0}}, "pretraining.epochs", "at least 1"),
        ({"pretraining": {"learning_rate": 0.0}}, "pretraining.learning_rate", "above 0"),
        ({"pretraining": {"validation": 1.0}}, "pretraining.validation", "below 1"),
        ({"pretraining": {"loss": "huber"}}, "pretraining.loss", "use auto, log_prob, mse or margin"),
        ({"pretraining": {"critics": True}}, "pretraining.critics", "did you mean critic"),
        ({"pretraining": {"keep": 0.5}}, "pretraining.keep", "give a map"),
        ({"pretraining": {"keep": {"weight": 0.5}}}, "pretraining.keep.until", "it is required"),
        ({"pretraining": {"keep": {"weight": 1.0, "untill": 5}}}, "pretraining.keep.untill", "did you mean until"),
        ({"algorithm": "tqc"}, "pretraining", "tqc cannot be pretrained: use a2c, ddpg, dqn, ppo, sac, td3"),
        ({"algorithm": "sac_multiagent"}, "pretraining", "sac_multiagent cannot be pretrained"),
    ],
)
def test_bad_rows_name_field_and_fix(tmp_path: Path, changed: dict[str, Any], field: str, why: str) -> None:
    for folder in ("code", "code/.git"):
        saved(tmp_path / folder).rename(tmp_path / folder / "a.npz")
    shutil.copy(tmp_path / "code/a.npz", tmp_path / "outside.npz")
    with pytest.raises(InputError, match=why) as caught:
        parse_run_file(values("code/a.npz", **changed), base=tmp_path)
    assert caught.value.field == field


def test_a_script_decides_itself(tmp_path: Path) -> None:
    saved(tmp_path / "code")
    script = {"run_id": "a", "total_timesteps": 10, "save_frequency": 5, "entry_point": "my.script:main"}
    script |= {"code": {"folder": "code"}, "pretraining": "code/demonstrations.npz"}
    with pytest.raises(InputError, match=r"pretraining: .*the script my\.script:main decides this"):
        parse_run_file(script, base=tmp_path)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"algorithm": "dqn", "hyperparameters": {}}, None),
        ({"environment": {"id": "Acrobot-v1"}}, "they are of CartPole-v1"),
        ({"algorithm": "sb3_contrib:TRPO"}, "TRPO cannot: use one of them"),
        ({"pretraining": {"loss": "mse"}}, "pretraining.loss: 'mse': PPO on Discrete(2) learns by log_prob"),
        ({"pretraining": {"loss": "margin"}}, "learns by log_prob"),
        (
            {"algorithm": "dqn", "hyperparameters": {}, "pretraining": {"loss": "log_prob"}},
            "DQN on Discrete(2) learns by margin",
        ),
        (
            {"algorithm": "dqn", "hyperparameters": {}, "pretraining": {"keep": {"weight": 1.0, "until": 9}}},
            "pretraining.keep",
        ),
        ({"algorithm": "dqn", "hyperparameters": {}, "pretraining": {"entropy": 0.1}}, "has no entropy to raise"),
    ],
)
def test_validate_tries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, changed: dict[str, Any], why: str | None
) -> None:
    saved(tmp_path / "code")
    (tmp_path / "run.yaml").write_text(json.dumps(values("code/demonstrations.npz", **changed)))
    code = main(["validate", str(tmp_path / "run.yaml")])
    said = capfd.readouterr()
    if why is None:
        assert code == 0 and "pretrains on  6 steps of 2 episodes" in said.out, said.err
        return
    assert code == 64 and why in said.err and said.err.count("\n") == 1
    assert load_run_file(tmp_path / "run.yaml").pretraining is not None


def test_one_episode_cannot_be_held_out(tmp_path: Path, capfd: Any) -> None:
    saved(tmp_path / "code", terminations=np.zeros(STEPS, bool))
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values("code/demonstrations.npz")))
    assert main(["validate", str(path)]) == 64
    assert "pretraining.validation: 0.1: there is only one episode" in capfd.readouterr().err
    assert main(["validate", str(path), "--set", "pretraining.validation=0.0"]) == 0


def test_a_squashed_policy_refuses_actions_at_its_bounds(tmp_path: Path, capfd: Any) -> None:
    actions = np.array([-2.0, 0, 0, 2.0, 0, 0], np.float32)[:, None]
    saved(tmp_path / "code", observations=np.zeros((STEPS, 3)), actions=actions, environment=None)
    squashed = {"use_sde": True, "n_steps": 32, "policy_kwargs": {"squash_output": True, "net_arch": [8]}}
    run = values("code/demonstrations.npz", environment={"id": "Pendulum-v1"}, hyperparameters=squashed)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run))
    assert main(["validate", str(path)]) == 64
    assert "2 of 6 actions lie at the bounds" in capfd.readouterr().err
    assert main(["validate", str(path), "--set", "pretraining.loss=mse"]) == 0
    for changed in ("algorithm=sac", "algorithm=td3"):
        assert main(["validate", str(path), "--set", changed, "--set", "hyperparameters={}"]) == 0
