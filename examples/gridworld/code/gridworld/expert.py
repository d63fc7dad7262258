"""An expert for each level: BabyAI's bot where it has a mission of BabyAI's, else the shortest way to the goal."""

from __future__ import annotations

from collections import deque
from typing import Any

from minigrid.core.constants import DIR_TO_VEC
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot

_TURNS = ((-1, "left"), (1, "right"))


def bot(env: Any, observation: Any = None) -> int:
    """What to do next.

    It knows the whole world, and keeps its plan in the environment until the episode's end.

    :param env: a :class:`gridworld.environment.Gridworld`, or wrappers around one
    :param observation: not looked at
    """
    game = env.unwrapped
    if not hasattr(game.world, "instrs"):
        return _towards_goal(game.world)
    if game.expert is None:
        game.expert = BabyAIBot(game.world)
        return int(game.expert.replan())
    return int(game.expert.replan(game.last_action))


def _towards_goal(world: MiniGridEnv) -> int:
    """The first action of a shortest way to a goal, through doors that are not locked."""
    actions = world.actions
    start = (int(world.agent_pos[0]), int(world.agent_pos[1]), int(world.agent_dir))
    first: dict[tuple[int, int, int], int] = {start: int(actions.done)}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        x, y, direction = here
        cell = world.grid.get(x, y)
        if here != start and cell is not None and cell.type == "goal":
            return first[here]
        ahead = (x + int(DIR_TO_VEC[direction][0]), y + int(DIR_TO_VEC[direction][1]))
        steps = [((x, y, (direction + turn) % 4), int(actions[name])) for turn, name in _TURNS]
        beyond = world.grid.get(*ahead)
        closed = beyond is not None and beyond.type == "door" and not beyond.is_open and not beyond.is_locked
        if beyond is None or closed or (beyond.can_overlap() and beyond.type != "lava"):
            steps.insert(0, ((*ahead, direction), int(actions.toggle if closed else actions.forward)))
        for after, action in steps:
            if after not in first:
                first[after] = action if here == start else first[here]
                waiting.append(after)
    return int(actions.done)
