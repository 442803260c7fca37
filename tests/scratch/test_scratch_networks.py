"""The parts of Stable Diffusion on the standard library alone, each against the one above it: networks, noise levels,
start noise."""

import ast
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from saved_model import PROMPT, saved
from scratch_oracle import assert_same, draw, ours

from miniai.base.seeds import make_generator
from miniai.diffusion.ladder import LadderRule, make_ladder
from miniai.diffusion.schedule import NoiseSchedule
from miniai.diffusion.schedule import ScheduleConfig as UpperScheduleConfig
from miniai.nn import unet as upper_unet
from miniai.nn.autoencoder import VAEConfig as UpperVAEConfig
from miniai.nn.clip import CLIPTextConfig as UpperCLIPTextConfig
from miniai.nn.unet import UNet2DConditionModel as UpperUNet
from miniai.nn.unet import UNetConfig as UpperUNetConfig
from miniai.scratch import ladder
from miniai.scratch.autoencoder import ONLY as VAE_ONLY
from miniai.scratch.autoencoder import Decoder, VAEConfig
from miniai.scratch.clip import CLIPTextConfig, CLIPTextModel
from miniai.scratch.folder import Weights, read_config
from miniai.scratch.generate import GenerateRequest
from miniai.scratch.ladder import ScheduleConfig
from miniai.scratch.mersenne import randn
from miniai.scratch.tensor import Tensor
from miniai.scratch.tokenizer import CLIPTokenizer
from miniai.scratch.unet import ONLY as UNET_ONLY
from miniai.scratch.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.pipeline import StableDiffusionPipeline as UpperPipeline

ABOVE = Path(upper_unet.__file__).parent
BELOW = Path(ladder.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    saved(path)
    return path


@pytest.fixture(scope="module")
def upper(folder: Path) -> UpperPipeline:
    return UpperPipeline.from_pretrained(folder)


def classes_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("name", ["blocks", "transformer", "unet", "clip", "autoencoder"])
def test_a_network_has_the_names_of_the_one_above(name: str) -> None:
    files = {"blocks": ["layers"], "unet": ["layers", "unet_blocks", "unet"]}.get(name, ["layers", name])
    above = {one for file in files for one in classes_of(ABOVE / f"{file}.py")}
    here = classes_of(BELOW / f"{name}.py")
    assert len(here) > 2
    assert here <= above


def test_a_config_has_the_fields_of_the_one_above_and_their_defaults() -> None:
    about_float16 = {"upcast_attention": False, "force_upcast": True}
    for here, above in ((UNetConfig(), UpperUNetConfig()), (VAEConfig(), UpperVAEConfig())):
        assert asdict(here) | about_float16 == asdict(above) | about_float16
    assert asdict(CLIPTextConfig()).items() <= asdict(UpperCLIPTextConfig()).items()


def channels_last(x: torch.Tensor) -> Tensor:
    """(1, c, h, w) as this floor has maps, (h, w, c)."""
    return ours(x[0].permute(1, 2, 0).double())


@torch.no_grad()
def test_the_text_encoder_equals_the_one_above(folder: Path, upper: UpperPipeline) -> None:
    ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(PROMPT)
    wanted = upper.text_encoder.double()(torch.tensor([ids])).last_hidden_state[0]
    assert_same(CLIPTextModel.from_pretrained(folder / "text_encoder")(ids), wanted, 1e-6)
    upper.text_encoder.float()


def test_the_text_encoder_reads_the_names_of_transformers_4_and_5(folder: Path) -> None:
    old = Weights.read(folder / "text_encoder" / "model.safetensors")
    new = Weights(old.path, {name.removeprefix("text_model."): tensor for name, tensor in old.tensors.items()})
    assert set(old.tensors) != set(new.tensors)
    config = CLIPTextModel.from_pretrained(folder / "text_encoder").config
    assert CLIPTextModel(config, old)([1, 2]).tolist() == CLIPTextModel(config, new)([1, 2]).tolist()


def test_a_scheduler_file_that_diffusers_writes_is_read(tmp_path: Path) -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    theirs.save_pretrained(tmp_path)
    theirs.set_timesteps(20)
    found = ladder.make_ladder(ScheduleConfig.from_pretrained(tmp_path), 20)
    assert found.timesteps == theirs.timesteps.tolist()
    assert found.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)


