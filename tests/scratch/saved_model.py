"""A tiny Stable Diffusion model with random weights, saved in a folder, that this floor can run."""

from dataclasses import replace
from pathlib import Path

from tiny_model import tiny_pipeline

from miniai.sd.pipeline import StableDiffusionPipeline

PROMPT = "a red apple"
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "linspace",
}


def saved(folder: Path, prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """The model in `folder`, as the PyTorch path runs it. Pictures are of 8×8 pixels."""
    pipe = tiny_pipeline(0, prediction_type)
    pipe.unet.config = replace(pipe.unet.config, sample_size=4)
    pipe.scheduler_config = SCHEDULER | {"prediction_type": prediction_type}
    pipe.save_pretrained(folder)
    return pipe
