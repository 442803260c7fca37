"""Muon, against the singular value decomposition and PyTorch's AdamW."""

from pathlib import Path

import pytest
import torch
from torch import nn

from miniai.base.seeds import make_generator
from miniai.train import muon
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.muon import QUINTIC, Muon, orthogonalised
from miniai.train.schedule import Budget


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_singular_vectors_stay_and_singular_values_come_near_1(shape: tuple[int, int]) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=make_generator(0)).double(), full_matrices=False)
    values = torch.linspace(1, 0.05, min(shape)).double()
    found = orthogonalised((u * values @ vh).float(), 5).double()
    inside = u.T @ found @ vh.T
    assert torch.allclose(inside - inside.diag().diag(), torch.zeros_like(inside), atol=0.03)  # bfloat16
    assert inside.diag().min() > 0.6
    assert inside.diag().max() < 1.25
    a, b, c = QUINTIC
    values = values / values.norm()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    assert torch.allclose(inside.diag(), values, atol=0.1)  # rounded to bfloat16 five times over


def test_long_rows_are_made_orthogonal_alike_by_way_of_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "training_dtype", lambda device: torch.float32)
    wide = torch.randn(16, 100, generator=make_generator(8)) * torch.logspace(0, -2, 16)[:, None]
    a, b, c = QUINTIC
    expected = wide.double() / wide.double().norm()
    for _ in range(5):
        square = expected @ expected.T
        expected = a * expected + (b * square + c * square @ square) @ expected
    assert torch.allclose(orthogonalised(wide, 5).double(), expected, atol=1e-3)
    assert torch.allclose(orthogonalised(wide.T, 5).double(), expected.T, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_matrix_of_a_stack_is_made_orthogonal_as_it_is_alone(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "training_dtype", lambda device: dtype)
    stack = torch.randn(3, *shape, generator=make_generator(9))
    alone = torch.stack([orthogonalised(matrix, 5) for matrix in stack])
    assert torch.allclose(orthogonalised(stack, 5), alone, atol=1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("keep_size", [True, False])
def test_kernels_in_stacks_as_on_a_gpu_learn_as_each_alone(keep_size: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(4, 3, 3, 3), (4, 27), (6, 4), (4, 3, 3, 3), (6, 4), (6, 9)]  # the first two are one shape as matrices

    def learned() -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.randn(shape, generator=make_generator(1, i))) for i, shape in enumerate(shapes)]
        optimizer = Muon([{"params": weights, "orthogonal": True, "keep_size": keep_size, "lr": 0.1}])
        for k in range(3):
            for i, weight in enumerate(weights):
                weight.grad = torch.randn(weight.shape, generator=make_generator(2, i, k))
            optimizer.step()
        return weights

    alone = learned()
    monkeypatch.setattr(muon, "_stacks", muon.by_shape)
    assert [len(stack) for stack in muon.by_shape(alone)] == [3, 2, 1]
    for one, other in zip(alone, learned(), strict=True):
        assert torch.allclose(one, other, atol=0.02)  # bfloat16, where that is fast


@pytest.mark.parametrize("n_iterations", [1, 5])
def test_the_step_of_a_matrix_is_that_of_pytorchs_muon(n_iterations: int) -> None:
    gradient = torch.randn(6, 20, generator=make_generator(6))
    weight = nn.Parameter(torch.zeros(6, 20))
    weight.grad = gradient.clone()
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, ns_steps=n_iterations).step()
    assert torch.allclose(-weight, orthogonalised(gradient, n_iterations), atol=0.05)  # bfloat16


def test_a_kernel_keeps_its_size_and_steps_by_its_rate() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=make_generator(1)))
    weight.grad = torch.randn(4, 3, 3, 3, generator=make_generator(2))
    start = (weight / weight.norm() * 2).detach()  # four filters of norm 1
    Muon([{"params": [weight], "orthogonal": True, "lr": 0.2}]).step()
    step = (start - weight.detach()) / 0.2
    u, _, vh = torch.linalg.svd(weight.grad.reshape(4, -1), full_matrices=False)
    along = (u.T @ step.reshape(4, -1) @ vh.T).diag()
    assert along.min() > 0.6
    assert along.max() < 1.25


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_steps_of_adamws_size_with_decay_are_those_of_pytorchs_muon(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 120).reshape(shape)) for _ in range(2))
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.5}
    group = {"params": [ours], "orthogonal": True, "keep_size": False, "n_iterations": 5, **settings}
    start = ours.detach().clone()
    optimizers = [Muon([group]), torch.optim.Muon([theirs], ns_steps=5, adjust_lr_fn="match_rms_adamw", **settings)]
    for k in range(5):
        gradient = torch.randn(shape, generator=make_generator(7, k))
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # theirs is in bfloat16


def test_all_other_weights_learn_as_by_adamw() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2))
    settings = {"lr": 0.05, "betas": (0.9, 0.98), "weight_decay": 0.1}
    optimizers = [Muon([{"params": [ours], **settings}]), torch.optim.AdamW([theirs], **settings)]
    for k in range(5):
        gradient = torch.randn(3, 4, generator=make_generator(3, k))
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def trained(folder: Path, n_steps: int) -> nn.Module:
    """A small network after `n_steps` in all, from the checkpoint in `folder` if it has one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
    model.to(memory_format=torch.channels_last)
    kernels = [model[2].weight]
    others = [weight for weight in model.parameters() if weight is not kernels[0]]
    learner = Learner(
        model,
        Loader(torch.randn(12, 3, 8, 8, generator=make_generator(5)), 4, seed=0),
        lambda model, x, generator: (model(x) * x.mean()).exp().mean(),
        Muon([{"params": kernels, "orthogonal": True, "lr": 0.1}, {"params": others, "lr": 0.01}]),
        callbacks=[Budget(steps=n_steps), Checkpoint(folder)],
    )
    resume(learner, folder)
    learner.fit()
    return model


def test_a_training_that_goes_on_from_its_file_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 7).state_dict()
    half = trained(tmp_path / "cut", 4).state_dict()
    cut = trained(tmp_path / "cut", 7).state_dict()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not torch.equal(whole["2.weight"], half["2.weight"])


def test_a_state_from_before_keep_size_was_named_keeps_the_size() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    old = Muon([{"params": [weight], "orthogonal": True}]).state_dict()
    del old["param_groups"][0]["keep_size"]
    optimizer = Muon([{"params": [weight], "orthogonal": True, "keep_size": False}])
    optimizer.load_state_dict(old)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.param_groups[0]["keep_size"] is True
