"""Layers that make their weights ready for a painting, beside PyTorch's own."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mapped_file import read_all, resident
from torch import Tensor, nn

from miniai.base.weights import read_weights, write_weights
from miniai.nn import painting as module
from miniai.nn.gated import GatedLinear
from miniai.nn.packed import can_pack
from miniai.nn.painting import PaintingConv2d, PaintingGatedLinear, PaintingLinear, painting

TILES, PACKED = (2, 192, 32, 32), (2, 192, 8, 6)  # sizes of maps that go one way and the other


def model_of(channels: int = 192) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 224, 3, padding=1))


def error(model: nn.Sequential, x: Tensor) -> float:
    """Of what it paints, relative to its convolution in float64."""
    weight, bias = (tensor.detach().double() for tensor in model[0].parameters())
    expected = F.conv2d(x.double(), weight, bias, padding=1)
    return float((model(x) - expected).norm() / expected.norm())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What weights were made ready for, in order."""
    log: list[Any] = []
    ready = module._Painting.ready

    def ready_and_noted(self: Any, what_for: Any, make: Callable[[Tensor], Any]) -> Any:
        before = self._ready
        weight = ready(self, what_for, make)
        if self._ready is not before:
            log.append(what_for)
        return weight

    monkeypatch.setattr(module._Painting, "ready", ready_and_noted)
    return log


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("size", [TILES, PACKED])
def test_a_weight_is_made_ready_once_and_again_when_it_has_changed(
    size: tuple[int, ...], mode: Callable[[], AbstractContextManager[None]], made: list[Any]
) -> None:
    if size == PACKED and not can_pack():
        pytest.skip("this PyTorch cannot pack weights")
    model, x = model_of(), torch.randn(size)
    with painting(model), mode():
        assert error(model, x) < 1e-5
        assert error(model, x + 1) < 1e-5
        assert made == ["tiles" if size == TILES else (8, 6)]
        model[0].weight.mul_(2)
        assert error(model, x) < 1e-5
        assert len(made) == 2
        model[0].weight.detach().add_(0.01)  # as a LoRA's strength is changed
        assert error(model, x) < 1e-5
        assert len(made) == 3
        model.load_state_dict({name: 0.5 * value for name, value in model.state_dict().items()})
        assert error(model, x) < 1e-5
        assert len(made) == 4
        for n_changes in (5, 6):  # the second is of the same version as the first
            with torch.inference_mode(False):
                model[0].weight = nn.Parameter(torch.randn(224, 192, 3, 3))
            assert error(model, x) < 1e-5
            assert len(made) == n_changes
    assert type(model[0]) is nn.Conv2d
    assert "_ready" not in vars(model[0])
    with torch.no_grad():
        assert error(model, x) < 1e-5
    assert len(made) == 6


@pytest.mark.skipif(not can_pack(), reason="this PyTorch cannot pack weights")
def test_maps_of_other_sizes_get_weights_of_their_own_and_other_numbers_of_pictures_do_not(made: list[Any]) -> None:
    model = model_of()
    with painting(model), torch.no_grad():
        for size in (PACKED, (1, *PACKED[1:]), TILES, (1, *TILES[1:]), (0, *PACKED[1:])):
            x = torch.randn(size)
            assert model(x).shape == (size[0], 224, *size[2:])
            if len(x):
                assert error(model, x) < 1e-5
    # 64 tiles of one picture are not worth the memory of kernels that are carried
    assert made == [(8, 6), "tiles", (32, 32)]


def test_gradients_and_other_ways_to_compute_are_left_to_the_plain_layer(made: list[Any]) -> None:
    model, x = model_of(), torch.randn(TILES)
    with painting(model):
        out = model(x)  # gradients may be asked for
        (grad,) = torch.autograd.grad(out.sum(), model[0].weight, create_graph=True)
        assert grad.shape == model[0].weight.shape
        assert made == []
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                assert model(x).dtype == torch.bfloat16
            assert model(x[0]).shape == (224, 32, 32)
            assert "mkldnn" not in str(torch.jit.trace(model[0], (x,), check_trace=False).graph)
            assert made == []
            model.double()
            assert error(model, x.double()) < 1e-12
            assert made == []
            model.float()
            assert error(model, x) < 1e-5
            assert len(made) == 1
    with torch.inference_mode():
        model = model_of()
        with painting(model):
            assert error(model, x) < 1e-5
            model[0].weight.mul_(3)  # nobody can tell
            assert error(model, x) < 1e-5


