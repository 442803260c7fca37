"""A prompt becomes PNG files: the recipe behind `miniai generate`."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import miniai
from miniai.base.device import pick_device, pick_dtype
from miniai.base.errors import UserError
from miniai.base.images import grid, open_image, save_gif, save_png, to_pil
from miniai.base.seeds import image_generators
from miniai.diffusion.sampling import find_sampler, sampler_from_file
from miniai.recipes.generate_request import (
    GenerateRequest,
    Targets,
    check_request,
    choose_targets,
    fresh_seed,
    lora_name,
    packaged_model,
    take_lora_tags,
)
from miniai.sd.folder import SCHEDULER
from miniai.sd.image_inputs import painted_share, skipped_steps
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.textual_inversion import add_words, read_words

BATCH_SIZE = 16  # pictures painted at once; more would only take more memory
MS_PER_FRAME = 120
MS_LAST_FRAME = 2000

OnStep = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Painted:
    """What was made: `files`, the grid of several pictures last; `seed` of the first picture."""

    files: tuple[Path, ...]
    seed: int


def generate(request: GenerateRequest) -> Painted:
    """Paint what is asked for and write it. Raises UserError, before anything is painted, if that is not possible."""
    check_request(request)
    targets = choose_targets(request)
    device = pick_device(request.device)
    model = request.model or packaged_model()
    check_sampler(request.sampler)
    image, mask = (None if path is None else open_image(path) for path in (request.image, request.mask))
    pipe = load_pipeline(model, request, device)
    seed = fresh_seed() if request.seed is None else request.seed

    with memory_to_user_error():
        images, steps = paint(pipe, take_lora_tags(request), seed, image, mask)

    save_pictures(pipe, request, model, seed, images, targets)
    if request.animate is not None:
        frames = [as_grid(step) for step in steps] + [as_grid(images)]
        save_gif(request.animate, frames, [MS_PER_FRAME] * len(steps) + [MS_LAST_FRAME])
    animation = () if request.animate is None else (request.animate,)
    return Painted((*targets.singles, *animation, targets.main), seed)


def check_sampler(name: str | None) -> None:
    """Raise UserError for a name that no sampler has; None is the model's own."""
    if name is not None:
        find_sampler(name)


def save_pictures(
    pipe: StableDiffusionPipeline,
    request: GenerateRequest,
    model: Path,
    seed: int,
    images: list[Image.Image],
    targets: Targets,
) -> None:
    """Write the pictures, and of several their sheet, each with what it was painted from."""
    size = images[0].size
    if request.mask_padding is not None:  # of the part that was painted, as that interface says it
        own = pipe.unet.config.sample_size * pipe.vae.config.factor
        size = request.width or own, request.height or own
    for i, path in enumerate(targets.singles or [targets.main]):
        save_png(path, images[i], parameters_text(pipe, request, model, seed + i, size))
    if targets.singles:
        sheet = as_grid(images)
        save_png(targets.main, sheet, parameters_text(pipe, request, model, seed, size))


def load_pipeline(model: Path, request: GenerateRequest, device: torch.device) -> StableDiffusionPipeline:
    """The model in a folder, in a single file, or of a hub id in the local cache."""
    if request.compiled:
        from miniai.recipes.training import check_compiler  # all of training: not for those who only paint

        check_compiler("inductor", device)
    dtype, vae = pick_dtype(request.dtype, device), request.vae
    if model.is_file():
        if request.variant is not None:
            raise UserError(f"--variant is for a folder, and {model} is a file: leave it out")
        kind: Any = request.prediction_type
        pipe = StableDiffusionPipeline.from_single_file(
            model, dtype, device, tokenizer=request.tokenizer, vae=vae, prediction_type=kind
        )
    else:
        if request.prediction_type is not None:
            raise UserError(f"--prediction-type is for a single file: {model} says by itself what it predicts")
        if request.tokenizer is not None:
            raise UserError(f"--tokenizer is for a single file: {model} has its own")
        pipe = StableDiffusionPipeline.from_pretrained(
            model, dtype, device, vae=vae, variant=request.variant, safety_checker=None
        )
    add_on(pipe, request)
    if request.vae_tiling:
        pipe.enable_vae_tiling()
    if request.vae_slicing:
        pipe.enable_vae_slicing()
    return pipe.compiled() if request.compiled else pipe


def add_on(pipe: StableDiffusionPipeline, request: GenerateRequest) -> None:
    """Give the model the LoRAs and learned words that are asked for."""
    pipe.paint_with(take_lora_tags(request).loras)
    teach_words(pipe, request.embeddings)


def teach_words(pipe: StableDiffusionPipeline, files: Sequence[Path]) -> None:
    """Give the model the learned words in these files, and say how they are written."""
    for path in files:
        words = read_words(path)
        add_words(pipe.tokenizer, pipe.text_encoder, words)
        print(f"{path}: write {', '.join(one.word for one in words)} in the prompt", file=sys.stderr)


