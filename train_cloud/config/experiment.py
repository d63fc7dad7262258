"""The experiment file: a run file that is varied, each combination and seed a run of its own. Imports no torch.

Nothing about a run depends on the experiment that asked for it: a cell's run file is the base with the levels' changes,
a run id, a seed and the experiment's name, and is checked as every run file is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from train_cloud.config.comparison import Compare, Criterion
from train_cloud.config.load import (
    ALIASES,
    INSTEAD,
    describes_experiment,
    explain,
    launched_with,
    merge,
    parse_overrides,
    parse_run_file,
    put,
    read_mapping,
)
from train_cloud.config.run_file import RunFile
from train_cloud.config.search import Dimension, Search, check_field
from train_cloud.config.shapes import Arguments, Number, Section, Text, Whole, matching
from train_cloud.errors import InputError, suggestion

#: What the experiment decides about each of its runs.
_DECIDED = ("run_id", "seed", "seeds", "experiment")
_MOST_CELLS = 10_000
_MOST_CHARACTERS = 63
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
_RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _changes(value: object) -> object:
    """``baseline:`` with nothing behind it changes nothing."""
    return {} if value is None else value


Name = Annotated[Text, matching(_NAME, "use lower-case letters, digits, _ and -, for example no_pretrain")]
Changes = Annotated[Arguments, BeforeValidator(_changes)]


class TotalLimits(Section):
    """Where the whole experiment stops; runs that are being trained then end as `stopped`, no other one begins."""

    hours: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Over all sessions of all runs. Two runs that are trained side by side for an hour are two."
    )
    dollars: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="US dollars for all sessions of all runs, as a run's own `limits.dollars` counts them."
    )


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    run_id: str
    levels: Mapping[str, str]
    """Factor → level, in the file's order."""
    seed: int
    config: RunFile
    """What it is trained with, as if this were its run file."""


