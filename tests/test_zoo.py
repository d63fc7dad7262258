"""Run files from hyperparameters in rl-baselines3-zoo's form; the entries are ours, the form is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_cloud.cli import main
from train_cloud.config import load_run_file
from train_cloud.config.zoo import Imported, import_zoo, literal
from train_cloud.errors import InputError
from train_cloud.sb3.check import check

PPO = """
atari: &games
  env_wrapper:
    - stable_baselines3.common.atari_wrappers.AtariWrapper
  frame_stack: 4
  policy: 'CnnPolicy'
  n_envs: 8
  n_steps: 64
  n_timesteps: !!float 1e7
  learning_rate: lin_2e-4
  clip_range: lin_0.1

# A comment
Pendulum-v1: &slow
  normalize: true
  n_envs: 2
  n_timesteps: !!float 2e4
  policy: 'MlpPolicy'
  n_steps: 32
  batch_size: 16
  gamma: 0.95
  learning_rate: !!float 1e-3
  use_sde: True
  clip_range_vf:
  policy_kwargs: "dict(log_std_init=-2.5,
                       ortho_init=False,
                       activation_fn=nn.Tanh,
                       net_arch=[dict(pi=[16, 8], vf=[16])],
                       optimizer_class=RMSpropTFLike,
                       optimizer_kwargs=dict(eps=1e-5)
                       )"

MountainCarContinuous-v0:
  <<: *slow
  normalize: "{'norm_obs': False, 'norm_reward': True}"
  policy_kwargs: "dict(net_arch=dict(pi=[8], vf=[8]), optimizer_class=th.optim.AdamW)"
  env_kwargs: "dict(goal_velocity=0.01)"
"""
SAC = """
Track-v0:
  env_wrapper:
    - my.wrappers.FrameSkip:
        skip: 2
    - my.wrappers.Flat
  vec_env_wrapper: [my.wrappers.Reset]
  callback:
    - my.callbacks.Parallel:
        gradient_steps: 400
    - my.callbacks.Plain
  n_timesteps: !!float 3e5
  policy: my.policies.Policy
  noise_type: ornstein-uhlenbeck
  noise_std: 0.3
  train_freq: [1, "episode"]
  learning_rate: 7.3e-4
  ent_coef: 'auto'
  replay_buffer_class: HerReplayBuffer
  replay_buffer_kwargs: "dict(online_sampling=True, goal_selection_strategy='future', n_sampled_goal=4)"
  policy_kwargs: "dict(net_arch=make_layers(3))"
  monitor_kwargs: dict(info_keywords=('is_success',))

Endless-v0:
  policy: MlpPolicy

Odd-v0:
  n_timesteps: 100
  policy: MlpPolicy
  normalize: "dict(norm_obss=True)"
