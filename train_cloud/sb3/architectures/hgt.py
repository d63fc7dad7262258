"""Features extractors that read the graph by heterogeneous graph transformers (https://arxiv.org/abs/2003.01332).

The layer is ``torch_geometric.nn.HGTConv``, of the extra ``graphs``. It sums by index: on a CPU always in the same
order, on a GPU not.

Nothing here imports train-cloud but its neighbours: an exported model carries these modules along (``sb3.export``).
"""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch_geometric.nn import HGTConv

from train_cloud.sb3.architectures.extractors import Extractor
from train_cloud.sb3.architectures.observations import Graphs, Layout, layout_of, pooled


class Transformers(nn.Module):
    """Layers of HGT, and mean and maximum over the nodes.

    :param edge_types: whether edges have types
    """

    def __init__(self, layout: Layout, width: int, layers: int, heads: int, *, edge_types: bool = True) -> None:
        super().__init__()
        self.nodes, self.relations = layout.node_types, layout.edge_types if edge_types else 1
        names = [f"node{number}" for number in range(self.nodes)]
        #: All that there may be, sorted by source, relation, target.
        self.edges = [(a, f"edge{r}", b) for a in names for r in range(self.relations) for b in names]
        self.names = names
        self.embed = nn.Parameter(torch.zeros(self.nodes, width))
        self.linear = nn.Linear(layout.features, width)
        self.layers = nn.ModuleList(HGTConv(width, width, (names, self.edges), heads) for _ in range(layers))
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())

    def forward(self, graphs: Graphs) -> Tensor:
        """(B, width)"""
        count, nodes = graphs.mask.shape
        values = torch.relu(self.linear(graphs.nodes) + self.embed[graphs.node_types]).flatten(0, 1)
        there = graphs.mask.flatten().nonzero().squeeze(1)
        if there.numel():
            types = graphs.node_types.flatten()[there]
            by_type = there[types.argsort(stable=True)]
            sizes = torch.bincount(types, minlength=self.nodes).tolist()
            rows = dict(zip(self.names, torch.split(values[by_type], sizes), strict=True))
            edges = self._edges(graphs, by_type, sizes)
            for layer in self.layers:
                rows = {name: torch.relu(value) for name, value in layer(rows, edges).items()}
            values = torch.zeros_like(values).index_copy(0, by_type, torch.cat([rows[name] for name in self.names]))
        result: Tensor = self.out(pooled(values.view(count, nodes, -1), graphs.mask))
        return result

    def _edges(self, graphs: Graphs, by_type: Tensor, sizes: list[int]) -> dict[tuple[str, str, str], Tensor]:
        """Edges by their types, as positions among the nodes of a type; sorted as ``HGTConv`` takes them."""
        count, nodes = graphs.mask.shape
        starts = torch.tensor([0, *sizes[:-1]], device=by_type.device).cumsum(0)
        position = torch.zeros(count * nodes, dtype=torch.long, device=by_type.device)
        position[by_type] = torch.arange(len(by_type), device=by_type.device)
        types = graphs.node_types.flatten()
        position -= starts[types]
        first = (torch.arange(count, device=by_type.device) * nodes).unsqueeze(1)
        source, target = (graphs.source + first)[graphs.edge_mask], (graphs.target + first)[graphs.edge_mask]
        relation = graphs.edge_types[graphs.edge_mask] if self.relations > 1 else torch.zeros_like(source)
        kinds = (types[source] * self.relations + relation) * self.nodes + types[target]
        order = kinds.argsort(stable=True)
        index = torch.stack([position[source[order]], position[target[order]]])
        counts = torch.bincount(kinds, minlength=len(self.edges)).tolist()
        found = zip(self.edges, torch.split(index, counts, 1), strict=True)
        # Those that there are; a layer needs one, though it have no edges.
        return {kind: pairs for kind, pairs in found if pairs.numel()} or {self.edges[0]: index}


class FullHgt(Extractor):
    """Local view, global map and state, and the graph by HGT.

    :param layers: of the graph's network
    :param heads: of each of its layers
    """

    sees = ("local", "global", "graph", "state")

    def __init__(
        self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__(observation_space, features_dim, width)
        self.graph_net = Transformers(layout_of(observation_space), width, layers, heads)


class VisionFree(Extractor):
    """The graph by HGT and the state, and no picture.

    :param layers: of the graph's network
    :param heads: of each of its layers
    """

    sees = ("graph", "state")

    def __init__(
        self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__(observation_space, features_dim, width)
        self.graph_net = Transformers(layout_of(observation_space), width, layers, heads)


class SimplifiedHgt(Extractor):
    """Local view and state, and the graph by one layer of HGT, whose edges have no types.

    :param heads: of the layer
    """

    sees = ("local", "graph", "state")

    def __init__(
        self, observation_space: spaces.Dict, features_dim: int = 128, width: int = 64, heads: int = 2
    ) -> None:
        super().__init__(observation_space, features_dim, width)
        self.graph_net = Transformers(layout_of(observation_space), width, 1, heads, edge_types=False)
