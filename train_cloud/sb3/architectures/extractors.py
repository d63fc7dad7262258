"""Features extractors for the observations of :mod:`train_cloud.sb3.architectures.observations`.

Nothing here imports train-cloud but its neighbours: an exported model carries these modules along (``sb3.export``).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from train_cloud.sb3.architectures.dense import GraphAttention, GraphConvolution
from train_cloud.sb3.architectures.observations import (
    KEYS,
    Graphs,
    Layout,
    adjacency,
    layout_of,
    pooled,
    read_graphs,
    refusal,
)

_LARGEST_SIDE = 8
"""Pictures are halved until no side is longer."""


class Picture(nn.Module):
    """Convolutions over (C, H, W)."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, *sides = shape
        layers: list[nn.Module] = []
        while max(sides) > _LARGEST_SIDE:
            layers += [nn.Conv2d(channels, width // 2, 3, stride=2, padding=1), nn.ReLU()]
            channels, sides = width // 2, [math.ceil(side / 2) for side in sides]
        layers += [nn.Conv2d(channels, width // 2, 3, padding=1), nn.ReLU(), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(width // 2 * math.prod(sides), width), nn.ReLU())

    def forward(self, picture: Tensor) -> Tensor:
        result: Tensor = self.layers(picture)
        return result


class Extractor(BaseFeaturesExtractor):
    """A network for each part of the observation that it sees, and a layer over all of them.

    :param features_dim: how many numbers it makes of an observation
    :param width: of each part's network
    """

    sees: ClassVar[tuple[str, ...]] = ()
    graph_net: nn.Module
    """Of those that see a graph: (B, width) of a batch of them."""

    def __init__(self, observation_space: spaces.Dict, features_dim: int, width: int) -> None:
        super().__init__(observation_space, features_dim)
        self.layout = layout_of(observation_space) if "graph" in self.sees else None
        self.parts = nn.ModuleDict()
        for part in self.sees:
            shape = observation_space[part].shape or () if part != "graph" else ()
            if part in ("local", "global"):
                # ModuleDict takes no name that Python has taken.
                self.parts[f"{part}_view"] = Picture(shape, width)
            elif part == "state":
                self.parts[part] = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU())
        self.together = nn.Sequential(nn.Linear(width * len(self.sees), features_dim), nn.ReLU())

    @classmethod
    def refusal(cls, space: spaces.Space[object]) -> str | None:
        """Why it cannot see these observations; None where it can."""
        return refusal(space, cls.sees)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, features_dim)"""
        found = []
        for part in self.sees:
            if part == "graph":
                assert self.layout is not None
                found.append(self.graph_net(read_graphs(observations, self.layout)))
            else:
                found.append(self.parts[part if part == "state" else f"{part}_view"](observations[part]))
        result: Tensor = self.together(torch.cat(found, 1))
        return result


class LocalOnly(Extractor):
    """The local view and the state, and neither map nor graph."""

    sees = ("local", "state")

    def __init__(self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64) -> None:
        super().__init__(observation_space, features_dim, width)


class Convolutions(nn.Module):
    """Layers of graph convolution, and mean and maximum over the nodes."""

    def __init__(self, layout: Layout, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(layout.features, width), nn.ReLU())
        self.layers = nn.ModuleList(self.layer(width) for _ in range(layers))
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())

    def layer(self, width: int) -> nn.Module:
        return GraphConvolution(width, width)

    def forward(self, graphs: Graphs) -> Tensor:
        edges, nodes = adjacency(graphs), self.embed(graphs.nodes)
        for layer in self.layers:
            nodes = torch.relu(layer(nodes, edges)) + nodes
        result: Tensor = self.out(pooled(nodes, graphs.mask))
        return result


class Attentions(Convolutions):
    """The same with attention."""

    def __init__(self, layout: Layout, width: int, layers: int, heads: int) -> None:
        self._heads = heads
        super().__init__(layout, width, layers)

    def layer(self, width: int) -> nn.Module:
        return GraphAttention(width, width, self._heads)


class Gcn(Extractor):
    """Local view, global map and state, and the graph by convolution (GCN).

    :param layers: of the graph's network
    """

    sees = ("local", "global", "graph", "state")

    def __init__(
        self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64, layers: int = 2
    ) -> None:
        super().__init__(observation_space, features_dim, width)
        self.graph_net = Convolutions(layout_of(observation_space), width, layers)


class Gat(Extractor):
    """Local view, global map and state, and the graph by attention (GAT).

    :param layers: of the graph's network
    :param heads: of each of its layers
    """

    sees = ("local", "global", "graph", "state")

    def __init__(
        self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__(observation_space, features_dim, width)
        self.graph_net = Attentions(layout_of(observation_space), width, layers, heads)


class MlpBaseline(BaseFeaturesExtractor):
    """Everything as one row of numbers, and layers over it.

    :param features_dim: how many numbers it makes of an observation
    :param width: of the first layer
    """

    sees: ClassVar[tuple[str, ...]] = tuple(KEYS)

    def __init__(self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        self.layout = layout_of(observation_space)
        count = sum(math.prod(observation_space[key].shape or ()) for keys in KEYS.values() for key in keys)
        self.layers = nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, features_dim), nn.ReLU())

    @classmethod
    def refusal(cls, space: spaces.Space[object]) -> str | None:
        """Why it cannot see these observations; None where it can."""
        return refusal(space, cls.sees)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, features_dim)"""
        graphs, layout = read_graphs(observations, self.layout), self.layout
        rows = [observations[key].flatten(1) for key in ("local", "global", "state")]
        rows += [graphs.nodes.flatten(1), graphs.mask.float(), graphs.edge_mask.float()]
        # Positions and types from 0 to 1; there are no others in the padding than 0.
        rows.append(graphs.node_types * graphs.mask / max(1, layout.node_types - 1))
        for values, most in (
            (graphs.source, layout.nodes),
            (graphs.target, layout.nodes),
            (graphs.edge_types, layout.edge_types),
        ):
            rows.append(values * graphs.edge_mask / max(1, most - 1))
        result: Tensor = self.layers(torch.cat(rows, 1))
        return result
