"""What the agent gets to see of one of minigrid's worlds: local view, map, graph and state, as numbers.

The keys are those of docs/architectures.md. Channels, features and types stand beside their constants here.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv

Array: TypeAlias = "np.ndarray[Any, Any]"

VIEW, SIDE = 7, 25
NODES, EDGES, OBJECTS = 64, 288, 31
"""64 cells of a grid have at most 112 pairs of neighbours; each object has an edge to the agent, and one back."""
#: Of nodes: the agent, a free cell, a thing. Of edges: from a cell to its neighbour, between the agent and a thing.
AGENT, CELL, THING = range(3)
NEIGHBOUR, RELATION = range(2)

THINGS = ("door", "key", "ball", "box", "goal", "lava")
COLOURS = tuple(COLOR_TO_IDX)
WORDS = (
    *("go", "pick", "open", "put", "get", "traverse", "avoid", "object", "room"),
    *THINGS,
    *COLOURS,
)
_DOOR = OBJECT_TO_IDX["door"]
_SEEN = len(OBJECT_TO_IDX)
#: Of the map: a wall, a free cell, each kind of thing, the agent.
_MAP = len(THINGS) + 3
#: Of a node: each kind of thing, agent, cell; colours; open, closed, locked; ahead, to the right; whether the mission
#: names it.
_FEATURES = len(THINGS) + 2 + len(COLOURS) + 3 + 2 + 1
#: Direction, place, share of the steps left, what is carried and its colour, words of the mission.
_STATE = 4 + 2 + 1 + 3 + len(COLOURS) + len(WORDS)


def space() -> spaces.Dict:
    def flags(*shape: int, most: int = 1) -> spaces.Box:
        return spaces.Box(0, most, shape, np.uint8)

    return spaces.Dict(
        {
            "local": flags(_SEEN + len(COLOURS) + 3, VIEW, VIEW),
            "global": flags(_MAP, SIDE, SIDE),
            "graph_nodes": spaces.Box(-1.0, 1.0, (NODES, _FEATURES), np.float32),
            "graph_edges": flags(2, EDGES, most=NODES - 1),
            "graph_node_mask": flags(NODES),
            "graph_edge_mask": flags(EDGES),
            "graph_node_types": flags(NODES, most=THING),
            "graph_edge_types": flags(EDGES, most=RELATION),
            "state": spaces.Box(-1.0, 1.0, (_STATE,), np.float32),
        }
    )


def observe(world: MiniGridEnv, image: Array) -> dict[str, Array]:
    """:param image: what minigrid itself shows of the world, 7 x 7 cells of kind, colour and state"""
    words = _words(world.mission)
    return {"local": _local(image), "global": _map(world), **_graph(world, words), "state": _state(world, words)}


def _words(mission: str) -> frozenset[str]:
    return frozenset(mission.replace(",", " ").split())


def _local(image: Array) -> Array:
    kind, colour, state = np.moveaxis(image, 2, 0)
    coloured = (kind >= _DOOR) & (kind != OBJECT_TO_IDX["agent"])
    layers = [kind == number for number in range(_SEEN)]
    layers += [coloured & (colour == number) for number in range(len(COLOURS))]
    layers += [(kind == _DOOR) & (state == number) for number in range(3)]
    return np.stack(layers).astype(np.uint8)


def _map(world: MiniGridEnv) -> Array:
    codes = [1 if cell is None else 0 if cell.type == "wall" else _CODES.get(cell.type, 1) for cell in world.grid.grid]
    found = np.zeros((_MAP, SIDE, SIDE), np.uint8)
    grid = np.array(codes).reshape(world.grid.height, world.grid.width)
    for channel in range(_MAP - 1):
        found[channel, : grid.shape[0], : grid.shape[1]] = grid == channel
    found[_MAP - 1, world.agent_pos[1], world.agent_pos[0]] = 1
    return found


_CODES = {name: 2 + number for number, name in enumerate(THINGS)}


def _graph(world: MiniGridEnv, words: frozenset[str]) -> dict[str, Array]:
    x, y = (int(place) for place in world.agent_pos)
    width, height = world.grid.width, world.grid.height
    cells, things = [], []
    for position, cell in enumerate(world.grid.grid):
        j, i = divmod(position, width)
        if (i, j) == (x, y) or (cell is not None and cell.type == "wall"):
            continue
        (cells if cell is None or cell.type not in _CODES else things).append((abs(i - x) + abs(j - y), j, i, cell))
    # The nearest first, then by rows: what is too much falls off at the end.
    things = sorted(things, key=itemgetter(0, 1, 2))[:OBJECTS]
    chosen = [(0, y, x, None), *things, *sorted(cells, key=itemgetter(0, 1, 2))][:NODES]
    index = {(i, j): number for number, (_, j, i, _) in enumerate(chosen)}
    edges, kinds = [], []
    for (i, j), number in index.items():
        for beside in ((i + 1, j), (i, j + 1), (i - 1, j), (i, j - 1)):
            if beside in index:
                edges.append((number, index[beside]))
                kinds.append(NEIGHBOUR)
    for number in range(1, 1 + len(things)):
        edges += [(0, number), (number, 0)]
        kinds += [RELATION, RELATION]
    assert len(edges) <= EDGES and max(width, height) <= SIDE
    found = {
        "graph_nodes": np.zeros((NODES, _FEATURES), np.float32),
        "graph_edges": np.zeros((2, EDGES), np.uint8),
        "graph_node_mask": np.zeros(NODES, np.uint8),
        "graph_edge_mask": np.zeros(EDGES, np.uint8),
        "graph_node_types": np.zeros(NODES, np.uint8),
        "graph_edge_types": np.zeros(EDGES, np.uint8),
    }
    ahead, right = world.dir_vec, world.right_vec
    nodes = found["graph_nodes"]
    for number, (_, j, i, cell) in enumerate(chosen):
        kind = AGENT if number == 0 else THING if number <= len(things) else CELL
        _describe(nodes[number], kind, cell, words)
        away = (i - x, j - y)
        nodes[number, -3] = (away[0] * ahead[0] + away[1] * ahead[1]) / SIDE
        nodes[number, -2] = (away[0] * right[0] + away[1] * right[1]) / SIDE
        found["graph_node_types"][number] = kind
    found["graph_node_mask"][: len(chosen)] = 1
    if edges:
        found["graph_edges"][:, : len(edges)] = np.array(edges).T
        found["graph_edge_types"][: len(edges)] = kinds
        found["graph_edge_mask"][: len(edges)] = 1
    return found


def _describe(row: Array, kind: int, cell: Any, words: frozenset[str]) -> None:
    first = len(THINGS)
    if kind != THING:
        row[first + (0 if kind == AGENT else 1)] = 1
        return
    row[THINGS.index(cell.type)] = 1
    row[first + 2 + COLOURS.index(cell.color)] = 1
    if cell.type == "door":
        row[first + 2 + len(COLOURS) + (2 if cell.is_locked else 0 if cell.is_open else 1)] = 1
    # Of what needs no colour, as the goal, the mission names none.
    row[-1] = cell.type in words and (cell.color in words or not words.intersection(COLOURS))


def _state(world: MiniGridEnv, words: frozenset[str]) -> Array:
    found = np.zeros(_STATE, np.float32)
    found[world.agent_dir] = 1
    found[4:6] = world.agent_pos[0] / SIDE, world.agent_pos[1] / SIDE
    found[6] = 1 - world.step_count / world.max_steps
    if world.carrying is not None:
        found[7 + ("key", "ball", "box").index(world.carrying.type)] = 1
        found[10 + COLOURS.index(world.carrying.color)] = 1
    found[10 + len(COLOURS) :] = [word in words for word in WORDS]
    return found
