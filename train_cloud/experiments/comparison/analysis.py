"""An experiment's levels compared: what is known of each, how sure that is, and which one is best, if any. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_cloud.config.comparison import COMMON, METRICS, SCORE, Compare, Direction, better
from train_cloud.errors import InputError
from train_cloud.evaluate.results import Evaluation, Summary
from train_cloud.experiments.comparison import statistics
from train_cloud.experiments.comparison.decision import Matrix, Samples, decide
from train_cloud.experiments.comparison.records import STAGE, UNKNOWN, Logged, Plan, Run
from train_cloud.experiments.comparison.result import (
    Comparison,
    Curve,
    Effect,
    Estimate,
    Latency,
    Level,
    Pair,
    RunRow,
    Verdict,
)
from train_cloud.experiments.comparison.statistics import Scores

_METRIC: Mapping[str, Callable[[Summary], float | None]] = {
    "success_rate": lambda summary: summary.success_rate,
    "mean_return": lambda summary: summary.returns.mean,
    "length": lambda summary: summary.lengths.mean,
    "efficiency": lambda summary: summary.efficiency,
    "collisions": lambda summary: summary.collisions,
}
_MOST_POINTS = 40
"""Of a curve; below, repetitions of the bootstrap at each."""
_CURVE_REPETITIONS = 2000
_MATRIX_REPETITIONS = 2000
_PROFILE = 101
#: Runs whose last evaluations are further apart than this share are said to have trained differently long.
_ALIKE = 0.05


def compare(
    plan: Plan,
    runs: Sequence[Run],
    *,
    made: str,
    parameters: Mapping[str, int] | None = None,
    latencies: Mapping[str, Latency | str] | None = None,
) -> Comparison:
    """
    :param runs: of the plan, in its order
    :param made: when; ISO 8601
    :param parameters: run id → number of the model's parameters, of one run of each level
    :param latencies: the same for the latency, or why there is none
    :raises InputError: the metric is not in the evaluations, or categories are normalised that there are not
    """
    return _Comparer(plan, runs, parameters or {}, latencies or {}).comparison(made)


def level_names(plan: Plan) -> list[str]:
    """Of each planned run; levels of factors that do not vary are left out."""
    factors = list(dict.fromkeys(factor for run in plan.runs for factor in run.levels))
    several = [factor for factor in factors if len({run.levels.get(factor) for run in plan.runs}) > 1]
    return [
        " · ".join(run.levels[factor] for factor in several or factors if factor in run.levels) or plan.experiment
        for run in plan.runs
    ]


class _Comparer:
    """The runs by level, and the settings that everything is computed with."""

    def __init__(
        self,
        plan: Plan,
        runs: Sequence[Run],
        parameters: Mapping[str, int],
        latencies: Mapping[str, Latency | str],
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        self.names = level_names(plan)
        self.at = _where(self.settings, runs)
        self.runs = [run if self.at is None else _until(run, self.at) for run in runs]
        self.notes: list[str] = []
        self.parameters, self.latencies = parameters, latencies
        self.groups: dict[str, list[Run]] = {}
        for name, run in zip(self.names, self.runs, strict=True):
            self.groups.setdefault(name, []).append(run)
        self.metric = self._metric()
        self.direction = self._direction()
        self.sign = 1.0 if self.direction == "larger" else -1.0
        self.categories = self._categories(self.metric)
        self.counted = {
            name: [run for run in group if run.finished and _tells(run, self.metric)]
            for name, group in self.groups.items()
        }
        self.scores = {name: self._last(group) for name, group in self.counted.items()}
        self.priced = all(
            run.dollars is not None and all(each[3] is not None for each in run.spent)
            for group in self.counted.values()
            for run in group
        ) and any(self.counted.values())

    # What is compared

    def _metric(self) -> str:
        if self.settings.metric is not None:
            return self.settings.metric
        last = [run.evaluations[-1] for run in self.runs if run.evaluations]
        if last and all(isinstance(each, Logged) for each in last):
            return SCORE
        told = last and all(
            any(_value(each, name, "success_rate") is not None for name in each.categories) for each in last
        )
        return "success_rate" if told else "mean_return"

    def _direction(self) -> Direction:
        if self.metric != SCORE or self.settings.direction is not None:
            return better(self.metric, self.settings.direction)
        told = {(run.run_file.get("score") or {}).get("direction") for run in self.runs} - {None}
        if len(told) > 1:
            fix = "the runs' own (score.direction) differ: say which of two values is better, larger or smaller"
            raise InputError("compare.direction", None, fix)
        return "smaller" if told == {"min"} else "larger"

    def _better(self, criterion: str) -> Direction:
        given = self.settings.criteria[criterion].direction
        return self.direction if criterion == SCORE and given is None else better(criterion, given)

    def _categories(self, metric: str) -> tuple[str, ...]:
        """Those that every run has a value in, of the finished ones that have any."""
        finished = [run for run in self.runs if run.finished]
        usable = [run for run in finished if _tells(run, metric)]
        if not finished:
            return ()
        last = [run.evaluations[-1] for run in usable or finished]
        named = list(dict.fromkeys(name for each in last for name in each.categories))
        shared = tuple(name for name in named if all(_value(each, name, metric) is not None for each in last))
        if left_out := [name for name in named if name not in shared]:
            missing = [
                run.planned.run_id
                for run in usable or finished
                if any(_value(run.evaluations[-1], name, metric) is None for name in left_out)
            ]
            if not shared:
                fix = f"no category has it for every run; {missing[0]} lacks it: take another metric"
                if metric == "success_rate":
                    fix += ", or say with evaluation.success when an episode has succeeded"
                raise InputError("compare.metric", metric, fix)
            self.notes.append(
                f"Not compared, because not every run tells its {_words(metric)}: {', '.join(left_out)} "
                f"(lacking: {_listed(missing)})."
            )
        for name in self.settings.normalise:
            if name not in named:
                fix = f"no run is evaluated on that; there are: {', '.join(named)}"
                raise InputError("compare.normalise", name, fix)
        if self.settings.normalise and (rest := [name for name in shared if name not in self.settings.normalise]):
            raise InputError("compare.normalise", sorted(self.settings.normalise), f"name {rest[0]} as well, or none")
        return shared

    def _score(self, evaluation: Evaluation | Logged, category: str) -> float:
        value = _value(evaluation, category, self.metric)
        if value is None:
            return float("nan")
        if category in self.settings.normalise:
            low, high = self.settings.normalise[category]
            return (value - low) / (high - low)
        return value

    def _last(self, runs: Sequence[Run]) -> Scores:
        rows = [[self._score(run.evaluations[-1], name) for name in self.categories] for run in runs]
        return np.array(rows, float).reshape(len(runs), len(self.categories))

    # What is found

    def comparison(self, made: str) -> Comparison:
        levels = [self._level(name) for name in self.groups]
        intervals = {
            level.name: level.metric["iqm"].interval or (level.metric["iqm"].value,) * 2
            for level in levels
            if level.metric
        }
        found = statistics.verdict(
            self.scores, intervals, confidence=self.settings.confidence, larger=self.direction == "larger"
        )
        worst = (float("inf"), float("inf"))
        levels.sort(
            key=lambda level: (
                (-self.sign * level.metric["iqm"].value, -self.sign * level.metric["mean"].value)
                if level.metric
                else worst
            )
        )
        matrix = self._matrix(levels)
        self._tell_of_runs()
        self._tell_of_differences()
        return Comparison(
            experiment=self.plan.experiment,
            made=made,
            at=self.at,
            metric=self.metric,
            direction=self.direction,
            normalised=bool(self.settings.normalise),
            confidence=self.settings.confidence,
            categories=self.categories,
            cost="dollars" if self.priced else "hours",
            verdict=Verdict(
                leading=found.leading,
                winner=found.winner,
                because=found.because,
                rivals=found.rivals,
                level=found.level,
                probabilities=dict(found.probabilities),
                provisional=any(not _ended(run) for run in self.runs),
            ),
            levels=tuple(levels),
            pairs=tuple(self._pairs([level.name for level in levels if level.metric])),
            effects=tuple(self._effects()),
            matrix=matrix,
            runs=tuple(self._row(name, run) for name, run in zip(self.names, self.runs, strict=True)),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _interval(self, scores: Scores, statistic: statistics.Statistic) -> tuple[float, float] | None:
        if len(scores) < 2:
            return None
        settings = self.settings
        return statistics.interval(
            scores,
            statistic,
            confidence=settings.confidence,
            repetitions=settings.repetitions,
            seed=settings.random_seed,
        )

    def _estimate(self, scores: Scores, statistic: statistics.Statistic) -> Estimate:
        return Estimate(value=float(statistic(scores)), interval=self._interval(scores, statistic))

    def _level(self, name: str) -> Level:
        runs, scores = self.counted[name], self.scores[name]
        aggregates: dict[str, statistics.Statistic] = {
            "iqm": statistics.iqm,
            "mean": statistics.mean,
            "median": statistics.median,
        }
        if (optimum := self._optimum()) is not None and self.direction == "larger":
            aggregates["optimality_gap"] = statistics.optimality_gap(optimum)
        group = self.groups[name]
        measured = [found for run in group if (found := self.latencies.get(run.planned.run_id)) is not None]
        latency = next((each for each in measured if isinstance(each, Latency)), None)
        self.notes += [f"No latency of {name}: {each}" for each in measured if isinstance(each, str)]
        inference = _inference(runs)
        return Level(
            name=name,
            levels=dict(group[0].planned.levels),
            planned=len(group),
            counted=len(runs),
            seeds=tuple(run.planned.seed for run in runs if run.planned.seed is not None),
            pretrained=any(run.run_file.get("pretraining") for run in group),
            metric={key: self._estimate(scores, statistic) for key, statistic in aggregates.items()} if runs else {},
            categories={
                category: self._estimate(scores[:, [place]], statistics.mean)
                for place, category in enumerate(self.categories)
                if runs
            },
            costs={
                key: self._estimate(np.array(values, float)[:, None], statistics.mean)
                for key, values in self._costs(runs).items()
            },
            parameters=next(
                (self.parameters[run.planned.run_id] for run in group if run.planned.run_id in self.parameters), None
            ),
            latency=latency,
            inference_ms=float(np.mean(inference)) if inference else None,
            profile=self._profile(scores) if runs else None,
            over_timesteps=self._curve(runs, lambda run, timesteps: float(timesteps)),
            over_cost=self._curve(runs, lambda run, timesteps: run.spent_at(timesteps, dollars=self.priced)),
            stages={run.planned.run_id: run.logged[STAGE] for run in group if STAGE in run.logged},
        )

    def _optimum(self) -> float | None:
        if self.settings.optimum is not None:
            return self.settings.optimum
        return 1.0 if self.settings.normalise or self.metric == "success_rate" else None

    def _costs(self, runs: Sequence[Run]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for key in ("steps_per_second", "hours", "dollars"):
            values = [getattr(run, key) for run in runs]
            if runs and None not in values:
                found[key] = values
        return found

    def _thresholds(self) -> tuple[float, ...]:
        if self.settings.thresholds:
            return self.settings.thresholds
        every = [scores for scores in self.scores.values() if len(scores)]
        low, high = min(each.min() for each in every), max(each.max() for each in every)
        return tuple(map(float, np.linspace(low, high, _PROFILE)))

    def _profile(self, scores: Scores) -> Curve:
        thresholds = self._thresholds()
        samples = statistics.bootstrap(
            scores,
            lambda piece: statistics.profile(piece, thresholds),
            min(_CURVE_REPETITIONS, self.settings.repetitions),
            self.settings.random_seed,
        )
        low, high = statistics.percentiles(samples, self.settings.confidence)
        return _as_curve(thresholds, statistics.profile(scores, thresholds), low, high)

    def _points(self, runs: Sequence[Run]) -> list[tuple[NDArray[Any], Scores]] | None:
        """Of each run its evaluations' timesteps, and scores of shape (evaluations, categories); None where a run has
        fewer than two.
        """
        found = []
        for run in runs:
            rows = [(each.timesteps, [self._score(each, name) for name in self.categories]) for each in run.evaluations]
            rows = [row for row in rows if not np.isnan(row[1]).any()]
            found.append((np.array([at for at, _ in rows]), np.array([values for _, values in rows], float)))
        return found if found and all(len(at) > 1 for at, _ in found) else None

    def _curve(self, runs: Sequence[Run], where: Callable[[Run, int], float]) -> Curve | None:
        """Over what ``where`` says of a run at some timesteps; None where no two points are common to all runs."""
        points = self._points(runs)
        if points is None:
            return None
        lines = [
            (np.array([where(run, int(each)) for each in at]), values)
            for run, (at, values) in zip(runs, points, strict=True)
        ]
        first, last = max(at[0] for at, _ in lines), min(at[-1] for at, _ in lines)
        every = np.unique(np.concatenate([at for at, _ in lines]))
        grid = every[(every >= first) & (every <= last)]
        most = min(_MOST_POINTS, max(len(at) for at, _ in lines))
        if len(grid) > most:  # the runs were not evaluated at the same points
            grid = np.linspace(first, last, most)
        if len(grid) < 2:
            return None
        values = np.stack([[np.interp(grid, at, column) for column in line.T] for at, line in lines])
        found = statistics.curve(
            values,
            confidence=self.settings.confidence,
            repetitions=min(_CURVE_REPETITIONS, self.settings.repetitions),
            seed=self.settings.random_seed,
        )
        return _as_curve(grid, *found)

    def _by_seed(self, name: str) -> dict[int, float]:
        means = self.scores[name].mean(axis=1) if self.categories else ()
        return {
            run.planned.seed: float(mean)
            for run, mean in zip(self.counted[name], means, strict=True)
            if run.planned.seed is not None
        }

    def _pairs(self, names: Sequence[str]) -> list[Pair]:
        """Of levels with runs, the better one first."""
        settings = self.settings
        known = {name: self.sign * self.scores[name] for name in names}
        chances = statistics.separable(known)
        found = []
        for one, other in itertools.combinations(names, 2):
            ends = statistics.improvement_interval(
                known[one],
                known[other],
                confidence=settings.confidence,
                repetitions=min(_CURVE_REPETITIONS, settings.repetitions),
                seed=settings.random_seed,
            )
            difference = _paired(self._by_seed(one), self._by_seed(other), settings.confidence)
            found.append(
                Pair(
                    one=one,
                    other=other,
                    improvement=Estimate(value=statistics.improvement(known[one], known[other]), interval=ends),
                    seeds=difference.seeds if difference else (),
                    by_seed=difference.by_seed if difference else (),
                    difference=_of(difference),
                    p=chances.get((one, other)),
                )
            )
        return found

    def _effects(self) -> list[Effect]:
        levels: dict[str, list[str]] = {}
        for run in self.plan.runs:
            for factor, level in run.levels.items():
                levels.setdefault(factor, [])
                levels[factor] += [level] if level not in levels[factor] else []
        names = {
            tuple(sorted(run.planned.levels.items())): name for name, run in zip(self.names, self.runs, strict=True)
        }
        found, chances = [], []
        for factor, (baseline, *others) in levels.items():
            if list(levels) == [UNKNOWN]:  # what the runs of a plain group differ in is not known
                break
            for level in others:
                within: dict[str, statistics.Difference] = {}
                for combination, name in names.items():
                    chosen = dict(combination)
                    counterpart = names.get(tuple(sorted({**chosen, factor: baseline}.items())))
                    if chosen.get(factor) != level or counterpart is None:
                        continue
                    difference = _paired(self._by_seed(name), self._by_seed(counterpart), self.settings.confidence)
                    if difference is not None:
                        rest = [value for key, value in chosen.items() if key != factor and len(levels[key]) > 1]
                        within[" · ".join(rest) or "all"] = difference
                overall = self._overall(list(within.values()))
                found.append((factor, level, baseline, within, overall))
                chances.append(1.0 if overall is None or overall.p is None else overall.p)
        return [
            Effect(
                factor=factor,
                level=level,
                baseline=baseline,
                within={name: estimate for name, each in within.items() if (estimate := _of(each)) is not None},
                overall=_of(overall),
                seeds=len(overall.seeds) if overall else 0,
                p=None if overall is None or overall.p is None else p,
                pretraining=self._differ_in_pretraining(factor, level, baseline),
            )
            for (factor, level, baseline, within, overall), p in zip(found, statistics.holm(chances), strict=True)
        ]

    def _overall(self, within: Sequence[statistics.Difference]) -> statistics.Difference | None:
        """By seed, the mean over combinations: the seeds that are in all of them."""
        if not within:
            return None
        by_seed = [dict(zip(each.seeds, each.by_seed, strict=True)) for each in within]
        shared = set(by_seed[0]).intersection(*by_seed[1:])
        means = {seed: float(np.mean([each[seed] for each in by_seed])) for seed in shared}
        return statistics.paired(means, self.settings.confidence)

    def _differ_in_pretraining(self, factor: str, level: str, baseline: str) -> bool:
        def has(wanted: str) -> set[bool]:
            there = [run for run in self.runs if run.planned.levels.get(factor) == wanted and run.run_file]
            return {bool(run.run_file.get("pretraining")) for run in there}

        return has(level) | has(baseline) == {True, False} and len(has(level)) == len(has(baseline)) == 1

    # The decision

    def _matrix(self, levels: Sequence[Level]) -> Matrix | None:
        criteria = self.settings.criteria
        known = [level for level in levels if level.counted]
        if len(criteria) < 2 or not known:
            return None
        samples: dict[str, dict[str, Samples]] = {}
        for name in criteria:
            found = {level.name: self._samples(name, level) for level in known}
            if lacking := [level for level, each in found.items() if each is None]:
                self.notes.append(f"{name} is not in the decision: it is not known of {_listed(lacking)}.")
                continue
            samples[name] = {level: each for level, each in found.items() if each is not None}
        if not samples:
            return None
        return decide(
            samples,
            weights={name: criteria[name].weight for name in samples},
            directions={name: self._better(name) for name in samples},
            confidence=self.settings.confidence,
        )

    def _samples(self, criterion: str, level: Level) -> Samples | None:
        """A criterion's value for a level, and its bootstrap; None where it is not known of every run."""
        runs = self.counted[level.name]
        if criterion == self.metric:
            return self._bootstrapped(self.scores[level.name], statistics.iqm)
        if criterion in METRICS:
            rows = [[_value(run.evaluations[-1], category, criterion) for category in self.categories] for run in runs]
            told = [value for row in rows for value in row if value is not None]
            if len(told) < len(rows) * len(self.categories):
                return None
            return self._bootstrapped(np.array(told, float).reshape(len(rows), -1), statistics.iqm)
        if criterion == "parameters":
            return None if level.parameters is None else Samples(float(level.parameters))
        if criterion in ("inference_ms", "inference_p99_ms"):
            return self._latency(criterion, level, runs)
        if criterion in level.costs:
            values = np.array(self._costs(runs)[criterion], float)[:, None]
            return self._bootstrapped(values, statistics.mean)
        ends = [run.logged[criterion][-1][1] for run in runs if criterion in run.logged]
        if "/" not in criterion or len(ends) < len(runs):
            return None
        return self._bootstrapped(np.array(ends, float)[:, None], statistics.mean)

    def _latency(self, criterion: str, level: Level, runs: Sequence[Run]) -> Samples | None:
        if level.latency is not None:
            if criterion == "inference_p99_ms":
                return Samples(level.latency.p99)
            return Samples(level.latency.p50, interval=level.latency.p50_between)
        if criterion == "inference_p99_ms" or any(isinstance(each, Latency) for each in self.latencies.values()):
            return None
        if not (measured := _inference(runs)):
            return None
        self.notes.append("inference_ms is what the evaluations measured, beside what else the machines did.")
        return self._bootstrapped(np.array(measured, float)[:, None], statistics.mean)

    def _bootstrapped(self, scores: Scores, statistic: statistics.Statistic) -> Samples:
        repetitions = min(_MATRIX_REPETITIONS, self.settings.repetitions)
        drawn = statistics.bootstrap(scores, statistic, repetitions, self.settings.random_seed)
        return Samples(float(statistic(scores)), drawn)

    # What is said besides

    def _row(self, level: str, run: Run) -> RunRow:
        last = run.evaluations[-1] if run.evaluations else None
        counted = run in self.counted[level]
        scores = {} if last is None else {name: self._score(last, name) for name in self.categories}
        scores = {name: value for name, value in scores.items() if not np.isnan(value)}
        return RunRow(
            run_id=run.planned.run_id,
            level=level,
            seed=run.planned.seed,
            state=run.state,
            counted=counted,
            because=_why(run, counted, self.metric, self.at),
            timesteps=run.timesteps,
            evaluated_at=last and last.timesteps,
            metric=float(np.mean(list(scores.values()))) if scores else None,
            scores=scores,
            evaluations={
                name: tuple(
                    (each.timesteps, score)
                    for each in run.evaluations
                    if not np.isnan(score := self._score(each, name))
                )
                for name in self.categories
            },
            metrics={} if last is None else _all_metrics(last),
            steps_per_second=run.steps_per_second,
            hours=run.hours,
            dollars=run.dollars,
        )

    def _tell_of_runs(self) -> None:
        for name, group in self.groups.items():
            without = [run for run in group if run not in self.counted[name]]
            if without:
                told = ", ".join(f"{run.planned.run_id} ({run.state})" for run in without[:5])
                more = f" and {len(without) - 5} more" if len(without) > 5 else ""
                self.notes.append(
                    f"{name}: {len(self.counted[name])} of {len(group)} runs count; not among them: {told}{more}."
                )
        counts = {name: len(runs) for name, runs in self.counted.items()}
        most = max(counts.values(), default=0)
        if fewer := [f"{name} ({count})" for name, count in counts.items() if 0 < count < most]:
            self.notes.append(f"Fewer runs than the others, which have {most}: {', '.join(fewer)}.")
        ends = [run.evaluations[-1].timesteps for runs in self.counted.values() for run in runs]
        if ends and max(ends) > (1 + _ALIKE) * max(1, min(ends)):
            self.notes.append(
                f"The runs were evaluated at different timesteps, {min(ends):,} to {max(ends):,}: the curves compare "
                "them where they are alike, and so does --set compare.timesteps=common."
            )
        if self.at is not None:
            self.notes.append(f"Compared at {self.at:,} timesteps; what runs have done and cost later does not count.")
        flat = [name for name, runs in self.counted.items() if runs and self._points(runs) is None]
        if flat:
            self.notes.append(
                f"No curve of {_listed(flat)}: not all of its runs have two evaluations (evaluation.every)."
            )
        early = [
            run.planned.run_id
            for runs in self.counted.values()
            for run in runs
            if run.evaluations[-1].timesteps < run.timesteps
        ]
        if early and self.at is None:
            self.notes.append(f"Last evaluated before the end, at which the evaluation is missing: {_listed(early)}.")
        if self.plan.unnamed:
            self.notes.append(
                f"In the store, and not named by the experiment file: {_listed(self.plan.unnamed)}. They do not count."
            )
        if not self.priced and ends:
            self.notes.append("No price is known of some sessions: cost is given in machine hours.")

    def _tell_of_differences(self) -> None:
        """What makes runs that count unlike, and is no level of theirs."""
        counted = [run for runs in self.counted.values() for run in runs]
        for what, known in (
            ("trained with the same code (code.folder)", lambda run: run.code),
            ("evaluated alike (episodes, their seeds, deterministic)", self._played),
        ):
            groups: dict[Any, list[str]] = {}
            for run in counted:
                groups.setdefault(known(run), []).append(run.planned.run_id)
            groups.pop(None, None)
            if len(groups) > 1:
                *others, most = sorted(groups.values(), key=len)
                unlike = [run_id for each in others for run_id in each]
                self.notes.append(f"Not all runs were {what}: {_listed(unlike)} otherwise than {_listed(most)}.")

    def _played(self, run: Run) -> Any:
        """What the run's last evaluation was made of."""
        last = run.evaluations[-1]
        if isinstance(last, Logged):
            return None
        played = ((one.category, one.seed, one.level) for one in last.episodes if one.category in self.categories)
        return last.deterministic, frozenset(played)


