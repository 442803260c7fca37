import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.recipes.text_tails import swapped_tails, tail_starts
from miniai.sd.clip_text import COMMA
from miniai.sd.tokenizer import CLIPTokenizer

TEXTS = [
    "a dog, flat style",
    "a red house, flat style",
    "a dog, face, flat style",
    "a dog, round style",
    "a dog",
    "a very red house",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.train(TEXTS, 600, 14)


def test_a_tail_begins_at_the_last_comma_or_else_at_the_end_of_the_text(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.vocab[",</w>"] == COMMA
    ids = tokenizer(TEXTS)
    starts = tail_starts(ids, tokenizer.eos_id)
    lengths = (ids == tokenizer.eos_id).int().argmax(1)
    assert torch.equal(starts[4:], lengths[4:])
    assert starts.tolist()[6] == 1
    assert torch.equal(ids[:4].gather(1, starts[:4, None]), torch.full((4, 1), COMMA))
    assert [int((row == COMMA).sum()) for row in ids] == [1, 1, 2, 1, 0, 0, 0]
    assert all(COMMA not in row[start + 1 :] for row, start in zip(ids, starts.tolist(), strict=True))


def test_a_tail_is_swapped_for_one_of_the_same_words(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(TEXTS * 40)
    starts = tail_starts(ids, tokenizer.eos_id)
    rows, tokens = swapped_tails(ids, tokenizer.eos_id, 0.5, make_generator(0))
    assert torch.equal(ids[rows, tokens], ids)  # whatever stands there, it is the same word
    own = torch.arange(len(ids))
    before = torch.arange(ids.shape[1]) < starts[:, None]
    assert torch.equal(rows[before], own[:, None].expand_as(rows)[before])
    assert torch.equal(tokens[before], torch.arange(ids.shape[1]).expand_as(tokens)[before])
    donor = rows[:, -1]
    assert torch.equal(rows[~before], donor[:, None].expand_as(rows)[~before])
    first = starts[:, None]
    assert torch.equal(tokens.gather(1, first)[:, 0], starts[donor])  # each tail is the whole of the other's
    empty = starts == 1
    assert torch.equal(donor[empty], own[empty])
    swapped = (donor != own)[~empty].float().mean()
    assert float(swapped) == pytest.approx(0.5, abs=0.08)
    kinds = {(int(i) % 7, int(j) % 7) for i, j in zip(own, donor, strict=True)}
    assert {(0, 1), (1, 0), (2, 0), (4, 5), (5, 4)} <= kinds  # tails of texts of other lengths as well


def test_of_two_alike_each_gets_the_others_tail(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(["a dog, flat style", "a red house, flat style", "a dog", "a very red house"])
    for seed in range(5):
        rows, _ = swapped_tails(ids, tokenizer.eos_id, 1.0, make_generator(seed))
        assert rows[:, -1].tolist() == [1, 0, 3, 2]


def test_who_has_no_other_of_the_same_tail_keeps_the_own(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(["a dog, flat style", "a dog, round style", "a dog", "", ""])
    rows, tokens = swapped_tails(ids, tokenizer.eos_id, 1.0, make_generator(0))
    assert torch.equal(rows, torch.arange(5)[:, None].expand_as(rows))
    assert torch.equal(tokens, torch.arange(14).expand_as(tokens))
    again = tokenizer(TEXTS * 4)
    first, second = (swapped_tails(again, tokenizer.eos_id, 0.5, make_generator(seed))[0] for seed in (1, 2))
    assert torch.equal(first, swapped_tails(again, tokenizer.eos_id, 0.5, make_generator(1))[0])
    assert not torch.equal(first, second)