class Experiment(Section):
    """What is varied of one run file, and how its runs are trained and compared."""

    experiment: Annotated[
        Text, matching(_RUN_ID, "use 1 to 63 lower-case letters, digits and inner hyphens, for example architectures")
    ] = Field(description="The experiment's name. Its runs are called `<experiment>-<level>-<level>-s<seed>`.")
    base: Path = Field(
        description="The run file that is varied, relative to this one. Paths in it and in `vary` are relative to it."
    )
    vary: dict[Name, Annotated[dict[Name, Changes], Field(min_length=1)]] = Field(
        {},
        description="Factor to level to what the level changes in the run file. Maps are merged key by key, anything "
        "else is replaced; keys may be dotted. `{}` changes nothing. Every combination of levels is trained.",
    )
    seeds: tuple[Annotated[Whole, Field(ge=0, lt=2**32)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="A run for each, in every combination; null for those of the base.",
    )
    max_parallel: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        None, description="How many runs are trained at once on one machine; null for one per core and `threads`."
    )
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1,
        description="Threads with which torch computes in each run. A result depends on it, so it does not follow from "
        "how many runs are trained at once.",
    )
    max_attempts: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        3, description="Failures in a row without a new commit, after which a run is not tried again."
    )
    limits: TotalLimits = Field(TotalLimits(), description="Where the whole experiment stops; see below.")
    compare: Compare | None = Field(None, description="How `train-cloud compare` compares its levels.")
    search: Search | None = Field(
        None,
        description="Instead of `vary`: values that are searched, in trials whose runs are called "
        "`<experiment>-t<number>-s<seed>`.",
    )

    _cells: tuple[Cell, ...] = PrivateAttr(())
    _base: Mapping[str, object] = PrivateAttr({})
    _each: Mapping[str, object] = PrivateAttr({})

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All its runs: by level, the last factor's first, and then by seed. Of a search those of the trials that were
        included.
        """
        return self._cells

    def include(self, cells: Sequence[Cell]) -> None:
        """Of a search: these runs belong to it from now on."""
        known = {cell.run_id for cell in self._cells}
        self._cells += tuple(cell for cell in cells if cell.run_id not in known)

    def trial(self, number: int, values: Mapping[str, Any]) -> tuple[Cell, ...]:
        """The runs of a search's trial, one for each seed.

        :param values: by key of the space
        :raises InputError: they cannot stand in a run file
        """
        assert self.search is not None
        levels = {"trial": f"t{number}"}
        combination = [(f"t{number}", values)]
        seeds = _trial_seeds(self.search, self.seeds, self._base)
        run_ids = {seed: _run_id(self.experiment, levels, seed) for seed in seeds}
        return tuple(
            Cell(run_id, levels, seed, _cell(self, run_id, seed, self._base, combination, self._each))
            for seed, run_id in run_ids.items()
        )

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        if self.search is not None and self.vary:
            raise InputError("search", list(self.search.space), "give search or vary, not both: keep one of them")
        if self.seeds is not None and (twice := _twice(self.seeds)) is not None:
            raise InputError("seeds", list(self.seeds), f"each seed makes a run, and {twice} stands there twice")
        for factor, levels in self.vary.items():
            for level, changes in levels.items():
                for key in changes:
                    if (field := key.split(".")[0]) in _DECIDED:
                        fix = f"the experiment decides this: {_instead(field)}"
                        raise InputError(f"vary.{factor}.{level}.{key}", changes[key], fix)
        for (one, levels), (other, others) in itertools.combinations(self.vary.items(), 2):
            for (level, changes), (beside, more) in itertools.product(levels.items(), others.items()):
                _check_apart(
                    f"vary.{one}.{level}", dict(_leaves(changes)), f"vary.{other}.{beside}", dict(_leaves(more))
                )
        return self


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": Experiment,
    "limits": TotalLimits,
    "compare": Compare,
    "compare.criteria.*": Criterion,
    "search": Search,
    "search.space.*": Dimension,
}


def is_experiment(path: str | Path) -> bool:
    """Whether a file is an experiment file, and no run file; False for what cannot be read as either."""
    try:
        values = read_mapping(Path(path), "file", "experiment")
    except InputError:
        return False
    return describes_experiment(values)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and check every run of it.

    :param overrides: as given with ``--set``. A key of the experiment file is the experiment's (``seeds=[1, 2]``,
        ``limits.hours=3``); ``vary.<factor>=[level, level]`` leaves the other levels out. Any other key, and every one
        that begins with ``base.``, is set in the run file of every run.
    :raises InputError: naming field, value and fix, and the run where it is one run's
    """
    path = Path(path)
    values = read_mapping(path, "experiment file", "experiment")
    if not describes_experiment(values) and "run_id" in values:
        fix = "it is a run file: name an experiment file, which has a base and what is varied of it"
        raise InputError("experiment file", str(path), fix)
    own, each = _split(overrides)
    values["vary"] = _named(values.get("vary", {}))
    for key, value in own.items():
        put(
            values, key, _selected(values["vary"], key, value) if isinstance(value, list) and _is_factor(key) else value
        )
    values["vary"] = _named(values["vary"])
    for key in each:
        if key in values["vary"] and key not in RunFile.model_fields:
            raise InputError(f"--set {key}", each[key], f"unknown key: did you mean vary.{key}?")
    if isinstance(values.get("base"), str):
        values["base"] = (path.parent / Path(values["base"]).expanduser()).absolute()
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise explain(error, _SECTIONS) from error
    if not experiment.base.is_file():
        raise InputError("base", str(experiment.base), "name an existing run file, relative to the experiment file")
    each = {**launched_with(), **each}
    if experiment.search is not None:
        _prepare_search(experiment, experiment.search, each)
        return experiment
    experiment._cells = tuple(_expand(experiment, each))
    _check_categories(experiment.cells)
    return experiment


def _split(overrides: Sequence[str]) -> tuple[dict[str, object], dict[str, object]]:
    """What ``--set`` says of the experiment, and of each run."""
    own: dict[str, object] = {}
    each: dict[str, object] = {}
    for key, value in parse_overrides(overrides).items():
        first, _, rest = key.partition(".")
        if first == "base" and rest:
            key = rest
        elif first in Experiment.model_fields:
            own[key] = value
            continue
        if (field := key.split(".")[0]) in _DECIDED:
            raise InputError(f"--set {key}", value, f"the experiment decides this: {_instead(field)}")
        each[key] = value
    return own, each


def _is_factor(key: str) -> bool:
    return key.startswith("vary.") and key.count(".") == 1


def _instead(field: str) -> str:
    if field in ("seed", "seeds"):
        return "list them under seeds, in the experiment file or with --set 'seeds=[1, 2]'"
    return "runs are named after experiment, levels and seed"


def _selected(vary: object, key: str, wanted: list[Any]) -> dict[str, Any]:
    """The levels of a factor that ``--set vary.<factor>=[…]`` leaves, in the order that it gives."""
    factor = key.removeprefix("vary.")
    factors = vary if isinstance(vary, dict) else {}
    levels = factors.get(factor)
    if not isinstance(levels, dict):
        fix = suggestion(factor, tuple(factors)) or f"name one of {', '.join(factors) or 'those that the file has'}"
        raise InputError(f"--set {key}", wanted, f"unknown factor: {fix}")
    found = {}
    for level in map(str, wanted):
        if level not in levels:
            fix = suggestion(level, tuple(levels)) or f"name some of {', '.join(levels)}"
            raise InputError(f"--set {key}", level, f"unknown level: {fix}")
        if level in found:
            raise InputError(f"--set {key}", wanted, f"{level} stands there twice")
        found[level] = levels[level]
    return found


