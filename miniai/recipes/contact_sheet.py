"""One sheet of many prompts in several styles: what a model can paint, at a glance."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from miniai.base.device import pick_device, pick_dtype
from miniai.base.errors import UserError
from miniai.base.images import grid, save_png
from miniai.base.seeds import image_generators
from miniai.evaluate.nearest import nearest_by_feature, nearest_by_pixel
from miniai.recipes.evaluator import Evaluator, load_evaluator, refuse_own_clip
from miniai.recipes.generate import teach_words
from miniai.recipes.generate_request import GUIDANCE_SCALE
from miniai.recipes.judging import Pictures, to_levels
from miniai.recipes.sheets import labelled_grid
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import CaptionedItem, load_images, read_captioned_folder

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
    nearest_in: Path | None = None,
    evaluator: Path | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    embeddings: Sequence[Path] = (),
) -> Path:
    """Paint every prompt in every style and save one labelled PNG at `out`; a prompt's styles stand side by side.

    - styles: words such as "noto", which make the prompt "a cat, noto style"; "" is the prompt as it is.
    - sampler: None is the model's own; seed: picture i is painted from seed + i, whatever the batch.
    - n_columns: prompts in a row; zoom: how many times as large as painted.
    - nearest_in: a folder of captioned pictures; below each painted one stands the training picture there that it is
      most like, by the features of the CLIP in `evaluator`, or by pixels if that is None.
    - loras: what the model is given beside its own weights, each with its strength; embeddings: files of learned
      words that the prompts use.

    Raises UserError: a folder that cannot be read; an evaluator that is the model's own CLIP, or without `nearest_in`.
    """
    if evaluator is not None and nearest_in is None:
        raise UserError("an evaluator finds the nearest pictures: name the folder they are in as well")
    pipeline = load_painter(model, device)
    pipeline.paint_with(loras)
    teach_words(pipeline, embeddings)
    texts = [in_style(prompt, style) for prompt in prompts for style in styles]
    judge = None if evaluator is None else load_evaluator(evaluator, pipeline.device)
    if judge is not None:
        refuse_own_clip(judge, pipeline.text_encoder)
    trained = () if nearest_in is None else read_captioned_folder(nearest_in).train
    images = list(paint(pipeline, texts, n_steps, guidance_scale, sampler, seed))
    blocks = [images[i : i + len(styles)] for i in range(0, len(images), len(styles))]
    if trained:
        near = most_like(images, trained, judge)
        blocks = [block + near[i * len(styles) : (i + 1) * len(styles)] for i, block in enumerate(blocks)]
    cells = [(grid(block, len(styles), gap=2), prompt) for block, prompt in zip(blocks, prompts, strict=True)]
    names = [style for style in styles if style]
    title = f"styles, from left to right: {', '.join(names)}" if names else ""
    if trained:
        title = f"{title}; " * bool(title) + "below each picture the one in training that it is most like"
    save_png(out, labelled_grid(cells, n_columns, title, zoom))
    return out


def most_like(
    images: Sequence[Image.Image], trained: Sequence[CaptionedItem], judge: Evaluator | None
) -> list[Image.Image]:
    """For each image the nearest of the training pictures, at its size: by the judge's features, or by pixels."""
    size = images[0].width
    bank, queries = load_images(trained, size), to_levels(images, size)
    if judge is None:
        found = nearest_by_pixel(queries, bank)
    else:
        painted = judge.see(to_levels(images, judge.image_size))
        found = nearest_by_feature(painted, judge.see(load_images(trained, judge.image_size)))
    return Pictures.pil(*bank[found.indices[:, 0]])


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
    *,
    guidance_interval: tuple[int | float, int | float] | None = None,
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
                guidance_interval=guidance_interval,
                sampler=sampler,
                generator=generators[part],
            ).images
            assert isinstance(painted, list)
            progress.update(len(painted))
            yield from painted
