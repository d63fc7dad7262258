"""The pipeline file: run files that are trained one after the other, each beginning with what the one before has
learned. Imports no torch.

A session is a run like any other: its run file with the session's changes and a run id. Nothing else about a run
depends on the pipeline that asked for it. All that is wrong with a file is told at once, before anything is begun.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, Strict, ValidationError, model_validator

from train_cloud.config.comparison import METRICS
from train_cloud.config.experiment import Changes, changed
from train_cloud.config.load import (
    describes_experiment,
    describes_pipeline,
    every_finding,
    explain,
    launched_with,
    parse_overrides,
    parse_run_file,
    put,
    read_mapping,
)
from train_cloud.config.run_file import MULTIAGENT, RunFile
from train_cloud.config.shapes import Arguments, Number, Section, Text, Whole, matching
from train_cloud.errors import Findings, InputError, suggestion

Choice = Literal["best", "final"]
Flag = Annotated[bool, Strict()]

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CONDITION = re.compile(
    rf"((?P<category>[a-z0-9][a-z0-9_-]*)\.)?(?P<metric>{'|'.join(METRICS)})\s*(?P<compare>>=|<=|>|<)\s*"
    r"(?P<value>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
)
#: Of a pipeline's name; what is longer is cut, and told apart by a digest of all of it.
_MOST_OF_A_NAME, _DIGEST = 30, 6
_MOST_SESSIONS, _MOST_RETRIES = 200, 20
#: Checkpoints that may stay of one run by ``preservation.every``.
_MOST_KEPT = 500
#: In a pipeline file that was made for one machine, beside what the machine has to know of all its sessions.
LAUNCHED = "launched"
_OF_THE_LAUNCH = (LAUNCHED, "run_id", "code", "secrets", "data", "initial_model", "pretraining")
#: Keys that other pipeline files have and nobody here would act on, and what does it instead.
_ELSEWHERE = {
    "monitoring": "curves go to TensorBoard and the run file's wandb, the report is always written: remove it",
    "cost_optimization": "use the run file's limits, and save_frequency for commits: remove it",
    "post_pipeline": "use each run file's evaluation, train-cloud compare and train-cloud pull: remove it",
}
#: The same within `config` and `overrides`: sections of a training file that is no run file.
_ELSEWHERE_IN_RUN_FILES = {
    "training.total_timesteps": "a run file has total_timesteps at its top",
    "training.eval_freq": "a run file has evaluation: {every: …}",
    "training": "a run file has total_timesteps, save_frequency and evaluation at its top",
    "agent": "a run file has algorithm, policy and hyperparameters",
    "monitoring": "TensorBoard's logs are always written, and wandb is a section of its own: remove it",
    "paths": "artifacts lie in the run's folder of the store: remove it",
    "environment.name": "a run file has environment.id",
}


def _criteria(value: object) -> object:
    return {"condition": value} if isinstance(value, str | list) else value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _condition(value: str) -> str:
    if not _CONDITION.fullmatch(value.strip()):
        raise ValueError(f"write for example mean_return >= 200, or hard.success_rate >= 0.8; {', '.join(METRICS)}")
    return value.strip()


def _nothing(value: object) -> object:
    return {} if value is None else value


class SuccessCriteria(Section):
    """What a session's last evaluation has to show before the next one begins. Text alone is its ``condition``."""

    condition: Annotated[tuple[Annotated[Text, AfterValidator(_condition)], ...], BeforeValidator(_listed)] = Field(
        (),
        description="`<metric> >= <number>`, or a list of such, of the last evaluation over all its categories; "
        f"`<category>.<metric>` of one of them. {', '.join(f'`{name}`' for name in METRICS)}; `>=`, `<=`, `>`, `<`.",
    )
    min_reward: Annotated[Number, Field(allow_inf_nan=False)] | None = Field(
        None, description="The same as `condition: mean_return >= …`."
    )
    min_episodes: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Episodes that it has to have trained for, as its `monitor.csv` counts them."
    )
    retries: Annotated[Whole, Field(ge=0, le=_MOST_RETRIES)] = Field(
        0,
        description="How often the session is trained anew where it does not meet them: the run `<run_id>-retry<n>`, "
        "with another seed.",
    )
    retry_overrides: tuple[Annotated[Arguments, BeforeValidator(_nothing)], ...] = Field(
        (), description="What each retry changes in the session's run file, the first one's first."
    )

    @model_validator(mode="after")
    def _check(self) -> SuccessCriteria:
        if not self.condition and self.min_reward is None and self.min_episodes is None:
            raise InputError("success_criteria", None, "say what has to hold, for example mean_return >= 200")
        if len(self.retry_overrides) > self.retries:
            fix = f"there are {self.retries} retries: set retries to {len(self.retry_overrides)}"
            raise InputError("success_criteria.retry_overrides", f"{len(self.retry_overrides)} changes", fix)
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """Of the evaluation, all of them."""
        return (*self.condition, *([] if self.min_reward is None else [f"mean_return >= {self.min_reward:g}"]))

    @property
    def categories(self) -> tuple[str, ...]:
        """That conditions name."""
        found = (_CONDITION.fullmatch(each) for each in self.conditions)
        return tuple(match["category"] for match in found if match is not None and match["category"] is not None)


