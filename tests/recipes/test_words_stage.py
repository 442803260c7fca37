"""The words' own stage: every caption is drawn to the first, and nothing but the text encoder learns."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniai.nn.clip import CLIPTextModel
from miniai.nn.transformer import BasicTransformerBlock
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import CaptionTable
from miniai.recipes.text_to_image_config import TINY
from miniai.recipes.training import StageRun
from miniai.recipes.unet_stage import Latents
from miniai.recipes.words_stage import (
    PupilAndTeacher,
    WordsObjective,
    alike,
    can_teach,
    find_need,
    pairs_of,
    record_questions,
    train_words,
)
from miniai.sd.tokenizer import CLIPTokenizer

CONFIG = replace(TINY, text=replace(TINY.text, vocab_size=20, max_position_embeddings=6))
CPU = torch.device("cpu")
Given = tuple[PupilAndTeacher, WordsObjective, Latents, UNet2DConditionModel]


def given(n: int, n_captions: int) -> Given:
    """Picture i with captions of its own: rows of `ids`, the last of which is the empty prompt."""
    torch.manual_seed(0)
    latents, ids = torch.randn(n, 4, 8, 8), torch.randint(1, 18, (n * n_captions + 1, 6))
    rows = torch.arange(n * n_captions).view(n, n_captions)
    data = Latents(latents, rows, torch.full((n,), n_captions), ids, torch.zeros(0, 6, 32))
    text_encoder, unet = CLIPTextModel(CONFIG.text), UNet2DConditionModel(CONFIG.unet)
    listeners, questions = record_questions(unet, text_encoder, data, CONFIG, CPU)
    pairs = torch.stack([rows[:, :1].expand_as(rows), rows], dim=-1).flatten(0, 1)
    return PupilAndTeacher(text_encoder, listeners, len(pairs)), WordsObjective(questions, ids, pairs), data, unet


def loss(model: PupilAndTeacher, objective: WordsObjective, drop_text: float = 0.0) -> float:
    """Over all pairs once."""
    objective.drop_text = drop_text
    return float(objective(model, torch.arange(len(objective.pairs)), torch.Generator().manual_seed(3)).detach())


def test_where_there_is_one_caption_there_is_nothing_to_learn() -> None:
    model, objective, _, _ = given(8, 1)
    assert loss(model, objective) < 1e-10
    model, objective, _, _ = given(8, 4)
    assert loss(model, objective) > 1e-4
    assert loss(model, objective, drop_text=1.0) < 1e-10  # both read the empty prompt


def test_the_teacher_reads_the_first_caption_and_the_pupil_any() -> None:
    """Where captions differ from the first in nothing but their number, a pupil that is the teacher has nothing to
    learn, and one that is not has; what the teacher is moves the target."""
    model, objective, data, _ = given(8, 3)
    data.ids[:-1] = data.ids[objective.pairs[:, 0]]
    assert loss(model, objective) < 1e-10
    with torch.no_grad():
        model.pupil.text_model.embeddings.token_embedding.weight.normal_()
    assert loss(model, objective) > 1e-4
    model.teacher.load_state_dict(model.pupil.state_dict())
    assert loss(model, objective) < 1e-10


def test_only_the_pupil_learns_and_then_the_unet_says_of_any_caption_what_it_says_of_the_first() -> None:
    model, objective, data, unet = given(8, 2)
    x, t = torch.randn(8, 4, 8, 8), torch.full((8,), 900.0)
    everything = torch.arange(16)

    @torch.no_grad()
    def difference() -> float:
        said, meant = (
            unet(x, t, reader(data.ids[data.rows[:, i]]).last_hidden_state)
            for i, reader in ((1, model.pupil), (0, model.teacher))
        )
        return float((said - meant).norm() / meant.norm())

    objective(model, everything, torch.Generator().manual_seed(3)).backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"pupil"}
    optimizer = torch.optim.Adam(model.pupil.parameters(), 3e-3)
    before = difference()
    for step in range(150):
        optimizer.zero_grad()
        objective(model, everything, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    assert difference() < 0.3 * before


def test_a_caption_needs_what_separates_it_from_the_first() -> None:
    """Against each layer asked by itself, a caption at a time; one that is read as the first is needs nothing."""
    model, objective, data, _ = given(4, 3)
    data.ids[data.rows[2, 1]] = data.ids[data.rows[2, 0]]
    find_need(model, objective)
    said = [[model.teacher(data.ids[row][None]).last_hidden_state for row in pair] for pair in objective.pairs]
    expected = torch.zeros(12)
    for listener, part in zip(model.listeners, objective.questions, strict=True):
        asked = part[:: -(-len(part) // 48)][None]
        read = [[listener(asked, text, onto=torch.zeros_like(asked)) for text in texts] for texts in said]
        size = torch.stack([first.square().mean() for first, _ in read]).mean()
        expected += torch.stack([(a - b).square().mean() for a, b in read]) / size / len(objective.questions)
    torch.testing.assert_close(model.need, expected, rtol=1e-4, atol=1e-9)
    assert [i for i in range(12) if model.need[i] < 1e-10] == [0, 3, 6, 7, 9]


def test_captions_are_drawn_in_proportion_to_the_power_of_their_need() -> None:
    """Half of a batch is drawn: of eight draws one in ten falls on the second pair, the others on the third."""
    model, objective, _, _ = given(2, 2)
    objective.share, objective.power, n_drawn = 0.5, 2.0, 0
    need = torch.tensor([0.0, 1.0, 3.0, 0.0])
    for step in range(300):
        model.need.copy_(need)
        objective(model, torch.zeros(16, dtype=torch.long), torch.Generator().manual_seed(step))
        read = (model.need != need).tolist()  # the first pair's stays 0: the other half of the batch is that alone
        assert not read[3]
        n_drawn += read[1]
    assert n_drawn / 300 == pytest.approx(1 - 0.9**8, abs=0.115)  # four standard errors


def test_what_was_read_is_the_need_from_then_on() -> None:
    model, objective, _, _ = given(2, 2)
    model.need.fill_(7.0)
    assert loss(model, objective) == pytest.approx(float(model.need.mean()), rel=1e-5)
    assert model.need[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-10)
    model.need.fill_(7.0)
    loss(model, objective, drop_text=1.0)
    assert model.need.tolist() == [7.0] * 4  # all were the empty prompt
    assert model.state_dict()["need"].tolist() == [7.0] * 4  # a checkpoint has it: else a resumed stage draws evenly


def test_a_rare_caption_that_is_read_as_something_else_is_learned_sooner_when_drawn_by_need() -> None:
    """Of 32 pictures one has a caption unlike its first, among ten that are the same: drawn evenly, one in 320."""
    left = {}
    for share in (0.0, 0.5):
        model, objective, data, _ = given(32, 10)
        odd = data.ids[data.rows[7, 4]].clone()
        data.ids[:-1] = data.ids[objective.pairs[:, 0]]
        data.ids[data.rows[7, 4]] = odd
        find_need(model, objective)
        assert int(model.need.argmax()) == 74
        objective.share, objective.power = share, 0.75
        optimizer = torch.optim.Adam(model.pupil.parameters(), 1e-3)
        for step in range(25):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            objective(model, torch.randint(320, (8,), generator=generator), generator).backward()
            optimizer.step()
        find_need(model, objective)
        left[share] = float(model.need[74])
    assert left[0.5] < 0.5 * left[0.0]


def test_pairs_are_each_first_caption_beside_its_own_once() -> None:
    tokenizer = CLIPTokenizer.train(["a bee", "a honeybee"], 530, 6)
    table = CaptionTable([["a", "b", "b"], ["c"], ["a", "d"]], tokenizer)
    said = [(table.texts[first], table.texts[caption]) for first, caption in pairs_of(table).tolist()]
    assert said == [("a", "a"), ("a", "b"), ("a", "d"), ("c", "c")]


def test_the_questions_are_what_each_layer_is_asked_and_the_unet_is_as_it_was() -> None:
    model, objective, data, unet = given(3, 1)
    questions = objective.questions
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
