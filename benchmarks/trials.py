"""Short trainings of the text-to-image U-Net from nothing, equal but for one thing each: what helps, and by how much.

    miniai data emoji --out data/emoji-core --styles noto,twemoji,fluent-emoji-flat --groups core
    miniai data emoji --out data/emoji-everyday --styles noto,twemoji,fluent-emoji-flat \\
        --groups "core,hand-*,hands" --combinations --colours                           for the trial `everyday`
    miniai data emoji --out data/emoji-skin-tones --styles noto,twemoji,fluent-emoji-flat \\
        --groups "core,hand-*,hands" --skin-tones                                       for the trial `skin-tones`
    miniai data openclipart --out data/clipart                                     for the trial `clipart`
    python benchmarks/trials.py --data data/emoji-core --out runs/trials            all of them, those done are kept
    python benchmarks/trials.py --data data/emoji-core --out runs/trials labels muon   these alone
    python benchmarks/trials.py --list

Each sees the same number of pictures (`--steps` batches of 128) with the same first weights, order and noise; a smaller
U-Net than the packaged one, on the packaged VAE's latents, under a CLIP that is trained here once for all of them. Then
each paints the held-out pictures' captions and is judged as by `miniai evaluate text-to-image`, and its error in x0 on
these pictures is taken at three noise levels, the same noise for all. The table goes to `--out`/trials.md.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trial_parts import (
    AlignedModel,
    AlignedObjective,
    Both,
    Exchanged,
    FlowLoss,
    NoisyVAEObjective,
    Pooled,
    encode,
    mirrored,
    moved,
    patches,
)

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.seeds import make_generator
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPModel, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import train_clip
from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.evaluator import RECORD, SHIPPED
from miniai.recipes.text_to_image import load_clip, save_clip, scheduler_config
from miniai.recipes.text_to_image_config import SMALL, TextToImageConfig, VAELossConfig
from miniai.recipes.training import StageRun, channels_last, initial_weights, run_stage
from miniai.recipes.unet_stage import TextToImageModel, TextToImageObjective, compute_latents, init_unet
from miniai.recipes.vae_stage import VAEObjective, standardise_latents, to_float
from miniai.sd.folder import Components, read_folder, write_folder
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.captions import CaptionedItem, load_images, read_captioned_folder
from miniai.train.data import TensorDataset
from miniai.train.learner import Objective

PACKAGED = Path(__file__).parents[1] / "miniai" / "models" / "emoji"
EVERYDAY, SKIN_TONES, CLIPART = (Path("data") / name for name in ("emoji-everyday", "emoji-skin-tones", "clipart"))
LEVELS = (300, 600, 900)  # timesteps at which errors are taken
SMALLER = replace(SMALL.unet, block_out_channels=(96, 160), attention_head_dim=(3, 5))
BASE = replace(SMALL, unet=SMALLER)


@dataclass(frozen=True)
class Trial:
    """What is changed, of the recipe, of the captions or of what is learned; and why."""

    why: str
    config: Callable[[TextToImageConfig], TextToImageConfig] = lambda config: config
    captions: Callable[[CaptionedItem], list[str]] = lambda item: list(item.captions)
    others: Callable[[Tensor], Tensor] | None = None  # pictures that half of each batch is exchanged for
    alignment: float = 0.0
    flow: bool = False
    listener: Callable[[CLIPTextModel], nn.Module] | None = None
    data: Path | None = None  # instead of --data
    beside: Path | None = None  # as well
    vae: Callable[[VAELossConfig], Objective] | None = None
    new_vae: bool = False
    text_layers: int | None = None


def stage(**changes: Any) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(config, unet_stage=replace(config.unet_stage, **changes))


def schedule(**changes: Any) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(config, schedule=replace(config.schedule, **changes))


def plain(loss: VAELossConfig) -> VAELossConfig:
    return replace(loss, equivariant=0.0)


def channels(n: int) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(
        config,
        vae=replace(config.vae, latent_channels=n),
        unet=replace(config.unet, in_channels=n, out_channels=n),
    )


def larger_latents(config: TextToImageConfig) -> TextToImageConfig:
    """As many numbers in four times as many places: a level less in the VAE, one more (convolutions) in the U-Net."""
    vae = replace(
        config.vae,
        down_block_types=config.vae.down_block_types[1:],
        up_block_types=config.vae.up_block_types[1:],
        block_out_channels=config.vae.block_out_channels[:-1],
        latent_channels=4,
    )
    unet = replace(
        config.unet,
        down_block_types=("DownBlock2D", *config.unet.down_block_types),
        up_block_types=(*config.unet.up_block_types, "UpBlock2D"),
        block_out_channels=(48, *config.unet.block_out_channels),
        attention_head_dim=(3, 3, 5),
        norm_num_groups=16,
        sample_size=16,
        in_channels=4,
        out_channels=4,
    )
    return replace(config, vae=vae, unet=unet)


TRIALS: dict[str, Trial] = {
    "recipe": Trial("the recipe as it stands"),
    "seed": Trial("the same from another seed: what chance does", lambda config: replace(config, seed=1)),
    "labels": Trial("captions: the label alone, with its style", captions=lambda item: [item.text]),
    "labels-tags": Trial(
        "captions: label with style, and those with tags",
        captions=lambda item: [item.text, *(text for text in item.captions[1:] if text.count(",") > 1)],
    ),
    "no-style": Trial("captions: none names a style", captions=lambda item: without_style(item)),
    "frozen-text": Trial("CLIP's text encoder stays as it is", lambda config: replace(config, train_text=False)),
    "epsilon": Trial(
        "the U-Net predicts epsilon, min-SNR",
        lambda config: replace(schedule(prediction_type="epsilon")(config), weighting="min_snr"),
    ),
    "plain-v": Trial("v without weighting", lambda config: replace(config, weighting="none")),
    "zero-snr": Trial("the last timestep is noise alone", schedule(rescale_betas_zero_snr=True)),
    "uniform": Trial("timesteps drawn evenly", lambda config: replace(config, timestep_shift=1.0)),
    "shift-4": Trial("timesteps shifted by 4", lambda config: replace(config, timestep_shift=4.0)),
    "drop-20": Trial("a fifth of the captions dropped", lambda config: replace(config, drop_text=0.2)),
    "rate-0.0007": Trial("a learning rate of 0.0007", stage(learning_rate=7e-4)),
    "rate-0.001": Trial("a learning rate of 0.001", stage(learning_rate=1e-3)),
    "rate-0.004": Trial("a learning rate of 0.004", stage(learning_rate=4e-3)),
    "batch-64": Trial("batches of 64, twice as many", stage(batch_size=64)),
    "ema-short": Trial("weights averaged over 50 steps instead of 1,000", stage(ema=0.98)),
    "adamw": Trial("AdamW for all weights, at 0.0007", stage(optimizer="adamw", learning_rate=7e-4)),
    "mirrored": Trial("half of the pictures are seen in the mirror", others=mirrored),
    "moved": Trial("half of the pictures are turned by up to 10° and shifted by up to 4 pixels", others=moved),
    "flow": Trial("times and weights of rectified flow, logit-normal, for v", flow=True),
    "pooled": Trial("the U-Net hears of the text its pooled vector alone", listener=Pooled),
    "both": Trial("the tokens' vectors and the pooled one", listener=Both),
    "text-2": Trial("a text encoder of two layers, the first of CLIP's four", text_layers=2),
    "everyday": Trial("1,484 pictures more: hands, combinations, colours", data=EVERYDAY),
    "clipart": Trial("1,207 pieces of clip art more, a style of their own", beside=CLIPART),
    "skin-tones": Trial("hands, and these and others in five skin tones more", data=SKIN_TONES),
    "alignment": Trial("the U-Net's middle is drawn to CLIP's image patches (REPA)", alignment=0.5),
    "vae-on": Trial("the VAE goes on for `--vae-steps` first", vae=lambda loss: VAEObjective(plain(loss))),
    "vae-equivariant": Trial(
        "the same; latents of half of the batches are turned, mirrored or halved, and so are the pictures to decode",
        vae=VAEObjective,
    ),
    "vae-noise": Trial(
        "the same without; noise on the latents, of up to 0.6 of their deviation",
        vae=lambda loss: NoisyVAEObjective(plain(loss), 0.6),
    ),
    "vae-both": Trial("the same with both", vae=lambda loss: NoisyVAEObjective(loss, 0.6)),
    "vae-kl": Trial(
        "the same without either; KL counts ten times as much",
        vae=lambda loss: VAEObjective(replace(plain(loss), kl=10 * loss.kl)),
    ),
    "factor-8": Trial("a VAE of the recipe's kind from nothing, latents 16×8×8", vae=VAEObjective, new_vae=True),
    "channels-8": Trial("the same with latents 8×8×8", channels(8), vae=VAEObjective, new_vae=True),
    "channels-4": Trial("the same with latents 4×8×8", channels(4), vae=VAEObjective, new_vae=True),
    "factor-4": Trial(
        "the same with latents 4×16×16, and a U-Net with a level more", larger_latents, vae=VAEObjective, new_vae=True
    ),
}


def without_style(item: CaptionedItem) -> list[str]:
    """The captions that hold none of the words behind the last comma of the first: "…, noto style"."""
    style = item.text.rsplit(", ", 1)[-1].removesuffix(" style")
    return [text for text in item.captions if style not in text] or [item.text]


@dataclass(frozen=True)
class Bench:
    """What all trials share. `steps` is of batches of 128."""

    data: Path
    out: Path
    steps: int
    clip_steps: int
    vae_steps: int
    device: torch.device
    evaluator: Path
    config: TextToImageConfig

    def prepare(self) -> None:
        """The CLIP under which all of them learn, unless it is there."""
        if (self.out / "clip" / "model.safetensors").is_file():
            return
        folder = read_captioned_folder(self.data)
        captions = [list(item.captions) for item in folder.train]
        texts = (text for of_picture in captions for text in of_picture)
        tokenizer = CLIPTokenizer.train(texts, self.config.vocab_size, self.config.window)
        run = StageRun("clip", self.out / "clip-training", self.device, None, self.clip_steps)
        images = load_images(folder.train, self.config.image_size)
        save_clip(self.out / "clip", train_clip(self.config, images, captions, tokenizer, run, 0), tokenizer)

    def text_encoder(self, n_layers: int | None) -> tuple[CLIPTextModel, CLIPTokenizer, CLIPModel]:
        """With the first `n_layers` of CLIP's, or all."""
        clip, tokenizer = load_clip(self.out / "clip")
        config = clip.config.text_config
        text_encoder = CLIPTextModel(replace(config, num_hidden_layers=n_layers or config.num_hidden_layers))
        known = text_encoder.text_model.state_dict()
        text_encoder.text_model.load_state_dict({k: v for k, v in clip.text_model.state_dict().items() if k in known})
        return text_encoder, tokenizer, clip

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for figures to be compared."""
        judge = read_json(self.evaluator / RECORD)["names"]
        return {"steps": self.steps, "clip_steps": self.clip_steps, "vae_steps": self.vae_steps, "judge": judge}

    def vae(self, trial: Trial, config: TextToImageConfig, images: Tensor, place: Path) -> AutoencoderKL:
        """The packaged one or a new one, trained as the trial says."""
        if trial.new_vae:
            with initial_weights(config.seed):
                vae = AutoencoderKL(config.vae).to(self.device)
        else:
            vae = read_folder(PACKAGED, torch.float32, self.device).vae
        if trial.vae is not None:
            channels_last(vae).train().requires_grad_(True)
            rate = config.vae_stage.learning_rate * (1.0 if trial.new_vae else 0.5)
            run = StageRun("vae", place, self.device, None, self.vae_steps)
            vae_stage = replace(config.vae_stage, learning_rate=rate)
            run_stage(run, vae_stage, vae, images, trial.vae(config.vae_loss), config.seed)
            standardise_latents(vae, images[:: max(1, len(images) // 1024)].to(self.device))
            vae.eval().requires_grad_(False)
        return vae

    def run(self, name: str) -> dict[str, Any]:
        """Train, unless it is done, and measure."""
        trial, place = TRIALS[name], self.out / name
        if (place / "trial.json").is_file():
            return json.loads((place / "trial.json").read_text())
        make_folder(place)
        print(f"{name}: {trial.why}", flush=True)
        config = trial.config(self.config)
        text_encoder, tokenizer, clip = self.text_encoder(trial.text_layers)
        items = read_captioned_folder(trial.data or self.data).train
        items += () if trial.beside is None else read_captioned_folder(trial.beside).train
        images = load_images(items, config.image_size)
        vae = self.vae(trial, config, images, place / "vae")
        captions = [trial.captions(item) for item in items]
        data = compute_latents(vae, text_encoder, tokenizer, images, captions, self.device, not config.train_text)
        with initial_weights(config.seed):
            unet = init_unet(UNet2DConditionModel(config.unet))
            listener: Any = text_encoder if trial.listener is None else trial.listener(text_encoder)
            model = TextToImageModel(unet, listener, config.train_text)
        objective: Any = TextToImageObjective(config, data, self.device)
        if trial.flow:
            objective.diffusion = FlowLoss(NoiseSchedule(config.schedule))
        tensors: tuple[Tensor, ...] = (data.latents, data.rows, data.counts)
        if trial.others is not None:
            tensors += (encode(vae, trial.others(images), self.device),)
            objective = Exchanged(objective)
        if trial.alignment:
            tensors += (patches(clip.to(self.device), images, self.device),)
            with initial_weights(config.seed):
                model = AlignedModel(unet, text_encoder, config.train_text, tensors[3].shape[-1])
            objective = AlignedObjective(objective, trial.alignment)
        steps = self.steps * 128 // config.unet_stage.batch_size
        stage_run = StageRun("unet", place / "stages", self.device, None, steps)
        run_stage(stage_run, config.unet_stage, model, TensorDataset(tensors), objective, config.seed)
        errors = self.errors(config, model.unet, model.text_encoder, tokenizer, vae)
        result = {"name": name, "why": trial.why, "settings": self.settings, **stage_run.record(), **errors}
        if trial.listener is None:  # no model folder says so of a text encoder: its errors alone are measured
            scheduler = scheduler_config(config)
            parts = Components(tokenizer, text_encoder.half().cpu(), unet.half().cpu(), vae.half().cpu(), scheduler)
            write_folder(place / "model", parts)
            asked = Evaluation(place / "model", self.data, evaluator=self.evaluator, device=str(self.device))
            judged = evaluate_text_to_image(asked, place / "evaluation")
            result |= {key: judged[key] for key in ("retrieval", "retrieval_within_style", "style", "fid", "kid")}
        write_json(place / "trial.json", result)
        for checkpoint in (place / "stages" / "checkpoints").glob("*"):
            checkpoint.unlink()
        return result

    @torch.no_grad()
    def errors(
        self, config: TextToImageConfig, unet: nn.Module, text_encoder: nn.Module, tokenizer: CLIPTokenizer, vae: Any
    ) -> dict[str, dict[str, float]]:
        """On the held-out pictures at each of LEVELS of the noise of the recipe: mean squared error in x0 (`errors`),
        and of the pixels that it is decoded to (`pixel_errors`), where white to black is 2."""
        items = read_captioned_folder(self.data).heldout
        pictures = load_images(items, config.image_size)
        x0 = encode(vae, pictures, self.device).to(self.device)
        texts = text_encoder(tokenizer([item.text for item in items]).to(self.device)).last_hidden_state
        alpha_bar, own = (NoiseSchedule(c.schedule).alpha_bar for c in (self.config, config))
        found: dict[str, dict[str, float]] = {"errors": {}, "pixel_errors": {}}
        for level in LEVELS:
            a = alpha_bar[level].double()
            t = int((own.double() - a).abs().argmin())  # the timestep with that noise in the trial's own schedule
            signal, spread = float(own[t]) ** 0.5, (1 - float(own[t])) ** 0.5
            noise = torch.randn(x0.shape, generator=make_generator(0, level)).to(self.device)
            x_t = signal * x0 + spread * noise
            said = unet(x_t, torch.full((len(x0),), float(t), device=self.device), texts)
            is_v = config.schedule.prediction_type == "v_prediction"
            estimate = signal * x_t - spread * said if is_v else (x_t - spread * said) / signal
            decoded = torch.cat([vae.decode(part).cpu() for part in estimate.split(64)])
            found["errors"][str(level)] = float((estimate - x0).square().mean())
            found["pixel_errors"][str(level)] = float((decoded - to_float(pictures)).square().mean())
        return found


def table(results: list[Mapping[str, Any]]) -> str:
    lines = [
        f"| trial | what | pictures | minutes | error in x0 at {', '.join(map(str, LEVELS))} | error of pixels | right"
        " caption | style | FID |",
        "| --- | --- | ---: | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for found in results:
        errors = [", ".join(f"{e:.4f}" for e in found.get(key, {}).values()) for key in ("errors", "pixel_errors")]
        figures = [
            f"{found[key]['generated']:.{digits}f}" if key in found else ""
            for key, digits in (("retrieval", 3), ("style", 3), ("fid", 2))
        ]
        cells = [found["name"], found["why"], f"{found['images']:,}", f"{found['minutes']:.1f}", *errors, *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TRIAL", help="which to run; all, if none is named")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-core"))
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    parser.add_argument("--steps", type=int, default=400, help="batches of 128 pictures that each sees")
    parser.add_argument("--clip-steps", type=int, default=800, help="batches of 64 pairs that the CLIP sees")
    parser.add_argument("--vae-steps", type=int, default=400, help="batches of 24 for which a trial's VAE goes on")
    parser.add_argument(
        "--evaluator", type=Path, default=SHIPPED, help="folder of the judge, the packaged one if none is named"
    )
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{name:12} {trial.why}" for name, trial in TRIALS.items()))
        return
    unknown = [name for name in asked.names if name not in TRIALS]
    if unknown:
        parser.error(f"there is no trial {unknown[0]}: see --list")
    device = pick_device(asked.device)
    bench = Bench(asked.data, asked.out, asked.steps, asked.clip_steps, asked.vae_steps, device, asked.evaluator, BASE)
    for path in asked.out.glob("*/trial.json"):
        if json.loads(path.read_text()).get("settings", bench.settings) != bench.settings:
            parser.error(f"{path} was made with other numbers of steps: choose another --out, or the same numbers")
    bench.prepare()
    write_json(asked.out / "config.json", {"steps": asked.steps, **config_to_dict(BASE)})
    for name in asked.names or TRIALS:
        bench.run(name)
        done = [
            json.loads(path.read_text()) for known in TRIALS if (path := asked.out / known / "trial.json").is_file()
        ]
        (asked.out / "trials.md").write_text(table(done))
    print(table(done))


if __name__ == "__main__":
    main()
