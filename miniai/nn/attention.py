"""softmax(q kᵀ / sqrt(d)) v (Vaswani et al. 2017, equation 1) in forms that differ in nothing but speed and rounding.

Why PyTorch's fused kernel is slow for wide pictures on a CPU: it goes through 256 queries by 512 keys at a time, and of
that two thirds of the time is the softmax, some 25 cycles for 16 scores; a head width of 40 leaves the two products, on
matrix units that are made for multiples of 32, little to do for all that they read and write.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "b heads n d"]
Form = Callable[[Heads, Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]], Heads]

QUERIES_AT_ONCE = 256
VECTOR = 16  # scores that the kernel takes at once; what is left over it takes one by one


def fastest(n_queries: int, n_keys: int, width: int) -> Form:
    """The form for painting on a CPU in half precision (benchmarks/attention_forward.py)."""
    return fused


def fused(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v)


def in_whole_vectors(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's kernel, with keys that nobody sees to fill the last vector: 77 become 80."""
    n_keys = k.shape[2]
    n_more = -n_keys % VECTOR
    if n_more == 0:
        return fused(q, k, v)
    hidden = torch.zeros(1, n_keys + n_more, dtype=q.dtype, device=q.device)
    hidden[:, n_keys:] = float("-inf")
    k, v = (F.pad(t, (0, 0, 0, n_more)) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden.expand(q.shape[2], -1))


def widened(multiple: int) -> Form:
    """PyTorch's kernel, with heads filled up with zeros to a multiple of a width."""

    def form(
        q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
    ) -> Float[Tensor, "b heads n d"]:
        width = q.shape[-1]
        q, k, v = (F.pad(t, (0, -width % multiple)) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]

    return form


def products(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """Two products and a softmax. In half precision the scores are rounded once more than in the kernel."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def in_blocks(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """Products and a softmax in float32, for some queries at a time."""
    k = k.transpose(-1, -2)
    blocks = (q * q.shape[-1] ** -0.5).split(QUERIES_AT_ONCE, dim=2)
    return torch.cat([(b @ k).softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v for b in blocks], dim=2)
