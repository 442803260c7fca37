"""Convolutions that make their weights ready for a painting, beside PyTorch's own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.base.weights import read_weights, write_weights
from miniai.nn import painting as module
from miniai.nn.packed import can_pack
from miniai.nn.painting import PaintingConv2d, painting

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
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made ready, in order."""
    log: list[str] = []

    def noted(what: str, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_and_note(*arguments: object) -> Tensor:
            log.append(what)
            return make(*arguments)

        return make_and_note

    monkeypatch.setattr(module, "carried_kernels", noted("carried", module.carried_kernels))
    ready = PaintingConv2d.ready

    def ready_and_noted(self: PaintingConv2d, side: tuple[int, ...] | None) -> Tensor:
        before = self._ready
        weight = ready(self, side)
        if side is not None and self._ready is not before:
            log.append(f"packed {side}")
        return weight

    monkeypatch.setattr(PaintingConv2d, "ready", ready_and_noted)
    return log


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("size", [TILES, PACKED])
def test_a_weight_is_made_ready_once_and_again_when_it_has_changed(
    size: tuple[int, ...], mode: Callable[[], AbstractContextManager[None]], made: list[str]
) -> None:
    if size == PACKED and not can_pack():
        pytest.skip("this PyTorch cannot pack weights")
    model, x = model_of(), torch.randn(size)
    with painting(model), mode():
        assert error(model, x) < 1e-5
        assert error(model, x + 1) < 1e-5
        assert made == ["carried" if size == TILES else "packed (8, 6)"]
        model[0].weight.mul_(2)
        assert error(model, x) < 1e-5
        assert len(made) == 2
        model[0].weight.detach().add_(0.01)  # as a LoRA's strength is changed
        assert error(model, x) < 1e-5
        assert len(made) == 3
        model.load_state_dict({name: 0.5 * value for name, value in model.state_dict().items()})
        assert error(model, x) < 1e-5
        assert len(made) == 4
        with torch.inference_mode(False):
            model[0].weight = nn.Parameter(torch.randn(224, 192, 3, 3))
        assert error(model, x) < 1e-5
        assert len(made) == 5
    assert type(model[0]) is nn.Conv2d
    assert "_ready" not in vars(model[0])
    with torch.no_grad():
        assert error(model, x) < 1e-5
    assert len(made) == 5


@pytest.mark.skipif(not can_pack(), reason="this PyTorch cannot pack weights")
def test_maps_of_other_sizes_get_weights_of_their_own_and_other_numbers_of_pictures_do_not(made: list[str]) -> None:
    model = model_of()
    with painting(model), torch.no_grad():
        for size in (PACKED, (1, *PACKED[1:]), TILES, (1, *TILES[1:]), (0, *PACKED[1:])):
            x = torch.randn(size)
            assert model(x).shape == (size[0], 224, *size[2:])
            if len(x):
                assert error(model, x) < 1e-5
    # 64 tiles of one picture are not worth the memory of kernels that are carried
    assert made == ["packed (8, 6)", "carried", "packed (32, 32)"]


def test_gradients_and_other_ways_to_compute_are_left_to_the_plain_layer(made: list[str]) -> None:
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


def test_only_what_it_can_do_is_changed_and_all_is_as_before_even_after_an_error() -> None:
    kept = [
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    ]
    model = nn.ModuleList([*kept, nn.Conv2d(8, 8, 3, padding=1)])
    before, names = [type(one) for one in model], list(model.state_dict())

    def fail() -> None:
        with painting(model):
            assert [type(one) for one in model] == [*before[:-1], PaintingConv2d]
            assert list(model.state_dict()) == names
            assert len(list(model.parameters())) == len(names)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [type(one) for one in model] == before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are in memory")
def test_pages_of_a_mapped_weight_go_back_when_it_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, model_of().state_dict())
    model = model_of()
    model.load_state_dict(read_weights(path), assign=True)

    def resident() -> int:
        """Bytes of the file that are in memory."""
        inside, total = False, 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0] and not line.split()[0].endswith(":"):
                inside = line.endswith(path.name)
            elif inside and line.startswith("Rss:"):
                total += 1024 * int(line.split()[1])
        return total

    model[0].weight.detach().sum()
    assert resident() > 0.9 * model[0].weight.nbytes
    x = torch.randn(TILES)
    with painting(model), torch.no_grad():
        out = model(x)
        assert resident() < 0.1 * model[0].weight.nbytes
        assert error(model, x) < 1e-5  # they are read from the file again
        assert torch.equal(model(x), out)
        model[0].weight.mul_(2)  # written to: its pages stay
        assert torch.allclose(
            model(x) - model[0].bias[:, None, None], 2 * (out - model[0].bias[:, None, None]), atol=1e-3
        )
        assert error(model, x) < 1e-5