"""


def imported(folder: Path, name: str, text: str, *environments: str) -> dict[str, Imported]:
    path = folder / name
    path.write_text(text)
    return {one.name: one for one in import_zoo(path, environments)}


def test_everything_that_a_run_file_can_say(tmp_path: Path) -> None:
    found = imported(tmp_path, "ppo.yml", PPO)
    assert list(found) == ["Pendulum-v1", "MountainCarContinuous-v0"]
    run = found["Pendulum-v1"].run_file
    assert run is not None and run.environment is not None and found["Pendulum-v1"].left_out == []
    assert (run.run_id, run.algorithm, run.policy) == ("pendulum-v1-ppo", "ppo", "MlpPolicy")
    assert (run.total_timesteps, run.save_frequency) == (20_000, 1_000)
    assert (run.environment.n_envs, run.environment.normalize) == (2, {"gamma": 0.95})
    assert run.hyperparameters == {
        "n_steps": 32,
        "batch_size": 16,
        "gamma": 0.95,
        "learning_rate": 1e-3,
        "use_sde": True,
        "clip_range_vf": None,
        "policy_kwargs": {
            "log_std_init": -2.5,
            "ortho_init": False,
            "activation_fn": "torch.nn:Tanh",
            "net_arch": {"pi": [16, 8], "vf": [16]},
            "optimizer_class": "rmsprop_tf",
            "optimizer_kwargs": {"eps": 1e-5},
        },
    }
    other = found["MountainCarContinuous-v0"].run_file
    assert other is not None and other.environment is not None
    assert other.environment.normalize == {"norm_obs": False, "norm_reward": True, "gamma": 0.95}
    assert other.environment.kwargs == {"goal_velocity": 0.01}
    assert other.hyperparameters["policy_kwargs"]["optimizer_class"] == "torch.optim:AdamW"


def test_what_is_written_can_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ppo.yml").write_text(PPO)
    arguments = ["import-zoo", str(tmp_path / "ppo.yml"), "--out", str(tmp_path / "runs")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for name in ("pendulum-v1-ppo", "mountaincarcontinuous-v0-ppo"):
        assert f"{name}.yaml" in said
        report = check(load_run_file(tmp_path / f"runs/{name}.yaml"))
        assert report.choice is not None and report.choice.exact
    assert main(arguments) == 64
    assert "it is there already" in capsys.readouterr().err


def test_an_atari_game_takes_the_games_entry(tmp_path: Path) -> None:
    found = imported(tmp_path, "ppo.yml", PPO, "PongNoFrameskip-v4", "ALE/Pong-v5")
    first, second = (found[name].run_file for name in ("PongNoFrameskip-v4", "ALE/Pong-v5"))
    assert first is not None and first.environment is not None and second is not None and second.environment is not None
    assert (first.run_id, first.environment.module) == ("pongnoframeskip-v4-ppo", "ale_py")
    assert first.environment.wrappers == ("stable_baselines3.common.atari_wrappers:AtariWrapper",)
    assert (first.environment.frame_stack, first.hyperparameters["clip_range"]) == (4, "lin_0.1")
    assert second.environment.kwargs == {"frameskip": 1}


def test_what_cannot_be_carried_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = imported(tmp_path, "sac.yml", SAC)
    track = found["Track-v0"]
    assert track.run_file is not None and track.run_file.environment is not None
    assert {key for key, _ in track.left_out} == {
        "env_wrapper",
        "vec_env_wrapper",
        "callback",
        "policy_kwargs",
        "replay_buffer_kwargs.online_sampling",
        "monitor_kwargs",
    }
    told = dict(track.left_out)
    assert "my.wrappers:FrameSkip with arguments" in told["env_wrapper"]
    assert "'make_layers(3)' would have to be run" in told["policy_kwargs"]
    assert track.run_file.environment.wrappers == ("my.wrappers:Flat",)
    assert (track.run_file.policy, track.run_file.callbacks) == ("my.policies:Policy", ("my.callbacks:Plain",))
    assert track.run_file.hyperparameters == {
        "action_noise": {"ornstein-uhlenbeck": 0.3},
        "train_freq": [1, "episode"],
        "learning_rate": 7.3e-4,
        "ent_coef": "auto",
        "replay_buffer_class": "stable_baselines3:HerReplayBuffer",
        "replay_buffer_kwargs": {"goal_selection_strategy": "future", "n_sampled_goal": 4},
    }
    assert (found["Endless-v0"].run_file, found["Endless-v0"].left_out[-1][0]) == (None, "n_timesteps")
    assert (found["Odd-v0"].run_file, found["Odd-v0"].left_out[-1][0]) == (None, "environment.normalize.norm_obss")
    assert main(["import-zoo", str(tmp_path / "sac.yml"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Endless-v0: no run file" in said
    written = (tmp_path / "track-v0-sac.yaml").read_text()
    for key, why in track.left_out:
        assert f"not carried over: {key}: {why}" in said
        assert f"# not carried over: {key}: {why}\n" in written
    assert load_run_file(tmp_path / "track-v0-sac.yaml") == track.run_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(net_arch=[64, 64])", {"net_arch": [64, 64]}),
        ("{'a': -1, 'b': (1, 2.5)}", {"a": -1, "b": [1, 2.5]}),
        ("dict(activation_fn=nn.LeakyReLU, n=None)", {"activation_fn": "torch.nn:LeakyReLU", "n": None}),
        ("HerReplayBuffer", "stable_baselines3:HerReplayBuffer"),
    ],
)
def test_literals(text: str, value: Any) -> None:
    assert literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch /tmp/ran')",
        "dict(a=open('/etc/passwd').read())",
        "dict(**globals())",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "nn.ReLU()",
        "os.environ",
        "{**{}}",
        "f'{1}'",
        "dict(a=",
        "-'a'",
        "(" * 500 + ")" * 500,
        "1 + 1",
        "b'bytes'",
    ],
)
def test_nothing_is_run(text: str) -> None:
    with pytest.raises(Exception, match=r"would have to be run|no Python expression") as caught:
        literal(text)
    assert type(caught.value).__name__ == "_LeftOut"


@pytest.mark.parametrize(
    ("name", "text", "arguments", "field"),
    [
        ("ars.yml", "A-v0: {n_timesteps: 1}", [], "FILE"),
        ("tuned.yml", "A-v0: {n_timesteps: 1}", [], "FILE"),
        ("tuned.yml", "A-v0: {n_timesteps: 1}", ["--algorithm", "cem"], "--algorithm"),
        ("ppo.yml", "A-v0: {n_timesteps: 1}", ["--env", "B-v0"], "--env"),
        ("ppo.yml", "- A-v0", [], "FILE"),
        ("ppo.yml", "A-v0: [1]", [], "FILE"),
        ("ppo.yml", "A-v0: {policy: MlpPolicy}", [], "FILE"),
        ("ppo.yml", "A-v0: !!python/object/apply:os.getcwd []", [], "ppo.yml"),
        ("nowhere/ppo.yml", None, [], "FILE"),
    ],
)
def test_refused(
    tmp_path: Path, name: str, text: str | None, arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["import-zoo", str(tmp_path / name), "--out", str(tmp_path), *arguments]) == 64
    assert f"train-cloud: {field}: " in capsys.readouterr().err
    assert list(tmp_path.glob("*.yaml")) == []


def test_the_algorithm_by_either_name(tmp_path: Path) -> None:
    path = tmp_path / "tuned.yml"
    path.write_text("CartPole-v1: {n_timesteps: 50, policy: MlpLstmPolicy}")
    for name in ("ppo_lstm", "recurrent_ppo"):
        (one,) = import_zoo(path, algorithm=name)
        assert one.run_file is not None and one.run_file.algorithm == "recurrent_ppo"
    with pytest.raises(InputError):
        import_zoo(path, algorithm="ppo2")


@pytest.mark.parametrize(
    ("name", "environment", "module", "said"),
    [
        ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-5x5-v0", "minigrid", "pip install minigrid"),
        ("PandaReach-v1", "PandaReach-v3", "panda_gym", "panda-gym 3 is the one for Gymnasium"),
        ("HopperBulletEnv-v0", "HopperBulletEnv-v0", "pybullet_envs_gymnasium", "pip install pybullet_envs_gymnasium"),
        ("MinitaurBulletEnv-v0", "MinitaurBulletEnv-v0", None, "not known here"),
        ("FetchReach-v1", "FetchReach-v4", "gymnasium_robotics", "FetchReach-v1 is FetchReach-v4 here"),
        ("FetchPushDense-v2", "FetchPushDense-v4", "gymnasium_robotics", "gymnasium-robotics mended its resets"),
        ("HalfCheetah-v3", "HalfCheetah-v4", None, "mujoco-py"),
        ("Walker2d-v4", "Walker2d-v4", None, ""),
        ("LunarLanderContinuous-v2", "LunarLanderContinuous-v3", None, "whose results differ"),
        ("CarRacing-v0", "CarRacing-v3", None, "mended"),
        ("LunarLanderNoVel-v2", "LunarLanderNoVel-v3", "rl_zoo3.import_envs", "pip install rl_zoo3"),
        ("parking-v0", "parking-v0", "highway_env", "pip install highway-env"),
        ("donkey-generated-track-v0", "donkey-generated-track-v0", "gym_donkeycar", "from its repository"),
        ("A1Walking-v0", "A1Walking-v0", None, "which module registers it is not known here"),
        ("CartPole-v1", "CartPole-v1", None, ""),
    ],
)
def test_where_an_environment_is_today(
    name: str, environment: str, module: str | None, said: str, tmp_path: Path
) -> None:
    one = imported(tmp_path, "ppo.yml", f"{name}:\n  n_timesteps: 1000\n  policy: MlpPolicy\n")[name]
    assert one.run_file is not None and one.run_file.environment is not None
    assert (one.run_file.environment.id, one.run_file.environment.module) == (environment, module)
    assert said in " ".join(one.notes) and bool(said) == bool(one.notes) and not one.left_out
    assert all(f"# {note}" in one.text(tmp_path, "ppo.yml") for note in one.notes)


def test_the_default_entry_is_for_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"default:\n  n_timesteps: 7000\n  policy: MlpPolicy\n{PPO}"
    assert list(imported(tmp_path, "ppo.yml", text)) == ["Pendulum-v1", "MountainCarContinuous-v0"]
    other = imported(tmp_path, "ppo.yml", text, "Acrobot-v1")["Acrobot-v1"]
    assert other.run_file is not None and other.run_file.total_timesteps == 7000
    for name in ("default", "atari"):
        with pytest.raises(InputError, match="name an environment that this entry is for"):
            imported(tmp_path, "ppo.yml", text, name)
    (tmp_path / "ars.yml").write_text("CartPole-v1:\n  n_timesteps: 5\n")
    assert main(["import-zoo", str(tmp_path / "ars.yml"), "--out", str(tmp_path)]) == 64
    assert "FILE: 'ars': not in this version: ARS has neither rollouts nor a replay buffer" in capsys.readouterr().err


def test_her_as_it_was_once(tmp_path: Path) -> None:
    text = """
