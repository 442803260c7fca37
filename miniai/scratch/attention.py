"""24. Dropout, embeddings, and attention: what a transformer and the time input of a U-Net are made of.

Names as in nn/layers.py. Tokens are (b, n, d).
"""

import math
from array import array

from miniai.scratch.autograd import Variable
from miniai.scratch.creation import cat, zeros
from miniai.scratch.functional import silu, softmax
from miniai.scratch.modules import Linear, Module, Parameter
from miniai.scratch.rng import Rng
from miniai.scratch.shapes import Shape
from miniai.scratch.tensor import Tensor


class Dropout(Module):
    """In training, each element is 0 with probability `p`, and the rest are divided by 1 - p, so that the mean stays
    (Srivastava et al. 2014)."""

    def __init__(self, p: float, rng: Rng) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability has to be from 0 up to, but not including, 1, got {p}")
        self.p, self.rng = p, rng

    def forward(self, x: Variable) -> Variable:
        if not self.training or not self.p:
            return x
        return x * Variable(self.rng.uniform(*x.shape).map(lambda u: 1 / (1 - self.p) if u >= self.p else 0.0))


class Embedding(Module):
    """A row of `weight` for each index: int64 (…) to (…, dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, rng: Rng | None = None) -> None:
        super().__init__()
        shape = (num_embeddings, embedding_dim)
        self.weight = Parameter(zeros(*shape) if rng is None else rng.normal(*shape))

    def forward(self, index: Tensor) -> Variable:
        for i in index.flat():
            if not 0 <= i < len(self.weight):
                raise IndexError(f"index {i} out of range in an embedding of {len(self.weight)} rows")
        return Variable.computed(
            self.weight.data[index], (self.weight,), lambda g: (add_rows(self.weight.shape, index, g),)
        )


def add_rows(shape: Shape, index: Tensor, grad: Tensor) -> Tensor:
    """Zeros of `shape`, each row of `grad` added to the row that its index names."""
    sums, dim = zeros(*shape), shape[1]
    values = grad.flat()
    for place, row in enumerate(index.flat()):
        for j in range(dim):
            sums.storage[row * dim + j] += values[place * dim + j]
    return sums


def sinusoidal_embedding(
    t: Tensor, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: int | float = 0, max_period: int = 10000
) -> Tensor:
    """(b,) to (b, dim): sines and cosines of `t` at dim / 2 frequencies, 1 down to 1/max_period (Vaswani et al. 2017,
    section 3.5)."""
    half = dim // 2
    frequencies = [math.exp(-math.log(max_period) * i / (half - freq_shift)) for i in range(half)]
    angle = t.to("float64")[:, None] * Tensor(frequencies, "float64")
    parts = (angle.map(math.cos), angle.map(math.sin))
    return cat([*(parts if flip_sin_to_cos else parts[::-1]), zeros(len(t), dim % 2)], -1)


class TimestepEmbedding(Module):
    """Two linear layers over the sinusoidal embedding of the timestep."""

    def __init__(self, in_dim: int, out_dim: int, rng: Rng | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(in_dim, out_dim, rng)
        self.linear_2 = Linear(out_dim, out_dim, rng)

    def forward(self, x: Variable) -> Variable:
        return self.linear_2(silu(self.linear_1(x)))


def attend(q: Variable, k: Variable, v: Variable, mask: Tensor | None = None) -> Variable:
    """softmax(q kᵀ / sqrt(d) + mask) v (Vaswani et al. 2017, equation 1). (b, heads, n, d); mask (n, m), 0 or -inf."""
    scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + Variable(mask)
    return softmax(scores, -1) @ v


def causal_mask(n: int) -> Tensor:
    """(n, n): -inf where a token would look at a later one."""
    return Tensor.of(array("d", [0.0 if j <= i else -math.inf for i in range(n) for j in range(n)]), (n, n))


class SelfAttention(Module):
    """One head: every token asks (q) every token (k) how much of its value (v) to take."""

    def __init__(self, dim: int, rng: Rng | None = None) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (Linear(dim, dim, rng, bias=False) for _ in range(3))

    def forward(self, x: Variable, mask: Tensor | None = None) -> Variable:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        return attend(q, k, v, mask).squeeze(1)


class Attention(Module):
    """Multi-head attention; `context` None means self-attention. Queries, keys and values have no bias unless asked."""

    def __init__(
        self, dim: int, context_dim: int, n_heads: int, head_dim: int, rng: Rng | None = None, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        inner = n_heads * head_dim
        self.to_q = Linear(dim, inner, rng, bias=bias)
        self.to_k = Linear(context_dim, inner, rng, bias=bias)
        self.to_v = Linear(context_dim, inner, rng, bias=bias)
        self.to_out = [Linear(inner, dim, rng)]

    def forward(self, x: Variable, context: Variable | None = None, mask: Tensor | None = None) -> Variable:
        context = x if context is None else context
        q, k, v = (self.split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out[0](attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def split(self, x: Variable) -> Variable:
        """(b, n, heads * d) to (b, heads, n, d)."""
        return x.reshape(*x.shape[:2], self.n_heads, x.shape[2] // self.n_heads).transpose(1, 2)
