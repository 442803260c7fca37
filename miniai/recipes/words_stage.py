"""Stage 5: every caption of a picture comes to mean to the U-Net what the picture's first caption means.

A word that few captions hold ("a bee", where the label says "honeybee") is learned slowly from pictures: the error of
each single guess at the noise is many times what the word could change. But under the first caption, the most frequent,
the U-Net knows already. All that it ever hears of a text is what its attention layers read off the text encoder's
tokens. So what they read under the first caption becomes the target under the others, a target with no noise of its
own, and the text encoder alone learns to bring it about: distillation (Hinton et al. 2015) of one text into another.
No picture goes through the U-Net for it, but a few at the start, to learn what its attention asks.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import draw_timesteps
from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.clip import CLIPTextModel
from miniai.nn.layers import Attention
from miniai.nn.transformer import BasicTransformerBlock
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import CaptionTable, choose_captions
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, run_stage
from miniai.recipes.unet_stage import Latents
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.data import TensorDataset

N_PICTURES = 64  # whose questions are recorded
N_QUESTIONS = 48  # of them that each layer is asked in a step


class PupilAndTeacher(nn.Module):
    """The text encoder that learns, beside what stays: a copy of it as it was, and the layers that listen to both."""

    def __init__(self, text_encoder: CLIPTextModel, listeners: Sequence[Attention]) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(text_encoder).requires_grad_(False)
        self.listeners = nn.ModuleList(listeners).requires_grad_(False)
        self.pupil = text_encoder.requires_grad_(True)


class WordsObjective:
    """How far what each layer reads off a caption, through the pupil, is from what it reads off the picture's first
    caption, through the teacher: the mean of squares, as a share of the latter's own, over questions that the layer was
    asked before. Where a caption is dropped, both read the empty prompt, the last of `ids`."""

    def __init__(
        self, questions: Sequence[Float[Tensor, "_ _"]], ids: Tensor, drop_text: float, device: torch.device
    ) -> None:
        self.questions = [part.to(device) for part in questions]
        self.ids, self.drop_text = ids.to(device), drop_text

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
        assert isinstance(model, PupilAndTeacher)
        rows, counts = batch
        dropped = torch.rand(len(rows), generator=generator, device=generator.device) < self.drop_text
        dropped, empty = dropped.to(rows.device), len(self.ids) - 1
        chosen = choose_captions(rows, counts, generator).masked_fill(dropped, empty)
        said = model.pupil(self.ids[chosen]).last_hidden_state
        with torch.no_grad():
            meant = model.teacher(self.ids[rows[:, 0].masked_fill(dropped, empty)]).last_hidden_state
        losses = []
        for listener, questions in zip(model.listeners, self.questions, strict=True):
            which = torch.randint(len(questions), (N_QUESTIONS,), generator=generator, device=generator.device)
            asked = questions[which.to(questions.device)].expand(len(rows), -1, -1)
            heard = listener(asked, said, onto=torch.zeros_like(asked)).float()
            with torch.no_grad():
                target = listener(asked, meant, onto=torch.zeros_like(asked)).float()
            losses.append((heard - target).square().mean() / target.square().mean())
        return torch.stack(losses).mean()


@torch.no_grad()
def record_questions(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    data: Latents,
    config: TextToImageConfig,
    device: torch.device,
) -> tuple[list[Attention], list[Float[Tensor, "_ _"]]]:
    """The U-Net's layers of attention to the text, and what each was asked: its inputs at all positions of a few
    pictures of `data`, noised as for training but more, under their first captions."""
    listeners = [module.attn2 for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    questions: list[Tensor] = []
    hooks = [each.register_forward_pre_hook(lambda _, inputs: questions.append(inputs[0])) for each in listeners]
    few = torch.linspace(0, len(data.latents) - 1, min(N_PICTURES, len(data.latents))).long()
    generator = make_generator(config.seed, 0)
    alpha_bar = NoiseSchedule(config.schedule).alpha_bar
    t = draw_timesteps(len(few), len(alpha_bar), generator, shift=config.words_shift, stratified=True)
    level, x0 = alpha_bar[t].float(), data.latents[few].float()
    noise = torch.randn(x0.shape, generator=generator)
    x_t = like_images(level.sqrt(), x0) * x0 + like_images((1 - level).sqrt(), x0) * noise
    texts = text_encoder(data.ids[data.rows[few, 0]].to(device)).last_hidden_state
    try:
        unet(x_t.to(device), t.to(device, torch.float32), texts)
    finally:
        for hook in hooks:
            hook.remove()
    return listeners, [part.flatten(0, 1) for part in questions]


def alike(captions: Sequence[str]) -> list[str]:
    """The first of a picture's captions and those that end as it does behind its last comma: ", noto style". Of others
    it cannot be said that they mean the same: they may leave the style open."""
    comma = captions[0].rfind(", ")
    return [text for text in captions if comma < 0 or text.endswith(captions[0][comma:])]


def can_teach(captions: Sequence[Sequence[str]]) -> bool:
    """Whether any picture has captions that can learn from its first; else there is nothing to do."""
    return any(len(set(alike(texts))) > 1 for texts in captions)


def train_words(
    config: TextToImageConfig,
    data: Latents,
    captions: Sequence[Sequence[str]],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    run: StageRun,
) -> CLIPTextModel:
    """Train `text_encoder` in place, so that `unet` reads off each of a picture's `captions` (those `alike`) what it
    reads off the first; then go back to `config.words_share` of the way, which loses less of what was known (a mean of
    the weights before and after: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3)."""
    table = CaptionTable([alike(texts) for texts in captions], tokenizer)
    ids = torch.cat([table.ids, tokenizer([""])])
    listeners, questions = record_questions(unet, text_encoder, data, config, run.device)
    model = PupilAndTeacher(text_encoder, listeners)
    objective = WordsObjective(questions, ids, config.drop_text, run.device)
    run_stage(run, config.words_stage, model, TensorDataset((table.rows, table.counts)), objective, config.seed)
    with torch.no_grad():
        for before, after in zip(model.teacher.parameters(), model.pupil.parameters(), strict=True):
            after.copy_(torch.lerp(before, after, config.words_share))
    return model.pupil