def holds(condition: str, values: Callable[[str | None, str], float | None]) -> bool | None:
    """Whether a condition holds; None where nothing tells it.

    :param values: of (category or None for all, metric)
    """
    match = _CONDITION.fullmatch(condition)
    assert match is not None
    value, than = values(match["category"], match["metric"]), float(match["value"])
    if value is None:
        return None
    return {">=": value >= than, "<=": value <= than, ">": value > than, "<": value < than}[match["compare"]]


class WarmPool(Section):
    """``aws.sagemaker.warm_pool``."""

    enabled: Flag = Field(False, description="Whether the machine stays for the next session.")
    max_instances: Literal[1] = Field(1, description="A session is trained by one.")
    retention_period_seconds: Annotated[Whole, Field(ge=60, le=3600)] = Field(3600, description="For how long.")


class VpcConfig(Section):
    """``aws.sagemaker.vpc_config``."""

    security_group_ids: tuple[Text, ...] = Field((), description="Security groups there.")
    subnets: tuple[Text, ...] = Field((), description="Subnets of a VPC of your own.")


class SageMaker(Section):
    """How SageMaker trains the sessions: each key goes into the section ``sagemaker`` of their run files."""

    enabled: Flag = Field(True, description="False: as if the section were not there.")
    instance_type: Text | None = Field(None, description="`instance_type` there.")
    instance_count: Literal[1] = Field(1, description="A run is trained by one machine.")
    max_run_seconds: Annotated[Whole, Field(ge=1)] | None = Field(None, description="`max_runtime_hours` there.")
    warm_pool: WarmPool | None = Field(None, description="`keep_alive_seconds` there.")
    use_spot_instances: Flag | None = Field(None, description="`spot` there.")
    max_wait_seconds: Annotated[Whole, Field(ge=1)] | None = Field(None, description="Part of `max_wait_hours` there.")
    container_image_uri: Text | None = Field(None, description="`image` there.")
    vpc_config: VpcConfig | None = Field(None, description="`subnets` and `security_groups` there.")
    role_arn: Text | None = Field(None, description="`role` there.")

    @model_validator(mode="after")
    def _check(self) -> SageMaker:
        if self.enabled and self.use_spot_instances and self.warm_pool is not None and self.warm_pool.enabled:
            kept = self.warm_pool.retention_period_seconds
            fix = (
                'AWS: a warm pool "cannot be used with spot instances". A pool is paid at the price on demand while it '
                f"trains and for up to {kept} s after it; spot costs a part of that, and nothing while it waits. One "
                "job trains all sessions on one machine, without a pool: switch one of the two off"
            )
            raise InputError("aws.sagemaker.use_spot_instances", True, fix)
        return self

    def for_run_files(self) -> dict[str, Any]:
        """As the section ``sagemaker`` of a run file has it; only what is given."""
        if not self.enabled:
            return {}
        hours = None if self.max_run_seconds is None else self.max_run_seconds / 3600
        waited = None if self.max_wait_seconds is None else self.max_wait_seconds / 3600
        spot = self.use_spot_instances
        given: dict[str, Any] = {
            "role": self.role_arn,
            "image": self.container_image_uri,
            "instance_type": self.instance_type,
            "max_runtime_hours": hours,
            "spot": False if spot is None and self.warm_pool is not None and self.warm_pool.enabled else spot,
            # Theirs is the time of waiting alone where it is less than the time of training.
            "max_wait_hours": None if waited is None or not spot else max(waited, (hours or 24.0) + waited),
        }
        if self.warm_pool is not None and self.warm_pool.enabled:
            given["keep_alive_seconds"] = self.warm_pool.retention_period_seconds
        if self.vpc_config is not None and self.vpc_config.subnets:
            given |= {
                "subnets": list(self.vpc_config.subnets),
                "security_groups": list(self.vpc_config.security_group_ids),
            }
        return {name: value for name, value in given.items() if value is not None}


class Aws(Section):
    """Where a pipeline is kept on AWS, and how it is trained there."""

    use_s3: Flag = Field(False, description="Whether `s3_bucket` is the store, where no other is named.")
    s3_bucket: Text | None = Field(None, description="Bucket, or `bucket/prefix`.")
    region: Text | None = Field(None, description="Of the bucket.")
    sagemaker: SageMaker | None = Field(None, description="For `--platform sagemaker`.")


