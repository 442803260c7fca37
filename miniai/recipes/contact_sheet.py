"""One sheet of many prompts in several styles: what a model can paint, at a glance."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from miniai.base.device import pick_device, pick_dtype
from miniai.base.images import grid, save_png
from miniai.base.seeds import image_generators
from miniai.recipes.generate_request import GUIDANCE_SCALE
from miniai.recipes.sheets import labelled_grid
from miniai.sd.pipeline import StableDiffusionPipeline

BATCH = 32
PROMPTS = (
    "a grinning face", "a smiling face with sunglasses", "a crying face", "a face with hearts for eyes",
    "a sleeping face", "an angry red face", "a surprised face", "a robot", "a ghost", "a skull", "an alien",
    "a pile of poo", "a red heart", "a broken heart", "a thumbs up", "a waving hand",
    "a cat", "a dog", "a mouse", "a rabbit", "a fox", "a bear", "a panda", "a frog", "a pig", "a cow", "a lion",
    "a unicorn", "a penguin", "an owl", "a fish", "an octopus",
    "a butterfly", "a bee", "a sunflower", "a cactus", "a palm tree", "a red apple", "a banana",
    "a slice of watermelon", "a strawberry", "a slice of pizza", "a hamburger", "an ice cream", "a birthday cake",
    "a cup of coffee", "a glass of beer", "an egg in a frying pan",
    "a red car", "a bicycle", "a train", "an airplane", "a rocket", "a sailboat", "a house", "the sun",
    "a crescent moon", "a rainbow", "an umbrella", "a soccer ball", "a guitar", "a camera", "a light bulb", "a key",
)  # fmt: skip


def contact_sheet(
    model: Path,
    out: Path,
    prompts: Sequence[str] = PROMPTS,
    styles: Sequence[str] = ("",),
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE_SCALE,
    sampler: str | None = None,
    seed: int = 0,
    device: str = "auto",
    n_columns: int = 8,
    zoom: int = 1,
) -> Path:
    """Paint every prompt in every style and save one labelled PNG at `out`; a prompt's styles stand side by side.

    - styles: words such as "noto", which make the prompt "a cat, noto style"; "" is the prompt as it is.
    - sampler: None is the model's own; seed: picture i is painted from seed + i, whatever the batch.
    - n_columns: prompts in a row; zoom: how many times as large as painted.
    """
    pipeline = load_painter(model, device)
    texts = [in_style(prompt, style) for prompt in prompts for style in styles]
    images = list(paint(pipeline, texts, n_steps, guidance_scale, sampler, seed))
    blocks = [images[i : i + len(styles)] for i in range(0, len(images), len(styles))]
    cells = [(grid(block, len(styles), gap=2), prompt) for block, prompt in zip(blocks, prompts, strict=True)]
    names = [style for style in styles if style]
    title = f"styles, from left to right: {', '.join(names)}" if names else ""
    save_png(out, labelled_grid(cells, n_columns, title, zoom))
    return out


def in_style(prompt: str, style: str) -> str:
    return f"{prompt}, {style} style" if style else prompt


def load_painter(model: Path, device: str) -> StableDiffusionPipeline:
    """The model on the device that `device` names, in the dtype that suits it."""
    torch_device = pick_device(device)
    return StableDiffusionPipeline.from_pretrained(model, pick_dtype("auto", torch_device), torch_device)


def paint(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    n_steps: int,
    guidance_scale: float,
    sampler: str | None,
    seed: int,
) -> Iterator[Image.Image]:
    """One picture for each prompt, in order; picture i starts from the noise of seed + i."""
    generators: list[torch.Generator] = image_generators(seed, len(prompts))
    with tqdm(total=len(prompts), desc="painting", unit="picture", leave=False, disable=None) as progress:
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            painted = pipeline(
                list(prompts[part]),
                num_inference_steps=n_steps,
                guidance_scale=guidance_scale,
                sampler=sampler,
                generator=generators[part],
            ).images
            assert isinstance(painted, list)
            progress.update(len(painted))
            yield from painted
