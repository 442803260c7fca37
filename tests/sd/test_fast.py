"""Faster pictures that are not quite the same, and pictures that take less memory."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from sd_oracle import make_diffusers_pipeline, relative_error
from tiny_model import tiny_pipeline
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import read_parameters
from miniai.base.seeds import make_generator
from miniai.cli import run
from miniai.nn.packed import can_pack, is_packed, unpack_weights
from miniai.sd.fast import ReusedDeepFeatures
from miniai.sd.pipeline import StableDiffusionPipeline


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline()


def paint(pipe: StableDiffusionPipeline, **changes: Any) -> Any:
    request = {"prompt": "a cat", "num_inference_steps": 6, "output_type": "latent", "generator": make_generator(0)}
    return pipe(**(request | changes)).images


def n_pictures_seen(pipe: StableDiffusionPipeline, part: torch.nn.Module, **changes: Any) -> list[int]:
    """How many pictures `part` was given at each of its calls while painting."""
    seen: list[int] = []
    hook = part.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    paint(pipe, **changes)
    hook.remove()
    return seen


def test_the_fast_modes_at_their_ends_are_the_normal_mode_bit_for_bit(pipe: StableDiffusionPipeline) -> None:
    normal = paint(pipe)
    assert torch.equal(normal, paint(pipe, guidance_interval=(0, 1e9), cache_interval=1, cache_branch_id=1))
    whole = ReusedDeepFeatures(pipe.unet, 1)
    x, text = torch.randn(2, 4, 8, 8, generator=make_generator(1)), torch.zeros(2, 3, 16)
    with torch.no_grad():
        for timestep in (torch.full((2,), 900.0), torch.full((2,), 300.0)):
            assert torch.equal(whole(x, timestep, text), pipe.unet(x, timestep, text))


def test_deep_features_are_computed_once_in_an_interval(pipe: StableDiffusionPipeline) -> None:
    unet = pipe.unet
    assert n_pictures_seen(pipe, unet.mid_block, cache_interval=3) == [2, 2]
    assert n_pictures_seen(pipe, unet.conv_out, cache_interval=3) == [2] * 6
    close, other = (relative_error(paint(pipe, cache_interval=n), paint(pipe)) for n in (2, 6))
    assert 0 < close < other < 0.5
    assert torch.equal(paint(pipe, cache_interval=3), paint(pipe, cache_interval=3))  # nothing stays from call to call


@pytest.mark.parametrize("branch_id", [0, 1])
def test_reused_features_are_those_of_an_earlier_step_in_diffusers_network(tmp_path: Path, branch_id: int) -> None:
    theirs = make_diffusers_pipeline(tmp_path / "tokenizer", "epsilon").unet.eval()
    ours = tiny_pipeline().unet
    ours.load_state_dict(theirs.state_dict())
    fast = ReusedDeepFeatures(ours, 2, branch_id)
    block = theirs.up_blocks[-1]
    kept: list[Tensor] = []

    def replace_what_comes_from_below(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert fast.deep.features is not None
        n = fast.deep.features.shape[1]
        if i % 2 == 0:
            kept[:] = [inputs[0][:, :n]]
        return torch.cat([kept[0], inputs[0][:, n:]], dim=1), *inputs[1:]

    block.resnets[len(block.resnets) - 1 - branch_id].register_forward_pre_hook(replace_what_comes_from_below)
    text = torch.randn(2, 5, 16, generator=make_generator(9))
    with torch.no_grad():
        for i in range(4):
            x, t = torch.randn(2, 4, 8, 8, generator=make_generator(i)), torch.full((2,), 900.0 - 100 * i)
            got = fast(x, t, text)
            assert relative_error(got, theirs(x, t, encoder_hidden_states=text).sample) < 1e-5
    assert relative_error(got, ours(x, t, text)) > 1e-3


def test_outside_the_interval_of_guidance_a_step_sees_half_the_pictures(pipe: StableDiffusionPipeline) -> None:
    sigmas: list[float] = []

    def watch(_: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> None:
        sigmas.append(timestep)

    seen = n_pictures_seen(pipe, pipe.unet.conv_out, guidance_interval=(0.5, 3.0), callback_on_step_end=watch)
    assert len(seen) == 6
    assert seen[0] == seen[-1] == 1
    assert 2 in seen
    with_cache = n_pictures_seen(pipe, pipe.unet.mid_block, guidance_interval=(0.5, 3.0), cache_interval=100)
    assert with_cache == [1, 2, 1]  # what was kept of two pictures is of no use for one


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"guidance_interval": (3.0, 1.0)}, r"guidance_interval \(3.0, 1.0\) is not possible"),
        ({"guidance_interval": (float("nan"), 1.0)}, "guidance_interval"),
        ({"cache_interval": 0}, "cache_interval 0 is not possible"),
        ({"cache_interval": 2, "cache_branch_id": 2}, "cache_branch_id 2 is not there: give 0 to 1"),
    ],
)
def test_a_fast_mode_that_is_not_there_is_a_user_error(
    pipe: StableDiffusionPipeline, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        paint(pipe, **changes)


def test_a_picture_in_tiles_and_slices_is_that_of_diffusers(tmp_path: Path) -> None:
    make_diffusers_pipeline(tmp_path / "tokenizer", "epsilon").save_pretrained(tmp_path / "model")
    pictures = []
    for pipeline in (diffusers.StableDiffusionPipeline, StableDiffusionPipeline):
        pipe = pipeline.from_pretrained(tmp_path / "model")
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()
        request = {"height": 24, "width": 40, "num_inference_steps": 2, "output_type": "np"}
        generators = [make_generator(i) for i in (1, 2)]
        pictures.append(pipe("a cat", num_images_per_prompt=2, generator=generators, **request).images)
    assert pictures[0].std() > 0.02
    assert isinstance(pipe, StableDiffusionPipeline)
    np.testing.assert_allclose(pictures[1], pictures[0], rtol=1e-3, atol=1e-3)
    pipe.disable_vae_tiling()
    pipe.disable_vae_slicing()
    assert not pipe.vae.use_tiling
    assert not pipe.vae.use_slicing
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing


def test_a_compiled_pipeline_paints_the_same_and_holds_plain_weights(tmp_path: Path) -> None:
    tiny_pipeline().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch.bfloat16)
    packed = paint(pipe)
    compiled = pipe.compiled()
    assert compiled is pipe
    assert all(not weight.is_mkldnn for weight in pipe.unet.buffers())
    with torch.compiler.set_stance("force_eager"):  # what is compiled is the compiler's business, and takes minutes
        assert relative_error(paint(pipe), packed) < 0.05
        assert paint(pipe, cache_interval=3).isfinite().all()


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no instructions for packed bfloat16")
def test_the_encoder_is_packed_when_a_picture_comes(tmp_path: Path) -> None:
    tiny_pipeline().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch.bfloat16)
    assert is_packed(pipe.vae.decoder)
    paint(pipe, num_inference_steps=1)
    assert not is_packed(pipe.vae.encoder)
    paint(pipe, image=torch.zeros(1, 3, 16, 16), strength=0.5)
    assert is_packed(pipe.vae.encoder)
    unpack_weights(pipe.vae)
    paint(pipe, image=torch.zeros(1, 3, 16, 16), strength=0.5)
    assert not is_packed(pipe.vae)


def test_the_command_line_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("model")
    request = ["generate", "a cat", "--model", "model", "--steps", "4", "--seed", "1", "--device", "cpu"]
    options = {
        "plain": [],
        "frugal": ["--vae-slicing", "--vae-tiling", "--width", "40", "--height", "20"],
        "cached": ["--cache-interval", "2"],
        "guided": ["--guidance-interval", "0.5", "3"],
    }
    for name, more in options.items():
        assert run([*request, "--out", f"{name}.png", *more]) == 0
    assert "Cache interval: 2" in (read_parameters(tmp_path / "cached.png") or "")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in options}) == 4
    assert run([*request, "--cache-interval", "0"]) == 2
    assert run([*request, "--guidance-interval", "3", "1"]) == 2
