"""softmax(q kᵀ / sqrt(d)) v (Vaswani et al. 2017, equation 1) for painting on a CPU: three forms, which differ in
speed and in a few roundings (benchmarks/results/attention_forward.md).

PyTorch's fused kernel goes through 256 queries by 512 keys at a time, and most of its time is the softmax. Two things
help it: no keys left over, which it takes one by one (the 77 of a prompt become 80, in a little more than half the
time), and the keys of each head side by side in memory.

Where there are many keys, two matrix products with a sigmoid between them are two to three times as fast, since
oneDNN computes the sigmoid where a product's numbers still lie in registers. Far below zero a sigmoid is the
exponential: e^x / (1 + e^x) is less than e^x by the e^x-th part of it. A softmax does not change when a number is taken
from all scores of a query, so each query's scores are brought down below a negative bound: a column more in queries and
keys does it, within the product. Columns of ones beside the values sum up the weights, within the other product.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from miniai.base.device import has_amx, has_avx512
from miniai.nn.packed import can_pack

VECTOR = 16  # scores that the fused kernel takes at once
MANY_QUERIES = 256  # from here on, whole vectors gain more than filling up costs
MANY_KEYS = 1024  # from here on, keys and values side by side gain more than copying them costs
NUMBERS_OF_KEYS = {torch.bfloat16: 2**15, torch.float32: 2**16}  # of a head: from here on a sigmoid is faster
BELOW = {torch.bfloat16: 8, torch.float32: 17}  # zero by so much, a sigmoid is an exponential up to rounding
SCORES_AT_ONCE = 2**21  # what the cores' common cache holds beside the rest
# Of what scores can reach: more than all roundings of a bound and of a score together, ten of 2^-8 each in bfloat16,
# one of 2^-24 for each number of a key in float32.
ROUNDING = {torch.bfloat16: 3 * 2**-6, torch.float32: 2**-14}
SUMS = 8  # columns that share the keys among them: their sum is rounded less than one column's
LEAST_SUM = 1e-30  # below, weights that count are too small for float32 (and values below 1e-7 of digits before that)
SAMPLES = 8  # queries of a head that are asked beforehand whether its sums will come out smaller


def attention(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """The fastest of the forms. Without gradients.

    >>> q, k, v = (torch.randn(1, 8, n, 40, dtype=torch.bfloat16) for n in (512, 77, 77))
    >>> exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    >>> bool((attention(q, k, v) - exact).norm() < 0.01 * exact.norm())
    True
    """
    if _sigmoid_is_faster(q, k):
        return by_sigmoid(q, k, v)
    if q.dtype.itemsize > 2:
        return fused(q, k, v)
    if k.shape[2] >= MANY_KEYS:
        k, v = k.contiguous(), v.contiguous()
    return in_whole_vectors(q, k, v) if q.shape[2] >= MANY_QUERIES else fused(q, k, v)


def fused(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v)


def in_whole_vectors(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's kernel, with keys that nobody sees to fill the last vector."""
    n_keys = k.shape[2]
    n_more = -n_keys % VECTOR
    if n_more == 0:
        return fused(q, k, v)
    hidden = torch.zeros(1, n_keys + n_more, dtype=q.dtype, device=q.device)
    hidden[:, n_keys:] = float("-inf")
    k, v = (F.pad(t, (0, 0, 0, n_more)) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden.expand(q.shape[2], -1))


def by_sigmoid(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """Two products with a sigmoid between them, in float32 or bfloat16; heads whose scores reach too far by the fused
    kernel."""
    (b, heads, n, d), m = q.shape, k.shape[2]
    bound = bound_on_scores(q, k) + BELOW[q.dtype]
    q_down = torch.cat([q * d**-0.5, -bound.to(q.dtype)], dim=-1)
    k_down = torch.cat([k, k.new_ones(1).expand(b, heads, m, 1)], dim=-1)
    ones = torch.eye(SUMS, dtype=v.dtype, device=v.device).repeat(-(-m // SUMS), 1)[:m]
    v_and_ones = torch.cat([v, ones.expand(b, heads, m, SUMS)], dim=-1).transpose(2, 3)
    product = torch.ops.mkldnn._linear_pointwise
    found, sums = q.new_empty(n, d + SUMS), q.new_empty(b, heads, n, 1, dtype=torch.float32)
    out = q.new_empty(b, n, heads, d).transpose(1, 2)  # as the next linear layer wants them
    by_kernel = _too_low(q_down, k_down)
    for i in range(b):
        for head in range(heads):
            if by_kernel[i][head]:
                sums[i, head] = 0
                continue
            parts = (t.split(max(1, SCORES_AT_ONCE // m)) for t in (q_down[i, head], found))
            for queries, part in zip(*parts, strict=True):
                weights = product(queries, k_down[i, head], None, "sigmoid", [], "")
                # Copied at once: were it kept, the next weights would come to lie in pages that nobody touched before.
                part.copy_(product(weights, v_and_ones[i, head], None, "none", [], ""))
            torch.sum(found[:, d:], dim=-1, keepdim=True, dtype=torch.float32, out=sums[i, head])
            torch.div(found[:, :d], sums[i, head], out=out[i, head])
    for i, head in (~(sums > LEAST_SUM).flatten(2).all(dim=-1)).nonzero().tolist():  # whatever is not a number, too
        out[i, head] = fused(*(t[i, head][None, None] for t in (q, k, v)))[0, 0]
    return out


def bound_on_scores(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"]) -> Float[Tensor, "b heads n 1"]:
    """What no score of a query is above, however its product is rounded: by Cauchy and Schwarz, from the keys' middle,
    q·k <= q·middle + |q| max |k - middle|."""
    length = partial(torch.linalg.vector_norm, dim=-1, keepdim=True)
    middle = k.mean(dim=2, keepdim=True)
    farthest = length(k - middle).amax(dim=2, keepdim=True)
    reach = farthest + ROUNDING[q.dtype] * (farthest + length(middle))
    return (q @ middle.transpose(2, 3) + length(q) * reach) * q.shape[-1] ** -0.5


def _too_low(q_down: Float[Tensor, "b heads n d"], k_down: Float[Tensor, "b heads m d"]) -> list[list[bool]]:
    """Of each head whether some of its queries have no score near the bound, so that products would be for nothing."""
    some = q_down[:, :, :: max(1, q_down.shape[2] // SAMPLES)]
    highest = (some @ k_down.transpose(2, 3)).amax(dim=-1)
    return (highest.amin(dim=-1) < math.log(LEAST_SUM)).tolist()


def _sigmoid_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether it can be computed, and was measured to be faster: with the narrower vectors of AVX2 it is not, with AMX
    it has not been measured."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if is_in_torch_dispatch_mode():  # whoever counts or traces operations knows the fused kernel
        return False
    if not (q.dtype in NUMBERS_OF_KEYS and can_pack(q.dtype) and has_avx512()) or has_amx():
        return False
    return q.shape[2] >= MANY_QUERIES and k.shape[2] * k.shape[3] >= NUMBERS_OF_KEYS[q.dtype]
