"""What a comparison of an experiment's levels finds out; ``comparison.json`` is these models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from train_cloud.config.comparison import Direction
from train_cloud.experiments.comparison.decision import Matrix


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Found):
    """A value with its interval; None for an interval that one run cannot give."""

    value: float
    interval: tuple[float, float] | None


class Curve(_Found):
    """Interquartile mean over runs and categories, at points that all of the level's runs have reached."""

    at: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Latency(_Found):
    """Of one action for one observation, on one thread; milliseconds."""

    p50: float
    p99: float
    calls: int
    p50_between: tuple[float, float]
    """The medians of blocks of calls lie between these, 95 % of them."""
    run_id: str


class RunRow(_Found):
    """A run, whatever became of it."""

    run_id: str
    level: str
    seed: int | None
    state: str
    counted: bool
    """Whether its last evaluation is in the level's figures."""
    because: str | None
    """Why not; or what to know of it."""
    timesteps: int
    evaluated_at: int | None
    metric: float | None
    """Mean over categories."""
    scores: dict[str, float]
    """By category."""
    evaluations: dict[str, tuple[tuple[int, float], ...]]
    """Category → (timesteps, score), of all its evaluations."""
    metrics: dict[str, float]
    """All that its last evaluation tells, each as the mean over categories."""
    steps_per_second: float | None
    hours: float | None
    dollars: float | None


class Level(_Found):
    """A combination of levels, one of each factor, with its runs."""

    name: str
    levels: dict[str, str]
    planned: int
    counted: int
    seeds: tuple[int, ...]
    pretrained: bool
    metric: dict[str, Estimate]
    """``iqm``, ``mean``, ``median`` and, where an optimum is known, ``optimality_gap``; empty without a run."""
    categories: dict[str, Estimate]
    """Mean over runs in each category."""
    costs: dict[str, Estimate]
    """``steps_per_second``, ``hours``, ``dollars``, as far as they are known of every run."""
    parameters: int | None
    latency: Latency | None
    inference_ms: float | None
    """As the evaluations measured it, beside what else the machine did."""
    profile: Curve | None
    over_timesteps: Curve | None
    over_cost: Curve | None
    stages: dict[str, tuple[tuple[int, float], ...]]
    """Run id → (timesteps, number of the curriculum's stage)."""


class Pair(_Found):
    """Two levels: the first against the second, so that positive is better for the first where larger is better."""

    one: str
    other: str
    improvement: Estimate
    """Probability that a run of the first is better than one of the second."""
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    difference: Estimate | None
    """Mean of the differences by seed, with Student's interval; None without a seed that both have."""
    p: float | None
    """Welch's test, two-sided, adjusted by Holm over all pairs; None with fewer than three runs of either."""


class Effect(_Found):
    """A factor's level against its first one, with everything else the same."""

    factor: str
    level: str
    baseline: str
    within: dict[str, Estimate]
    """For each combination of the other factors: mean difference by seed."""
    overall: Estimate | None
    """Mean over these combinations, by seed; None where no seed is in all of them."""
    seeds: int
    p: float | None
    """Student's t over seeds, two-sided, adjusted by Holm over all effects."""
    pretraining: bool
    """Whether the two differ in pretraining."""


class Verdict(_Found):
    """As :func:`train_cloud.experiments.comparison.statistics.verdict` gives it."""

    leading: str | None
    winner: str | None
    because: str
    rivals: tuple[str, ...]
    level: float
    probabilities: dict[str, float]
    provisional: bool
    """Whether runs are still to come."""


class Comparison(_Found):
    """What ``train-cloud compare --json`` prints."""

    experiment: str
    made: str
    metric: str
    direction: Direction
    normalised: bool
    confidence: float
    categories: tuple[str, ...]
    cost: str
    """What ``over_cost`` is over: ``dollars``, or ``hours`` where no price is known."""
    verdict: Verdict
    levels: tuple[Level, ...]
    """The best one first."""
    at: int | None = None
    """Timesteps at which runs are compared; None for the end of each."""
    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]
    matrix: Matrix | None
    runs: tuple[RunRow, ...]
    notes: tuple[str, ...]
    """What is left out, unknown, or to be known besides."""
