"""What a run starts from instead of random parameters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from train_cloud.config.code import file_digest
from train_cloud.config.shapes import Section, Text, matching
from train_cloud.errors import InputError

_RUN = re.compile(r"run:(?P<run_id>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(@(?P<timesteps>[0-9_]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_S3 = re.compile(r"s3://[^/]+/.+\.(zip|safetensors)")
#: What ``train-cloud export`` and rl-baselines3-zoo call the normaliser that lies beside a model.
NORMALIZER = "vecnormalize.pkl"


class InitialModel(Section):
    """A trained model whose parameters the run begins with. Timesteps and optimisers begin anew."""

    source: Text = Field(
        description="`run:<run_id>` or `run:<run_id>@<timesteps>`, a run's checkpoint in the same store; "
        "`s3://…/model.zip`; or the path of a model.zip within `code.folder`, relative to the run file. A "
        f"`{NORMALIZER}` beside a model.zip comes along. Of a PyTorch loop a run or a `.safetensors` file."
    )
    buffer: Annotated[bool, Strict()] = Field(
        False, description="Whether the replay buffer comes along too; a `run:` has one, a model.zip has none."
    )
    digest: Annotated[Text, matching(_SHA256, "write 64 hexadecimal digits")] | None = Field(
        None,
        description="SHA-256 of what it has to be, as a run's checkpoint that began with it says; anything else is "
        "refused. A pipeline sets it.",
    )

    @model_validator(mode="after")
    def _check(self) -> InitialModel:
        kind, _, rest = self.source.partition(":")
        if kind == "run" and not _RUN.fullmatch(self.source):
            raise InputError("initial_model", self.source, "write run:<run_id> or run:<run_id>@<timesteps>")
        if kind == "s3" and rest and not _S3.fullmatch(self.source):
            raise InputError("initial_model", self.source, "write s3://bucket/folder/model.zip")
        if self.buffer and self.run is None:
            raise InputError("initial_model.buffer", True, "only a run has its replay buffer: name run:<run_id>")
        return self

    @property
    def run(self) -> tuple[str, int | None] | None:
        """Run id and timesteps, None for its newest checkpoint; None where it is no run."""
        match = _RUN.fullmatch(self.source)
        return (match["run_id"], int(match["timesteps"]) if match["timesteps"] else None) if match else None

    @property
    def path(self) -> Path | None:
        """Of a local file; None where it is none."""
        return None if self.source.startswith(("run:", "s3://")) else Path(self.source)

    def check_path(self, folder: Path | None) -> None:
        """:raises InputError: a file that would not travel to a worker, or is not there"""
        if self.path is None:
            return
        if folder is None or not self.path.is_relative_to(folder):
            fix = "put it into code.folder, which is what travels to the worker; or name run:<run_id> or s3://…"
            raise InputError("initial_model", self.source, fix)
        if not self.path.is_file():
            raise InputError("initial_model", self.source, "name an existing file")

    def identity(self) -> dict[str, Any]:
        """A file stands in it as its digest, as it may lie elsewhere on another machine."""
        if self.path is None:
            pinned = {} if self.digest is None else {"digest": self.digest}
            return {"source": self.source, "buffer": self.buffer, **pinned}
        files = [path for path in (self.path, self.path.with_name(NORMALIZER)) if path.is_file()]
        return {"digests": {path.name: file_digest(path) for path in files}, "buffer": self.buffer}


def from_text(value: object) -> object:
    """The source alone is enough."""
    return {"source": value} if isinstance(value, str) else value
