"""What a run takes of a node of a Ray cluster. Read by nobody else."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from train_cloud.config.shapes import Number, Section, Text
from train_cloud.errors import InputError

_AMOUNT = Field(ge=0, le=1e6, allow_inf_nan=False)
#: Resources that have a field of their own here, by Ray's names.
_ELSEWHERE = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}


class Ray(Section):
    """What a run takes of a node of a Ray cluster: [ray.md](ray.md)."""

    cpus: Annotated[Number, _AMOUNT] | None = Field(
        None, description="CPUs; null for as many as the run computes with, an experiment's `threads`."
    )
    gpus: Annotated[Number, _AMOUNT] | None = Field(
        None,
        description="GPUs, or a part of one that several runs share; null for 1 where `device` is `cuda`, or `auto` "
        "and a node has GPUs, else 0.",
    )
    memory_gb: Annotated[Number, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        None, description="Gigabytes of memory; null does not count it."
    )
    resources: dict[Text, Annotated[Number, _AMOUNT]] = Field({}, description="The cluster's own resources, by name.")

    @model_validator(mode="after")
    def _check(self) -> Ray:
        if self.gpus is not None and self.gpus > 1 and not float(self.gpus).is_integer():
            raise InputError("ray.gpus", self.gpus, "give a whole number, or a part of one GPU: at most 1")
        for name, amount in self.resources.items():
            if name in _ELSEWHERE:
                raise InputError(f"ray.resources.{name}", amount, f"set ray.{_ELSEWHERE[name]} instead")
        return self
