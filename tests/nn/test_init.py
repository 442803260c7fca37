"""First weights keep the promise that is made for them, as measured; GeneralReLU is what its formula says."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.nn.general_relu import GeneralReLU
from miniai.nn.init import (
    fans,
    glorot_deviation,
    init_glorot,
    init_kaiming,
    kaiming_deviation,
    lsuv,
    measure,
    relu_gain,
)


def test_general_relu_is_plain_leaky_and_capped_relu() -> None:
    x = torch.linspace(-4, 4, 33)
    assert torch.equal(GeneralReLU()(x), F.relu(x))
    assert torch.equal(GeneralReLU(leak=0.2)(x), F.leaky_relu(x, 0.2))
    assert torch.equal(GeneralReLU(cap=2)(x), x.clamp(0, 2))
    both = GeneralReLU(0.1, 0.4, 1.5)
    assert torch.equal(both(x), (F.leaky_relu(x, 0.1) - 0.4).clamp(max=1.5))
    assert "leak=0.1, subtract=0.4, cap=1.5" in repr(both)
    for wrong in ({"leak": -0.1}, {"cap": 0}, {"subtract": 0.4, "cap": -0.4}):
        with pytest.raises(ValueError, match="leak >= 0"):
            GeneralReLU(**wrong)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0, 2), st.floats(-1, 1), st.one_of(st.none(), st.floats(0.05, 5)))
def test_the_gain_is_the_integral_over_the_normal_density(leak: float, subtract: float, above: float | None) -> None:
    relu = GeneralReLU(leak, subtract, None if above is None else above - subtract)

    def integrand(z: float) -> float:
        return float(relu(torch.tensor(z, dtype=torch.float64)) ** 2 * stats.norm.pdf(z))

    kinks = [0.0, 5.0] if above is None else [0.0, above]
    expected = integrate.quad(integrand, -12, 12, points=kinks, limit=200)[0]
    assert relu_gain(relu) ** -2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 5), (6, 4, 3, 3), (6, 2, 5)])
def test_deviations_are_those_of_torch(shape: tuple[int, ...]) -> None:
    weight = torch.empty(shape)
    assert fans(weight) == nn.init._calculate_fan_in_and_fan_out(weight)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    theirs = nn.init.xavier_normal_(torch.empty(shape), gain=2.0, generator=generators[0])
    unit = torch.empty(shape).normal_(generator=generators[1])
    assert torch.allclose(theirs, unit * glorot_deviation(weight, 2.0), atol=1e-6)
    gain = nn.init.calculate_gain("leaky_relu", 0.3)
    assert relu_gain(GeneralReLU(0.3)) == pytest.approx(gain, rel=1e-12)
    assert kaiming_deviation(weight, GeneralReLU(0.3)) == pytest.approx(gain / math.sqrt(fans(weight)[0]))
    assert kaiming_deviation(weight, fan="out") == pytest.approx(1 / math.sqrt(fans(weight)[1]))
    with pytest.raises(ValueError, match="two dimensions"):
        fans(torch.zeros(3))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_drawn_weights_have_the_promised_deviation_and_follow_their_generator(distribution: str) -> None:
    def drawn(seed: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Conv2d(40, 30, 3, groups=2), nn.BatchNorm2d(30))
        return init_kaiming(model, make_generator(seed), relu=GeneralReLU(0.1), distribution=distribution)

    model = drawn(0)
    for layer in (model[0], model[2]):
        assert layer.weight.std().item() == pytest.approx(kaiming_deviation(layer.weight, GeneralReLU(0.1)), rel=0.02)
        assert layer.weight.mean().abs() < 0.02 * layer.weight.std()
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    if distribution == "uniform":
        largest = model[0].weight.abs().max() / model[0].weight.std()
        assert largest.item() == pytest.approx(math.sqrt(3), rel=0.02)
    assert torch.equal(drawn(0)[0].weight, model[0].weight)
    assert not torch.equal(drawn(1)[0].weight, model[0].weight)
    glorot = init_glorot(nn.Linear(300, 100), make_generator(0), distribution=distribution)
    assert glorot.weight.std().item() == pytest.approx(glorot_deviation(glorot.weight), rel=0.02)


def deviations(relu: nn.Module, kaiming: bool, depth: int = 6, width: int = 256) -> Tensor:
    """Of the layers' outputs, root mean square over eight draws of the weights: one draw strays by a third or so."""
    squares = []
    for seed in range(8):
        model = nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(width, width), relu)])
        generator = make_generator(seed)
        model = init_kaiming(model, generator, relu=relu) if kaiming else init_glorot(model, generator)
        x = torch.randn(32, width, generator=generator) / relu_gain(relu)
        found = measure(model, x, choose=lambda module: isinstance(module, nn.Linear))
        squares.append([one.deviation**2 for one in found])
    return torch.tensor(squares).mean(dim=0).sqrt()


