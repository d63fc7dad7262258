"""The section ``compare`` of an experiment file, and its table in docs/comparison.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML
from test_config import default_as_yaml

from train_cloud.config import load_experiment
from train_cloud.config.comparison import COSTS, CRITERIA, METRICS, Compare, Criterion, better
from train_cloud.errors import InputError
from train_cloud.evaluate.results import Summary

DOCS = Path(__file__).parent.parent / "docs" / "comparison.md"
_BEGIN, _END = "<!-- fields: python tests/test_comparison.py writes them -->\n", "<!-- end of fields -->"


def load(folder: Path, **compare: Any) -> Compare:
    run_file = {
        "run_id": "base",
        "algorithm": "ppo",
        "total_timesteps": 64,
        "save_frequency": 32,
        "environment": {"id": "CartPole-v1"},
    }
    YAML().dump(run_file, folder / "base.yaml")
    YAML().dump({"experiment": "a", "base": "base.yaml", "compare": compare}, folder / "experiment.yaml")
    found = load_experiment(folder / "experiment.yaml").compare
    assert found is not None
    return found


def test_a_number_is_a_weight(tmp_path: Path) -> None:
    criteria = {"success_rate": 3, "dollars": {"weight": 0.5}, "a/b": {"weight": 1, "direction": "smaller"}}
    found = load(tmp_path, criteria=criteria)
    assert {name: each.weight for name, each in found.criteria.items()} == {"success_rate": 3, "dollars": 0.5, "a/b": 1}
    directions = {name: better(name, each.direction) for name, each in found.criteria.items()}
    assert directions == {"success_rate": "larger", "dollars": "smaller", "a/b": "smaller"}
    assert better("length", "larger") == "larger"


def test_an_empty_section_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path) == Compare()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metric": "sucess_rate"}, "compare.metric: 'sucess_rate': did you mean success_rate?"),
        ({"metric": "dollars"}, "compare.metric: 'dollars': use one of success_rate, mean_return"),
        ({"direction": "larger"}, "compare.direction: 'larger': name the metric that it is for"),
        ({"metric": "length", "direction": "up"}, "compare.direction: 'up': use larger or smaller"),
        ({"criteria": {"dolars": 1}}, "compare.criteria.dolars: 1.0: did you mean dollars?"),
        ({"criteria": {"speed": 1}}, "compare.criteria.speed: 1.0: use one of success_rate"),
        (
            {"criteria": {"train/loss": 1}},
            "compare.criteria.train/loss: 1.0: whether larger or smaller is better is not",
        ),
        ({"criteria": {"dollars": 0}}, "compare.criteria.dollars.weight: 0.0: give a number above 0"),
        ({"criteria": {"dollars": {"direction": "smaller"}}}, "compare.criteria.dollars.weight: None: it is required"),
        ({"criteria": {"dollars": {"weight": 1, "dir": "x"}}}, "compare.criteria.dollars.dir: 'x': unknown key"),
        ({"criteria": {"dollars": True}}, "compare.criteria.dollars: True: give a map"),
        ({"criteria": ["dollars"]}, "compare.criteria: ['dollars']: give a map"),
        ({"confidence": 1}, "compare.confidence: 1: give a number below 1"),
        ({"confidence": 95}, "compare.confidence: 95: give a number below 1"),
        ({"repetitions": 10}, "compare.repetitions: 10: give a number of at least 100"),
        ({"timesteps": "comon"}, "compare.timesteps: 'comon': give a number of timesteps, or common"),
        ({"timesteps": 0.5}, "compare.timesteps: 0.5: give a number of timesteps, or common"),
        ({"timesteps": True}, "compare.timesteps: True: give a number of timesteps, or common"),
        ({"thresholds": [1, 0.5]}, "compare.thresholds: [1.0, 0.5]: give each once, in ascending order"),
        ({"normalise": {"easy": [1, 1]}}, "compare.normalise.easy: [1.0, 1.0]: give two different finite numbers"),
        ({"normalise": {"easy": [0, float("inf")]}}, "give two different finite numbers"),
        ({"metrics": "length"}, "compare.metrics: 'length': unknown key: did you mean metric?"),
    ],
)
def test_bad_values_name_field_and_fix(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **section)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_metric_is_one_that_evaluations_record() -> None:
    """``success_rate`` and the others are fields of a summary, ``mean_return`` and ``length`` are means of theirs."""
    fields = set(Summary.model_fields)
    assert {*METRICS} - {"mean_return", "length"} <= fields and {"returns", "lengths"} <= fields
    assert not set(METRICS) & set(COSTS) and set(CRITERIA) == {*METRICS, *COSTS}


def fields_as_markdown() -> str:
    sections: list[tuple[str, type[BaseModel]]] = [("compare", Compare), ("compare.criteria.NAME", Criterion)]
    lines = []
    for section, model in sections:
        lines += [f"\n### `{section}`\n", "| field | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{default_as_yaml(field.default)}`"
            lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def with_fields(text: str) -> str:
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{fields_as_markdown()}\n{_END}{rest.split(_END)[1]}"


def test_the_documented_fields_are_these() -> None:
    assert with_fields(DOCS.read_text()) == DOCS.read_text()


def test_the_real_comparison_can_be_made_again(tmp_path: Path) -> None:
    """Of its two files, as they stand on the page."""
    blocks = DOCS.read_text().partition("## A real one")[2].split("```yaml\n")[1:]
    run_file, experiment = (block.partition("```")[0] for block in blocks)
    (tmp_path / "cartpole.yaml").write_text(run_file)
    (tmp_path / "rates.yaml").write_text(experiment)
    found = load_experiment(tmp_path / "rates.yaml")
    assert len(found.cells) == 18 and found.compare is not None and found.compare.metric == "mean_return"
    assert {cell.config.total_timesteps for cell in found.cells} == {10_240}


if __name__ == "__main__":
    DOCS.write_text(with_fields(DOCS.read_text()))
