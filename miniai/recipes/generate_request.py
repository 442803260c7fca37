"""What `miniai generate` is asked for, checked before anything slow is loaded: this module does not import torch."""

import math
import re
import secrets
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from miniai.base.errors import UserError
from miniai.base.files import check_writable

STEPS = 20
GUIDANCE_SCALE = 2.5
MAX_N = 256
MAX_STEPS = 1000
MAX_SIDE = 4096  # pixels
MAX_GUIDANCE_SCALE = 100
MAX_CLIP_SKIP = 64
PROMPT_SYNTAXES = ("plain", "a1111", "comfyui")
LONG_PROMPTS = ("cut", "chunks")
PREDICTION_TYPES = ("epsilon", "v_prediction", None)
MAX_SEED = 2**63 - 1
_LORA_TAG = re.compile(r"<lora:([^>]*)>")
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".ckpt")


@dataclass(frozen=True)
class GenerateRequest:
    """One request to paint; None stands for the default, which for `seed` is a fresh one at each run.

    - n: number of pictures; picture i has the seed `seed + i`.
    - sampler: None is the sampler that the model names.
    - model: folder of a model, a single checkpoint file, or a hub id in the local Hugging Face cache; None is the one
      in the package.
    - vae: file or folder of another autoencoder; tokenizer: folder of one, for single files, which have none.
    - variant: "fp16", for folders that have their weights by that name; prediction_type: "epsilon" or "v_prediction",
      what a single file's U-Net predicts, where it is not deduced rightly.
    - out: name of the picture, or a folder to put it in. None is a free name made from the prompt, in this folder.
    - animate: name of a GIF of the denoising.
    - width, height: in pixels; None is the size of `image`, or without one what the model was trained on.
    - image: a picture to start from; strength: how much of it is painted anew, 0 to 1. None is 0.8, or 1 with a mask.
    - mask: a picture as large as `image`, white where something new is to be painted, black where it is to stay.
    - mask_padding: paint only what lies around the mask, with so many pixels more on each side, at `width` by `height`
      (None: what the model was trained on), and put it back. None is the whole picture.
    - guidance_rescale: 0 to 1, how far guidance is kept from raising the contrast.
    - eta: how much fresh noise DDIM takes at each step, 0 to 1.
    - prompt_syntax: "plain", "a1111" or "comfyui", how weights such as (word:1.3) are read, and whether AND stands
      between several prompts, see `miniai.sd.prompt_parts`; long_prompts: "cut" or
      "chunks", what becomes of more tokens than the model's window.
    - clip_skip: how many of the text encoder's last layers are left out; None is what the model was trained with.
    - guidance_interval: the noise levels, as sigma, between which guidance acts; cache_interval: how many steps share
      the U-Net's deep features. Both make painting faster and the picture another.
    - vae_tiling, vae_slicing: decode in tiles, and one picture at a time, which takes less memory.
    - loras: LoRA files or folders, each with its strength, 1 as it was trained; embeddings: files of learned words. In
      the A1111 syntax <lora:NAME:0.8> in the prompt sets the strength of the LoRA whose file is called NAME.
    - compiled: have torch.compile write the U-Net's kernels, which takes minutes and makes each step faster.
    """

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    seed: int | None = None
    steps: int = STEPS
    sampler: str | None = None
    guidance_scale: int | float = GUIDANCE_SCALE
    model: Path | None = None
    out: Path | None = None
    animate: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    width: int | None = None
    height: int | None = None
    image: Path | None = None
    strength: int | float | None = None
    mask: Path | None = None
    mask_padding: int | None = None
    guidance_rescale: int | float = 0.0
    clip_skip: int | None = None
    eta: int | float = 0.0
    prompt_syntax: str = "plain"
    long_prompts: str = "cut"
    vae: Path | None = None
    tokenizer: Path | None = None
    variant: str | None = None
    prediction_type: str | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    guidance_interval: tuple[float, float] | None = None
    cache_interval: int = 1
    compiled: bool = False
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Targets:
    """Where the pictures go: `main` is the single picture, or the grid of several, whose own files are `singles`."""

    main: Path
    singles: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.singles, self.main)


def check_request(request: GenerateRequest) -> None:
    """Raise UserError for a number out of range, and for a strength or a mask of no picture."""
    check_ranges(
        ("--n", request.n, 1, MAX_N, "pictures"),
        ("--steps", request.steps, 1, MAX_STEPS, "steps"),
        ("--guidance-scale", request.guidance_scale, 0, MAX_GUIDANCE_SCALE, ""),
        ("--width", request.width, 1, MAX_SIDE, "pixels"),
        ("--height", request.height, 1, MAX_SIDE, "pixels"),
        ("--seed", request.seed, 0, MAX_SEED - MAX_N, ""),
        ("--strength", request.strength, 0, 1, ""),
        ("--mask-padding", request.mask_padding, 0, MAX_SIDE, "pixels"),
        ("--guidance-rescale", request.guidance_rescale, 0, 1, ""),
        ("--clip-skip", request.clip_skip, 0, MAX_CLIP_SKIP, "layers"),
        ("--eta", request.eta, 0, 1, ""),
        ("--cache-interval", request.cache_interval, 1, MAX_STEPS, "steps"),
    )
    for option, value, known in (
        ("--prompt-syntax", request.prompt_syntax, PROMPT_SYNTAXES),
        ("--long-prompts", request.long_prompts, LONG_PROMPTS),
        ("--prediction-type", request.prediction_type, PREDICTION_TYPES),
    ):
        if value not in known:
            raise UserError(f"{option} {value} is not there: give {' or '.join(filter(None, known))}")
    if request.image is None and (request.strength is not None or request.mask is not None):
        option = "--strength" if request.mask is None else "--mask"
        raise UserError(f"{option} belongs to a picture to start from: give it with --image FILE")
    if request.mask is None and request.mask_padding is not None:
        raise UserError("--mask-padding belongs to a mask: give it with --mask FILE")
    if request.animate is not None and request.mask_padding is not None:
        raise UserError("--animate shows a whole picture, and --mask-padding paints a part: leave one out")
    take_lora_tags(request)


