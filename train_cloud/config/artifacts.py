"""What happens to a run's results: how soon they reach the store, and Weights & Biases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from train_cloud.config.shapes import Number, Section, Text


class Artifacts(Section):
    """The files that a run leaves for people."""

    sync_seconds: Annotated[Number, Field(ge=0.1, le=3600)] = Field(
        60.0, description="Seconds after which what has changed reaches the store."
    )


class Wandb(Section):
    """Weights & Biases: one run of theirs under our run id, over all sessions."""

    project: Annotated[Text, Field(min_length=1, max_length=128)] = Field(description="Project there.")
    entity: Text | None = Field(None, description="User or team; null for the key's own.")
    mode: Literal["online", "offline"] = Field(
        "online", description="`offline` writes segments to `wandb/`, which `wandb sync` joins to one run."
    )
    name: Text | None = Field(None, description="Name shown there; null for the run id.")
    group: Text | None = Field(None, description="Group there.")
    tags: tuple[Text, ...] = Field((), description="Tags there.")
    base_url: Text | None = Field(None, description="Of a server of one's own; null for W&B's.")
