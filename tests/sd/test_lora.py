"""LoRA: Diffusers, with PEFT, is the oracle; the closed form, W + scale · up · down, is the other."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sd_oracle import make_diffusers_pipeline, relative_error
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.nn.low_rank import LowRank, adapters_of
from miniai.nn.packed import can_pack, is_packed, unpack_weights
from miniai.sd.ldm_names import ldm_names_of_unet, unet_from_ldm
from miniai.sd.lora_files import write_lora
from miniai.sd.pipeline import StableDiffusionPipeline

UNET_LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv_in", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "conv", "linear_1"),
]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
FLAVOURS = ["epsilon", "v_prediction", "three_levels"]


def lora_of(
    pipe: diffusers.StableDiffusionPipeline, seed: int, alpha: float = 6, text: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """PEFT's tensors of a random LoRA of rank 3 for the U-Net, and one for the text encoder; `pipe` has them too."""
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=UNET_LAYERS, init_lora_weights=False))
    unet = get_peft_model_state_dict(pipe.unet)
    if not text:
        return unet, {}
    pipe.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TEXT_LAYERS, init_lora_weights=False))
    return unet, get_peft_model_state_dict(pipe.text_encoder)


@pytest.fixture(scope="module", params=FLAVOURS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, beside it LoRAs of it in every form."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = make_diffusers_pipeline(folder / "tokenizer", request.param)
    pipe.save_pretrained(folder / "model")
    save_loras(folder, pipe)
    return folder


def save_loras(folder: Path, pipe: diffusers.StableDiffusionPipeline) -> None:
    unet, text = lora_of(pipe, seed=1)
    text = {f"text_model.{name}": tensor for name, tensor in text.items()}
    layers = {"unet_lora_layers": unet, "text_encoder_lora_layers": text}
    pipe.save_lora_weights(folder / "peft", **layers)
    pipe.save_lora_weights(
        folder / "metadata", **layers, **_collate_lora_metadata({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    )
    # Diffusers looks at the first name alone, and in a file that has new names too passes over all others.
    old = {name: convert_state_dict_to_diffusers(dict(tensors)) for name, tensors in layers.items()}
    old["unet_lora_layers"] = {n: t for n, t in old["unet_lora_layers"].items() if ".lora." in n}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.up.weight" in old["unet_lora_layers"]
    pipe.save_lora_weights(folder / "diffusers", **old)
    named = {f"unet.{name}": tensor for name, tensor in unet.items()}
    named |= {f"text_encoder.{name}": tensor for name, tensor in text.items()}
    kohya = convert_state_dict_to_kohya(dict(named))
    kohya = {name: torch.tensor(1.5) if name.endswith("alpha") else t for name, t in kohya.items()}
    save_file({name: tensor.contiguous() for name, tensor in kohya.items()}, folder / "kohya.safetensors")


def read_both(model: Path) -> tuple[diffusers.StableDiffusionPipeline, StableDiffusionPipeline]:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model / "model")
    theirs.set_progress_bar_config(disable=True)
    return theirs, StableDiffusionPipeline.from_pretrained(model / "model")


def paint(pipe: Any, **options: Any) -> torch.Tensor:
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe(
        "a cat", num_inference_steps=2, guidance_scale=2.0, latents=start, output_type="latent", **options
    ).images


@pytest.mark.parametrize("form", ["peft", "metadata", "diffusers", "kohya.safetensors"])
def test_a_lora_in_any_form_changes_pictures_as_in_diffusers(model: Path, form: str) -> None:
    theirs, ours = read_both(model)
    without = paint(ours)
    for pipe in (theirs, ours):
        pipe.load_lora_weights(model / form)
    expected = paint(theirs)
    assert relative_error(without, expected) > 0.05
    assert relative_error(paint(ours), expected) < 1e-4


def test_alpha_counts(model: Path) -> None:
    _, ours = read_both(model)
    found = []
    for form in ("peft", "metadata", "kohya.safetensors"):
        ours.load_lora_weights(model / form)
        found.append(paint(ours))
    assert relative_error(found[1], found[0]) > 0.01
    assert relative_error(found[2], found[0]) > 0.01


def test_strengths_scales_and_several_loras_are_those_of_diffusers(model: Path) -> None:
    theirs, ours = read_both(model)
    second, _ = lora_of(make_diffusers_pipeline(model / "again", "epsilon"), seed=2, text=False)
    is_same_shape = "epsilon" in model.name
    for pipe in (theirs, ours):
        pipe.load_lora_weights(model / "kohya.safetensors", adapter_name="one")
        if is_same_shape:
            pipe.load_lora_weights({f"unet.{name}": tensor for name, tensor in second.items()}, adapter_name="two")

    def alike(**options: Any) -> torch.Tensor:
        expected = paint(theirs, **options)
        assert relative_error(paint(ours, **options), expected) < 1e-4
        return expected

    seen = [alike()]  # of the second, which changes the U-Net alone; the text encoder has the first one's still
    settings: list[Any] = [(["one"], [0.5]), ("one", {"unet": 0.5, "text_encoder": 0.0})]
    if is_same_shape:
        settings += [("one", 1.0), (["one", "two"], [0.7, -0.4]), (["two"], None)]
    for names, weights in settings:
        for pipe in (theirs, ours):
            pipe.set_adapters(names, weights)
        seen.append(alike())
    seen.append(alike(cross_attention_kwargs={"scale": 0.3}))
    assert all(relative_error(a, b) > 1e-3 for i, a in enumerate(seen) for b in seen[:i])
    assert ours.get_list_adapters() == theirs.get_list_adapters()


def test_fused_loras_stay_as_in_diffusers(model: Path) -> None:
    theirs, ours = read_both(model)
    for pipe in (theirs, ours):
        pipe.load_lora_weights(model / "peft")
        pipe.fuse_lora(lora_scale=0.6)
    fused = paint(theirs)
    assert relative_error(paint(ours), fused) < 1e-4
    assert relative_error(paint(ours, cross_attention_kwargs={"scale": 0.1}), fused) < 1e-4
    for pipe in (theirs, ours):
        pipe.unload_lora_weights()
    assert relative_error(paint(theirs), fused) < 1e-4
    assert relative_error(paint(ours), fused) < 1e-4
    assert ours.get_list_adapters() == {}


def weights_of(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.unet, "text": pipe.text_encoder}
    return {f"{p}.{n}": t.clone() for p, part in parts.items() for n, t in part.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


UNDO: dict[str, Callable[[StableDiffusionPipeline], object]] = {
    "unload": lambda pipe: pipe.unload_lora_weights(),
    "disable": lambda pipe: pipe.disable_lora(),
    "delete": lambda pipe: pipe.delete_adapters(["default_0", "default_1"]),
    "strength 0": lambda pipe: pipe.set_adapters(["default_0", "default_1"], [0.0, 0.0]),
    "unfuse": lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora(), pipe.disable_lora()),
}


@pytest.mark.parametrize("how", UNDO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_bit_for_bit_what_they_were(how: str, dtype: torch.dtype, lora: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model", dtype)
    before = weights_of(pipe)
    for form in ("peft", "kohya.safetensors"):
        pipe.load_lora_weights(lora / form)
    assert not same(weights_of(pipe), before)
    UNDO[how](pipe)
    assert same(weights_of(pipe), before)
    assert not any(adapters_of(part)._originals for part in (pipe.unet, pipe.text_encoder))  # no memory is held


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    pipe = make_diffusers_pipeline(folder / "tokenizer", "epsilon")
    pipe.save_pretrained(folder / "model")
    save_loras(folder, pipe)
    return folder


def ours_with(lora: Path, form: str | dict[str, torch.Tensor] = "peft") -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
    pipe.load_lora_weights(lora / form if isinstance(form, str) else form)
    return pipe


def test_disabled_loras_come_back(lora: Path) -> None:
    pipe = ours_with(lora)
    changed = weights_of(pipe)
    pipe.disable_lora()
    assert not same(weights_of(pipe), changed)
    pipe.enable_lora()
    assert same(weights_of(pipe), changed)


def test_a_lora_that_is_loaded_later_counts_though_those_before_were_disabled(lora: Path) -> None:
    pipe = ours_with(lora)
    expected = weights_of(pipe)
    pipe.disable_lora()
    pipe.unload_lora_weights()
    pipe.load_lora_weights(lora / "peft")
    assert same(weights_of(pipe), expected)


def test_the_scale_of_one_call_is_not_that_of_the_next_thing_done(lora: Path) -> None:
    pipe = ours_with(lora)
    before = weights_of(pipe)
    paint(pipe, cross_attention_kwargs={"scale": 0.5})
    assert same(weights_of(pipe), before)


@pytest.mark.parametrize("strength", [0.0, {"unet": 1.0, "text_encoder": 0.0}])
def test_what_is_fused_with_no_strength_goes_whole(lora: Path, strength: Any) -> None:
    pipe = ours_with(lora)
    pipe.set_adapters("default_0", strength)
    pipe.fuse_lora()
    expected = weights_of(pipe)
    pipe.unload_lora_weights()
    assert same(weights_of(pipe), expected)
    assert pipe.get_list_adapters() == {}


def test_where_the_active_lora_is_deleted_the_first_of_the_others_is_painted_with_as_in_diffusers(lora: Path) -> None:
    theirs, ours = read_both(lora)
    for pipe in (theirs, ours):
        pipe.load_lora_weights(lora / "peft", adapter_name="first")
        pipe.load_lora_weights(lora / "kohya.safetensors", adapter_name="second")
        pipe.delete_adapters("second")
    assert relative_error(paint(ours), paint(theirs)) < 1e-4
    assert same(weights_of(ours), weights_of(ours_with(lora)))


@pytest.mark.parametrize("weight", [{"unett": 0.0}, {"text_encoder": math.nan}, math.nan, True])
def test_a_weight_that_is_none_changes_nothing(lora: Path, weight: Any) -> None:
    pipe = ours_with(lora)
    before = weights_of(pipe)
    with pytest.raises(UserError, match="a LoRA's weight is a number"):
        pipe.set_adapters("default_0", weight)
    assert same(weights_of(pipe), before)


def test_one_fused_lora_stays_when_another_goes(lora: Path) -> None:
    pipe = ours_with(lora)
    alone = weights_of(pipe)
    pipe.fuse_lora()
    pipe.load_lora_weights(lora / "kohya.safetensors", adapter_name="other")
    pipe.delete_adapters("default_0")
    both = weights_of(pipe)
    pipe.unload_lora_weights()
    after = weights_of(pipe)
    assert max((after[name] - alone[name]).abs().max().item() for name in alone) < 1e-6
    assert max((both[name] - alone[name]).abs().max().item() for name in alone) > 1e-2


def test_in_packed_weights_a_lora_does_the_same(lora: Path) -> None:
    if not can_pack(torch.bfloat16):
        pytest.skip("this CPU cannot pack bfloat16")
    packed = StableDiffusionPipeline.from_pretrained(lora / "model", torch.bfloat16)
    plain = StableDiffusionPipeline.from_pretrained(lora / "model", torch.bfloat16)
    unpack_weights(plain.unet)
    for pipe in (packed, plain):
        pipe.load_lora_weights(lora / "peft")
    assert is_packed(packed.unet)
    assert not is_packed(plain.unet)
    assert same(weights_of(packed), weights_of(plain))


def test_pipelines_of_the_same_parts_share_a_lora(lora: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
    other = StableDiffusionPipeline.from_pipe(pipe)
    pipe.load_lora_weights(lora / "peft")
    assert torch.equal(paint(other), paint(pipe))
    assert other.get_active_adapters() == ["default_0"]
    other.unload_lora_weights()
    assert pipe.get_list_adapters() == {}


def test_a_copy_of_a_network_has_loras_of_its_own(lora: Path) -> None:
    pipe = ours_with(lora)
    changed = weights_of(pipe)
    unet = copy.deepcopy(pipe.unet)
    adapters_of(unet).enabled = False
    adapters_of(unet).apply(unet)
    assert same(weights_of(pipe), changed)
    assert not torch.equal(unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_what_is_saved_has_the_lora_in_it_and_diffusers_paints_the_same(lora: Path, tmp_path: Path) -> None:
    pipe = ours_with(lora)
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    assert relative_error(paint(pipe), paint(theirs)) < 1e-4


def test_moved_to_another_dtype_a_lora_stays_and_can_go(lora: Path) -> None:
    pipe = ours_with(lora)
    exact = weights_of(pipe)
    pipe.to(torch.bfloat16)
    now = weights_of(pipe)
    assert all(torch.equal(now[name], exact[name].bfloat16()) for name in exact)
    pipe.unload_lora_weights()
    fresh = weights_of(StableDiffusionPipeline.from_pretrained(lora / "model", torch.bfloat16))
    assert same(weights_of(pipe), fresh)


# The layers of kohya's scripts in LDM's names: each goes by the name under which a checkpoint has its tensors.
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_layer_has_an_ldm_name(flavour: str, tmp_path: Path) -> None:
    unet = make_diffusers_pipeline(tmp_path, flavour).unet
    layers = [name for name, one in unet.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)]
    with_attention = [name.split(".")[1:2] for name in layers if name[:3] == "up_" and ".attentions." in name]
    names = {}
    for layer in layers:
        found = ldm_names_of_unet(layer, unet.config.layers_per_block)
        names[f"{found[-1 if layer.split('.')[1:2] in with_attention else 0]}.weight"] = layer
    assert len(names) == len(layers)
    renamed = unet_from_ldm({name: torch.tensor(i) for i, name in enumerate(names)}, "")
    assert {name.removesuffix(".weight"): int(i) for name, i in renamed.items()} == {
        layer: i for i, layer in enumerate(names.values())
    }


def test_kohyas_ldm_names_are_known(lora: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
    tensors = load_file(lora / "kohya.safetensors")
    names = {name.split(".")[0] for name in tensors if name.startswith("lora_unet_")}
    layers = {name.replace(".", "_"): name for name, _ in pipe.unet.named_modules()}
    ldm = {}
    for name in names:
        new = ldm_names_of_unet(layers[name.removeprefix("lora_unet_")], pipe.unet.config.layers_per_block)[0]
        ldm[name] = f"lora_unet_{new.replace('.', '_')}"
    renamed = {name.replace(old, ldm.get(old, old)): t for name, t in tensors.items() for old in [name.split(".")[0]]}
    assert any("lora_unet_input_blocks_1_1_proj_in" in name for name in renamed)
    pipe.load_lora_weights(renamed)
    assert same(weights_of(pipe), weights_of(ours_with(lora, "kohya.safetensors")))


def renamed(lora: Path, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {rename(name): t for name, t in load_file(lora / "peft" / "pytorch_lora_weights.safetensors").items()}


def oldest(name: str) -> str:
    """As Diffusers wrote attention before 0.22, and text encoders with it."""
    for part in ("to_q", "to_k", "to_v", "to_out"):
        for layer in (part, f"{part}.0"):
            name = name.replace(f".{layer}.lora_A", f".processor.{part}_lora.down")
            name = name.replace(f".{layer}.lora_B", f".processor.{part}_lora.up")
    for old, new in {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}.items():
        name = name.replace(f".{new}.lora_A", f".{old}_lora.down").replace(f".{new}.lora_B", f".{old}_lora.up")
    return name


@pytest.mark.parametrize(
    "rename",
    [
        oldest,
        lambda name: f"base_model.model.{name.removeprefix('unet.').removeprefix('text_encoder.')}",
        lambda name: name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda name: name.replace("text_encoder.text_model.", "text_encoder."),
    ],
)
def test_other_names_of_the_same_layers_are_known(lora: Path, rename: Callable[[str], str]) -> None:
    changed = renamed(lora, rename)
    assert changed.keys() != renamed(lora, str).keys()
    assert same(weights_of(ours_with(lora, changed)), weights_of(ours_with(lora)))


def test_pefts_own_folder_says_its_alpha(lora: Path, tmp_path: Path) -> None:
    tensors = {n.replace("unet.", "base_model.model."): t for n, t in renamed(lora, str).items() if n[:5] == "unet."}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    alone = ours_with(lora, {name: t for name, t in renamed(lora, str).items() if name[:5] == "unet."})
    alone.set_adapters("default_0", 2.0)
    patterns = '{"r": 9, "lora_alpha": 7, "alpha_pattern": {".*": 6, "conv1": 1}}'  # the first that fits counts
    for config in ('{"r": 3, "lora_alpha": 6}', patterns):
        (tmp_path / "adapter_config.json").write_text(config)
        pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
        pipe.load_lora_weights(tmp_path)
        assert same(weights_of(pipe), weights_of(alone))


def test_a_change_in_three_parts_is_three_convolutions_in_a_row() -> None:
    torch.manual_seed(0)
    down, mid, up = torch.randn(3, 5, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(7, 3, 1, 1)
    change = LowRank(down, up, 0.5, mid)
    x = torch.randn(2, 5, 6, 6)
    rows = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    assert change.shape == (7, 5, 3, 3)
    torch.testing.assert_close(torch.conv2d(x, change.delta(), padding=1), 0.5 * rows, rtol=1e-4, atol=1e-4)


def test_what_is_written_is_read_here_and_in_diffusers(lora: Path, tmp_path: Path) -> None:
    pipe = ours_with(lora, "kohya.safetensors")
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    write_lora(tmp_path / "it.safetensors", {p: adapters_of(one).loaded["default_0"] for p, one in networks.items()})
    theirs, ours = read_both(lora)
    for one in (theirs, ours):
        one.load_lora_weights(tmp_path / "it.safetensors")
    assert same(weights_of(ours), weights_of(pipe))
    assert relative_error(paint(ours), paint(theirs)) < 1e-4


def test_three_parts_are_written_and_read(tmp_path: Path) -> None:
    unet = tiny_pipeline().unet
    torch.manual_seed(0)
    change = LowRank(torch.randn(2, 8, 1, 1), torch.randn(8, 2, 1, 1), 0.5, torch.randn(2, 2, 3, 3))
    write_lora(tmp_path / "it.safetensors", {"unet": {"down_blocks.0.resnets.0.conv2": change}})
    pipe = tiny_pipeline()
    pipe.load_lora_weights(tmp_path / "it.safetensors")
    found = pipe.unet.down_blocks[0].resnets[0].conv2.weight - unet.down_blocks[0].resnets[0].conv2.weight
    torch.testing.assert_close(found, change.delta(), rtol=1e-4, atol=1e-5)


def first(lora: Path, n: int = 2) -> dict[str, torch.Tensor]:
    return dict(list(renamed(lora, str).items())[-n:])


BAD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "empty": (lambda t: {}, "is empty"),
    "other layer": (lambda t: {n.replace("up_blocks.1", "up_blocks.7"): v for n, v in t.items()}, "for another model"),
    "half": (lambda t: dict(list(t.items())[:1]), "lacks the up matrix of unet.up_blocks"),
    "width": (lambda t: {n: torch.cat([v, v]) if "lora_B" in n else v for n, v in t.items()}, "for another model"),
    "rank": (lambda t: {n: torch.cat([v, v]) if "lora_A" in n else v for n, v in t.items()}, "for another model"),
    "flat": (lambda t: {n: v.flatten() for n, v in t.items()}, "for another model"),
    "no rank": (lambda t: {n: v[:0] if "lora_A" in n else v[:, :0] for n, v in t.items()}, "for another model"),
    "alpha": (lambda t: t | {f"{list(t)[0].split('.lora')[0]}.alpha": torch.ones(2)}, "is no single number"),
    "no matrix": (lambda t: {n: torch.tensor(1.0) for n in t}, "for another model"),
    "whole numbers": (lambda t: {n: v.int() for n, v in t.items()}, "other than fractions"),
    "infinite": (lambda t: {n: v / 0 for n, v in t.items()}, "not finite"),
    "no lora": (lambda t: t | {"unet.conv_in.weight": torch.ones(1)}, "no part of a LoRA"),
    "dora": (lambda t: t | {"unet.conv_in.lora_magnitude_vector": torch.ones(1)}, "is a DoRA"),
    "loha": (lambda t: {"lora_unet_conv_in.hada_w1_a": torch.ones(1)}, "is a LoHa"),
    "sdxl": (lambda t: {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)}, "is for SDXL"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_lora_that_does_not_fit_is_one_line_and_changes_nothing(lora: Path, what: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
    before = weights_of(pipe)
    change, said = BAD[what]
    with pytest.raises(UserError, match=said) as error:
        pipe.load_lora_weights(change(first(lora)))
    assert "\n" not in str(error.value)
    assert same(weights_of(pipe), before)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"r": 3, "lora_alpha": "much"}', "what it says of alpha cannot be read"),
        ('{"lora_alpha": 6, "alpha_pattern": {"(": 2}}', "what it says of alpha cannot be read"),
        ('{"lora_alpha": 6, "alpha_pattern": [2]}', "what it says of alpha cannot be read"),
        ('{"lora_alpha": 1e999}', "what it says of alpha cannot be read"),
        ('{"use_dora": true}', "is a DoRA"),
        ("[1]", "expected a JSON object"),
        ("{", "adapter_config.json"),
    ],
)
@pytest.mark.parametrize("in_header", [False, True])
def test_settings_that_cannot_be_read_are_one_line(
    lora: Path, tmp_path: Path, config: str, said: str, in_header: bool
) -> None:
    tensors = {n.replace("unet.", "base_model.model."): t for n, t in first(lora).items()}
    notes = config.replace('"r"', '"unet.r"').replace('"lora', '"unet.lora').replace('"alpha', '"unet.alpha')
    metadata = {"lora_adapter_metadata": notes.replace('"use', '"unet.use')} if in_header else None
    save_file(tensors, tmp_path / f"{'it' if in_header else 'adapter_model'}.safetensors", metadata)
    if not in_header:
        (tmp_path / "adapter_config.json").write_text(config)
    pipe = StableDiffusionPipeline.from_pretrained(lora / "model")
    with pytest.raises(UserError, match="no JSON" if in_header and config == "{" else said) as error:
        pipe.load_lora_weights(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_asked_of_loras_that_are_not_there_is_one_line(lora: Path, tmp_path: Path) -> None:
    pipe = ours_with(lora)
    with pytest.raises(UserError, match=r"there is a LoRA 'default_0' already"):
        pipe.load_lora_weights(lora / "peft", adapter_name="default_0")
    with pytest.raises(UserError, match=r"there is no LoRA 'x': loaded are default_0"):
        pipe.set_adapters("x")
    with pytest.raises(UserError, match=r"there is no LoRA 'x'"):
        pipe.delete_adapters("x")
    with pytest.raises(UserError, match=r"1 LoRAs and 2 weights"):
        pipe.set_adapters("default_0", [1.0, 2.0])
    with pytest.raises(UserError, match=r"'vae'"):
        pipe.fuse_lora(components=["vae"])
    with pytest.raises(UserError, match=r"'gligen'"):
        paint(pipe, cross_attention_kwargs={"gligen": {}})
    with pytest.raises(UserError, match=r"there is no LoRA .*nowhere"):
        pipe.load_lora_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file of weights"):
        pipe.load_lora_weights(tmp_path)
    for name in ("a", "b"):
        save_file(first(lora), tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"2 files of weights"):
        pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(tmp_path, weight_name="b.safetensors", adapter_name="b")
    assert "b" in pipe.get_active_adapters()


def test_compiled_kernels_on_a_cpu_take_no_other_lora(lora: Path) -> None:
    pipe = ours_with(lora)
    pipe.unet._compiled_call_impl = pipe.unet._call_impl  # what compile() leaves, without a compiler
    with pytest.raises(UserError, match=r"before compiled\(\)"):
        pipe.load_lora_weights(lora / "kohya.safetensors")
    with pytest.raises(UserError, match=r"before compiled\(\)"):
        paint(pipe, cross_attention_kwargs={"scale": 0.5})
    assert paint(pipe).isfinite().all()
