"""``train-cloud prove`` of environments from PyPI that no test was written with, each as a newcomer would train it, and
of our own examples.

``python tests/foreign_environments.py`` makes a virtual environment for each package in ``build/foreign``, tries them
all one after another, and writes what came out into docs/exactness.md; ``--only TEXT`` tries some. In its virtual
environments the packages of this interpreter are found too, except for what a package's own pins replace.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from exactness import DOCUMENT, ROOT, commit
from exactness import FOREIGN as HEADING
from ruamel.yaml import YAML

_EXAMPLES = "examples/"
BUILD = ROOT / "build" / "foreign"
RESULTS = ROOT / "build" / "foreign.jsonl"
_DEADLINE_S, _INSTALL_S = 600, 900

Values = dict[str, Any]

_SMALL: Values = {"policy_kwargs": {"net_arch": [32, 32]}}
_OFF: Values = {"learning_starts": 50, "buffer_size": 2000, "batch_size": 32, **_SMALL}
_ON: Values = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, **_SMALL}
_DEFAULTS: dict[str, Values] = {
    "sac": _OFF,
    "td3": _OFF,
    "tqc": _OFF,
    "dqn": _OFF,
    "ppo": _ON,
    "recurrent_ppo": {**_ON, "policy_kwargs": {"lstm_hidden_size": 16}},
    "maskable_ppo": _ON,
    "a2c": {"n_steps": 16, **_SMALL},
    "sac_multiagent": _OFF,
}


@dataclass(frozen=True)
class Foreign:
    """One of them.

    :ivar package: its name on PyPI
    :ivar algorithm: of the run file
    :ivar environment: section of the run file
    :ivar fields: others
    :ivar install: what pip is given, where the package's name does not do
    :ivar code: what a user has to write: the module ``mine`` in the code folder
    :ivar steps: timesteps of the proof
    :ivar callbacks: of the run file
    """

    package: str
    algorithm: str
    environment: Values
    policy: str = "MlpPolicy"
    hyperparameters: Values | None = None
    install: tuple[str, ...] = ()
    code: str = ""
    steps: int = 600
    callbacks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        beside = self.environment.get("kwargs", {}).get("env_name")
        return str(self.environment["id"]) + (f" {beside}" if beside else "")

    def run(self) -> Values:
        """The run file's content."""
        return {
            "run_id": "foreign",
            "algorithm": self.algorithm,
            "policy": self.policy,
            "seed": 1,
            "device": "cpu",
            "total_timesteps": 100_000,
            "save_frequency": 5_000,
            **({"code": {"folder": "code"}} if self.code else {}),
            "environment": self.environment,
            **({"callbacks": list(self.callbacks)} if self.callbacks else {}),
            "hyperparameters": {**_DEFAULTS[self.algorithm], **(self.hyperparameters or {})},
        }


@dataclass(frozen=True)
class Example:
    """One of this repository's, as it is but for a few fields.

    :ivar name: of its file
    :ivar set: fields that are set
    """

    name: str
    algorithm: str
    steps: int
    set: tuple[str, ...] = ()
    package: str = _EXAMPLES


def _of(identifier: str, module: str | None = None, **beside: Any) -> Values:
    """A section ``environment``; what is not one of its fields is an argument of the environment's."""
    fields = ("wrappers", "n_envs", "vectorization", "normalize", "frame_stack", "state")
    section: Values = {"id": identifier, **({"module": module} if module else {})}
    section |= {name: beside.pop(name) for name in fields if name in beside}
    return section | ({"kwargs": beside} if beside else {})


_DICT = "MultiInputPolicy"

