"""Checkpoints of one file, in LDM's names: the models in Diffusers' classes and its own conversion are the oracle."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldm_oracle import FLAVOURS, as_ldm, ldm_unet, ldm_vae, make
from sd_oracle import relative_error
from tiny_model import tiny_tokenizer

from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.images import open_image
from miniai.base.weights import read_weights, without_memory, write_weights
from miniai.cli import run
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.deduced_configs import predicts, text_config, unet_config, vae_config
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.single_file import find_tokenizer, read_vae

CPU = torch.device("cpu")


class Model:
    """One random model: Diffusers' pipeline, its tensors in LDM's names, and the file with them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.flavour = FLAVOURS[name]
        self.tokenizer = folder / "tokenizer"
        self.theirs = make(self.flavour, self.tokenizer)
        self.tensors = as_ldm(self.theirs)
        self.file = folder / "model.safetensors"
        write_weights(self.file, self.tensors)

    def ours(self, file: Path | None = None, **options: Any) -> StableDiffusionPipeline:
        options = {"tokenizer": self.tokenizer, "prediction_type": self.flavour.prediction_type} | options
        return StableDiffusionPipeline.from_single_file(file or self.file, **options)


@pytest.fixture(scope="module", params=FLAVOURS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model("1.x", tmp_path_factory.mktemp("one"))


def test_diffusers_reads_the_tensors_of_these_tests_as_they_were_written(model: Model) -> None:
    unet, vae = model.theirs.unet, model.theirs.vae
    back = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(model.tensors, unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(model.tensors, vae.config),
    }
    for name, module in (("unet", unet), ("vae", vae)):
        assert back[name].keys() == module.state_dict().keys()
        assert all(torch.equal(back[name][key].squeeze(), t.squeeze()) for key, t in module.state_dict().items())


def test_each_network_gets_the_tensors_it_had(model: Model) -> None:
    ours = model.ours()
    for mine, theirs in ((ours.unet, model.theirs.unet), (ours.vae, model.theirs.vae)):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(mine.state_dict()[name], t) for name, t in theirs.state_dict().items())
    assert ours.unet.config.attention_head_dim == model.flavour.unet["attention_head_dim"]
    assert not ours.unet.training


def test_the_text_encoder_says_what_transformers_says(model: Model) -> None:
    ids = tiny_tokenizer()(["a cat with sunglasses", "a rocket"])
    with torch.no_grad():
        theirs = model.theirs.text_encoder(ids, output_hidden_states=True)
        ours = model.ours().text_encoder(ids)
        expected = theirs.last_hidden_state
        if model.flavour.text["num_hidden_layers"] == 24:  # Stable Diffusion 2.x reads the layer before the last
            expected = model.theirs.text_encoder.final_layer_norm(theirs.hidden_states[-2])
    assert relative_error(ours.last_hidden_state, expected) < 1e-5


