"""Several ``learn`` calls in one script: the phases of one run, counted in the run's own timesteps.

A script that is resumed begins at its top, so it calls ``learn`` for phases that are over. These are passed over: the
model gets the parameters of the checkpoint and the counters that the phase ended with, and not a step is trained. The
phase of the checkpoint is restored as every run is. Stable-Baselines3 counts a model's timesteps, and may count from 0
again in each phase; a run's go on over all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter

from train_cloud.errors import InputError

#: Name of what a checkpoint's facts have of this, from the second phase on.
PHASES = "phases"


@dataclass(frozen=True)
class Phase:
    """A phase that is over.

    :ivar timesteps: the run's, at its end
    :ivar model_timesteps: the model's own
    :ivar model: which of the script's models it trained, in the order of their first phases
    """

    timesteps: int
    model_timesteps: int
    model: int


@dataclass
class Phases:
    """What one process knows of the phases of its script.

    :ivar number: of the phase that is under way; 0 is the first
    :ivar offset: what is added to the model's timesteps to get the run's
    :ivar asked: timesteps that the calls before have trained and this one is asked for; what a last rollout trains
        beyond what its call was asked for does not count, as it does not in a run of one call
    """

    number: int = -1
    offset: int = 0
    asked: int = 0
    over: list[Phase] = field(default_factory=list)
    outputs: Sequence[KVWriter] | None = None
    _models: list[BaseAlgorithm] = field(default_factory=list)
    _rows: int = 0
    _asked: int = 0

    @classmethod
    def of(cls, host: Any) -> Phases:
        """Those of the process that ``host`` stands for."""
        return _of_host.setdefault(host, cls())

    def begin(self, model: BaseAlgorithm, facts: Mapping[str, Any]) -> Phase | None:
        """A ``learn`` call has set its model up.

        :param facts: of the checkpoint that is to be restored; empty where none is
        :return: how this phase ended, if the checkpoint is of a later one
        :raises InputError: a new model where one of the two has a replay buffer
        """
        self.number += 1
        self._asked = model._total_timesteps - model._num_timesteps_at_start
        self.asked += self._asked
        if not any(model is known for known in self._models):
            rows = [getattr(one, "replay_buffer", None) is not None for one in (model, *self._models[-1:])]
            if self._models and any(rows):
                fix = "a replay buffer goes with one model: keep that model in all phases (model.set_env changes its "
                fix += "environment), or make each phase a run of its own that begins with initial_model"
                raise InputError("entry_point", f"learn() call {self.number + 1}, with another model", fix)
            self._models.append(model)
        self.offset = (self.over[-1].timesteps if self.over else 0) - model.num_timesteps
        recorded = facts.get(PHASES, {"number": 0, "over": []})
        return Phase(**recorded["over"][self.number]) if self.number < recorded["number"] else None

    def is_the_one(self, model: BaseAlgorithm, facts: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is of this model."""
        return bool(facts.get(PHASES, {"model": 0})["model"] == self._index(model))

    def writes(self, output: KVWriter) -> bool:
        """Whether it is one of the run's outputs, as it is or shifted."""
        inner = output.inner if isinstance(output, Shifted) else output
        return any(inner is known for known in self.outputs or ())

    def rows(self, otherwise: int) -> int:
        """Replay rows that were ever added when this phase begins.

        :param otherwise: in the first one
        """
        return self._rows if self.over else otherwise

    def passed_over(self, phase: Phase) -> None:
        """A phase that is over was not trained again."""
        self._add(phase)

    def end(self, model: BaseAlgorithm, rows: int) -> None:
        """The phase that is under way is over.

        :param rows: replay rows that were ever added
        """
        timesteps = model.num_timesteps + self.offset
        self._add(Phase(timesteps, model.num_timesteps, self._index(model)))
        self._rows = rows

    def facts(self, model: BaseAlgorithm) -> dict[str, Any]:
        """For a checkpoint; nothing in the first phase, so that one ``learn`` call leaves what it always left."""
        if not self.number:
            return {}
        over = [asdict(phase) for phase in self.over]
        return {PHASES: {"number": self.number, "model": self._index(model), "over": over}}

    def _add(self, phase: Phase) -> None:
        trained = phase.timesteps - (self.over[-1].timesteps if self.over else 0)
        self.asked -= max(0, self._asked - trained)
        self.over.append(phase)

    def _index(self, model: BaseAlgorithm) -> int:
        return next(index for index, known in enumerate(self._models) if known is model)


_of_host: weakref.WeakKeyDictionary[Any, Phases] = weakref.WeakKeyDictionary()


class Shifted(KVWriter):
    """Writes what a model logs at the run's timesteps."""

    def __init__(self, inner: KVWriter, phases: Phases) -> None:
        self.inner, self._phases = inner, phases

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.inner.write(key_values, key_excluded, step + self._phases.offset)

    def close(self) -> None:
        self.inner.close()