def _named(vary: object) -> object:
    """``vary`` with text for the names of factors and levels. YAML takes ``128``, ``0.9`` and ``true`` for values; as
    names they would be told in pydantic's words.
    """
    if not isinstance(vary, dict):
        return vary
    return {
        name: _with_names(levels, f"vary.{name}", "level") if isinstance(levels, dict) else levels
        for name, levels in _with_names(vary, "vary", "factor").items()
    }


def _with_names(given: Mapping[Any, Any], field: str, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key)
        if isinstance(key, bool | None):
            raise InputError(field, key, f"YAML takes this for a value: put the {what}'s name in quotes")
        if not _NAME.fullmatch(name):
            near = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")
            fix = f"call this {what} {near or 'baseline'} for example: use lower-case letters, digits, _ and - only"
            raise InputError(field, key, fix)
        if name in found:
            raise InputError(field, key, f"another {what} is called so too: call one of them otherwise")
        found[name] = value
    return found


def _read_base(path: Path) -> dict[str, Any]:
    values = read_mapping(path, "base", "run_id")
    if describes_experiment(values):
        raise InputError("base", str(path), "it is an experiment file itself: name a run file")
    return values


def _expand(experiment: Experiment, each: Mapping[str, object]) -> list[Cell]:
    base = _read_base(experiment.base)
    seeds = experiment.seeds or _seeds_of(base)
    factors = list(experiment.vary)
    combinations = list(itertools.product(*(experiment.vary[factor].items() for factor in factors)))
    if len(combinations) * len(seeds) > _MOST_CELLS:
        raise InputError("vary", f"{len(combinations) * len(seeds)} runs", f"at most {_MOST_CELLS}: vary less")
    cells: dict[str, Cell] = {}
    for combination in combinations:
        levels = dict(zip(factors, (level for level, _ in combination), strict=True))
        for seed in seeds:
            run_id = _run_id(experiment.experiment, levels, seed)
            if run_id in cells:
                other = " and ".join(cells[run_id].levels.values())
                fix = f"{' and '.join(levels.values())} and {other} give the same run id: call one of them otherwise"
                raise InputError(run_id, seed, fix)
            config = _cell(experiment, run_id, seed, base, combination, each)
            cells[run_id] = Cell(run_id, levels, seed, config)
    return list(cells.values())


def _undecided(base: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in base.items() if key not in _DECIDED}


def _cell(
    experiment: Experiment,
    run_id: str,
    seed: int,
    base: Mapping[str, object],
    combination: Sequence[tuple[str, Mapping[str, object]]],
    each: Mapping[str, object],
) -> RunFile:
    values = {"run_id": run_id, "experiment": experiment.experiment, **_undecided(base), "seed": seed}
    try:
        for _, changes in combination:
            values = changed(values, changes)
        return parse_run_file(values, extra=each, base=experiment.base.parent)
    except InputError as error:
        raise type(error)(f"{run_id}: {error.field}", error.value, error.fix) from error


def changed(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, Any]:
    """A run file's content with changes laid over it, deep; a null takes a field out."""
    return _without_nulls(merge(values, changes), changes)


