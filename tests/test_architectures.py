"""Networks by name: what a run file may say, what they compute, and that padding makes no difference to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch_geometric.nn import GATConv, GCNConv

from train_cloud.cli import main
from train_cloud.config import RunFile, parse_run_file
from train_cloud.config.architecture import ARCHITECTURES, Architecture
from train_cloud.errors import InputError, NotInstalled
from train_cloud.sb3.architectures import load, policy_arguments
from train_cloud.sb3.architectures.dense import GraphAttention, GraphConvolution
from train_cloud.sb3.architectures.observations import Layout, adjacency, read_graphs
from train_cloud.sb3.build import build_model

NODES, FEATURES, EDGES, STATE = 12, 5, 30, 4
READS_GRAPHS = [name for name in ARCHITECTURES if name != "local_only"]


def space(nodes: int = NODES, edges: int = EDGES, **changed: spaces.Space[Any]) -> spaces.Dict:
    parts: dict[str, spaces.Space[Any]] = {
        "local": spaces.Box(0, 1, (3, 7, 7), np.float32),
        "global": spaces.Box(0, 1, (2, 11, 11), np.float32),
        "graph_nodes": spaces.Box(-1, 1, (nodes, FEATURES), np.float32),
        "graph_edges": spaces.Box(0, nodes - 1, (2, edges), np.uint8),
        "graph_node_mask": spaces.Box(0, 1, (nodes,), np.uint8),
        "graph_edge_mask": spaces.Box(0, 1, (edges,), np.uint8),
        "graph_node_types": spaces.Box(0, 2, (nodes,), np.uint8),
        "graph_edge_types": spaces.Box(0, 1, (edges,), np.uint8),
        "state": spaces.Box(-1, 1, (STATE,), np.float32),
    }
    return spaces.Dict({**parts, **changed})


def batch(count: int = 4, nodes: int = 7, edges: int = 16, *, pad: float = 0.0) -> dict[str, Tensor]:
    """Observations as SB3 hands them over, with graphs of some nodes and edges in :func:`space`'s padding.

    :param pad: what stands in the padding
    """
    chance = torch.Generator().manual_seed(5)
    found = {
        "local": torch.rand(count, 3, 7, 7, generator=chance),
        "global": torch.rand(count, 2, 11, 11, generator=chance),
        "state": torch.rand(count, STATE, generator=chance),
        "graph_nodes": torch.full((count, NODES, FEATURES), pad),
        "graph_node_mask": torch.zeros(count, NODES),
        "graph_node_types": torch.full((count, NODES), pad),
        "graph_edges": torch.full((count, 2, EDGES), pad),
        "graph_edge_mask": torch.zeros(count, EDGES),
        "graph_edge_types": torch.full((count, EDGES), pad),
    }
    found["graph_nodes"][:, :nodes] = torch.rand(count, nodes, FEATURES, generator=chance)
    found["graph_node_types"][:, :nodes] = torch.randint(3, (count, nodes), generator=chance).float()
    found["graph_node_mask"][:, :nodes] = 1
    found["graph_edge_mask"][:, :edges] = 1
    found["graph_edge_types"][:, :edges] = torch.randint(2, (count, edges), generator=chance).float()
    if nodes:
        found["graph_edges"][:, :, :edges] = torch.randint(nodes, (count, 2, edges), generator=chance).float()
    return found


def extractor(name: str, observations: spaces.Dict | None = None) -> Any:
    torch.manual_seed(1)
    kind = load(Architecture(name=name))
    assert kind is not None
    return kind(observations or space(), features_dim=16, width=16)  # type: ignore[call-arg]


def run_file(architecture: Any, **changed: Any) -> RunFile:
    return parse_run_file(
        {
            "run_id": "a-run",
            "algorithm": "ppo",
            "total_timesteps": 100,
            "save_frequency": 100,
            "device": "cpu",
            "environment": {"id": "CartPole-v1"},
            "architecture": architecture,
            **changed,
        }
    )


# -------------------------------------------------------------------------------------------------------- the run file


@pytest.mark.parametrize(
    ("architecture", "changed", "field", "fix"),
    [
        ("gatt", {}, "architecture", "did you mean gat"),
        ("something", {}, "architecture", "mlp_baseline"),
        ("own.networks", {}, "architecture", "module:Class"),
        ("own:networks:x", {}, "architecture.name", "module:Class"),
        ({"name": "gat", "kwarg": {}}, {}, "architecture.kwarg", "did you mean kwargs"),
        ({"kwargs": {}}, {}, "architecture.name", "required"),
        ({"name": "wide", "policy": "No Policy"}, {}, "architecture.policy", "module:Class"),
        ({"name": "wide", "policy": "MlpPolicy", "kwargs": {"a": 1}}, {}, "architecture.kwargs", "extractor_kwargs"),
        ({"name": "gat", "policy": "MlpPolicy"}, {"policy": "CnnPolicy"}, "policy", "remove one"),
        ("gat", {"policy": "MlpPolicy"}, "policy", "use MultiInputPolicy"),
        ("gat", {"algorithm": "recurrent_ppo", "policy": "MlpLstmPolicy"}, "policy", "use MultiInputLstmPolicy"),
        (
            "gat",
            {"hyperparameters": {"policy_kwargs": {"features_extractor_class": "a:B"}}},
            "hyperparameters.policy_kwargs.features_extractor_class",
            "remove one of the two",
        ),
        (
            {"name": "wide", "policy_kwargs": {"net_arch": [8]}},
            {"hyperparameters": {"policy_kwargs": {"net_arch": [9]}}},
            "hyperparameters.policy_kwargs.net_arch",
            "remove one of the two",
        ),
        (
            {"name": "gat", "policy_kwargs": {"features_extractor_kwargs": {}}},
            {},
            "architecture.policy_kwargs.features_extractor_kwargs",
            "the architecture gat sets it",
        ),
        ("gat", {"entry_point": "a:main", "algorithm": None, "environment": None}, "architecture", "decides this"),
    ],
)
def test_refused_at_once(architecture: Any, changed: dict[str, Any], field: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        run_file(architecture, **changed)
    assert caught.value.field == field and fix in caught.value.fix


@pytest.mark.parametrize(
    ("architecture", "changed", "policy"),
    [
        ("gat", {}, "MultiInputPolicy"),
        ("gat", {"policy": "MultiInputPolicy"}, "MultiInputPolicy"),
        ("gat", {"algorithm": "recurrent_ppo"}, "MultiInputLstmPolicy"),
        ("gat", {"policy": "own.policies:Own"}, "own.policies:Own"),
        ({"name": "wide", "policy": "own.policies:Own"}, {}, "own.policies:Own"),
        ("own.networks:Net", {}, "MlpPolicy"),
        ("own.networks:Net", {"policy": "CnnPolicy"}, "CnnPolicy"),
    ],
)
def test_the_policy_that_goes_with_it(architecture: Any, changed: dict[str, Any], policy: str) -> None:
    assert run_file(architecture, **changed).chosen_policy == policy


def test_it_is_identity_and_names_its_extra() -> None:
    assert run_file("gat").identity()["architecture"]["name"] == "gat"
    assert run_file("gat").identity() != run_file("gcn").identity()
    assert run_file("gat").identity() == run_file({"name": "gat"}).identity()
    assert [name for name in ARCHITECTURES if "graphs" in run_file(name).extras] == [
        "full_hgt",
        "vision_free",
        "simplified_hgt",
    ]


# ---------------------------------------------------------------------------------------------------- the observations


def box(*shape: int, most: float = 1.0) -> spaces.Space[Any]:
    return spaces.Box(0, most, shape, np.float32)


@pytest.mark.parametrize(
    ("observations", "why"),
    [
        (box(3), "it sees a Dict with local, global, graph_…, state, and this is a Box"),
        (spaces.Dict({"state": box(3)}), "no key local; they have state"),
        (space(local=spaces.Discrete(3)), "local is Discrete"),
        (space(local=box(7, 7)), "local has the shape (7, 7): give it 3"),
        (space(state=box(2, 2)), "state has the shape (2, 2): give it 1"),
        (space(graph_nodes=box(NODES)), "graph_nodes has the shape (12,): give it 2"),
        (space(graph_edges=box(3, EDGES)), "graph_edges has the shape (3, 30), with 12 nodes"),
        (space(graph_node_mask=box(NODES + 1)), "graph_node_mask has the shape (13,)"),
        (space(graph_edges=box(2, EDGES, most=NODES)), "they must be 0 and at most 11"),
        (space(graph_node_types=box(NODES, most=99)), "graph_node_types has the bounds 0.0 and 99.0"),
    ],
)
def test_observations_that_do_not_fit(observations: spaces.Space[Any], why: str) -> None:
    with pytest.raises(InputError) as caught:
        policy_arguments(run_file("gcn"), observations)
    assert caught.value.field == "architecture" and why in caught.value.fix


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"normalize": True}, "environment.normalize"),
        ({"normalize": {"norm_obs_keys": ["state", "graph_edges"]}}, "environment.normalize"),
        ({"frame_stack": 4}, "environment.frame_stack"),
    ],
)
def test_indices_are_neither_scaled_nor_stacked(changed: dict[str, Any], field: str) -> None:
    given = run_file("gcn", environment={"id": "CartPole-v1", **changed})
    with pytest.raises(InputError) as caught:
        policy_arguments(given, space())
    assert caught.value.field == field
    harmless = {"normalize": {"norm_obs_keys": ["state"]}}
    assert policy_arguments(run_file("gcn", environment={"id": "CartPole-v1", **harmless}), space())


@pytest.mark.parametrize(
    ("architecture", "field", "fix"),
    [
        ({"name": "gat", "kwargs": {"head": 2}}, "architecture.kwargs.head", "did you mean heads"),
        ({"name": "gat", "kwargs": {"heads": 3}}, "architecture", "3 heads"),
        ("no_such_module:Net", "architecture", "no module no_such_module"),
        ("gymnasium:Env", "architecture", "BaseFeaturesExtractor"),
    ],
)
def test_a_network_that_cannot_be_made(architecture: Any, field: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        policy_arguments(run_file(architecture), space())
    assert caught.value.field == field and fix in caught.value.fix


def test_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(NotInstalled, match=r"full_hgt needs torch_geometric.*pip install 'train-cloud\[graphs\]'"):
        load(Architecture(name="full_hgt"))
    assert load(Architecture(name="gcn")) is not None


# -------------------------------------------------------------------------------------------------- what they compute


def sparse(observations: dict[str, Tensor], at: int) -> tuple[Tensor, Tensor]:
    """Nodes and edges of one graph as torch_geometric takes them; an edge that is there twice, once."""
    nodes = int(observations["graph_node_mask"][at].sum())
    edges = observations["graph_edges"][at].long()[:, observations["graph_edge_mask"][at] > 0]
    return observations["graph_nodes"][at, :nodes], torch.unique(edges, dim=1)


@pytest.mark.parametrize("kind", ["gcn", "gat"])
def test_dense_layers_equal_torch_geometrics(kind: str) -> None:
    observations = batch(pad=3.0)
    graphs = read_graphs(observations, Layout(NODES, FEATURES, EDGES, 3, 2))
    torch.manual_seed(2)
    dense: Any
    reference: Any
    if kind == "gcn":
        dense, reference = GraphConvolution(FEATURES, 8), GCNConv(FEATURES, 8)
        weights = {"lin.weight": dense.linear.weight, "bias": dense.bias}
    else:
        dense, reference = GraphAttention(FEATURES, 8, 2), GATConv(FEATURES, 4, heads=2)
        sides = {"att_src": dense.source.unsqueeze(0), "att_dst": dense.target.unsqueeze(0)}
        weights = {"lin.weight": dense.linear.weight, "bias": dense.bias, **sides}
    dense.bias.data.normal_()
    reference.load_state_dict(weights)
    found = dense(graphs.nodes, adjacency(graphs))
    for at in range(len(found)):
        nodes, edges = sparse(observations, at)
        expected = reference(nodes, edges)
        assert torch.allclose(found[at, : len(nodes)], expected, atol=1e-5, rtol=0)
        assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", READS_GRAPHS)
def test_what_stands_in_the_padding_makes_no_difference(name: str) -> None:
    network = extractor(name)
    first, second = network(batch()), network(batch(pad=7.0))
    assert torch.equal(first, second)
    # An edge that leads to a padded node is none.
    observations = batch()
    observations["graph_edge_mask"][:, 16] = 1
    observations["graph_edges"][:, :, 16] = torch.tensor([0.0, NODES - 1])
    if name != "mlp_baseline":
        assert torch.equal(network(observations), first)
    nan = batch(pad=float("nan"))
    for key in ("graph_edges", "graph_node_types", "graph_edge_types"):
        nan[key] = batch(pad=2.0)[key]
    assert torch.equal(network(nan), first)


@pytest.mark.parametrize("name", [name for name in READS_GRAPHS if name != "mlp_baseline"])
def test_the_order_of_nodes_and_the_room_for_them_make_no_difference(name: str) -> None:
    observations, network = batch(), extractor(name)
    expected = network(observations)
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(3))  # of padded ones too
    place = order.argsort()
    moved = dict(observations)
    for key in ("graph_nodes", "graph_node_mask", "graph_node_types"):
        moved[key] = observations[key][:, order]
    moved["graph_edges"] = place[observations["graph_edges"].long()].float()
    assert torch.allclose(network(moved), expected, atol=1e-5)
    wider = extractor(name, space(NODES + 9, EDGES + 9))
    wider.load_state_dict(network.state_dict())
    more = {
        key: torch.nn.functional.pad(value, [0, 9] if key != "graph_nodes" else [0, 0, 0, 9])
        for key, value in observations.items()
        if key.startswith("graph_")
    }
    assert torch.allclose(wider({**observations, **more}), expected, atol=1e-5)


@pytest.mark.parametrize("name", READS_GRAPHS)
def test_graphs_change_the_result_and_empty_ones_give_finite_gradients(name: str) -> None:
    network = extractor(name)
    assert not torch.equal(network(batch()), network(batch(nodes=3, edges=2)))
    for nodes, edges in ((0, 0), (1, 0), (NODES, 0), (NODES, EDGES)):
        network.zero_grad()
        found = network(batch(nodes=nodes, edges=edges))
        found.sum().backward()
        assert found.shape == (4, 16) and torch.isfinite(found).all()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", READS_GRAPHS)
def test_types_matter_to_those_that_see_them(name: str) -> None:
    network, observations = extractor(name), batch()
    other = {**observations, "graph_edge_types": 1 - observations["graph_edge_types"]}
    assert torch.equal(network(observations), network(other)) == (name in ("gat", "gcn", "simplified_hgt"))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_same_bits_each_time(name: str) -> None:
    gradients = []
    for _ in range(3):
        network = extractor(name)
        network(batch(16)).square().sum().backward()
        gradients.append([part.grad.clone() for part in network.parameters() if part.grad is not None])
    for other in gradients[1:]:
        assert all(torch.equal(*pair) for pair in zip(gradients[0], other, strict=True))


# ---------------------------------------------------------------------------------------------------- in a run, by name

OWN = """
import gymnasium, numpy as np, torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