def _where(settings: Compare, runs: Sequence[Run]) -> int | None:
    """Timesteps at which runs are compared; None for each one's end."""
    if settings.timesteps != COMMON:
        return settings.timesteps if isinstance(settings.timesteps, int) else None
    return min((run.evaluations[-1].timesteps for run in runs if run.finished), default=None)


def _until(run: Run, at: int) -> Run:
    """A run as it was at its newest evaluation by then; one a little later is that, too, as runs are evaluated at the
    first consistent point after the same timesteps.
    """
    evaluations = tuple(each for each in run.evaluations if each.timesteps <= (1 + _ALIKE) * at)
    end = evaluations[-1].timesteps if evaluations else at
    return replace(
        run,
        evaluations=evaluations,
        hours=None if run.hours is None else run.spent_at(end, dollars=False),
        dollars=None if run.dollars is None else run.spent_at(end, dollars=True),
        logged={tag: tuple(point for point in points if point[0] <= end) for tag, points in run.logged.items()},
    )


def _value(evaluation: Evaluation | Logged, category: str, metric: str) -> float | None:
    if isinstance(evaluation, Logged):
        value = evaluation.categories.get(category) if metric == SCORE else None
    else:
        summary = evaluation.categories.get(category)
        value = None if summary is None or metric == SCORE else _METRIC[metric](summary)
    return None if value is None or not np.isfinite(value) else value


