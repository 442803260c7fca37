"""Text to image, from a folder of captioned pictures to a model folder that paints: six stages, one command.

1. a VAE puts pictures into latents; 2. a CLIP learns what captions mean; 3. both are applied once to all the data;
4. a U-Net learns to denoise latents under the text; 5. the captions of a picture learn from the best known of them;
6. the VAE's decoder learns to paint what the U-Net makes. `out/model` is then a Stable Diffusion folder in Diffusers'
layout.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.weights import load_weights, read_weights, write_weights
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPConfig, CLIPModel, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import train_clip
from miniai.recipes.decoder_stage import painted_latents, train_decoder
from miniai.recipes.model_card import commands, data_card, write_model_card
from miniai.recipes.text_to_image_begin import (
    BEGUN,
    LATENTS,
    NEEDS,
    PICTURES,
    STAGES,
    check_budget,
    checked_stages,
    config_like,
    config_of,
    digest,
    is_written,
    refuse_other_pictures,
    sample_prompts,
    start_of_run,
)
from miniai.recipes.text_to_image_config import SIZES, TextToImageConfig
from miniai.recipes.training import StageRun, check_apart, check_compiler, check_sample_minutes
from miniai.recipes.unet_stage import Latents, TextToImageModel, compute_latents, save_grid, train_unet
from miniai.recipes.vae_stage import train_vae
from miniai.recipes.words_stage import can_teach, train_words
from miniai.sd.folder import Components, read_folder, write_folder
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.captions import load_images, read_captioned_folder
from miniai.train.distributed import n_launched

CLIP_WEIGHTS = "model.safetensors"


def train_text_to_image(
    data: Path,
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    stages: Sequence[str] | None = None,
    init: Path | None = None,
    size: str = "small",
    config_file: Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    sample_minutes: float = 4.0,
    compiler: str | None = None,
    prompts: Sequence[str] = (),
) -> Path:
    """Train a text-to-image model on the captioned pictures in `data` and return the model folder, `out/model`.

    - minutes: of training in all, shared among `stages` as the config says; or steps: optimizer steps of each stage. A
      resume that says neither takes what the training was begun with, and `init` likewise.
    - resume: go on in a folder that holds a training; finished stages are kept as they are.
    - stages: which of `STAGES` to run (None: all); those before must have been finished.
    - init: a model folder to start from instead of from nothing: its tokenizer is kept as it is, its text encoder,
      U-Net and decoder go on learning from `data`, more gently than from nothing, and its whole VAE only if `stages`
      names it.
    - size: a ready config, of `SIZES`, with `init` of the same networks; config_file: one from a file, such as an
      earlier training's config.json.
    - compiler: put text encoder and U-Net through torch.compile with this backend, "inductor" as a rule, for their
      training: minutes to begin with, then more pictures a second.
    - prompts: what the sample grids show; none: captions from all over the data, or for emoji `SAMPLE_PROMPTS`.

    Raises UserError for bad data (one report of all that is wrong), a folder in use, a stage before its forerunner;
    nothing is written then.
    """
    if n_launched() > 1:
        raise UserError("text-to-image trains in one process: start it without a launcher of several")
    check_apart(data, out)
    check_sample_minutes(sample_minutes)
    kept = start_of_run(out, resume, data)
    if minutes is None and steps is None:
        minutes, steps = kept.get("minutes"), kept.get("steps")
    if init is None and kept.get("init"):
        init = Path(kept["init"])
    stages = checked_stages(stages if stages is not None else STAGES if init is None else STAGES[2:])
    check_budget(minutes, steps)
    config = config_of(out, resume, size, config_file, seed, going_on=init is not None)
    torch_device = pick_device(device)
    if compiler is not None:
        check_compiler(compiler, torch_device)
    start = None if init is None else read_folder(init, torch.float32, torch_device)
    if start is not None and init is not None:
        ready, config = config, config_like(start, config, init)
        chosen = "--config" if config_file is not None else None if size == "small" else f"--size {size}"
        if chosen and not resume and (ready.vae, ready.unet) != (config.vae, config.unet):
            raise UserError(f"{chosen} has other networks than {init}: leave it out")
    folder = read_captioned_folder(data)
    if not folder.train:
        raise UserError(f"{data} has no pictures to learn from: all of them are held out")
    run = _Run(config, out, torch_device, start)
    run.check_order(stages)
    images = load_images(folder.train, config.image_size)
    captions = [list(item.captions) for item in folder.train]
    own = digest(images, captions)
    refuse_other_pictures(out, own)
    make_folder(run.latents_path.parent)
    write_json(out / "config.json", config_to_dict(config))
    if not kept:
        begun = {"data": str(data), "minutes": minutes, "steps": steps, "init": None if init is None else str(init)}
        write_json(out / BEGUN, begun)
    print(f"{len(images):,} pictures, {sum(map(len, captions)):,} captions, on {torch_device}", file=sys.stderr)

    shares = {stage: getattr(config, f"{stage}_stage").share for stage in STAGES if stage != "latents"}

    def stage_run(name: str) -> StageRun:
        of_all = sum(share for stage, share in shares.items() if stage in stages)
        budget = None if minutes is None or name not in stages else minutes * shares[name] / of_all
        folder = out / "stages" / name
        return StageRun(name, folder, torch_device, budget, steps, sample_minutes, compiler=compiler)

    vae_run = stage_run("vae")
    if "vae" in stages and not vae_run.kept(run.vae_path):
        trained = train_vae(config, images, vae_run, None if start is None else start.vae)
        run.save(trained, run.vae_path)
        del trained
    clip_run = stage_run("clip")
    if "clip" in stages and not clip_run.kept(run.clip_path / CLIP_WEIGHTS):
        texts = (text for of_picture in captions for text in of_picture)
        tokenizer = CLIPTokenizer.train(texts, config.vocab_size, config.window)
        save_clip(run.clip_path, train_clip(config, images, captions, tokenizer, clip_run, config.seed), tokenizer)
    if "latents" in stages and not run.latents_path.is_file():
        keep_texts = not config.train_text
        made = compute_latents(run.vae(), *run.clip_text(), images, captions, torch_device, keep_texts)
        write_json(run.latents_path.with_name(PICTURES), {"sha256": own})
        made.save(run.latents_path)
    unet_run = stage_run("unet")
    if "unet" in stages and not unet_run.kept(run.unet_path):
        text_encoder, tokenizer = run.clip_text()
        vae, shown = run.vae(), list(prompts) or sample_prompts(data, captions)

        def paint(model: TextToImageModel, path: Path) -> None:
            parts = (tokenizer, model.text_encoder, model.unet, vae)
            save_grid(path, StableDiffusionPipeline(*parts, scheduler_config(config)), shown, config.seed)

        unet = None if start is None else start.unet
        model = train_unet(config, Latents.load(run.latents_path), text_encoder, unet_run, paint, unet)
        run.save(model, run.unet_path)
    words_run = stage_run("words")
    if "words" in stages and config.train_text and can_teach(captions) and not words_run.kept(run.words_path):
        model, tokenizer = run.unet()
        data_of_unet = Latents.load(run.latents_path)
        train_words(config, data_of_unet, captions, tokenizer, model.text_encoder, model.unet, words_run)
        run.save(model.text_encoder, run.words_path)
    decoder_run = stage_run("decoder")
    if "decoder" in stages and not decoder_run.kept(run.decoder_path):
        latents = Latents.load(run.latents_path)
        trained = train_decoder(config, images, latents.latents, run.painted(latents), run.vae(), decoder_run)
        run.save(trained, run.decoder_path)
    if is_written(out):
        print(
            f"all of {out} was finished before: to train its model further, give --init {out / 'model'}, and another "
            "folder as --out",
            file=sys.stderr,
        )
    elif {"unet", "words", "decoder"} & set(stages):
        write_folder(out / "model", run.components())
        runs = (vae_run, clip_run, unet_run, words_run, decoder_run)
        _write_card(config, data, out, len(images), runs, steps, init, size, compiler)
        print(f"the model is in {out / 'model'}", file=sys.stderr)
    return out / "model"


def _write_card(
    config: TextToImageConfig,
    data: Path,
    out: Path,
    n_images: int,
    runs: Sequence[StageRun],
    steps: int | None,
    init: Path | None,
    size: str,
    compiler: str | None,
) -> None:
    """What the stages did, and the one command that does it again, beside the model."""
    records = [stage.record() for stage in runs if stage.finished]
    minutes = sum(record["minutes"] for record in records)
    stages = ("vae", *STAGES[2:]) if runs[0].finished else ()
    size = next((name for name, ready in SIZES.items() if replace(ready, seed=config.seed) == config), size)
    options = [f"--size {size}"] if size != "small" else []
    options += [f"--seed {config.seed}"] if config.seed else []
    options += ["--compile"] if compiler else []
    how_to = commands(data, out, minutes, steps, init, stages, options)
    write_model_card(out / "model", config, data_card(data, n_images), records, how_to, init=init)


class _Run:
    """Where the stages' results lie, and how to have them back."""

    def __init__(self, config: TextToImageConfig, out: Path, device: torch.device, start: Components | None) -> None:
        self.config, self.device, self.start = config, device, start
        self.clip_path = out / "clip"
        self.vae_path = out / "stages" / "vae" / "vae.safetensors"
        self.unet_path = out / "stages" / "unet" / "unet.safetensors"
        self.words_path = out / "stages" / "words" / "text_encoder.safetensors"
        self.decoder_path = out / "stages" / "decoder" / "vae.safetensors"
        self.latents_path = out / LATENTS

    def check_order(self, stages: Sequence[str]) -> None:
        """Raise UserError for a stage whose forerunners are neither done nor among `stages`."""
        results = {
            "vae": self.vae_path,
            "clip": self.clip_path / CLIP_WEIGHTS,
            "latents": self.latents_path,
            "unet": self.unet_path,
        }
        given = () if self.start is None else ("vae", "clip", "unet")
        for stage in stages:
            for need in NEEDS.get(stage, ()):
                if need not in (*stages, *given) and not results[need].is_file():
                    raise UserError(f"the {stage} stage needs the {need} stage, which is not finished: run it first")

    def save(self, module: torch.nn.Module, path: Path) -> None:
        write_weights(path, module.state_dict())

    def vae(self) -> AutoencoderKL:
        if self.start is not None and not self.vae_path.is_file():
            return self.start.vae
        return self._load(AutoencoderKL(self.config.vae), self.vae_path, "vae")

    def clip_text(self) -> tuple[CLIPTextModel, CLIPTokenizer]:
        """The text encoder as CLIP left it, or as the model to start from has it; and the tokenizer."""
        if self.start is not None:
            return self.start.text_encoder, self.start.tokenizer
        if not (self.clip_path / CLIP_WEIGHTS).is_file():
            raise UserError(f"the clip stage is not finished in {self.clip_path.parent}: run it first")
        clip, tokenizer = load_clip(self.clip_path)
        text_encoder = CLIPTextModel(clip.config.text_config)
        text_encoder.text_model = clip.text_model
        return text_encoder.to(self.device).eval(), tokenizer

    def painted(self, latents: Latents) -> Float[Tensor, "n c h w"]:
        """What the U-Net makes of the training pictures, for the decoder: made once, and kept."""
        path = self.decoder_path.parent / "painted.safetensors"
        if not path.is_file():
            make_folder(path.parent)
            model, tokenizer = self.unet()
            parts = (tokenizer, model.text_encoder, model.unet, self.vae())
            pipeline = StableDiffusionPipeline(*parts, scheduler_config(self.config))
            made = painted_latents(pipeline, latents, self.config.decoder_loss, self.config.seed)
            write_weights(path, {"painted": made})
        return read_weights(path)["painted"]

    def unet(self) -> tuple[TextToImageModel, CLIPTokenizer]:
        """The U-Net and the text encoder that it listens to, as their stages left them, or as the model to start from
        has them."""
        text_encoder, tokenizer = self.clip_text()
        if self.start is not None and not self.unet_path.is_file():
            model = TextToImageModel(self.start.unet, text_encoder, train_text=False)
        else:
            model = TextToImageModel(UNet2DConditionModel(self.config.unet), text_encoder, train_text=False)
            model = self._load(model, self.unet_path, "unet")
        if self.words_path.is_file():
            self._load(model.text_encoder, self.words_path, "words")
        return model, tokenizer

    def components(self) -> Components:
        model, tokenizer = self.unet()
        vae = self.vae()
        if self.decoder_path.is_file():
            vae = self._load(vae, self.decoder_path, "decoder")
        model, vae = model.half().cpu(), vae.half().cpu()
        return Components(tokenizer, model.text_encoder, model.unet, vae, scheduler_config(self.config))

    def _load(self, module: Any, path: Path, stage: str) -> Any:
        if not path.is_file():
            raise UserError(f"the {stage} stage is not finished: there is no {path}; run it first")
        load_weights(module, read_weights(path), str(path))
        return module.to(self.device).eval()


