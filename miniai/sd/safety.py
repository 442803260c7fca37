"""The safety checker that Stable Diffusion 1.x folders come with: it says which pictures are near concepts that its
authors wanted kept out (Rombach et al. 2022's model card; after Diffusers' StableDiffusionSafetyChecker).

Here it only says so. No picture is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.weights import give_weights, without_memory
from miniai.nn.clip import CLIPVisionConfig, CLIPVisionModel
from miniai.sd.weight_files import read_part

N_CONCEPTS, N_SPECIAL = 17, 3
_CARE = 0.01  # how much sooner a concept counts in a picture that is near a special one
# CLIP's pictures: the mean and deviation of each colour (Radford et al. 2021, their code)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SafetyChecker(nn.Module):
    """CLIP's image encoder, and the concepts with the cosine from which on each of them counts."""

    def __init__(self, config: CLIPVisionConfig, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, projection_dim, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(N_CONCEPTS, projection_dim))
        self.special_care_embeds = nn.Parameter(torch.ones(N_SPECIAL, projection_dim))
        self.concept_embeds_weights = nn.Parameter(torch.ones(N_CONCEPTS))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(N_SPECIAL))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[bool]:
        """Which of the pictures, as `prepare` makes them, are near one of the concepts."""
        vectors = F.normalize(self.visual_projection(self.vision_model(images.to(self.concept_embeds))), dim=-1)

        def excess(concepts: Tensor, thresholds: Tensor) -> Tensor:
            return (vectors @ F.normalize(concepts, dim=-1).T).float() - thresholds.float()

        special = _beyond(excess(self.special_care_embeds, self.special_care_embeds_weights)).any(dim=1, keepdim=True)
        concepts = excess(self.concept_embeds, self.concept_embeds_weights) + special * _CARE
        return _beyond(concepts).any(dim=1).tolist()


@dataclass(frozen=True)
class SafetyFlags:
    """The checker, and the sides in pixels to which it wants pictures resized and cut."""

    checker: SafetyChecker
    resized: int
    cut: int

    def __call__(self, images: list[Image.Image]) -> list[bool]:
        """One flag for each picture."""
        return self.checker(torch.cat([prepare(image, self.resized, self.cut) for image in images]))


def prepare(image: Image.Image, resized: int, cut: int) -> Float[Tensor, "1 3 h w"]:
    """A picture as CLIP reads it: its shorter side `resized`, its middle `cut` out, colours in CLIP's units."""
    short = min(image.size)
    width, height = (resized if side == short else int(resized * side / short) for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - cut) // 2, (height - cut) // 2
    image = image.crop((left, top, left + cut, top + cut))
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(cut, cut, 3).float() / 255
    return ((levels - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(2, 0, 1)[None]


def has_safety_checker(folder: Path) -> bool:
    """Whether a model folder has a safety checker and names it in its index."""
    entry = read_json(folder / "model_index.json").get("safety_checker")
    return entry not in (None, [None, None]) and (folder / "safety_checker").is_dir()


def read_safety_checker(folder: Path, dtype: torch.dtype, device: torch.device, variant: str | None) -> SafetyFlags:
    """The safety checker of a model folder. Raises UserError if it has none, or it is damaged."""
    part = folder / "safety_checker"
    if not part.is_dir():
        raise UserError(f"{folder} has no safety checker: get the folder again")
    config = read_json(part / "config.json")
    path = folder / "feature_extractor" / "preprocessor_config.json"
    pixels = read_json(path) if path.is_file() else {}
    tensors, where = read_part(part, "model", variant, safetensors_only=False)

    def build() -> SafetyChecker:
        vision = CLIPVisionConfig.from_dict(config["vision_config"], str(part / "config.json"))
        return SafetyChecker(vision, int(config.get("projection_dim", 512)))

    with without_memory():
        checker = _or_user_error(build, part / "config.json")
    give_weights(checker, _known_names(tensors), where, dtype, device)
    resized, cut = _or_user_error(lambda: (_side(pixels, "size"), _side(pixels, "crop_size")), path)
    return SafetyFlags(checker.eval(), resized, cut)


def _beyond(excess: Float[Tensor, "b n"]) -> Tensor:
    """Diffusers rounds to three places before it asks."""
    return excess >= 0.0005


def _side(pixels: dict[str, Any], key: str) -> int:
    side = pixels.get(key, 224)
    side = side.get("shortest_edge", side.get("height", 224)) if isinstance(side, dict) else side
    if type(side) is not int or not 1 <= side <= 4096:
        raise ValueError(f"{key} is {side!r}")
    return side


def _known_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors by their older names, which transformers 5 cut short, without position numbers."""
    named = {}
    for name, tensor in tensors.items():
        if name.startswith("vision_model.") and not name.startswith("vision_model.vision_model."):
            name = f"vision_model.{name}"
        if not name.endswith("position_ids"):
            named[name] = tensor
    return named


def _or_user_error(make: Callable[[], Any], path: Path) -> Any:
    try:
        return make()
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} describes a safety checker that cannot be built ({reason}): correct it") from error