#: What a user writes for environments that Gymnasium does not make by name, or with spaces that SB3 refuses.
_SUM = """\
import mo_gymnasium
import numpy as np


class Sum(mo_gymnasium.wrappers.LinearReward):
    def __init__(self, env):
        super().__init__(env, weight=np.ones(env.unwrapped.reward_dim) / env.unwrapped.reward_dim)
"""
_MINATAR = "from minatar.gym import register_envs\n\nregister_envs()\n"
_PLAIN_INTEGER = """\
import gymnasium


class PlainInteger(gymnasium.ActionWrapper):
    def action(self, action):
        return int(action)
"""
_ONLY_AGENT = """\
import gymnasium


class OnlyAgent(gymnasium.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space, self.action_space = env.observation_space[0], env.action_space[0]

    def reset(self, **options):
        observations, info = self.env.reset(**options)
        return observations[0], info

    def step(self, action):
        observations, rewards, terminated, truncated, info = self.env.step((int(action),))
        return observations[0], float(rewards[0]), terminated, truncated, info
"""
_BLUESKY = "import bluesky_gym\n\nbluesky_gym.register_envs()\n"
_CRAFTER = """\
import crafter
import gymnasium
import numpy as np


class Crafter(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(17)

    def __init__(self):
        self.env = crafter.Env(seed=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.env.reset(), {}

    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        return observation, reward, done, False, {"discount": info["discount"]}


gymnasium.register("Crafter-v0", Crafter)
"""
_TRADING = """\
import gymnasium
import gym_trading_env
import numpy as np
import pandas as pd


def make():
    drawn = np.random.default_rng(1).normal(0, 0.01, 500)
    table = pd.DataFrame({"close": 100 * np.exp(np.cumsum(drawn))}, index=pd.date_range("2024", periods=500, freq="h"))
    table["open"] = table["high"] = table["low"] = table["close"]
    table["feature_change"] = table["close"].pct_change().fillna(0.0)
    return gymnasium.make("TradingEnv", df=table, positions=[-1, 0, 1], max_episode_duration=100, verbose=0)


gymnasium.register("Hourly-v0", make, disable_env_checker=True)
"""
_RETRO = """\
import gymnasium
import stable_retro



def make(render_mode="rgb_array"):
    return stable_retro.make("Airstriker-Genesis-v0", render_mode=render_mode)


gymnasium.register("Airstriker-v0", make)
"""
_SUMO = """\
import os

import sumo

os.environ.setdefault("SUMO_HOME", sumo.SUMO_HOME)
import gymnasium
import sumo_rl

nets = os.path.join(os.path.dirname(sumo_rl.__file__), "nets", "2way-single-intersection")


def make():
    return sumo_rl.SumoEnvironment(
        net_file=os.path.join(nets, "single-intersection.net.xml"),
        route_file=os.path.join(nets, "single-intersection-gen.rou.xml"),
        single_agent=True, num_seconds=500, sumo_warnings=False,
    )


gymnasium.register("Intersection-v0", make)
"""
_RDDL = """\
import gymnasium
import pyRDDLGym


def make():
    return pyRDDLGym.make("CartPole_Continuous_gym", "0")


gymnasium.register("Planned-v0", make, disable_env_checker=True)
"""
_FORAGING = _ONLY_AGENT.replace("(int(action),)", "(int(action), self.action_space.sample())").replace(
    "float(rewards[0]), terminated, truncated", "float(rewards[0]), bool(terminated), bool(truncated)"
)
_ZOO = """\
import numpy as np
from rl_zoo3.callbacks import RawStatisticsCallback
from rl_zoo3.wrappers import ActionNoiseWrapper, ActionSmoothingWrapper, DelayedRewardWrapper, HistoryWrapper


def rescaled(env):
    seen = []

    def scale(reward):
        seen.append(float(reward))
        return float(reward) / (1 + np.std(seen[-100:]))

    import gymnasium

    return gymnasium.wrappers.TransformReward(env, scale)
"""
_HER: Values = {"replay_buffer_class": "stable_baselines3:HerReplayBuffer", "learning_starts": 110}
_CNN_DICT: Values = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 16}}}
_CNN: Values = {"policy_kwargs": {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}}}