class AwsOverrides(Section):
    """Of one session."""

    sagemaker: Arguments = Field({}, description="Keys of `aws.sagemaker`.")


class SessionEntry(Section):
    """One session of a pipeline, as it is written."""

    name: Text = Field(
        description="Its run is called `<pipeline>-<name>`, with hyphens for all that is no letter or digit."
    )
    description: Text | None = Field(None, description="For people.")
    config: Path | dict[str, Any] = Field(
        description="Run file, relative to this file or else to the working directory; or its content. What it says of "
        "`run_id` and `experiment` does not count."
    )
    timesteps: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Its `total_timesteps`; null for the run file's."
    )
    after: Annotated[tuple[Text, ...] | None, BeforeValidator(_listed)] = Field(
        None, description="Sessions that have to be completed first; null for the one above it, `[]` for none."
    )
    use_previous_checkpoint: Flag = Field(
        False, description="Whether it begins with the model of the session that it comes after."
    )
    checkpoint: Text | None = Field(
        None,
        description="What it begins with instead: `session:<name>` of one that comes before it, or what the run file's "
        "`initial_model` takes; a path is relative to this file.",
    )
    checkpoint_choice: Choice | None = Field(
        None, description="Which model of that session it begins with; null for what the pipeline says."
    )
    overrides: Annotated[Changes, BeforeValidator(_nothing)] = Field(
        {},
        description="What it changes in the run file. Maps are merged key by key, all else is replaced; keys may be "
        "dotted.",
    )
    aws_overrides: Annotated[AwsOverrides, BeforeValidator(_nothing)] = Field(
        AwsOverrides(), description="What it changes in `aws`."
    )
    success_criteria: Annotated[SuccessCriteria | None, BeforeValidator(_criteria)] = Field(
        None, description="What has to hold before the sessions after it begin; see below."
    )


class PipelineFile(Section):
    """A pipeline as it is written, without its sessions."""

    name: Text = Field(description="For people; what its runs are called begins with it, in lower case and hyphens.")
    id: Annotated[Text, matching(_ID, "use 1 to 40 lower-case letters, digits and inner hyphens")] | None = Field(
        None, description="What its runs are called begins with this; null for `name`."
    )
    description: Text | None = Field(None, description="For people.")
    continue_on_error: Flag = Field(
        False,
        description="Whether sessions that do not begin with one that has failed are trained all the same.",
    )
    enable_transfer_learning: Flag = Field(
        True, description="False: no session begins with another one's model, whatever it says."
    )
    save_all_checkpoints: Flag = Field(
        False, description="Whether each checkpoint's model stays; else what the run files say of `preservation`."
    )
    checkpoint_choice: Choice | None = Field(
        None,
        description="Which model a session hands over: `final`, or `best` by the evaluations along its way; null for "
        "`best` where there are such, else `final`.",
    )
    max_parallel: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        None, description="How many sessions are trained at once on one machine; null for one per core and `threads`."
    )
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Threads with which torch computes in each run; null for 1 where sessions may be trained side by "
        "side, else for what `train` takes.",
    )
    max_attempts: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        3, description="Failures in a row without a new commit, after which a session has failed."
    )
    aws: Aws | None = Field(None, description="Bucket and SageMaker; see below.")


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": PipelineFile,
    "aws": Aws,
    "aws.sagemaker": SageMaker,
    "aws.sagemaker.warm_pool": WarmPool,
    "aws.sagemaker.vpc_config": VpcConfig,
}
_SESSION_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": SessionEntry,
    "success_criteria": SuccessCriteria,
    "aws_overrides": AwsOverrides,
}


