"""Damaged clothes restored: a network that says nothing is, by EDM, the exact denoiser of normal data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from miniai.base.configs import config_to_dict
from miniai.base.files import write_json
from miniai.cli import run
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel
from miniai.recipes.fashion import CONFIG, save_model
from miniai.recipes.fashion_diffusion_config import RECIPES
from miniai.recipes.fashion_latent import FashionLatentConfig
from miniai.recipes.fashion_restore import DAMAGES, restore, whole
from miniai.recipes.unet_stage import init_unet

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"


def silent(folder: Path) -> UNet2DModel:
    """A finished training in `folder` whose network answers 0: by EDM's equation 7 the best denoiser of pixels that are
    normal around 0, of the recipe's `sigma_data`."""
    model = UNet2DConfig(
        sample_size=14,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    network = init_unet(UNet2DModel(model))
    torch.nn.init.zeros_(network.conv_out.weight)
    torch.nn.init.zeros_(network.conv_out.bias)
    folder.mkdir()
    write_json(folder / CONFIG, config_to_dict(replace(RECIPES["edm"], model=model)))
    save_model(network, folder)
    return network.eval()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_restored_would_measure_as_it_was_measured(damage: str, tmp_path: Path) -> None:
    network = silent(tmp_path / "run")
    config = replace(RECIPES["edm"], model=network.config)
    truth = 0.7 * torch.randn(4, 4, 14, 14, generator=torch.Generator().manual_seed(0))  # of the network's own prior
    restored, observed, operator = restore(
        network, config, truth, damage, sampler="euler_a", steps=12, noise=0.03, seed=0
    )
    distance = (operator(restored) - observed).square().mean().sqrt()
    assert distance < 0.06  # the noise of the measurement is all that may be between them
    unlike = operator(whole(0.7 * torch.randn(4, 4, 14, 14), config))
    assert (unlike - observed).square().mean().sqrt() > 2 * distance


def test_the_command_writes_a_sheet_for_each_damage_and_prints_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent(tmp_path / "run")
    options = ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--data", str(DATA), "--n", "3"]
    command = ["evaluate", "fashion-restore", *options, "--steps", "4"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "restored.json").read_text())
    assert [one["damage"] for one in found] == list(DAMAGES)
    for one in found:
        row = f"| {one['damage']} | {one['psnr_of_measured']:.2f} dB | {one['psnr_of_restored']:.2f} dB |"
        assert row in printed
        with Image.open(tmp_path / "out" / f"{one['damage']}.png") as sheet:
            assert sheet.width == 3 * (2 * 28 + 8) + 8
    again = found
    assert run([*command, "--damages", "deblurring"]) == 0
    assert json.loads((tmp_path / "out" / "restored.json").read_text()) == again[2:]  # the same seed, the same pictures
    capsys.readouterr()
    assert run([*command, "--damages", "scratches"]) == 2
    assert "unknown damage 'scratches': there are inpainting, super-resolution, deblurring" in capsys.readouterr().err
    assert run([*command, "--noise", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_training_of_latents_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / CONFIG, config_to_dict(FashionLatentConfig()))
    options = ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--data", str(DATA)]
    assert run(["evaluate", "fashion-restore", *options]) == 2
    assert "paints in latents" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