FOREIGN: tuple[Foreign, ...] = (
    Foreign("gymnasium-robotics", "td3", _of("PointMaze_UMaze-v3", "gymnasium_robotics"), _DICT, steps=400),
    Foreign("gymnasium-robotics", "ppo", _of("AdroitHandDoor-v1", "gymnasium_robotics", n_envs=2), steps=400),
    Foreign("gymnasium-robotics", "sac", _of("AntMaze_UMaze-v5", "gymnasium_robotics"), _DICT, steps=300),
    Foreign("mo-gymnasium", "dqn", _of("minecart-v0", "mo_gymnasium", wrappers=["mine:Sum"]), code=_SUM),
    Foreign("mo-gymnasium", "dqn", _of("four-room-v0", "mo_gymnasium", wrappers=["mine:Sum"]), code=_SUM, steps=400),
    Foreign("mo-gymnasium", "ppo", _of("water-reservoir-v0", "mo_gymnasium", wrappers=["mine:Sum"]), code=_SUM),
    Foreign("flappy-bird-gymnasium", "dqn", _of("FlappyBird-v0", "flappy_bird_gymnasium", use_lidar=True), steps=400),
    Foreign("tetris-gymnasium", "dqn", _of("tetris_gymnasium/Tetris", "tetris_gymnasium.envs"), _DICT),
    Foreign("gym-anytrading", "ppo", _of("stocks-v0", "gym_anytrading"), steps=400),
    Foreign("gym-anytrading", "a2c", _of("forex-v0", "gym_anytrading", n_envs=2), steps=400),
    Foreign("gym-trading-env", "ppo", _of("Hourly-v0", "mine"), code=_TRADING, steps=400),
    Foreign("minatar", "dqn", _of("MinAtar/SpaceInvaders-v1", "mine"), code=_MINATAR, steps=400),
    Foreign("minatar", "ppo", _of("MinAtar/Breakout-v1", "mine"), code=_MINATAR, steps=400),
    Foreign("mobile-env", "ppo", _of("mobile-small-central-v0", "mobile_env"), steps=400),
    Foreign("nasim", "dqn", _of("SmallGenPO-v0", "nasim", wrappers=["mine:PlainInteger"]), code=_PLAIN_INTEGER,
            steps=400),
    Foreign("gym-pusht", "sac", _of("gym_pusht/PushT-v0", "gym_pusht"), steps=400),
    Foreign("metaworld", "sac", _of("Meta-World/MT1", "metaworld", env_name="reach-v3"), steps=400),
    Foreign("vizdoom", "ppo", _of("VizdoomBasic-v1", "vizdoom.gymnasium_wrapper"), _DICT, _CNN_DICT,
            steps=300),
    Foreign("stable-retro", "ppo", _of("Airstriker-v0", "mine"), "CnnPolicy", _CNN, code=_RETRO, steps=300),
    Foreign("panda-gym", "sac", _of("PandaReach-v3", "panda_gym"), _DICT, _HER, steps=400),
    Foreign("panda-gym", "tqc", _of("PandaPushDense-v3", "panda_gym"), _DICT, steps=400),
    Foreign("rware", "dqn", _of("rware-tiny-1ag-v2", "rware", wrappers=["mine:OnlyAgent"]), code=_ONLY_AGENT,
            steps=400),
    Foreign("popgym", "recurrent_ppo", _of("popgym-NoisyPositionOnlyCartPoleEasy-v0", "popgym"), "MlpLstmPolicy",
            steps=300),
    Foreign("popgym", "dqn", _of("popgym-HigherLowerEasy-v0", "popgym"), steps=400),
    Foreign("bluesky-gym", "sac", _of("DescentEnv-v0", "mine"), _DICT, code=_BLUESKY,
            install=("bluesky-gym", "numpy<2.4"), steps=400),
    Foreign("gym-electric-motor", "sac",
            _of("Cont-CC-SeriesDc-v0", "gym_electric_motor", wrappers=["gymnasium.wrappers:FlattenObservation"]),
            steps=400),
    Foreign("crafter", "ppo", _of("Crafter-v0", "mine"), "CnnPolicy", _CNN, code=_CRAFTER, steps=300),
    Foreign("nle", "ppo", _of("NetHackScore-v0", "nle"), _DICT, _CNN_DICT, steps=300),
    Foreign("sumo-rl", "dqn", _of("Intersection-v0", "mine"), code=_SUMO, install=("sumo-rl", "eclipse-sumo"),
            steps=200),
    Foreign("shimmy", "sac", _of("dm_control/cartpole-swingup-v0", "shimmy",
                                 wrappers=["gymnasium.wrappers:FlattenObservation"]),
            install=("shimmy[dm-control]", "dm-control", "mujoco<4"), steps=400),
    Foreign("glucosim", "ppo", _of("glucosim/BasalControl-v0", "glucosim"), steps=400),
    Foreign("pyrddlgym", "ppo", _of("Planned-v0", "mine"), _DICT, code=_RDDL, install=("pyRDDLGym", "rddlrepository"),
            steps=300),
    Foreign("lbforaging", "dqn", _of("Foraging-8x8-2p-1f-v3", "lbforaging", wrappers=["mine:OnlyAgent"]),
            code=_FORAGING, steps=400),
    Foreign("mpe2", "sac_multiagent", _of("mpe2.simple_spread_v3:parallel_env", continuous_actions=True), steps=200),
    Foreign("boing-gym", "ppo", _of("Boing-v0", "boing_gym"), steps=300),
    Foreign("buffalo-gym", "dqn", _of("TiredBuffalo-v0", "buffalo_gym"), steps=400),
    Foreign("pyflyt", "sac", _of("PyFlyt/QuadX-Hover-v4", "PyFlyt.gym_envs"), steps=300),
    Foreign("sb3-extra-buffers", "dqn", _of("CartPole-v1"),
            hyperparameters={"replay_buffer_class": "sb3_extra_buffers.compressed:CompressedReplayBuffer"}, steps=400),
    Foreign("rl-zoo3", "ppo",
            _of("Pendulum-v1", wrappers=["mine:rescaled", "mine:ActionNoiseWrapper", "mine:ActionSmoothingWrapper",
                                         "mine:DelayedRewardWrapper", "mine:HistoryWrapper"]),
            code=_ZOO, callbacks=("mine:RawStatisticsCallback",), steps=500),
)  # fmt: skip


