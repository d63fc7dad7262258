"""What a fork may change of the identity that it begins with, and still go on from the state that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train_cloud.config.identity import identity_changes
from train_cloud.errors import InputError

#: Arguments of SB3's algorithms that act on the next step or update alone: whatever state there is fits any value.
ADJUSTABLE = frozenset(
    (
        "action_noise",
        "batch_size",
        "clip_range",
        "clip_range_vf",
        "exploration_final_eps",
        "exploration_fraction",
        "exploration_initial_eps",
        "gae_lambda",
        "gamma",
        "gradient_steps",
        "learning_rate",
        "learning_starts",
        "max_grad_norm",
        "n_epochs",
        "normalize_advantage",
        "policy_delay",
        "sde_sample_freq",
        "target_entropy",
        "target_kl",
        "target_noise_clip",
        "target_policy_noise",
        "target_update_interval",
        "tau",
        "train_freq",
        "use_sde_at_warmup",
        "vf_coef",
    )
)
#: The same where nothing is replayed: off-policy, these decide on the buffer's kind and on what SAC learns.
ADJUSTABLE_ON_POLICY = frozenset(("ent_coef", "n_steps"))


def check_fork(old: Mapping[str, Any], new: Mapping[str, Any], *, replays: bool) -> list[tuple[str, Any, Any]]:
    """The changes, if each leaves the state usable.

    Code of one's own may change: whether the state fits it shows when it is restored.

    :param replays: whether the state has a replay buffer
    :return: as :func:`identity_changes` gives them, without the run id
    :raises InputError: the state belongs to the old value
    """
    adjustable = ADJUSTABLE if replays else ADJUSTABLE | ADJUSTABLE_ON_POLICY
    changes = [change for change in identity_changes(old, new) if change[0] != "run_id"]
    for field, before, after in changes:
        part, _, name = field.partition(".")
        if part in ("code", "device", "entry_point", "env"):
            continue
        if part == "hyperparameters" and name.split(".")[0] in adjustable:
            continue
        why = "its generators go on" if field == "seed" else f"its state belongs to {before!r}"
        raise InputError(field, after, f"a fork cannot change it, {why}: leave it, or begin a new run")
    return changes
