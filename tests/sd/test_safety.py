"""The safety checker of a folder: it flags what Diffusers' flags, and changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import read_weights, write_weights
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.safety import prepare, read_safety_checker

CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(scope="module")
def theirs() -> StableDiffusionSafetyChecker:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=vision | {"image_size": SIDE, "patch_size": 4}, projection_dim=12)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for parameter in checker.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        # Thresholds that some of the pictures are beyond, and some are not
        vectors = checker.visual_projection(checker.vision_model(prepared(60)).pooler_output)
        for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.8)):
            cosines = cosine_distance(vectors, getattr(checker, name))
            getattr(checker, f"{name}_weights").copy_(cosines.quantile(share, dim=0))
    return checker


def prepared(n: int) -> torch.Tensor:
    return torch.cat([prepare(image, SIDE, SIDE) for image in pictures(n)])


@pytest.fixture
def folder(theirs: StableDiffusionSafetyChecker, tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path)
    index = read_json(tmp_path / "model_index.json")
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write_json(tmp_path / "model_index.json", index)
    theirs.save_pretrained(tmp_path / "safety_checker")
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    extractor.save_pretrained(tmp_path / "feature_extractor")
    return tmp_path


def pictures(n: int, width: int = SIDE, height: int = SIDE) -> list[Image.Image]:
    levels = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in levels]


def test_flags_are_those_of_diffusers(theirs: StableDiffusionSafetyChecker, folder: Path) -> None:
    flags = read_safety_checker(folder, torch.float32, CPU, None)
    images = pictures(60)
    _, expected = theirs(images=[np.asarray(image) for image in images], clip_input=prepared(60))
    assert 5 < sum(expected) < 55
    assert flags(images) == expected


@pytest.mark.parametrize(("width", "height"), [(SIDE, SIDE), (40, 30), (23, 64)])
def test_pictures_are_prepared_as_transformers_prepares_them(width: int, height: int) -> None:
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    (image,) = pictures(1, width, height)
    expected = extractor(image, return_tensors="pt")["pixel_values"]
    assert (prepare(image, SIDE, SIDE) - expected).abs().max() < 0.02  # a level of 256 is 0.015


def test_flags_come_with_the_pictures_and_change_none(folder: Path) -> None:
    request = {"prompt": "a cat", "num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "np"}
    request["latents"] = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)(**request)
    assert plain.nsfw_content_detected is None
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        assert pipe.safety_flags is not None
        pipe.safety_flags.checker.concept_embeds_weights.fill_(-2)  # everything is beyond
    flagged = pipe(**request)
    assert flagged.nsfw_content_detected == [True, True]
    assert np.array_equal(flagged.images, plain.images)
    assert pipe(**request | {"output_type": "latent"}).nsfw_content_detected is None


def test_names_from_before_transformers_5_are_read(folder: Path) -> None:
    path = folder / "safety_checker" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_weights(path).items()}
    short = "vision_model.embeddings.class_embedding"
    older = {name.replace("vision_model.", "vision_model.vision_model.", 1): t for name, t in tensors.items()}
    older["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    new_flags = read_safety_checker(folder, torch.float32, CPU, None)(pictures(9))
    if short in tensors:
        write_weights(path, older)
    assert read_safety_checker(folder, torch.float32, CPU, None)(pictures(9)) == new_flags


def test_a_checker_that_is_damaged_is_a_user_error(folder: Path) -> None:
    config = folder / "safety_checker" / "config.json"
    values = read_json(config)
    for change, complaint in (({"vision_config": None}, "cannot be built"), ({"projection_dim": 13}, "has shape")):
        write_json(config, values | change)
        with pytest.raises(UserError, match=complaint):
            StableDiffusionPipeline.from_pretrained(folder)
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)  # then nobody reads it
    write_json(config, values)
    write_json(folder / "feature_extractor" / "preprocessor_config.json", {"size": "large"})
    with pytest.raises(UserError, match=r"preprocessor_config.json describes .*size is 'large'"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_a_folder_without_a_checker_or_whose_index_names_none_gives_no_flags(folder: Path, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "without")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "without").safety_flags is None
    write_json(folder / "model_index.json", read_json(folder / "model_index.json") | {"safety_checker": [None, None]})
    assert StableDiffusionPipeline.from_pretrained(folder).safety_flags is None
    with pytest.raises(UserError, match="has no safety checker"):
        read_safety_checker(tmp_path / "without", torch.float32, CPU, None)