class Net(BaseFeaturesExtractor):
    def __init__(self, observation_space, size=6):
        super().__init__(observation_space, size)
        self.layer = torch.nn.Linear(observation_space.shape[0], size)

    def forward(self, observations):
        return self.layer(observations)
"""


@pytest.mark.parametrize(
    ("architecture", "algorithm"),
    [
        ({"name": "own_networks:Net", "kwargs": {"size": 9}, "policy_kwargs": {"net_arch": [8]}}, "ppo"),
        ({"name": "own_networks:Net", "kwargs": {"size": 9}}, "dqn"),
        (
            {
                "name": "by hand",
                "policy_kwargs": {
                    "net_arch": [8],
                    "features_extractor_class": "own_networks:Net",
                    "features_extractor_kwargs": {"size": 9},
                },
            },
            "ppo",
        ),
    ],
)
def test_a_network_of_ones_own(
    architecture: Any, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hyperparameters = {"n_steps": 8, "batch_size": 8} if algorithm == "ppo" else {"buffer_size": 100}
    built = build_model(run_file(architecture, algorithm=algorithm, hyperparameters=hyperparameters))
    try:
        policy: Any = built.model.policy
        features = policy.features_extractor if algorithm == "ppo" else policy.q_net.features_extractor
        assert type(features).__name__ == "Net" and features.layer.out_features == 9
        if algorithm == "ppo":
            assert policy.net_arch == [8]
    finally:
        built.close()


def test_listed_for_observations_that_only_one_can_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    (tmp_path / "own_networks.py").write_text(OWN)
    path.write_text(
        json.dumps(
            {
                "run_id": "a-run",
                "algorithm": "ppo",
                "total_timesteps": 100,
                "save_frequency": 100,
                "code": {"folder": str(tmp_path)},
                "environment": {"id": "CartPole-v1"},
                "architecture": "own_networks:Net",
            }
        )
    )
    assert main(["architectures", str(path), "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) == {*ARCHITECTURES, "own_networks:Net"}
    own = found.pop("own_networks:Net")
    assert own["parameters"] == 30 and own["act_ms"] > 0 and own["learn_ms"] > 0 and own["because"] is None
    assert all("this is a Box" in each["because"] and each["parameters"] is None for each in found.values())
    assert main(["architectures", str(path)]) == 0
    assert "own_networks:Net" in capsys.readouterr().out