@dataclass(frozen=True)
class PipelineSession:
    """One session of a pipeline: a run, and which others come before it."""

    name: str
    """As in the pipeline file."""
    run_id: str
    description: str | None
    after: tuple[str, ...]
    """Names of the sessions that have to be completed first."""
    begins_with: str | None
    """Name of the session whose model it begins with; None where it begins with none of them."""
    choice: Choice
    """Which model of that one."""
    criteria: SuccessCriteria | None
    attempts: tuple[RunFile, ...] = field(repr=False)
    """Its run file, and that of each retry. Where it begins with another session's model, ``initial_model`` names that
    session's run, and not yet which checkpoint."""
    _contents: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)
    _base: Path = field(default=Path(), repr=False, compare=False)

    @property
    def config(self) -> RunFile:
        """Its run file, as it is first trained."""
        return self.attempts[0]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Of itself and of its retries."""
        return tuple(config.run_id for config in self.attempts)

    @property
    def content(self) -> Mapping[str, Any]:
        """Of its run file, with all that the pipeline file changes in it."""
        return self._contents[0]

    @property
    def base(self) -> Path:
        """The folder that paths in it are relative to."""
        return self._base

    def run_file(
        self,
        attempt: int = 0,
        *,
        initial: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> RunFile:
        """Its run file with what is known when it begins.

        :param initial: ``initial_model``
        :param run_id: instead of its own
        :param overrides: more changes, as in the pipeline file
        :raises InputError: naming the field
        """
        values = dict(self._contents[attempt])
        try:
            values = changed(values, overrides or {})
            if initial is not None:
                values["initial_model"] = dict(initial)
            return parse_run_file({**values, "run_id": run_id or values["run_id"]}, extra={}, base=self._base)
        except InputError as error:
            raise type(error)(f"{self.name}: {error.field}", error.value, error.fix) from error


@dataclass(frozen=True)
class PipelineConfig:
    """A pipeline file that was read and checked."""

    path: Path
    id: str
    written: PipelineFile
    sessions: tuple[PipelineSession, ...]
    """In the file's order."""
    sources: tuple[Path, ...] = ()
    """Run files that it was made of."""

    @property
    def is_chain(self) -> bool:
        """Whether no two sessions may be trained side by side."""
        return all(
            one.name in self.before(other.name) or other.name in self.before(one.name)
            for one, other in itertools.combinations(self.sessions, 2)
        )

    @property
    def threads(self) -> int | None:
        """Of each run; None for what ``train`` takes by itself."""
        return self.written.threads or (None if self.is_chain else 1)

    @property
    def s3_store(self) -> str | None:
        """Store root that the file itself names; None where it names none."""
        aws = self.written.aws
        return f"s3://{aws.s3_bucket}" if aws is not None and aws.use_s3 else None

    def session(self, name: str) -> PipelineSession:
        """:raises InputError: there is none of that name"""
        for session in self.sessions:
            if session.name == name:
                return session
        known = tuple(session.name for session in self.sessions)
        raise InputError("session", name, suggestion(name, known) or f"name one of {', '.join(known)}")

    def before(self, name: str) -> set[str]:
        """Names of all sessions that come before this one."""
        found: set[str] = set()
        waiting = [*self.session(name).after]
        while waiting:
            if (one := waiting.pop()) not in found:
                found.add(one)
                waiting += self.session(one).after
        return found

    def beginning_with(self, name: str) -> set[str]:
        """Names of all sessions whose model comes from this one's, directly or by others."""
        found: set[str] = set()
        for session in self.in_order():
            if session.begins_with is not None and session.begins_with in {name, *found}:
                found.add(session.name)
        return found

    def in_order(self) -> list[PipelineSession]:
        """Each after those that it comes after, else as in the file."""
        left, done = list(self.sessions), list[PipelineSession]()
        while left:
            names = {session.name for session in done}
            ready = next(session for session in left if set(session.after) <= names)
            left.remove(ready)
            done.append(ready)
        return done


