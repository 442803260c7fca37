"""3. Arithmetic of shapes: a tensor of any rank is one flat buffer, read through a shape and strides.

The stride of a dimension is how far apart in the buffer its neighbours lie. Index (i, j) is found at
offset + i * strides[0] + j * strides[1]; so a transpose only swaps strides, and a stride of 0 repeats a value for free.
Errors carry PyTorch's words.
"""

from collections.abc import Sequence
from math import prod

Shape = tuple[int, ...]


def contiguous_strides(shape: Shape) -> Shape:
    """Strides of a buffer in row-major order: the last dimension lies side by side."""
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def is_contiguous(shape: Shape, strides: Shape) -> bool:
    """Whether the elements lie side by side in reading order. The stride of a dimension of size 1 is never used."""
    return prod(shape) == 0 or all(
        size == 1 or stride == expected
        for size, stride, expected in zip(shape, strides, contiguous_strides(shape), strict=True)
    )


def offsets(shape: Shape, strides: Shape, start: int) -> list[int]:
    """Where every element lies in the buffer, in reading order."""
    found = [start]
    for size, stride in zip(shape, strides, strict=True):
        steps = range(0, size * stride, stride) if stride else [0] * size
        found = [base + step for base in found for step in steps]
    return found


def positive_dim(dim: int, n_dims: int) -> int:
    """-1 is the last dimension. Raises IndexError outside; a scalar is allowed its dimension 0."""
    limit = max(n_dims, 1)
    if not -limit <= dim < limit:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-limit}, {limit - 1}], but got {dim})")
    return dim % limit


def positive_dims(dims: int | Sequence[int] | None, n_dims: int) -> Shape:
    """The named dimensions in rising order; None is all. Raises RuntimeError for one named twice."""
    if dims is None:
        return tuple(range(n_dims))
    found = sorted(positive_dim(dim, n_dims) for dim in ([dims] if isinstance(dims, int) else dims))
    for first, second in zip(found, found[1:], strict=False):
        if first == second:
            raise RuntimeError(f"dim {first} appears multiple times in the list of dims")
    return tuple(found)


def broadcast_shapes(a: Shape, b: Shape) -> Shape:
    """The shape of `a + b`: dimensions are matched from the right, and size 1 stretches to the other's size."""
    n_dims = max(len(a), len(b))
    long_a, long_b = (1,) * (n_dims - len(a)) + a, (1,) * (n_dims - len(b)) + b
    for dim in reversed(range(n_dims)):
        if long_a[dim] != long_b[dim] and 1 not in (long_a[dim], long_b[dim]):
            raise RuntimeError(
                f"The size of tensor a ({long_a[dim]}) must match the size of tensor b ({long_b[dim]}) "
                f"at non-singleton dimension {dim}"
            )
    return tuple(size_b if size_a == 1 else size_a for size_a, size_b in zip(long_a, long_b, strict=True))


def expand_strides(shape: Shape, strides: Shape, target: Shape) -> Shape:
    """Strides that read `shape` as if it were `target`: 0 wherever a size of 1 is stretched. -1 keeps a size."""
    n_new = len(target) - len(shape)
    if n_new < 0:
        raise RuntimeError(
            f"expand: the number of sizes provided ({len(target)}) must be greater or equal to the number of "
            f"dimensions in the tensor ({len(shape)})"
        )
    for dim, wanted in enumerate(target[:n_new]):
        if wanted < 0:
            raise RuntimeError(
                f"The expanded size of the tensor ({wanted}) isn't allowed in a leading, non-existing dimension {dim}"
            )
    stretched = [0] * n_new
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        wanted = target[n_new + dim]
        if wanted not in (size, -1) and (size != 1 or wanted < 0):
            raise RuntimeError(
                f"The expanded size of the tensor ({wanted}) must match the existing size ({size}) at non-singleton "
                f"dimension {n_new + dim}.  Target sizes: {list(target)}.  Tensor sizes: {list(shape)}"
            )
        stretched.append(stride if wanted in (size, -1) else 0)
    return tuple(stretched)


def complete_shape(shape: Shape, n_elements: int) -> Shape:
    """Fills in one -1. Raises RuntimeError where the sizes do not multiply to `n_elements`."""
    if shape.count(-1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    for i, size in enumerate(shape):
        if size < -1:
            raise RuntimeError(f"invalid shape dimension {size} at index {i} of shape {list(shape)}")
    known = prod(size for size in shape if size != -1)
    if -1 in shape and known and n_elements % known == 0:
        shape = tuple(n_elements // known if size == -1 else size for size in shape)
    if -1 in shape or prod(shape) != n_elements:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {n_elements}")
    return shape


def nested_shape(data: object) -> Shape:
    """The shape of nested lists or tuples; a number has shape (). Raises ValueError where they are ragged."""
    if not isinstance(data, list | tuple):
        return ()
    inner = nested_shape(data[0]) if data else ()
    check_nested(data, (len(data), *inner), 0)
    return (len(data), *inner)


def check_nested(data: object, shape: Shape, dim: int) -> None:
    """Raises ValueError (TypeError for a number among lists) where `data` does not have `shape` from `dim` on."""
    if dim == len(shape):
        if isinstance(data, list | tuple):
            raise ValueError(f"expected a number at dim {dim} (got a sequence of length {len(data)})")
        return
    if not isinstance(data, list | tuple):
        raise TypeError(f"expected a sequence of length {shape[dim]} at dim {dim} (got {type(data).__name__})")
    if len(data) != shape[dim]:
        raise ValueError(f"expected sequence of length {shape[dim]} at dim {dim} (got {len(data)})")
    for item in data:
        check_nested(item, shape, dim + 1)
