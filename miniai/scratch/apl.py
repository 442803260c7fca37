"""12. APL beside PyTorch: Iverson's primitives (Notation as a Tool of Thought, 1980) on our tensor.

An APL function works on whole arrays, and an operator (reduce, scan, outer and inner product) makes a function of a
function. APL reads from right to left, so reduce does too: -/1 2 3 is 1 - (2 - 3). Indices count from 0.
`PRIMITIVES` sets each beside its APL symbol and its form in PyTorch.
"""

from array import array
from collections.abc import Callable
from functools import reduce as fold
from operator import add, mul, sub
from typing import Any, NamedTuple

from miniai.scratch.creation import arange, cat
from miniai.scratch.shapes import positive_dim
from miniai.scratch.tensor import Tensor, elementwise

Function = Callable[[Any, Any], Any]


class Primitive(NamedTuple):
    """An APL expression, the same on our tensors, and in PyTorch. In all three x is 3×4, m and n are whole numbers."""

    symbol: str
    name: str
    apl: str
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    pytorch: str


def fold_right(function: Function, row: list) -> Any:
    """function(row[0], function(row[1], … row[-1]))."""
    if not row:
        raise ValueError("reduce of an empty row has no value")
    return fold(lambda right, left: function(left, right), reversed(row))


def reduce(function: Function, x: Tensor, dim: int = -1) -> Tensor:
    """f/x: `function` between all elements along `dim`, from the right."""
    return counted(function, x).reduce(lambda row: fold_right(function, row), dim)


def counted(function: Function, x: Tensor) -> Tensor:
    """Truths as numbers, if `function` makes a number of two of them: + does, ∧ does not."""
    return x.to("int64") if x.dtype == "bool" and not isinstance(function(True, True), bool) else x


def scan(function: Function, x: Tensor, dim: int = -1) -> Tensor:
    """f\\x: element i is the reduction of elements 0 to i."""
    at = positive_dim(dim, x.ndim)
    moved = counted(function, x).transpose(at, -1)
    size, flat, scanned = moved.shape[-1], moved.flat().tolist(), array(moved.storage.typecode)
    for start in range(0, len(flat), max(size, 1)):
        scanned.extend([fold_right(function, flat[start : end + 1]) for end in range(start, start + size)])
    return Tensor.of(scanned, moved.shape).transpose(at, -1)


def outer(function: Function, a: Tensor, b: Tensor) -> Tensor:
    """a ∘.f b: every element of `a` with every element of `b`."""
    return elementwise(function, a[(...,) + (None,) * b.ndim], b)


def inner(combine: Function, pair: Function, a: Tensor, b: Tensor) -> Tensor:
    """a f.g b: the last dimension of `a` meets the first of `b`, `pair` by `pair`, reduced by `combine`; +.× is `@`."""
    if a.shape[-1] != b.shape[0]:
        raise RuntimeError(f"inner product: sizes {a.shape[-1]} and {b.shape[0]} differ")
    rows, columns = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1).transpose(0, 1)
    pairs = elementwise(pair, rows.unsqueeze(1), columns)
    return reduce(combine, pairs).reshape(*a.shape[:-1], *b.shape[1:])


def shape(x: Tensor) -> Tensor:
    """⍴x."""
    return Tensor(list(x.shape), "int64")


