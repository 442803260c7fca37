"""Where our pictures differ from Diffusers' on purpose: each row of docs/differences-from-diffusers.md, as long as it
is true."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from sd_oracle import make_diffusers_pipeline, relative_error
from three_pipelines import Models, mask, picture

from miniai.sd.pipeline import StableDiffusionPipeline


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("differences"), "epsilon")


@pytest.fixture(scope="module")
def zero_snr(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("zero_snr"), "zero_snr")


Pair = tuple[diffusers.StableDiffusionPipeline, StableDiffusionPipeline]


@pytest.fixture
def models(tmp_path: Path) -> Pair:
    """The same model in Diffusers and here."""
    make_diffusers_pipeline(tmp_path / "tokenizer", "epsilon").save_pretrained(tmp_path / "model")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    theirs.set_progress_bar_config(disable=True)
    return theirs, StableDiffusionPipeline.from_pretrained(tmp_path / "model")


def paint(pipe: Any, prompt: str) -> torch.Tensor:
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe(prompt, num_inference_steps=2, guidance_scale=2.0, latents=start, output_type="latent").images


def errors(models: Models, kind: str, sampler: str, seeds: tuple[int, ...] = (3,), **request: Any) -> list[float]:
    """The relative error of each picture."""
    made = []
    for call in (models.theirs, lambda _, sampler, **given: models.paint(sampler=sampler, **given)):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = generators if len(seeds) > 1 else generators[0]
        made.append(call(kind, sampler, generator=generator, prompt="a cat", **request))
    return [relative_error(ours, theirs) for theirs, ours in zip(*made, strict=True)]


@pytest.mark.parametrize(("n_steps", "strength"), [(5, 0.8), (10, 0.9), (20, 0.95)])
def test_pndm_from_a_picture_with_one_step_left_out(plain: Models, n_steps: int, strength: float) -> None:
    request = {"image": picture(), "strength": strength, "num_inference_steps": n_steps}
    assert 0.003 < errors(plain, "from_image", "pndm", **request)[0] < 0.5


def test_lms_from_a_picture(plain: Models) -> None:
    request = {"image": picture(), "strength": 0.8, "num_inference_steps": 20}
    assert 0.003 < errors(plain, "from_image", "lms", **request)[0] < 0.5


@pytest.mark.parametrize("sampler", ["pndm", "heun", "lms", "dpm2"])
def test_samplers_that_pass_zero_snr_over_in_diffusers(zero_snr: Models, sampler: str) -> None:
    assert 0.003 < errors(zero_snr, "from_text", sampler, num_inference_steps=20)[0] < 0.5


def test_dpm2_within_a_mask(plain: Models) -> None:
    request = {"image": picture(), "mask_image": mask(), "num_inference_steps": 10}
    assert 0.003 < errors(plain, "inpaint", "dpm2", **request)[0] < 0.5


def test_within_a_mask_each_picture_has_a_seed_of_its_own(plain: Models) -> None:
    request = {"image": picture(), "mask_image": mask(), "num_images_per_prompt": 2}
    first, second = errors(plain, "inpaint", "ddim", (3, 4), **request)
    assert first < 1e-4
    assert second > 0.1
    alone = plain.paint(prompt="a cat", image=picture(), mask_image=mask(), generator=torch.Generator().manual_seed(4))
    both = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    again = plain.paint(prompt="a cat", **request, generator=both)[1:]
    torch.testing.assert_close(again, alone, rtol=1e-4, atol=1e-4)


def test_latents_within_a_mask_are_the_noise_that_is_put_on_the_picture(plain: Models) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    request = {"image": picture(), "mask_image": mask(), "strength": 0.6, "latents": latents}
    assert errors(plain, "inpaint", "ddim", **request)[0] > 0.03


def test_each_prompt_has_its_own_picture(plain: Models) -> None:
    prompts, pictures = ["a cat", "a rocket"], [picture(), picture(seed=1)]
    request: dict[str, Any] = {"prompt": prompts, "image": pictures, "num_images_per_prompt": 2}
    generators = [[torch.Generator().manual_seed(seed) for seed in range(4)] for _ in range(2)]
    theirs = plain.theirs("from_image", "ddim", **request, generator=generators[0])
    assert relative_error(plain.paint(**request, generator=generators[1]), theirs) > 0.003
    one = plain.paint(prompt="a cat", image=picture(), generator=torch.Generator().manual_seed(1))
    again = plain.paint(**request, generator=[torch.Generator().manual_seed(seed) for seed in range(4)])
    torch.testing.assert_close(again[1:2], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("spacing", "n_steps"), [("trailing", 30), ("linspace", 20)])
@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_ddim_and_pndm_step_to_the_timestep_that_they_ask_at_next(
    plain: Models, sampler: str, spacing: str, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "schedule", dict(plain.schedule) | {"timestep_spacing": spacing})
    monkeypatch.setattr(plain.ours, "scheduler_config", plain.ours.scheduler_config | {"timestep_spacing": spacing})
    assert 0.003 < errors(plain, "from_text", sampler, num_inference_steps=n_steps)[0] < 0.5


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_single_step_starts_at_the_last_timestep(plain: Models, sampler: str) -> None:
    request = {"num_inference_steps": 1, "guidance_scale": 1.0}
    assert errors(plain, "from_text", sampler, **request)[0] > 0.1
    seen: list[float] = []
    plain.paint(
        prompt="a cat",
        sampler=sampler,
        callback_on_step_end=lambda _, i, t, tensors: seen.append(t) or tensors,
        **request,
    )
    assert seen == [999.0]


def test_a_learned_word_in_other_letters_is_all_of_its_vectors(models: Pair) -> None:
    theirs, ours = models
    for pipe in models:
        pipe.load_textual_inversion(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), token="<toy>")
    small, large = paint(ours, "a <toy>"), paint(ours, "a <TOY>")
    assert torch.equal(small, large)
    assert relative_error(small, paint(theirs, "a <toy>")) < 1e-4
    assert relative_error(large, paint(theirs, "a <TOY>")) > 0.003


def test_a_lora_of_new_and_old_names_counts_whole(models: Pair) -> None:
    theirs, ours = models
    torch.manual_seed(0)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    new = {f"{layer}.to_q.lora_A.weight": torch.randn(2, 16), f"{layer}.to_q.lora_B.weight": torch.randn(16, 2)}
    old = {f"{layer}.to_v.lora.down.weight": torch.randn(2, 16), f"{layer}.to_v.lora.up.weight": torch.randn(16, 2)}
    as_new = {
        name.replace(".lora.down", ".lora_A").replace(".lora.up", ".lora_B"): tensor for name, tensor in old.items()
    }
    theirs.load_lora_weights(new | as_new, adapter_name="new")
    ours.load_lora_weights(new | old)
    expected = paint(theirs, "a cat")
    assert relative_error(paint(ours, "a cat"), expected) < 1e-4
    theirs.delete_adapters("new")
    theirs.load_lora_weights(new | old, adapter_name="mixed")
    assert relative_error(paint(theirs, "a cat"), expected) > 0.003


def lora_of(layer: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, 16), (16, 2)))
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}


def test_a_lora_counts_beside_another_that_is_fused(models: Pair) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    made = {}
    for name, pipe in zip(("theirs", "ours"), models, strict=True):
        pipe.load_lora_weights(lora_of(layer, 0), adapter_name="first")
        made["first", name] = paint(pipe, "a cat")
        pipe.load_lora_weights(lora_of(layer, 1), adapter_name="second")
        pipe.set_adapters(["first", "second"])
        made["both", name] = paint(pipe, "a cat")
        pipe.set_adapters(["second"])
        pipe.fuse_lora(adapter_names=["first"])
        made["fused", name] = paint(pipe, "a cat")
    assert relative_error(made["both", "ours"], made["both", "theirs"]) < 1e-4
    assert relative_error(made["fused", "ours"], made["both", "ours"]) < 1e-4
    assert relative_error(made["fused", "theirs"], made["first", "theirs"]) < 1e-4
    assert relative_error(made["fused", "ours"], made["fused", "theirs"]) > 0.003


@pytest.mark.parametrize("first", ["fuse", "disable"])
def test_what_is_fused_stays_where_loras_are_disabled(models: Pair, first: str) -> None:
    theirs, ours = models
    plain = paint(theirs, "a cat")
    for pipe in models:
        pipe.load_lora_weights(lora_of("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q", 0))
    changed = paint(theirs, "a cat")
    for pipe in models:
        for change in (pipe.fuse_lora, pipe.disable_lora) if first == "fuse" else (pipe.disable_lora, pipe.fuse_lora):
            change()
    assert relative_error(paint(ours, "a cat"), changed) < 1e-4
    assert relative_error(paint(theirs, "a cat"), plain) < 1e-4
    assert relative_error(plain, changed) > 0.003


def test_each_layer_of_a_text_encoder_has_its_own_rank_and_alpha_in_a_kohya_file(models: Pair) -> None:
    theirs, ours = models
    layers = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    file, generator = {}, torch.Generator().manual_seed(0)
    encoder = theirs.text_encoder
    merged = {}
    for i, layer in enumerate(layers):
        weight = dict(encoder.named_modules())[f"encoder.layers.0.{layer}"].weight
        rank, alpha = 1 + i % 3, 0.5 * (1 + i % 2)
        down, up = (torch.randn(*size, generator=generator) for size in ((rank, weight.shape[1]), (len(weight), rank)))
        name = f"lora_te_text_model_encoder_layers_0_{layer.replace('.', '_')}"
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        merged[weight] = alpha / rank * up @ down
    ours.load_lora_weights(dict(file))
    by_hand = diffusers.StableDiffusionPipeline(**theirs.components, requires_safety_checker=False)
    with torch.no_grad():
        for weight, change in merged.items():
            weight += change
        expected = paint(by_hand, "a cat")
        for weight, change in merged.items():
            weight -= change
    assert relative_error(paint(ours, "a cat"), expected) < 1e-4
    theirs.load_lora_weights(dict(file))
    assert relative_error(paint(theirs, "a cat"), expected) > 0.003


def test_one_side_alone_is_the_one_that_changes(plain: Models) -> None:
    assert plain.theirs("from_text", prompt="a cat", height=32, num_inference_steps=1).shape[2:] == (8, 8)
    assert plain.paint(prompt="a cat", height=32, num_inference_steps=1).shape[2:] == (16, 8)


def test_pndm_has_no_runge_kutta_steps(plain: Models) -> None:
    plain.from_text.scheduler = diffusers.PNDMScheduler.from_config(dict(plain.schedule) | {"skip_prk_steps": False})
    request = {"num_inference_steps": 10, "guidance_scale": 2.0, "output_type": "latent"}
    made = [
        pipe("a cat", generator=torch.Generator().manual_seed(3), **request, **kind).images
        for pipe, kind in ((plain.from_text, {}), (plain.ours, {"sampler": "pndm"}))
    ]
    assert 0.001 < relative_error(made[1], made[0]) < 0.5


def test_heun_at_timesteps_of_its_own_from_a_picture(plain: Models) -> None:
    request = {"image": picture(), "strength": 0.6, "timesteps": [900, 500, 200, 3]}
    assert errors(plain, "from_image", "heun", **request)[0] > 0.1
    plain.assert_equal("from_image", "heun", prompt="a cat", **request | {"strength": 1.0})


def test_the_page_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "differences-from-diffusers.md").read_text()
    assert page.count("\n| ") - 2 == 17