def is_pipeline(path: str | Path) -> bool:
    """Whether a file is a pipeline file; False for what cannot be read."""
    try:
        return describes_pipeline(read_mapping(Path(path), "file", "name"))
    except InputError:
        return False


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a pipeline file and check the run file of every session.

    :param overrides: as given with ``--set``. A key of the pipeline file is the pipeline's (``max_parallel=2``),
        ``sessions.<name>.<key>`` is set in the run file of one session, any other key in that of every session.
    :raises Findings: all that is wrong, each with field, value and fix
    """
    path = Path(path)
    values = read_mapping(path, "pipeline file", "name")
    if not describes_pipeline(values):
        what = "an experiment file" if describes_experiment(values) else "a run file" if "run_id" in values else None
        fix = f"it is {what}: train-cloud train is for these" if what else "list its sessions under sessions"
        raise InputError("pipeline file", str(path), fix)
    return _Reading(path, values, overrides).read()


class _Reading:
    """All that is wrong with a file is collected, so that one round mends it."""

    def __init__(self, path: Path, values: dict[Any, Any], overrides: Sequence[str]) -> None:
        self._path, self._folder = path, path.absolute().parent
        self._sources: dict[Path, None] = {}
        if values.get(LAUNCHED) is True:
            values = {key: value for key, value in values.items() if key not in _OF_THE_LAUNCH}
        self._raw: Any = values.pop("sessions")
        self._values = values
        self._findings: list[InputError] = []
        self._keep_all_of: set[str] = set()
        """Sessions of which each checkpoint's model stays."""
        self._each: dict[str, object] = {}
        self._of: dict[str, dict[str, object]] = {}
        for key, value in parse_overrides(overrides).items():
            first, _, rest = key.partition(".")
            name, _, field_of = rest.partition(".")
            if first == "sessions" and field_of:
                self._of.setdefault(name, {})[field_of] = value
            elif first in PipelineFile.model_fields and first not in ("name", "id"):
                put(self._values, key, value)
            else:
                self._each[key] = value
        self._each = {**launched_with(), **self._each}

    def read(self) -> PipelineConfig:
        written = self._top()
        entries = self._entries()
        names = [entry.name for entry in entries]
        self._check_names(names)
        pipeline_id = self._id(written)
        after = self._after(entries)
        self._check_cycle(after)
        order = {entry.name: entry for entry in entries}
        sources = {entry.name: self._begins_with(written, entry, after) for entry in entries}
        contents = {entry.name: self._content(written, entry) for entry in entries}
        choices = {entry.name: entry.checkpoint_choice or written.checkpoint_choice for entry in entries}
        chosen = self._choices(sources, choices, contents)
        for one, choice in chosen.items():
            if choice == "best":
                self._keep_evaluated(one, str(sources[one]), contents[str(sources[one])] or {})
        sessions = []
        for entry in entries:
            content, source = contents[entry.name], sources[entry.name]
            run_id = f"{pipeline_id}-{_slug(entry.name)}"
            if content is None or not _slug(entry.name):
                continue
            if source is not None and source in order:
                content = {**content, "initial_model": {"source": f"run:{pipeline_id}-{_slug(source)}"}}
            attempts = self._attempts(entry, {**content, "run_id": run_id})
            if attempts is not None:
                files, kept = attempts
                base = self._base_of(entry)
                sessions.append(
                    PipelineSession(
                        entry.name, run_id, entry.description, after[entry.name], source,
                        chosen.get(entry.name, "final"), entry.success_criteria, files, kept, base,
                    )
                )  # fmt: skip
        self._check_learners(sessions)
        self._check_retries(sessions)
        self._unknown_sets(names)
        if self._findings:
            found = list({str(each): each for each in self._findings}.values())
            raise found[0] if len(found) == 1 else Findings(found)
        return PipelineConfig(self._path, pipeline_id, written, tuple(sessions), tuple(self._sources))

    # -------------------------------------------------------------------------------------------------- the file itself

    def _top(self) -> PipelineFile:
        """What can be read of it; the rest is found."""
        values = dict(self._values)
        aws = values.get("aws")
        if isinstance(aws, dict) and aws.get("use_s3") is True and aws.get("s3_bucket") is None:
            self._found("aws.s3_bucket", None, "use_s3 needs it: name the bucket")
        for _ in range(2):
            try:
                return PipelineFile.model_validate(values)
            except ValidationError as error:
                for found in every_finding(explain(error, _SECTIONS)):
                    first = found.field.split(".")[0]
                    fix = f"nobody would act on it: {_ELSEWHERE[first]}" if first in _ELSEWHERE else found.fix
                    self._findings.append(InputError(found.field, _short(found.value), fix))
                bad = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
                bad |= {"aws"} if any(not one["loc"] for one in error.errors()) else set()
                values = {key: value for key, value in values.items() if str(key) not in bad}
                values.setdefault("name", "pipeline")
        return PipelineFile(name="pipeline")

    def _entries(self) -> list[SessionEntry]:
        if not isinstance(self._raw, list) or not self._raw:
            raise InputError("sessions", _short(self._raw), "give a list: [{name: first, config: run.yaml}]")
        if len(self._raw) > _MOST_SESSIONS:
            raise InputError("sessions", f"{len(self._raw)} sessions", f"give at most {_MOST_SESSIONS}")
        entries = []
        for number, raw in enumerate(self._raw, start=1):
            if not isinstance(raw, dict):
                self._found(f"sessions.{number}", raw, "give a map: {name: first, config: run.yaml}")
                continue
            name = raw.get("name") if isinstance(raw.get("name"), str) else str(number)
            values = dict(raw)
            for _ in range(2):
                try:
                    entries.append(SessionEntry.model_validate(values))
                    break
                except ValidationError as error:
                    for one in every_finding(explain(error, _SESSION_SECTIONS)):
                        field_of = re.sub(r"\.(function-|chain\[|tagged).*", "", one.field)
                        field_of = re.sub(r"^config\.(path|dict)$", "config", field_of)
                        self._found(f"sessions.{name}.{field_of}".rstrip("."), _short(one.value), one.fix)
                    bad = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
                    values = {key: value for key, value in values.items() if str(key) not in bad}
                    if "config" not in values:
                        break
                    values.setdefault("name", f"session-{number}")
        return entries

    def _check_names(self, names: Sequence[str]) -> None:
        slugs: dict[str, str] = {}
        for name in names:
            slug = _slug(name)
            if not slug:
                self._found(f"sessions.{name}.name", name, "use letters and digits, for example stand_up")
            elif slug in slugs:
                same = "is called so too" if slugs[slug] == name else f"would have the same run id as {slugs[slug]}"
                self._found(f"sessions.{name}.name", name, f"another session {same}: call one of them otherwise")
            slugs.setdefault(slug, name)

    def _id(self, written: PipelineFile) -> str:
        if written.id is not None:
            return written.id
        slug = _slug(written.name)
        if not slug:
            self._found("name", written.name, "use letters and digits, or add an id, for example id: robots")
        if len(slug) > _MOST_OF_A_NAME:
            digest = hashlib.sha256(written.name.encode()).hexdigest()[:_DIGEST]
            slug = f"{slug[: _MOST_OF_A_NAME - _DIGEST - 1].rstrip('-')}-{digest}"
        return slug or "pipeline"

    # ------------------------------------------------------------------------------------------------------- the order

    def _after(self, entries: Sequence[SessionEntry]) -> dict[str, tuple[str, ...]]:
        names = [entry.name for entry in entries]
        found: dict[str, tuple[str, ...]] = {}
        for number, entry in enumerate(entries):
            after = entry.after if entry.after is not None else tuple(names[number - 1 : number] if number else ())
            for one in after:
                if one == entry.name and entry.after is not None:
                    self._found(f"sessions.{entry.name}.after", one, "it cannot come after itself: remove it")
                elif one not in names:
                    near = suggestion(one, tuple(names)) or f"name one of {', '.join(names)}"
                    self._found(f"sessions.{entry.name}.after", one, f"unknown session: {near}")
            found[entry.name] = tuple(dict.fromkeys(one for one in after if one in names and one != entry.name))
        return found

    def _check_cycle(self, after: Mapping[str, tuple[str, ...]]) -> None:
        left = {name: set(before) for name, before in after.items()}
        while ready := [name for name, before in left.items() if not before & left.keys()]:
            for name in ready:
                del left[name]
        if left:
            at = next(iter(left))
            way = [at]
            while (at := next(one for one in after[at] if one in left)) not in way:
                way.append(at)
            way = [*way[way.index(at) :], at]
            self._found(
                f"sessions.{way[0]}.after", list(after[way[0]]),
                f"each would wait for the other, {' after '.join(way)}: remove one of these",
            )  # fmt: skip

    def _begins_with(
        self, written: PipelineFile, entry: SessionEntry, after: Mapping[str, tuple[str, ...]]
    ) -> str | None:
        where, before = f"sessions.{entry.name}", after[entry.name]
        if entry.use_previous_checkpoint and entry.checkpoint is not None:
            self._found(f"{where}.checkpoint", entry.checkpoint, "give this or use_previous_checkpoint, not both")
            return None
        source = None
        if entry.use_previous_checkpoint:
            if len(before) != 1 and len(before) < len(entry.after or ()):
                return None  # of a name that is unknown
            if len(before) != 1:
                fix = (
                    f"it comes after {' and '.join(before)}: write checkpoint: session:{before[0]} instead"
                    if before
                    else "it comes after no other session: set it to false"
                )
                self._found(f"{where}.use_previous_checkpoint", True, fix)
                return None
            source = before[0]
        elif entry.checkpoint is not None and entry.checkpoint.startswith("session:"):
            source = entry.checkpoint.removeprefix("session:")
            earlier, waiting = set[str](), [*before]
            while waiting:
                if (one := waiting.pop()) not in earlier:
                    earlier.add(one)
                    waiting += after[one]
            if source not in earlier:
                fix = suggestion(source, tuple(earlier)) or f"name one that comes before it ({', '.join(earlier)})"
                self._found(f"{where}.checkpoint", entry.checkpoint, fix if earlier else "nothing comes before it")
                return None
        if entry.checkpoint_choice is not None and source is None:
            self._found(f"{where}.checkpoint_choice", entry.checkpoint_choice, "it begins with no session: remove it")
        return source if written.enable_transfer_learning else None

    # -------------------------------------------------------------------------------------------------- the run files

    def _base_of(self, entry: SessionEntry) -> Path:
        return self._folder if isinstance(entry.config, dict) else self._config_path(entry.config).parent

    def _config_path(self, config: Path) -> Path:
        beside = self._folder / config.expanduser()
        here = config.expanduser().absolute()
        return beside if beside.is_file() or not here.is_file() else here

    def _content(self, written: PipelineFile, entry: SessionEntry) -> dict[str, Any] | None:
        """A run file's content, with all that the session says of it but what it begins with."""
        where = f"sessions.{entry.name}"
        try:
            if isinstance(entry.config, dict):
                values = dict(entry.config)
            else:
                path = self._config_path(entry.config)
                if not path.is_file():
                    fix = "name an existing run file, relative to the pipeline file"
                    raise InputError("config", str(entry.config), fix)
                values = read_mapping(path, "config", "run_id")
                self._sources[path.absolute()] = None
                if describes_experiment(values) or describes_pipeline(values):
                    raise InputError("config", str(path), "it is no run file: name one")
            for key in ("run_id", "experiment"):
                values.pop(key, None)
            if values.get("seeds") is not None:
                raise InputError("config", "seeds", "a session is one run: its run file has seed in the place of seeds")
            for key in ("run_id", "experiment", "seeds"):
                if key in entry.overrides:
                    raise InputError(f"overrides.{key}", entry.overrides[key], "a session is one run: remove it")
            values = changed(values, entry.overrides)
            if entry.timesteps is not None:
                there = entry.overrides.get("total_timesteps")
                if there is not None and there != entry.timesteps:
                    self._found(f"{where}.timesteps", entry.timesteps, f"its overrides say {there}: keep one")
                values["total_timesteps"] = entry.timesteps
            for key, value in {**self._each, **self._of.get(entry.name, {})}.items():
                put(values, key, value)
        except InputError as error:
            self._found(f"{where}.{error.field}", error.value, error.fix)
            return None
        self._add_checkpoint(entry, values)
        if written.save_all_checkpoints and _keep_all(values):
            self._keep_all_of.add(entry.name)
        self._add_sagemaker(written, entry, values)
        return values

    def _add_checkpoint(self, entry: SessionEntry, values: dict[str, Any]) -> None:
        given = values.get("initial_model")
        if given is not None and (entry.checkpoint is not None or entry.use_previous_checkpoint):
            what = "checkpoint" if entry.checkpoint is not None else "use_previous_checkpoint"
            fix = "its run file has an initial_model: keep one of the two"
            self._found(f"sessions.{entry.name}.{what}", _short(getattr(entry, what)), fix)
            values.pop("initial_model")
        if entry.checkpoint is not None and not entry.checkpoint.startswith("session:"):
            source = entry.checkpoint
            if not source.startswith(("run:", "s3:")):
                source = str((self._folder / Path(source).expanduser()).absolute())
            values["initial_model"] = {"source": source}

    def _add_sagemaker(self, written: PipelineFile, entry: SessionEntry, values: dict[str, Any]) -> None:
        section = written.aws.sagemaker if written.aws is not None else None
        given = entry.aws_overrides.sagemaker
        if section is None and not given:
            return
        base = section.model_dump(exclude_unset=True, mode="json") if section is not None else {}
        try:
            found = SageMaker.model_validate({**base, **given})
        except ValidationError as error:
            sections: Mapping[str, type[BaseModel]] = {"": SageMaker, "warm_pool": WarmPool, "vpc_config": VpcConfig}
            for one in every_finding(explain(error, sections)):
                name = one.field.removeprefix("aws.sagemaker.")
                self._found(f"sessions.{entry.name}.aws_overrides.sagemaker.{name}", _short(one.value), one.fix)
            return
        if "sagemaker" in RunFile.model_fields and (more := found.for_run_files()):
            mine = values.get("sagemaker")
            merged = {**more, **(mine if isinstance(mine, dict) else {})}
            # Role and image are known where it is launched; without them there is nothing to check.
            if {"role", "image"} <= merged.keys():
                values["sagemaker"] = merged

    def _choices(
        self,
        sources: Mapping[str, str | None],
        choices: Mapping[str, Choice | None],
        contents: Mapping[str, Mapping[str, Any] | None],
    ) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        for name, source in sources.items():
            content = contents.get(source or "")
            if source is None or content is None:
                continue
            section = content.get("evaluation")
            along = isinstance(section, dict) and section.get("every") is not None
            if choices[name] == "best" and not along:
                fix = f"it is chosen by evaluations along the way: set evaluation.every for {source}, or take final"
                self._found(f"sessions.{name}.checkpoint_choice", "best", fix)
            found[name] = "best" if along and choices[name] != "final" else "final"
        return found

    def _keep_evaluated(self, name: str, source: str, values: dict[str, Any]) -> None:
        """Let the model of each evaluated checkpoint stay, one of which is handed over."""
        every = values["evaluation"]["every"]
        _keep_every(values, every)
        kept = values["preservation"]["every"] if isinstance(values["preservation"], dict) else every
        # The first checkpoint at or after each multiple stays, and so is evaluated: of every multiple of a divisor.
        given = source not in self._keep_all_of and isinstance(kept, int) and isinstance(every, int)
        if given and kept > 0 and every % kept:
            fix = (
                f"{name} begins with the best of the models evaluated every {every} timesteps, which have to stay: "
                f"leave it out, set it to {every}, or give {name} checkpoint_choice: final"
            )
            self._found(f"sessions.{source}: preservation.every", kept, fix)

    def _attempts(
        self, entry: SessionEntry, content: dict[str, Any]
    ) -> tuple[tuple[RunFile, ...], tuple[dict[str, Any], ...]] | None:
        """Of the session and its retries; None where one of them is wrong."""
        criteria, base = entry.success_criteria, self._base_of(entry)
        kept = [content]
        for number in range(1, (criteria.retries if criteria is not None else 0) + 1):
            assert criteria is not None
            more = criteria.retry_overrides[number - 1] if number <= len(criteria.retry_overrides) else {}
            seed = content.get("seed", 0)
            values = {**content, **({"seed": seed + number} if isinstance(seed, int) and "seed" not in more else {})}
            with contextlib.suppress(InputError):  # told when it is parsed
                values = changed(values, more)
            kept.append({**values, "run_id": f"{content['run_id']}-retry{number}"})
        files = []
        for number, values in enumerate(kept):
            try:
                files.append(parse_run_file(values, extra={}, base=base))
            except InputError as error:
                if number:
                    self._of_run_file(f"{entry.name}.success_criteria.retry_overrides", {}, error)
                    break
                self._of_run_file(entry.name, entry.overrides, error)
                return None
        if len(files) < len(kept):
            return None
        self._check_criteria(entry, files)
        return tuple(files), tuple(kept)

    def _of_run_file(self, name: str, overrides: Mapping[str, Any], error: InputError) -> None:
        """What is wrong with a session's run file."""
        given = dict(_leaves(overrides))
        for one in every_finding(error):
            fix = next(
                (f"unknown key: {words}" for key, words in _ELSEWHERE_IN_RUN_FILES.items() if one.field == key), one.fix
            )
            if one.field == "run_id" and "characters" not in fix:
                fix = "with the pipeline's name it is too long for a run id (63 characters): shorten one, or add an id"
            if one.field.split(".")[0] in {key.split(".")[0] for key in given}:
                self._found(f"sessions.{name}.overrides.{one.field}", _short(one.value), fix)
            else:
                self._found(f"sessions.{name}: {one.field}", _short(one.value), fix)

    def _check_criteria(self, entry: SessionEntry, files: Sequence[RunFile]) -> None:
        criteria, where = entry.success_criteria, f"sessions.{entry.name}.success_criteria"
        if criteria is None or not criteria.conditions:
            return
        if files[0].evaluation is None:
            fix = "its run file has no evaluation to judge it by: add the section"
            self._found(where, criteria.conditions[0], fix)
            return
        known = files[0].evaluated.categories
        for category in criteria.categories:
            if category not in known:
                near = suggestion(category, tuple(known)) or f"name one of {', '.join(known)}"
                self._found(where, category, f"its evaluation has no such category: {near}")

    def _check_learners(self, sessions: Sequence[PipelineSession]) -> None:
        by_name = {session.name: session for session in sessions}
        for session in sessions:
            source = by_name.get(session.begins_with or "")
            if source is not None and source.config.algorithm == MULTIAGENT:
                fix = f"{source.name} trains several agents, of which none can be handed over: remove it"
                self._found(f"sessions.{session.name}.use_previous_checkpoint", True, fix)

    def _check_retries(self, sessions: Sequence[PipelineSession]) -> None:
        retries = {run_id: session.name for session in sessions for run_id in session.run_ids[1:]}
        for session in sessions:
            if session.run_id in retries:
                fix = f"a retry of {retries[session.run_id]} has the run id {session.run_id}: call it otherwise"
                self._found(f"sessions.{session.name}.name", session.name, fix)

    def _unknown_sets(self, names: Sequence[str]) -> None:
        for name, given in self._of.items():
            if name not in names:
                fix = suggestion(name, tuple(names)) or f"name one of {', '.join(names)}"
                self._found(f"--set sessions.{name}", next(iter(given)), f"unknown session: {fix}")

    def _found(self, where: str, value: object, fix: str) -> None:
        self._findings.append(InputError(where, value, fix))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _short(value: object) -> object:
    """Of a whole section only that it is one."""
    if isinstance(value, dict | list) and len(str(value)) > 60:
        return f"a map with {', '.join(map(str, value))}"[:60] if isinstance(value, dict) else f"{len(value)} values"
    return value


def _leaves(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _keep_all(values: dict[str, Any]) -> bool:
    """:return: whether it is this that decides"""
    total, every = values.get("total_timesteps"), values.get("save_frequency")
    if not isinstance(total, int | float):
        return False
    return _keep_every(values, max(every if isinstance(every, int | float) else 1, -(-int(total) // _MOST_KEPT)))


def _keep_every(values: dict[str, Any], timesteps: Any) -> bool:
    there = values.get("preservation")
    if there is None or (isinstance(there, dict) and there.get("every") is None):
        values["preservation"] = {**(there or {}), "every": timesteps}
        return True
    return False