@pytest.mark.skipif(not can_pack(), reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", [(2, 77, 24), (3, 24), (0, 24), (2, 3, 5, 24)])
def test_linear_layers_are_made_ready_too(
    gated: bool, bias: bool, shape: tuple[int, ...], made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_WEIGHTS", 24 * 40)
    torch.manual_seed(0)
    layer = GatedLinear(24, 40) if gated else nn.Linear(24, 40, bias=bias)
    if gated and not bias:
        layer.bias = None
    x = torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with painting(layer):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer(x.transpose(0, -2).contiguous().transpose(0, -2)), expected)
            assert made == ["tokens"]
            layer.weight.mul_(2)
            changed = layer(x)
            assert made == ["tokens"] * 2
            with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
                assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), changed, rtol=1e-4, atol=1e-5)
        assert made == ["tokens"] * 2
        vector = layer(torch.ones(24))
        with painting(layer):
            torch.testing.assert_close(layer(torch.ones(24)), vector)


@pytest.mark.skipif(not can_pack(), reason="this PyTorch cannot pack weights")
def test_a_linear_layer_is_made_ready_where_it_has_many_weights_or_many_rows(made: list[Any]) -> None:
    small, large = nn.Linear(64, 64), nn.Linear(640, 640)
    with torch.no_grad(), painting(nn.ModuleList([small, large])):
        for layer, n_rows, n_made in ((small, 8191, 0), (small, 8192, 1), (large, 1, 2)):
            layer(torch.ones(n_rows, layer.in_features))
            assert len(made) == n_made


def test_only_what_it_can_do_is_changed_and_all_is_as_before_even_after_an_error() -> None:
    kept = [
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Embedding(8, 8),
    ]
    changed = [nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8), GatedLinear(8, 8)]
    model = nn.ModuleList([*kept, *changed])
    before, names = [type(one) for one in model], list(model.state_dict())

    def fail() -> None:
        with painting(model):
            forms = [PaintingConv2d, PaintingLinear, PaintingGatedLinear]
            assert [type(one) for one in model] == [*before[: len(kept)], *forms]
            assert list(model.state_dict()) == names
            assert len(list(model.parameters())) == len(names)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [type(one) for one in model] == before


COMPILED = """
import torch
from torch import nn
from miniai.nn import painting as module
from miniai.nn.painting import painting
module._Painting.ready = None  # nothing is to be made ready
graphs = []
def backend(graph, _):
    graphs.append(graph)
    return graph.forward
model = nn.Sequential(nn.Conv2d(192, 224, 3, padding=1), nn.Flatten(2), nn.Linear(1024, 512))
x, compiled = torch.randn(2, 192, 32, 32), torch.compile(model, backend=backend)
with torch.no_grad():
    expected = model(x)
    for _ in range(2):
        with painting(model):
            assert torch.equal(compiled(x), expected)
print("graphs:", len(graphs))
"""


def test_a_compiled_network_is_one_graph_and_stays_it() -> None:
    # In a process of its own: torch.compile cannot read functions whose shapes the tests check at every call.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.split() == ["graphs:", "1"], done.stderr


def test_a_painting_in_another_thread_ends_without_disturbing_this_one(made: list[Any]) -> None:
    model, x = model_of(), torch.randn(TILES)

    def paint_elsewhere() -> None:
        with painting(model), torch.no_grad():
            errors.append(error(model, x))

    errors: list[float] = []
    with painting(model), torch.no_grad():
        thread = threading.Thread(target=paint_elsewhere)
        thread.start()
        thread.join()
        assert type(model[0]) is PaintingConv2d
        assert error(model, x) < 1e-5
        assert made == ["tiles"]
    assert errors[0] < 1e-5
    assert type(model[0]) is nn.Conv2d
    assert not {"_ready", "_n_paintings"} & set(vars(model[0]))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are in memory")
def test_pages_of_a_mapped_weight_go_back_when_it_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, model_of().state_dict())
    model = model_of()
    model.load_state_dict(read_weights(path), assign=True)

    read_all(path, model[0].weight)
    x = torch.randn(TILES)
    with painting(model), torch.no_grad():
        out = model(x)
        assert resident(path) < 0.1 * model[0].weight.nbytes
        assert error(model, x) < 1e-5  # they are read from the file again
        assert torch.equal(model(x), out)
        model[0].weight.mul_(2)  # written to: its pages stay
        assert torch.allclose(
            model(x) - model[0].bias[:, None, None], 2 * (out - model[0].bias[:, None, None]), atol=1e-3
        )
        assert error(model, x) < 1e-5
