"""What trials share: the parts that are the same for all of them, their training, and how they are judged."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trial_parts import AlignedModel, AlignedObjective, Exchanged, encode, patches
from trial_vaes import Beside, VAEBeside

from miniai.base.files import make_folder, read_json, write_json
from miniai.base.seeds import make_generator
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPModel, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import train_clip
from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.evaluator import RECORD
from miniai.recipes.text_to_image import load_clip, save_clip, scheduler_config
from miniai.recipes.text_to_image_config import SMALL, TextToImageConfig, VAELossConfig
from miniai.recipes.training import StageRun, channels_last, initial_weights, run_stage
from miniai.recipes.unet_stage import TextToImageModel, TextToImageObjective, compute_latents, init_unet
from miniai.recipes.vae_stage import standardise_latents, to_float
from miniai.sd.folder import Components, read_folder, write_folder
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.callback import Callback
from miniai.train.captions import CaptionedItem, load_images, read_captioned_folder
from miniai.train.data import TensorDataset
from miniai.train.learner import Objective

PACKAGED = Path(__file__).parents[1] / "miniai" / "models" / "emoji"
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
    loss: Callable[[NoiseSchedule], Any] | None = None  # instead of the diffusion loss
    listener: Callable[[CLIPTextModel], nn.Module] | None = None
    data: Path | None = None  # instead of --data
    beside: Path | None = None  # as well
    vae: Callable[[VAELossConfig, CLIPModel], Objective] | None = None
    vae_beside: Beside | None = None  # what learns beside the VAE, for its loss
    new_vae: bool = False
    text_layers: int | None = None
    pictures: float = 1.0  # of those that the others see


@dataclass(frozen=True)
class Trained:
    """What comes of a trial, and under which config."""

    config: TextToImageConfig
    model: TextToImageModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    stage_run: StageRun

    @property
    def unet(self) -> Any:
        return self.model.unet

    @property
    def text_encoder(self) -> Any:
        return self.model.text_encoder


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
    clip: Path | None = None  # the folder of one that is trained already

    @property
    def clip_folder(self) -> Path:
        return self.clip or self.out / "clip"

    def prepare(self) -> None:
        """The CLIP under which all of them learn, unless it is there."""
        if (self.clip_folder / "model.safetensors").is_file():
            return
        if self.clip is not None:
            raise SystemExit(f"{self.clip} holds no CLIP: name the folder clip of a run of trials.py")
        folder = read_captioned_folder(self.data)
        captions = [list(item.captions) for item in folder.train]
        texts = (text for of_picture in captions for text in of_picture)
        tokenizer = CLIPTokenizer.train(texts, self.config.vocab_size, self.config.window)
        run = StageRun("clip", self.out / "clip-training", self.device, None, self.clip_steps)
        images = load_images(folder.train, self.config.image_size)
        save_clip(self.clip_folder, train_clip(self.config, images, captions, tokenizer, run, 0), tokenizer)

    def text_encoder(self, n_layers: int | None) -> tuple[CLIPTextModel, CLIPTokenizer, CLIPModel]:
        """With the first `n_layers` of CLIP's, or all."""
        clip, tokenizer = load_clip(self.clip_folder)
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

    def vae(
        self, trial: Trial, config: TextToImageConfig, clip: CLIPModel, images: Tensor, place: Path
    ) -> AutoencoderKL:
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
            learning: Any = vae
            if trial.vae_beside is not None:
                with initial_weights(config.seed):
                    learning = VAEBeside(vae, trial.vae_beside(vae, clip))
            run_stage(run, vae_stage, learning, images, trial.vae(config.vae_loss, clip), config.seed)
            standardise_latents(vae, images[:: max(1, len(images) // 1024)].to(self.device))
            vae.eval().requires_grad_(False)
        return vae

    def train(self, trial: Trial, place: Path, callbacks: Iterable[Callback] = ()) -> "Trained":
        """The trial's U-Net and text encoder from nothing, in `place`; `callbacks` go along."""
        make_folder(place)
        config = trial.config(self.config)
        text_encoder, tokenizer, clip = self.text_encoder(trial.text_layers)
        items = read_captioned_folder(trial.data or self.data).train
        items += () if trial.beside is None else read_captioned_folder(trial.beside).train
        images = load_images(items, config.image_size)
        vae = self.vae(trial, config, clip, images, place / "vae")
        captions = [trial.captions(item) for item in items]
        data = compute_latents(vae, text_encoder, tokenizer, images, captions, self.device, not config.train_text)
        with initial_weights(config.seed):
            unet = init_unet(UNet2DConditionModel(config.unet))
            listener: Any = text_encoder if trial.listener is None else trial.listener(text_encoder)
            model = TextToImageModel(unet, listener, config.train_text)
        objective: Any = TextToImageObjective(config, data, self.device)
        if trial.loss is not None:
            objective.diffusion = trial.loss(NoiseSchedule(config.schedule))
        tensors: tuple[Tensor, ...] = (data.latents, data.rows, data.counts)
        if trial.others is not None:
            tensors += (encode(vae, trial.others(images), self.device),)
            objective = Exchanged(objective)
        if trial.alignment:
            tensors += (patches(clip.to(self.device), images, self.device),)
            with initial_weights(config.seed):
                model = AlignedModel(unet, text_encoder, config.train_text, tensors[3].shape[-1])
            objective = AlignedObjective(objective, trial.alignment)
        steps = round(self.steps * 128 * trial.pictures / config.unet_stage.batch_size)
        run = StageRun("unet", place / "stages", self.device, None, steps)
        dataset = TensorDataset(tensors)
        run_stage(run, config.unet_stage, model, dataset, objective, config.seed, callbacks=callbacks)
        for checkpoint in (place / "stages" / "checkpoints").glob("*"):
            checkpoint.unlink()
        return Trained(config, model, tokenizer, vae, run)

    def run(self, name: str, trial: Trial) -> dict[str, Any]:
        """Train, unless it is done, and measure."""
        place = self.out / name
        if (place / "trial.json").is_file():
            return read_json(place / "trial.json")
        print(f"{name}: {trial.why}", flush=True)
        trained = self.train(trial, place)
        result = {"name": name, "why": trial.why, "settings": self.settings, **trained.stage_run.record()}
        result |= self.errors(trained)
        if trial.listener is None:  # no model folder says so of a text encoder: its errors alone are measured
            result |= self.judge(trained, place)
        write_json(place / "trial.json", result)
        return result

    def judge(self, trained: "Trained", place: Path) -> dict[str, Any]:
        """Pack the model as `place`/model, and have it paint the held-out captions: the figures, by their names."""
        text, unet, vae = (
            copy.deepcopy(part).half().cpu() for part in (trained.text_encoder, trained.unet, trained.vae)
        )
        write_folder(place / "model", Components(trained.tokenizer, text, unet, vae, scheduler_config(trained.config)))
        asked = Evaluation(place / "model", self.data, evaluator=self.evaluator, device=str(self.device))
        judged = evaluate_text_to_image(asked, place / "evaluation")
        kept = ("retrieval", "retrieval_within_style", "style", "fid", "kid", "nearest_training")
        return {key: judged[key] for key in kept}

    @torch.no_grad()
    def errors(self, trained: "Trained") -> dict[str, dict[str, float]]:
        """On the held-out pictures at each of LEVELS of the noise of the recipe: mean squared error in x0 (`errors`),
        and of the pixels that it is decoded to (`pixel_errors`), where white to black is 2."""
        config, vae = trained.config, trained.vae
        items = read_captioned_folder(self.data).heldout
        pictures = load_images(items, config.image_size)
        x0 = encode(vae, pictures, self.device).to(self.device)
        ids = trained.tokenizer([item.text for item in items]).to(self.device)
        texts = trained.text_encoder(ids).last_hidden_state
        alpha_bar, own = (NoiseSchedule(c.schedule).alpha_bar for c in (self.config, config))
        found: dict[str, dict[str, float]] = {"errors": {}, "pixel_errors": {}}
        for level in LEVELS:
            a = alpha_bar[level].double()
            t = int((own.double() - a).abs().argmin())  # the timestep with that noise in the trial's own schedule
            signal, spread = float(own[t]) ** 0.5, (1 - float(own[t])) ** 0.5
            noise = torch.randn(x0.shape, generator=make_generator(0, level)).to(self.device)
            x_t = signal * x0 + spread * noise
            said = trained.unet(x_t, torch.full((len(x0),), float(t), device=self.device), texts)
            is_v = config.schedule.prediction_type == "v_prediction"
            estimate = signal * x_t - spread * said if is_v else (x_t - spread * said) / signal
            decoded = torch.cat([vae.decode(part).cpu() for part in estimate.split(64)])
            found["errors"][str(level)] = float((estimate - x0).square().mean())
            found["pixel_errors"][str(level)] = float((decoded - to_float(pictures)).square().mean())
        return found