def _inference(runs: Sequence[Run]) -> list[float]:
    """Milliseconds for an action, of each run; empty where not all were evaluated by playing."""
    last = [run.evaluations[-1] for run in runs]
    found = [each.overall.inference_ms for each in last if isinstance(each, Evaluation)]
    return found if len(found) == len(last) else []


def _all_metrics(evaluation: Evaluation | Logged) -> dict[str, float]:
    found = {}
    for metric in (*METRICS, SCORE):
        values = [_value(evaluation, name, metric) for name in evaluation.categories]
        told = [value for value in values if value is not None]
        if told and len(told) == len(values):
            found[metric] = float(np.mean(told))
    return found


def _ended(run: Run) -> bool:
    return run.state in ("completed", "stopped", "cancelled", "failed")


def _tells(run: Run, metric: str) -> bool:
    """Whether its last evaluation has a value in any category."""
    last = run.evaluations[-1]
    return any(_value(last, name, metric) is not None for name in last.categories)


def _why(run: Run, counted: bool, metric: str, at: int | None) -> str | None:
    if counted:
        return "stopped early" + (f": {run.reason}" if run.reason else "") if run.state == "stopped" else None
    if run.finished:
        return f"its last evaluation has no {_words(metric)}, or one that is not finite"
    if run.state in ("completed", "stopped"):
        return "it has no evaluation" + (f" by {at:,} timesteps" if at is not None else "")
    return run.reason or {"running": "still training", "waiting": "no worker yet"}.get(run.state, run.state)


def _paired(one: Mapping[int, float], other: Mapping[int, float], confidence: float) -> statistics.Difference | None:
    return statistics.paired({seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}, confidence)


def _of(difference: statistics.Difference | None) -> Estimate | None:
    return None if difference is None else Estimate(value=difference.mean, interval=difference.interval)


def _as_curve(at: Any, value: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> Curve:
    numbers = [tuple(map(float, each)) for each in (at, value, low, high)]
    return Curve(at=numbers[0], value=numbers[1], low=numbers[2], high=numbers[3])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _words(metric: str) -> str:
    return metric.replace("_", " ")
