"""One's own pictures as a model learns from them: latents, and what is said of each."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.images import open_image, save_png
from miniai.base.seeds import image_generators
from miniai.recipes.personalise_config import PersonaliseConfig
from miniai.recipes.vae_stage import to_float
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import (
    HELD_OUT,
    OTHER_PICTURES,
    SUFFIXES,
    CaptionedItem,
    load_images,
    read_captioned_folder,
    split_of,
    visible_files,
)

PICTURES = "pictures.json"
ENCODED_AT_ONCE, PAINTED_AT_ONCE = 8, 8
PRIOR_STEPS, PRIOR_SCALE = 25, 4.0


@dataclass(frozen=True)
class OwnPictures:
    """Latents as the U-Net sees them, a normal distribution of each number, and the captions of each picture."""

    mean: Float[Tensor, "n c h w"]
    deviation: Float[Tensor, "n c h w"]
    captions: list[list[str]]
    digest: str  # of pixels and captions

    def shown(self, n: int) -> list[str]:
        """Prompts for sample grids: captions from all over the pictures."""
        return [self.captions[i * len(self.captions) // n % len(self.captions)][0] for i in range(n)]

    def painted_prior(self, pipe: StableDiffusionPipeline, config: PersonaliseConfig, folder: Path) -> "OwnPictures":
        """Pictures of the class, painted by the model as it is before it learns, and kept in `folder`; those that are
        there already, of this class, are taken as they are."""
        make_folder(folder)
        paths = [folder / f"{i:04d}.png" for i in range(config.n_class)]
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        size = side_of(pipe, config.image_size)
        with tqdm(total=len(missing), desc="painting the class", unit="picture", leave=False, disable=None) as bar:
            for first in range(0, len(missing), PAINTED_AT_ONCE):
                these = missing[first : first + PAINTED_AT_ONCE]
                images = pipe(
                    [config.class_prompt] * len(these),
                    num_inference_steps=PRIOR_STEPS,
                    guidance_scale=PRIOR_SCALE,
                    sampler="dpmpp_2m",
                    height=size,
                    width=size,
                    generator=[image_generators(config.seed + i, 1)[0] for i in these],
                ).images
                for i, image in zip(these, images, strict=True):
                    save_png(paths[i], image)
                bar.update(len(these))
        items = [CaptionedItem(path, (config.class_prompt,)) for path in paths]
        return encoded(pipe, load_images(items, size), [[config.class_prompt]] * len(items))


def read_own_pictures(data: Path, config: PersonaliseConfig, pipe: StableDiffusionPipeline) -> OwnPictures:
    """The pictures in `data`, with `config.prompts` for captions or else their own; with `config.flip` each a second
    time, mirrored. Raises UserError if there are none, or one is damaged."""
    if config.prompts:
        said = tuple(prompt.replace("{}", config.word) for prompt in config.prompts)
        items = [CaptionedItem(path, said) for path in pictures_in(data)]
    else:
        items = list(read_captioned_folder(data).train)
    if not items:
        raise UserError(f"{data} has no pictures to learn from: all of them are held out")
    images = load_images(items, side_of(pipe, config.image_size), whole=config.whole)
    captions = [list(item.captions) for item in items]
    if config.flip:
        images, captions = torch.cat([images, images.flip(-1)]), captions * 2
    return encoded(pipe, images, captions)


def pictures_in(folder: Path) -> list[Path]:
    """Every picture of a folder and of the folders in it that is not held out, opened once. Raises UserError if there
    are none, or one is damaged or of an unknown format."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name a folder of pictures")
    files = [path for path in visible_files(folder) if split_of(folder, path) not in HELD_OUT]
    for path in files:
        if path.suffix.lower() in OTHER_PICTURES:
            raise UserError(f"{path}: unknown format, convert it to PNG or JPEG")
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(f"{folder} has no pictures ({', '.join(SUFFIXES)}): name a folder of pictures")
    for path in paths:
        open_image(path)
    return paths


def side_of(pipe: StableDiffusionPipeline, image_size: int | None) -> int:
    """Of the square pictures, in pixels. Raises UserError for one that the model cannot paint."""
    factor = pipe.vae.config.factor
    side = image_size if image_size is not None else pipe.unet.config.sample_size * factor
    if side < factor or side % factor:
        raise UserError(f"--image-size {side} is not possible: this model takes multiples of {factor} pixels")
    return side


@torch.no_grad()
def encoded(pipe: StableDiffusionPipeline, images: UInt8[Tensor, "n 3 h w"], captions: list[list[str]]) -> OwnPictures:
    """Latents of pictures, in float32 on the CPU."""
    scale = pipe.vae.config.scaling_factor
    parts = [pipe.vae.encode(to_float(part.to(pipe.device))) for part in images.split(ENCODED_AT_ONCE)]
    mean = torch.cat([part.mean.float().cpu() * scale for part in parts])
    deviation = torch.cat([(0.5 * part.log_variance.float()).exp().cpu() * scale for part in parts])
    digest = hashlib.sha256(images.numpy().tobytes() + repr(captions).encode()).hexdigest()
    return OwnPictures(mean, deviation, captions, digest)


def refuse_other_pictures(out: Path, own: OwnPictures) -> None:
    """Raise UserError if the training in `out` was begun on others."""
    path = out / PICTURES
    if path.is_file() and read_json(path) != {"sha256": own.digest}:
        raise UserError(f"the training in {out} was begun on other pictures: choose another folder for these")


def keep_digest(out: Path, own: OwnPictures) -> None:
    """Keep what `refuse_other_pictures` asks for."""
    write_json(out / PICTURES, {"sha256": own.digest})
