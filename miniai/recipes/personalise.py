"""`miniai train lora`, `dreambooth`, `textual-inversion`: a model learns a style or a thing of one's own from a few
pictures (LoRA: Hu et al. 2021; DreamBooth: Ruiz et al. 2022, arXiv 2208.12242; textual inversion: Gal et al. 2022)."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.images import grid, save_png
from miniai.base.seeds import image_generators
from miniai.base.weights import write_weights
from miniai.diffusion.objectives import DiffusionObjective, drop_condition
from miniai.diffusion.sampling import sampler_from_file, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.low_rank import LowRankLayers
from miniai.recipes.clip_stage import CaptionTable, choose_captions
from miniai.recipes.fashion import keep_config
from miniai.recipes.generate_request import MAX_SEED, check_ranges
from miniai.recipes.personalise_config import PersonaliseConfig
from miniai.recipes.personalise_data import OwnPictures, keep_digest, read_own_pictures, refuse_other_pictures
from miniai.recipes.training import (
    StageRun,
    check_apart,
    check_sample_minutes,
    initial_weights,
    refuse_inpainting,
    run_stage,
)
from miniai.sd.clip_text import normalise
from miniai.sd.folder import INDEX, SCHEDULER
from miniai.sd.lora_files import TEXT, UNET, write_lora
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.prompt_chunks import section_tokens
from miniai.sd.textual_inversion import FILE_STEM, LearnedWord, add_words
from miniai.train.data import TensorDataset
from miniai.train.distributed import n_launched

LORA_FILE, WORD_FILE = "pytorch_lora_weights.safetensors", f"{FILE_STEM}.safetensors"
N_SHOWN, SHOWN_STEPS, SHOWN_SCALE = 8, 20, 4.0


class LoraModel(nn.Module):
    """Thin changes of the U-Net and, if it learns too, the text encoder."""

    def __init__(self, pipe: StableDiffusionPipeline, config: PersonaliseConfig) -> None:
        super().__init__()
        self.unet = LowRankLayers(pipe.unet, config.unet_layers, config.rank)
        pipe.text_encoder.requires_grad_(False)
        self.text = LowRankLayers(pipe.text_encoder, config.text_layers, config.rank) if config.train_text else None

    @contextmanager
    def attached(self, pipe: StableDiffusionPipeline) -> Iterator[None]:
        """What is learned counts in the pipeline's networks, inside the `with`."""
        with ExitStack() as stack:
            stack.enter_context(self.unet.attached(pipe.unet))
            if self.text is not None:
                stack.enter_context(self.text.attached(pipe.text_encoder))
            yield

    def save(self, pipe: StableDiffusionPipeline, out: Path) -> Path:
        changes = {UNET: self.unet.changes()} | ({} if self.text is None else {TEXT: self.text.changes()})
        write_lora(out / LORA_FILE, changes)
        return out / LORA_FILE


class WholeModel(nn.Module):
    """The U-Net itself and, if it learns too, the text encoder."""

    def __init__(self, pipe: StableDiffusionPipeline, config: PersonaliseConfig) -> None:
        super().__init__()
        self.unet = pipe.unet.requires_grad_(True)
        pipe.text_encoder.requires_grad_(config.train_text)
        self.text = pipe.text_encoder if config.train_text else None

    @contextmanager
    def attached(self, pipe: StableDiffusionPipeline) -> Iterator[None]:
        yield

    def save(self, pipe: StableDiffusionPipeline, out: Path) -> Path:
        pipe.save_pretrained(out / "model")
        return out / "model"


