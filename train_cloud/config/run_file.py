"""The run file's shape: what may stand in it, with which types and limits, and what each field means.

Everything here is checked without torch, without the environment's module and without a network; what only
Stable-Baselines3 or Gymnasium can tell (does the environment import, does the algorithm take this argument) is
``sb3.check``'s part. Nobody downstream checks shapes again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, Strict, model_validator

from train_cloud.config import data_parallel
from train_cloud.config.architecture import Architecture
from train_cloud.config.architecture import from_text as architecture_from_text
from train_cloud.config.artifacts import Artifacts, Wandb
from train_cloud.config.code import code_digests, code_files, file_digest, program_digest
from train_cloud.config.curriculum import Curriculum
from train_cloud.config.environment import Environment
from train_cloud.config.evaluation import Category, Evaluation
from train_cloud.config.identity import PARTS
from train_cloud.config.initial_model import InitialModel, from_text
from train_cloud.config.pretraining import CLONED, Pretraining
from train_cloud.config.pretraining import from_text as pretraining_from_text
from train_cloud.config.ray import Ray
from train_cloud.config.reproducibility import Reproducibility
from train_cloud.config.sagemaker import SageMaker
from train_cloud.config.score import Score
from train_cloud.config.score import from_text as score_from_text
from train_cloud.config.shapes import (
    MODULE,
    REFERENCE,
    Arguments,
    Number,
    Reference,
    Section,
    Text,
    VariableName,
    Whole,
    matching,
)
from train_cloud.errors import InputError, NotYet, suggestion

CONTRIB = "sb3_contrib"
#: One SAC for each agent of an environment (``train_cloud.sb3.multiagent``).
MULTIAGENT = "sac_multiagent"
#: Algorithms by name. Of each a test has shown that the resumed run equals the uninterrupted one (docs/exactness.md).
ALGORITHMS = {
    "a2c": "stable_baselines3:A2C",
    "crossq": f"{CONTRIB}:CrossQ",
    "ddpg": "stable_baselines3:DDPG",
    "dqn": "stable_baselines3:DQN",
    "maskable_ppo": f"{CONTRIB}:MaskablePPO",
    "ppo": "stable_baselines3:PPO",
    "qrdqn": f"{CONTRIB}:QRDQN",
    "recurrent_ppo": f"{CONTRIB}:RecurrentPPO",
    "sac": "stable_baselines3:SAC",
    MULTIAGENT: "stable_baselines3:SAC",
    "td3": "stable_baselines3:TD3",
    "tqc": f"{CONTRIB}:TQC",
    "trpo": f"{CONTRIB}:TRPO",
}
SUPPORTED = tuple(ALGORITHMS)
#: What others call them: class names in lower case, and rl-baselines3-zoo's names.
_ALSO_CALLED = {"maskableppo": "maskable_ppo", "ppo_mask": "maskable_ppo", "ppo_lstm": "recurrent_ppo",
                "recurrentppo": "recurrent_ppo", "qr_dqn": "qrdqn"}  # fmt: skip

#: Arguments of an SB3 algorithm that have a field of their own, so that there is one place to set them.
ELSEWHERE = {
    "policy": "policy",
    "env": "environment",
    "seed": "seed",
    "device": "device",
    "tensorboard_log": None,
    "verbose": None,
    "_init_setup_model": None,
}
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")

_RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SCHEDULE = re.compile(r"lin_[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE)
_FOLDER_IN_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#*\[\]]*)?")
_PARAMETER = re.compile(r"/?[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
#: Checkpoints that stay by ``preservation.every``: each manifest names them all.
_MOST_KEPT = 500


def _environment_value(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _precision(value: object) -> object:
    if value in ("fp16", "float16", "half"):
        raise ValueError("its range is too small for the gradients of SB3's losses, which nobody scales: use bf16")
    return value


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"write it as in a shell: {error}") from error


def _entry_point(value: str) -> str:
    if REFERENCE.fullmatch(value):
        return value
    path = PurePosixPath(value)
    if path.suffix == ".py" and not path.is_absolute() and ".." not in path.parts:
        return value
    module = value.partition(":")[0].removesuffix(".py").replace("/", ".")
    likely = f": {module}:main, or {module.replace('.', '/')}.py" if MODULE.fullmatch(module) else ""
    raise ValueError(f"write module:function, or a file below code.folder that ends in .py{likely}")


def _glob(value: str) -> str:
    """Terraform matches them too, in a syntax of which only this much means the same in both."""
    segments = value.split("/")
    if re.search(r"[\[\]{}\\]", value) or any("**" in segment and segment != "**" for segment in segments):
        raise ValueError("use only *, ? and a segment ** in it, for example data/** or **/*.mp4")
    if value.startswith("/") or ".." in segments:
        raise ValueError("write it relative to code.folder, without ..")
    return value


class Code(Section):
    """Code of one's own: made importable here and on the worker, and part of the run's identity."""

    folder: Path | None = Field(
        None, description="Folder put first on the module path, relative to the run file. Uploaded with the run."
    )
    exclude: tuple[Annotated[Text, AfterValidator(_glob)], ...] = Field(
        (), description="Globs below the folder that are left out: `*`, `?`, and `**` for any folders; e.g. `data/**`."
    )
    requirements: Path | None = Field(
        None,
        description="Requirements file within `code.folder`, relative to the run file, that the worker installs; null "
        "for `requirements.txt` at the folder's top, if there is one.",
    )
    system_packages: tuple[Text, ...] = Field((), description="Debian packages to install on the worker. Not yet.")
    python: Literal["3.11"] = Field("3.11", description="Python on the worker; 3.11 is the one there is.")

    @model_validator(mode="after")
    def _check(self) -> Code:
        if self.requirements is not None:
            if self.folder is None or not self.requirements.is_relative_to(self.folder):
                fix = "put it into code.folder, which is what travels to the worker"
                raise InputError("code.requirements", str(self.requirements), fix)
            if not self.requirements.is_file():
                raise InputError("code.requirements", str(self.requirements), "name an existing file")
            name = self.requirements.relative_to(self.folder).as_posix()
            if name not in code_files(self.folder, self.exclude):
                raise InputError("code.exclude", list(self.exclude), f"it leaves out code.requirements, {name}")
        if self.system_packages:
            raise NotYet("code.system_packages", list(self.system_packages), "not in this version: leave it empty")
        return self

    def digests(self) -> dict[str, str]:
        """SHA-256 (hexadecimal) of each file that travels to a worker, by its path below the folder.

        :raises InputError: the folder cannot be read
        """
        return {} if self.folder is None else code_digests(self.folder, self.exclude)


class Limits(Section):
    """Where a run stops before its total; reaching one is the outcome `stopped`, with a last commit."""

    hours: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Instance hours over all sessions, from the boot of each."
    )
    dollars: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="US dollars for the machines of all sessions, their volumes and public addresses, at the price of "
        "each session's start; a spot machine "
        "whose price is unknown counts as on demand. Not counted on a laptop; refused where AWS tells no price.",
    )


class Preservation(Section):
    """Which checkpoints stay. All others go as soon as a newer one is committed."""

    last: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        3, description="How many of the newest stay whole: the run can go back to them, and be forked from them."
    )
    every: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Timesteps; the first checkpoint of each so many stays, without its replay buffer."
    )
    best: Annotated[bool, Strict()] = Field(
        False,
        description="The one with the highest mean episode return, or the best `score`, stays, without its replay "
        "buffer.",
    )


class RunFile(Section):
    """One training goal. The same file runs on a laptop, in the rehearsal and on EC2."""

    run_id: Annotated[
        Text, matching(_RUN_ID, "use 1 to 63 lower-case letters, digits and inner hyphens, for example pendulum-sac-1")
    ] = Field(description="Name of this training goal; never used for another. It names folders and AWS resources.")
    experiment: (
        Annotated[
            Text,
            matching(_RUN_ID, "use 1 to 63 lower-case letters, digits and inner hyphens, for example gamma-sweep"),
        ]
        | None
    ) = Field(None, description="Name of a group of runs; `train-cloud status` shows mean and interval of each group.")
    algorithm: Text | None = Field(
        None,
        description=f"One of {', '.join(f'`{name}`' for name in SUPPORTED)}, or `module:Class` of an SB3 algorithm. "
        "Those of sb3-contrib need the extra `contrib`.",
    )
    policy: Text = Field("MlpPolicy", description="SB3's policy name, or `module:Class`.")
    architecture: Annotated[Architecture | None, BeforeValidator(architecture_from_text)] = Field(
        None, description="Networks by name; see below and [architectures.md](architectures.md). Text is its `name`."
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(0, description="Seed of every generator; 0 to 4294967295.")
    device: Annotated[Text, matching(re.compile(r"auto|cpu|cuda(:\d+)?"), "use auto, cpu, cuda or cuda:N")] = Field(
        "auto",
        description="`auto` takes a GPU where there is one, and fails where torch cannot use NVIDIA's that is there; "
        "`cpu`; `cuda` or `cuda:N` fail where there is none.",
    )
    precision: Annotated[Literal["fp32", "tf32", "bf16"] | None, BeforeValidator(_precision)] = Field(
        None,
        description="Arithmetic of the updates: `fp32`, which null stands for; `tf32`, on NVIDIA's GPUs since Ampere; "
        "`bf16`, with parameters in fp32. See [data-parallel.md](data-parallel.md#precision).",
    )
    deterministic: Annotated[bool, Strict()] = Field(
        False, description="On a GPU: only operations that come to the same each time; torch names one that cannot."
    )
    hardware: Literal["auto"] | None = Field(
        None,
        description="`auto` chooses `environment.n_envs` where it is 1, and `hyperparameters.batch_size` where there "
        "is none, for the machine that the run begins on, once; see below.",
    )
    data_parallel: Literal["auto"] | Annotated[Whole, Field(ge=1, le=64)] | None = Field(
        None,
        description="Processes that train one model together, each with environments and a buffer of its own; `auto` "
        "is one for each GPU of the machine that the run begins on. See [data-parallel.md](data-parallel.md).",
    )
    total_timesteps: Annotated[Whole, Field(ge=1)] = Field(
        description="Environment steps to train for, over all sessions and environments. Of a PyTorch loop its "
        "iterations; `total_steps` is another name of this field."
    )
    schedule_total: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Timesteps over which schedules run; null for `total_timesteps`."
    )
    save_frequency: Annotated[Whole, Field(ge=1)] | None = Field(
        None,
        description="Timesteps between two commits; what a sudden death may cost at most, beside the commit itself. "
        "Required, unless the next one is given.",
    )
    max_seconds_at_risk: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Instead of `save_frequency`: seconds of work that a sudden death may cost at most, the commit "
        "included. Commits come as far apart as the measured speed and their own measured cost allow.",
    )
    environment: Environment | None = Field(None, description="The environment; see below.")
    curriculum: Curriculum | None = Field(
        None,
        description="Stages of the environment, one after the other: see below, [curriculum.md](curriculum.md).",
    )
    hyperparameters: Arguments = Field(
        {}, description="The algorithm's own arguments; `lin_3e-4` is a schedule that falls linearly to 0."
    )
    initial_model: Annotated[InitialModel | None, BeforeValidator(from_text)] = Field(
        None, description="Model to start from; see below. Text is its `source`."
    )
    pretraining: Annotated[Pretraining | None, BeforeValidator(pretraining_from_text)] = Field(
        None,
        description="Behaviour cloning before the first timestep; see below. Text is its `demonstrations`.",
    )
    callbacks: tuple[Reference, ...] = Field((), description="`module:Class` of SB3 callbacks, made without arguments.")
    entry_point: Annotated[Text, AfterValidator(_entry_point)] | None = Field(
        None,
        description="`module:function` of an ordinary SB3 script that passes `train_cloud.checkpoints()` to `learn`, "
        "or a file below `code.folder`, such as `train.py`, to run as `python train.py` does. The script then "
        "decides on algorithm, policy, environment, hyperparameters and callbacks.",
    )
    arguments: Annotated[tuple[Annotated[Text, BeforeValidator(_environment_value)], ...], BeforeValidator(_split)] = (
        Field(
            (),
            description="What the script finds in `sys.argv` after its own name: a list, or one text as in a shell, "
            "for example `--env CartPole-v1`.",
        )
    )
    parameters: Arguments = Field(
        {},
        description="What the script asks for with `train_cloud.run_file().parameters`: hyperparameters of its own.",
    )
    score: Annotated[Score | None, BeforeValidator(score_from_text)] = Field(
        None,
        description="By which number that a PyTorch loop logs checkpoints are compared; see below. Text is its `name`.",
    )
    code: Code = Field(Code(), description="Code of one's own; see below.")
    data: tuple[Annotated[Text, matching(_FOLDER_IN_S3, "give s3://bucket/prefix")], ...] = Field(
        (),
        max_length=20,
        description="Folders in S3, as `s3://bucket/prefix`, that the script reads, with `train_cloud.frames` for "
        "example: its worker gets the right to. Nothing is fetched; [data.md](data.md).",
    )
    env: dict[VariableName, Annotated[Text, BeforeValidator(_environment_value)]] = Field(
        {}, description="Environment variables, set before anything heavy is imported."
    )
    secrets: dict[VariableName, Annotated[Text, matching(_PARAMETER, "name an SSM parameter, as /my-project/key")]] = (
        Field({}, description="Environment variables that the worker reads from SSM parameters; here they are set.")
    )
    evaluation: Evaluation | None = Field(None, description="Tries the model on episodes of its own; see below.")
    artifacts: Artifacts = Field(Artifacts(), description="The files that the run leaves; see below.")
    wandb: Wandb | None = Field(None, description="Weights & Biases; see below.")
    signing_key: VariableName | None = Field(
        None,
        description="Name in `secrets` of a key of at least 16 bytes: each checkpoint is signed with it, from the "
        "first on, and none is read that is not.",
    )
    webhook: VariableName | None = Field(
        None,
        description="Name in `secrets` of a URL that is told when a worker's run is interrupted and how it ends; JSON "
        "with `text` and `content`, as Slack, Mattermost and Discord take it.",
    )
    seeds: (
        Annotated[tuple[Annotated[Whole, Field(ge=0, lt=2**32)], ...], Field(min_length=1, max_length=100)] | None
    ) = Field(
        None,
        description="Instead of `seed`: a run for each, named `<run_id>-s<seed>`, in the experiment `<run_id>` if none "
        "is named. `train` runs them one after the other, `train-cloud expand` writes a run file for each.",
    )
    limits: Limits = Field(Limits(), description="Where to stop early; see below.")
    preservation: Preservation = Field(Preservation(), description="Which checkpoints stay; see below.")
    reproducibility: Reproducibility = Field(
        Reproducibility(), description="Evidence that the run goes on exactly; see below."
    )
    sagemaker: SageMaker | None = Field(
        None, description="How `train-cloud launch --platform sagemaker` trains it; see below."
    )

    ray: Ray = Field(Ray(), description="What the run takes of a node of a Ray cluster; see below.")

    _written: RunFile | None = PrivateAttr(None)
    _chosen: dict[str, Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> RunFile:
        if self.data and self.entry_point is None:
            raise InputError("data", list(self.data), "only a script of your own reads it: name it under entry_point")
        if self.initial_model is not None:
            self.initial_model.check_path(self.code.folder)
            self._check_that_it_travels(self.initial_model)
        if self.pretraining is not None:
            self.pretraining.check_path(self.code.folder, self.code.exclude)
        if self.seeds is not None:
            self._check_seeds(self.seeds)
        if self.save_frequency is None and self.max_seconds_at_risk is None:
            raise InputError("save_frequency", None, "it is required: add it, or max_seconds_at_risk instead")
        if self.save_frequency is not None and self.max_seconds_at_risk is not None:
            fix = "give this or save_frequency; the other one is null"
            raise InputError("max_seconds_at_risk", self.max_seconds_at_risk, fix)
        if self.save_frequency is not None and self.save_frequency > self.total_timesteps:
            raise InputError(
                "save_frequency", self.save_frequency, f"give at most total_timesteps, which is {self.total_timesteps}"
            )
        every = self.preservation.every
        if every is not None and self.total_timesteps > _MOST_KEPT * every:
            least = -(-self.total_timesteps // _MOST_KEPT)
            raise InputError("preservation.every", every, f"give at least {least}: at most {_MOST_KEPT} stay")
        for name, parameter in self.secrets.items():
            if name.startswith(("TRAIN_CLOUD_", "AWS_")) or name in self.env:
                fix = "env sets it: remove one" if name in self.env else "the worker sets it: remove it"
                raise InputError(f"secrets.{name}", parameter, fix)
        if self.signing_key is not None and self.signing_key not in self.secrets:
            raise InputError(
                "signing_key", self.signing_key, "add this name to secrets, with the SSM parameter of the key"
            )
        if self.webhook is not None and self.webhook not in self.secrets:
            raise InputError("webhook", self.webhook, "add this name to secrets, with the SSM parameter of the URL")
        for name, value in self.env.items():
            if name.startswith(("TRAIN_CLOUD_", "AWS_")):
                raise InputError(f"env.{name}", value, "the worker sets it: remove it")
            if "\0" in value or "\n" in value:
                raise InputError(f"env.{name}", value, "give one line of text")
        if self.arguments and self.entry_point is None:
            fix = "only a script has them: name it under entry_point, or use hyperparameters and environment.kwargs"
            raise InputError("arguments", list(self.arguments), fix)
        for field in ("parameters", "score"):
            value = getattr(self, field)
            if value and self.entry_point is None:
                shown = value.name if isinstance(value, Score) else value
                fix = "only a script of your own reads it: name it under entry_point, or use hyperparameters"
                raise InputError(field, shown, fix)
        if self.curriculum is not None and self.algorithm == MULTIAGENT:
            fix = "not for several agents in this version: leave it out, or change the level in the environment itself"
            raise NotYet("curriculum", list(self.curriculum.names), fix)
        phases = {"entry_point": self.entry_point, "curriculum": self.curriculum, "pretraining": self.pretraining}
        data_parallel.check(self.data_parallel, self.algorithm, self.hyperparameters, phases)
        if self.entry_point is None:
            self._check_algorithm()
            self._check_hyperparameters()
        else:
            self._check_entry_point()
        return self

    def _check_that_it_travels(self, model: InitialModel) -> None:
        if model.path is None or self.code.folder is None:
            return
        if model.path.relative_to(self.code.folder).as_posix() not in code_files(self.code.folder, self.code.exclude):
            fix = "nothing in this place is code, and travels to a worker: put it into another folder of code.folder"
            raise InputError("initial_model", str(model.path), fix)

    def _check_seeds(self, seeds: tuple[int, ...]) -> None:
        if "seed" in self.model_fields_set:
            raise InputError("seed", self.seed, "give seed or seeds, not both")
        if len(set(seeds)) < len(seeds):
            raise InputError("seeds", list(seeds), "each seed makes a run: give each once")
        longest = f"{self.run_id}-s{max(seeds)}"
        if not _RUN_ID.fullmatch(longest):
            raise InputError("run_id", self.run_id, f"{longest} would have more than 63 characters: shorten it")

    def _check_algorithm(self) -> None:
        if self.algorithm is None:
            raise InputError("algorithm", None, f"name one of {', '.join(SUPPORTED)} or module:Class")
        if self.environment is None:
            raise InputError("environment", None, "add a section with at least an id, for example {id: Pendulum-v1}")
        if ":" in self.algorithm:
            if not REFERENCE.fullmatch(self.algorithm):
                raise InputError("algorithm", self.algorithm, "write it as module:Class, for example sb3_contrib:TQC")
        elif self.algorithm not in SUPPORTED:
            if self.algorithm.lower() == "ars":
                fix = f"not in this version: ARS has neither rollouts nor a replay buffer; use {', '.join(SUPPORTED)}"
                raise NotYet("algorithm", self.algorithm, fix)
            known = _ALSO_CALLED.get(self.algorithm.lower())
            near = f"did you mean {known}?" if known else suggestion(self.algorithm, SUPPORTED)
            fix = near or f"use {', '.join(SUPPORTED)} or module:Class"
            raise InputError("algorithm", self.algorithm, fix)
        if self.pretraining is not None and self.algorithm in SUPPORTED and self.algorithm not in CLONED:
            fix = f"{self.algorithm} cannot be pretrained: use {', '.join(CLONED)}, or remove it"
            raise InputError("pretraining", self.pretraining.demonstrations, fix)
        if not (MODULE.fullmatch(self.policy) and "." not in self.policy) and not REFERENCE.fullmatch(self.policy):
            raise InputError("policy", self.policy, "use SB3's name, for example MlpPolicy, or module:Class")

        if self.architecture is not None:
            self.architecture.policy_of(self.algorithm, self.policy if "policy" in self.model_fields_set else None)
            self.architecture.check_against(self.hyperparameters.get("policy_kwargs"))

    def _check_hyperparameters(self) -> None:
        for name, value in self.hyperparameters.items():
            if name in ELSEWHERE:
                where = ELSEWHERE[name]
                fix = f"set the field {where} instead" if where else "train-cloud sets it: remove it"
                raise InputError(f"hyperparameters.{name}", value, fix)
            if name in SCHEDULED and isinstance(value, str) and not _SCHEDULE.fullmatch(value):
                raise InputError(
                    f"hyperparameters.{name}",
                    value,
                    "give a number without quotes, or lin_<number> for a linear fall to 0",
                )

    def _check_entry_point(self) -> None:
        if self.script is not None:
            if self.code.folder is None:
                raise InputError("entry_point", self.entry_point, "name the folder that it lies in under code.folder")
            if not self.script.is_file():
                fix = f"there is no such file below code.folder, {self.code.folder}"
                raise InputError("entry_point", self.entry_point, fix)
        for field in (
            *(
                "algorithm",
                "policy",
                "architecture",
                "hardware",
                "environment",
                "curriculum",
                "hyperparameters",
                "callbacks",
            ),
            "pretraining",
            "precision",
        ):
            value = getattr(self, field)
            if field in self.model_fields_set and value not in (None, (), {}):
                shown = value.id if isinstance(value, Environment) else value
                shown = list(shown.names) if isinstance(shown, Curriculum) else shown
                raise InputError(field, shown, f"the script {self.entry_point} decides this: remove it or entry_point")

    @property
    def requirements(self) -> Path | None:
        """The user's requirements file, which is installed on the worker."""
        if self.code.requirements is not None or self.code.folder is None:
            return self.code.requirements
        usual = self.code.folder / "requirements.txt"
        return usual if usual.is_file() else None

    @property
    def script(self) -> Path | None:
        """The entry point's file; None where it is a function."""
        if self.entry_point is None or ":" in self.entry_point:
            return None
        return (self.code.folder or Path()) / self.entry_point

    @property
    def extras(self) -> tuple[str, ...]:
        """The package's extras that this run needs to be trained."""
        wrappers = self.environment.wrappers if self.environment is not None else ()
        named = (
            ALGORITHMS.get(self.algorithm or "", self.algorithm or ""),
            self.chosen_policy,
            *wrappers,
            *self.callbacks,
        )
        contrib = any(name.split(":")[0].split(".")[0] == CONTRIB for name in named)
        return (
            *(["contrib"] if contrib else []),
            *(["graphs"] if self.architecture is not None and self.architecture.extra else []),
            *(["wandb"] if self.wandb is not None else []),
            *(["demonstrations"] if self.pretraining is not None and self.pretraining.reads_minari else []),
        )

    @property
    def evaluated(self) -> Evaluation:
        """What an evaluation plays: the section, with a category for each stage of the curriculum. One that the section
        has by a stage's name stays as it is written.
        """
        section = self.evaluation or Evaluation()
        if self.curriculum is None:
            return section
        stages = {
            stage.name: Category(kwargs=stage.kwargs, method=stage.method, args=stage.args)
            for stage in self.curriculum.stages
        }
        written = section.categories if "categories" in section.model_fields_set else {}
        return section.model_copy(update={"categories": {**stages, **written}})

    @property
    def chosen_policy(self) -> str:
        """SB3's policy name, or ``module:Class``: the architecture's, where there is one."""
        if self.architecture is None:
            return self.policy
        return self.architecture.policy_of(
            self.algorithm or "", self.policy if "policy" in self.model_fields_set else None
        )

    @property
    def chosen(self) -> Mapping[str, Any] | None:
        """What ``hardware`` has chosen; None before that."""
        return self._chosen

    def with_hardware(self, chosen: Mapping[str, Any] | None) -> RunFile:
        """With what ``hardware`` leaves open; its identity stays what is written.

        :param chosen: as ``train_cloud.sb3.hardware.choose`` returns it; None for nothing
        """
        if chosen is None or self.hardware is None or self.environment is None:
            return self
        changed: dict[str, Any] = {}
        if self.environment.n_envs == 1:
            changed["environment"] = self.environment.model_copy(update={"n_envs": chosen["n_envs"]})
        if chosen["batch_size"] is not None:
            changed["hyperparameters"] = {"batch_size": chosen["batch_size"], **self.hyperparameters}
        found = self.model_copy(update=changed)
        found._written, found._chosen = self._written or self, dict(chosen)
        return found

    @property
    def schedule_timesteps(self) -> int:
        """Timesteps over which schedules run."""
        return self.schedule_total or self.total_timesteps

    def identity(self) -> dict[str, Any]:
        """What never changes under one run id, as JSON values; the user's program text stands in it as its digest.

        :raises InputError: the code folder cannot be read
        """
        if self._written is not None:
            return self._written.identity()
        whole = self.model_dump(mode="json", exclude={"code"})
        same: dict[str, Any] = {
            field: whole[field] for field, part in PARTS.items() if part == "identity" and field in whole
        }
        if self.initial_model is not None:
            same["initial_model"] = self.initial_model.identity()
        if self.pretraining is not None:
            same["pretraining"] = self.pretraining.identity()
        same["code"] = {
            "digest": None if self.code.folder is None else program_digest(self.code.digests()),
            "requirements": None if self.code.requirements is None else file_digest(self.code.requirements),
            "system_packages": list(self.code.system_packages),
            "python": self.code.python,
        }
        return same