UNETS: dict[str, dict[str, Any]] = {
    "like SD 1": {},
    "like SD 2 and the packaged model": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "freq_shift": 1.0,
        "flip_sin_to_cos": False,
    },
    "three levels, an odd size": {
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": 2,
        "sample_size": 5,
    },
}


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_the_unet_equals_the_one_above(tmp_path: Path, name: str) -> None:
    config = UpperUNetConfig(
        **{
            "sample_size": 4,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 6,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "freq_shift": 0.0,
        }
        | UNETS[name]
    )
    torch.manual_seed(0)
    theirs = UpperUNet(config).double().eval()
    weights = {name: ours(weight) for name, weight in theirs.state_dict().items()}
    fields = {name: value for name, value in asdict(config).items() if name != "upcast_attention"}
    unet = UNet2DConditionModel(UNetConfig(**fields), Weights(tmp_path, weights))
    x, text = draw((1, 4, config.sample_size, config.sample_size)), draw((1, 5, 6), 1)
    wanted = theirs(x, torch.tensor([601.0], dtype=torch.float64), text)
    assert_same(unet(channels_last(x), 601.0, ours(text[0])), wanted[0].permute(1, 2, 0), 1e-5)


@torch.no_grad()
def test_the_decoder_equals_the_one_above(folder: Path, upper: UpperPipeline) -> None:
    z = draw((1, 4, 5, 3))
    wanted = upper.vae.double().decode(z)[0].permute(1, 2, 0)
    assert_same(Decoder.from_pretrained(folder / "vae")(channels_last(z)), wanted, 1e-6)
    upper.vae.float()


def test_the_packaged_model_is_one_that_this_floor_can_run() -> None:
    model = GenerateRequest("").model
    unet = read_config(UNetConfig, model / "unet" / "config.json", UNET_ONLY)
    assert read_config(VAEConfig, model / "vae" / "config.json", VAE_ONLY).latent_channels == unet.in_channels
    assert ScheduleConfig.from_pretrained(model / "scheduler").prediction_type == "v_prediction"
    text = read_config(CLIPTextConfig, model / "text_encoder" / "config.json", {}, strict=False)
    assert text.hidden_size == unet.cross_attention_dim
    assert len(CLIPTokenizer.from_pretrained(model / "tokenizer")) <= text.vocab_size


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_the_ladder_equals_the_one_above(spacing: str, beta_schedule: str) -> None:
    fields: dict[str, Any] = {"beta_schedule": beta_schedule, "timestep_spacing": spacing, "steps_offset": 1}
    schedule = NoiseSchedule(UpperScheduleConfig(**fields))
    rule = LadderRule(whole_timesteps=True, unit_start=True, one_more=True)
    for n_steps in (1, 2, 7, 8, 20, 61, 333):
        wanted, found = make_ladder(schedule, n_steps, rule), ladder.make_ladder(ScheduleConfig(**fields), n_steps)
        assert found.timesteps == wanted.timesteps.tolist()
        assert found.sigmas == pytest.approx(wanted.sigmas.tolist(), rel=1e-9)
        assert found.start_scale == pytest.approx(wanted.start_scale)


@pytest.mark.parametrize("n_steps", [0, -1, 1001])
def test_steps_that_do_not_fit_are_an_error(n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"{n_steps} sampling steps: there must be at least 1 and at most 1000"):
        ladder.make_ladder(ScheduleConfig(), n_steps)


@pytest.mark.parametrize("shape", [(16,), (17,), (31,), (4, 8, 8), (3, 5, 7)])
def test_a_seed_gives_the_noise_that_pytorch_draws(shape: tuple[int, ...]) -> None:
    for seed in [*range(20), 2**32 - 1, 2**32, 2**63 - 1]:
        assert_same(randn(shape, seed), torch.randn(shape, generator=make_generator(seed)).double(), 1e-5)


def test_fewer_than_16_numbers_are_drawn_otherwise_there_so_they_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 numbers"):
        randn((15,), 0)
