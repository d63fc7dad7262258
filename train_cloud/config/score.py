"""By which number the checkpoints of a loop of one's own are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from train_cloud.config.shapes import Section, Text


class Score(Section):
    """What `run.log()` calls it, and which way is better."""

    name: Text = Field(description="As the loop logs it, for example `val/loss`.")
    direction: Literal["min", "max"] = Field("max", description="Whether a lower or a higher one is better.")


def from_text(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value
