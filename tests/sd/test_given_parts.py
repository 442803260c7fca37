"""Parts that the caller has already, ours or other libraries': Diffusers is the oracle."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from sd_oracle import make_diffusers_pipeline, relative_error

from miniai.base.errors import UserError
from miniai.nn.clip import CLIPTextModel
from miniai.nn.packed import is_packed
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer

REQUEST: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of other weights: from the second come the parts."""
    places = []
    for i in range(2):
        place = tmp_path_factory.mktemp(f"model-{i}")
        pipe = make_diffusers_pipeline(place / "tokenizer", "v_prediction")
        with torch.no_grad():
            for module in (pipe.unet, pipe.text_encoder):
                for weight in module.parameters():
                    weight.mul_(1 - 0.1 * i)
        pipe.save_pretrained(place / "model")
        places.append(place / "model")
    return places[0], places[1]


def paint(pipe: Any) -> torch.Tensor:
    return pipe(**REQUEST, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("names", [("unet",), ("text_encoder",), ("unet", "text_encoder", "tokenizer")])
def test_given_parts_paint_as_in_diffusers(folders: tuple[Path, Path], names: tuple[str, ...]) -> None:
    """Those of Diffusers and transformers here, and ours, which are read from the second folder."""
    first, second = folders
    other = diffusers.StableDiffusionPipeline.from_pretrained(second)
    theirs = {name: getattr(other, name) for name in names}
    expected = paint(diffusers.StableDiffusionPipeline.from_pretrained(first, **theirs))
    own = StableDiffusionPipeline.from_pretrained(second)
    for given in (theirs, {name: getattr(own, name) for name in names}):
        pipe = StableDiffusionPipeline.from_pretrained(first, **given)
        assert relative_error(paint(pipe), expected) < 1e-4
        kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
        assert all(isinstance(getattr(pipe, name), kinds[name]) for name in names)
    assert relative_error(paint(StableDiffusionPipeline.from_pretrained(first)), expected) > 0.01


def test_a_tokenizer_is_taken_in_each_form(folders: tuple[Path, Path]) -> None:
    folder = folders[0]
    texts = ["a cat with sunglasses", "Zwei Katzen, 猫"]
    expected = CLIPTokenizer.from_pretrained(folder / "tokenizer")(texts)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for given in (theirs, folder / "tokenizer", str(folder / "tokenizer")):
        pipe = StableDiffusionPipeline.from_pretrained(folder, tokenizer=given)
        assert torch.equal(pipe.tokenizer(texts), expected)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"unet": torch.nn.Linear(2, 2)}, "unet is Linear: give a UNet2DConditionModel"),
        ({"text_encoder": "text_encoder"}, "text_encoder is str: give a CLIPTextModel"),
        ({"tokenizer": 3}, "tokenizer is int: give a CLIPTokenizer, or the folder of one"),
        ({"tokenizer": "nowhere"}, "nowhere: no such tokenizer folder"),
    ],
)
def test_what_is_no_such_part_is_told_in_one_line(folders: tuple[Path, Path], given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        StableDiffusionPipeline.from_pretrained(folders[0], **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ours_are_taken_themselves_or_copied_into_the_dtype_that_is_asked_for(
    folders: tuple[Path, Path], dtype: torch.dtype
) -> None:
    """From a packed pipeline too, where this CPU packs: in float32 nothing stays so, and the original is as it was."""
    own = StableDiffusionPipeline.from_pretrained(folders[1], torch_dtype=dtype)
    own.unet.train()
    before = paint(own)
    for wanted in (torch.float32, torch.bfloat16):
        given = {"unet": own.unet, "vae": own.vae, "text_encoder": own.text_encoder}
        pipe = StableDiffusionPipeline.from_pretrained(folders[0], torch_dtype=wanted, **given)
        assert all((getattr(pipe, name) is part) == (wanted == dtype) for name, part in given.items())
        assert pipe.dtype == wanted
        assert torch.equal(paint(own), before)
        assert own.unet.training
        if wanted != dtype:
            assert not pipe.unet.training
            assert wanted != torch.float32 or not is_packed(pipe.unet)
            for name in given:
                ours, theirs = getattr(pipe, name).state_dict(), getattr(own, name).state_dict()
                assert all(torch.equal(ours[key], theirs[key].to(wanted)) for key in theirs)


def test_a_folder_may_lack_what_is_given(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = StableDiffusionPipeline.from_pretrained(folders[1])
    parts = {name: getattr(own, name) for name in ("tokenizer", "text_encoder", "unet", "vae")}
    for name, part in parts.items():
        lacking = shutil.copytree(folders[0], tmp_path / name)
        shutil.rmtree(lacking / name)
        assert getattr(StableDiffusionPipeline.from_pretrained(lacking, **{name: part}), name) is part
        with pytest.raises(UserError):
            StableDiffusionPipeline.from_pretrained(lacking)


def test_layers_by_other_names_are_told_in_one_line(folders: tuple[Path, Path]) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folders[1] / "unet")
    theirs.conv_in = torch.nn.Sequential(theirs.conv_in)  # as training with adapters renames them
    with pytest.raises(UserError, match=r"unet.*conv_in"):
        StableDiffusionPipeline.from_pretrained(folders[0], unet=theirs)


def test_a_part_that_does_not_fit_the_others_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wider = make_diffusers_pipeline(tmp_path, "inpainting").unet
    config = dict(wider.config) | {"cross_attention_dim": 24}
    with pytest.raises(UserError, match="the parts do not belong together"):
        StableDiffusionPipeline.from_pretrained(folders[0], unet=diffusers.UNet2DConditionModel.from_config(config))