#: F1TENTH's gym is not on PyPI.
_LEARN = ("hyperparameters.learning_starts=60",)
EXAMPLES = (
    Example("pendulum_sac.yaml", "sac", 700, _LEARN),
    Example("own_environment.yaml", "sac", 600),
    Example("own_script.yaml", "own script", 600),
    Example("spread_multiagent.yaml", "sac_multiagent", 300, _LEARN),
    Example("racetrack_sac.yaml", "sac", 240, _LEARN),
    Example("racetrack_multiagent.yaml", "sac_multiagent", 240, _LEARN),
)
ALL: tuple[Foreign | Example, ...] = (*FOREIGN, *EXAMPLES)


@dataclass(frozen=True)
class Found:
    """What came out of one.

    :ivar outcome: ``equal``, ``not exact``, ``refused``, ``different``, ``failed``, ``not installable``
    :ivar because: in words
    """

    foreign: Foreign | Example
    outcome: str
    because: str = ""
    provider: str = ""
    version: str = ""
    seconds: float = 0.0
    beside: tuple[str, ...] = ()

    def line(self) -> Values:
        return {
            "name": self.foreign.name, "package": self.foreign.package, "algorithm": self.foreign.algorithm,
            "outcome": self.outcome, "because": self.because, "provider": self.provider, "version": self.version,
            "seconds": round(self.seconds), "beside": list(self.beside), "commit": commit(),
            "date": date.today().isoformat(),
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------- the installation


def interpreter(foreign: Foreign) -> Path:
    """Of a virtual environment with the package, over this interpreter's packages.

    :raises RuntimeError: pip's last words
    """
    folder = BUILD / foreign.package
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    below = sysconfig.get_path("purelib")
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*map(str, command), *(foreign.install or (foreign.package,))],
            capture_output=True, text=True, timeout=_INSTALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"pip takes more than {_INSTALL_S} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RuntimeError(said[-1] if said else f"pip ended with {done.returncode}")
    (folder / "installed").touch()
    return python


