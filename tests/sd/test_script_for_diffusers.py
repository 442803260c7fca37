"""A program written for Diffusers' pipelines runs here with nothing but their import changed, and makes the same."""

import json
import runpy
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image
from sd_oracle import make_diffusers_pipeline
from tiny_model import tiny_pipeline

import miniai

SCRIPT = Path(__file__).with_name("script_for_diffusers.py")
IMPORT = "from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline"


def run(source: str, model: Path, out: Path) -> Path:
    """Run the program with its two paths."""
    (out / "script.py").write_text(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(out / "script.py"), {"MODEL": str(model), "OUT": str(out)})
    return out


def test_a_program_written_for_diffusers_makes_the_same_with_its_import_changed(tmp_path: Path) -> None:
    make_diffusers_pipeline(tmp_path / "tokenizer", "epsilon").save_pretrained(tmp_path / "model")
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    source = SCRIPT.read_text()
    assert source.count(IMPORT) == 1
    theirs = run(source, tmp_path / "model", tmp_path / "theirs")
    ours = run(source.replace(IMPORT, IMPORT.replace("diffusers", "miniai")), tmp_path / "model", tmp_path / "ours")
    names = sorted(path.name for path in theirs.glob("*.*") if path.suffix in (".png", ".npy"))
    assert len(names) == 17
    for name in names:
        if name.endswith(".npy"):
            np.testing.assert_allclose(np.load(ours / name), np.load(theirs / name), rtol=1e-3, atol=1e-3)
        else:
            pixels = [np.asarray(Image.open(folder / name)).astype(int) for folder in (ours, theirs)]
            assert pixels[0].std() > 10
            assert abs(pixels[0] - pixels[1]).max() <= 1, name
    saved = [json.loads((folder / "saved/scheduler/scheduler_config.json").read_text()) for folder in (ours, theirs)]
    for config in saved:
        config.pop("_diffusers_version")
    assert saved[0] == saved[1]


def test_a_scheduler_of_diffusers_names_the_sampler(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config["_class_name"] == "HeunDiscreteScheduler"
    assert pipe.scheduler.config["beta_end"] == 0.012
    again = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert again.config.timestep_spacing == "leading"  # DDIM's own default, and not the one that Heun brought in
    pipe.scheduler = pipe.scheduler
    assert pipe.scheduler.config["_class_name"] == "HeunDiscreteScheduler"


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_diffusers_names_of_the_pipeline_are_known(name: str) -> None:
    assert getattr(miniai, name) is miniai.StableDiffusionPipeline


def test_a_run_that_was_interrupted_does_not_interrupt_the_next() -> None:
    pipe = tiny_pipeline()
    steps: list[int] = []

    def stop_once(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._interrupt = len(steps) == 1
        return tensors

    for _ in range(2):
        pipe("a cat", num_inference_steps=3, callback_on_step_end=stop_once, output_type="latent")
    assert steps == [0, 0, 1, 2]


def test_a_key_that_the_scheduler_file_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"scheduler_config.json has no timestep_spacing"):
        tiny_pipeline().scheduler.config.timestep_spacing  # noqa: B018