def test_a_single_file_paints_what_diffusers_paints(one: Model) -> None:
    request: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np"}
    request["latents"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs, ours = one.theirs(**request).images, one.ours()(**request, height=16, width=16).images
    assert abs(ours - theirs).max() < 1e-4


def test_the_command_line_paints_from_a_single_file_what_diffusers_paints(
    one: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--width", "16", "--height", "16", "--steps", "4", "--guidance-scale", "3", "--seed", "5"]
    files = ["--model", str(one.file), "--tokenizer", str(one.tokenizer)]
    assert run(["generate", "a cat", *files, *size]) == 0
    assert capsys.readouterr().out == "a-cat.png\n"
    request: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0}
    theirs = one.theirs("a cat", **request, generator=torch.Generator().manual_seed(5), output_type="np").images[0]
    ours = np.asarray(open_image(Path("a-cat.png"))) / 255
    assert ours.shape == theirs.shape == (16, 16, 3)
    assert abs(ours - theirs).max() < 1 / 255
    assert run(["generate", "a cat", *files, *size, "--variant", "fp16"]) == 2
    assert "--variant is for a folder" in capsys.readouterr().err
    assert run(["generate", "a cat", *files, *size, "--prediction-type", "v_prediction"]) == 0
    otherwise = np.asarray(open_image(Path("a-cat-2.png"))) / 255
    assert abs(otherwise - theirs).max() > 0.05


def test_diffusers_paints_the_same_from_the_same_file(one: Model, tmp_path: Path) -> None:
    one.theirs.save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()
    options: dict[str, Any] = {"config": str(tmp_path / "config"), "local_files_only": True, "safety_checker": None}
    theirs = diffusers.StableDiffusionPipeline.from_single_file(one.file, **options)
    theirs.set_progress_bar_config(disable=True)
    told = StableDiffusionPipeline.from_single_file(one.file, **options)  # the same keywords, and no other
    assert told.scheduler_config["_class_name"] == type(theirs.scheduler).__name__
    request: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "latent"}
    request["latents"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs(**request).images
    for ours in (one.ours(), told):
        assert relative_error(ours(**request, height=16, width=16).images, expected) < 1e-4


def test_a_folder_given_as_config_says_what_the_file_predicts(one: Model, tmp_path: Path) -> None:
    one.theirs.save_pretrained(tmp_path)
    schedule = read_json(tmp_path / "scheduler" / "scheduler_config.json") | {"prediction_type": "v_prediction"}
    write_json(tmp_path / "scheduler" / "scheduler_config.json", schedule | {"_class_name": "HeunDiscreteScheduler"})
    told = StableDiffusionPipeline.from_single_file(one.file, config=tmp_path)
    assert told.scheduler_config["prediction_type"] == "v_prediction"
    assert told.scheduler_config["_class_name"] == "HeunDiscreteScheduler"
    again = StableDiffusionPipeline.from_single_file(one.file, config=tmp_path, prediction_type="epsilon")
    assert again.scheduler_config["prediction_type"] == "epsilon"
    with pytest.raises(UserError, match="scheduler_config.json is missing"):
        StableDiffusionPipeline.from_single_file(one.file, config=tmp_path / "unet")


def test_a_pickled_file_reads_like_safetensors(one: Model, tmp_path: Path) -> None:
    beside = {"cond_stage_model.transformer.text_projection.weight": torch.eye(2)}  # painting does not need it
    torch.save({"state_dict": one.tensors | beside, "global_step": 470000, "epoch": 6}, tmp_path / "model.ckpt")
    ours, expected = one.ours(tmp_path / "model.ckpt"), one.ours()
    for part in ("text_encoder", "unet", "vae"):
        states = getattr(ours, part).state_dict(), getattr(expected, part).state_dict()
        assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_a_folder_made_of_a_single_file_loads_in_diffusers(model: Model, tmp_path: Path) -> None:
    model.ours(torch_dtype=torch.bfloat16).save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert theirs.scheduler.config.prediction_type == model.flavour.prediction_type
    assert type(theirs.scheduler) is type(model.theirs.scheduler)
    for name, tensor in model.theirs.unet.state_dict().items():
        assert torch.equal(theirs.unet.state_dict()[name], tensor.bfloat16())


def test_another_autoencoder_takes_the_place_of_the_files_own(one: Model, tmp_path: Path) -> None:
    other = {name: tensor * 2 for name, tensor in ldm_vae(one.theirs.vae).items()}
    write_weights(tmp_path / "vae.safetensors", other)
    torch.save(
        {"state_dict": other | {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.ones(())}}, tmp_path / "vae.pt"
    )
    one.theirs.vae.save_pretrained(tmp_path / "folder")
    read_twice = [one.ours(vae=tmp_path / name).vae for name in ("vae.safetensors", "vae.pt")]
    expected = one.theirs.vae.state_dict()
    for vae in read_twice:
        assert all(torch.equal(vae.state_dict()[name], 2 * tensor) for name, tensor in expected.items())
    for name in ("folder", "folder/diffusion_pytorch_model.safetensors"):
        state = read_vae(tmp_path / name, torch.float32, CPU).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    one.theirs.save_pretrained(tmp_path / "model")
    changed = StableDiffusionPipeline.from_pretrained(tmp_path / "model", vae=tmp_path / "vae.pt").vae
    assert torch.equal(changed.decoder.conv_in.weight, 2 * expected["decoder.conv_in.weight"])
    without = {name: tensor for name, tensor in one.tensors.items() if not name.startswith("first_stage_model")}
    write_weights(tmp_path / "unet.safetensors", without)
    with pytest.raises(UserError, match="has no autoencoder .*: give one, vae=FILE or FOLDER"):
        one.ours(tmp_path / "unet.safetensors")
    assert one.ours(tmp_path / "unet.safetensors", vae=read_twice[0]).vae is read_twice[0]


def test_the_tokenizer_comes_from_a_folder_or_the_local_cache(
    one: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="has no tokenizer, and the local Hugging Face cache none"):
        one.ours(tokenizer=None)
    snapshot = tmp_path / "models--openai--clip-vit-large-patch14" / "snapshots" / "abc"
    shutil.copytree(one.tokenizer, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    expected = tiny_tokenizer()(["a cat!"])
    assert torch.equal(one.ours(tokenizer=None).tokenizer(["a cat!"]), expected)
    shutil.copytree(one.tokenizer, tmp_path / "model" / "tokenizer")
    assert torch.equal(one.ours(tokenizer=tmp_path / "model").tokenizer(["a cat!"]), expected)


def test_a_model_of_2_x_pads_as_its_published_folder_does() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.vocab["!"] == 0
    padded = find_tokenizer(tokenizer, pads_with_first=True)(["a cat"])[0].tolist()
    end = padded.index(tokenizer.eos_id)
    assert padded[: end + 1] == tokenizer(["a cat"])[0].tolist()[: end + 1]
    assert set(padded[end + 1 :]) == {0}


def test_the_configs_of_the_published_models_are_deduced() -> None:
    two = UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    with without_memory():
        for config in (UNetConfig(), UNetConfig(in_channels=9), two):
            found = unet_config(UNet2DConditionModel(config).state_dict(), 64, "f")
            assert found == config
        assert vae_config(AutoencoderKL(VAEConfig()).state_dict(), "f") == VAEConfig()
        clip = CLIPTextConfig(pad_token_id=49407)
        assert text_config(CLIPTextModel(clip).state_dict(), "quick_gelu", "f") == clip
        open_clip = CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
            pad_token_id=0,
        )
        assert text_config(CLIPTextModel(open_clip).state_dict(), "gelu", "f") == open_clip


def test_v_prediction_is_taken_from_the_caller_the_file_or_the_known_marker(one: Model, tmp_path: Path) -> None:
    bias = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
    wide, narrow = torch.linspace(-1, 1, 320) * 0.2, torch.linspace(-1, 1, 320) * 0.1
    four, nine = torch.zeros(320, 4, 3, 3), torch.zeros(320, 9, 3, 3)
    assert predicts({bias: wide, "conv_in.weight": four}, True, {}, {}) == "v_prediction"
    assert predicts({bias: narrow, "conv_in.weight": four}, True, {}, {}) == "epsilon"
    assert predicts({bias: wide, "conv_in.weight": nine}, True, {}, {}) == "epsilon"
    assert predicts({bias: wide, "conv_in.weight": four}, False, {}, {}) == "epsilon"
    assert predicts({}, False, {"v_pred": torch.zeros(1)}, {}) == "v_prediction"
    assert (
        predicts({bias: wide, "conv_in.weight": four}, True, {}, {"modelspec.prediction_type": "epsilon"}) == "epsilon"
    )
    write_weights(tmp_path / "v.safetensors", one.tensors, {"modelspec.prediction_type": "v"})
    assert (
        one.ours(tmp_path / "v.safetensors", prediction_type=None).scheduler_config["prediction_type"] == "v_prediction"
    )
    assert one.ours(prediction_type=None).scheduler_config["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"conditioner.embedders.0.transformer.x": 1}, "of the SDXL family: miniai runs"),
        ({"model.diffusion_model.label_emb.0.0.weight": 1}, "of the SDXL family"),
        ({"model.diffusion_model.joint_blocks.0.x": 1}, "of the Stable Diffusion 3 family"),
        ({"double_blocks.0.img_attn.proj.weight": 1}, "of the Flux family"),
        ({"lora_unet_down_blocks_0.lora_up.weight": 1}, "of the LoRA family"),
        ({"model.diffusion_model.*": None}, "has no U-Net in LDM's names"),
        ({"cond_stage_model.*": None}, "has no text encoder"),
        ({"model.diffusion_model.input_blocks.*": None}, "has no U-Net of Stable Diffusion"),
        ({"model.diffusion_model.out.2.weight": None}, "lacks conv_out.weight"),
        ({"model.diffusion_model.middle_block.1.norm.bias": None}, "lacks mid_block.attentions.0.norm.bias"),
        ({"model.diffusion_model.extra": 1}, "has extra, which UNet2DConditionModel lacks"),
        ({"model.diffusion_model.out.2.bias": 1}, r"conv_out.bias has shape \(1,\)"),
        ({"first_stage_model.decoder.conv_in.weight": None}, "lacks decoder.conv_in.weight"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None}, "lacks text_model.final_layer_norm"),
    ],
)
def test_a_file_of_another_kind_or_not_whole_is_a_user_error(
    one: Model, tmp_path: Path, changes: dict[str, int | None], complaint: str
) -> None:
    tensors = dict(one.tensors)
    for name, size in changes.items():
        for key in [key for key in tensors if key == name or (name.endswith("*") and key.startswith(name[:-1]))]:
            del tensors[key]
        if size is not None:
            tensors[name] = torch.zeros(size)
    write_weights(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError, match=complaint) as caught:
        one.ours(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def small_file(folder: Path) -> tuple[list[str], Path]:
    """Names that a checkpoint has, and where to write some of the kind."""
    names = [
        *(
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.input_blocks.1.0.out_layers.3.weight",
        ),
        *(
            "model.diffusion_model.middle_block.1.proj_in.weight",
            "first_stage_model.encoder.down.0.block.0.conv2.weight",
        ),
        *(
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            "model.diffusion_model.out.2.weight",
        ),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
    ]
    return names, folder / "small.safetensors"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_of_any_names_and_shapes_read_or_are_a_user_error(
    one: Model, tmp_path: Path, data: st.DataObject
) -> None:
    names, path = small_file(tmp_path)
    renamed = {}
    for name in names:
        pieces = name.split(".")
        place = data.draw(st.integers(0, len(pieces) - 1))
        if data.draw(st.booleans()):
            pieces[place] = data.draw(st.sampled_from(["0", "7", "999999", "x", "", "conv", "op", "-1"]))
        shape = data.draw(st.lists(st.integers(0, 3), max_size=4))
        renamed[".".join(pieces)] = torch.zeros(shape)
    write_weights(path, renamed)
    with pytest.raises(UserError) as caught:
        one.ours(path)
    assert "\n" not in str(caught.value)


def test_writing_ldm_names_loses_no_tensor(model: Model) -> None:
    assert len(ldm_unet(model.theirs.unet)) == len(model.theirs.unet.state_dict())
    assert len(read_weights(model.file)) == len(model.tensors)
