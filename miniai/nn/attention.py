"""softmax(q kᵀ / sqrt(d)) v (Vaswani et al. 2017, equation 1) for painting on a CPU in half precision: forms of
PyTorch's fused kernel, which differ in nothing but speed.

For wide pictures that kernel goes through 256 queries by 512 keys at a time, and two thirds of its time is the softmax,
some 25 cycles for 16 scores. Wider heads, plain products and a softmax of blocks were all slower
(benchmarks/results/attention_forward.md). What helps is to leave it no keys over, which it takes one by one: the 77 of
a prompt become 80, in a little more than half the time. And where there are many keys, a copy that has those of each
head side by side: measured without AMX, stepping over the other heads costs the kernel an eighth of its time.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

VECTOR = 16  # scores that the kernel takes at once
MANY_QUERIES = 256  # from here on, whole vectors gain more than filling up costs
MANY_KEYS = 1024  # from here on, keys and values side by side gain more than copying them costs


def attention(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """The fastest of the forms.

    >>> q, k, v = (torch.randn(1, 8, n, 40, dtype=torch.bfloat16) for n in (512, 77, 77))
    >>> exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    >>> bool((attention(q, k, v) - exact).norm() < 0.01 * exact.norm())
    True
    """
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
