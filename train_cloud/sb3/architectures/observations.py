"""The dict observations that our architectures see, and how they are read from a batch.

==================== ========= ======================================================================================
key                  shape     content
==================== ========= ======================================================================================
``local``            (C, H, W) what the agent sees around it
``global``           (C, H, W) the whole map
``graph_nodes``      (N, F)    a row of features for each node
``graph_edges``      (2, E)    source and target of each edge, as positions among the nodes, 0 to N - 1
``graph_node_mask``  (N,)      1 for a node, 0 for padding
``graph_edge_mask``  (E,)      1 for an edge, 0 for padding
``graph_node_types`` (N,)      a whole number from 0; the space's upper bound is the last type
``graph_edge_types`` (E,)      the same
``state``            (S,)      everything else
==================== ========= ======================================================================================

SB3's dict spaces are flat, and of fixed shapes: so a graph is padded to N nodes and E edges. What stands in the padding
is never looked at.

Nothing here imports train-cloud: an exported model carries this module along (``sb3.export``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

KEYS: Mapping[str, tuple[str, ...]] = {
    "local": ("local",),
    "global": ("global",),
    "graph": (
        *("graph_nodes", "graph_edges", "graph_node_mask", "graph_edge_mask"),
        *("graph_node_types", "graph_edge_types"),
    ),
    "state": ("state",),
}
MOST_TYPES = 64


class Layout(NamedTuple):
    """Sizes of a padded graph."""

    nodes: int
    features: int
    edges: int
    node_types: int
    edge_types: int


class Graphs(NamedTuple):
    """A batch of B padded graphs."""

    nodes: Tensor
    """(B, N, F); 0 in the padding."""
    mask: Tensor
    """(B, N), whether there is such a node."""
    source: Tensor
    """(B, E), positions."""
    target: Tensor
    """(B, E)"""
    edge_mask: Tensor
    """(B, E), whether there is such an edge, between two nodes that there are."""
    node_types: Tensor
    """(B, N)"""
    edge_types: Tensor
    """(B, E)"""


def refusal(space: spaces.Space[object], sees: Collection[str]) -> str | None:
    """Why a space cannot be seen; None where it can.

    :param sees: of :data:`KEYS`
    """
    if not isinstance(space, spaces.Dict):
        keys = ", ".join("graph_…" if group == "graph" else group for group in KEYS if group in sees)
        return f"it sees a Dict with {keys}, and this is a {type(space).__name__}"
    for key in _keys(sees):
        part = space.spaces.get(key)
        if part is None:
            return f"they have no key {key}; they have {', '.join(space.spaces)}"
        if not isinstance(part, spaces.Box):
            return f"{key} is {type(part).__name__}: make it a Box"
    shapes = {key: space[key].shape or () for key in _keys(sees)}
    for key, dimensions in (("local", 3), ("global", 3), ("state", 1), ("graph_nodes", 2)):
        if key in shapes and len(shapes[key]) != dimensions:
            return f"{key} has the shape {shapes[key]}: give it {dimensions} dimensions"
    return _graph_refusal(space, shapes) if "graph" in sees else None


def _graph_refusal(space: spaces.Dict, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    nodes, edges = shapes["graph_nodes"][0], shapes["graph_edges"][-1]
    for key, shape in (
        ("graph_edges", (2, edges)),
        ("graph_node_mask", (nodes,)),
        ("graph_edge_mask", (edges,)),
        ("graph_node_types", (nodes,)),
        ("graph_edge_types", (edges,)),
    ):
        if shapes[key] != shape:
            return f"{key} has the shape {shapes[key]}, with {nodes} nodes and {edges} edges it must be {shape}"
    for key, most in (("graph_edges", nodes - 1), *((f"graph_{what}_types", MOST_TYPES - 1) for what in _TYPED)):
        part = space[key]
        assert isinstance(part, spaces.Box)
        if float(np.min(part.low)) < 0 or float(np.max(part.high)) > most:
            return f"{key} has the bounds {np.min(part.low)} and {np.max(part.high)}: they must be 0 and at most {most}"
    return None


_TYPED = ("node", "edge")


def layout_of(space: spaces.Dict) -> Layout:
    """:param space: one that :func:`refusal` has nothing against"""
    (nodes, features), (_, edges) = space["graph_nodes"].shape or (0, 0), space["graph_edges"].shape or (0, 0)
    types = []
    for what in _TYPED:
        part = space[f"graph_{what}_types"]
        assert isinstance(part, spaces.Box)
        types.append(int(np.max(part.high)) + 1)
    return Layout(nodes, features, edges, *types)


def read_graphs(observations: Mapping[str, Tensor], layout: Layout) -> Graphs:
    """A batch as SB3 hands it over: all of it floats."""
    mask = observations["graph_node_mask"] > 0.5
    nodes = torch.where(mask.unsqueeze(-1), observations["graph_nodes"], 0.0)
    edges = observations["graph_edges"].long().clamp(0, layout.nodes - 1)
    source, target = edges[:, 0], edges[:, 1]
    edge_mask = (observations["graph_edge_mask"] > 0.5) & mask.gather(1, source) & mask.gather(1, target)
    node_types = observations["graph_node_types"].long().clamp(0, layout.node_types - 1)
    edge_types = observations["graph_edge_types"].long().clamp(0, layout.edge_types - 1)
    return Graphs(nodes, mask, source, target, edge_mask, node_types, edge_types)


def adjacency(graphs: Graphs) -> Tensor:
    """(B, N, N), whether an edge leads to the first node from the second; one that is there twice counts once.

    Each node has an edge to itself.
    """
    count, nodes = graphs.mask.shape
    # Edges of the padding go to a place of their own. All that is written is equal: the order makes no difference.
    place = torch.where(graphs.edge_mask, graphs.target * nodes + graphs.source, nodes * nodes)
    flat = torch.zeros(count, nodes * nodes + 1, dtype=torch.bool, device=place.device)
    flat = flat.scatter(1, place, True)
    found = flat[:, :-1].view(count, nodes, nodes)
    return found | torch.diag_embed(graphs.mask)


def pooled(values: Tensor, mask: Tensor) -> Tensor:
    """Mean and maximum over the nodes that there are, beside each other; 0 of an empty graph.

    :param values: (B, N, W)
    :param mask: (B, N)
    :return: (B, 2 W)
    """
    there = mask.unsqueeze(-1)
    mean = torch.where(there, values, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    most = values.masked_fill(~there, torch.finfo(values.dtype).min).amax(1)
    return torch.cat([mean, torch.where(mask.any(1, keepdim=True), most, 0.0)], 1)


def _keys(sees: Collection[str]) -> list[str]:
    return [key for group, keys in KEYS.items() if group in sees for key in keys]
