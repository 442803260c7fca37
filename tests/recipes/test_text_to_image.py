"""The recipe from captioned pictures to a model folder, at a tiny size, with everything in it real."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw

from miniai.base.configs import config_from_dict, config_to_dict
from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.seeds import make_generator
from miniai.base.weights import read_weights
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPModel, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes import vae_stage
from miniai.recipes.clip_stage import CaptionTable, choose_captions, clip_config, shift_on_white
from miniai.recipes.text_to_image import load_clip, train_text_to_image
from miniai.recipes.text_to_image_begin import config_like, sample_prompts
from miniai.recipes.text_to_image_config import SIZES, SMALL, TINY, TextToImageConfig, finer
from miniai.recipes.unet_stage import Latents, TextToImageModel, TextToImageObjective, init_unet
from miniai.recipes.vae_stage import CHANGES, VAEObjective, edge_error, permute_channels, standardise_latents, to_float
from miniai.sd.folder import read_folder
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer

STEPS = 6
PARTS = ("unet", "text_encoder", "vae")


def draw_folder(folder: Path) -> Path:
    """Twelve small pictures of coloured shapes, with two captions each."""
    folder.mkdir(parents=True)
    lines = []
    for colour, shape in itertools.product(("red", "green", "blue", "black"), ("ellipse", "rectangle", "line")):
        image = Image.new("RGB", (16, 16), "white")
        getattr(ImageDraw.Draw(image), shape)((3, 3, 12, 12), **{"fill": colour})
        image.save(folder / f"{colour}-{shape}.png")
        lines.append(
            {"file_name": f"{colour}-{shape}.png", "text": f"a {colour} {shape}", "captions": [f"{shape}, {colour}"]}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    train_text_to_image(data, out, steps=STEPS, size="tiny", device="cpu")
    return out


def test_the_trained_folder_paints_here_and_in_diffusers_the_same(trained: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(trained / "model", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = StableDiffusionPipeline.from_pretrained(trained / "model")
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    request = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
    prompts = ["a red ellipse", "line, blue"]
    expected = theirs(prompts, latents=start.clone(), **request).images
    got = ours(prompts, latents=start.clone(), **request).images
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_every_stage_leaves_its_record_its_curve_and_its_pictures(trained: Path) -> None:
    for stage in ("vae", "clip", "unet", "words", "decoder"):
        folder = trained / "stages" / stage
        record = json.loads((folder / "done.json").read_text())
        assert record["steps"] == STEPS
        assert record["images"] == STEPS * {"vae": 4, "clip": 8, "unet": 8, "words": 8, "decoder": 4}[stage]
        assert Image.open(folder / "loss.png").width > 100
        assert (folder / "samples").is_dir() == (stage not in ("clip", "words"))
    clip, tokenizer = load_clip(trained / "clip")
    assert clip.encode_text(tokenizer(["a red line"])).shape == (1, TINY.text.projection_dim)


def test_the_model_carries_a_card_with_its_training_and_how_to_do_it_again(trained: Path) -> None:
    card = (trained / "model" / "README.md").read_text()
    learning = sum(count(trained / "model" / part) for part in PARTS[:2])
    assert f"| unet | {learning:,} | {STEPS} | {STEPS * 8} |" in card
    assert "miniai train text-to-image --data" in card
    assert f"--steps {STEPS} --size tiny\n" in card
    assert "12 captioned pictures" in card


def count(part: Path) -> int:
    return sum(tensor.numel() for file in part.glob("*.safetensors") for tensor in read_weights(file).values())


def test_a_model_can_go_on_from_another_which_keeps_its_encoder(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_text_to_image(data, out, steps=3, init=trained / "model", device="cpu")
    before, after = (
        {part: read_weights(next((folder / "model" / part).glob("*.safetensors"))) for part in PARTS}
        for folder in (trained, out)
    )
    moved = {name for part in PARTS for name in before[part] if not torch.equal(before[part][name], after[part][name])}
    assert {name.split(".")[0] for name in moved & set(before["vae"])} == {"decoder", "post_quant_conv"}
    assert moved & set(before["unet"])
    assert moved & set(before["text_encoder"])
    assert StableDiffusionPipeline.from_pretrained(out / "model")("a red line", num_inference_steps=2).images
    assert "--init" in (out / "model" / "README.md").read_text()
    rates = [
        json.loads((folder / "config.json").read_text())["unet_stage"]["learning_rate"] for folder in (trained, out)
    ]
    train_text_to_image(data, out, steps=3, init=trained / "model", device="cpu", resume=True)
    rates.append(json.loads((out / "config.json").read_text())["unet_stage"]["learning_rate"])
    assert rates == [2e-3, 1e-3, 1e-3]  # gentler, once


def test_if_only_its_attentions_learn_the_rest_of_the_unet_stays(data: Path, trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    write_json(config, read_json(trained / "config.json") | {"unet_learns": "attentions"})
    out, stages = tmp_path / "out", ("latents", "unet")
    train_text_to_image(data, out, steps=2, init=trained / "model", config_file=config, stages=stages, device="cpu")
    before, after = (read_weights(next((folder / "model" / "unet").glob("*.safetensors"))) for folder in (trained, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    kernels = {name for name in before if before[name].ndim > 1}
    assert moved & kernels == {name for name in kernels if ".attentions." in name}
    assert all(".attentions." in name for name in moved)


def test_the_vae_goes_on_too_if_the_stages_name_it(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages = ("vae", "latents", "unet")
    train_text_to_image(data, out, steps=1, init=trained / "model", stages=stages, device="cpu")
    before, after = (read_weights(next((folder / "model" / "vae").glob("*.safetensors"))) for folder in (trained, out))
    assert "--stages vae,latents,unet" in (out / "model" / "README.md").read_text()
    moved = [float((before[name].float() - after[name].float()).norm()) for name in before]
    assert any(moved)
    kernel = "encoder.conv_in.weight"  # one step moves it a little; new weights would be elsewhere
    assert (before[kernel].float() - after[kernel].float()).abs().max() < 0.05


def test_a_traced_training_has_the_losses_of_one_that_is_not(data: Path, trained: Path, tmp_path: Path) -> None:
    stages = ("latents", "unet")
    train_text_to_image(data, tmp_path / "plain", steps=3, init=trained / "model", stages=stages, device="cpu")
    # In a process of its own: torch.compile cannot read functions whose shapes the tests check at every call. Without
    # the C++ of "inductor", which takes a minute: that is PyTorch's part.
    call = "import sys, pathlib; from miniai.recipes.text_to_image import train_text_to_image as train; "
    call += "train(*map(pathlib.Path, sys.argv[1:3]), init=pathlib.Path(sys.argv[3]), steps=3, "
    call += "stages=('latents', 'unet'), device='cpu', compiler='aot_eager')"
    subprocess.run([sys.executable, "-c", call, data, tmp_path / "traced", trained / "model"], check=True)
    losses = [
        json.loads((tmp_path / name / "stages" / "unet" / "done.json").read_text())["loss"]
        for name in ("plain", "traced")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)  # bfloat16 is rounded elsewhere


def test_without_a_compiler_a_compiled_training_ends_before_it_begins(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        train_text_to_image(data, tmp_path / "out", steps=1, init=trained / "model", device="cpu", compiler="inductor")
    assert not (tmp_path / "out").exists()


def test_a_finished_training_is_not_done_again(data: Path, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors") if "model" not in path.parts}
    train_text_to_image(data, trained, steps=STEPS, resume=True, size="tiny", device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_folder_in_use_needs_resume(data: Path, trained: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        train_text_to_image(data, trained, steps=STEPS, size="tiny")


def test_a_stage_before_its_forerunner_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finished"):
        train_text_to_image(data, tmp_path / "out", steps=2, size="tiny", stages=("unet",), device="cpu")


def test_an_unknown_stage_or_size_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vae, clip, latents, unet"):
        train_text_to_image(data, tmp_path / "out", steps=2, stages=("vea",))
    with pytest.raises(UserError, match="small, fine, gpu, gpu-fine, tiny"):
        train_text_to_image(data, tmp_path / "out", steps=2, size="huge")
    with pytest.raises(UserError, match="minutes"):
        train_text_to_image(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stages_one_by_one_give_the_weights_of_one_command(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i, stage in enumerate(("clip", "vae", "latents", "unet", "words", "decoder")):
        train_text_to_image(data, out, steps=STEPS, size="tiny", stages=(stage,), resume=i > 0, device="cpu")
    assert_same_weights(out, trained)


def assert_same_weights(run: Path, other: Path) -> None:
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        a, b = (read_weights(folder / "model" / f"{part}.safetensors") for folder in (run, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part


def command(data: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "miniai", "train", "text-to-image", "--data", str(data), "--out", str(out)),
        *("--steps", str(STEPS), "--size", "tiny", "--device", "cpu", "--resume"),
    ]


def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_weights(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    out, chance, n_killed = tmp_path / "out", random.Random(0), 0
    while n_killed < 3:
        process = subprocess.Popen(command(data, out), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (out / "config.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 2.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        n_killed += 1
    assert n_killed > 0
    subprocess.run(command(data, out), check=True, capture_output=True)
    assert_same_weights(out, trained)


class Killed(BaseException):
    pass


def test_killed_after_every_file_it_writes_and_resumed_it_ends_in_the_same_weights(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace_file, written = tmp_path / "out", os.replace, set[str]()

    def replace_and_die(source: str, target: Path) -> None:
        replace_file(source, target)
        name = str(target.relative_to(out))
        if name not in written:
            written.add(name)
            raise Killed

    monkeypatch.setattr(os, "replace", replace_and_die)
    n_killed = 0
    while n_killed < 100:
        try:
            train_text_to_image(data, out, steps=STEPS, size="tiny", device="cpu", resume=True)
            break
        except Killed:
            n_killed += 1
    assert n_killed == len(written)
    assert {"config.json", "clip/model.safetensors", "stages/unet/unet.safetensors", "model/README.md"} <= written
    assert sum(name.endswith("done.json") for name in written) == 5
    assert_same_weights(out, trained)


def test_the_config_survives_its_json() -> None:
    assert config_from_dict(TextToImageConfig, json.loads(json.dumps(config_to_dict(SMALL))), "here") == SMALL


def test_a_config_whose_parts_do_not_fit_is_refused() -> None:
    values = config_to_dict(SMALL)
    values["unet"]["in_channels"] = 4
    with pytest.raises(UserError, match="latents"):
        config_from_dict(TextToImageConfig, values, "here")


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        (None, "image_size", 128, "vision.image_size 128 and unet.sample_size 16, not 64 and 8"),
        (None, "timestep_shift", 0.0, "timestep_shift must be above 0"),
        (None, "drop_text", 2.0, "drop_text must be from 0 to 1"),
        (None, "text_noise", -0.1, "text_noise must be 0, for none, or more, not -0.1"),
        (None, "unet_learns", "norms", "unet_learns"),
        (None, "text_swap", 1.5, "text_swap must be from 0 to 1, not 1.5"),
        ("vae_stage", "ema", 1.0, "vae_stage.ema must be below 1"),
        ("unet_stage", "learning_rate", -1.0, "unet_stage.learning_rate must be above 0"),
        ("words_stage", "batch_size", 0, "words_stage.batch_size must be above 0"),
        ("decoder_stage", "clip_norm", float("nan"), "decoder_stage.clip_norm must be above 0"),
        ("clip_stage", "warmup", 1.5, "clip_stage.warmup must be from 0 to 1"),
    ],
)
def test_a_config_with_impossible_numbers_is_refused(part: str | None, name: str, value: Any, told: str) -> None:
    values = config_to_dict(SMALL)
    (values if part is None else values[part])[name] = value
    with pytest.raises(UserError, match=told):
        config_from_dict(TextToImageConfig, values, "here")


@pytest.mark.parametrize("size", ["small", "fine"])
def test_a_size_fits_into_64_megabytes_of_float16(size: str) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(config.unet), AutoencoderKL(config.vae)
        text = config.text
        per_layer = 12 * text.hidden_size**2
        n = text.num_hidden_layers * per_layer + (config.vocab_size + config.window) * text.hidden_size
    n += sum(p.numel() for module in (unet, vae) for p in module.parameters())
    assert 2 * n < 63e6


def test_finer_latents_are_as_many_numbers_in_four_times_as_many_places() -> None:
    for config in (SMALL, TINY):
        fine, side = finer(config), config.image_size
        x, heard = torch.randn(2, 3, side, side), torch.randn(2, 7, config.text.hidden_size)
        places = []
        for one in (config, fine):
            latents = AutoencoderKL(one.vae).encode(x).mode()
            assert UNet2DConditionModel(one.unet)(latents, torch.ones(2), heard).shape == latents.shape
            assert latents.shape[-1] == one.latent_size == one.unet.sample_size
            places.append(latents[0, 0].numel())
            assert latents[0].numel() == places[0] * config.vae.latent_channels
        assert places[1] == 4 * places[0]


def test_standardised_latents_have_mean_0_and_deviation_1_and_decode_to_the_same_picture() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(TINY.vae).eval()
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        before = vae.encode(to_float(images))
        painted, std = vae.decode(before.mean), before.mean.std(dim=(0, 2, 3))
        standardise_latents(vae, images)
        after = vae.encode(to_float(images))
        assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5)
        assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(vae.decode(after.mean), painted, atol=1e-4)
        ratio = (0.5 * (after.log_variance - before.log_variance)).exp()
        assert torch.allclose(ratio, (1 / std)[None, :, None, None].expand_as(ratio), rtol=1e-3)


def test_edge_error_sees_a_lost_outline_and_no_change_of_brightness() -> None:
    a = torch.zeros(1, 1, 4, 4)
    assert edge_error(a + 0.5, a) == 0
    step = torch.cat([torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)], dim=3)
    assert edge_error(step, a) == pytest.approx(0.5 * (4 / 12))


@pytest.mark.parametrize("kind", range(len(CHANGES)))
def test_latents_and_pictures_are_changed_alike(kind: int) -> None:
    """Means over squares of pixels, as latents, are those of the changed picture after the change."""
    pictures = torch.rand(2, 3, 32, 32, generator=make_generator(kind))
    latents = torch.nn.functional.avg_pool2d(pictures, 8)
    changed, wanted = CHANGES[kind](latents), CHANGES[kind](pictures)
    assert torch.allclose(changed, torch.nn.functional.avg_pool2d(wanted, 8), atol=1e-6)
    assert changed.shape != latents.shape or not torch.equal(changed, latents)


def test_the_share_of_batches_that_are_changed_is_that_of_the_config() -> None:
    latents, pictures = torch.rand(1, 4, 4, 4), torch.rand(1, 3, 16, 16)
    for share in (0.0, 0.25, 1.0):
        objective, generator = VAEObjective(replace(SMALL.vae_loss, equivariant=share)), make_generator(0)
        changed = [objective.disturb(latents, pictures, generator)[1] is not pictures for _ in range(400)]
        assert sum(changed) / 400 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("kind", range(len(CHANGES)))
def test_the_decoder_must_make_the_changed_picture_of_the_changed_latents(kind: int) -> None:
    weights = replace(SMALL.vae_loss, equivariant=1.0, recolour=0.0, edges=0.0, kl=0.0)
    vae = AutoencoderKL(TINY.vae).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=make_generator(0))
    objective, change = VAEObjective(weights), CHANGES[kind]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(vae_stage, "CHANGES", (change,))
        found = objective(vae, images, make_generator(1))["pixels"]
        generator = make_generator(1)
        permute_channels(images, 0.0, generator)  # draws as the objective does
        latents = vae.encode(to_float(images)).sample(generator)
        assert found == pytest.approx(float((vae.decode(change(latents)) - change(to_float(images))).abs().mean()))


def test_the_vae_objective_is_its_parts_added_up() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    parts = VAEObjective(SMALL.vae_loss)(AutoencoderKL(TINY.vae), images, make_generator(0))
    total = parts["pixels"] + SMALL.vae_loss.edges * parts["edges"] + SMALL.vae_loss.kl * parts["kl"]
    assert float(parts["loss"].detach()) == pytest.approx(float(total.detach()))


def test_each_picture_gets_each_of_its_own_captions_and_no_other() -> None:
    captions = [["a", "b"], ["c"], ["b", "d", "e"]]
    table = CaptionTable(captions, CLIPTokenizer.train(["a b c d e"], 520, 8))
    assert table.texts == ["a", "b", "c", "d", "e"]
    seen: list[set[str]] = [set(), set(), set()]
    for seed in range(100):
        for i, row in enumerate(choose_captions(table.rows, table.counts, make_generator(seed)).tolist()):
            seen[i].add(table.texts[row])
    assert seen == [set(texts) for texts in captions]


@pytest.mark.parametrize("train_text", [True, False])
def test_the_unet_hears_a_text_under_noise_of_the_share_that_the_config_says(train_text: bool) -> None:
    """What stands between text encoder and U-Net: as it is without noise; and with it, drawn by the generator, off by
    that share of the tokens' own deviation, for each token by itself."""
    config = replace(TINY, train_text=train_text, drop_text=0.0)
    tokenizer = CLIPTokenizer.train(["a red apple"], config.vocab_size, config.window)
    config = replace(config, text=replace(config.text, vocab_size=len(tokenizer), max_position_embeddings=12))
    torch.manual_seed(0)
    model = TextToImageModel(UNet2DConditionModel(config.unet), CLIPTextModel(config.text), train_text)
    with torch.no_grad():
        model.text_encoder.text_model.final_layer_norm.weight.mul_(3)  # else the tokens' deviation is 1
    ids = tokenizer(["a red apple", ""])
    texts = model.text_encoder(ids).last_hidden_state.detach()
    n = 64
    data = Latents(
        torch.randn(n, 4, 8, 8), torch.zeros(n, 1, dtype=torch.long), torch.ones(n, dtype=torch.long), ids, texts
    )
    heard: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[2].detach()))

    def listen(share: float, seed: int = 0) -> torch.Tensor:
        objective = TextToImageObjective(replace(config, text_noise=share), data, torch.device("cpu"))
        objective(model, (data.latents, data.rows, data.counts), make_generator(seed))
        return heard.pop()

    plain = listen(0.0)
    assert torch.equal(plain, texts[:1].expand(n, -1, -1))
    off = (listen(0.5) - plain) / plain.std()
    assert float(off.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(off.mean())) < 0.02
    assert float((off[:, 0] * off[:, 1]).mean()) == pytest.approx(0, abs=0.03)  # tokens by themselves
    assert torch.equal(listen(0.5), listen(0.5))
    assert not torch.equal(listen(0.5), listen(0.5, seed=1))


