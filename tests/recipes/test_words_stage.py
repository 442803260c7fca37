"""The words' own stage: every caption is drawn to the first, and nothing but the text encoder learns."""

from dataclasses import replace

import torch
from torch import Tensor

from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.text_to_image_config import TINY
from miniai.recipes.unet_stage import Latents
from miniai.recipes.words_stage import PupilAndTeacher, WordsObjective

CONFIG = replace(TINY, text=replace(TINY.text, vocab_size=20, max_position_embeddings=6))
CPU = torch.device("cpu")


def learner() -> PupilAndTeacher:
    torch.manual_seed(0)
    return PupilAndTeacher(CLIPTextModel(CONFIG.text), UNet2DConditionModel(CONFIG.unet))


def data(n: int, captions: int) -> Latents:
    """Picture i with captions of its own: rows of `ids`, the last of which is the empty prompt."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(n, 4, 8, 8, generator=generator)
    ids = torch.randint(1, 18, (n * captions + 1, 6), generator=generator)
    rows = torch.arange(n * captions).view(n, captions)
    return Latents(latents, rows, torch.full((n,), captions), ids, torch.zeros(0, 6, 32))


def loss(model: PupilAndTeacher, given: Latents, drop_text: float = 0.0) -> Tensor:
    objective = WordsObjective(replace(CONFIG, drop_text=drop_text), given, CPU)
    return objective(model, (given.latents, given.rows, given.counts), torch.Generator().manual_seed(3))


def test_where_there_is_one_caption_there_is_nothing_to_learn() -> None:
    model = learner()
    assert float(loss(model, data(8, 1))) < 1e-10
    assert float(loss(model, data(8, 4))) > 1e-6
    assert float(loss(model, data(8, 4), drop_text=1.0)) < 1e-10  # both read the empty prompt


def test_the_teacher_reads_the_first_caption_and_the_pupil_any() -> None:
    """Where captions differ from the first in nothing but their number, a pupil that is the teacher has nothing to
    learn, and one that is not has; what the teacher is moves the target."""
    model, given = learner(), data(8, 3)
    given = replace(
        given, ids=torch.cat([given.ids[:-1].view(8, 3, 6)[:, :1].expand(8, 3, 6).flatten(0, 1), given.ids[-1:]])
    )
    assert float(loss(model, given)) < 1e-10
    with torch.no_grad():
        model.pupil.text_model.embeddings.token_embedding.weight.normal_()
    assert float(loss(model, given)) > 1e-6
    model.teacher.load_state_dict(model.pupil.state_dict())
    assert float(loss(model, given)) < 1e-10


def test_only_the_pupil_learns_and_it_learns() -> None:
    model, given = learner(), data(16, 3)
    loss(model, given).backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"pupil"}
    optimizer = torch.optim.Adam(model.pupil.parameters(), 3e-3)
    before = float(loss(model, given))
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, given).backward()
        optimizer.step()
    assert float(loss(model, given)) < 0.5 * before


def test_the_pictures_are_noised_as_the_schedule_says_and_mostly_much() -> None:
    model, seen = learner(), {}

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["x"], seen["t"] = inputs[:2]

    model.unet.register_forward_pre_hook(watch)
    given = data(512, 1)
    given = replace(given, latents=torch.ones_like(given.latents))
    loss(model, given)
    alpha_bar = NoiseSchedule(CONFIG.schedule).alpha_bar[seen["t"].long()]
    means = seen["x"].mean(dim=(1, 2, 3)).double()
    deviation = ((1 - alpha_bar) / given.latents[0].numel()).sqrt()  # of the mean of so many numbers
    assert float(((means - alpha_bar.sqrt()) / deviation).std()) < 1.2
    # u of the quantile is 5u / (1 + 4u): half of the draws are above 5/6 of all timesteps.
    assert 800 < float(seen["t"].median()) < 867
