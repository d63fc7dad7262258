"""What a session does beside the training to show that an interruption changes nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from train_cloud.config.shapes import Section


class Reproducibility(Section):
    """Evidence that the run goes on exactly; see docs/exactness.md."""

    replay: Literal["idle", "always", "never"] = Field(
        "idle",
        description="Once a session, a process of its own computes the steps between the first two commits again: "
        "`idle` where a core is idle and memory holds a second training, `always` where memory does, `never`.",
    )
