"""How much the text tells a model, at each noise level: its loss given the right caption, another's, and none.

    python benchmarks/text_reach.py --data data/emoji-core --model miniai/models/emoji

At the highest noise the text is nearly all there is to go by: what lies between "right" and "none" was learned from it.
"""

import argparse
from datetime import date
from pathlib import Path

import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import diffusion_errors
from miniai.diffusion.sampling import sampler_from_file, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.recipes.model_card import machine
from miniai.recipes.vae_stage import to_float
from miniai.sd.folder import SCHEDULER
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import load_images, read_captioned_folder

TIMESTEPS = (100, 300, 600, 750, 900, 990)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--pictures", type=int, default=128)
    arguments = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(arguments.model)
    sampler = sampler_from_file(pipe.scheduler_config, SCHEDULER)
    schedule = NoiseSchedule(schedule_config(pipe.scheduler_config, sampler, SCHEDULER))
    folder = read_captioned_folder(arguments.data)
    items = folder.train if arguments.split == "train" else folder.heldout
    items = [items[i * len(items) // arguments.pictures] for i in range(min(arguments.pictures, len(items)))]
    pixels = pipe.unet.config.sample_size * pipe.vae.config.factor
    latents = pipe.vae.encode(to_float(load_images(items, pixels))).mode() * pipe.vae.config.scaling_factor
    right = pipe.encode_text([item.text for item in items])
    other, none = right.roll(len(right) // 3, dims=0), pipe.encode_text([""] * len(items))

    what = f"{len(items)} pictures ({arguments.split}), mean squared error of {schedule.config.prediction_type}"
    command = f"python benchmarks/text_reach.py --data {arguments.data} --model {arguments.model}"
    print(f"`{command}`, {date.today()}, {machine()}: {what}\n")
    print("| timestep | sigma | right caption | another's | none |\n| ---: | ---: | ---: | ---: | ---: |")
    for t in TIMESTEPS:
        losses = [
            diffusion_errors(
                pipe.unet,
                latents,
                schedule.alpha_bar,
                schedule.config.prediction_type,
                gamma=None,
                generator=make_generator(0, t),
                t=torch.full((len(items),), t),
                condition=condition,
            ).mean()
            for condition in (right, other, none)
        ]
        cells = " | ".join(f"{float(loss):.4f}" for loss in losses)
        print(f"| {t} | {float(schedule.sigma[t]):.2f} | {cells} |")


if __name__ == "__main__":
    main()