def _without_nulls(values: dict[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Without the fields that a level has set to null and that have another default: it takes them out."""
    for key in changes:
        name = ALIASES.get(key, key)
        field = RunFile.model_fields.get(name)
        if field is not None and field.default is not None and not field.is_required() and values.get(name) is None:
            values.pop(name, None)
    return values


def _run_id(experiment: str, levels: Mapping[str, str], seed: int) -> str:
    parts = [experiment, *(level.replace("_", "-") for level in levels.values()), f"s{seed}"]
    run_id = "-".join(parts)
    if len(run_id) > _MOST_CHARACTERS:
        fix = f"it has {len(run_id)} characters, and a run id at most {_MOST_CHARACTERS}: shorten experiment or levels"
        raise InputError("experiment", run_id, fix)
    return run_id


def _seeds_of(base: Mapping[str, object]) -> tuple[int, ...]:
    """Of the base, before it is checked: what is no list of numbers is told when a run is."""
    seeds = base.get("seeds", [base.get("seed", 0)])
    if not isinstance(seeds, list) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise InputError("base: seeds", seeds, "give whole numbers: [1, 2, 3]")
    if (twice := _twice(seeds)) is not None:
        raise InputError("base: seeds", seeds, f"each seed makes a run, and {twice} stands there twice")
    return tuple(seeds)


def _prepare_search(experiment: Experiment, search: Search, each: Mapping[str, object]) -> None:
    """Whether every value that may be drawn can stand in a run file, as far as each bound and choice tells it."""
    experiment._base, experiment._each = _read_base(experiment.base), each
    for key, dimension in search.space.items():
        check_field(key, str(dimension), tuple(RunFile.model_fields), ALIASES)
        for given in each:
            if (given + ".").startswith(key + ".") or key.startswith(given + "."):
                raise InputError(
                    f"--set {given}", each[given], f"search.space.{key} is searched: leave one of them out"
                )
    seeds = _trial_seeds(search, experiment.seeds, experiment._base)
    _run_id(experiment.experiment, {"trial": f"t{search.most_trials - 1}"}, max(seeds))
    for first, (key, values) in enumerate(search.tried()):
        try:
            config = experiment.trial(0, values)[0].config
        except InputError as error:
            raise _of_space(error, search, None if first == 0 else key) from error
        _check_evaluated(search, config)


def _of_space(error: InputError, search: Search, tried: str | None) -> InputError:
    """A trial's error as one of the search, where it is about a key of the space.

    :param tried: the key whose value is the only one that has not passed yet
    """
    field = error.field.partition(": ")[2]
    called = {key: _canonical(key) for key in search.space}
    near = (key for key, name in called.items() if f"{field}.".startswith(f"{name}.") or name.startswith(f"{field}."))
    if (key := next(near, tried)) is None:
        return error
    where = "" if field == called[key] else f": {field}"
    return type(error)(f"search.space.{key}{where}", error.value, error.fix)


def _canonical(key: str) -> str:
    first, dot, rest = key.partition(".")
    return ALIASES.get(first, first) + dot + rest


def _check_evaluated(search: Search, config: RunFile) -> None:
    """Whether a trial's run will have what it is judged by."""
    evaluation = config.evaluation
    if evaluation is None:
        raise InputError("search.metric", search.metric, "the base has no evaluation to take it from: add the section")
    if search.pruner == "none":
        return
    if evaluation.every is None or evaluation.every >= config.total_timesteps:
        fix = (
            f"it decides by evaluations before the end: set evaluation.every in the base below total_timesteps, "
            f"{config.total_timesteps}, or pruner: none"
        )
        raise InputError("search.pruner", search.pruner, fix)
    if search.warmup_timesteps >= config.total_timesteps:
        fix = f"nothing would be pruned: give less than total_timesteps, {config.total_timesteps}"
        raise InputError("search.warmup_timesteps", search.warmup_timesteps, fix)


def _trial_seeds(search: Search, seeds: tuple[int, ...] | None, base: Mapping[str, object]) -> tuple[int, ...]:
    if seeds is None:
        given = _seeds_of(base)
        seeds = given if "seeds" in base else tuple(range(given[0], given[0] + (search.seeds_per_trial or 1)))
    count = search.seeds_per_trial or len(seeds)
    if count > len(seeds):
        fix = f"there are only {len(seeds)} seeds, {list(seeds)}: list more of them, or leave seeds out"
        raise InputError("search.seeds_per_trial", count, fix)
    return seeds[:count]


def _leaves(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that a level sets."""
    for name, value in changes.items():
        key = name if above else _canonical(str(name))
        if isinstance(value, Mapping):  # an empty one changes nothing
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _check_apart(level: str, sets: Mapping[str, Any], later: str, more: Mapping[str, Any]) -> None:
    """:raises InputError: a later factor's level takes back what this one has set, and nobody would see it"""
    for key, value in sets.items():
        for other, instead in more.items():
            stands_for = INSTEAD.get(key) == other and None not in (value, instead)
            if (key == other and value != instead) or key.startswith(f"{other}.") or stands_for:
                what = "sets it too" if key == other else f"sets {other}"
                raise InputError(f"{level}.{key}", value, f"{later} {what}: let one factor alone vary it")


def _twice(seeds: Sequence[int]) -> int | None:
    return next((seed for at, seed in enumerate(seeds) if seed in seeds[:at]), None)


def _check_categories(cells: Sequence[Cell]) -> None:
    """What is compared must have been tried on the same categories."""
    named = {cell.run_id: set(cell.config.evaluated.categories) if cell.config.evaluation else set() for cell in cells}
    having = {name: run_id for run_id, names in named.items() for name in names}
    for run_id, names in named.items():
        if missing := sorted(having.keys() - names):
            what = f"it lacks {missing[0]}" if names else "it has no evaluation"
            fix = f"{what}, and {having[missing[0]]} is evaluated on that: give every level the same categories"
            raise InputError(f"{run_id}: evaluation.categories", sorted(names), fix)
