"""Changes of low rank while they learn: PEFT and the closed form are the oracles."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from miniai.nn.gated import GatedLinear
from miniai.nn.low_rank import Adapters, LowRankLayers


class Network(nn.Module):
    """A layer of each kind in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pointwise = nn.Conv2d(8, 8, 1, bias=False)
        self.gated = GatedLinear(8, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gated(self.pointwise(self.conv(x)).flatten(2).transpose(1, 2)))


ALL = ["conv", "pointwise", "gated", "last"]


def network_and_changes(endings: list[str] = ALL, alpha: float | None = None) -> tuple[Network, LowRankLayers]:
    torch.manual_seed(0)
    network = Network()
    changes = LowRankLayers(network, endings, rank=2, alpha=alpha)
    for layer in changes.layers:
        nn.init.normal_(layer.up)
    return network, changes


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_at_first_nothing_is_changed() -> None:
    network = Network()
    changes = LowRankLayers(network, ALL, rank=64)
    with changes.attached(network):
        inside = network(pictures())
    assert torch.equal(inside, network(pictures()))
    for layer in changes.layers:  # as PEFT's: uniform within 1 / sqrt(fan_in)
        assert 0.95 < layer.down.abs().max() * layer.down[0].numel() ** 0.5 <= 1


def test_what_is_learned_is_what_is_added_to_the_weights() -> None:
    network, changes = network_and_changes(alpha=3)
    before = network(pictures())
    with changes.attached(network):
        attached = network(pictures())
    assert torch.equal(network(pictures()), before)
    adapters = Adapters({"it": changes.changes()}, {"it": 1.0})
    adapters.apply(network)
    assert (attached - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(network(pictures()), attached, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_peft_and_the_networks_own_weights_have_none() -> None:
    network, changes = network_and_changes(["conv", "pointwise", "last"], alpha=3)
    theirs = Network()
    theirs.load_state_dict(network.state_dict())
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["conv", "pointwise", "last"]), theirs)
    for name in changes.names:
        layer, change = theirs.get_submodule(name), changes[name]
        layer.lora_A["default"].weight.data.copy_(change.down)
        layer.lora_B["default"].weight.data.copy_(change.up.view(layer.lora_B["default"].weight.shape))
    with changes.attached(network):
        network(pictures()).square().sum().backward()
    theirs(pictures()).square().sum().backward()
    for name in changes.names:
        layer, change = theirs.get_submodule(name), changes[name]
        torch.testing.assert_close(change.down.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
        of_up = layer.lora_B["default"].weight.grad.flatten(1)
        torch.testing.assert_close(change.up.grad, of_up, rtol=1e-4, atol=1e-4)
    assert all(weight.grad is None for weight in network.parameters())


def test_an_error_inside_leaves_the_network_as_it_was() -> None:
    network, changes = network_and_changes()
    before = network(pictures())
    with pytest.raises(ZeroDivisionError), changes.attached(network):
        _ = 1 / 0
    assert torch.equal(network(pictures()), before)


def test_only_layers_whose_whole_name_ends_so_are_changed() -> None:
    network = nn.ModuleDict({"to_out": nn.ModuleList([nn.Linear(2, 2)]), "into_out": nn.ModuleList([nn.Linear(2, 2)])})
    assert LowRankLayers(network, ["to_out.0"], rank=1).names == ["to_out.0"]
    with pytest.raises(ValueError, match="no layer's name ends in to_q, to_k"):
        LowRankLayers(network, ["to_q", "to_k"], rank=1)