def reshape(sizes: tuple[int, ...], x: Tensor) -> Tensor:
    """sizes⍴x: elements are used again from the start where they run out, and left over where they are too many."""
    flat = x.flat()
    n = fold(mul, sizes, 1)
    if n and not flat:
        raise RuntimeError(f"an empty tensor cannot fill the shape {list(sizes)}")
    return Tensor.of((flat * -(-n // max(len(flat), 1)))[:n], sizes)


def ravel(x: Tensor) -> Tensor:
    """,x: all elements in one row."""
    return x.reshape(-1)


def catenate(a: Tensor, b: Tensor) -> Tensor:
    """a,b along the last dimension."""
    return cat([a, b], -1)


def rotate(n: int, x: Tensor, dim: int = -1) -> Tensor:
    """n⌽x: element n comes first, and what stood before it follows the last."""
    at = positive_dim(dim, x.ndim)
    if not x.numel():
        return x
    n %= x.shape[at]
    before = (slice(None),) * at
    return cat([x[(*before, slice(n, None))], x[(*before, slice(0, n))]], at)


def reverse(x: Tensor, dim: int = -1) -> Tensor:
    """⌽x."""
    at = positive_dim(dim, x.ndim)
    return x.transpose(0, at)[Tensor(list(reversed(range(x.shape[at]))), "int64")].transpose(0, at)


def transpose(x: Tensor) -> Tensor:
    """⍉x: the dimensions in reverse order."""
    return x.permute(*reversed(range(x.ndim)))


def take(n: int, x: Tensor) -> Tensor:
    """n↑x: the first n along dimension 0, or the last where n is negative."""
    return x[:n] if n >= 0 else x[n:]


def drop(n: int, x: Tensor) -> Tensor:
    """n↓x: all but the first n along dimension 0, or but the last where n is negative."""
    return x[n:] if n >= 0 else x[:n]


def compress(flags: Tensor, x: Tensor) -> Tensor:
    """flags/x: along dimension 0, what has a 1 in `flags`."""
    if flags.shape != x.shape[:1]:
        raise RuntimeError(f"compress: {list(flags.shape)} flags for {len(x)} rows")
    return x[Tensor([i for i, keep in enumerate(flags.flat()) if keep], "int64")]


def grade_up(x: Tensor) -> Tensor:
    """⍋x: the order in which indexing sorts `x`; equal elements keep their order."""
    if x.ndim != 1:
        raise RuntimeError(f"grade needs a vector, got {x.ndim} dimensions")
    return Tensor(sorted(range(len(x)), key=x.flat().__getitem__), "int64")


def grade_down(x: Tensor) -> Tensor:
    """⍒x."""
    return grade_up(-x)


def member(a: Tensor, b: Tensor) -> Tensor:
    """a∊b: whether each element of `a` stands in `b`."""
    return a.map(set(b.flat()).__contains__, "bool")


def index_of(a: Tensor, b: Tensor) -> Tensor:
    """a⍳b: where each element of `b` first stands in the vector `a`; the length of `a` where it does not."""
    places = {value: i for i, value in reversed(list(enumerate(a.flat())))}
    return b.map(lambda value: places.get(value, len(a)), "int64")


X, V, W, FLAGS = "x", "v", "w", "flags"  # named here, given by whoever tries the table
PRIMITIVES = (
    Primitive("/", "reduce", "+/x", reduce, (add, X), "x.sum(-1)"),
    Primitive("/", "reduce", "×/x", reduce, (mul, X), "x.prod(-1)"),
    Primitive("/", "reduce", "⌈/x", reduce, (max, X), "x.amax(-1)"),
    Primitive("/", "reduce", "-/x", reduce, (sub, X), "(x * torch.tensor([1, -1, 1, -1])).sum(-1)"),
    Primitive("⌿", "reduce first", "⌊⌿x", reduce, (min, X, 0), "x.amin(0)"),
    Primitive("\\", "scan", "+\\x", scan, (add, X), "x.cumsum(-1)"),
    Primitive("\\", "scan", "⌈\\x", scan, (max, X), "x.cummax(-1).values"),
    Primitive("⍀", "scan first", "×⍀x", scan, (mul, X, 0), "x.cumprod(0)"),
    Primitive("∘.", "outer product", "v∘.×w", outer, (mul, V, W), "torch.outer(v, w)"),
    Primitive("∘.", "outer product", "v∘.-x", outer, (sub, V, X), "v[:, None, None] - x"),
    Primitive(".", "inner product", "x+.×v", inner, (add, mul, X, V), "x @ v"),
    Primitive(".", "inner product", "x⌊.+v", inner, (min, add, X, V), "(x + v).amin(-1)"),
    Primitive("⍴", "shape", "⍴x", shape, (X,), "torch.tensor(x.shape)"),
    Primitive("⍴", "reshape", "2 3⍴v", reshape, ((2, 3), V), "v.repeat(2)[:6].view(2, 3)"),
    Primitive(",", "ravel", ",x", ravel, (X,), "x.flatten()"),
    Primitive(",", "catenate", "x,x", catenate, (X, X), "torch.cat([x, x], -1)"),
    Primitive("⍳", "index generator", "⍳4", arange, (4,), "torch.arange(4)"),
    Primitive("⍳", "index of", "v⍳w", index_of, (V, W), "[v.tolist().index(i) if i in v else 4 for i in w]"),
    Primitive("⌽", "rotate", "1⌽x", rotate, (1, X), "x.roll(-1, -1)"),
    Primitive("⊖", "rotate first", "¯2⊖x", rotate, (-2, X, 0), "x.roll(2, 0)"),
    Primitive("⌽", "reverse", "⌽x", reverse, (X,), "x.flip(-1)"),
    Primitive("⊖", "reverse first", "⊖x", reverse, (X, 0), "x.flip(0)"),
    Primitive("⍉", "transpose", "⍉x", transpose, (X,), "x.T"),
    Primitive("↑", "take", "2↑x", take, (2, X), "x[:2]"),
    Primitive("↓", "drop", "¯1↓x", drop, (-1, X), "x[:-1]"),
    Primitive("/", "compress", "flags⌿x", compress, (FLAGS, X), "x[flags]"),
    Primitive("⍋", "grade up", "⍋v", grade_up, (V,), "v.argsort(stable=True)"),
    Primitive("⍒", "grade down", "⍒v", grade_down, (V,), "v.argsort(descending=True, stable=True)"),
    Primitive("∊", "member", "x∊v", member, (X, V), "torch.isin(x, v)"),
)
