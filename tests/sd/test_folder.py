"""A model folder is read strictly: each kind of damage has its own words, and nothing half-read comes back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import read_weights, write_weights
from miniai.sd.folder import TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS, Components, read_folder
from miniai.sd.pipeline import StableDiffusionPipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(whole, tmp_path / "model")


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Components:
    return read_folder(folder, dtype, torch.device("cpu"))


def states(parts: Any) -> list[dict[str, torch.Tensor]]:
    return [module.state_dict() for module in (parts.text_encoder, parts.unet, parts.vae)]


def test_what_was_saved_is_read_back_bit_for_bit(whole: Path) -> None:
    for ours, saved in zip(states(read(whole)), states(tiny_pipeline()), strict=True):
        assert ours.keys() == saved.keys()
        assert all(torch.equal(ours[name], saved[name]) for name in saved)


def test_reading_takes_the_dtype_asked_for_and_is_ready_to_infer(whole: Path) -> None:
    parts = read(whole, torch.bfloat16)
    assert {tensor.dtype for state in states(parts) for tensor in state.values()} == {torch.bfloat16}
    assert not any(module.training for part in (parts.text_encoder, parts.unet, parts.vae) for module in part.modules())


def test_saving_twice_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) == 12
    assert all((tmp_path / name).read_bytes() == (whole / name).read_bytes() for name in files)


def test_text_encoders_without_prefix_and_with_position_numbers_are_read_too(folder: Path, whole: Path) -> None:
    tensors = read_weights(whole / TEXT_WEIGHTS)
    write_weights(folder / TEXT_WEIGHTS, {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()})
    assert states(read(folder))[0].keys() == tensors.keys()
    write_weights(folder / TEXT_WEIGHTS, tensors | {"text_model.embeddings.position_ids": torch.arange(16)[None]})
    assert states(read(folder))[0].keys() == tensors.keys()


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = read_json(folder / name) | changes
        write_json(folder / name, {key: value for key, value in values.items() if value != "GONE"})

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50]) and None


def rename_weights(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename((folder / UNET_WEIGHTS).with_suffix(".bin"))


def replace_by_junk(folder: Path) -> None:
    rename_weights(folder)
    (folder / UNET_WEIGHTS).with_suffix(".bin").write_bytes(b"junk" * 99)


def change_tensor(name: str, tensor: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {key: kept.clone() for key, kept in read_weights(folder / name).items() if key != tensor}
        write_weights(folder / name, tensors | ({} if value is None else {tensor: value}))

    return change


UNET_CONFIG, VAE_CONFIG, TEXT_CONFIG = "unet/config.json", "vae/config.json", "text_encoder/config.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "there is no folder .*model"),
    (remove("model_index.json"), "has no model_index.json"),
    (overwrite("model_index.json", b"{"), "model_index.json is not valid JSON"),
    (overwrite("model_index.json", b"[]"), "model_index.json: expected a JSON object"),
    (change_json("model_index.json", _class_name="KandinskyPipeline"), "says KandinskyPipeline: miniai runs"),
    (change_json("model_index.json", _class_name="StableDiffusionXLPipeline"), "a model of the SDXL family"),
    (change_json("model_index.json", _class_name="StableDiffusion3Pipeline"), "a model of the Stable Diffusion 3 fam"),
    (change_json("model_index.json", _class_name="FluxPipeline"), "FluxPipeline, a model of the Flux family"),
    (change_json("model_index.json", unet=["diffusers", "UNet3DConditionModel"]), "unet is a UNet3DConditionModel"),
    (change_json("model_index.json", text_encoder="GONE"), "text_encoder is a None"),
    (lambda folder: shutil.rmtree(folder / "vae"), "vae/config.json is missing"),
    (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer: no such tokenizer folder"),
    (remove("tokenizer/merges.txt"), "merges.txt is missing"),
    (remove("scheduler/scheduler_config.json"), "scheduler_config.json is missing"),
    (remove(UNET_CONFIG), "unet/config.json is missing"),
    (remove(UNET_WEIGHTS), "diffusion_pytorch_model.safetensors is missing"),
    (replace_by_junk, "diffusion_pytorch_model.bin: it is damaged or no PyTorch checkpoint"),
    (truncate(UNET_WEIGHTS), "unet/diffusion_pytorch_model.safetensors is truncated"),
    (truncate(TEXT_WEIGHTS), "text_encoder/model.safetensors is truncated"),
    (overwrite(VAE_WEIGHTS, LFS), "vae/diffusion_pytorch_model.safetensors is a git-LFS pointer"),
    (overwrite(VAE_WEIGHTS, b"<html>404</html>"), "vae/diffusion_pytorch_model.safetensors is a web page"),
    (overwrite(VAE_WEIGHTS, b"PK\x03\x04" + b"\0" * 99), "is a pickled checkpoint"),
    (change_tensor(UNET_WEIGHTS, "conv_in.bias", None), "safetensors lacks conv_in.bias"),
    (change_tensor(UNET_WEIGHTS, "conv_in.extra", torch.zeros(1)), "safetensors has conv_in.extra"),
    (change_tensor(UNET_WEIGHTS, "conv_in.bias", torch.zeros(9)), r"conv_in.bias has shape \(9,\)"),
    (change_json(UNET_CONFIG, colour=1), "unet/config.json: UNetConfig does not know colour"),
    (change_json(UNET_CONFIG, act_fn="gelu"), "unet/config.json: act_fn is 'gelu'"),
    (change_json(UNET_CONFIG, block_out_channels="wide"), "unet/config.json: block_out_channels is 'wide'"),
    (change_json(UNET_CONFIG, norm_num_groups=3), "unet/config.json describes a model that cannot be built"),
    (change_json(UNET_CONFIG, block_out_channels=[8]), "unet/"),
    (change_json(UNET_CONFIG, block_out_channels=[8, 2**40]), "unet/"),
    (change_json(TEXT_CONFIG, hidden_act="mish"), "text_encoder/config.json describes a model that cannot be built"),
    (change_json(TEXT_CONFIG, num_hidden_layers=1), "which CLIPTextModel lacks"),
    (change_json(VAE_CONFIG, latent_channels=3), "vae/"),
    (change_json("tokenizer/tokenizer_config.json", model_max_length=77), "the tokenizer's window is 77 tokens"),
    (change_json("scheduler/scheduler_config.json", beta_end="x"), "scheduler_config.json: beta_end is 'x'"),
    (change_json("scheduler/scheduler_config.json", prediction_type="flow"), "prediction_type is 'flow'"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE, ids=[complaint for _, complaint in DAMAGE])
def test_a_damaged_folder_is_a_user_error_that_names_the_file(
    folder: Path, damage: Callable[[Path], Any], complaint: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=complaint) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_parts_that_are_whole_but_of_different_models_are_refused(folder: Path) -> None:
    wide = read_json(folder / UNET_CONFIG) | {"in_channels": 8}
    write_json(folder / UNET_CONFIG, wide)
    tensors = {name: tensor.clone() for name, tensor in read_weights(folder / UNET_WEIGHTS).items()}
    tensors["conv_in.weight"] = torch.zeros(8, 8, 3, 3)
    write_weights(folder / UNET_WEIGHTS, tensors)
    with pytest.raises(UserError, match="do not belong together .the unet has 8 channels in and 4 out"):
        read(folder)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file: give the folder"):
        read(tmp_path / "model.safetensors")


def test_saving_that_fails_leaves_no_index_behind(tmp_path: Path) -> None:
    (tmp_path / "unet").write_bytes(b"")  # a file stands where a folder should
    with pytest.raises(UserError, match="cannot make the folder"):
        tiny_pipeline().save_pretrained(tmp_path)
    assert not (tmp_path / "model_index.json").exists()


def test_an_index_by_diffusers_with_other_parts_is_read(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "tokenizer": ["x", "CLIPTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    assert StableDiffusionPipeline.from_pretrained(folder).unet.config.in_channels == 4
