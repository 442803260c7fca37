"""The words' own stage: every caption is drawn to the first, and nothing but the text encoder learns."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miniai.nn.clip import CLIPTextModel
from miniai.nn.transformer import BasicTransformerBlock
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.text_to_image_config import TINY
from miniai.recipes.training import StageRun
from miniai.recipes.unet_stage import Latents
from miniai.recipes.words_stage import PupilAndTeacher, WordsObjective, alike, can_teach, record_questions, train_words
from miniai.sd.tokenizer import CLIPTokenizer

CONFIG = replace(TINY, text=replace(TINY.text, vocab_size=20, max_position_embeddings=6))
CPU = torch.device("cpu")
Given = tuple[PupilAndTeacher, list[Tensor], Latents, UNet2DConditionModel]


def given(n: int, n_captions: int) -> Given:
    """Picture i with captions of its own: rows of `ids`, the last of which is the empty prompt."""
    torch.manual_seed(0)
    latents, ids = torch.randn(n, 4, 8, 8), torch.randint(1, 18, (n * n_captions + 1, 6))
    rows = torch.arange(n * n_captions).view(n, n_captions)
    data = Latents(latents, rows, torch.full((n,), n_captions), ids, torch.zeros(0, 6, 32))
    text_encoder, unet = CLIPTextModel(CONFIG.text), UNet2DConditionModel(CONFIG.unet)
    listeners, questions = record_questions(unet, text_encoder, data, CONFIG, CPU)
    return PupilAndTeacher(text_encoder, listeners), questions, data, unet


def loss(model: PupilAndTeacher, questions: list[Tensor], data: Latents, drop_text: float = 0.0) -> Tensor:
    objective = WordsObjective(questions, data.ids, drop_text, CPU)
    return objective(model, (data.rows, data.counts), torch.Generator().manual_seed(3))


def test_where_there_is_one_caption_there_is_nothing_to_learn() -> None:
    model, questions, data, _ = given(8, 1)
    assert float(loss(model, questions, data)) < 1e-10
    model, questions, data, _ = given(8, 4)
    assert float(loss(model, questions, data)) > 1e-4
    assert float(loss(model, questions, data, drop_text=1.0)) < 1e-10  # both read the empty prompt


def test_the_teacher_reads_the_first_caption_and_the_pupil_any() -> None:
    """Where captions differ from the first in nothing but their number, a pupil that is the teacher has nothing to
    learn, and one that is not has; what the teacher is moves the target."""
    model, questions, data, _ = given(8, 3)
    first = data.ids[data.rows[:, :1].expand(8, 3).flatten()]
    data = replace(data, ids=torch.cat([first, data.ids[-1:]]))
    assert float(loss(model, questions, data)) < 1e-10
    with torch.no_grad():
        model.pupil.text_model.embeddings.token_embedding.weight.normal_()
    assert float(loss(model, questions, data)) > 1e-4
    model.teacher.load_state_dict(model.pupil.state_dict())
    assert float(loss(model, questions, data)) < 1e-10


def test_only_the_pupil_learns_and_then_the_unet_says_of_any_caption_what_it_says_of_the_first() -> None:
    model, questions, data, unet = given(8, 2)
    x, t = torch.randn(8, 4, 8, 8), torch.full((8,), 900.0)

    @torch.no_grad()
    def difference() -> float:
        said, meant = (
            unet(x, t, reader(data.ids[data.rows[:, i]]).last_hidden_state)
            for i, reader in ((1, model.pupil), (0, model.teacher))
        )
        return float((said - meant).norm() / meant.norm())

    loss(model, questions, data).backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"pupil"}
    optimizer = torch.optim.Adam(model.pupil.parameters(), 3e-3)
    before = difference()
    objective = WordsObjective(questions, data.ids, 0.0, CPU)
    for step in range(150):
        optimizer.zero_grad()
        objective(model, (data.rows, data.counts), torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    assert difference() < 0.3 * before


def test_the_questions_are_what_each_layer_is_asked_and_the_unet_is_as_it_was() -> None:
    model, questions, data, unet = given(3, 1)
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    assert [part.shape for part in questions] == [
        (3 * 64, 32),
        (3 * 16, 32),
        (3 * 16, 32),
        *[(3 * 16, 32)] * 2,
        *[(3 * 64, 32)] * 2,
    ]
    assert list(model.listeners) == [block.attn2 for block in blocks]
    assert not any(block.attn2._forward_pre_hooks for block in blocks)
    again = record_questions(unet, model.pupil, data, CONFIG, CPU)[1]
    assert all(torch.equal(a, b) for a, b in zip(questions, again, strict=True))


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["honeybee, noto style", "honeybee", "a bee, noto style", "bug, honeybee"], [0, 2]),
        (["a bee", "a honeybee", "a bee, in a garden"], [0, 1, 2]),
    ],
)
def test_only_captions_that_end_as_the_first_does_are_drawn_to_it(captions: list[str], expected: list[int]) -> None:
    assert alike(captions) == [captions[i] for i in expected]


def test_one_caption_a_picture_or_others_that_end_otherwise_teach_nothing() -> None:
    assert not can_teach([["a cat"], ["a dog, noto style", "a dog"], ["a bee", "a bee"]])
    assert can_teach([["a cat"], ["a dog, noto style", "a hound, noto style"]])


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_share_of_the_way_is_kept(share: float, tmp_path: Path) -> None:
    """Against the two ends: what was before, and all that was learned."""
    _, _, data, unet = given(4, 1)
    tokenizer = CLIPTokenizer.train(["a bee", "a honeybee"], 530, 6)
    shape = replace(CONFIG.text, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_id)
    torch.manual_seed(0)
    before = CLIPTextModel(shape)
    ends = []
    for kept in (1.0, share):
        text_encoder = copy.deepcopy(before)
        config = replace(CONFIG, words_share=kept)
        run = StageRun("words", tmp_path / str(len(ends)), CPU, None, 3)
        rows = replace(data, ids=tokenizer(["a honeybee"] * 5))
        train_words(config, rows, [["a honeybee", "a bee"]] * 4, tokenizer, text_encoder, unet, run)
        ends.append(text_encoder.text_model.embeddings.token_embedding.weight.detach())
    start = before.text_model.embeddings.token_embedding.weight.detach()
    assert float((ends[0] - start).abs().max()) > 1e-5
    assert torch.allclose(ends[1] - start, share * (ends[0] - start), atol=1e-6)