def check_ranges(*numbers: tuple[str, int | float | None, int, int, str]) -> None:
    """Raise UserError for the first of (name, value, least, most, unit) that is out of range; None always passes."""
    for name, value, low, high, unit in numbers:
        if value is not None and not low <= value <= high:  # nor is a NaN
            raise UserError(f"{name} {value} is out of range: give {low} to {high} {unit}".rstrip())


def read_lora_option(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH. Raises UserError for a strength that is no number."""
    file, colon, strength = text.rpartition(":")
    if not text or (colon and not file):
        raise UserError(f"--lora {text!r} names no file: give FILE or FILE:STRENGTH")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(strength)
    except ValueError:
        return Path(text), 1.0  # a colon of the path's own
    if not math.isfinite(number):
        raise UserError(f"--lora {text}: the strength must be a number, such as 0.8")
    return Path(file), number


def lora_name(path: Path) -> str:
    """What a tag calls it: the name of its file, or of its folder."""
    return path.stem if path.suffix.lower() in _WEIGHT_FILES else path.name


def take_lora_tags(request: GenerateRequest) -> GenerateRequest:
    """The request with its prompt freed of A1111's tags, <lora:NAME:0.8>, and the strengths that they ask for.

    Other syntaxes know no tags. Raises UserError for a name that is no --lora's, and a strength that is no number.
    """
    if request.prompt_syntax != "a1111":
        return request
    strengths: dict[str, float] = {}
    names = {lora_name(path) for path, _ in request.loras}
    for tag in _LORA_TAG.findall(request.prompt):
        name, *numbers = tag.split(":")
        if name not in names:
            raise UserError(f"the prompt asks for the LoRA {name!r}: give its file, --lora {name}.safetensors")
        try:
            strengths[name] = float(*numbers) if numbers else 1.0
        except (ValueError, TypeError):
            strengths[name] = math.nan
        if not math.isfinite(strengths[name]):
            raise UserError(f"<lora:{tag}> in the prompt: give one strength, a number, such as <lora:{name}:0.8>")
    loras = tuple((path, strengths.get(lora_name(path), strength)) for path, strength in request.loras)
    return replace(request, prompt=_LORA_TAG.sub("", request.prompt), loras=loras)


def fresh_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**32)


def packaged_model() -> Path:
    """The model that comes with the package. Raises UserError if this installation has none."""
    folder = Path(str(files("miniai") / "models" / "emoji"))
    if not folder.is_dir():
        raise UserError("this installation has no model of its own: give one with --model FOLDER")
    return folder


def choose_targets(request: GenerateRequest) -> Targets:
    """The names of all pictures, each found to be writable; nothing is created. Raises UserError if one is not."""
    out = request.out
    if out is None or out.is_dir():
        targets = _free_targets(out or Path(), _stem(request.prompt), request.n)
    else:
        if not out.suffix and not out.exists():
            raise UserError(f"there is no folder {out}: make it first, or give a name that ends in .png")
        if out.suffix.lower() != ".png":
            raise UserError(f"cannot write {out}: pictures are PNG files, give a name that ends in .png, or a folder")
        targets = _targets(out, request.n)
    if request.animate is not None and request.animate.suffix.lower() != ".gif":
        raise UserError(f"cannot write {request.animate}: the animation is a GIF file, give a name that ends in .gif")
    for path in (*targets.all, *([request.animate] if request.animate is not None else [])):
        check_writable(path)
    return targets


def _targets(main: Path, n: int) -> Targets:
    singles = () if n == 1 else tuple(main.with_stem(f"{main.stem}_{i + 1}") for i in range(n))
    return Targets(main, singles)


def _free_targets(folder: Path, stem: str, n: int) -> Targets:
    """Names that no file has yet: an earlier picture of the same prompt is not written over."""
    number = 1
    while True:
        targets = _targets(folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png"), n)
        if not any(path.exists() or path.is_symlink() for path in targets.all):
            return targets
        number += 1


def _stem(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any script, at most 100 bytes."""
    words = "-".join(re.findall(r"[^\W_]+", prompt.lower()))
    return words.encode("utf-8", "ignore")[:100].decode("utf-8", "ignore").strip("-") or "picture"