@pytest.mark.parametrize("train_text", [True, False])
def test_with_text_swap_the_unet_hears_the_tail_of_another_text(train_text: bool) -> None:
    """Asked of the text encoder by itself: each token is what it makes of that word, in one of two captions."""
    config = replace(TINY, train_text=train_text, drop_text=0.0, text_swap=0.5)
    captions = ["a red apple, flat style", "a dog, flat style", ""]
    tokenizer = CLIPTokenizer.train(captions * 2, config.vocab_size, config.window)
    config = replace(config, text=replace(config.text, vocab_size=len(tokenizer), max_position_embeddings=12))
    torch.manual_seed(0)
    model = TextToImageModel(UNet2DConditionModel(config.unet), CLIPTextModel(config.text), train_text)
    ids = tokenizer(captions)
    texts = model.text_encoder(ids).last_hidden_state.detach()
    n = 64
    of = torch.arange(n) % 2
    data = Latents(torch.randn(n, 4, 8, 8), of[:, None], torch.ones(n, dtype=torch.long), ids, texts)
    heard: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[2].detach()))
    objective = TextToImageObjective(config, data, torch.device("cpu"))
    objective(model, (data.latents, data.rows, data.counts), make_generator(0))
    apples, dogs = heard[0][of == 0], heard[0][of == 1]
    own, other = texts[0, 4:8], texts[1, 3:7]  # ", flat style" and the end of the text
    assert torch.allclose(apples[:, :4], texts[0, :4], atol=1e-6)
    assert torch.allclose(dogs[:, :3], texts[1, :3], atol=1e-6)
    swapped = torch.isclose(apples[:, 4:8], other, atol=1e-6).all((1, 2))
    assert torch.equal(swapped, ~torch.isclose(apples[:, 4:8], own, atol=1e-6).all((1, 2)))
    assert 4 < int(swapped.sum()) < 16  # half of the half whose partner is a dog


