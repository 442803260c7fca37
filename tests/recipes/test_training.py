"""Which weights a stage's optimizer trains, and how; and by which convolutions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_pipeline

from miniai.nn.learning import LearningConv2d
from miniai.recipes.text_to_image_config import TINY
from miniai.recipes.training import StageRun, make_optimizer, run_stage
from miniai.recipes.unet_stage import TextToImageModel
from miniai.train.data import TensorDataset


@pytest.fixture
def model() -> TextToImageModel:
    pipeline = tiny_pipeline()
    return TextToImageModel(pipeline.unet.requires_grad_(True), pipeline.text_encoder, train_text=True)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_weight_that_learns_is_in_one_group_and_vectors_do_not_decay(name: str, model: TextToImageModel) -> None:
    frozen = model.unet.conv_in.weight.requires_grad_(False)
    optimizer = make_optimizer(model, replace(TINY.unet_stage, optimizer=name, weight_decay=0.5))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    expected = [weight for weight in model.parameters() if weight is not frozen]
    assert sorted(map(id, weights)) == sorted(map(id, expected))
    for group in optimizer.param_groups:
        assert {weight.ndim < 2 for weight in group["params"]} == {group["weight_decay"] == 0.0}


def test_muon_takes_matrices_and_kernels_and_leaves_embeddings_to_adamw(model: TextToImageModel) -> None:
    optimizer = make_optimizer(model, replace(TINY.unet_stage, optimizer="muon"))
    by_muon = {id(weight) for group in optimizer.param_groups if group["orthogonal"] for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in by_muon}
    assert {"unet.conv_in.weight", "unet.mid_block.resnets.0.conv1.weight"} <= names
    assert "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight" in names
    assert {"unet.time_embedding.linear_1.weight", "unet.down_blocks.0.resnets.0.time_emb_proj.weight"} <= names
    rows = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    assert rows == {f"text_encoder.text_model.embeddings.{kind}_embedding" for kind in ("token", "position")}
    assert not [name for name in names if name.removesuffix(".weight") in rows]
    assert not [name for name in names if "norm" in name or name.endswith("bias")]


def test_muon_steps_are_as_large_as_adamws(model: TextToImageModel) -> None:
    weight = model.unet.mid_block.resnets[0].conv1.weight
    for name, expected in (("adamw", 0.01), ("muon", 0.002)):  # torch's "match_rms_adamw": 0.2 of the rate
        before = weight.detach().clone()
        stage = replace(TINY.unet_stage, optimizer=name, learning_rate=0.01, weight_decay=0.0)
        optimizer = make_optimizer(model, stage)
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        step = (weight.detach() - before).square().mean().sqrt()
        assert step == pytest.approx(expected, rel=0.2)


def test_a_stage_trains_by_winograds_way_and_leaves_plain_layers(tmp_path: Path) -> None:
    model, seen = torch.nn.Conv2d(2, 2, 3, padding=1), set()

    def objective(model: torch.nn.Module, batch: tuple[torch.Tensor], generator: torch.Generator) -> dict[str, Any]:
        seen.add(type(model))
        return {"loss": (model(batch[0]) - batch[0]).square().mean()}

    run = StageRun("convolution", tmp_path, torch.device("cpu"), None, 3)
    run_stage(run, TINY.unet_stage, model, TensorDataset((torch.randn(8, 2, 4, 4),)), objective, seed=0)
    assert seen == {LearningConv2d}
    assert type(model) is torch.nn.Conv2d
