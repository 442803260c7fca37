"""Stage 5: every caption of a picture comes to mean to the U-Net what the picture's first caption means.

A word that few captions hold ("a bee", where the label says "honeybee") is learned slowly from pictures: the error of
each single guess at the noise is many times what the word could change. But under the first caption, the most frequent,
the U-Net knows already. All that it ever hears of a text is what its attention layers read off the text encoder's
tokens. So what they read under the first caption becomes the target under the others, a target with no noise of its
own, and the text encoder alone learns to bring it about: distillation (Hinton et al. 2015) of one text into another.
No picture goes through the U-Net for it, but a few at the start, to learn what its attention asks.

Few captions need it: most are read almost as the first is, and one in fifty as another thing. So a part of each
batch is drawn by how far from the first a caption was when last read (as experience is replayed by how much there is to
learn from it: Schaul et al. 2016, equation 1), and the rest evenly, so that what was known stays as it was.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import draw_timesteps
from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.clip import CLIPTextModel
from miniai.nn.layers import Attention
from miniai.nn.transformer import BasicTransformerBlock
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import CaptionTable
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, run_stage
from miniai.recipes.unet_stage import Latents
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.checkpoint import checkpoints
from miniai.train.data import TensorDataset

N_PICTURES = 64  # whose questions are recorded
N_QUESTIONS = 48  # of them that each layer is asked in a step
AT_ONCE = 128  # captions that are read before training


class PupilAndTeacher(nn.Module):
    """The text encoder that learns, beside what stays: a copy of it as it was, and the layers that listen to both.

    `need`: how far each of `n_pairs` captions was from what it should mean when it was last read; a checkpoint has it.
    """

    need: Float[Tensor, " n_pairs"]

    def __init__(self, text_encoder: CLIPTextModel, listeners: Sequence[Attention], n_pairs: int) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(text_encoder).requires_grad_(False)
        self.listeners = nn.ModuleList(listeners).requires_grad_(False)
        self.pupil = text_encoder.requires_grad_(True)
        self.register_buffer("need", torch.zeros(n_pairs))

    def read(
        self, reader: CLIPTextModel, ids: Int64[Tensor, "b window"], asked: Sequence[Float[Tensor, "_ _"]]
    ) -> list[Float[Tensor, "b _ _"]]:
        """What each listener, asked these questions, reads off the tokens of `reader`."""
        said = reader(ids).last_hidden_state
        every = (questions.expand(len(ids), -1, -1) for questions in asked)
        return [each(q, said, onto=torch.zeros_like(q)).float() for each, q in zip(self.listeners, every, strict=True)]


def distances(heard: Sequence[Float[Tensor, "b _ _"]], target: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, " b"]:
    """How far what the layers read is from their target: a text's mean square, as a share of the targets' own, on
    average over the layers."""
    each = [(h - t).square().mean((1, 2)) / t.square().mean() for h, t in zip(heard, target, strict=True)]
    return torch.stack(each).mean(0)


class WordsObjective:
    """How far what each layer reads off a caption, through the pupil, is from what it reads off the picture's first
    caption, through the teacher: `distances`, over questions that the layer was asked before.

    A batch holds numbers of `pairs`, which are rows of `ids`: a first caption and another. `share` of them give way to
    such as are drawn in proportion to the `power` of their need. Of the rest, `drop_text` become the empty prompt, the
    last of `ids`, beside itself."""

    def __init__(
        self,
        questions: Sequence[Float[Tensor, "_ _"]],
        ids: Int64[Tensor, "m window"],
        pairs: Int64[Tensor, "n 2"],
        *,
        drop_text: float = 0.0,
        share: float = 0.0,
        power: float = 1.0,
    ) -> None:
        self.questions, self.ids, self.pairs = questions, ids, pairs
        self.drop_text, self.share, self.power = drop_text, share, power

    def __call__(self, model: nn.Module, batch: Int64[Tensor, " b"], generator: torch.Generator) -> Float[Tensor, ""]:
        assert isinstance(model, PupilAndTeacher)
        n_drawn = round(self.share * len(batch))
        if n_drawn:
            weights = model.need.to(generator.device).double().clamp(min=1e-12) ** self.power
            drawn = torch.multinomial(weights, n_drawn, replacement=True, generator=generator)
            batch = torch.cat([drawn.to(batch.device), batch[n_drawn:]])
        dropped = torch.rand(len(batch), generator=generator, device=generator.device) < self.drop_text
        dropped[:n_drawn] = False
        dropped = dropped.to(batch.device)
        firsts, captions = self.pairs[batch].masked_fill(dropped[:, None], len(self.ids) - 1).T
        asked = []
        for questions in self.questions:
            which = torch.randint(len(questions), (N_QUESTIONS,), generator=generator, device=generator.device)
            asked.append(questions[which.to(questions.device)])
        with torch.no_grad():
            target = model.read(model.teacher, self.ids[firsts], asked)
        found = distances(model.read(model.pupil, self.ids[captions], asked), target)
        model.need[batch[~dropped]] = found.detach()[~dropped]
        return found.mean()


def pairs_of(table: CaptionTable) -> Int64[Tensor, "n 2"]:
    """Each picture's first caption beside each of its captions, itself among them, as rows of `table`; each pair once,
    those of one first caption together."""
    own = torch.arange(table.rows.shape[1]) < table.counts[:, None]
    return torch.stack([table.rows[:, :1].expand_as(table.rows), table.rows], dim=-1)[own].unique(dim=0)


@torch.no_grad()
def find_need(model: PupilAndTeacher, objective: WordsObjective) -> None:
    """Read every pair once, while the pupil still is the teacher."""
    asked = [questions[:: -(-len(questions) // N_QUESTIONS)] for questions in objective.questions]
    numbers = torch.arange(len(objective.pairs), device=objective.pairs.device)
    for part in tqdm(numbers.split(AT_ONCE), desc="reading captions", unit="batch", leave=False, disable=None):
        firsts, captions = objective.pairs[part].T
        distinct, place = firsts.unique(return_inverse=True)
        target = [read[place] for read in model.read(model.teacher, objective.ids[distinct], asked)]
        model.need[part] = distances(model.read(model.pupil, objective.ids[captions], asked), target)


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
    reads off the first; `config.words_needy` of each batch are captions drawn by how much they need it. Then go back to
    `config.words_share` of the way, which loses less of what was known (a mean of the weights before and after:
    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3)."""
    table = CaptionTable([alike(texts) for texts in captions], tokenizer)
    ids, pairs = torch.cat([table.ids, tokenizer([""])]).to(run.device), pairs_of(table).to(run.device)
    listeners, questions = record_questions(unet, text_encoder, data, config, run.device)
    model = PupilAndTeacher(text_encoder, listeners, len(pairs)).to(run.device)
    draw = {"drop_text": config.drop_text, "share": config.words_needy, "power": config.words_power}
    objective = WordsObjective(questions, ids, pairs, **draw)
    if not checkpoints(run.folder / "checkpoints"):
        find_need(model, objective)
    run_stage(run, config.words_stage, model, TensorDataset(torch.arange(len(pairs))), objective, config.seed)
    with torch.no_grad():
        for before, after in zip(model.teacher.parameters(), model.pupil.parameters(), strict=True):
            after.copy_(torch.lerp(before, after, config.words_share))
    return model.pupil
