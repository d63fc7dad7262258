"""The preservation policy: which of the earlier checkpoints stay when a new one is committed.

The newest few stay whole: the window of the replay buffer moves so little from one to the next that they share nearly
all segments. What stays for longer, by interval or as the best, stays without its rows: each would pin a buffer of its
own, together the run's whole history. It can still be exported, and forked with an empty buffer. Where there are no
rows, as for on-policy algorithms, nothing is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from train_cloud.checkpoint.manifest import Kept
from train_cloud.config import Preservation


def preserved(
    policy: Preservation,
    episode_return: float | None,
    earlier: Sequence[Kept],
    held: Collection[int] = (),
    *,
    lowest: bool = False,
) -> tuple[Kept, ...]:
    """Those of the earlier checkpoints that stay beside a new one.

    :param episode_return: of the new one; of a loop of the user's own its score
    :param earlier: newest first, as the return value
    :param lowest: whether the lowest is the best
    :param held: timesteps of those that somebody still has to read: they stay, without rows
    """
    staying = {*earlier[: policy.last - 1], *_first_of_each(policy.every, earlier)}
    staying |= {kept for kept in earlier if kept.timesteps in held}
    if policy.best:
        staying |= _best(episode_return, earlier, -1.0 if lowest else 1.0)
    return tuple(
        kept.model_copy(update={"rows": kept.rows and position < policy.last - 1})
        for position, kept in enumerate(earlier)
        if kept in staying
    )


def _first_of_each(every: int | None, earlier: Sequence[Kept]) -> set[Kept]:
    """The earliest at or after each multiple of ``every``. It stays the earliest, so nothing needs to be remembered."""
    if every is None:
        return set()
    first: dict[int, Kept] = {}
    for kept in reversed(earlier):
        if kept.timesteps >= every:
            first.setdefault(kept.timesteps // every, kept)
    return set(first.values())


def _best(episode_return: float | None, earlier: Sequence[Kept], sign: float) -> set[Kept]:
    """The earliest of the best, unless the new one is better."""
    returns = [sign * kept.episode_return for kept in earlier if kept.episode_return is not None]
    if not returns or (episode_return is not None and sign * episode_return > max(returns)):
        return set()
    best = sign * max(returns)
    return {next(kept for kept in reversed(earlier) if kept.episode_return == best)}
