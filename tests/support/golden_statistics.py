"""Writes tests/statistics_golden.json: what rliable, which is archived and needs pandas < 3, says of made-up scores.

python -m venv rliable && rliable/bin/pip install "rliable==1.2.0" "pandas<3"
rliable/bin/python tests/support/golden_statistics.py
"""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "statistics_golden.json"
REPETITIONS = 20_000
THRESHOLDS = [0.0, 0.25, 0.5, 0.75, 1.0]
OPTIMUM = 0.9


def cases() -> dict[str, list[Any]]:
    """Name → two groups' scores, (runs, categories), or one's over time, (runs, categories, timesteps)."""
    generator = np.random.default_rng(7)
    found: dict[str, list[Any]] = {}
    for name, shapes in {
        "five seeds": [(5, 3), (5, 3)],
        "three seeds": [(3, 4), (3, 4)],
        "one category": [(6, 1), (4, 1)],
        "uneven": [(7, 2), (3, 2)],
        "many": [(10, 6), (12, 6)],
    }.items():
        found[name] = [generator.beta(2 + place, 2, size=shape) for place, shape in enumerate(shapes)]
    found["rates with ties"] = [generator.integers(0, 6, size=(5, 3)) / 5 for _ in range(2)]
    found["the same"] = [found["five seeds"][0], found["five seeds"][0]]
    found["over time"] = [np.clip(generator.normal(np.linspace(0.1, 0.9, 4), 0.15, size=(5, 3, 4)), 0, 1)]
    return found


def golden(groups: list[Any], library: Any, metrics: Any) -> dict[str, Any]:
    np.random.seed(0)  # rliable draws from the global generator, whatever random_state says
    if groups[0].ndim == 3:
        frames = range(groups[0].shape[-1])
        points, ends = library.get_interval_estimates(
            {"": groups[0]},
            lambda scores: np.array([metrics.aggregate_iqm(scores[..., frame]) for frame in frames]),
            reps=REPETITIONS,
        )
        return {"groups": [each.tolist() for each in groups], "curve": points[""].tolist(), "ends": ends[""].tolist()}

    def aggregates(scores: Any) -> Any:
        gap = metrics.aggregate_optimality_gap(scores, OPTIMUM)
        return np.array(
            [metrics.aggregate_iqm(scores), metrics.aggregate_mean(scores), metrics.aggregate_median(scores), gap]
        )

    points, ends = library.get_interval_estimates({"": groups[0]}, aggregates, reps=REPETITIONS)
    better, better_ends = library.get_interval_estimates(
        {"": groups}, lambda one, other: np.array([metrics.probability_of_improvement(one, other)]), reps=REPETITIONS
    )
    shares, share_ends = library.create_performance_profile(
        {"": groups[0]}, np.array(THRESHOLDS), reps=REPETITIONS // 4
    )
    return {
        "groups": [each.tolist() for each in groups],
        "aggregates": points[""].tolist(),
        "aggregate_ends": ends[""].tolist(),
        "improvement": float(better[""][0]),
        "improvement_ends": ends_of(better_ends[""]),
        "profile": shares[""].tolist(),
        "profile_ends": share_ends[""].tolist(),
    }


def ends_of(ends: Any) -> list[float]:
    return [float(end) for end in np.asarray(ends).ravel()]


def main() -> None:
    library, metrics = (importlib.import_module(f"rliable.{name}") for name in ("library", "metrics"))
    content = {
        "made_with": {name: version(name) for name in ("rliable", "arch", "numpy", "scipy", "pandas")},
        "repetitions": REPETITIONS,
        "optimum": OPTIMUM,
        "thresholds": THRESHOLDS,
        "cases": {name: golden(groups, library, metrics) for name, groups in cases().items()},
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
