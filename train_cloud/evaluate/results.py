"""What an evaluation finds out: each episode, each category's summary, all evaluations of a run. The schema of
``eval_results.json`` is these models; ``docs/artifacts.md`` explains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

#: Standard normal quantile of a two-sided 95 % interval.
_Z = 1.959963984540054
_RESAMPLES = 2000

Interval = tuple[float, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Episode(_Record):
    """One episode; (timesteps of the evaluation, category, index, seed) tells it from all others of the run."""

    category: str
    index: int
    """Within its category, from 0."""
    seed: int
    level: str | None
    episode_return: Annotated[float, Field(alias="return")]
    """Sum of the environment's rewards, not normalised."""
    length: int
    """Steps."""
    terminated: bool
    """False: cut by a time limit."""
    success: bool | None
    """None where nothing says so."""
    collisions: float | None
    inference_ms: float
    """Milliseconds that the policy took for an action, on average."""
    video: str | None = None
    """File, relative to the artifact folder; so is the next."""
    route: str | None = None


class Spread(_Record):
    """A figure over episodes."""

    mean: float
    std: float
    """Of the population, as SB3's ``evaluate_policy`` gives it."""
    min: float
    max: float
    interval: Interval | None
    """95 %, of the mean: percentile bootstrap, stratified by category (Agarwal et al., Deep Reinforcement Learning at
    the Edge of the Statistical Precipice, 2021); None for fewer than two episodes."""


class Summary(_Record):
    """A category, or all episodes."""

    episodes: int
    success_rate: float | None
    """Share of the episodes that say whether they succeeded; None where none does."""
    success_interval: Interval | None
    """95 %, by Wilson's score (Probable Inference, the Law of Succession, and Statistical Inference, 1927)."""
    returns: Spread
    lengths: Spread
    efficiency: float
    """Return for each step: the sum of all returns divided by the sum of all lengths."""
    collisions: float | None
    """Mean number of each episode; None where none reports any."""
    inference_ms: float
    """Milliseconds for an action, mean over episodes."""


class Evaluation(_Record):
    """One model on all categories."""

    timesteps: int
    model: str
    """Checksum of the checkpoint's parameters."""
    at: str
    """When it ended; ISO 8601 with its zone."""
    seconds: float
    deterministic: bool
    overall: Summary
    categories: dict[str, Summary]
    episodes: tuple[Episode, ...]
    warnings: tuple[str, ...] = ()
    """What could not be done, as a missing renderer."""
    rendering: dict[str, str | None] | None = None
    """Environment variables with which the videos were drawn, null for one that was not set; None without videos."""


class Results(_Record):
    """``eval_results.json``: all evaluations of a run, in the order of timesteps."""

    schema_version: int = 1
    run_id: str
    best_timesteps: int | None
    """Of the first evaluation with the highest mean return."""
    evaluations: tuple[Evaluation, ...]


def results(run_id: str, evaluations: Sequence[Evaluation]) -> Results:
    """All evaluations in one, each timesteps once."""
    ordered = sorted({each.timesteps: each for each in evaluations}.values(), key=lambda each: each.timesteps)
    found = best(ordered)
    return Results(run_id=run_id, best_timesteps=found and found.timesteps, evaluations=tuple(ordered))


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one with the highest mean return, the earliest of equals."""
    return max(evaluations, key=lambda each: (each.overall.returns.mean, -each.timesteps), default=None)


def summarise(episodes: Mapping[str, Sequence[Episode]]) -> Summary:
    """
    :param episodes: by category; one category for its own summary, all for the overall one
    :raises ValueError: there is no episode
    """
    every = [episode for each in episodes.values() for episode in each]
    told = [episode.success for episode in every if episode.success is not None]
    hits = [episode.collisions for episode in every if episode.collisions is not None]
    lengths = sum(episode.length for episode in every)
    return Summary(
        episodes=len(every),
        success_rate=sum(told) / len(told) if told else None,
        success_interval=_wilson(sum(told), len(told)) if told else None,
        returns=_spread([[episode.episode_return for episode in each] for each in episodes.values()]),
        lengths=_spread([[float(episode.length) for episode in each] for each in episodes.values()]),
        efficiency=sum(episode.episode_return for episode in every) / lengths,
        collisions=sum(hits) / len(hits) if hits else None,
        inference_ms=sum(episode.inference_ms for episode in every) / len(every),
    )


def metric_of(summary: Summary, metric: str) -> float | None:
    """A figure by its name in files that compare runs; None where nothing told it."""
    values = {
        "success_rate": summary.success_rate,
        "mean_return": summary.returns.mean,
        "length": summary.lengths.mean,
        "efficiency": summary.efficiency,
        "collisions": summary.collisions,
    }
    return values[metric]


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """What TensorBoard and others plot: ``eval/…`` over all, ``eval/<category>/…`` where there are several."""
    summaries = {"eval": evaluation.overall}
    if len(evaluation.categories) > 1:
        summaries |= {f"eval/{name}": summary for name, summary in evaluation.categories.items()}
    found: dict[str, float] = {}
    for prefix, summary in summaries.items():
        values = {
            "mean_reward": summary.returns.mean,  # SB3's EvalCallback calls these two so
            "mean_ep_length": summary.lengths.mean,
            "success_rate": summary.success_rate,
            "collisions": summary.collisions,
            "efficiency": summary.efficiency,
        }
        found |= {f"{prefix}/{name}": value for name, value in values.items() if value is not None}
    return found


def _spread(strata: Sequence[Sequence[float]]) -> Spread:
    values = np.concatenate([np.asarray(stratum, dtype=float) for stratum in strata])
    return Spread(
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        interval=_bootstrap(strata) if len(values) > 1 else None,
    )


def _bootstrap(strata: Sequence[Sequence[float]]) -> Interval:
    generator = np.random.default_rng(0)  # the same episodes have the same interval
    sums = np.zeros(_RESAMPLES)
    for stratum in strata:
        chosen = generator.integers(len(stratum), size=(_RESAMPLES, len(stratum)))
        sums += np.asarray(stratum, dtype=float)[chosen].sum(axis=1)
    low, high = np.percentile(sums / sum(len(stratum) for stratum in strata), [2.5, 97.5])
    return float(low), float(high)


def _wilson(successes: int, episodes: int) -> Interval:
    share = successes / episodes
    scale = 1 + _Z**2 / episodes
    centre = (share + _Z**2 / (2 * episodes)) / scale
    half = _Z * ((share * (1 - share) / episodes + _Z**2 / (4 * episodes**2)) ** 0.5) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
