"""Hooks come off, and the statistics they gather are those of the activations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.train.activations import ActivationStats
from miniai.train.callback import Callback, CallbackError
from miniai.train.data import Loader
from miniai.train.hooks import Hook, Hooks, HooksCallback
from miniai.train.learner import Learner

DATA = torch.randn(16, 4, generator=make_generator(1))


def make_learner(*callbacks: Callback) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    valid = Loader(DATA, 8, seed=0, shuffle=False)
    return Learner(model, Loader(DATA, 4, seed=0), objective, optimizer, valid=valid, callbacks=callbacks)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())


def test_a_hook_sees_inputs_and_outputs_may_replace_them_and_comes_off_after_an_error() -> None:
    layer = nn.Linear(4, 4)

    def double(hook: Hook, module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        hook.seen = (inputs[0], outputs)
        return 2 * outputs

    hook = Hook(layer, double)
    out = layer(DATA)
    assert hook.seen[0] is DATA
    assert torch.equal(out, 2 * hook.seen[1])
    hook.remove()
    hook.remove()
    assert torch.equal(layer(DATA), hook.seen[1])

    def look_and_fail() -> None:
        with Hooks([layer, nn.ReLU()], double) as hooks:
            assert (len(hooks), n_hooks(layer)) == (2, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert n_hooks(layer) == 0


def test_a_backward_hook_sees_the_gradients() -> None:
    layer = nn.Linear(4, 1)
    seen: list[Tensor] = []
    with Hook(layer, lambda hook, module, inputs, outputs: seen.append(outputs[0]), backward=True):
        (3 * layer(DATA.clone().requires_grad_())).sum().backward()
    assert torch.equal(seen[0], torch.full((16, 1), 3.0))


def test_the_callbacks_hooks_look_when_they_should_and_are_gone_after_the_fit() -> None:
    calls: list[tuple[bool, str]] = []

    def note(hook: Hook, module: nn.Module, inputs: Any, outputs: Any) -> None:
        calls.append((module.training, hook.name))

    learner = make_learner(HooksCallback(note, lambda module: isinstance(module, nn.Linear), every=2))
    learner.fit(1)
    assert calls == [(True, "0"), (True, "2")] * 2
    assert n_hooks(learner.model) == 0
    calls.clear()
    both = HooksCallback(note, lambda module: isinstance(module, nn.ReLU), in_validation=True)
    make_learner(both).fit(1)
    assert calls == [(True, "1")] * 4 + [(False, "1")] * 2


def test_the_callbacks_hooks_come_off_after_an_error_in_another_callback() -> None:
    class Clumsy(Callback):
        def after_backward(self, learner: Learner) -> None:
            raise ZeroDivisionError

    learner = make_learner(HooksCallback(lambda *given: None), Clumsy())
    with pytest.raises(CallbackError):
        learner.fit(1)
    assert n_hooks(learner.model) == 0


def test_an_error_in_a_callbacks_hook_names_the_callback() -> None:
    def fail(hook: Hook, module: nn.Module, inputs: Any, outputs: Any) -> None:
        raise ZeroDivisionError("by 0")

    learner = make_learner(HooksCallback(fail))
    with pytest.raises(CallbackError, match="callback HooksCallback failed in observe: ZeroDivisionError: by 0"):
        learner.fit(1)
    assert n_hooks(learner.model) == 0


def test_activation_stats_are_those_of_the_outputs() -> None:
    kept: list[Tensor] = []
    keep = HooksCallback(
        lambda hook, module, inputs, outputs: kept.append(outputs.detach()), lambda m: type(m) is nn.ReLU
    )
    stats = ActivationStats(lambda module: type(module) in (nn.ReLU, nn.Linear), bins=5, limit=1)
    make_learner(keep, stats).fit(2)
    assert stats.names == ["0", "1", "2"]
    assert stats.means().shape == (3, 8)
    outputs = torch.stack(kept)
    assert torch.allclose(stats.means()[1], outputs.mean(dim=(1, 2)), atol=1e-6)
    assert torch.allclose(stats.deviations()[1], outputs.flatten(1).std(dim=1), atol=1e-6)
    for step, values in enumerate(kept):
        expected = [((values >= i / 5) & (values < (i + 1) / 5)).sum().item() for i in range(4)]
        assert stats.histograms()[1, step].tolist() == [*expected, (values >= 0.8).sum().item()]
        assert stats.dead_shares()[1, step].item() == pytest.approx((values < 0.2).float().mean().item())
    assert torch.equal(stats.histograms().sum(-1)[1], torch.full((8,), 24.0))


def test_a_network_of_dead_units_shows_as_dead() -> None:
    learner = make_learner(stats := ActivationStats(lambda module: isinstance(module, nn.ReLU)))
    nn.init.constant_(learner.model[0].bias, -100.0)
    learner.fit(1)
    assert stats.dead_shares().tolist() == [[1.0] * 4]


def test_a_second_fit_goes_on_with_the_statistics_of_the_first() -> None:
    stats = ActivationStats(every=2)
    learner = make_learner(stats)
    learner.fit(1)
    learner.fit(3)
    assert stats.means().shape == (3, 6)


def test_the_three_plots_are_png_files_of_their_own(tmp_path: Path) -> None:
    stats = ActivationStats()
    with pytest.raises(ValueError, match="no activations"):
        stats.plot_dead(tmp_path / "none.png")
    make_learner(stats).fit(1)
    names = ("stats", "histograms", "dead")
    plots = [getattr(stats, f"plot_{name}")(tmp_path / f"{name}.png") for name in names]
    assert len({plot.png for plot in plots}) == 3
    assert all(
        DisplayFormatter().format(plot)[0]["image/png"] == plot.png for plot in plots
    )  # as a notebook shows them
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
            assert image.convert("L").getextrema()[0] < 100  # something is drawn
