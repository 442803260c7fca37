"""Attention in several forms: one result."""

import pytest
import torch
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.nn.attention import MANY_KEYS, MANY_QUERIES, attention, fused, in_whole_vectors
from miniai.nn.layers import attend

FORMS = {"fused": fused, "vectors": in_whole_vectors, "chosen": attention}
SHAPES = {
    "itself": (MANY_QUERIES + 9, MANY_QUERIES + 9, 40),
    "few, text": (20, 77, 10),
    "many, text": (MANY_QUERIES, 77, 10),
    "vectors": (7, 32, 16),
    "many keys": (MANY_QUERIES, MANY_KEYS + 9, 10),
}


def heads(n_queries: int, n_keys: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as linear layers leave them."""
    tokens = (
        torch.randn(2, n, 3 * width, generator=make_generator(i)) for i, n in enumerate((n_queries, n_keys, n_keys))
    )
    q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in tokens)
    return q, k, v


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v.double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_attention_is_the_formula(form: str, shape: str) -> None:
    q, k, v = heads(*SHAPES[shape])
    with torch.no_grad():
        torch.testing.assert_close(FORMS[form](q, k, v).double(), formula(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_in_half_precision_is_as_exact_as_its_numbers(shape: str) -> None:
    exact = formula(*(t.bfloat16() for t in heads(*SHAPES[shape])))
    with torch.no_grad():
        close = attend(*(t.bfloat16() for t in heads(*SHAPES[shape])))
    assert close.dtype == torch.bfloat16
    assert float((close - exact).norm() / exact.norm()) < 0.006
