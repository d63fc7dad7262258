"""The run file's field ``architecture``: which networks see the observations, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from train_cloud.config.shapes import MODULE, REFERENCE, Arguments, Section, Text
from train_cloud.errors import InputError, suggestion

#: What SB3's policies call what an architecture decides.
EXTRACTOR, EXTRACTOR_KWARGS = "features_extractor_class", "features_extractor_kwargs"
_FIELD = "architecture"


class Registered(NamedTuple):
    """An architecture that is known by name.

    :ivar reference: ``module:Class`` of a ``BaseFeaturesExtractor``
    :ivar extra: of the package, that brings what it needs
    :ivar sees: what of the observation, in words
    """

    reference: str
    sees: str
    extra: str | None = None


_OURS = "train_cloud.sb3.architectures"
#: By name. Without torch, so that a wrong name is told at once; ``train_cloud.sb3.architectures`` has the classes.
ARCHITECTURES: Mapping[str, Registered] = {
    "full_hgt": Registered(
        f"{_OURS}.hgt:FullHgt", "local view, global map, state; graph by HGT with all types", "graphs"
    ),
    "vision_free": Registered(f"{_OURS}.hgt:VisionFree", "state; graph by HGT with all types", "graphs"),
    "local_only": Registered(f"{_OURS}.extractors:LocalOnly", "local view, state"),
    "gat": Registered(f"{_OURS}.extractors:Gat", "local view, global map, state; graph by attention, without types"),
    "gcn": Registered(f"{_OURS}.extractors:Gcn", "local view, global map, state; graph by convolution, without types"),
    "simplified_hgt": Registered(
        f"{_OURS}.hgt:SimplifiedHgt", "local view, state; graph by one layer of HGT, edges of one type", "graphs"
    ),
    "mlp_baseline": Registered(f"{_OURS}.extractors:MlpBaseline", "everything, as one row of numbers"),
}


class Architecture(Section):
    """Networks by name; becomes the algorithm's ``policy`` and ``policy_kwargs``."""

    name: Annotated[Text, Field(min_length=1)] = Field(
        description=f"One of {', '.join(f'`{name}`' for name in ARCHITECTURES)}; `module:Class` of an SB3 "
        "`BaseFeaturesExtractor`; or, with `policy` or `policy_kwargs`, a name of your choice."
    )
    kwargs: Arguments = Field({}, description="Arguments of the features extractor, such as `features_dim`.")
    policy: Text | None = Field(
        None,
        description="SB3's policy name, or `module:Class`; null for the run file's `policy`, or, with a name of the "
        "list, `MultiInputPolicy`.",
    )
    policy_kwargs: Arguments = Field({}, description="More arguments of the policy, such as `net_arch`.")

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        if self.policy is not None and not MODULE.fullmatch(self.policy) and not REFERENCE.fullmatch(self.policy):
            raise InputError(f"{_FIELD}.policy", self.policy, "use SB3's name, or module:Class")
        for key in (EXTRACTOR, EXTRACTOR_KWARGS):
            if key in self.policy_kwargs and self.reference is not None:
                fix = f"the architecture {self.name} sets it: remove it, or give the architecture a name of your own"
                raise InputError(f"{_FIELD}.policy_kwargs.{key}", self.policy_kwargs[key], fix)
        if self.reference is not None:
            return self
        if ":" in self.name:
            fix = "write it as module:Class, for example my_project.networks:Extractor"
            raise InputError(f"{_FIELD}.name", self.name, fix)
        if not (self.policy or self.policy_kwargs):
            every = f"use {', '.join(ARCHITECTURES)}, module:Class, or a name of your own with policy or policy_kwargs"
            raise InputError(_FIELD, self.name, suggestion(self.name, tuple(ARCHITECTURES)) or every)
        if self.kwargs:
            fix = f"write them as policy_kwargs.{EXTRACTOR_KWARGS}: {self.name} names no features extractor"
            raise InputError(f"{_FIELD}.kwargs", self.kwargs, fix)
        return self

    @property
    def reference(self) -> str | None:
        """``module:Class`` of the features extractor; None where ``policy`` and ``policy_kwargs`` say it all."""
        known = ARCHITECTURES.get(self.name)
        if known is not None:
            return known.reference
        return self.name if REFERENCE.fullmatch(self.name) else None

    @property
    def extra(self) -> str | None:
        """The package's extra that it needs."""
        return ARCHITECTURES[self.name].extra if self.name in ARCHITECTURES else None

    def policy_arguments(self) -> dict[str, Any]:
        """The policy's arguments as a run file would write them."""
        if self.reference is None:
            return dict(self.policy_kwargs)
        found = {EXTRACTOR: self.reference, EXTRACTOR_KWARGS: dict(self.kwargs)}
        return {**self.policy_kwargs, **found}

    def policy_of(self, algorithm: str, written: str | None) -> str:
        """Which policy goes with it.

        :param algorithm: the run file's
        :param written: the run file's ``policy``; None where it has none
        :raises InputError: two that differ, or one that takes no dict of observations
        """
        if self.policy is not None and written is not None and written != self.policy:
            fix = f"the architecture {self.name} has {self.policy}: remove one"
            raise InputError("policy", written, fix)
        chosen = self.policy or written
        if self.name not in ARCHITECTURES:
            return chosen or "MlpPolicy"
        if chosen in ("MlpPolicy", "CnnPolicy", "MlpLstmPolicy", "CnnLstmPolicy"):
            usual = _usual(algorithm)
            raise InputError("policy", chosen, f"{self.name} sees dict observations: use {usual}, or remove it")
        return chosen or _usual(algorithm)

    def check_against(self, policy_kwargs: Any) -> None:
        """:param policy_kwargs: the run file's own
        :raises InputError: both say the same thing
        """
        for key in policy_kwargs if isinstance(policy_kwargs, dict) else ():
            if key in self.policy_arguments():
                fix = f"the architecture {self.name} sets it: remove one of the two"
                raise InputError(f"hyperparameters.policy_kwargs.{key}", policy_kwargs[key], fix)


def from_text(value: object) -> object:
    """Text is the name alone."""
    return {"name": value} if isinstance(value, str) else value


def _usual(algorithm: str) -> str:
    return "MultiInputLstmPolicy" if algorithm == "recurrent_ppo" else "MultiInputPolicy"
