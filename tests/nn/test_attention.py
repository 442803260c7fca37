"""Attention in several forms: one result."""

import pytest
import torch
from torch import Tensor

from miniai.base.device import has_amx, has_avx512
from miniai.base.seeds import make_generator
from miniai.nn import attention as module
from miniai.nn.attention import (
    BELOW,
    MANY_KEYS,
    MANY_QUERIES,
    attention,
    bound_on_scores,
    by_sigmoid,
    fused,
    in_whole_vectors,
)
from miniai.nn.layers import attend
from miniai.nn.packed import can_pack

FORMS = {"fused": fused, "vectors": in_whole_vectors, "chosen": attention}
if can_pack():
    FORMS["sigmoid"] = by_sigmoid
DTYPES = [dtype for dtype in BELOW if can_pack(dtype)]
SHAPES = {
    "itself": (MANY_QUERIES + 9, MANY_QUERIES + 9, 40),
    "few, text": (20, 77, 10),
    "many, text": (MANY_QUERIES, 77, 10),
    "vectors": (7, 32, 16),
    "many keys": (MANY_QUERIES, MANY_KEYS + 9, 10),
    "many numbers of keys": (MANY_QUERIES + 1, MANY_KEYS + 9, 64),
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
    q, k, v = (t.bfloat16() for t in heads(*SHAPES[shape]))
    exact = formula(q, k, v)
    with torch.no_grad():
        answers = [attend(q, k, v), *([by_sigmoid(q, k, v)] if torch.bfloat16 in DTYPES else [])]
    for close in answers:
        assert close.dtype == torch.bfloat16
        assert far(close, exact) < 0.006


def far(answer: Tensor, exact: Tensor) -> float:
    return float((answer.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sigmoid_is_nearly_as_exact_as_the_fused_kernel_wherever_the_keys_lie(
    dtype: torch.dtype, spread: float, offset: float
) -> None:
    q, k, v = heads(300, 500, 24)
    q, k, v = (t.to(dtype) for t in (q * spread + offset / 5, k * spread + offset, v))
    exact = formula(q, k, v)
    with torch.no_grad():
        assert far(by_sigmoid(q, k, v), exact) < 4 * far(fused(q, k, v), exact)


@pytest.mark.parametrize("offset", [-300.0, 0.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_score_is_above_its_bound(dtype: torch.dtype, offset: float) -> None:
    q, k, _ = heads(300, 500, 24)
    q[:, :, :50] = 20 * k[:, :, :50]  # along a key: as near to the bound as can be
    q, k = q.to(dtype), (k + offset).to(dtype)
    scores = torch.einsum("bhnd,bhmd->bhnm", (q * 24**-0.5).double(), k.double())  # as the product rounds its queries
    above = scores.amax(dim=-1, keepdim=True) - bound_on_scores(q, k).to(dtype).double()
    assert float(above.max()) <= 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_that_all_lie_far_from_zero_do_not_reach_too_far(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in heads(300, 500, 24))
    k += 100
    with torch.no_grad():
        equal = by_sigmoid(q, k, v) == fused(q, k, v)
    assert not equal.flatten(2).all(dim=-1).any()


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="this CPU packs no bfloat16")
def test_a_sum_in_several_columns_is_rounded_less(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (t.bfloat16() for t in heads(300, 512, 24))
    exact = formula(q, k, v)
    with torch.no_grad():
        error = far(by_sigmoid(q, k, v), exact)
        monkeypatch.setattr("miniai.nn.attention.SUMS", 1)
        assert error < 0.95 * far(by_sigmoid(q, k, v), exact)


@pytest.mark.skipif(not has_avx512() or has_amx(), reason="where it was measured: AVX-512 without AMX")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_keys_go_by_a_sigmoid(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in heads(MANY_QUERIES, MANY_KEYS, 64))
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), by_sigmoid(q, k, v))
        assert torch.equal(attend(q[:, :, :9], k, v), fused(q[:, :, :9], k, v))
        assert torch.equal(attend(q[..., :2], k[..., :2], v[..., :2]), fused(q[..., :2], k[..., :2], v[..., :2]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_head_whose_scores_reach_too_far_goes_by_the_fused_kernel_and_no_other_does(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in heads(300, 500, 24))
    with torch.no_grad():
        as_it_was = by_sigmoid(q, k, v)
        q[1, 2, 7] *= 1000
        answer, by_kernel = by_sigmoid(q, k, v), fused(q, k, v)
    assert torch.equal(answer[1, 2], by_kernel[1, 2])
    assert not torch.equal(answer[1, 2, :7], as_it_was[1, 2, :7])
    answer[1, 2] = as_it_was[1, 2]
    assert torch.equal(answer, as_it_was)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [slice(None), slice(7, 8)])
def test_of_heads_whose_scores_all_reach_too_far_no_products_are_made(
    which: slice, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[list[bool]]] = []
    asked = module._too_low
    monkeypatch.setattr(module, "_too_low", lambda *given: made.append(asked(*given)) or made[-1])
    q, k, v = (t.to(dtype) for t in heads(300, 500, 24))
    q[1, 2, which] *= 1000
    with torch.no_grad():
        assert torch.equal(by_sigmoid(q, k, v)[1, 2], fused(q, k, v)[1, 2])
    assert made == [[[False] * 3, [False, False, which == slice(None)]]]


@pytest.mark.skipif(not can_pack(), reason="needs a PyTorch with oneDNN")
def test_what_is_not_a_number_stays_in_its_query_and_head() -> None:
    q, k, v = heads(300, 500, 24)
    q[0, 1, 3, 2] = torch.nan
    with torch.no_grad():
        wrong = by_sigmoid(q, k, v).isnan()
    assert wrong[0, 1, 3].all()
    assert int(wrong.sum()) == 24


@pytest.mark.skipif(not can_pack(), reason="needs a PyTorch with oneDNN")
def test_a_picture_is_the_same_beside_others() -> None:
    q, k, v = heads(MANY_QUERIES, MANY_KEYS, 64)
    with torch.no_grad():
        alone = attend(q[1:], k[1:], v[1:])
        torch.testing.assert_close(attend(q, k, v)[1:], alone, rtol=1e-6, atol=1e-6)