def _versions(python: Path, package: str) -> tuple[str, tuple[str, ...]]:
    """Of the package, and of those that its pins have put in the place of ours."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "own = [folder for folder in sys.path if sys.argv[1] in folder]\n"
        "print(json.dumps({d.name: d.version for d in m.distributions(path=own)}))"
    )
    done = subprocess.run([str(python), "-c", code, str(python.parents[1])], capture_output=True, text=True, check=True)
    there: dict[str, str] = json.loads(done.stdout)
    own = {re.sub("[-_.]+", "-", name).lower(): version for name, version in there.items()}
    ours = {"gymnasium", "numpy", "mujoco", "stable-baselines3", "torch", "pettingzoo"}
    beside = tuple(f"{name} {version}" for name, version in sorted(own.items()) if name in ours)
    return own.get(re.sub("[-_.]+", "-", package).lower(), ""), beside


# -------------------------------------------------------------------------------------------------------- the proof


def attempt(foreign: Foreign) -> Found:
    """Install it, write the run file, prove."""
    begun = time.monotonic()
    try:
        python = interpreter(foreign)
    except RuntimeError as error:
        return Found(foreign, "not installable", str(error))
    version, beside = _versions(python, foreign.package)
    with tempfile.TemporaryDirectory(prefix="foreign-") as name:
        folder = Path(name)
        run_file = folder / "run.yaml"
        YAML().dump(foreign.run(), run_file)
        if foreign.code:
            (folder / "code").mkdir()
            (folder / "code" / "mine.py").write_text(foreign.code)
        begun = time.monotonic()
        done = _command(python, folder, "prove", str(run_file), "--steps", str(foreign.steps))
        outcome, because = _judged(done)
    return Found(foreign, outcome, because, _provider(done), version, time.monotonic() - begun, beside)


def attempt_example(example: Example) -> Found:
    """With the packages that are here."""
    begun = time.monotonic()
    changed = [word for field in example.set for word in ("--set", field)]
    path = str(ROOT / "examples" / example.name)
    done = _command(Path(sys.executable), ROOT, "prove", path, "--steps", str(example.steps), *changed)
    return Found(example, *_judged(done), _provider(done), seconds=time.monotonic() - begun)


def _provider(done: subprocess.CompletedProcess[str]) -> str:
    told = re.search(r"^  state by +(\w+) ", done.stdout, re.MULTILINE)
    return told[1] if told else ""


def _command(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [str(python), "-m", "train_cloud", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it ends its sessions
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, 124, out, f"{err}\nmore than {_DEADLINE_S} s")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _judged(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Outcome and words."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("train-cloud: ")]
    said = lines[-1].removeprefix("train-cloud: ") if lines else done.stderr.strip()[-500:]
    admitted = re.search(r"^  status says +exact: no, because (.*)$", done.stdout, re.MULTILINE)
    if "Traceback" in done.stderr:
        return "failed", done.stderr.strip().splitlines()[-1]
    if done.returncode == 0:
        missed = re.search(r"^  not reached +(.*): nothing is shown", done.stdout, re.MULTILINE)
        if admitted is not None:
            return "not exact", admitted[1]
        return "equal", f"not reached: {missed[1]}" if missed else ""
    if done.returncode == 64:
        return "refused", said
    if admitted is not None:
        return "not exact", admitted[1]
    differs = re.search(r"^  differs +(.*)$", done.stdout, re.MULTILINE)
    return ("different", differs[1]) if done.returncode == 1 and differs is not None else ("failed", said)


# ----------------------------------------------------------------------------------------------------- the document


def section(results: Iterable[Values]) -> str:
    """The part of docs/exactness.md."""
    entries = list(results)
    foreign = [entry for entry in entries if entry["package"] != _EXAMPLES]
    told = sorted({entry["package"] for entry in foreign})
    equal = sum(entry["outcome"] == "equal" for entry in foreign)
    ours_too = len(entries) - len(foreign)
    commits = sorted({entry["commit"] for entry in entries})
    days = sorted({entry["date"] for entry in entries})
    ours = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("stable-baselines3", "gymnasium", "numpy", "mujoco")
    )
    lines = [
        HEADING,
        "",
        "Written by `make prove-foreign`, which installs each package into a virtual environment of its own and runs",
        "`train-cloud prove` on a run file as a newcomer writes it, and on our own examples. Do not edit.",
        "",
        f"- {' to '.join(dict.fromkeys([*days[:1], *days[-1:]]))}, commit {', '.join(commits)}",
        f"- {len(foreign)} environments of {len(told)} packages: {equal} equal; {ours_too} of our examples",
        f"- {ours}, where the package's pins do not say otherwise",
        "",
        "| package | environment | algorithm | state by | came out |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        package = " ".join(filter(None, (entry["package"], entry["version"])))
        if entry["beside"]:
            package += f" (with {', '.join(entry['beside'])})"
        outcome = (
            entry["outcome"] if entry["outcome"] in ("equal", "not exact", "refused") else f"**{entry['outcome']}**"
        )
        because = f": {_in_a_cell(entry['because'])}" if entry["because"] else ""
        lines.append(
            f"| {package} | {entry['name']} | {entry['algorithm']} | {entry['provider']} | {outcome}{because} |"
        )
    return "\n".join(lines) + "\n"


def _in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def read(results: Path) -> list[Values]:
    """The newest result of each, in the order of ALL."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    newest = {(entry["package"], entry["name"]): entry for entry in lines}
    return [newest[key] for key in ((each.package, each.name) for each in ALL) if key in newest]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="those that have this in their package or name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    bad = 0
    for foreign in ALL:
        if options.only not in f"{foreign.package} {foreign.name}":
            continue
        found = attempt(foreign) if isinstance(foreign, Foreign) else attempt_example(foreign)
        bad += found.outcome in ("different", "failed")
        with options.results.open("a") as file:
            file.write(json.dumps(found.line()) + "\n")
        print(f"{found.outcome:<12} {foreign.package} {foreign.name} ({found.provider}, {found.seconds:.0f} s)"
              f"{': ' + found.because if found.because else ''}", flush=True)  # fmt: skip
    head = DOCUMENT.read_text().split(HEADING)[0].rstrip()
    DOCUMENT.write_text(f"{head}\n\n{section(read(options.results))}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(Path(__file__).parent / "support")]
    import foreign_environments

    sys.exit(foreign_environments.main())