class WordModel(nn.Module):
    """The vectors of one new word, which begin as those of the words of `init_word`, over and over."""

    def __init__(self, pipe: StableDiffusionPipeline, config: PersonaliseConfig) -> None:
        super().__init__()
        for part in (pipe.unet, pipe.text_encoder):
            part.requires_grad_(False)
        table = pipe.text_encoder.text_model.embeddings.token_embedding.weight
        begin = pipe.tokenizer.encode(config.init_word)
        if not begin:
            raise UserError(f"--init-word {config.init_word!r} is no word: give one that is like the new one")
        ids = (begin * config.n_vectors)[: config.n_vectors]
        if any(letter.isspace() for letter in config.word) or f"{normalise(config.word)}</w>" in pipe.tokenizer.vocab:
            raise UserError(f"--word {config.word!r} is not possible: give one that is not known yet, without spaces")
        self.word, self.first = config.word, len(pipe.tokenizer)
        self.vectors = nn.Parameter(table[ids].detach().clone())
        word = LearnedWord(config.word, self.vectors.detach().clone())
        add_words(pipe.tokenizer, pipe.text_encoder, [word])

    @contextmanager
    def attached(self, pipe: StableDiffusionPipeline) -> Iterator[None]:
        """What is learned is what the text encoder sees for the word, inside the `with`."""
        embedding: Any = pipe.text_encoder.text_model.embeddings.token_embedding

        def look_up(ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
            is_new = (ids >= self.first) & (ids < self.first + len(self.vectors))
            own = self.vectors[(ids - self.first).clamp(0, len(self.vectors) - 1)]
            return torch.where(is_new[..., None], own.to(embedding.weight.dtype), embedding.weight[ids])

        embedding.forward = look_up
        try:
            yield
        finally:
            del embedding.forward

    def save(self, pipe: StableDiffusionPipeline, out: Path) -> Path:
        write_weights(out / WORD_FILE, {self.word: self.vectors.detach()})
        return out / WORD_FILE


Learner = LoraModel | WholeModel | WordModel
MODELS: dict[str, type[Learner]] = {"lora": LoraModel, "dreambooth": WholeModel, "textual-inversion": WordModel}


@dataclass
class PersonalObjective:
    """The model's own diffusion loss on one's own pictures, and, where there are some, on those that it painted of the
    class before (Ruiz et al. 2022, equation 2). Latents are drawn anew from the encoder's distribution each time."""

    pipe: StableDiffusionPipeline
    config: PersonaliseConfig
    own: OwnPictures
    prior: OwnPictures | None
    device: torch.device

    def __post_init__(self) -> None:
        raw = self.pipe.scheduler_config
        schedule = NoiseSchedule(schedule_config(raw, sampler_from_file(raw, SCHEDULER), SCHEDULER))
        self.diffusion = DiffusionObjective(schedule, timestep_shift=self.config.timestep_shift)
        self.table = CaptionTable(self.own.captions, self.pipe.tokenizer)
        said = [self.config.class_prompt, ""]
        self.ids = torch.cat([self.table.ids, CaptionTable([said], self.pipe.tokenizer).ids]).to(self.device)

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        mean, deviation, rows, counts = batch
        chosen = choose_captions(rows, counts, generator)
        dropped = drop_condition(chosen, chosen.new_tensor(len(self.ids) - 1), self.config.drop_text, generator)
        assert isinstance(model, LoraModel | WholeModel | WordModel)
        with model.attached(self.pipe):
            loss = self._loss(mean, deviation, dropped, generator)
            if self.prior is None:
                return {"loss": loss}
            which = torch.randint(len(self.prior.mean), (len(mean),), generator=generator, device=generator.device)
            prior_mean, prior_deviation = (
                part[which.cpu()].to(mean.device) for part in (self.prior.mean, self.prior.deviation)
            )
            of_class = chosen.new_full((len(mean),), len(self.ids) - 2)
            prior = self._loss(prior_mean, prior_deviation, of_class, generator)
        return {"loss": loss + self.config.prior_weight * prior, "own": loss, "prior": prior}

    def _loss(self, mean: Tensor, deviation: Tensor, texts: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        latents = (mean + deviation * noise).contiguous(memory_format=torch.channels_last)

        def network(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            said = self.pipe.text_encoder(self.ids[rows.to(self.ids.device)]).last_hidden_state
            return self.pipe.unet(x_t, t, said.float())

        return self.diffusion(network, (latents, texts), generator)


def personalise(
    data: Path,
    out: Path,
    config: PersonaliseConfig,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    device: str = "auto",
    sample_minutes: float = 4.0,
) -> Path:
    """Teach the model of `config` what the pictures in `data` show, in the folder `out`, and return what was made: the
    LoRA's file, the word's, or the folder of the model.

    `data` is a captioned folder or, with `config.prompts`, any folder of pictures. Raises UserError, and writes
    nothing, for pictures or a model that cannot be read, numbers that are not possible, and a folder that is in use.
    """
    check_config(config, minutes, steps)
    check_apart(data, out)
    check_sample_minutes(sample_minutes)
    place = pick_device(device)
    pipe = load_pipeline(config.model, config.tokenizer, place)
    with initial_weights(config.seed):
        model = MODELS[config.kind](pipe, config)
    own = read_own_pictures(data, config, pipe)
    check_lengths(pipe, config, own)
    refuse_other_pictures(out, own)
    keep_config(out, config, resume)
    keep_digest(out, own)
    run = StageRun(config.kind, out, place, minutes, steps, sample_minutes)
    if run.kept(_last_file(config, out)):
        print(f"all of {out} was finished before: choose another folder for another training", file=sys.stderr)
        return result_of(config, out)
    prior = own.painted_prior(pipe, config, out / "class") if config.class_prompt else None
    objective = PersonalObjective(pipe, config, own, prior, place)
    items = TensorDataset((own.mean, own.deviation, objective.table.rows, objective.table.counts))

    def sample(path: Path) -> None:
        with model.attached(pipe):
            save_samples(path, pipe, own.shown(N_SHOWN), config.seed)

    run_stage(run, config.stage, model, items, objective, config.seed, sample=sample)
    with model.attached(pipe), torch.no_grad():
        made = model.save(pipe, out)
    print(f"learned: {made}", file=sys.stderr)
    return made


def result_of(config: PersonaliseConfig, out: Path) -> Path:
    return out / {"lora": LORA_FILE, "dreambooth": "model", "textual-inversion": WORD_FILE}[config.kind]


def _last_file(config: PersonaliseConfig, out: Path) -> Path:
    """What is written last of the result: a model's index."""
    made = result_of(config, out)
    return made / INDEX if config.kind == "dreambooth" else made


def load_pipeline(model: str, tokenizer: str | None, device: torch.device) -> StableDiffusionPipeline:
    """The model in float32, to be trained; `tokenizer` is for a single file, which has none."""
    path = Path(model)
    if path.is_file():
        pipe = StableDiffusionPipeline.from_single_file(path, torch.float32, device, tokenizer=tokenizer)
    elif tokenizer is not None:
        raise UserError(f"--tokenizer is for a single file: {model} has its own")
    else:
        pipe = StableDiffusionPipeline.from_pretrained(path, torch.float32, device, safety_checker=None)
    refuse_inpainting(pipe.unet.config, model)
    return pipe


def check_lengths(pipe: StableDiffusionPipeline, config: PersonaliseConfig, own: OwnPictures) -> None:
    """Raise UserError for a word of more tokens than the text encoder reads; say it of captions."""
    limit = pipe.tokenizer.model_max_length - 2
    texts = list(dict.fromkeys(text for of_picture in own.captions for text in of_picture))
    lengths = [len(section_tokens(pipe.tokenizer, [(text, 1.0)])) for text in texts]
    if max(lengths) <= limit:
        return
    if config.word:
        longest = texts[lengths.index(max(lengths))]
        raise UserError(
            f"--vectors {config.n_vectors} are too many: with them {longest!r} has {max(lengths)} tokens, of which the "
            f"model reads {limit}"
        )
    n_long = sum(length > limit for length in lengths)
    print(f"{n_long} of {len(texts)} captions are cut: the model reads {limit} tokens", file=sys.stderr)


def check_config(config: PersonaliseConfig, minutes: float | None, steps: int | None) -> None:
    """Raise UserError for what cannot be trained, before anything is read."""
    if n_launched() > 1:
        raise UserError(f"{config.kind} learns in one process: start it without a launcher of several")
    if (minutes is None) == (steps is None):
        raise UserError("give either --minutes or --steps")
    if config.kind == "textual-inversion":
        if not config.word.strip():
            raise UserError("--word is empty: give the new word, such as '<my-cat>'")
        if not config.prompts or not all("{}" in prompt for prompt in config.prompts):
            raise UserError("--prompt must have {} where the new word stands, such as 'a photo of {}'")
    elif any("{}" in prompt for prompt in config.prompts):
        raise UserError("--prompt has {}, which is for a new word: write the whole text, or train textual-inversion")
    whole = {"--rank": config.rank, "--vectors": config.n_vectors, "--class-images": config.n_class}
    for option, value in (whole | {"--batch-size": config.stage.batch_size}).items():
        if value < 1:
            raise UserError(f"{option} {value} is not possible: give a number above 0")
    for option, number in (("--minutes", minutes), ("--steps", steps), ("--learning-rate", config.stage.learning_rate)):
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{option} {number:g} is not possible: give a number above 0")
    if not 0 <= config.prior_weight < float("inf"):
        raise UserError(f"--prior-weight {config.prior_weight:g} is not possible: give a number from 0")
    if config.class_prompt and not config.class_prompt.strip():
        raise UserError("--class-prompt is empty: give what the model shall go on painting, such as 'a dog'")
    of_class = (config.n_class, config.prior_weight)
    if not config.class_prompt and of_class != (PersonaliseConfig.n_class, PersonaliseConfig.prior_weight):
        raise UserError("--class-images and --prior-weight are for pictures of a class: give --class-prompt, too")
    check_shift_and_seed(config.timestep_shift, config.seed)
    if not 0 <= config.drop_text <= 1:
        raise UserError(f"--drop-text {config.drop_text:g} is not possible: give a number from 0 to 1")


def check_shift_and_seed(timestep_shift: int | float, seed: int) -> None:
    if not 0 < timestep_shift < float("inf"):
        raise UserError(f"--timestep-shift {timestep_shift:g} is not possible: give a number above 0")
    check_ranges(("--seed", seed, 0, MAX_SEED, ""))


def save_samples(path: Path, pipe: StableDiffusionPipeline, prompts: list[str], seed: int) -> None:
    """Each prompt from the same noise each time, on one sheet."""
    generators = image_generators(seed, len(prompts))
    images = pipe(
        prompts, num_inference_steps=SHOWN_STEPS, guidance_scale=SHOWN_SCALE, generator=generators, sampler="dpmpp_2m"
    ).images
    assert isinstance(images, list)
    make_folder(path.parent)
    save_png(path, grid(images, N_SHOWN, gap=2))
