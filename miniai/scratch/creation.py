"""8. Tensors from nothing, and from other tensors: zeros, arange, eye; cat, stack, pad, where, gather, one_hot."""

import math
from array import array
from collections.abc import Sequence
from itertools import repeat

from miniai.scratch.ieee import Number
from miniai.scratch.shapes import Shape, broadcast_shapes, contiguous_strides, offsets, positive_dim
from miniai.scratch.strided import CODES
from miniai.scratch.tensor import Tensor


def full(shape: Shape, value: Number) -> Tensor:
    for size in shape:
        if size < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {size}: {list(shape)}")
    return Tensor.of(array(code_of(value), [value]) * math.prod(shape), shape)


def code_of(value: Number) -> str:
    return "b" if isinstance(value, bool) else "q" if isinstance(value, int) else "d"


def zeros(*shape: int) -> Tensor:
    return full(shape, 0.0)


def ones(*shape: int) -> Tensor:
    return full(shape, 1.0)


def arange(start: int, stop: int | None = None, step: int = 1) -> Tensor:
    """Integers from `start` (0 where only one is given) up to, not including, `stop`."""
    numbers = array("q", range(start) if stop is None else range(start, stop, step))
    return Tensor.of(numbers, (len(numbers),))


def linspace(start: Number, end: Number, steps: int) -> Tensor:
    """`steps` numbers at equal distances, both ends among them."""
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    gap = (end - start) / (steps - 1) if steps > 1 else 0
    numbers = [end - (steps - 1 - i) * gap if 2 * i >= steps else start + i * gap for i in range(steps)]
    return Tensor(numbers, "float64")


def eye(n: int) -> Tensor:
    return Tensor.of(array("d", [1.0, *[0.0] * n] * n)[: n * n], (n, n))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after another along `dim`; in the others they must agree."""
    if not tensors:
        raise RuntimeError("cat(): expected a non-empty list of Tensors")
    first = tensors[0]
    at = positive_dim(dim, first.ndim)
    for i, tensor in enumerate(tensors):
        if tensor.ndim != first.ndim:
            raise RuntimeError(f"Tensors must have same number of dimensions: got {first.ndim} and {tensor.ndim}")
        for d, (size, other) in enumerate(zip(first.shape, tensor.shape, strict=True)):
            if d != at and size != other:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {at}. Expected size {size} but got size {other} "
                    f"for tensor number {i} in the list."
                )
    code = max((tensor.storage.typecode for tensor in tensors), key=list(CODES.values()).index)
    flats = [tensor.flat() for tensor in tensors]
    runs = [math.prod(tensor.shape[at:]) for tensor in tensors]  # what each gives before the next has its turn
    joined = array(code)
    for i in range(math.prod(first.shape[:at])):
        for flat, run in zip(flats, runs, strict=True):
            joined.extend(array(code, flat[i * run : (i + 1) * run]))
    length = sum(tensor.shape[at] for tensor in tensors)
    return Tensor.of(joined, (*first.shape[:at], length, *first.shape[at + 1 :]))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors side by side along a new dimension `dim`; all of one shape."""
    if not tensors:
        raise RuntimeError("stack expects a non-empty TensorList")
    for i, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(tensors[0].shape)} at entry 0 and "
                f"{list(tensor.shape)} at entry {i}"
            )
    return cat([tensor.unsqueeze(positive_dim(dim, tensor.ndim + 1)) for tensor in tensors], dim)


def pad(x: Tensor, padding: Sequence[int], value: Number = 0.0) -> Tensor:
    """`value` around `x`. `padding` is (before, after) for the last dimension, then for the one before it, and on."""
    if len(padding) % 2 or len(padding) > 2 * x.ndim:
        raise RuntimeError(f"padding of length {len(padding)} does not fit an input of {x.ndim} dimensions")
    sides = [(0, 0)] * (x.ndim - len(padding) // 2)
    sides += [(padding[i], padding[i + 1]) for i in range(len(padding) - 2, -1, -2)]
    if any(before < 0 or after < 0 for before, after in sides):
        raise RuntimeError(f"padding cannot be negative, got {list(padding)}")
    padded = full(tuple(size + before + after for size, (before, after) in zip(x.shape, sides, strict=True)), value)
    padded[tuple(slice(before, before + size) for size, (before, _) in zip(x.shape, sides, strict=True))] = x
    return padded


def where(condition: Tensor, a: Tensor | Number, b: Tensor | Number) -> Tensor:
    """The element of `a` where `condition` holds, of `b` elsewhere; all three broadcast."""
    both = condition.shape
    for x in (a, b):
        both = broadcast_shapes(both, x.shape if isinstance(x, Tensor) else ())
    flats = [x.expand(*both).flat() if isinstance(x, Tensor) else array(code_of(x), [x]) for x in (a, b)]
    code = max((flat.typecode for flat in flats), key=list(CODES.values()).index)
    choices = [flat if isinstance(x, Tensor) else repeat(x) for x, flat in zip((a, b), flats, strict=True)]
    chosen = [x if keep else y for keep, x, y in zip(condition.expand(*both).flat(), *choices, strict=False)]
    return Tensor.of(array(code, chosen), both)


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """The result has the shape of `index`, and at each place the element of `x` that stands at that place, but at
    `index` along `dim`."""
    at = positive_dim(dim, x.ndim)
    check_index(x, at, index)
    flat, strides = x.flat(), contiguous_strides(x.shape)
    rest = strides[:at] + (0,) + strides[at + 1 :]
    starts = offsets(index.shape, rest, 0)
    found = [flat[start + i * strides[at]] for start, i in zip(starts, index.flat(), strict=True)]
    return Tensor.of(array(x.storage.typecode, found), index.shape)


def scatter_add(shape: Shape, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Zeros of `shape`, to which each element of `source` is added where `gather` would have read: its transpose."""
    sums = zeros(*shape)
    at = positive_dim(dim, sums.ndim)
    check_index(sums, at, index)
    rest = sums.strides[:at] + (0,) + sums.strides[at + 1 :]
    for start, i, value in zip(offsets(index.shape, rest, 0), index.flat(), source.flat(), strict=True):
        sums.storage[start + i * sums.strides[at]] += value
    return sums


def check_index(x: Tensor, dim: int, index: Tensor) -> None:
    if index.dtype != "int64":
        raise RuntimeError("gather(): Expected dtype int64 for index")
    if index.ndim != x.ndim:
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for d, (size, wanted) in enumerate(zip(x.shape, index.shape, strict=True)):
        if d != dim and wanted > size:
            raise RuntimeError(
                f"Size does not match at dimension {d} expected index {list(index.shape)} to be no larger than self "
                f"{list(x.shape)} apart from dimension {dim}"
            )
    for i in index.flat():
        if not 0 <= i < x.shape[dim]:
            raise RuntimeError(f"index {i} is out of bounds for dimension {dim} with size {x.shape[dim]}")


def one_hot(index: Tensor, n_classes: int) -> Tensor:
    """int64 (...) becomes (..., n_classes): 1 at the index, 0 elsewhere."""
    if index.numel() and not 0 <= min(index.flat()) <= max(index.flat()) < n_classes:
        raise RuntimeError("Class values must be non-negative and smaller than num_classes.")
    flags = array("q", [int(i == c) for i in index.flat() for c in range(n_classes)])
    return Tensor.of(flags, (*index.shape, n_classes))
