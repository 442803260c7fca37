"""Patterns of named dimensions, against what they mean in PyTorch's own words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, few, ours, seeds

from miniai.scratch.creation import zeros
from miniai.scratch.rearrange import rearrange, reduce, repeat

REARRANGED = {
    "b c h w -> b h w c": lambda x: x.permute(0, 2, 3, 1),
    "b c h w -> b (h w) c": lambda x: x.flatten(2).transpose(1, 2),
    "b c h w -> b c 1 (h w)": lambda x: x.flatten(2)[:, :, None],
    "... w -> w ...": lambda x: x.permute(3, 0, 1, 2),
    "b ... -> b (...)": lambda x: x.flatten(1),
    "b c h w -> (b c h w)": lambda x: x.flatten(),
    "b (two c) h w -> two b c h w": lambda x: x.unflatten(1, (2, -1)).transpose(0, 1),
    "b c (h two) w -> b (c two) h w": lambda x: x.unflatten(2, (-1, 2)).transpose(2, 3).flatten(1, 2),
}


@pytest.mark.parametrize("pattern", REARRANGED)
def test_a_pattern_moves_joins_and_splits(pattern: str) -> None:
    x = draw((3, 4, 2, 5))
    sizes = {"two": 2} if "two" in pattern else {}
    assert_same(rearrange(ours(x), pattern, **sizes), REARRANGED[pattern](x).clone())


@few
@given(st.tuples(*[st.integers(1, 4)] * 4), seeds)
def test_a_pattern_and_its_mirror_undo_each_other(shape: tuple[int, ...], seed: int) -> None:
    b, c, h, w = shape
    x = draw((b, c, h, w), seed)
    folded = rearrange(ours(x), "b c h w -> (c b) (w h)")
    assert_same(rearrange(folded, "(c b) (w h) -> b c h w", b=b, h=h), x)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "prod"])
def test_a_reduction_pools(name: str) -> None:
    x = draw((2, 3, 4, 6))
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
    torch_name = {"max": "amax", "min": "amin"}.get(name, name)
    found = reduce(ours(x), "b c (h p) (w q) -> b c h w", name, p=2, q=2)
    assert_same(found, getattr(blocks, torch_name)(dim=-1))


def test_a_reduction_keeps_a_dimension_of_1_where_asked() -> None:
    x = draw((2, 3, 4))
    assert_same(reduce(ours(x), "b c n -> b 1 n", "mean"), x.mean(1, keepdim=True))


def test_new_names_repeat() -> None:
    x = draw((2, 3))
    assert_same(repeat(ours(x), "h w -> h c w", c=4), x[:, None].expand(2, 4, 3).clone())
    assert_same(repeat(ours(x), "h w -> (h p) (w q)", p=2, q=3), x.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert_same(repeat(ours(x), "... -> ... c", c=2), x[..., None].expand(2, 3, 2).clone())


MISTAKES = [
    (rearrange, "h w", {}, "two sides"),
    (rearrange, "h w c -> c h w", {}, "names 3 dimensions, the tensor has 2"),
    (rearrange, "h w -> h", {}, r"\['w'\] must be on both sides"),
    (rearrange, "h h -> h", {}, "a name stands twice"),
    (rearrange, "(h w -> h w", {}, "a parenthesis is not closed"),
    (rearrange, "h w) -> h w", {}, r"'\)' is out of place"),
    (rearrange, "(a b) w -> a b w", {}, "only one size of"),
    (rearrange, "(a b) w -> a b w", {"a": 4}, "does not fit a dimension of size 2"),
    (rearrange, "h w -> w h", {"q": 4}, r"\['q'\] is given a size but does not stand in the pattern"),
    (repeat, "h w -> h w c", {}, "the size of 'c' is not given"),
    (repeat, "h w -> h", {}, "must be on the right side too"),
]


@pytest.mark.parametrize(("function", "pattern", "sizes", "message"), MISTAKES)
def test_a_pattern_without_sense_is_named(function, pattern: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(zeros(2, 3), pattern, **sizes)


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="one of sum, mean, max, min, prod, got 'median'"):
        reduce(zeros(2, 3), "h w -> h", "median")


def test_truths_are_counted_where_they_are_summed() -> None:
    x = torch.tensor([[True, True, False], [False, True, True]])
    assert_same(reduce(ours(x), "b n -> b", "sum"), x.sum(1))
    assert_same(reduce(ours(x), "b n -> b", "prod"), x.prod(1))
    assert_same(reduce(ours(x), "b n -> b", "max"), x.amax(1))
    with pytest.raises(RuntimeError, match="should be floating point"):
        reduce(ours(x), "b n -> b", "mean")