def test_what_follows_the_end_of_a_text_does_not_change_its_vector() -> None:
    tokenizer = CLIPTokenizer.train(["a b c d e"], 520, 12)
    table = CaptionTable([["a b", "a b c d e"]], tokenizer)
    assert table.lengths.tolist() == [4, 7]
    torch.manual_seed(0)
    clip = CLIPModel(clip_config(TINY, tokenizer)).eval()
    with torch.no_grad():
        whole, cut = clip.encode_text(table.ids), clip.encode_text(table.ids[:, :7])
    assert torch.allclose(whole, cut, atol=1e-6)


def test_shifted_pictures_keep_their_content_and_show_white_at_the_edge() -> None:
    images = torch.full((40, 3, 8, 8), 255, dtype=torch.uint8)
    images[:, 0, 3:5, 3:5] = torch.arange(40, dtype=torch.uint8)[:, None, None]
    moved = shift_on_white(images, 2, make_generator(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sort(dim=-1).values.flatten(1).sum(1), images.flatten(1).sum(1))
    places = {tuple((one[0] < 255).nonzero()[0].tolist()) for one in moved[:39]}
    assert len(places) > 10
    assert all(1 <= y <= 5 and 1 <= x <= 5 for y, x in places)


def test_permuted_channels_change_colours_but_not_shapes_nor_greys() -> None:
    images = torch.randint(0, 256, (400, 3, 4, 4), generator=make_generator(0), dtype=torch.uint8)
    images[:, :, 0] = 255
    changed = permute_channels(images, 0.5, make_generator(1))
    assert torch.equal(changed.sort(dim=1).values, images.sort(dim=1).values)
    assert torch.equal(changed[:, :, 0], images[:, :, 0])
    same = (changed == images).flatten(1).all(1).float().mean()
    assert 0.5 < same < 0.67  # half are left alone, and one in six orders is the old one
    assert torch.equal(permute_channels(images, 0.0, make_generator(1)), images)


def test_the_unet_starts_by_predicting_nothing() -> None:
    unet = init_unet(UNet2DConditionModel(TINY.unet))
    out = unet(torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.randn(2, 12, 32))
    assert out.abs().max() == 0


def test_a_resume_takes_the_budget_that_the_training_was_begun_with(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_text_to_image(data, out, steps=1, size="tiny", stages=("vae",), device="cpu")
    train_text_to_image(data, out, resume=True, stages=("clip",), device="cpu")
    assert json.loads((out / "stages" / "clip" / "done.json").read_text())["steps"] == 1


def test_a_resume_goes_on_from_the_model_that_the_training_was_begun_with(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train_text_to_image(data, out, steps=1, init=trained / "model", stages=("latents",), device="cpu")
    train_text_to_image(data, out, resume=True, device="cpu")
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["decoder", "latents", "unet", "words"]
    assert f"Trained on from `{trained / 'model'}`" in (out / "model" / "README.md").read_text()


def test_a_finished_training_says_so_and_keeps_its_card(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (trained / "model" / "README.md").read_bytes()
    train_text_to_image(data, trained, steps=50, resume=True, device="cpu")
    assert f"give --init {trained / 'model'}" in capsys.readouterr().err
    shutil.copytree(data, tmp_path / "other")
    train_text_to_image(tmp_path / "other", trained, resume=True, device="cpu")
    assert f"was begun on {data}" in capsys.readouterr().err
    assert (trained / "model" / "README.md").read_bytes() == card


def test_a_model_older_than_its_stages_is_written_again(data: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    os.utime(out / "stages" / "unet" / "unet.safetensors")  # as after a kill between a stage and the model
    (out / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    train_text_to_image(data, out, resume=True, device="cpu")
    assert_same_weights(out, trained)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seed": 9}, "has seed 0, not 9"),
        ({"size": "fine"}, "has other networks or batches than --size fine"),
        ({"config_file": Path("no.json")}, "no.json"),
        ({"sample_minutes": 0.0}, "--sample-minutes 0 is not possible"),
        ({"minutes": -1.0}, "--minutes -1 is not possible"),
        ({"minutes": float("nan")}, "--minutes nan is not possible"),
        ({"steps": 0}, "--steps 0 is not possible"),
    ],
)
def test_what_does_not_go_with_a_resume_is_refused(data: Path, trained: Path, wrong: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        train_text_to_image(data, trained, resume=True, device="cpu", **wrong)


def test_a_refused_start_leaves_no_folder(data: Path, trained: Path, tmp_path: Path) -> None:
    starts: list[dict[str, Any]] = [
        {"minutes": -1.0},
        {"steps": 1, "stages": ("unet",)},
        {"steps": 1, "init": trained / "model", "size": "fine"},
        {"steps": 1, "seed": 2**64},
        {"steps": 1, "seed": -1},
        {"steps": 1, "sample_minutes": float("nan")},
    ]
    for wrong in starts:
        with pytest.raises(UserError):
            train_text_to_image(data, tmp_path / "out", device="cpu", **wrong)
        assert not (tmp_path / "out").exists()
    shutil.copytree(data, tmp_path / "held" / "test")
    for init in (None, trained / "model"):
        with pytest.raises(UserError, match="all of them are held out"):
            train_text_to_image(tmp_path / "held", tmp_path / "out", steps=1, size="tiny", device="cpu", init=init)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="lies within --data"):
        train_text_to_image(data, data / "out", steps=1, size="tiny", device="cpu")
    assert not (data / "out").exists()


def test_latents_are_not_gone_on_with_when_pictures_or_captions_have_changed(data: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(data, mine)
    train_text_to_image(mine, out, steps=1, size="tiny", device="cpu", stages=("vae", "clip", "latents"))
    metadata = mine / "metadata.jsonl"
    text = metadata.read_text()
    for changed in (text.replace("a red line", "a crimson line"), "".join(reversed(text.splitlines(keepends=True)))):
        metadata.write_text(changed)
        with pytest.raises(UserError, match="not those that the latents in .* were made of"):
            train_text_to_image(mine, out, steps=1, resume=True, device="cpu")
    metadata.write_text(text)
    Image.new("RGB", (16, 16), "blue").save(mine / "red-line.png")
    with pytest.raises(UserError, match="not those that the latents in .* were made of"):
        train_text_to_image(mine, out, steps=1, resume=True, device="cpu")
    assert not (out / "stages" / "unet").exists()


def test_a_resume_takes_the_same_config_file_again_and_no_other(data: Path, trained: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    values = json.loads((trained / "config.json").read_text())
    same.write_text(json.dumps(values | {"seed": 7, "window": 13}))
    other.write_text(json.dumps(values | {"drop_text": 0.5}))
    out = tmp_path / "out"
    ways: dict[str, Any] = {"init": trained / "model", "stages": ("latents",), "device": "cpu", "steps": 1}
    train_text_to_image(data, out, config_file=same, seed=3, **ways)
    train_text_to_image(data, out, config_file=same, seed=3, resume=True, **ways)
    with pytest.raises(UserError, match=r"has another config than .*other.json: leave --config out"):
        train_text_to_image(data, out, config_file=other, resume=True, **ways)


def test_an_inpainting_model_is_not_gone_on_from(data: Path, trained: Path, tmp_path: Path) -> None:
    components = read_folder(trained / "model", torch.float32, torch.device("cpu"))
    components.unet.config = replace(components.unet.config, in_channels=9)
    with pytest.raises(UserError, match="is an inpainting model, of 9 channels"):
        config_like(components, TINY, Path("painter"))


def test_sample_grids_show_captions_of_the_data(data: Path) -> None:
    captions = [[f"caption {i}", "another"] for i in range(40)]
    shown = sample_prompts(data, captions)
    assert (len(shown), shown[0], shown[-1]) == (16, "caption 0", "caption 37")
    assert sample_prompts(data, captions[:3]) == ["caption 0", "caption 1", "caption 2"]


def test_one_picture_is_enough_to_try_it(data: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "a.txt").write_text("a red square")
    train_text_to_image(tmp_path / "one", tmp_path / "my out", steps=1, size="tiny", device="cpu")
    card = (tmp_path / "my out" / "model" / "README.md").read_text()
    assert f"--data {tmp_path / 'one'} --out '{tmp_path / 'my out'}' --steps 1" in card
