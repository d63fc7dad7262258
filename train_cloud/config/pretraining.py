"""The run file's section ``pretraining``: behaviour cloning from demonstrations, before the first timestep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from train_cloud.config.code import code_files, file_digest
from train_cloud.config.shapes import Number, Section, Text, Whole
from train_cloud.errors import InputError

_S3 = re.compile(r"s3://[^/]+/.+")
#: Minari's own rule (minari.dataset.minari_dataset.DATASET_ID_RE), with a version.
_ID = re.compile(r"([-_\w][-_\w/]*[-_\w]+/)?[-_\w]+?-v\d+")
_FIELD = "pretraining.demonstrations"
#: Algorithms that can be pretrained, by name; others by what they are derived from (train_cloud/sb3/cloning.py).
CLONED = ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")
#: Before the id of a dataset in the local Minari folder.
MINARI = "minari:"


class Keep(Section):
    """Holds the policy near the cloned one while it learns: a penalty that falls linearly to nothing."""

    weight: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = Field(
        description="Of the divergence from the cloned policy, beside the algorithm's own loss, at the first timestep."
    )
    until: Annotated[Whole, Field(ge=1)] = Field(description="Timesteps at which it has fallen to 0.")


class Pretraining(Section):
    """The policy learns to do what demonstrations do. The run's first phase, at timesteps 0."""

    demonstrations: Text = Field(
        description="A `.npz` file, a folder with such files, or the folder of a Minari dataset: a path within "
        "`code.folder`, relative to the run file, or `s3://…`; or `minari:<id>`, a dataset in the local Minari folder."
    )
    epochs: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        10, description="How often all of them are gone through."
    )
    batch_size: Annotated[Whole, Field(ge=1)] = Field(64, description="Steps for each update.")
    learning_rate: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-3, description="Of Adam, which the pretraining has for itself."
    )
    loss: Literal["auto", "log_prob", "mse", "margin"] = Field(
        "auto",
        description="`log_prob` (PPO, A2C: minus the log-probability of what was done), `mse` (SAC, TD3, DDPG: the "
        "mean action, squashed and scaled to -1..1; PPO and A2C can have it for continuous actions), `margin` (DQN); "
        "`auto` takes the algorithm's own.",
    )
    entropy: Annotated[Number, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Weight of the policy's entropy, which is to stay high; null for 0.001. Only of discrete actions: "
        "for continuous ones the spread is held as it is.",
    )
    critic: Annotated[bool, Strict()] = Field(
        True,
        description="Whether the value function or critic learns the discounted returns of the demonstrations. Without "
        "it the first updates of RL follow values that mean nothing, and the cloned policy is lost.",
    )
    validation: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of the episodes that is held out, at least one, to measure on; 0 for none."
    )
    keep: Keep | None = Field(
        None,
        description="`{weight, until}`: a penalty on the divergence from the cloned policy during RL; null for none.",
    )

    @model_validator(mode="after")
    def _check(self) -> Pretraining:
        kind, _, rest = self.demonstrations.partition(":")
        if kind == "s3" and rest.startswith("//") and not _S3.fullmatch(self.demonstrations):
            fix = "write s3://bucket/folder/demonstrations.npz, or the folder of a Minari dataset there"
            raise InputError(_FIELD, self.demonstrations, fix)
        if self.demonstrations.startswith(MINARI) and self.minari is None:
            raise InputError(
                _FIELD, self.demonstrations, "write minari:<namespace>/<name>-v<number>, as Minari lists it"
            )
        return self

    @property
    def minari(self) -> str | None:
        """Id of a dataset in the local Minari folder; None where it is none."""
        found = self.demonstrations.removeprefix(MINARI)
        return found if found != self.demonstrations and _ID.fullmatch(found) else None

    @property
    def path(self) -> Path | None:
        """Of a local file or folder; None where it is none."""
        return None if self.demonstrations.startswith(("s3://", MINARI)) else Path(self.demonstrations)

    @property
    def reads_minari(self) -> bool:
        """Whether it may take Minari's reader; of a folder in S3 nobody knows yet."""
        if self.path is None:
            return not self.demonstrations.endswith(".npz")
        return any((self.path / below / "metadata.json").is_file() for below in (".", "data"))

    def check_path(self, folder: Path | None, exclude: tuple[str, ...]) -> None:
        """
        :param folder: the run file's ``code.folder``
        :param exclude: its ``code.exclude``
        :raises InputError: something that would not travel to a worker, or is not there
        """
        if self.path is None:
            return
        if not self.path.exists():
            fix = "name an existing file or folder, s3://…, or minari:<id>"
            raise InputError(_FIELD, self.demonstrations, fix)
        if folder is None or not self.path.is_relative_to(folder):
            fix = "put it into code.folder, which is what travels to the worker; or name s3://…"
            raise InputError(_FIELD, self.demonstrations, fix)
        travels = set(code_files(folder, exclude))
        missing = [path for path in self.files() if path.relative_to(folder).as_posix() not in travels]
        if missing or not self.files():
            fix = "there is no file in it" if not missing else "nothing in this place is code, and travels to a worker"
            raise InputError(
                _FIELD, str(next(iter(missing), self.path)), f"{fix}: put it into another folder of code.folder"
            )

    def files(self) -> list[Path]:
        """Of a local path, in order; empty of any other."""
        if self.path is None:
            return []
        if self.path.is_file():
            return [self.path]
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def identity(self) -> dict[str, Any]:
        """Local files stand in it as their digests, as they may lie elsewhere on another machine."""
        whole = self.model_dump(mode="json")
        if self.path is not None:
            base = self.path if self.path.is_dir() else self.path.parent
            digests = {path.relative_to(base).as_posix(): file_digest(path) for path in self.files()}
            whole["demonstrations"] = {"digests": digests}
        return whole


def from_text(value: object) -> object:
    """The demonstrations alone are enough."""
    return {"demonstrations": value} if isinstance(value, str) else value


def placed(source: str, path: Path) -> str:
    """A source whose text is no URL: where it lies, or an id of Minari's where nothing lies there.

    :param path: where it would lie
    """
    return MINARI + source if not path.exists() and _ID.fullmatch(source) else str(path)


def recorded(section: Mapping[str, Any], written: object) -> dict[str, Any]:
    """A section as an identity has it, with the demonstrations as they were written in the run file.

    :param written: the run file's own section
    """
    source = written.get("demonstrations") if isinstance(written, Mapping) else written
    return {**section, "demonstrations": source}