def scheduler_config(config: TextToImageConfig) -> dict[str, Any]:
    """`scheduler_config.json` for the schedule that the U-Net was trained with: DPM-Solver++ of order 2."""
    schedule = config.schedule
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "prediction_type": schedule.prediction_type,
        "rescale_betas_zero_snr": schedule.rescale_betas_zero_snr,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if schedule.rescale_betas_zero_snr else "linspace",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "clip_sample": False,  # DDIM and DDPM would clip latents to [-1, 1] if this said nothing
    }


def save_clip(folder: str | os.PathLike[str], model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write both encoders and the tokenizer into `folder`, as transformers' CLIPModel lays them out, in float16; the
    weights last."""
    folder = Path(folder)
    make_folder(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", {"model_type": "clip", **config_to_dict(model.config)})
    write_weights(folder / CLIP_WEIGHTS, {name: value.half() for name, value in model.state_dict().items()})


def load_clip(folder: str | os.PathLike[str]) -> tuple[CLIPModel, CLIPTokenizer]:
    """Both encoders, in float32 on the CPU, and their tokenizer."""
    folder = Path(folder)
    model = CLIPModel(CLIPConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json")))
    load_weights(model, read_weights(folder / CLIP_WEIGHTS), str(folder / CLIP_WEIGHTS))
    return model.eval(), CLIPTokenizer.from_pretrained(folder)
