"""The model in the package: its size, its card, its equality with Diffusers, and `make generate` itself, offline."""

import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import miniai
from miniai.base.images import read_parameters
from miniai.diffusion.sampling import SAMPLERS
from miniai.recipes.evaluator import SHIPPED, load_evaluator, refuse_own_clip
from miniai.recipes.generate_request import packaged_model
from miniai.sd.pipeline import StableDiffusionPipeline

ROOT = Path(__file__).parent.parent
PROMPTS = ["a smiling cat with sunglasses, noto style", "a red apple, twemoji style"]

# Python runs this before anything else in every process that has it on its path.
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def ours() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(packaged_model())


def test_diffusers_loads_it_unchanged_and_gives_the_same_latents(ours: StableDiffusionPipeline) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(packaged_model(), torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    config = ours.unet.config
    shape = (2, config.in_channels, config.sample_size, config.sample_size)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    request = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "latent"}
    expected = theirs(PROMPTS, latents=start.clone(), **request).images
    got = ours(PROMPTS, latents=start.clone(), **request).images
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_its_weights_are_float16_and_at_most_64_megabytes() -> None:
    files = list(packaged_model().rglob("*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= 64e6
    assert not list(packaged_model().rglob("*.bin"))


def test_its_card_names_data_licences_and_the_command() -> None:
    card = (packaged_model() / "README.md").read_text()
    for word in ("Apache-2.0", "CC-BY-4.0", "MIT", "miniai train text-to-image", "| unet |", "Evaluation"):
        assert word in card


def test_its_judge_is_in_the_package_small_and_no_pupil_of_it(ours: StableDiffusionPipeline) -> None:
    judge = load_evaluator(SHIPPED, torch.device("cpu"))
    assert (SHIPPED / "model.safetensors").stat().st_size <= 16e6
    assert judge.record["names"]
    refuse_own_clip(judge, ours.text_encoder)
    captions = [
        "a red apple, twemoji style",
        "a panda, twemoji style",
        "a key, twemoji style",
        "a cactus, twemoji style",
    ]
    painted = ours(captions, num_inference_steps=15, generator=[torch.Generator().manual_seed(i) for i in range(4)])
    seen = judge.see(torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in painted.images]))
    assert (seen @ judge.read(captions).T).argmax(1).tolist() == [0, 1, 2, 3]


def test_the_prompt_changes_the_picture(ours: StableDiffusionPipeline) -> None:
    """The same noise, two prompts: a red apple is redder than a green frog, and both stand on white."""
    generators = [torch.Generator().manual_seed(3) for _ in range(8)]
    prompts = ["a red apple, twemoji style"] * 4 + ["a frog, twemoji style"] * 4
    pictures = ours(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generators, output_type="pt").images
    assert isinstance(pictures, torch.Tensor)
    redness = (pictures[:, 0] - pictures[:, 1]).mean(dim=(1, 2))
    assert redness[:4].mean() > redness[4:].mean() + 0.05
    assert pictures[:, :, 0, 0].mean() > 0.9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_paints_a_red_apple_on_white(ours: StableDiffusionPipeline, sampler: str) -> None:
    """Also those whose class in Diffusers clips unless the scheduler file says that latents are not to be clipped."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    request = {"num_inference_steps": 12, "guidance_scale": 2.5, "generator": generators, "output_type": "pt"}
    pictures = ours(["a red apple, twemoji style"] * 2, sampler=sampler, **request).images
    assert isinstance(pictures, torch.Tensor)
    red, green, blue = pictures[:, :, 24:48, 20:44].mean(dim=(0, 2, 3))
    assert red > 0.65
    assert max(green, blue) < 0.35
    assert pictures[:, :, :3, :3].mean() > 0.9
    assert pictures[:, :, :3, -3:].mean() > 0.9


def test_make_generate_paints_with_the_network_shut(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    out = tmp_path / "cat.png"
    venv = Path(sys.prefix)
    # These tests may themselves run under make, whose flags must not reach this one.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    environment = plain | {"PYTHONPATH": str(tmp_path), "PROMPT": PROMPTS[0]}
    # -o: the environment that runs this test is installed already, however it was made
    arguments = ["make", "generate", f"VENV={venv}", "-o", f"{venv}/.installed", f"OUT={out}", "ARGS=--seed 1"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert Image.open(out).size == (64, 64)
    assert PROMPTS[0] in (read_parameters(out) or "")


def test_the_shut_network_of_the_test_above_is_really_shut(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    code = "import urllib.request; urllib.request.urlopen('http://localhost:9')"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "the network was asked for" in done.stderr


def test_it_is_found_by_name_from_any_folder() -> None:
    assert miniai.packaged_model() == packaged_model()
    assert (miniai.packaged_model() / "model_index.json").is_file()