parking-v0:
  n_timesteps: 100
  policy: MlpPolicy
  model_class: tqc
  n_sampled_goal: 4
  goal_selection_strategy: future
  online_sampling: true
  env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper
"""
    one = imported(tmp_path, "her.yml", text)["parking-v0"]
    assert one.run_file is not None
    assert (one.run_file.algorithm, one.run_file.policy, one.run_file.extras) == (
        "tqc",
        "MultiInputPolicy",
        ("contrib",),
    )
    assert one.run_file.hyperparameters == {
        "replay_buffer_class": "stable_baselines3:HerReplayBuffer",
        "replay_buffer_kwargs": {"n_sampled_goal": 4, "goal_selection_strategy": "future"},
    }
    assert one.left_out == [("online_sampling", "Stable-Baselines3 does not have it any more")]


ODD = """
CartPole-v1:
  n_timesteps: [1]
Pendulum-v1:
  n_timesteps: .inf
Acrobot-v1:
  n_timesteps: 10
  env_wrapper: 5
  policy: 3
  env_kwargs: 3
  model_class: [ppo]
"""


def test_an_odd_file_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ppo.yml").write_text(ODD)
    assert main(["import-zoo", str(tmp_path / "ppo.yml"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for line in ("n_timesteps: [1] is none of the zoo's forms", "policy: 3 is none", "env_kwargs: 3 is none"):
        assert f"not carried over: {line}" in said
    (tmp_path / "ppo.yml").write_text("5:\n  n_timesteps: 5\n")
    assert main(["import-zoo", str(tmp_path / "ppo.yml"), "--out", str(tmp_path / "other")]) == 64
    assert "the environment 5 is not text: put it in quotes" in capsys.readouterr().err