@pytest.mark.parametrize("relu", [GeneralReLU(), GeneralReLU(0.1, 0.4), GeneralReLU(0.0, 0.2, 1.0)])
def test_kaiming_keeps_the_variance_through_the_layers_as_promised(relu: GeneralReLU) -> None:
    torch.testing.assert_close(deviations(relu, kaiming=True), torch.ones(6), rtol=0.25, atol=0)


def test_glorot_loses_half_of_the_variance_at_each_relu_and_kaiming_does_not() -> None:
    faded = deviations(GeneralReLU(), kaiming=False)
    expected = 2 ** (-torch.arange(1.0, 7.0) / 2)  # the input was made for Kaiming: its mean square is a half
    torch.testing.assert_close(faded, expected, rtol=0.25, atol=0)


def make_cnn(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    relu = GeneralReLU(0.1, 0.4)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=bias),
        relu,
        nn.Conv2d(8, 16, 3, stride=2, bias=bias),
        GeneralReLU(0.1, 0.4, 6.0),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, 10, bias=bias),
    )


PICTURES = 3 * torch.randn(32, 1, 16, 16, generator=make_generator(4)) + 1


def test_lsuv_brings_every_layer_to_mean_0_and_deviation_1_within_a_thousandth() -> None:
    model = make_cnn()
    reached = lsuv(model, PICTURES)
    assert [one.name for one in reached] == ["0", "2", "6"]
    again = measure(model, PICTURES, choose=lambda module: isinstance(module, (nn.Conv2d, nn.Linear)))
    assert again == reached
    for one in again:
        assert abs(one.mean) < 1e-3
        assert abs(one.deviation - 1) < 1e-3
    assert all(module.training for module in model.modules())


def test_lsuv_brings_the_rectifiers_behind_the_layers_there() -> None:
    model = make_cnn()
    for one in lsuv(model, PICTURES, pairs=[(model[0], model[1]), (model[2], model[3])]):
        assert abs(one.mean) < 1e-3
        assert abs(one.deviation - 1) < 1e-3


def test_lsuv_without_biases_brings_deviations_to_1() -> None:
    assert [one.deviation for one in lsuv(make_cnn(bias=False), PICTURES)] == pytest.approx([1.0] * 3, abs=1e-3)


def test_lsuv_says_which_layer_cannot_settle() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    with pytest.raises(UserError, match="output of 1 stays at mean"):
        lsuv(model, torch.randn(16, 4), pairs=[(model[0], model[1])], max_rounds=5)
    nn.init.zeros_(model[0].bias)
    with pytest.raises(ValueError, match="output of 0 does not vary"):
        lsuv(model, torch.zeros(16, 4))
    with pytest.raises(ValueError, match="not ReLU"):
        lsuv(model, torch.zeros(16, 4), pairs=[(model[1], model[1])])


def test_measure_gives_mean_and_deviation_of_what_a_module_gives_out() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    x = torch.randn(16, 4)
    one, other = measure(model, x)
    out: Tensor = model[0](x)
    assert (one.mean, one.deviation) == (pytest.approx(out.mean().item(), abs=1e-6), pytest.approx(out.std().item()))
    assert (other.mean, other.deviation) == (one.mean, one.deviation)  # in eval mode
    assert len(model[0]._forward_hooks) == 0


class OtherWayRound(nn.Module):
    """Defines its layers in the order opposite to that of the calls, and one that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.unused, self.first = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_lsuv_goes_by_the_order_of_the_calls_and_leaves_alone_what_is_not_called() -> None:
    model, x = OtherWayRound(), torch.randn(64, 4, generator=make_generator(2))
    reached = lsuv(model, x)
    assert [one.name for one in reached] == ["first", "second"]
    assert all(abs(one.mean) < 1e-3 and abs(one.deviation - 1) < 1e-3 for one in reached)
    with pytest.raises(UserError, match="a later pair changes second"):
        lsuv(model, 3 * x, pairs=[(model.second, model.second), (model.first, model.first)])


def test_measure_passes_over_what_gives_out_no_tensor() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    assert [one.name for one in measure(model, torch.randn(6, 4))] == ["0"]