def paint(
    pipe: StableDiffusionPipeline,
    request: GenerateRequest,
    seed: int,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    on_step: OnStep | None = None,
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """The pictures, and for an animation what each step took the clean pictures to be.

    `on_step` hears after each step its number, from 1, how many there are in all, and the clean latents as it takes
    them to be; what it raises stops the painting."""
    images: list[Image.Image] = []
    steps: list[list[Image.Image]] = []
    n_batches = -(-request.n // BATCH_SIZE)
    n_steps = request.steps - (skipped_steps(request.steps, request.strength, mask is not None) if image else 0)
    # As large as the picture, within a mask too: Diffusers' pipeline would take the model's own size there.
    factor, own = pipe.vae.config.factor, None if image is None or request.mask_padding is not None else image.size
    width, height = (None, None) if own is None else (side - side % factor for side in own)
    count = itertools.count(1)
    # None: shown on a terminal only
    with tqdm(total=n_steps * n_batches, desc="painting", unit="step", leave=False, disable=None) as bar:
        for first in range(0, request.n, BATCH_SIZE):
            estimates: list[Tensor] = []

            def after_step(_: object, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
                bar.update()
                if on_step is not None:
                    on_step(next(count), n_steps * n_batches, tensors["denoised"])
                if request.animate is not None:
                    estimates.append(tensors["denoised"])  # noqa: B023 (called within this turn of the loop)

            n_here = min(BATCH_SIZE, request.n - first)
            output = pipe(
                request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height or height,
                width=request.width or width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                sampler=request.sampler,
                generator=image_generators(seed + first, n_here),
                num_images_per_prompt=n_here,
                callback_on_step_end=after_step,
                image=image,
                strength=request.strength,
                mask_image=mask,
                padding_mask_crop=request.mask_padding,
                guidance_rescale=request.guidance_rescale,
                clip_skip=request.clip_skip,
                eta=request.eta,
                prompt_syntax=request.prompt_syntax,  # type: ignore[arg-type]
                long_prompts=request.long_prompts,  # type: ignore[arg-type]
                guidance_interval=request.guidance_interval,
                cache_interval=request.cache_interval,
            )
            images += output.images
            decoded = [preview(pipe, estimate) for estimate in estimates]
            steps = [old + new for old, new in zip(steps, decoded, strict=True)] if steps else decoded
    return images, steps


@torch.no_grad()
def preview(pipe: StableDiffusionPipeline, denoised: Tensor) -> list[Image.Image]:
    """Pictures of the clean latents that a step estimates."""
    return to_pil(pipe.decode(denoised))


def as_grid(images: list[Image.Image]) -> Image.Image:
    """One picture as it is; several on a sheet about as wide as high."""
    n_columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    return grid(images, n_columns)


def parameters_text(
    pipe: StableDiffusionPipeline, request: GenerateRequest, model: Path, seed: int, size: tuple[int, int]
) -> str:
    """The text that the A1111 web interface writes into its PNGs, and that other tools read there."""
    named = request.sampler is None
    sampler = sampler_from_file(pipe.scheduler_config, SCHEDULER) if named else find_sampler(str(request.sampler))
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(
        f"Steps: {request.steps}, Sampler: {sampler.title}, CFG scale: {request.guidance_scale:g}, Seed: {seed}, "
        f"Size: {size[0]}x{size[1]}, Model: {_quoted(model.resolve().name)}, "
        + "".join(f"{name}: {_quoted(value)}, " for name, value in _further_settings(request).items())
        + f"RNG: CPU, Version: miniai {miniai.__version__}"
    )
    return "\n".join(lines)


def _further_settings(request: GenerateRequest) -> dict[str, str]:
    """What else decided how the picture came out, where it is not the default; that interface's names where it has
    them."""
    interval, skip = request.guidance_interval, request.clip_skip
    strength = painted_share(request.strength, request.mask is not None)
    chosen = {
        "Denoising strength": None if request.image is None else f"{strength:g}",
        "Init image": None if request.image is None else request.image.name,
        "Mask": None if request.mask is None else request.mask.name,
        "Inpaint area": None if request.mask_padding is None else "Only masked",
        "Masked area padding": None if request.mask_padding is None else f"{request.mask_padding}",
        "Clip skip": None if skip is None else f"{skip + 1}",  # as that interface counts
        "Eta": f"{request.eta:g}" if request.eta else None,
        "CFG rescale": f"{request.guidance_rescale:g}" if request.guidance_rescale else None,
        "Guidance interval": None if interval is None else f"{interval[0]:g} to {interval[1]:g}",
        "Prompt syntax": request.prompt_syntax if request.prompt_syntax != "plain" else None,
        "Long prompts": request.long_prompts if request.long_prompts != "cut" else None,
        "Cache interval": f"{request.cache_interval}" if request.cache_interval > 1 else None,
        "LoRA": ", ".join(f"{lora_name(path)}:{strength:g}" for path, strength in take_lora_tags(request).loras)
        or None,
        "Embeddings": ", ".join(path.stem for path in request.embeddings) or None,
        "VAE": None if request.vae is None else request.vae.name,
        "Variant": request.variant,
        "Data type": request.dtype if request.dtype != "auto" else None,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _quoted(value: str) -> str:
    """As that interface does: what holds one of its separators stands in quotes, as JSON."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ',:"\n') else value


@contextmanager
def memory_to_user_error() -> Iterator[None]:
    """Too little memory is something that the user can mend; on the CPU, torch reports it as a plain RuntimeError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError("out of memory: ask for smaller or fewer pictures, or use --dtype bfloat16") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise UserError("out of memory: ask for smaller or fewer pictures, or use --dtype bfloat16") from error
